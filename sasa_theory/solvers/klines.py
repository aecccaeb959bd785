"""K-lines: the best dictionary for one active atom per sample, found by alternating minimisation.

    min over unit atoms d_1..d_N, assignments and codes of  sum_t ||x_t - b - a_t d_{k(t)}||^2,    a_t real, or a_t >= 0

This is what a vector dictionary at k=1 tries to learn, without an encoder in the way: the yardstick for "a baseline
given its best chance" (figure E1). The start is k-means++ on the residual energy; an iteration assigns every sample
to its best atom and moves each atom to

    d <- normalise(sum over its samples of a_t x_t),    a_t = <x_t, d>, or max(<x_t, d>, 0).

For signed codes this is a power step towards the cluster's top singular vector; for non-negative ones it is the same
step for the convex function sum max(<x, d>, 0)^2 and never lowers it (Journee et al. 2010). Both halves only lower the
objective, and so does giving an unused atom to the worst-served sample.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from synthetic.errors import DataError, UsageError


@dataclass(frozen=True)
class Solution:
    """A fitted set of lines.

    atoms        (N, D) unit rows.       bias  (D,) subtracted before coding (the mean of the data, or zero).
    assignment   (n,) atom of each sample, -1 where no atom helps (all inner products <= 0, non-negative codes).
    codes        (n,) its coefficient.
    unexplained  sum ||x - xhat||^2 / sum ||x - mean||^2 on the data fitted.
    history      the same after each iteration of the best restart; never increases.
    """

    atoms: "Float[ndarray, 'N D']"
    bias: "Float[ndarray, ' D']"
    signed: bool
    assignment: "Int[ndarray, ' n']"
    codes: "Float[ndarray, ' n']"
    unexplained: float
    history: tuple[float, ...]

    def encode(self, x: "Float[ndarray, 'n D']") -> "tuple[Int[ndarray, ' n'], Float[ndarray, ' n']]":
        """Best atom (-1: none helps) and its coefficient for each row."""
        rows = _rows(x, self.atoms.shape[1], self.atoms.dtype) - self.bias.astype(self.atoms.dtype)
        return _assign(rows, self.atoms, self.signed)

    def evaluate(self, x: "Float[ndarray, 'n D']") -> float:
        """Unexplained variance, sum ||x - xhat||^2 / sum ||x - mean||^2, on any rows (held-out ones, say)."""
        rows = _rows(x, self.atoms.shape[1], self.atoms.dtype) - self.bias.astype(self.atoms.dtype)
        _, codes = _assign(rows, self.atoms, self.signed)
        return _residual(rows, codes) / _variance(rows)


def fit(
    x: "Float[ndarray, 'n D']",
    n_atoms: int,
    rng: np.random.Generator,
    *,
    signed: bool = True,
    centre: bool = True,
    restarts: int = 3,
    iterations: int = 100,
    rtol: float = 1e-5,
    dtype: type = np.float32,
) -> Solution:
    """Fit `n_atoms` lines (rays when `signed` is false) to the rows of `x`; the best of `restarts` starts.

    `centre` subtracts the mean of the data, as a trained decoder bias may. A run stops after `iterations`, or when an
    iteration lowers the objective by less than `rtol` of it. Raises UsageError for impossible sizes, DataError for
    NaN, Inf or rows without variance.
    """
    if n_atoms < 1 or restarts < 1 or iterations < 1:
        raise UsageError(f"K-lines needs n_atoms, restarts, iterations >= 1; got {n_atoms}, {restarts}, {iterations}")
    rows = _rows(x, None, np.float64)
    bias = rows.mean(axis=0) if centre else np.zeros(rows.shape[1])
    variance = _variance(rows)
    rows = np.ascontiguousarray((rows - bias).astype(dtype))
    best: Solution | None = None
    for _ in range(restarts):
        atoms, history = _descend(rows, _start(rows, n_atoms, signed, rng), signed, iterations, rtol)
        if best is None or history[-1] / variance < best.unexplained:
            assignment, codes = _assign(rows, atoms, signed)
            shares = tuple(value / variance for value in history)
            best = Solution(atoms, bias, signed, assignment, codes, shares[-1], shares)
    if best is None:
        raise UsageError("no restart was run")
    return best


def _descend(
    rows: "Float[ndarray, 'n D']", atoms: "Float[ndarray, 'N D']", signed: bool, iterations: int, rtol: float
) -> "tuple[Float[ndarray, 'N D'], list[float]]":
    """Alternate until the objective stalls; returns the best atoms and the objective after each iteration."""
    assignment, codes = _assign(rows, atoms, signed)
    history = [_residual(rows, codes)]
    for _ in range(iterations):
        seeded = _reseed(rows, atoms, assignment, codes, signed)
        if seeded is not atoms:
            assignment, codes = _assign(rows, seeded, signed)
        candidate = _move(rows, seeded, assignment, signed)
        assignment, codes = _assign(rows, candidate, signed)
        value = _residual(rows, codes)
        if value > history[-1]:  # rounding: nothing is left to gain at this precision
            break
        atoms = candidate
        history.append(value)
        if history[-2] - value <= rtol * history[-2]:
            break
    return atoms, history


def _assign(
    rows: "Float[ndarray, 'n D']", atoms: "Float[ndarray, 'N D']", signed: bool, chunk: int = 4096
) -> "tuple[Int[ndarray, ' n'], Float[ndarray, ' n']]":
    """The atom of largest |<x, d>| (or <x, d>) for every row, and that coefficient."""
    assignment = np.empty(len(rows), dtype=np.int64)
    codes = np.empty(len(rows), dtype=rows.dtype)
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        scores = rows[part] @ atoms.T
        pick = (np.abs(scores) if signed else scores).argmax(axis=1)
        assignment[part] = pick
        codes[part] = scores[np.arange(len(pick)), pick]
    helps = codes != 0 if signed else codes > 0
    return np.where(helps, assignment, -1), np.where(helps, codes, 0)


def _move(
    rows: "Float[ndarray, 'n D']",
    atoms: "Float[ndarray, 'N D']",
    assignment: "Int[ndarray, ' n']",
    signed: bool,
    steps: int = 3,
) -> "Float[ndarray, 'N D']":
    """A few power steps of every atom on its own samples; atoms without samples stay."""
    order = np.argsort(assignment, kind="stable")
    order = order[np.searchsorted(assignment[order], 0) :]
    if len(order) == 0:
        return atoms
    sorted_rows, owner = rows[order], assignment[order]
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    used = owner[starts]
    atoms = atoms.copy()
    for _ in range(steps):
        codes = np.einsum("nd,nd->n", sorted_rows, atoms[owner])
        if not signed:
            codes = np.maximum(codes, 0)
        moved = np.add.reduceat(codes[:, None] * sorted_rows, starts, axis=0)
        norms = np.linalg.norm(moved, axis=1, keepdims=True)
        atoms[used] = np.where(norms > 0, moved / np.where(norms > 0, norms, 1), atoms[used])
    return atoms


def _reseed(
    rows: "Float[ndarray, 'n D']",
    atoms: "Float[ndarray, 'N D']",
    assignment: "Int[ndarray, ' n']",
    codes: "Float[ndarray, ' n']",
    signed: bool,
) -> "Float[ndarray, 'N D']":
    """Give each atom that owns no sample to the sample served worst, one after another."""
    empty = np.setdiff1d(np.arange(len(atoms)), assignment)
    if len(empty) == 0:
        return atoms
    atoms = atoms.copy()
    left = np.einsum("nd,nd->n", rows, rows) - np.square(codes)
    for atom in empty:
        worst = int(left.argmax())
        if left[worst] <= 0:
            break
        atoms[atom] = rows[worst] / np.linalg.norm(rows[worst])
        left = np.minimum(left, _left(rows, atoms[atom], signed))
        left[worst] = 0
    return atoms


def _start(
    rows: "Float[ndarray, 'n D']", n_atoms: int, signed: bool, rng: np.random.Generator
) -> "Float[ndarray, 'N D']":
    """k-means++ for lines: samples drawn in proportion to the energy that the atoms drawn so far leave behind."""
    squares = np.einsum("nd,nd->n", rows, rows)
    left = squares.copy()
    atoms = rng.standard_normal((n_atoms, rows.shape[1])).astype(rows.dtype)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    for atom in range(n_atoms):
        cumulative = np.cumsum(left, dtype=np.float64)
        if not cumulative[-1] > 1e-12 * float(squares.sum(dtype=np.float64)):
            break  # every sample lies on a line already; the other atoms keep their random directions
        pick = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        pick = min(pick, len(rows) - 1)
        atoms[atom] = rows[pick] / np.linalg.norm(rows[pick])
        left = np.minimum(left, _left(rows, atoms[atom], signed, squares))
        left[pick] = 0
    return atoms


def _left(
    rows: "Float[ndarray, 'n D']", atom: "Float[ndarray, ' D']", signed: bool, squares: ndarray | None = None
) -> "Float[ndarray, ' n']":
    """||x - a d||^2 of every row for one unit atom."""
    codes = rows @ atom
    if not signed:
        codes = np.maximum(codes, 0)
    squares = np.einsum("nd,nd->n", rows, rows) if squares is None else squares
    return np.maximum(squares - np.square(codes), 0)


def _residual(rows: "Float[ndarray, 'n D']", codes: "Float[ndarray, ' n']") -> float:
    """sum ||x||^2 - a^2 in float64 (atoms have unit norm)."""
    return float(np.square(rows, dtype=np.float64).sum() - np.square(codes, dtype=np.float64).sum())


def _variance(rows: "Float[ndarray, 'n D']") -> float:
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    total = float(np.square(centred).sum())
    if not total > 0:
        raise DataError(f"all {len(rows)} rows are equal, so there is no variance to explain; give more rows")
    return total


def _rows(x: "Float[ndarray, 'n D']", width: int | None, dtype: type | np.dtype) -> "Float[ndarray, 'n D']":
    rows = np.asarray(x, dtype=dtype)
    if rows.ndim != 2 or len(rows) == 0 or (width is not None and rows.shape[1] != width):
        raise UsageError(f"rows have shape {rows.shape}; expected (n, {width or 'D'}) with n >= 1")
    if not np.isfinite(rows).all():
        raise DataError("the rows hold NaN or Inf; remove or repair them before fitting lines")
    return rows
