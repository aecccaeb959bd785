"""Against planted truth: how the energy inside each feature's subspace is spread over the units of a model.

Feature i owns V_i (orthonormal rows, (d_i, D)). Unit k contributes D_k p_k to the reconstruction, and

    e_ik = E[ ||P_{V_i} D_k p_k||^2 | i active ]

is the energy it puts into V_i while i is active. Only T_ik = sum p_k p_k^T over rows where both are on (r x r) is
streamed, because ||P_{V_i} D_k p||^2 = p^T (V_i D_k)^T (V_i D_k) p.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sasa_theory.evaluation.base import higher, lower, neither, require_some, require_truth
from sasa_theory.models.codes import Codes
from synthetic.errors import UsageError

if TYPE_CHECKING:
    from synthetic.world import Batch

#: at most this many (row, active unit, active feature) triples at a time
CHUNK = 1 << 20


@dataclass(frozen=True)
class FeatureEnergyResult:
    units_per_feature: np.ndarray = field(
        metadata=lower("units", "per feature: fewest units carrying 90 % of the energy put into V_i when i is active")
    )
    columns_per_feature: np.ndarray = field(
        metadata=lower("columns", "per feature: the same, counting single columns (depends on the gauge when r > 1)")
    )
    recovered: np.ndarray = field(
        metadata=higher("share", "per feature: 1 - E||P_V (x-xhat)||^2 / E||P_V (x-bias)||^2, over rows with i active")
    )
    counted: np.ndarray = field(
        metadata=higher("feature", "per feature: whether at least half of its energy is recovered")
    )
    features_counted: int = field(metadata=higher("features", "features with recovered energy >= 50 %"))
    mean_units: float | None = field(metadata=lower("units", "mean of units_per_feature over counted features"))
    mean_columns: float | None = field(metadata=lower("columns", "mean of columns_per_feature over counted features"))
    mean_recovered: float | None = field(metadata=higher("share", "mean of recovered over features seen active"))
    dims: np.ndarray = field(metadata=neither("dimensions", "per feature: dimension of V_i"))
    active_rows: np.ndarray = field(metadata=neither("rows", "per feature: evaluated rows on which it was active"))
    unit_energy: np.ndarray = field(metadata=neither("raw units squared", "e_ik, (n, K)", report=False))


class FeatureEnergy:
    """Units and columns per feature, recovered energy and features counted (E2).

    frames   V_i per feature, (d_i, D) orthonormal rows.
    decoder  (K, r, D) decoder blocks in raw units.
    bias     (D,) the world's bias; the recovered energy of a model that returns it is 0, of x itself 1.
    share    share of the energy the units must carry; `recovery` what a counted feature must recover.
    Interference is included: every unit with a component in V_i counts, also one that serves another feature.
    """

    name: ClassVar[str] = "feature_energy"
    needs_truth: ClassVar[bool] = True

    def __init__(
        self,
        frames: "Sequence[Float[Tensor, 'd D']]",
        decoder: "Float[Tensor, 'K r D']",
        bias: "Float[Tensor, ' D'] | None" = None,
        share: float = 0.9,
        recovery: float = 0.5,
    ) -> None:
        self.frames = StackedFrames(frames)
        self.decoder = decoder.detach()
        self.bias = torch.zeros(self.decoder.shape[2]) if bias is None else bias.detach()
        self.share, self.recovery = share, recovery
        units, rank, width = self.decoder.shape
        self.frames.require_width(width)
        device = self.decoder.device
        features = len(self.frames)
        self._moments = torch.zeros(features * units, rank, rank, dtype=torch.float64, device=device)
        self._rows = torch.zeros(features, dtype=torch.int64, device=device)
        self._error = torch.zeros(features, dtype=torch.float64, device=device)
        self._energy = torch.zeros(features, dtype=torch.float64, device=device)
        self._seen = 0

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None:
        index = require_truth(truth, self.name).index.to(x.device)
        active = one_hot(index, len(self.frames))
        self._rows += active.sum(dim=0).long()
        self._error += self.frames.energies(x - xhat).mul_(active).sum(dim=0, dtype=torch.float64)
        self._energy += self.frames.energies(x - self.bias.to(x)).mul_(active).sum(dim=0, dtype=torch.float64)
        self._seen += len(x)
        row, unit, values = codes.detach().pairs()
        step = max(1, CHUNK // max(1, index.shape[1]))
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            feature = index[row[part]]
            pair, slot = (feature >= 0).nonzero(as_tuple=True)
            where = feature[pair, slot] * codes.n_units + unit[part][pair]
            p = values[part][pair].double()
            self._moments.index_add_(0, where, p[:, :, None] * p[:, None, :])

    def compute(self) -> FeatureEnergyResult:
        require_some(self._seen, self.name)
        units, rank, _ = self.decoder.shape
        rows = self._rows.clamp_min(1).double()
        moments = self._moments.reshape(len(self.frames), units, rank, rank)
        unit_energy = torch.zeros(len(self.frames), units, dtype=torch.float64, device=moments.device)
        column_energy = torch.zeros(len(self.frames), units * rank, dtype=torch.float64, device=moments.device)
        decoder = self.decoder.double()
        for feature, frame in enumerate(self.frames.each()):
            inner = decoder @ frame.to(decoder).T
            gram = inner @ inner.transpose(1, 2)
            weighted = gram * moments[feature] / rows[feature]
            unit_energy[feature] = weighted.sum(dim=(1, 2)).clamp_min(0)
            column_energy[feature] = weighted.diagonal(dim1=1, dim2=2).reshape(-1)
        seen = self._rows > 0
        recovered = torch.where(
            seen & (self._energy > 0), 1 - self._error / self._energy.clamp_min(1e-300), torch.nan
        ).cpu()
        counted = recovered >= self.recovery
        per_unit, per_column = fewest(unit_energy, self.share).cpu(), fewest(column_energy, self.share).cpu()
        return FeatureEnergyResult(
            units_per_feature=per_unit.numpy(),
            columns_per_feature=per_column.numpy(),
            recovered=recovered.numpy(),
            counted=counted.numpy(),
            features_counted=int(counted.sum()),
            mean_units=_mean(per_unit[counted]),
            mean_columns=_mean(per_column[counted]),
            mean_recovered=_mean(recovered[~recovered.isnan()]),
            dims=self.frames.dims.numpy(),
            active_rows=self._rows.cpu().numpy(),
            unit_energy=unit_energy.cpu().numpy(),
        )


@dataclass(frozen=True)
class OwnerCountResult:
    owners: np.ndarray = field(
        metadata=lower("units", "per feature: units strongest on at least `floor` of its points")
    )
    owners_any: np.ndarray = field(metadata=lower("units", "per feature: units strongest on at least one point"))
    floor: float = field(
        metadata=neither("share of points", "share of a feature's points a unit must own to be counted")
    )
    unowned: np.ndarray = field(metadata=lower("share of points", "per feature: points on which no unit is on"))
    points: np.ndarray = field(metadata=neither("points", "per feature: rows on which it alone was active"))
    largest: np.ndarray = field(metadata=higher("share of points", "per feature: share owned by its biggest owner"))
    counts: np.ndarray = field(metadata=neither("points", "points owned, (n, K)", report=False))


class OwnerCount:
    """How many units are the strongest one somewhere on a feature's manifold (E1).

    Rows with exactly one active feature are used, all others ignored. The owner of a row is the unit with the largest
    contribution ||D_k p_k||. A unit counts when it owns at least `floor` of the feature's points; the count with
    no floor is given beside it. Dead units lower this number: read it with the dead share and explained variance.
    """

    name: ClassVar[str] = "owners"
    needs_truth: ClassVar[bool] = True

    def __init__(self, decoder: "Float[Tensor, 'K r D']", n_features: int, floor: float = 0.005) -> None:
        if not 0 <= floor <= 1:
            raise UsageError(f"floor is {floor!r}; expected a share of points between 0 and 1")
        self.floor = floor
        self.grams = decoder_grams(decoder)
        self._owned = torch.zeros(n_features, len(decoder), dtype=torch.int64)
        self._points = torch.zeros(n_features, dtype=torch.int64)
        self._seen = 0

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None:
        index = require_truth(truth, self.name).index.cpu()
        owner = owning_units(codes, self.grams).cpu()
        single = (index >= 0).sum(dim=1) == 1
        feature = index.amax(dim=1)[single] if index.shape[1] else index.new_zeros(0)
        owner = owner[single]
        features, units = self._owned.shape
        self._points += torch.bincount(feature, minlength=features)
        owned = owner >= 0
        cell = feature[owned] * units + owner[owned]
        self._owned += torch.bincount(cell, minlength=features * units).reshape(features, units)
        self._seen += len(x)

    def compute(self) -> OwnerCountResult:
        require_some(self._seen, self.name)
        points = self._points.double()
        share = self._owned / points[:, None]  # NaN where a feature was never alone
        nothing = points == 0
        return OwnerCountResult(
            owners=((self._owned > 0) & (share >= self.floor))
            .sum(dim=1)
            .double()
            .masked_fill(nothing, torch.nan)
            .numpy(),
            owners_any=(self._owned > 0).sum(dim=1).double().masked_fill(nothing, torch.nan).numpy(),
            floor=self.floor,
            unowned=(1 - share.sum(dim=1)).numpy(),
            points=self._points.numpy(),
            largest=share.amax(dim=1).numpy(),
            counts=self._owned.numpy(),
        )


class StackedFrames:
    """The subspaces of all features stacked, for one product per batch."""

    def __init__(self, frames: "Sequence[Float[Tensor, 'd D']]") -> None:
        if len(frames) == 0:
            raise UsageError("there are no features to compare with; give at least one frame")
        self.dims = torch.tensor([len(frame) for frame in frames])
        self.rows = torch.cat([torch.as_tensor(frame).detach().double() for frame in frames])
        self._feature = torch.repeat_interleave(torch.arange(len(frames)), self.dims)

    def __len__(self) -> int:
        return len(self.dims)

    def each(self) -> "tuple[Float[Tensor, 'd D'], ...]":
        """V_i of every feature."""
        return self.rows.split(self.dims.tolist())

    def energies(self, x: "Float[Tensor, 'B D']") -> "Float[Tensor, 'B n']":
        """||P_{V_i} x_t||^2 for every row and feature, in the dtype of x."""
        squares = (x @ self.rows.to(x).T).square()
        out = squares.new_zeros(len(x), len(self))
        return out.index_add_(1, self._feature.to(x.device), squares)

    def require_width(self, width: int) -> None:
        """Raise UsageError unless the frames live in R^width."""
        if self.rows.shape[1] != width:
            raise UsageError(f"the world has width {self.rows.shape[1]}, the model {width}; they must be equal")


def one_hot(index: "Int[Tensor, 'B S']", n: int) -> "Float[Tensor, 'B n']":
    """(B, n) ones where a feature is active; empty slots (-1) are ignored."""
    out = torch.zeros(len(index), n + 1, dtype=torch.float32, device=index.device)
    return out.scatter_(1, index % (n + 1), 1.0)[:, :n]


def fewest(energy: "Float[Tensor, 'n K']", share: float) -> "Int[Tensor, ' n']":
    """Fewest columns of each row that carry `share` of its sum; 0 for a zero row."""
    ordered = energy.sort(dim=1, descending=True).values
    total = ordered.sum(dim=1, keepdim=True)
    missing = ordered.cumsum(dim=1) < (share - 1e-12) * total
    return torch.where(total[:, 0] > 0, missing.sum(dim=1) + 1, 0)


def decoder_grams(decoder: "Float[Tensor, 'K r D']") -> "Float[Tensor, 'K r r']":
    """D_k D_k^T of every unit, float64."""
    blocks = decoder.detach().double()
    return blocks @ blocks.transpose(1, 2)


def owning_units(codes: Codes, grams: "Float[Tensor, 'K r r']") -> "Int[Tensor, ' B']":
    """The unit with the largest contribution ||D_k p_k|| on each row (ties: lowest index); -1 where none is on.

    `grams` are the units' D_k D_k^T (`decoder_grams`). Used to count owners and to colour points by their owner.
    """
    row, unit, values = codes.detach().pairs()
    p = values.double()
    energy = torch.einsum("pa,pab,pb->p", p, grams.to(p)[unit], p)
    strongest = torch.full((len(codes.values),), -1.0, dtype=p.dtype, device=p.device)
    strongest.scatter_reduce_(0, row, energy, "amax")
    wins = energy == strongest[row]
    owner = torch.full((len(codes.values),), codes.n_units, dtype=torch.int64, device=p.device)
    owner.scatter_reduce_(0, row[wins], unit[wins], "amin")
    return torch.where(owner < codes.n_units, owner, -1)


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
