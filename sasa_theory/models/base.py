"""What every sparse dictionary is: an encoder, a gate, a linear decoder, and a loss.

    codes = gate((h - b_dec) W_enc + b_enc),     hhat = codes W_dec + b_dec

Unit k (a latent when r = 1, a group of r consecutive latents otherwise) owns the columns [k r, (k+1) r). A model is
a file of `encode` and `loss`; `decode` is shared. Nothing changes parameters or buffers in `forward` or `loss`:
constraints and running statistics happen in `post_step`, which the trainer calls after each optimiser step.
Architectures know nothing of input normalisation (see `normaliser.py`).
"""

import functools
import inspect
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sasa_theory.models import gated_torch
from sasa_theory.models.codes import Codes
from sasa_theory.models.form import GatedForm
from synthetic.errors import UsageError


@dataclass(frozen=True)
class Loss:
    """A training loss and what it was made of.

    total  scalar, differentiable: sum of the weighted parts.
    parts  named weighted parts ("reconstruction", "sparsity", "nuclear", "auxiliary", ...), scalars that sum to total.
    codes  the codes of this batch (firing statistics are taken from them).
    xhat   the reconstruction.
    state  anything `post_step` needs (a batch threshold, ...).
    """

    total: "Float[Tensor, '']"
    parts: "dict[str, Float[Tensor, '']]"
    codes: Codes
    xhat: "Float[Tensor, 'B D']"
    state: "dict[str, Tensor]" = field(default_factory=dict)


class SparseModel(nn.Module):
    """Base of all architectures: weights, shared decoder, settings.

    width_in D; n_units K; rank r. Parameters: W_enc (D, K r), b_enc (K r), W_dec (K r, D), b_dec (D).
    Raises UsageError for sizes that are not positive integers.
    """

    #: name in the registry, and in `cfg.json` unless `export` says otherwise
    architecture: ClassVar[str] = ""

    _settings: dict[str, Any]
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Remember the arguments every model was made with, for `settings`."""
        super().__init_subclass__(**kwargs)
        made, signature = cls.__init__, inspect.signature(cls.__init__)

        @functools.wraps(made)
        def remembering(self: "SparseModel", *args: Any, **kwargs: Any) -> None:
            made(self, *args, **kwargs)
            if type(self) is cls:  # not the __init__ of a parent architecture
                bound = signature.bind(self, *args, **kwargs)
                bound.apply_defaults()
                self._settings = {name: value for name, value in bound.arguments.items() if name != "self"}

        cls.__init__ = remembering  # type: ignore[method-assign]

    def __init__(self, width_in: int, n_units: int, rank: int = 1) -> None:
        super().__init__()
        require_positive(width_in=width_in, n_units=n_units, rank=rank)
        self.width_in, self.n_units, self.rank = width_in, n_units, rank
        columns = n_units * rank
        # stored column by column, so that a unit's block is contiguous in both weights and in their gradients
        self.W_enc = nn.Parameter(torch.empty(columns, width_in).T)
        self.b_enc = nn.Parameter(torch.zeros(columns))
        self.W_dec = nn.Parameter(torch.empty(columns, width_in))
        self.b_dec = nn.Parameter(torch.zeros(width_in))
        self.initialise(torch.Generator().manual_seed(0))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, rows: "Float[Tensor, 'n D'] | None" = None) -> None:
        """Draw the decoder and tie the encoder to it: W_dec unit rows, W_enc = W_dec^T, biases zero.

        Without `rows` the directions are random. With `rows` (data, n >= K r) they are data points drawn without
        replacement: a start on the data leaves far fewer units dead when few are active. Blocks of r > 1 rows are
        made orthonormal. Raises UsageError when there are too few rows.
        """
        columns = self.n_units * self.rank
        if rows is None:
            flat = torch.randn(columns, self.width_in, generator=generator, device="cpu")
        else:
            if len(rows) < columns:
                raise UsageError(f"initialising {columns} columns from data needs as many rows; got {len(rows)}")
            flat = rows.detach().cpu().float()[torch.randperm(len(rows), generator=generator)[:columns]]
            # a zero row has no direction; the tiny noise also keeps repeated data points from giving singular blocks
            size = flat.square().mean().sqrt().clamp_min(1e-12)
            flat = flat + 1e-3 * size * torch.randn(flat.shape, generator=generator)
        if 1 < self.rank <= self.width_in:
            blocks = flat.reshape(self.n_units, self.rank, self.width_in)
            flat = torch.linalg.qr(blocks.transpose(1, 2)).Q.transpose(1, 2).reshape(columns, self.width_in)
        else:
            flat = flat / torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
        self.W_dec.copy_(flat)
        self.W_enc.copy_(flat.T)
        self.b_enc.zero_()
        self.b_dec.zero_()

    def begin(self, x: "Float[Tensor, 'n D']") -> None:
        """Take from the first rows of a training, after `initialise`, what was left to be measured; most need none."""

    # ---- what an architecture defines ------------------------------------------------------------------------

    def encode(self, x: "Float[Tensor, 'B D']") -> Codes:
        """Codes of a batch, as used at inference."""
        raise NotImplementedError

    def loss(
        self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None" = None, penalty_scale: float = 1.0
    ) -> Loss:
        """Training loss; `dead` marks units for the auxiliary loss, `penalty_scale` in [0, 1] warms penalties up."""
        raise NotImplementedError

    def post_step(self, loss: Loss) -> None:
        """Constraints (gauge, unit rows) and running statistics after an optimiser step."""

    def observe(self, loss: Loss) -> None:
        """The running statistics alone; `post_step` calls it, and so does the compiled step."""

    def gated_form(self) -> GatedForm | None:
        """The same loss and constraint in numbers, for the compiled step; None: only `loss` and `post_step` say it.

        A subclass that changes what the form says must return its own form, or None.
        """
        return None

    def export(self) -> "tuple[dict[str, Any], dict[str, Tensor]]":
        """The model as SAELens stores it for inference: cfg fields (with "architecture") and tensors.

        The subtraction of b_dec from the input is folded into the encoder biases; `linear_tensors` has the usual four.
        """
        raise UsageError(
            f"architecture {self.architecture or type(self).__name__!r} has no export, so it cannot be saved as a "
            "SAELens directory; implement export(self) to return ({'architecture': ...}, tensors) as TopK does"
        )

    @torch.no_grad()
    def linear_tensors(self) -> dict[str, Tensor]:
        """W_enc, b_enc - b_dec W_enc (summed in float64), W_dec, b_dec."""
        b_enc = (self.b_enc.double() - self.b_dec.double() @ self.W_enc.double()).to(self.b_enc.dtype)
        return {"W_enc": self.W_enc, "b_enc": b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}

    # ---- shared ----------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Keyword arguments with which `build(self.architecture, **settings)` makes this model again."""
        return dict(self._settings)

    def pre_activations(self, x: "Float[Tensor, 'B D']") -> "Float[Tensor, 'B Kr']":
        """(x - b_dec) W_enc + b_enc."""
        return x @ self.W_enc + (self.b_enc - self.b_dec @ self.W_enc)

    def decode(self, codes: Codes) -> "Float[Tensor, 'B D']":
        """codes W_dec + b_dec; gated codes gather only the active blocks."""
        return combine(codes, self.W_dec) + self.b_dec

    def reconstruct(self, x: "Float[Tensor, 'B D']") -> "tuple[Float[Tensor, 'B D'], Codes]":
        """The reconstruction decode(encode(x)), and its codes."""
        codes = self.encode(x)
        return self.decode(codes), codes

    def forward(self, x: "Float[Tensor, 'B D']") -> "Float[Tensor, 'B D']":
        """The reconstruction alone."""
        return self.reconstruct(x)[0]

    def blocks(self) -> "tuple[Float[Tensor, 'K D r'], Float[Tensor, 'K r D']]":
        """Encoder and decoder block of each unit, (K, D, r) and (K, r, D); the map of unit k is enc[k] @ dec[k].

        (Rows are samples here, so h -> h @ enc[k] @ dec[k]; THEORY.md's M_k is its transpose.)
        """
        enc = self.W_enc.reshape(self.width_in, self.n_units, self.rank).permute(1, 0, 2)
        return enc, self.W_dec.reshape(self.n_units, self.rank, self.width_in)


def combine(codes: Codes, rows: "Float[Tensor, 'Kr D']") -> "Float[Tensor, 'B D']":
    """Weighted sum of decoder rows, sum_k c_k D_k, without a (B, K r) tensor when the codes are gated."""
    if codes.index is None:
        return codes.values.flatten(1) @ rows
    batch, slots = codes.index.shape
    if slots == 0:
        return rows.new_zeros(batch, rows.shape[1])
    if gated_torch.available(codes.values, rows):
        return gated_torch.combine(codes.index, codes.values, rows, codes.ragged)
    start = codes.index.clamp_min(0)[..., None] * codes.rank
    index = (start + torch.arange(codes.rank, device=start.device)).reshape(batch, -1)
    weights = codes.values.reshape(batch, -1).to(rows.dtype)
    return nn.functional.embedding_bag(index, rows, per_sample_weights=weights, mode="sum")


def reconstruction_error(x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']") -> "Float[Tensor, '']":
    """Mean over the batch of ||x - xhat||^2 (summed over D), as in THEORY.md part C."""
    value: Tensor = _SquaredError.apply(x, xhat)
    return value


class _SquaredError(torch.autograd.Function):
    """The sum of squares from one difference, its gradient from the same: autograd's own would make four such tensors.

    On a CPU a fresh tensor of (B, D) costs more than the arithmetic on it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, xhat: Tensor) -> Tensor:
        left = x - xhat
        ctx.save_for_backward(left)
        return torch.linalg.vecdot(left, left).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (left,) = ctx.saved_tensors
        toward = left * (-2 / len(left) * grads[0])
        return -toward if ctx.needs_input_grad[0] else None, toward


def weighted_mean(codes: Codes, weights: "Float[Tensor, ' K']") -> "Float[Tensor, '']":
    """Mean over the batch of sum_k w_k c_k, for units of one column."""
    if codes.index is None:
        return (codes.values[..., 0] @ weights).mean()
    return (codes.values[..., 0] * codes.of_units(weights)).sum() / codes.batch


def require_positive(**values: object) -> None:
    """Raise UsageError unless every value is a positive integer."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} is {value!r}; expected a positive integer")


def require_number(low: float = 0.0, high: float = math.inf, **values: float) -> None:
    """Raise UsageError unless every value is a finite number in [low, high]."""
    for name, value in values.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
            or not math.isfinite(value)
        ):
            raise UsageError(f"{name} is {value!r}; expected a number between {low:g} and {high:g}")


@torch.no_grad()
def unit_rows_(rows: "Float[Tensor, 'K D']") -> None:
    """Scale every nonzero row to unit length, in place."""
    size = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows.div_(torch.where(size > 0, size, 1.0))
