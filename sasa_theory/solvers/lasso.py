"""LASSO coding of many samples with one dictionary, each with its duality gap.

    psi_D(x) = min_a 1/2 ||x - D a||^2 + lam ||a||_1,    a free or a >= 0

Working sets: every round one matrix product prices all atoms for all samples still open, <d_j, nu>. The same prices
certify a sample (its residual nu, scaled until no price exceeds lam, is dual feasible: B1) or name the atoms its
working set lacks; compiled loops (`lasso_loops`) then follow the path of optima on the set to the new penalties. A
sample leaves when its gap is as asked. What is returned says the gap that was reached, never more.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from sasa_theory.arguments import require_real
from sasa_theory.solvers import lasso_loops as loops
from sasa_theory.threads import split
from synthetic.errors import UsageError

#: samples treated together by one thread: enough for the product, few enough for their working sets to stay in cache
BLOCK = 64
#: atoms a working set takes in per round, and how many rounds' worth it holds beside the support
INTAKE, SPARE = 12, 3
#: the penalty aimed at is at least this share of the largest price
SHARE = 0.5
#: rounds between two fresh inverses
RENEW = 10


@dataclass(frozen=True)
class Solution:
    """Codes with their certificate.

    codes (n, N); primal (n,) value reached, dual (n,) lower bound on psi; squares (n,) = 1/2 ||x||^2.
    """

    codes: "Float[ndarray, 'n N']"
    primal: "Float[ndarray, ' n']"
    dual: "Float[ndarray, ' n']"
    squares: "Float[ndarray, ' n']"

    @property
    def gap(self) -> "Float[ndarray, ' n']":
        """(primal - dual) / (1/2 ||x||^2) per sample; 0 for a zero sample."""
        return np.where(self.squares > 0, (self.primal - self.dual) / np.where(self.squares > 0, self.squares, 1), 0.0)


def solve(
    atoms: "Float[ndarray, 'N D']",
    x: "Float[ndarray, 'n D']",
    lam: "float | Float[ndarray, ' n']",
    signed: bool = True,
    rtol: float = 1e-6,
    rounds: int = 500,
) -> Solution:
    """Codes of every row of `x` to a relative duality gap of `rtol`, with primal and dual values (B1).

    `lam` one number or one per sample; atoms of any length, zero and equal ones included. lam >= max_j |<d_j, x>| gives
    exactly zero. At lam = 0 (signed: least squares) the dual point is the part of the residual orthogonal to all
    atoms; non-negative codes at lam = 0, or at one not well above the rounding of <a, residual> (1e-16 ||x||), keep a
    gap, because a dual point is scaled until no <a, nu> is above lam. After `rounds` rounds a sample is returned with
    the gap it has. Raises UsageError for shapes that do not fit, NaN or Inf, or lam < 0.
    """
    atoms, x, lams = checked(atoms, x, lam, rtol)
    squares = np.square(x).sum(1) / 2
    codes = np.zeros((len(x), len(atoms)))
    primal, dual = np.empty(len(x)), np.empty(len(x))
    stride = BLOCK * torch.get_num_threads()
    for start in range(0, len(x), stride):
        part = slice(start, start + stride)
        sets = _block(atoms, x[part], lams[part], signed, rtol, rounds)
        owner, slot = np.nonzero(sets.codes)
        codes[start + owner, sets.work[owner, slot]] = sets.codes[owner, slot]
        primal[part], dual[part] = sets.primal, sets.dual
    if signed and (lams == 0).any():
        least_squares(atoms, x, np.flatnonzero(lams == 0), codes, primal, dual)
    return Solution(codes, primal, dual, squares)


def lam_max(atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, 'n D']", signed: bool = True) -> "Float[ndarray, ' n']":
    """Smallest penalty at which a sample's codes are all zero: max_j |<d_j, x>| (max_j <d_j, x>_+ when a >= 0)."""
    prices = np.asarray(x, float) @ np.asarray(atoms, float).T
    return np.maximum((np.abs(prices) if signed else prices).max(1, initial=0.0), 0.0)


def checked(
    atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, 'n D']", lam: "float | Float[ndarray, ' n']", rtol: float
) -> "tuple[Float[ndarray, 'N D'], Float[ndarray, 'n D'], Float[ndarray, ' n']]":
    """Contiguous float64 atoms and samples and one penalty per sample; raises UsageError for anything else."""
    atoms, x = (np.ascontiguousarray(v, dtype=np.float64) for v in (atoms, x))
    if atoms.ndim != 2 or x.ndim != 2 or atoms.shape[1] != x.shape[1] or len(atoms) == 0:
        raise UsageError(f"atoms have shape {atoms.shape} and x {x.shape}; expected (N, D) and (n, D) with N >= 1")
    if not (np.isfinite(atoms).all() and np.isfinite(x).all()):
        raise UsageError("atoms or x hold NaN or Inf; remove or repair them before coding")
    lams = np.asarray(lam, dtype=np.float64)
    if lams.shape not in ((), (len(x),)) or not (lams >= 0).all() or not np.isfinite(lams).all():
        raise UsageError(f"lam is {lam!r}; expected a finite number >= 0, or one for each of the {len(x)} samples")
    require_real("rtol", rtol, 0)
    return atoms, x, np.ascontiguousarray(np.broadcast_to(lams, (len(x),)))


def _block(atoms: ndarray, x: ndarray, lam: ndarray, signed: bool, rtol: float, rounds: int) -> loops.Sets:
    """Working sets of a block of samples, solved."""
    rank = min(atoms.shape)
    most = min(INTAKE, max(1, rank // 2))
    sets = loops.Sets.empty(x, min(len(atoms), rank + SPARE * most), rank)
    still = np.flatnonzero((lam > 0) | (not signed))
    for turn in range(rounds):
        prices, done = sets.nu[still] @ atoms.T, np.empty(len(still), bool)
        renew, last = turn % RENEW == RENEW - 1, turn == rounds - 1
        split(loops.visit, len(still), still, prices, x, atoms, lam, signed, rtol, most, SHARE, renew, last, sets, done)
        still = still[~done]
        if len(still) == 0:
            break
    return sets


def least_squares(atoms: ndarray, x: ndarray, rows: ndarray, codes: ndarray, primal: ndarray, dual: ndarray) -> None:
    """lam = 0: the pseudo-inverse, and the residual's part orthogonal to the atoms as dual point."""
    left, sigma, right = np.linalg.svd(atoms, full_matrices=False)
    kept = sigma > 1e-12 * max(float(sigma[0]), 1e-300)
    basis = right[kept]
    inside = x[rows] @ basis.T
    codes[rows] = (inside / sigma[kept]) @ left[:, kept].T
    outside = x[rows] - inside @ basis
    primal[rows] = np.square(x[rows] - codes[rows] @ atoms).sum(1) / 2
    dual[rows] = (np.square(x[rows]).sum(1) - np.square(x[rows] - outside).sum(1)) / 2
