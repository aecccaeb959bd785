"""K-subspaces: the best blocks for one active block per sample, found by alternating minimisation.

    min over orthonormal U_1..U_K in R^{D x r} and assignments of  sum_t ||x_t - b - U_{k(t)} U_{k(t)}^T (x_t - b)||^2

This is what a SASA at s = 1 tries to learn, without an encoder in the way, as `klines` is for vector dictionaries. The
start gives each subspace a sample, drawn in proportion to the energy that the subspaces so far leave behind, and 2 r
drawn from the 4 r samples that point its way most (largely of its own feature, where features are far apart). An
iteration assigns every sample to the subspace that explains most of it and replaces each subspace by the top r
eigenvectors of its samples' second moment. Both halves only lower the objective, and so does giving a subspace without
samples to the worst-served one.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from synthetic.errors import DataError, UsageError


@dataclass(frozen=True)
class Solution:
    """A fitted set of subspaces.

    bases        (K, r, D) orthonormal rows.      bias  (D,) subtracted before coding (the mean of the data, or zero).
    assignment   (n,) subspace of each sample.
    unexplained  sum ||x - xhat||^2 / sum ||x - mean||^2 on the data fitted.
    history      the same after each iteration of the best restart; never increases.
    """

    bases: "Float[ndarray, 'K r D']"
    bias: "Float[ndarray, ' D']"
    assignment: "Int[ndarray, ' n']"
    unexplained: float
    history: tuple[float, ...]

    def encode(self, x: "Float[ndarray, 'n D']") -> "tuple[Int[ndarray, ' n'], Float[ndarray, 'n r']]":
        """Best subspace and the coordinates in its basis, for each row."""
        rows = _rows(x, self.bases.shape[2]) - self.bias
        assignment, _ = _assign(rows, self.bases)
        return assignment, np.einsum("nD,nrD->nr", rows, self.bases[assignment])

    def evaluate(self, x: "Float[ndarray, 'n D']") -> float:
        """Unexplained variance, sum ||x - xhat||^2 / sum ||x - mean||^2, on any rows (held-out ones, say)."""
        rows = _rows(x, self.bases.shape[2]) - self.bias
        return _residual(rows, _assign(rows, self.bases)[1]) / _variance(rows)


def fit(
    x: "Float[ndarray, 'n D']",
    n_subspaces: int,
    rank: int,
    rng: np.random.Generator,
    *,
    centre: bool = True,
    restarts: int = 3,
    iterations: int = 100,
    rtol: float = 1e-5,
) -> Solution:
    """Fit `n_subspaces` subspaces of dimension `rank` to the rows of `x`; the best of `restarts` starts.

    `centre` subtracts the mean of the data, as a trained decoder bias may. A run stops after `iterations`, or when an
    iteration lowers the objective by less than `rtol` of it. Raises UsageError for impossible sizes, DataError for
    NaN, Inf or rows without variance.
    """
    for name, value in {
        "n_subspaces": n_subspaces,
        "rank": rank,
        "restarts": restarts,
        "iterations": iterations,
    }.items():
        if value < 1:
            raise UsageError(f"K-subspaces needs {name} >= 1; got {value}")
    rows = _rows(x, None)
    if rank > min(rows.shape):
        raise UsageError(f"rank is {rank}, but {rows.shape[0]} rows in R^{rows.shape[1]} span less; lower it")
    bias = rows.mean(axis=0) if centre else np.zeros(rows.shape[1])
    variance = _variance(rows)
    rows = rows - bias
    best: Solution | None = None
    for _ in range(restarts):
        bases, assignment, history = _descend(rows, _start(rows, n_subspaces, rank, rng), iterations, rtol)
        shares = tuple(value / variance for value in history)
        if best is None or shares[-1] < best.unexplained:
            best = Solution(bases, bias, assignment, shares[-1], shares)
    if best is None:
        raise UsageError("no restart was run")
    return best


def _descend(
    rows: "Float[ndarray, 'n D']", bases: "Float[ndarray, 'K r D']", iterations: int, rtol: float
) -> "tuple[Float[ndarray, 'K r D'], Int[ndarray, ' n'], list[float]]":
    """Alternate until the objective stalls; returns the subspaces, their samples and the objective's history."""
    assignment, explained = _assign(rows, bases)
    history = [_residual(rows, explained)]
    for _ in range(iterations):
        candidate = _move(rows, _reseed(rows, bases, assignment, explained), assignment)
        candidate_assignment, explained_now = _assign(rows, candidate)
        value = _residual(rows, explained_now)
        if value > history[-1]:  # rounding: nothing is left to gain at this precision
            break
        bases, assignment, explained = candidate, candidate_assignment, explained_now
        history.append(value)
        if history[-2] - value <= rtol * history[-2]:
            break
    return bases, assignment, history


def _assign(
    rows: "Float[ndarray, 'n D']", bases: "Float[ndarray, 'K r D']", chunk: int = 4096
) -> "tuple[Int[ndarray, ' n'], Float[ndarray, ' n']]":
    """The subspace that explains most of every row, and the energy it explains."""
    k, r, width = bases.shape
    stacked = bases.reshape(k * r, width).T
    assignment, explained = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        energy = np.square(rows[part] @ stacked).reshape(-1, k, r).sum(axis=2)
        assignment[part] = energy.argmax(axis=1)
        explained[part] = energy.max(axis=1)
    return assignment, explained


def _move(
    rows: "Float[ndarray, 'n D']", bases: "Float[ndarray, 'K r D']", assignment: "Int[ndarray, ' n']"
) -> "Float[ndarray, 'K r D']":
    """The top r eigenvectors of every subspace's own samples; one without samples stays."""
    bases = bases.copy()
    for k in range(len(bases)):
        own = rows[assignment == k]
        if len(own) > 0:
            bases[k] = _top(own, bases[k])
    return bases


def _top(own: "Float[ndarray, 'n D']", held: "Float[ndarray, 'r D']") -> "Float[ndarray, 'r D']":
    """Top r right singular vectors of the rows; too few rows are filled up with what was held."""
    rank = len(held)
    if len(own) > own.shape[1]:
        _, vectors = np.linalg.eigh(own.T @ own)
        return vectors[:, : -rank - 1 : -1].T
    _, sigma, vectors = np.linalg.svd(own, full_matrices=False)
    kept = vectors[:rank][sigma[:rank] > 1e-10 * max(sigma[0], 1e-300)]
    return _orthonormal(np.vstack([kept, held]), rank)


def _orthonormal(candidates: "Float[ndarray, 'm D']", rank: int) -> "Float[ndarray, 'r D']":
    """The first `rank` directions of Gram-Schmidt over the candidates that add one (there are enough of them)."""
    kept: list[ndarray] = []
    for row in candidates:
        left = row.copy()
        for _ in range(2):  # once more: the first pass leaves rounding errors of parallel rows
            for other in kept:
                left -= (left @ other) * other
        if (size := np.linalg.norm(left)) > 1e-6 * max(float(np.linalg.norm(row)), 1e-300):
            kept.append(left / size)
        if len(kept) == rank:
            break
    return np.array(kept)


def _reseed(
    rows: "Float[ndarray, 'n D']",
    bases: "Float[ndarray, 'K r D']",
    assignment: "Int[ndarray, ' n']",
    explained: "Float[ndarray, ' n']",
) -> "Float[ndarray, 'K r D']":
    """Turn each subspace that owns no sample towards the samples served worst, one each."""
    empty = np.setdiff1d(np.arange(len(bases)), assignment)
    if len(empty) == 0:
        return bases
    bases = bases.copy()
    left = np.einsum("nD,nD->n", rows, rows) - explained
    for k, worst in zip(empty, np.argsort(-left), strict=False):
        if left[worst] <= 0:
            break
        bases[k] = _orthonormal(np.vstack([rows[worst], bases[k]]), bases.shape[1])
        assignment[worst] = k
    return bases


def _start(
    rows: "Float[ndarray, 'n D']", n_subspaces: int, rank: int, rng: np.random.Generator
) -> "Float[ndarray, 'K r D']":
    """A drawn sample and half of the 4 r samples of largest |cosine| with it, for every subspace (module docstring)."""
    squares = np.einsum("nD,nD->n", rows, rows)
    norms = np.sqrt(np.where(squares > 0, squares, 1))
    left = squares.copy()
    bases = np.empty((n_subspaces, rank, rows.shape[1]))
    for k in range(n_subspaces):
        spare = rng.standard_normal((rank, rows.shape[1]))
        cumulative = np.cumsum(left)
        if not cumulative[-1] > 1e-12 * squares.sum():
            bases[k] = _orthonormal(spare, rank)  # every sample is explained already
            continue
        pick = min(int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")), len(rows) - 1)
        near = rng.permutation(np.argsort(-np.abs(rows @ rows[pick]) / norms)[: 4 * rank])[: 2 * rank]
        bases[k] = _top(np.vstack([rows[pick], rows[near]]), _orthonormal(spare, rank))
        left = np.minimum(left, np.maximum(squares - np.square(rows @ bases[k].T).sum(axis=1), 0))
    return bases


def _residual(rows: "Float[ndarray, 'n D']", explained: "Float[ndarray, ' n']") -> float:
    return max(float(np.square(rows).sum() - explained.sum()), 0.0)


def _variance(rows: "Float[ndarray, 'n D']") -> float:
    total = float(np.square(rows - rows.mean(axis=0)).sum())
    if not total > 0:
        raise DataError(f"all {len(rows)} rows are equal, so there is no variance to explain; give more rows")
    return total


def _rows(x: "Float[ndarray, 'n D']", width: int | None) -> "Float[ndarray, 'n D']":
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0 or (width is not None and rows.shape[1] != width):
        raise UsageError(f"rows have shape {rows.shape}; expected (n, {width or 'D'}) with n >= 1")
    if not np.isfinite(rows).all():
        raise DataError("the rows hold NaN or Inf; remove or repair them before fitting subspaces")
    return rows
