"""One group on one slice: the nuclear-norm problem of C1, with its certificates.

    min_M tr((I - M) Sigma (I - M)^T) + lam ||M||_*

The minimiser shares its eigenvectors with Sigma and shrinks each direction by itself, so `eigh` solves it. Two things
certify an answer, and both work for any map M, whoever found it. The residual N = (I - M) Sigma^{1/2} is, once scaled
so that ||2 t N Sigma^{1/2}||_op <= lam, a point of the dual problem max 2 <N, Sigma^{1/2}> - ||N||_F^2: its value is a
lower bound. And M is optimal exactly when 2 (I - M) Sigma lies in lam times the subdifferential of ||.||_* at M.

With fewer than #{sigma_j > lam / 2} dimensions the problem is no longer convex. `solve` then descends over factors
from several starts and reports the best map found; the dual is still that of the problem without the constraint, a
true lower bound that the constrained optimum may stay away from (C3).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sasa_theory.arguments import require_count, require_real, second_moment
from sasa_theory.bounds_groups import slice_map
from sasa_theory.objectives import slice_cost
from synthetic.errors import UsageError


@dataclass(frozen=True)
class Solution:
    """A map of one group, what it costs, and a lower bound on what any map costs.

    map     (D, D), acting on column vectors.
    primal  its cost; `dual` bounds the cost of every map, of any rank, from below.
    """

    map: "Float[ndarray, 'D D']"
    primal: float
    dual: float

    @property
    def gap(self) -> float:
        """primal - dual: at most this much is left to gain (it can be rounding below zero at the optimum)."""
        return self.primal - self.dual


def solve(
    sigma: "Float[ndarray, 'D D']",
    lam: float,
    rank: int | None = None,
    *,
    starts: int = 8,
    rng: np.random.Generator | None = None,
) -> Solution:
    """The best map of one group on a slice with second moment `sigma`, of rank at most `rank` if one is given (C1, C3).

    M* = U diag((1 - lam / (2 sigma_j))_+) U^T where that rank is allowed; below it, the best of a descent from the
    leading eigenvectors and from `starts` random factors (`rng`, seed 0 unless given), whose gap is then NOT a
    certificate: the dual ignores the rank. lam and both values are in the units of Sigma. Raises UsageError when Sigma
    is no second moment, lam < 0 or rank < 1.
    """
    sigma = second_moment("Sigma", sigma)
    require_real("lam", lam, 0)
    best = slice_map(sigma, lam)
    dual = dual_bound(best, sigma, lam)
    if rank is not None:
        require_count("rank", rank)
        if np.linalg.matrix_rank(best, tol=1e-12) > rank:
            best = _constrained(sigma, lam, rank, starts, rng or np.random.default_rng(0))
    return Solution(best, slice_cost(best, sigma, lam), dual)


def dual_bound(map_: "Float[ndarray, 'D D']", sigma: "Float[ndarray, 'D D']", lam: float) -> float:
    """A lower bound on the cost of every map, read off the residual of any one map M (C1).

    max over 0 <= t <= lam / ||2 (I - M) Sigma||_op of 2 t tr((I - M) Sigma) - t^2 tr((I - M) Sigma (I - M)^T); it
    meets the cost at M*. `bounds_groups.slice_floor` is the same with t at most 1. Raises UsageError for shapes that
    do not fit, lam < 0.
    """
    sigma = second_moment("Sigma", sigma)
    require_real("lam", lam, 0)
    left = np.eye(len(sigma)) - _square(map_, len(sigma))
    unexplained = left @ sigma
    return scaled_value(
        float(np.trace(unexplained)),
        float(np.trace(unexplained @ left.T)),
        2 * float(np.linalg.norm(unexplained, 2)) if len(sigma) else 0.0,
        lam,
    )


def scaled_value(along: float, energy: float, operator: float, lam: float) -> float:
    """The best dual value on the ray of a residual: max of 2 t along - t^2 energy over 0 <= t <= lam / operator.

    along = sum w <nu, h>, energy = sum w ||nu||^2, operator = the largest ||2 sum w nu h^T||_op over the groups.
    """
    if along <= 0 or energy <= 0:
        return 0.0
    t = along / energy if operator <= 0 else min(along / energy, lam / operator)
    return 2 * t * along - t**2 * energy


def subdifferential_distance(
    map_: "Float[ndarray, 'D D']", sigma: "Float[ndarray, 'D D']", lam: float, rank_tolerance: float = 1e-10
) -> float:
    """Frobenius distance of 2 (I - M) Sigma to lam times the subdifferential of ||.||_* at M: 0 iff M is optimal (C1).

    The subdifferential at M = U S V^T is {U V^T + W : U^T W = 0, W V = 0, ||W||_op <= 1}; singular values up to
    `rank_tolerance` times the largest (and 1) count as zero. In the units of Sigma, so lam = 0 needs no division:
    there the distance is ||2 (I - M) Sigma||_F. Raises UsageError for shapes that do not fit, lam < 0.
    """
    sigma = second_moment("Sigma", sigma)
    require_real("lam", lam, 0)
    map_ = _square(map_, len(sigma))
    gradient = 2 * (np.eye(len(sigma)) - map_) @ sigma
    u, values, vt = np.linalg.svd(map_)
    kept = int((values > rank_tolerance * max(values.max(initial=0.0), 1.0)).sum())
    u, free_u, vt, free_vt = u[:, :kept], u[:, kept:], vt[:kept], vt[kept:]
    normal = np.linalg.svd(free_u.T @ gradient @ free_vt.T, compute_uv=False)
    tangent = gradient - free_u @ (free_u.T @ gradient @ free_vt.T) @ free_vt - lam * u @ vt
    return float(np.hypot(np.linalg.norm(tangent), np.linalg.norm(np.maximum(normal - lam, 0))))


def _constrained(
    sigma: "Float[ndarray, 'D D']", lam: float, rank: int, starts: int, rng: np.random.Generator
) -> "Float[ndarray, 'D D']":
    """Best map P Q^T with r columns found by alternating exact minimisation, in the eigenbasis of Sigma.

    ||M||_* = min over P Q^T = M of (||P||_F^2 + ||Q||_F^2) / 2 turns the cost into one that is quadratic in each
    factor; each half step solves its factor exactly, so the cost never rises.
    """
    values, vectors = np.linalg.eigh(sigma)
    values = np.maximum(values, 0)
    leading = np.eye(len(values))[:, -rank:] * np.sqrt(np.maximum(1 - lam / (2 * values[-rank:]), 0))
    beginnings = [leading] + [rng.standard_normal(leading.shape) for _ in range(starts)]
    maps = (_alternate(values, lam, start) for start in beginnings)
    best = min(maps, key=lambda m: slice_cost(m, np.diag(values), lam))
    return vectors @ best @ vectors.T


def _alternate(
    values: "Float[ndarray, ' D']", lam: float, q: "Float[ndarray, 'D r']", steps: int = 1000
) -> "Float[ndarray, 'D D']":
    """Alternate the two least-squares problems for diagonal Sigma until a step gains less than 1e-13 of tr Sigma."""
    last = np.inf
    p = q
    for _ in range(steps):
        scaled = values[:, None] * q
        # pinv, not solve: at lam = 0 a factor may have columns that no token sees
        p = scaled @ np.linalg.pinv(q.T @ scaled + lam / 2 * np.eye(q.shape[1]), hermitian=True)
        # Q solves Sigma Q P^T P + lam/2 Q = Sigma P, diagonal in the eigenbasis of P^T P
        gram, basis = np.linalg.eigh(p.T @ p)
        bottom = values[:, None] * np.maximum(gram, 0) + lam / 2
        top = values[:, None] * (p @ basis)
        q = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 1e-300) @ basis.T
        left = np.eye(len(values)) - p @ q.T
        cost = float(np.sum(left**2 * values)) + lam / 2 * float(np.sum(p**2) + np.sum(q**2))
        if last - cost <= 1e-13 * float(values.sum()):
            break
        last = cost
    return p @ q.T


def _square(map_: "Float[ndarray, 'D D']", width: int) -> "Float[ndarray, 'D D']":
    matrix = np.asarray(map_, dtype=np.float64)
    if matrix.shape != (width, width) or not np.isfinite(matrix).all():
        raise UsageError(f"the map has shape {matrix.shape}; expected a finite ({width}, {width}), as Sigma has")
    return matrix
