"""Which subspace each unit uses, and how these compare with the planted ones.

The contribution of unit k on the rows where it is on is D_k p_k, with second moment D_k C_k D_k^T = M_k Sigma_k M_k^T,
C_k = E[p_k p_k^T 1{k on}]. Its eigenvectors are the left singular vectors of M_k Sigma_k^{1/2}, its eigenvalues the
energies. Streaming C_k (r x r) is therefore enough: no D x D matrix per unit is ever formed. Units that never fire
use no subspace. Capture of feature i by unit k is

    tr(P_{V_i} P_k) / d_i,   P_k onto the top min(d_i, rank) directions of unit k,

the share of V_i that the unit's d_i strongest directions contain: a unit with more directions gains nothing by them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory import geometry
from sasa_theory.evaluation.base import higher, lower, neither, require_some
from sasa_theory.evaluation.planted import StackedFrames
from sasa_theory.models.codes import Codes

if TYPE_CHECKING:
    from synthetic.world import Batch


class CodeMoments:
    """Streaming C_k = E[p_k p_k^T 1{k on}] and how often each unit was on."""

    def __init__(self, units: int, rank: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(units, rank, rank, dtype=torch.float64, device=device)
        self.counts = torch.zeros(units, dtype=torch.int64, device=device)
        self.rows = 0

    def update(self, codes: Codes, chunk: int = 1 << 20) -> None:
        """Add a batch of codes."""
        _, unit, values = codes.detach().pairs()
        self.counts += torch.bincount(unit, minlength=len(self.counts))
        self.rows += len(codes.values)
        for part, where in zip(values.split(chunk), unit.split(chunk), strict=True):
            p = part.double()
            self._sum.index_add_(0, where, p[:, :, None] * p[:, None, :])

    def value(self) -> "Float[Tensor, 'K r r']":
        """C_k averaged over all rows seen."""
        return self._sum / max(1, self.rows)


@dataclass(frozen=True)
class UnitDirections:
    """Orthonormal directions of every unit, strongest first, and the energy along each.

    rows      (K, m, D), m = min(r, D); rows of zero energy are zero.
    energies  (K, m) eigenvalues of D_k C_k D_k^T, descending; below 1e-10 of the largest they are set to zero.
    """

    rows: "Float[Tensor, 'K m D']"
    energies: "Float[Tensor, 'K m']"


def contribution_directions(decoder: "Float[Tensor, 'K r D']", moments: "Float[Tensor, 'K r r']") -> UnitDirections:
    """Directions of the contributions: left singular vectors of D_k C_k^{1/2}, by QR of D_k and an r x r SVD."""
    values, vectors = torch.linalg.eigh(moments.double())
    root = vectors * values.clamp_min(0).sqrt()[:, None, :]
    return _directions(decoder, root)


def map_directions(encoder: "Float[Tensor, 'K D r']", decoder: "Float[Tensor, 'K r D']") -> UnitDirections:
    """Directions of the maps M_k = D_k E_k alone (as if inputs were white): never of D_k alone (C5)."""
    triangle = torch.linalg.qr(encoder.detach().double(), mode="r").R
    return _directions(decoder, triangle.transpose(1, 2))


def _directions(decoder: "Float[Tensor, 'K r D']", right: "Float[Tensor, 'K r q']") -> UnitDirections:
    """Left singular vectors and squared singular values of D_k R_k (D x q), D_k given in rows."""
    frame, triangle = torch.linalg.qr(decoder.detach().double().transpose(1, 2))
    left, sigma, _ = torch.linalg.svd(triangle @ right.to(triangle), full_matrices=False)
    keep = (sigma > geometry.RANK_TOLERANCE * sigma[:, :1]) & (sigma > 0)
    rows = (frame @ left).transpose(1, 2) * keep[..., None]
    return UnitDirections(rows, sigma.square() * keep)


def capture_matrix(frames: "Sequence[Float[Tensor, 'd D']]", directions: UnitDirections) -> "Float[Tensor, 'n K']":
    """tr(P_{V_i} P_k) / d_i for every feature and unit, P_k onto the unit's top min(d_i, m) directions.

    One product V U^T for all pairs: with orthonormal directions u_kj, tr(P_V P_k) = sum_{j <= d_i} ||V_i u_kj||^2.
    """
    stacked = StackedFrames(frames)
    units, most, width = directions.rows.shape
    stacked.require_width(width)
    overlap = stacked.energies(directions.rows.reshape(units * most, width)).reshape(units, most, len(stacked))
    cumulative = overlap.cumsum(dim=1)
    dims = stacked.dims.to(overlap.device)
    taken = (dims.clamp_max(most) - 1).expand(units, 1, -1)
    return (cumulative.gather(1, taken)[:, 0] / dims).T


def span_capture(
    frames: "Sequence[Float[Tensor, 'd D']]", directions: UnitDirections, share: float = 0.99
) -> "Float[Tensor, 'n K']":
    """tr(P_{V_i} P_k) / d_i with P_k onto all directions that carry `share` of the unit's energy.

    Unlike capture, this credits a unit with every feature it holds: two merged features both count.
    """
    carrying = torch.from_numpy(geometry.energy_rank(directions.energies.cpu().numpy(), share)).to(
        directions.rows.device
    )
    slot = torch.arange(directions.rows.shape[1], device=carrying.device)
    stacked = StackedFrames(frames)
    rows = directions.rows * (slot < carrying[:, None])[..., None]
    units, most, width = rows.shape
    overlap = stacked.energies(rows.reshape(units * most, width)).reshape(units, most, -1).sum(dim=1)
    return (overlap / stacked.dims.to(overlap.device)).T


def units_to_span(
    frames: "Sequence[Float[Tensor, 'd D']]",
    directions: UnitDirections,
    captures: "Float[Tensor, 'n K']",
    share: float = 0.9,
    candidates: int = 64,
) -> "Float[Tensor, ' n']":
    """Per feature, units taken greedily until tr(P_V P_U) / d >= share, U the span of their top-d_i directions (E2).

    Each step takes the unit that raises the captured share most. Only the `candidates` units of largest single
    capture are tried; a feature they do not span gets infinity. Greedy, so an upper bound on the fewest.
    """
    counts = torch.full((len(frames),), torch.inf, dtype=torch.float64)
    candidates = min(candidates, len(directions.rows))
    for i, frame in enumerate(frames):
        d = len(frame)
        best = captures[i].topk(candidates).indices
        rows = directions.rows[best, :d]
        inner = torch.einsum("cjD,dD->cdj", rows, frame.to(rows))
        gram = torch.einsum("cjD,eiD->cjei", rows, rows)
        counts[i] = _greedy_span(inner, gram, share * d)
    return counts


def _greedy_span(inner: "Float[Tensor, 'c d j']", gram: "Float[Tensor, 'c j c j']", target: float) -> float:
    """Block greedy selection in Gram space: gain of block c is ||A_c G_cc^{-1/2}||^2 after removing the chosen span."""
    blocks = torch.arange(len(inner))
    held = 0.0
    for count in range(1, len(inner) + 1):
        values, vectors = torch.linalg.eigh(gram[blocks, :, blocks])
        inverse = torch.where(values > 1e-9, values.clamp_min(1e-9).rsqrt(), 0.0)
        whitened = vectors * inverse[:, None, :]  # columns: an orthonormal basis of each block's residual
        gains = (inner @ whitened).square().sum(dim=(1, 2))
        best = int(gains.argmax())
        if not float(gains[best]) > 1e-9:
            break
        held += float(gains[best])
        if held >= target - 1e-9:
            return float(count)
        basis = whitened[best]
        along = gram[:, :, best] @ basis
        gram = gram - torch.einsum("cjq,eiq->cjei", along, along)
        inner = inner - torch.einsum("dq,cjq->cdj", inner[best] @ basis, along)
    return float("inf")


@dataclass(frozen=True)
class UnitRanksResult:
    rank90: np.ndarray = field(
        metadata=neither("directions", "per unit: directions carrying 90 % of its contribution energy")
    )
    stable_rank: np.ndarray = field(metadata=neither("directions", "per unit: sum of energies over the largest"))
    participation: np.ndarray = field(metadata=neither("directions", "per unit: (sum e)^2 / sum e^2"))
    entropy_rank: np.ndarray = field(
        metadata=neither("directions", "per unit: exp of the entropy of the energies' shares")
    )
    map_rank90: np.ndarray = field(metadata=neither("directions", "per unit: 90 % rank of the map M_k alone"))
    mean_rank90: float | None = field(metadata=neither("directions", "mean of rank90 over units that fired"))
    fired: np.ndarray = field(metadata=neither("bool", "per unit: whether it fired; ranks of units that did not are 0"))


class UnitRanks:
    """Effective ranks of every unit, of its contributions D_k C_k D_k^T and of its map M_k (no truth needed)."""

    name: ClassVar[str] = "ranks"
    needs_truth: ClassVar[bool] = False

    def __init__(self, encoder: "Float[Tensor, 'K D r']", decoder: "Float[Tensor, 'K r D']") -> None:
        self.encoder, self.decoder = encoder.detach(), decoder.detach()
        units, rank, _ = decoder.shape
        self.moments = CodeMoments(units, rank, decoder.device)

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None:
        self.moments.update(codes)

    def compute(self) -> UnitRanksResult:
        require_some(self.moments.rows, self.name)
        energies = contribution_directions(self.decoder, self.moments.value()).energies.cpu().numpy()
        of_map = map_directions(self.encoder, self.decoder).energies.cpu().numpy()
        fired = (self.moments.counts > 0).cpu().numpy()
        rank90 = geometry.energy_rank(energies)
        return UnitRanksResult(
            rank90=rank90,
            stable_rank=geometry.stable_rank(energies),
            participation=geometry.participation_ratio(energies),
            entropy_rank=geometry.entropy_rank(energies),
            map_rank90=geometry.energy_rank(of_map),
            mean_rank90=float(rank90[fired].mean()) if fired.any() else None,
            fired=fired,
        )


@dataclass(frozen=True)
class SubspacesResult:
    best_capture: np.ndarray = field(metadata=higher("share", "per feature: largest capture by one unit"))
    best_unit: np.ndarray = field(metadata=neither("unit", "per feature: the unit of largest capture"))
    best_rank90: np.ndarray = field(metadata=neither("directions", "per feature: 90 % contribution rank of that unit"))
    spanning_units: np.ndarray = field(
        metadata=lower("units", "per feature: fewest units (greedy) whose union spans 90 % of V_i; None: not spanned")
    )
    features_per_unit: np.ndarray = field(
        metadata=lower("features", "per unit: features of which its span (99 % of its energy) captures at least half")
    )
    mean_best_capture: float = field(metadata=higher("share", "mean of best_capture over features"))
    features_per_unit_max: int = field(metadata=lower("features", "largest number of features captured by one unit"))
    dims: np.ndarray = field(metadata=neither("dimensions", "per feature: dimension of V_i"))
    matched_unit: np.ndarray = field(
        metadata=neither(
            "unit", "per feature: its unit in the one-to-one matching of largest total capture; -1: none left"
        )
    )
    matched_capture: np.ndarray = field(
        metadata=higher("share", "per feature: capture by its matched unit; 0: none left")
    )
    matched_rank: np.ndarray = field(
        metadata=neither("directions", "per feature: 90 % contribution rank of its matched unit")
    )
    mean_matched_capture: float = field(metadata=higher("share", "mean of matched_capture"))
    rank_error: float | None = field(metadata=lower("directions", "mean |matched_rank - d_i| over matched features"))
    rank_pearson: float | None = field(metadata=higher("correlation", "Pearson correlation of matched_rank and d_i"))
    rank_spearman: float | None = field(metadata=higher("correlation", "Spearman correlation of matched_rank and d_i"))
    captures: np.ndarray = field(
        metadata=higher("share", "capture of every feature by every unit, (n, K)", report=False)
    )


class Subspaces:
    """Capture, units per feature, features per unit and matched subspaces against planted frames (E1, E2, E3)."""

    name: ClassVar[str] = "subspaces"
    needs_truth: ClassVar[bool] = False  # of the batches: the frames are given here

    def __init__(
        self,
        frames: "Sequence[Float[Tensor, 'd D']]",
        decoder: "Float[Tensor, 'K r D']",
        span_share: float = 0.9,
        merge_share: float = 0.5,
        candidates: int = 64,
    ) -> None:
        self.frames = [torch.as_tensor(frame).detach().double() for frame in frames]
        self.decoder = decoder.detach()
        self.span_share, self.merge_share, self.candidates = span_share, merge_share, candidates
        units, rank, _ = decoder.shape
        self.moments = CodeMoments(units, rank, decoder.device)

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None:
        self.moments.update(codes)

    def compute(self) -> SubspacesResult:
        require_some(self.moments.rows, self.name)
        directions = contribution_directions(self.decoder, self.moments.value())
        captures = capture_matrix(self.frames, directions)
        best_capture, best_unit = captures.max(dim=1)
        held = (span_capture(self.frames, directions) >= self.merge_share - 1e-9).sum(dim=0).cpu().numpy()
        spanning = units_to_span(self.frames, directions, captures, self.span_share, self.candidates)
        ranks = geometry.energy_rank(directions.energies.cpu().numpy())
        table, dims = captures.cpu().numpy(), np.array([len(frame) for frame in self.frames])
        matched = match(table)
        found = matched >= 0
        learned = np.where(found, ranks[matched], 0)
        matched_capture = np.where(found, table[np.arange(len(dims)), matched], 0.0)
        return SubspacesResult(
            best_capture=best_capture.cpu().numpy(),
            best_unit=best_unit.cpu().numpy(),
            best_rank90=ranks[best_unit.cpu().numpy()],
            spanning_units=spanning.numpy(),
            features_per_unit=held,
            mean_best_capture=float(best_capture.mean()),
            features_per_unit_max=int(held.max()),
            dims=dims,
            matched_unit=matched,
            matched_capture=matched_capture,
            matched_rank=learned,
            mean_matched_capture=float(matched_capture.mean()),
            rank_error=float(np.abs(learned - dims)[found].mean()) if found.any() else None,
            rank_pearson=pearson(learned[found], dims[found]),
            rank_spearman=pearson(mid_ranks(learned[found]), mid_ranks(dims[found])),
            captures=table,
        )


def match(captures: "Float[np.ndarray, 'n K']") -> np.ndarray:
    """One-to-one matching of features and units of largest total capture (Hungarian); -1 where units run out."""
    from scipy.optimize import linear_sum_assignment

    features, units = linear_sum_assignment(captures, maximize=True)
    matched = np.full(len(captures), -1)
    matched[features] = units
    return matched


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson correlation; None for fewer than two points or when either side is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def mid_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean rank (Pearson of these is Spearman's correlation)."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


@dataclass(frozen=True)
class DecoderCosineResult:
    mean_max_cosine: float | None = field(
        metadata=lower("cosine", "mean over decoder rows of the largest cosine with another")
    )
    mean_max_absolute: float | None = field(metadata=lower("cosine", "the same with |cosine|, for signed codes"))


def decoder_cosine(decoder: "Float[Tensor, 'K r D']") -> DecoderCosineResult:
    """Mean max decoder cosine, signed and absolute."""
    return DecoderCosineResult(mean_max_decoder_cosine(decoder, absolute=False), mean_max_decoder_cosine(decoder))


def mean_max_decoder_cosine(
    decoder: "Float[Tensor, 'K r D']", absolute: bool = True, chunk: int = 2048
) -> float | None:
    """Mean over decoder rows of the largest cosine with any other row (|cosine| when `absolute`), in chunks.

    Zero rows are left out. Near 1 means collinear latents (A5). None when fewer than two rows are nonzero.
    """
    rows = decoder.detach().reshape(-1, decoder.shape[-1]).float()
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = (rows / norms)[norms[:, 0] > 0]
    if len(rows) < 2:
        return None
    total = 0.0
    for start in range(0, len(rows), chunk):
        cosines = rows[start : start + chunk] @ rows.T
        cosines = cosines.abs() if absolute else cosines
        cosines.diagonal(offset=start).fill_(-torch.inf)
        total += float(cosines.amax(dim=1).double().sum())
    return total / len(rows)
