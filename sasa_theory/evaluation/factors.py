"""Per-block recovery, as the block-sparse featurizer paper defines it (arXiv:2606.25234, appendix H).

Factor i contributes m_i = V_i z_i on the rows where it is on. It is matched to the unit g whose firing best predicts
that it is on (largest F1 of "g is on" for "i is on"), and that unit alone must return the contribution:

    R^2(i) = 1 - sum_t ||m_i^t - D_g p_g^t||^2 / sum_t ||m_i^t - mean m_i||^2       over the rows t where i is on.

A dictionary of single columns is granted d_i of them, "its best-fitting atoms": chosen one after the other, each the
one that lowers the error most. Nothing is refitted; the codes are the model's own. The rows are kept until `compute`
(about 100 bytes for each unit and each factor on a row).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy import sparse
from torch import Tensor

from sasa_theory.evaluation.base import higher, neither, require_some, require_truth
from sasa_theory.evaluation.planted import StackedFrames
from sasa_theory.models.codes import Codes
from synthetic.errors import UsageError

if TYPE_CHECKING:
    from synthetic.world import Batch


#: cells of a (rows, atoms) product held at a time
CELLS = 1 << 22


@dataclass(frozen=True)
class FactorRecoveryResult:
    mean_r2: float | None = field(metadata=higher("share", "mean of r2 over factors on in at least `least` rows"))
    r2: ndarray = field(metadata=higher("share", "per factor: share of its contribution's variance from its one unit"))
    presence: ndarray = field(metadata=higher("share", "per factor: F1 of its unit's firing for the factor being on"))
    unit: ndarray = field(metadata=neither("index", "per factor: the unit whose firing best predicts it"))
    dims: ndarray = field(metadata=neither("dimensions", "per factor: d_i, and the atoms granted if units are columns"))
    active_rows: ndarray = field(metadata=neither("rows", "per factor: evaluated rows on which it was on"))
    least: int = field(metadata=neither("rows", "rows a factor must be on to be counted in the mean"))


class FactorRecovery:
    """Share of each factor's variance that one unit (or, of columns, d_i of them) returns.

    frames   V_i per factor, (d_i, D) orthonormal rows;  decoder  (K, r, D) blocks in raw units.
    least    factors on in fewer rows are left out of the mean.
    """

    name: ClassVar[str] = "factor_recovery"
    needs_truth: ClassVar[bool] = True

    def __init__(
        self, frames: "Sequence[Float[Tensor, 'd D']]", decoder: "Float[Tensor, 'K r D']", least: int = 30
    ) -> None:
        self.frames, self.least = StackedFrames(frames), least
        self.frames.require_width(decoder.shape[2])
        self.decoder = decoder.detach().double().cpu().numpy()
        self._truth: list[tuple[ndarray, ndarray, ndarray]] = []
        self._codes: list[tuple[ndarray, ndarray, ndarray]] = []
        self._seen = 0

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None:
        truth = require_truth(truth, self.name)
        row, slot = (truth.index >= 0).nonzero(as_tuple=True)
        self._truth.append(
            (
                row.cpu().numpy() + self._seen,
                truth.index[row, slot].cpu().numpy(),
                truth.coords[row, slot].cpu().numpy(),
            )
        )
        row, unit, values = codes.detach().pairs()
        self._codes.append((row.cpu().numpy() + self._seen, unit.cpu().numpy(), values.float().cpu().numpy()))
        self._seen += len(x)

    def compute(self) -> FactorRecoveryResult:
        require_some(self._seen, self.name)
        row, factor, coords = (np.concatenate(parts) for parts in zip(*self._truth, strict=True))
        at, unit, values = (np.concatenate(parts) for parts in zip(*self._codes, strict=True))
        n, units, rank = len(self.frames), len(self.decoder), self.decoder.shape[1]
        on = sparse.csr_array((np.ones(len(row)), (row, factor)), shape=(self._seen, n))
        fires = sparse.csr_array((np.ones(len(at)), (at, unit)), shape=(self._seen, units))
        active, firing = on.sum(axis=0), fires.sum(axis=0)
        both = (on.T @ fires).toarray()
        f1 = 2 * both / np.maximum(active[:, None] + firing[None, :], 1)
        best = f1.argmax(axis=1)
        r2 = np.full(n, np.nan)
        for i, frame in enumerate(self.frames.each()):
            mine = factor == i
            if not mine.any():
                continue
            wanted = coords[mine][:, : len(frame)].astype(np.float64) @ frame.numpy()
            rows = row[mine]
            place = np.full(self._seen, -1)
            place[rows] = np.arange(len(rows))
            seen = place[at] >= 0 if rank == 1 else (place[at] >= 0) & (unit == best[i])
            where, which, p = place[at[seen]], unit[seen], values[seen].astype(np.float64)
            if rank == 1:
                z = sparse.csr_array((p[:, 0], (where, which)), shape=(len(rows), units))
                left = without_best_atoms(wanted, z, self.decoder[:, 0], len(frame))
            else:
                left = wanted.copy()
                left[where] -= p @ self.decoder[best[i]]
            spread = np.square(wanted - wanted.mean(axis=0)).sum()
            r2[i] = 1 - np.square(left).sum() / spread if spread > 0 else np.nan
        counted = (active >= self.least) & np.isfinite(r2)
        return FactorRecoveryResult(
            mean_r2=float(r2[counted].mean()) if counted.any() else None,
            r2=r2,
            presence=f1.max(axis=1),
            unit=best,
            dims=self.frames.dims.numpy(),
            active_rows=active.astype(int),
            least=self.least,
        )


def without_best_atoms(
    wanted: "Float[ndarray, 'n D']", codes: sparse.csr_array, atoms: "Float[ndarray, 'K D']", count: int
) -> "Float[ndarray, 'n D']":
    """`wanted` minus the contributions z_k d_k of `count` atoms, each the one that lowers the squared error most.

    Taking atom k lowers it by sum_t 2 z_tk <rest_t, d_k> - z_tk^2 ||d_k||^2; fewer are taken when none lowers it.
    """
    rest, size = wanted.copy(), len(atoms)
    row, atom = codes.nonzero()
    weight = np.asarray(codes[row, atom]).ravel()
    cost = np.bincount(atom, np.square(weight), size) * np.square(atoms).sum(axis=1)
    free, step = np.ones(size, dtype=bool), max(1, CELLS // size)
    for _ in range(count):
        inner = np.empty(len(row))
        for start in range(0, len(wanted), step):
            part = slice(*np.searchsorted(row, (start, start + step)))
            inner[part] = (rest[start : start + step] @ atoms.T)[row[part] - start, atom[part]]
        gain = np.where(free, np.bincount(atom, 2 * weight * inner, size) - cost, 0.0)
        k = int(gain.argmax())
        if gain[k] <= 0:
            break
        free[k] = False
        mine = atom == k
        rest[row[mine]] -= weight[mine, None] * atoms[k]
    return rest


def oracle_recovery(batch: "Batch", bias: "Float[Tensor, ' D']") -> "Float[Tensor, ' n']":
    """R^2(i) of the least-squares fit of x - bias on the frames of the factors that are truly on: the ceiling.

    NaN for factors that are never on; without noise and with independent frames it is 1. Raises UsageError
    for rows whose active frames have more directions than x has.
    """
    frames, index = batch.frames, batch.index
    rows, slots, widest = batch.coords.shape
    if slots * widest > batch.x.shape[1]:
        raise UsageError(f"up to {slots} factors of dimension {widest} are on at once: more than x can tell apart")
    step = torch.arange(widest, device=index.device)
    used = (index[..., None] >= 0) & (step < frames.dims[index][..., None])
    table = (frames.starts[index][..., None] + step).clamp_max(len(frames.rows) - 1)
    basis = (frames.rows[table].double() * used[..., None]).reshape(rows, slots * widest, -1)
    gram = basis @ basis.mT + torch.diag_embed((~used).double().reshape(rows, -1))
    target = basis @ (batch.x.double() - bias.to(batch.x).double())[..., None]
    found = torch.linalg.solve(gram, target).reshape(rows, slots, widest)
    # frames are orthonormal: errors and variances of contributions are those of coordinates
    on = index >= 0
    factor, wanted, error = index[on], batch.coords[on].double(), (found - batch.coords)[on].square().sum(1)
    count, n = torch.bincount(factor, minlength=len(frames)), len(frames)
    mean = wanted.new_zeros(n, widest).index_add_(0, factor, wanted) / count.clamp_min(1)[:, None]
    spread = wanted.new_zeros(n).index_add_(0, factor, (wanted - mean[factor]).square().sum(1))
    return 1 - wanted.new_zeros(n).index_add_(0, factor, error) / torch.where(spread > 0, spread, torch.nan)
