"""Codes: which units are on, and with which coefficients.

A gated model keeps, for each sample, the indices of at most s units and their r coefficients; nothing of size
(batch, K r) is needed. Dense codes (index None) hold all K units behind the same interface. A gate that chooses for the
whole batch at once gives rows of unequal length: its codes are one list of (row, unit, coefficients), row by row.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length: of the pairs 0 .. P-1, those in [starts[t], starts[t+1]) belong to row t.

    of      (P,) int64, the row of each pair, ascending.
    starts  (B + 1,) int64.
    """

    of: "Int[Tensor, ' P']"
    starts: "Int[Tensor, ' B+1']"

    @classmethod
    def by(cls, of: "Int[Tensor, ' P']", batch: int) -> "Ragged":
        """From the ascending rows of the pairs."""
        return cls(of, torch.searchsorted(of, torch.arange(batch + 1, device=of.device)))


@dataclass(frozen=True)
class Codes:
    """Codes of a batch.

    index   (B, s) int64, the units that are on; -1 marks an empty slot (its values are zero). None: dense codes.
    values  (B, s, r) coefficients of those units; (B, K, r) when dense.
    n_units K.
    fired   (K,) what `counts` gives, where whoever made the codes has counted already.
    ragged  which row each pair belongs to; index is then (P, 1) and values (P, 1, r), one line a pair.
    """

    index: "Int[Tensor, 'B s'] | None"
    values: "Float[Tensor, 'B s r']"
    n_units: int
    fired: "Int[Tensor, ' K'] | None" = None
    ragged: "Ragged | None" = None

    @property
    def rank(self) -> int:
        """Columns per unit, r."""
        return int(self.values.shape[-1])

    @property
    def batch(self) -> int:
        """Number of samples, B."""
        return len(self.values) if self.ragged is None else len(self.ragged.starts) - 1

    def holding(self, values: "Float[Tensor, 'B s r']") -> "Codes":
        """Other coefficients of the same units."""
        return replace(self, values=values, fired=None)

    def of_units(self, numbers: "Float[Tensor, ' K']") -> "Float[Tensor, ' K'] | Float[Tensor, 'B s']":
        """A number of each stored unit; of dense codes one of each unit, to be broadcast."""
        return numbers if self.index is None else numbers[self.index]

    def norms(self) -> "Float[Tensor, 'B s']":
        """Euclidean norm of each stored unit's coefficients (the energy a unit-norm frame would carry)."""
        return torch.linalg.vector_norm(self.values, dim=-1)

    def slots(self) -> "Bool[Tensor, 'B s']":
        """True where a stored slot is on: not empty, and of nonzero norm ("active" means nonzero group norm)."""
        on = (self.values != 0).any(dim=-1)
        return on if self.index is None else on & (self.index >= 0)

    def pairs(self) -> "tuple[Int[Tensor, ' p'], Int[Tensor, ' p'], Float[Tensor, 'p r']]":
        """Every active (sample, unit, coefficients) triple, sample-major."""
        row, slot = self.slots().nonzero(as_tuple=True)
        unit = slot if self.index is None else self.index[row, slot]
        return row if self.ragged is None else self.ragged.of[row], unit, self.values[row, slot]

    def l0_units(self) -> "Int[Tensor, ' B']":
        """Active units per sample."""
        return self._by_sample(self.slots().sum(dim=1))

    def l0(self) -> "Int[Tensor, ' B']":
        """Nonzero coefficients (columns) per sample."""
        return self._by_sample((self.values != 0).sum(dim=(1, 2)))

    def mean_l0(self) -> "Float[Tensor, '']":
        """Nonzero coefficients (columns) of a sample, on average."""
        if self.rank == 1:
            return self.counts().sum() / self.batch
        return torch.count_nonzero(self.values.detach()) / self.batch

    def counted(self) -> "Codes":
        """The same codes, `counts` done once for all who ask."""
        return replace(self, fired=self.counts())

    def counts(self) -> "Int[Tensor, ' K']":
        """How many samples of the batch each unit is active on."""
        if self.fired is not None:
            return self.fired
        if self.index is None and self.rank == 1 and self.values.dtype == torch.float32 and not self.values.is_cuda:
            # a product of ones and signs: on a CPU torch takes twice the time to add up truth values
            marks = self.values.detach()[..., 0].sign().abs_()
            with torch.autocast("cpu", enabled=False):
                return (marks.new_ones(len(marks)) @ marks).long()
        on = self.slots()
        if self.index is None:
            return on.sum(dim=0)
        # by scattering: no list of active pairs, whose length a GPU would have to report
        counts = torch.zeros(self.n_units, dtype=torch.int64, device=on.device)
        return counts.scatter_add_(0, self.index.clamp_min(0).flatten(), on.flatten().long())

    def dense(self) -> "Float[Tensor, 'B K r']":
        """All K units' coefficients; for small cases only."""
        if self.index is None:
            return self.values
        out = self.values.new_zeros(self.batch, self.n_units, self.rank)
        row, unit, values = self.pairs()
        return out.index_put((row, unit), values)

    def detach(self) -> "Codes":
        """The same codes outside the autograd graph."""
        return Codes(self.index, self.values.detach(), self.n_units, self.fired, self.ragged)

    def _by_sample(self, counts: "Int[Tensor, ' n']") -> "Int[Tensor, ' B']":
        """Counts of lines added up to counts of samples."""
        if self.ragged is None:
            return counts
        return torch.zeros(self.batch, dtype=counts.dtype, device=counts.device).index_add_(0, self.ragged.of, counts)
