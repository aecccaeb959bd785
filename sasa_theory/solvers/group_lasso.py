"""Group-LASSO coding of many samples with one dictionary, each with its duality gap.

    min_a 1/2 ||x - D a||^2 + lam sum_g ||a_g||_2

Within a group the codes may be rotated without changing their norm, so each group's atoms are replaced by orthogonal
ones (D_g = U S V^T, b = V^T a). A block is then minimised exactly: with c = U^T r the code is b_i = s_i c_i t /
(s_i^2 t + lam), where t = ||b|| solves one equation in one unknown. Groups are priced for all open samples by one
matrix product per round, as in `lasso`: it certifies a sample (the residual scaled until no ||D_g^T nu|| exceeds lam)
or names the groups its working set lacks.
"""

import itertools

import numba
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from sasa_theory.solvers.lasso import Solution, checked, least_squares
from sasa_theory.threads import split
from synthetic.errors import UsageError

BLOCK = 256
#: groups a working set takes in per round, and sweeps over the set between two rounds
INTAKE, SWEEPS = 8, 100


def solve(
    atoms: "Float[ndarray, 'N D']",
    groups: "Int[ndarray, ' N']",
    x: "Float[ndarray, 'n D']",
    lam: "float | Float[ndarray, ' n']",
    rtol: float = 1e-6,
    rounds: int = 2000,
) -> Solution:
    """Codes of every row of `x` to a relative duality gap of `rtol`; `groups` holds each atom's group label.

    Groups may differ in size and need not be contiguous; one atom per group is the signed LASSO. lam >= max_g
    ||D_g^T x|| gives exactly zero. After `rounds` rounds a sample is returned with the gap it has. Raises UsageError
    for shapes that do not fit, labels that are not whole numbers, NaN or Inf, or lam < 0.
    """
    atoms, x, lams = checked(atoms, x, lam, rtol)
    labels = np.asarray(groups)
    if labels.shape != (len(atoms),) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"groups have shape {labels.shape} and type {labels.dtype}; expected ({len(atoms)},) integers")
    order, starts = _by_group(labels)
    rotated, turns = _orthogonal(atoms[order], starts)
    lengths = np.square(rotated).sum(1)
    squares = np.square(x).sum(1) / 2
    codes = np.zeros((len(x), len(atoms)))
    primal, dual = np.empty(len(x)), np.empty(len(x))
    for begin in range(0, len(x), BLOCK):
        part = slice(begin, begin + BLOCK)
        found, primal[part], dual[part] = _block(rotated, lengths, starts, x[part], lams[part], rtol, rounds)
        for (a, b), turn in zip(itertools.pairwise(starts), turns, strict=True):
            codes[part, order[a:b]] = found[:, a:b] @ turn
    if (lams == 0).any():
        least_squares(atoms, x, np.flatnonzero(lams == 0), codes, primal, dual)
    return Solution(codes, primal, dual, squares)


def lam_max(
    atoms: "Float[ndarray, 'N D']", groups: "Int[ndarray, ' N']", x: "Float[ndarray, 'n D']"
) -> "Float[ndarray, ' n']":
    """Smallest penalty at which a sample's codes are all zero: max_g ||D_g^T x||."""
    order, starts = _by_group(np.asarray(groups))
    prices = np.asarray(x, float) @ np.asarray(atoms, float)[order].T
    return np.sqrt(np.add.reduceat(np.square(prices), starts[:-1], axis=1)).max(1)


def _by_group(labels: ndarray) -> tuple[ndarray, ndarray]:
    """Atoms sorted by label, and where each group starts (with the end)."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(labels[order]) != 0])
    return order, np.r_[starts, len(labels)]


def _orthogonal(atoms: ndarray, starts: ndarray) -> tuple[ndarray, list[ndarray]]:
    """Each group's atoms turned until they are orthogonal: rows S U^T, and the V^T that turns codes back."""
    rotated, turns = np.zeros_like(atoms), []
    for a, b in itertools.pairwise(starts):
        left, sigma, right = np.linalg.svd(atoms[a:b], full_matrices=True)
        count = len(sigma)
        rotated[a : a + count] = sigma[:, None] * right[:count]
        turns.append(left.T)
    return rotated, turns


def _block(
    rotated: ndarray, lengths: ndarray, starts: ndarray, x: ndarray, lam: ndarray, rtol: float, rounds: int
) -> tuple[ndarray, ndarray, ndarray]:
    """Codes, primal and dual values of a block of samples."""
    count, n_groups = len(x), len(starts) - 1
    codes, active = np.zeros((count, len(rotated))), np.zeros((count, n_groups), bool)
    nu = x.copy()
    squares = np.square(x).sum(1) / 2
    primal, dual = squares.copy(), np.zeros(count)
    still = np.flatnonzero(lam > 0)
    for _ in range(rounds):
        prices = nu[still] @ rotated.T
        worth = np.sqrt(np.add.reduceat(np.square(prices), starts[:-1], axis=1))
        left, cross = np.square(nu[still]).sum(1), (nu[still] * x[still]).sum(1)
        penalty = np.sqrt(np.add.reduceat(np.square(codes[still]), starts[:-1], axis=1)).sum(1)
        top = worth.max(1)
        t = np.clip(np.where(left > 0, cross / np.where(left > 0, left, 1), 0), 0, None)
        t = np.where(top > 0, np.minimum(t, lam[still] / np.where(top > 0, top, 1)), t)
        primal[still] = left / 2 + lam[still] * penalty
        dual[still] = t * cross - t**2 * left / 2
        untouched = ~active[still].any(1) & (top <= lam[still])  # zero is the answer, exactly
        open_ = (primal[still] - dual[still] > rtol * squares[still]) & ~untouched
        still, worth = still[open_], worth[open_]
        if len(still) == 0:
            break
        missing = np.where(active[still] | (worth <= lam[still, None]), -1.0, worth)
        best = np.argpartition(-missing, min(INTAKE, n_groups - 1), axis=1)[:, :INTAKE]
        rows = np.arange(len(still))[:, None]
        active[still[:, None], best] |= missing[rows, best] > 0
        split(_descend, len(still), still, rotated, lengths, starts, lam, active, codes, nu, SWEEPS)
        for i in still:  # the residual anew, so that rounding does not gather
            nu[i] = x[i] - codes[i] @ rotated
    return codes, primal, dual


@numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
def _descend(
    start: int,
    stop: int,
    still: ndarray,
    rotated: ndarray,
    lengths: ndarray,
    starts: ndarray,
    lam: ndarray,
    active: ndarray,
    codes: ndarray,
    nu: ndarray,
    sweeps: int,
) -> None:
    """Sweeps of exact block minimisation over each sample's active groups; keeps nu = x - D codes."""
    wide = rotated.shape[1]
    pull = np.empty(len(rotated))
    for p in range(start, stop):
        i = still[p]
        for _ in range(sweeps):
            moved = whole = 0.0
            for g in range(len(starts) - 1):
                if not active[i, g]:
                    continue
                size = 0.0
                for j in range(starts[g], starts[g + 1]):
                    total = lengths[j] * codes[i, j]
                    for d in range(wide):
                        total += rotated[j, d] * nu[i, d]
                    pull[j] = total
                    size += total * total
                t = _norm(pull, lengths, starts[g], starts[g + 1], size**0.5, lam[i])
                for j in range(starts[g], starts[g + 1]):
                    new = pull[j] * t / (lengths[j] * t + lam[i]) if t > 0 else 0.0
                    change = new - codes[i, j]
                    if change != 0:
                        codes[i, j] = new
                        moved += change * change * lengths[j]
                        whole += new * new * lengths[j]
                        for d in range(wide):
                            nu[i, d] -= change * rotated[j, d]
            if moved <= 1e-22 * whole:
                break


@numba.njit(nogil=True, cache=True)
def _norm(pull: ndarray, lengths: ndarray, start: int, stop: int, size: float, lam: float) -> float:
    """t > 0 with sum_j (pull_j / (lengths_j t + lam))^2 = 1, 0 if ||pull|| <= lam: Newton on 1 / sqrt(sum) - 1.

    1 / sqrt(sum) is concave and increasing in t, so from the left, t = 0, every step stays left of the root.
    """
    if size <= lam:
        return 0.0
    t = 0.0
    for _ in range(100):
        total = slope = 0.0
        for j in range(start, stop):
            below = lengths[j] * t + lam
            part = pull[j] / below
            total += part * part
            slope += part * part * lengths[j] / below
        if slope <= 0:
            return t
        step = (total**0.5 - 1) * total / slope
        t += step
        if abs(step) <= 1e-15 * t:
            break
    return max(t, 0.0)
