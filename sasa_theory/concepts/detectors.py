"""Units that detect a concept: chosen on one half of the tokens, judged on the other, with intervals over documents.

A detector is a set of at most r units; its score on a token is the norm of their coefficients together, so one group of
rank r and r latents are compared at the same number of columns. Sets grow greedily: the unit that is best alone, then
whichever of the best `CANDIDATES` single ones raises the criterion most, until none does. On the judging half:

    AUC         of the set of largest AUC on the selection half
    F1          of the set of largest F1 there, at its threshold from there
    precision   of that set at the 99th percentile of its nonzero scores on the judging half: the share of concept
                tokens among its strongest firings, 1 % of them or STRONGEST, whichever is more

Intervals resample whole documents of the judging half (tokens of a document are not independent), the same documents
for every detector, so that differences of detectors have intervals too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from sasa_theory.concepts.scores import UnitScores
from sasa_theory.concepts.screening import auc, best_f1
from synthetic.errors import UsageError

#: what a set of units is chosen by: scores, truth, further tokens of score 0 without the concept -> higher is better
Criterion = Callable[[np.ndarray, np.ndarray, int], float]
METRICS = ("auc", "f1", "precision")
#: single units that may join a set
CANDIDATES = 32
#: firings that precision is taken over at least
STRONGEST = 10


@dataclass(frozen=True)
class Chosen:
    """Sets of units picked on the selection half: by AUC, and by F1 with its threshold."""

    by_auc: tuple[int, ...]
    by_f1: tuple[int, ...]
    threshold: float


@dataclass(frozen=True)
class Judged:
    """AUC, F1 and precision of a detector on the judging half, and the same for every resample of its documents.

    value  metric -> number (nan: precision of a detector that never fires).
    draws  metric -> (resamples,) numbers.
    """

    value: dict[str, float]
    draws: "dict[str, Float[np.ndarray, ' R']]"


class Halves:
    """Tokens of a concept in two halves: even documents select, odd ones judge.

    positive, ignored (n,), documents (n,) numbers in any order. `ignored` tokens are in neither half. Raises UsageError
    when a half lacks tokens of either kind.
    """

    def __init__(
        self,
        positive: "Bool[np.ndarray, ' n']",
        documents: "Int[np.ndarray, ' n']",
        ignored: "Bool[np.ndarray, ' n'] | None" = None,
        *,
        rng: np.random.Generator,
        resamples: int = 300,
    ) -> None:
        kept = np.ones(len(positive), bool) if ignored is None else ~ignored
        _, rank = np.unique(documents, return_inverse=True)
        self.positive = np.asarray(positive, bool)
        self.selection, self.judging = kept & (rank % 2 == 0), kept & (rank % 2 == 1)
        for half, name in ((self.selection, "selecting"), (self.judging, "judging")):
            if not self.positive[half].any() or self.positive[half].all():
                raise UsageError(f"the {name} half needs tokens with and without the concept")
        _, self.cluster = np.unique(rank[self.judging], return_inverse=True)
        n = int(self.cluster.max()) + 1
        self.weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)

    def counts(self) -> tuple[int, int]:
        """Concept tokens in the selection and in the judging half."""
        return int(self.positive[self.selection].sum()), int(self.positive[self.judging].sum())

    def choose(self, scores: UnitScores, size: int) -> Chosen:
        """The best sets of at most `size` units on the selection half (module docstring)."""
        truth = self.positive[self.selection]
        by_auc = self._grow(scores, size, scores.aucs(self.positive, self.selection), _auc)
        by_f1 = self._grow(scores, size, scores.best_f1s(self.positive, self.selection), _f1)
        return Chosen(by_auc, by_f1, best_f1(scores.joint(by_f1)[self.selection], truth)[1])

    def judge(self, scores: UnitScores, chosen: Chosen) -> Judged:
        """AUC, F1 and precision of chosen sets on the judging half, with the resamples'."""
        truth = self.positive[self.judging]
        ranked = scores.joint(chosen.by_auc)[self.judging]
        score = scores.joint(chosen.by_f1)[self.judging]
        on = np.sort(score[score > 0])[::-1]
        percentile = on[min(max(STRONGEST, -(-len(on) // 100)), len(on)) - 1] if len(on) else np.inf

        def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
            fired, top = self._sums(score >= chosen.threshold, weights), self._sums(score >= percentile, weights)
            hits = self._sums((score >= chosen.threshold) & truth, weights)
            best = self._sums((score >= percentile) & truth, weights)
            both = fired + self._sums(truth, weights)
            return {
                "auc": weighted_auc(ranked, truth, self.cluster, weights),
                "f1": np.divide(2 * hits, both, out=np.full_like(hits, np.nan), where=both > 0),
                "precision": np.divide(best, top, out=np.full_like(best, np.nan), where=top > 0),
            }

        once = measure(np.ones((1, self.weights.shape[1])))
        return Judged({name: float(value[0]) for name, value in once.items()}, measure(self.weights))

    def _grow(self, scores: UnitScores, size: int, alone: np.ndarray, criterion: Criterion) -> tuple[int, ...]:
        candidates = [int(unit) for unit in np.argsort(-alone, kind="stable")[:CANDIDATES]]
        chosen = [candidates.pop(0)]
        best = float(alone[chosen[0]])
        if size == 1:
            return tuple(chosen)
        squares = {unit: np.square(scores.column(unit)[self.selection]) for unit in [*chosen, *candidates]}
        # most tokens are without the concept and silent under every candidate: they are counted, not sorted
        truth = self.positive[self.selection]
        kept = truth | (sum(squares.values()) > 0)
        squares = {unit: square[kept] for unit, square in squares.items()}
        while len(chosen) < size and candidates:
            total = sum(squares[unit] for unit in chosen)
            tried = [criterion(np.sqrt(total + squares[unit]), truth[kept], int((~kept).sum())) for unit in candidates]
            winner = int(np.argmax(tried))
            if tried[winner] <= best:
                break
            best = tried[winner]
            chosen.append(candidates.pop(winner))
        return tuple(chosen)

    def _sums(self, flag: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted number of flagged tokens of the judging half, for every row of document weights."""
        return weights @ np.bincount(self.cluster, flag, weights.shape[1])


def _f1(score: np.ndarray, positive: np.ndarray, silent: int) -> float:
    return best_f1(score, positive)[0]


def _auc(score: np.ndarray, positive: np.ndarray, silent: int) -> float:
    """AUC with `silent` further tokens of score 0 without the concept."""
    on, off = score[positive], int((~positive).sum())
    here = auc(score, positive) * off if off else 0.0
    return (here + silent * float((on > 0).mean() + (on == 0).mean() / 2)) / (off + silent)


def weighted_auc(
    score: "Float[np.ndarray, ' n']",
    positive: "Bool[np.ndarray, ' n']",
    cluster: "Int[np.ndarray, ' n']",
    weights: "Float[np.ndarray, 'R C']",
) -> "Float[np.ndarray, ' R']":
    """AUC for every row of weights of the clusters that the tokens belong to; nan where one kind has no weight.

    P(score+ > score-) + P(tie)/2 with tokens weighed by weights[:, cluster]. Cost R times the nonzero scores; the
    zeros of a cluster are summed first.
    """
    order = np.argsort(score, kind="stable")
    order = order[score[order] > 0]
    silent = score <= 0
    levels, first = np.unique(score[order], return_index=True)
    by_kind = []
    for kind in (positive, ~positive):
        zero = weights @ np.bincount(cluster, silent & kind, weights.shape[1])
        each = weights[:, cluster[order]] * kind[order]
        sums = np.add.reduceat(each, first, axis=1) if len(levels) else np.zeros((len(weights), 0))
        by_kind.append(np.concatenate([zero[:, None], sums], axis=1))
    hits, misses = by_kind
    below = np.cumsum(misses, axis=1) - misses / 2
    pairs = hits.sum(axis=1) * misses.sum(axis=1)
    return np.divide((hits * below).sum(axis=1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def interval(draws: "Float[np.ndarray, ' R']", level: float = 0.95) -> "tuple[float, float] | None":
    """Percentile interval of resampled values; None when no resample has one."""
    finite = draws[np.isfinite(draws)]
    if len(finite) == 0:
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def average(judged: "Sequence[Judged]") -> Judged:
    """The mean over seeds of detectors judged on the same tokens and resamples; seeds without a value are left out."""
    if not judged:
        raise UsageError("no detectors to average were given")

    def mean(rows: list) -> np.ndarray:
        stacked = np.array(rows, dtype=float)
        seen = np.isfinite(stacked).sum(axis=0)
        return np.divide(np.nansum(stacked, axis=0), seen, out=np.full(stacked.shape[1:], np.nan), where=seen > 0)

    return Judged(
        {name: float(mean([one.value[name] for one in judged])) for name in METRICS},
        {name: mean([one.draws[name] for one in judged]) for name in METRICS},
    )
