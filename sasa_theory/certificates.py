"""How far a trained dictionary is from the optimum of its own objective, with what training left frozen.

A vector dictionary (B): its decoder and its bias b are kept, and each row z gets the codes that are best for

    psi(z) = min_{a >= 0} 1/2 ||z - b - sum_j a_j d_j||^2 + lam sum_j a_j ||d_j||.

The model's own codes cost more: the difference is the amortisation gap. Training loss is twice this with lam = half the
coefficient. psi is charged per unit of a_j ||d_j||, so atoms are scaled to unit length first and B4's floor applies.

SASA (C4): its gate and its bias are kept, and with them which groups are on for each row; the maps are then a convex
problem in the units and with the coefficient of training,

    mean ||z - b - sum_{k in S(z)} M_k (z - b)||^2 + lam sum_k ||M_k||_*.

Its optimum over the rows given may fit them better than anything could fit new rows: hence the held-out column. All
costs are in the model's normalised units, z = normaliser(x).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from sasa_theory import saelens
from sasa_theory.bounds import tiled_limit, tiling_floor
from sasa_theory.models import build
from sasa_theory.models.base import SparseModel
from sasa_theory.models.normaliser import NormalisedModel, Normaliser
from sasa_theory.solvers import lasso, routed_factors
from sasa_theory.training.state import load_state
from sasa_theory.training.trainer import STATE
from synthetic.errors import UsageError
from synthetic.manifolds import Circle, Disk, Sphere, Subspace

if TYPE_CHECKING:
    from synthetic.world import World

#: manifolds whose law is invariant under all rotations of their span: B4 speaks of these
ISOTROPIC = (Circle, Disk, Sphere, Subspace)


@dataclass(frozen=True)
class Trained:
    """A dictionary in the units it was trained in, and the coefficient of its sparsity or nuclear-norm penalty.

    z = normaliser(x) goes in; `coefficient` is None where the checkpoint does not say (any other's SAELens directory,
    or an architecture whose penalty is neither an l1 nor a nuclear norm).
    """

    model: SparseModel
    normaliser: Normaliser
    coefficient: float | None

    @property
    def grouped(self) -> bool:
        """True for SASA, whose problem is the routed one."""
        return self.model.architecture == "sasa"


def load(directory: str | Path) -> Trained:
    """A checkpoint as it was trained: from the trainer's state where there is one, else a SAELens directory as it is.

    Raises what `saelens.load` raises, DataError for a damaged state.
    """
    place = Path(directory)
    if (place / STATE).is_file():
        state = load_state(place / STATE)
        model = build(state["architecture"], **state["model_settings"])
        model.load_state_dict(state["model"])
        return Trained(model.eval(), Normaliser.from_state(state["normaliser"]), _coefficient(model))
    loaded = saelens.load(place)
    if isinstance(loaded, NormalisedModel):
        return Trained(loaded.model, loaded.normaliser, None)
    return Trained(loaded, Normaliser.identity(loaded.width_in), None)


def _coefficient(model: SparseModel) -> float | None:
    """The trained (perhaps steered) penalty coefficient, where the penalty is the one of the theorem."""
    if model.architecture in ("relu", "gated"):
        return float(model.coefficient())  # type: ignore[operator]
    if model.architecture == "sasa" and model.penalty == "map":
        return float(model.nuclear)  # type: ignore[arg-type]
    return None


@dataclass(frozen=True)
class CodingReport:
    """A vector dictionary's codes against the best ones for its frozen decoder; means over rows, and standard errors.

    lam            weight of the l1 norm beside 1/2 ||.||^2.
    cost           what the model's codes cost; `psi` what the best codes found cost; `bound` their dual value.
    gap            cost - psi, the amortisation gap; at most `gap_at_most` = cost - bound.
    largest_duality_gap  the worst row's, relative to its 1/2 ||z - b||^2.
    zero           cost of no code at all, mean 1/2 ||z - b||^2.
    l0, best_l0    non-zero codes of the model, and of the best codes.
    """

    rows: int
    lam: float
    cost: float
    cost_error: float
    psi: float
    psi_error: float
    bound: float
    gap: float
    gap_error: float
    gap_at_most: float
    largest_duality_gap: float
    zero: float
    l0: float
    best_l0: float


@torch.no_grad()
def certify_codes(
    trained: Trained, x: "Float[Tensor, 'n D']", lam: float, rtol: float = 1e-6
) -> "tuple[CodingReport, Float[ndarray, ' n']]":
    """The amortisation gap of a vector dictionary on raw rows, and psi of each row (B1).

    For a gated model the codes of the gate path are taken, relu(gate): they are what its l1 term was trained on. Signed
    codes if the model's are. Raises UsageError for a model with groups or lam <= 0.
    """
    model = trained.model
    if model.rank != 1:
        raise UsageError(f"{model.architecture} has groups of rank {model.rank}; its problem is `certify_maps`")
    if not lam > 0:
        raise UsageError(f"lam is {lam}; expected the positive weight of the l1 norm beside 1/2 ||.||^2 (--lam)")
    z = trained.normaliser.apply(x)[0]
    decoder = model.W_dec.double().numpy()
    lengths = np.linalg.norm(decoder, axis=1)
    atoms = decoder / np.where(lengths > 0, lengths, 1)[:, None]
    codes = model_codes(model, z) * lengths
    rows = z.double().numpy() - model.b_dec.double().numpy()
    signed = bool(getattr(model, "signed", False))
    best = lasso.solve(atoms, rows, lam, signed=signed, rtol=rtol)
    zero = np.square(rows).sum(1) / 2
    cost = np.square(rows - codes @ atoms).sum(1) / 2 + lam * np.abs(codes).sum(1)
    report = CodingReport(
        rows=len(rows),
        lam=lam,
        cost=float(cost.mean()),
        cost_error=_error(cost),
        psi=float(best.primal.mean()),
        psi_error=_error(best.primal),
        bound=float(best.dual.mean()),
        gap=float((cost - best.primal).mean()),
        gap_error=_error(cost - best.primal),
        gap_at_most=float((cost - best.dual).mean()),
        largest_duality_gap=float(best.gap.max()),
        zero=float(zero.mean()),
        l0=float((codes != 0).sum(1).mean()),
        best_l0=float((np.abs(best.codes) > 1e-9).sum(1).mean()),
    )
    return report, best.primal


def model_codes(model: SparseModel, z: "Float[Tensor, 'n D']") -> "Float[ndarray, 'n N']":
    """Dense codes of a vector dictionary in float64; for a gated model those of the gate path."""
    if model.architecture == "gated":
        return model.pre_activations(z).relu().double().numpy()
    return model.encode(z).dense()[..., 0].double().numpy()


@dataclass(frozen=True)
class Floor:
    """One planted feature: mean psi of the model's decoder on its rows, B4's floor, and the fully tiled limit.

    feature, d     number of the feature and dimension of its span.    radius  RMS norm in normalised units.
    psi +- error   in the units of CodingReport.    over  psi minus the floor: what no code can recover.
    """

    feature: int
    d: int
    rows: int
    radius: float
    psi: float
    error: float
    floor: float
    tiled: float

    @property
    def over(self) -> float:
        """How far the decoder is above B4's floor."""
        return self.psi - self.floor


def floors(trained: Trained, world: "World", lam: float, rows_per_feature: int, seed: int = 0) -> "list[Floor]":
    """The distance of a trained decoder to B4's floor, for each rotation-invariant feature alone and without noise.

    The signed floor is used: it holds with any decoder bias, for signed and for non-negative codes. Empty where the
    normaliser is no multiple of the identity (layer norm, outlier cap), which breaks the rotation invariance.
    """
    scale = trained.normaliser.scale.double().numpy()
    if not trained.normaliser.linear or scale.max() > scale.min() * (1 + 1e-6):
        return []
    found = []
    for i, feature in enumerate(world.features):
        if not isinstance(feature.kind.manifold, ISOTROPIC) or feature.dim < 2:
            continue
        batch = world.points(i, rows_per_feature, seed)
        report, psi = certify_codes(trained, batch.x, lam)
        radii = float(scale[0]) * torch.linalg.vector_norm(batch.coords.double().sum(1), dim=1).numpy()
        # random radii: the floor averages over them; 32 quantiles of a bounded, monotone function are enough
        levels = np.quantile(radii, (np.arange(32) + 0.5) / 32) if radii.std() > 1e-6 * radii.mean() else radii[:1]
        floor = float(np.mean([tiling_floor(trained.model.n_units, feature.dim, float(r), lam) for r in levels]))
        rms = float(np.sqrt(np.square(radii).mean()))
        tiled = float(np.mean(tiled_limit(radii, lam)))
        found.append(Floor(i, feature.dim, len(psi), rms, report.psi, report.psi_error, floor, tiled))
    return found


@dataclass(frozen=True)
class MapsReport:
    """SASA's maps against the optimum at its frozen gate; costs are means over rows, in normalised units.

    trained       cost of the trained maps, groups in use charged; `unused` the penalty of those off on all these
                  rows, which the objective as written charges and penalise="active" does not.
    same_rank     the best found with maps of rank at most r; `best` the best found with maps of any rank.
    bound         dual bound: no maps, of any rank, cost less at this routing.
    energy        mean ||z - b||^2.
    *_error       mean ||residual||^2 of trained, same_rank and best; held_out_* the same on other rows, same gate.
    rank_*        mean rank of the maps of groups in use (0.1 % of the largest singular value).
    """

    rows: int
    lam: float
    groups: int
    used_groups: int
    trained: float
    unused: float
    same_rank: float
    best: float
    bound: float
    energy: float
    trained_error: float
    same_rank_error: float
    best_error: float
    held_out_energy: float
    held_out_trained_error: float
    held_out_same_rank_error: float
    held_out_best_error: float
    rank_trained: float
    rank_best: float
    passes: int

    @property
    def suboptimality(self) -> tuple[float, float]:
        """Between which two numbers trained - optimum lies, the unused groups left out."""
        return self.trained - self.best, self.trained - self.bound


@torch.no_grad()
def certify_maps(
    trained: Trained,
    x: "Float[Tensor, 'n D']",
    held_out: "Float[Tensor, 'm D']",
    lam: float,
    seconds: float,
) -> MapsReport:
    """The suboptimality of SASA's maps on raw rows at the gate as trained, with a dual bound (C4).

    Half of `seconds` goes to maps of the model's own rank, the other half to maps of any rank; the bound comes on top.
    Raises UsageError unless the model is SASA without encoder biases and lam > 0.
    """
    model = trained.model
    if not trained.grouped:
        raise UsageError(f"{model.architecture} has no groups; its problem is `certify_codes`")
    if bool((model.b_enc != 0).any()):
        raise UsageError("the model has encoder biases, which the theorem leaves out: its groups are no linear maps")
    if not lam > 0:
        raise UsageError(f"lam is {lam}; expected the positive coefficient of the nuclear norm (--lam)")
    encoders, decoders = (block.double().numpy() for block in model.blocks())
    left, right = list(decoders.transpose(0, 2, 1)), list(encoders)
    rows, index = _routed(trained, x)
    fresh, fresh_index = _routed(trained, held_out)

    def errors(p: "list[Float[ndarray, 'D m']]", q: "list[Float[ndarray, 'D m']]") -> tuple[float, float]:
        return routed_factors.cost(rows, index, p, q, lam)[0], routed_factors.cost(fresh, fresh_index, p, q, lam)[0]

    same = routed_factors.improve(
        rows, index, left, right, lam, seconds=seconds / 2, max_rank=model.rank, rtol=1e-7, bound=False
    )
    best = routed_factors.improve(rows, index, same.left, same.right, lam, seconds=seconds / 2, rtol=1e-7)
    used = np.unique(index[index >= 0]).tolist()
    trained_errors, same_errors, best_errors = (
        errors(p, q) for p, q in ((left, right), (same.left, same.right), (best.left, best.right))
    )
    return MapsReport(
        rows=len(rows),
        lam=lam,
        groups=model.n_units,
        used_groups=len(used),
        trained=same.history[1],
        unused=same.start - same.history[1],
        same_rank=same.primal,
        best=best.primal,
        bound=best.dual,
        energy=best.energy,
        trained_error=trained_errors[0],
        same_rank_error=same_errors[0],
        best_error=best_errors[0],
        held_out_energy=float(np.square(fresh).sum(1).mean()),
        held_out_trained_error=trained_errors[1],
        held_out_same_rank_error=same_errors[1],
        held_out_best_error=best_errors[1],
        rank_trained=_mean_rank([left[k] for k in used], [right[k] for k in used]),
        rank_best=_mean_rank([best.left[k] for k in used], [best.right[k] for k in used]),
        passes=len(same.history) + len(best.history) - 4,
    )


def _routed(trained: Trained, x: "Float[Tensor, 'n D']") -> "tuple[Float[ndarray, 'n D'], ndarray]":
    """z - b in float64, and the groups that the gate turns on, in batches: scores are (batch, K r)."""
    z = trained.normaliser.apply(x)[0]
    on = []
    for part in z.split(2048):
        codes = trained.model.encode(part)
        groups = torch.arange(trained.model.n_units) if codes.index is None else codes.index
        on.append(torch.where(codes.slots(), groups, -1))
    return z.double().numpy() - trained.model.b_dec.double().numpy(), torch.cat(on).numpy()


def _mean_rank(left: "list[Float[ndarray, 'D m']]", right: "list[Float[ndarray, 'D m']]") -> float:
    ranks = []
    for p, q in zip(left, right, strict=True):
        values = np.linalg.svd(np.linalg.qr(p)[1] @ np.linalg.qr(q)[1].T, compute_uv=False)
        ranks.append(int((values > 1e-3 * values.max(initial=0.0)).sum()))
    return float(np.mean(ranks)) if ranks else 0.0


def _error(values: "Float[ndarray, ' n']") -> float:
    """Standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf")
