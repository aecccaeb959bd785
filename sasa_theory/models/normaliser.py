"""Input normalisation, and models that take raw units whatever they were trained in.

    h = x                            kinds "none" and "mean_scalar"
    h = (x - mu(x)) / (std(x) + eps) kind "layer_norm", statistics of each row
    z = (h - mean) * scale           per dimension, fitted once

"mean_scalar" fits `mean` to the data and one scalar such that E||z||^2 = D; the other kinds leave both alone. A `cap`
shrinks outlier dimensions: where the RMS exceeds cap x the median RMS, `scale` is lowered so that it equals it. The
per-dimension part is affine, so it folds into a dictionary's weights exactly; a layer norm does not and is kept.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sasa_theory.models.base import SparseModel, require_number
from sasa_theory.models.codes import Codes
from synthetic.errors import DataError, UsageError, unknown

KINDS = ("none", "layer_norm", "mean_scalar")
#: added to the standard deviation, as SAELens does
LAYER_NORM_EPS = 1e-5

#: what `invert` needs of the row it came from: (mu, std) of a layer norm, else None
Context: TypeAlias = "tuple[Float[Tensor, 'B 1'], Float[Tensor, 'B 1']] | None"


class Normaliser:
    """An input normalisation z = (h - mean) * scale, h = x or its layer norm; see the module's head.

    kind as in `KINDS`; mean, scale (D,) float32; cap the outlier cap it was fitted with, or None.
    Raises UsageError for an unknown kind, for shapes that differ and for a scale that is not positive.
    """

    def __init__(
        self, kind: str, mean: "Float[Tensor, ' D']", scale: "Float[Tensor, ' D']", cap: float | None = None
    ) -> None:
        if kind not in KINDS:
            raise unknown("normaliser", kind, KINDS)
        if mean.ndim != 1 or mean.shape != scale.shape:
            raise UsageError(
                f"mean and scale have shapes {tuple(mean.shape)} and {tuple(scale.shape)}; expected (D,) both"
            )
        if not (mean.isfinite().all() and scale.isfinite().all() and (scale > 0).all()):
            raise UsageError("a normaliser's mean must be finite and its scale finite and positive")
        self.kind, self.cap = kind, cap
        self.mean, self.scale = mean.detach().float().clone(), scale.detach().float().clone()

    @classmethod
    def identity(cls, width: int) -> "Normaliser":
        """The normaliser that leaves everything alone."""
        return cls("none", torch.zeros(width), torch.ones(width))

    @classmethod
    def fit(cls, kind: str, rows: "Float[Tensor, 'n D']", cap: float | None = None) -> "Normaliser":
        """Fit to raw rows, in float64.

        Raises UsageError for an unknown kind, a cap below 1, too few rows or (layer norm) width 1; DataError for NaN
        or Inf, for rows without variance, and for a cap when over half of the dimensions are constant.
        """
        if kind not in KINDS:
            raise unknown("normaliser", kind, KINDS)
        if rows.ndim != 2 or len(rows) < 2:
            raise UsageError(f"rows have shape {tuple(rows.shape)}; a normaliser is fitted to at least 2 rows (n, D)")
        if cap is not None:
            require_number(low=1.0, outlier_cap=cap)
        if kind == "layer_norm" and rows.shape[1] < 2:
            raise UsageError("a layer norm over width 1 has no variance; use 'mean_scalar'")
        bad = (~rows.isfinite()).any(dim=1).nonzero().flatten()
        if len(bad) > 0:
            raise DataError(f"row {int(bad[0])} holds NaN or Inf ({len(bad)} of {len(rows)} rows do); clean the data")
        h = rows.double()
        if kind == "layer_norm":
            h = _layer_norm(h)[0]
        mean = h.mean(dim=0) if kind == "mean_scalar" else h.new_zeros(h.shape[1])
        rms = (h - mean).square().mean(dim=0).sqrt()
        # below this, what is left after centring is rounding
        floor = torch.finfo(rows.dtype if rows.dtype.is_floating_point else torch.float32).eps * h.abs().amax()
        if kind != "none" and float(rms.amax()) <= float(floor):
            raise DataError(f"the {len(rows)} rows have no variance; {kind!r} cannot scale them. Check the data")
        scale = torch.ones_like(rms) if cap is None else _capped(rms, cap)
        if kind == "mean_scalar":
            scale = scale * (len(rms) / (rms * scale).square().sum()).sqrt()
        return cls(kind, mean, scale, cap)

    @property
    def width(self) -> int:
        """D."""
        return len(self.mean)

    @property
    def linear(self) -> bool:
        """True when the map is affine, so that it folds into weights entirely."""
        return self.kind != "layer_norm"

    def to(self, device: torch.device | str) -> "Normaliser":
        """The same normaliser on another device."""
        return Normaliser(self.kind, self.mean.to(device), self.scale.to(device), self.cap)

    def apply(self, x: "Float[Tensor, 'B D']") -> "tuple[Float[Tensor, 'B D'], Context]":
        """z, and the context with which to map back (the rows' own statistics for a layer norm)."""
        h, context = x.to(self.mean.dtype), None
        if self.kind == "none" and self.cap is None:
            return h, context  # two passes over the batch that change nothing
        if not self.linear:
            h, context = _layer_norm(h)
        return (h - self.mean) * self.scale, context

    def apply_with(self, x: "Float[Tensor, 'B D']", context: Context) -> "Float[Tensor, 'B D']":
        """z of `x`, normalised by the statistics of other rows (a reconstruction by those of its input)."""
        h = x.to(self.mean.dtype)
        if context is not None:
            h = (h - context[0]) / (context[1] + LAYER_NORM_EPS)
        return (h - self.mean) * self.scale

    def invert(self, z: "Float[Tensor, 'B D']", context: Context) -> "Float[Tensor, 'B D']":
        """Back to raw units: z / scale + mean, then times std plus mu of the context's rows.

        A layer norm is undone without eps, as in SAELens, so it inverts to a relative eps/std of x - mu.
        """
        h = z / self.scale + self.mean
        return h if context is None else h * context[1] + context[0]

    def state(self) -> dict[str, Any]:
        """Tensors and JSON values for a checkpoint; `from_state` makes the same normaliser again."""
        return {"kind": self.kind, "cap": self.cap, "mean": self.mean.clone(), "scale": self.scale.clone()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Normaliser":
        """The normaliser of a checkpoint; raises DataError when an entry is missing."""
        missing = {"kind", "cap", "mean", "scale"} - set(state)
        if missing:
            raise DataError(f"the normaliser's state lacks {', '.join(sorted(missing))}; the checkpoint is incomplete")
        return cls(state["kind"], state["mean"], state["scale"], state["cap"])

    def folded_into(self, model: SparseModel) -> SparseModel:
        """A copy of `model` that takes h in place of z: the per-dimension part folded into its weights.

        With z = (h - mean) * scale, (z - b_dec) W_enc = (h - b') (scale W_enc) for b' = b_dec / scale + mean: codes
        and thresholds stay as they are, and the reconstruction in units of h is codes (W_dec / scale) + b'.
        """
        folded = copy.deepcopy(model)
        mean, scale = self.mean.double(), self.scale.double()
        with torch.no_grad():
            folded.W_enc.copy_(scale[:, None] * model.W_enc.double())
            folded.W_dec.copy_(model.W_dec.double() / scale)
            folded.b_dec.copy_(model.b_dec.double() / scale + mean)
        return folded


class NormalisedModel(nn.Module):
    """A dictionary with its input normalisation: raw units in and out, codes as the dictionary gives them.

    Raises UsageError when the widths differ.
    """

    def __init__(self, model: SparseModel, normaliser: Normaliser) -> None:
        super().__init__()
        if model.width_in != normaliser.width:
            raise UsageError(f"the model has width {model.width_in} but its normaliser {normaliser.width}")
        self.model, self.normaliser = model, normaliser.to(model.W_enc.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NormalisedModel":
        # `.to(device)` and `.cuda()` come through here: the normaliser follows the weights
        super()._apply(fn, recurse)
        self.normaliser = self.normaliser.to(self.model.W_enc.device)
        return self

    @property
    def width_in(self) -> int:
        """D."""
        return self.model.width_in

    @property
    def n_units(self) -> int:
        """K."""
        return self.model.n_units

    @property
    def rank(self) -> int:
        """r."""
        return self.model.rank

    @property
    def architecture(self) -> str:
        """The dictionary's name in the registry."""
        return self.model.architecture

    def encode(self, x: "Float[Tensor, 'B D']") -> Codes:
        """Codes of raw rows."""
        return self.model.encode(self.normaliser.apply(x)[0])

    def decode(self, codes: Codes, x: "Float[Tensor, 'B D'] | None" = None) -> "Float[Tensor, 'B D']":
        """Reconstruction in raw units; a layer norm needs the rows `x` that were encoded (else UsageError)."""
        if self.normaliser.linear:
            return self.normaliser.invert(self.model.decode(codes), None)
        if x is None:
            raise UsageError(
                "a model behind a layer norm decodes only with its input: decode(codes, x) or reconstruct(x)"
            )
        return self.normaliser.invert(self.model.decode(codes), self.normaliser.apply(x)[1])

    def reconstruct(self, x: "Float[Tensor, 'B D']") -> "tuple[Float[Tensor, 'B D'], Codes]":
        """The reconstruction in raw units, and its codes."""
        z, context = self.normaliser.apply(x)
        codes = self.model.encode(z)
        return self.normaliser.invert(self.model.decode(codes), context), codes

    def forward(self, x: "Float[Tensor, 'B D']") -> "Float[Tensor, 'B D']":
        """The reconstruction in raw units."""
        return self.reconstruct(x)[0]

    def blocks(self) -> "tuple[Float[Tensor, 'K D r'], Float[Tensor, 'K r D']]":
        """Blocks as `SparseModel.blocks`, in raw units; in layer-normed units behind a layer norm."""
        enc, dec = self.model.blocks()
        return self.normaliser.scale[:, None] * enc, dec / self.normaliser.scale

    def folded(self) -> SparseModel | None:
        """The same function as one plain dictionary in raw units, or None behind a layer norm (not affine)."""
        return self.normaliser.folded_into(self.model) if self.normaliser.linear else None


def _layer_norm(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """SAELens's: the rows' mean, and their standard deviation with D - 1; a constant row becomes zero."""
    mu = x.mean(dim=-1, keepdim=True)
    centred = x - mu
    std = centred.std(dim=-1, keepdim=True)
    return centred / (std + LAYER_NORM_EPS), (mu, std)


def _capped(rms: "Float[Tensor, ' D']", cap: float) -> "Float[Tensor, ' D']":
    """Factors <= 1 that bring every RMS down to cap x the median RMS."""
    bound = cap * rms.quantile(0.5)
    if float(bound) == 0:
        raise DataError("over half of the dimensions are constant, so the outlier cap has no median; drop the cap")
    return bound / rms.clamp_min(bound)
