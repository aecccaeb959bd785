"""Scores of all units on many tokens, kept sparse: the norm of a unit's coefficients, zero where it is off.

n tokens times K units would fill the memory; only active pairs are kept, sorted by unit and score, so that the AUC and
the best F1 of EVERY unit for a concept are a few passes over the pairs. AUC counts ties (all the zeros) as one half.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synthetic.errors import UsageError


@dataclass(frozen=True)
class UnitScores:
    """Norms of units on n tokens: the active (row, unit, value > 0) triples, by unit and then by falling value."""

    row: "Int[np.ndarray, ' p']"
    unit: "Int[np.ndarray, ' p']"
    value: "Float[np.ndarray, ' p']"
    n: int
    n_units: int

    @staticmethod
    def of_pairs(
        row: "Int[np.ndarray, ' p']",
        unit: "Int[np.ndarray, ' p']",
        value: "Float[np.ndarray, ' p']",
        n: int,
        units: int,
    ) -> "UnitScores":
        """From unsorted triples; raises UsageError for a value that is not a positive number."""
        if not (np.isfinite(value).all() and (value > 0).all()):
            raise UsageError("scores of active units must be positive numbers")
        order = np.lexsort((-value, unit))
        return UnitScores(row[order], unit[order], value[order], n, units)

    def column(self, unit: int) -> "Float[np.ndarray, ' n']":
        """One unit's score on every token."""
        begin, end = np.searchsorted(self.unit, [unit, unit + 1])
        out = np.zeros(self.n)
        out[self.row[begin:end]] = self.value[begin:end]
        return out

    def joint(self, units: "Iterable[int]") -> "Float[np.ndarray, ' n']":
        """Norm of several units' coefficients together, sqrt(sum of squared scores), on every token."""
        return np.sqrt(sum(np.square(self.column(unit)) for unit in units) + np.zeros(self.n))

    def aucs(self, positive: "Bool[np.ndarray, ' n']", among: "Bool[np.ndarray, ' n']") -> "Float[np.ndarray, ' K']":
        """AUC of every unit on the tokens of `among`; .5 for a unit that is silent there.

        P(score+ > score-) + P(tie)/2. Raises UsageError when the tokens lack one of the two kinds.
        """
        total = int((positive & among).sum())
        rest = int((~positive & among).sum())
        _require_both(total, rest)
        unit, value, hit = self._within(positive, among)
        wins: np.ndarray = np.zeros(self.n_units)
        hits, misses = (np.bincount(unit, kind, self.n_units) for kind in (hit, ~hit))
        if len(unit):
            first = np.flatnonzero(np.append(True, (unit[1:] != unit[:-1]) | (value[1:] != value[:-1])))
            tied_hit, tied_miss = (np.add.reduceat(kind.astype(float), first) for kind in (hit, ~hit))
            owner = unit[first]
            # misses of the unit strictly below each run of ties: all of its misses less those at or above the run
            above = np.cumsum(tied_miss)
            before_unit = np.append(0.0, np.cumsum(misses))[owner]
            below = misses[owner] - (above - before_unit)
            wins = np.bincount(owner, tied_hit * (below + tied_miss / 2), self.n_units)
        silent_hit, silent_miss = total - hits, rest - misses
        return (wins + hits * silent_miss + silent_hit * silent_miss / 2) / (total * rest)

    def best_f1s(
        self, positive: "Bool[np.ndarray, ' n']", among: "Bool[np.ndarray, ' n']"
    ) -> "Float[np.ndarray, ' K']":
        """Largest F1 of every unit over thresholds t > 0 of the rule score >= t, on the tokens of `among`."""
        total = int((positive & among).sum())
        _require_both(total, int((~positive & among).sum()))
        unit, value, hit = self._within(positive, among)
        best = np.zeros(self.n_units)
        if len(unit) == 0:
            return best
        start = np.searchsorted(unit, unit)
        found = np.cumsum(hit)
        found = found - np.append(0, found)[start]
        f1 = 2 * found / (np.arange(len(unit)) - start + 1 + total)
        # a threshold takes all tied scores or none
        last = np.append((unit[1:] != unit[:-1]) | (value[1:] != value[:-1]), True)
        np.maximum.at(best, unit[last], f1[last])
        return best

    def _within(self, positive: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kept = among[self.row]
        return self.unit[kept], self.value[kept], positive[self.row[kept]]


@torch.no_grad()
def unit_scores(model: Any, parts: "Iterable[Float[Tensor, 'B D']]", weigh: "Callable | None" = None) -> UnitScores:
    """Scores of every unit of a dictionary on rows of activations, given in parts.

    model   has `encode(x) -> Codes`, `n_units` and `blocks()`.
    weigh   None: the norm of a unit's coefficients; else coefficients and units -> positive numbers.
    """
    rows, units, values, seen = [], [], [], 0
    for part in parts:
        row, unit, coefficients = model.encode(part).pairs()
        size = torch.linalg.vector_norm(coefficients.double(), dim=-1) if weigh is None else weigh(coefficients, unit)
        rows.append(row.cpu().numpy() + seen)
        units.append(unit.cpu().numpy())
        values.append(size.double().cpu().numpy())
        seen += len(part)
    if not rows:
        raise UsageError("no rows of activations were given")
    row, unit, value = (np.concatenate(column) for column in (rows, units, values))
    on = value > 0
    return UnitScores.of_pairs(row[on], unit[on], value[on], seen, int(model.n_units))


def _require_both(positives: int, negatives: int) -> None:
    if positives == 0 or negatives == 0:
        raise UsageError("a detector needs tokens with and without the concept")
