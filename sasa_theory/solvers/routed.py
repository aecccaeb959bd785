"""Several groups at a given routing: the convex problem of C4, with a dual bound.

    min over M_1..M_K of  sum_t w_t ||h_t - sum_{k in S_t} M_k h_t||^2 + lam sum_k ||M_k||_*

The tokens of one routing pattern S matter only through their second moment, so no pattern needs more than D rows. The
solver is FISTA with a step of its own for every group, singular-value thresholding, and a restart whenever the momentum
points uphill. Any residual nu gives a lower bound: replace ||v||^2 by its tangents 2 nu.v - ||nu||^2 and minimise over
the maps, which leaves

    2 sum_t w_t nu_t.h_t - sum_t w_t ||nu_t||^2    wherever ||2 sum_{t: k in S_t} w_t nu_t h_t^T||_op <= lam for all k.

`solve` keeps dense maps and is meant for small cases; `routed_factors` works in factors at the size of trained models.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from sasa_theory.arguments import require_count, require_real
from sasa_theory.geometry import as_matrix
from sasa_theory.solvers.nuclear import scaled_value
from synthetic.errors import UsageError


@dataclass(frozen=True)
class Solution:
    """Maps of all groups at a fixed routing, what they cost, and a lower bound on what any maps cost.

    maps  (K, D, D), acting on column vectors.  energy  sum w ||h||^2, the cost of no map at all.
    """

    maps: "Float[ndarray, 'K D D']"
    primal: float
    dual: float
    energy: float
    iterations: int

    @property
    def gap(self) -> float:
        """primal - dual: at most this much is left to gain, in the units of the cost."""
        return self.primal - self.dual


def solve(
    x: "Float[ndarray, 'n D']",
    index: "Int[ndarray, 'n s']",
    n_groups: int,
    lam: float,
    weights: "Float[ndarray, ' n'] | None" = None,
    *,
    rtol: float = 1e-8,
    max_iterations: int = 20_000,
) -> Solution:
    """The best maps at a given routing, until the duality gap is at most rtol sum w ||h||^2 (C4).

    x (n, D) tokens, `index` (n, s) the groups that are on (-1 pads), weights w (n,), 1 / n unless given; lam and the
    values are in the units of w ||h||^2. It stops after `max_iterations` at the latest: look at the gap. At lam = 0 it
    is one least-squares problem and the bound holds up to rounding. Memory K D^2. Raises UsageError for shapes or
    groups that do not fit, lam or weights < 0.
    """
    rows, index = tokens(x, index, n_groups, weights)
    require_real("lam", lam, 0)
    energy = float(np.square(rows).sum())
    rows, index = _compress(rows, index)
    groups = members(index, n_groups)
    if lam == 0:
        maps, residual = _least_squares(rows, groups)
        primal = float(np.square(residual).sum())
        return Solution(maps, primal, 2 * float(np.sum(residual * rows)) - primal, energy, 0)
    return _fista(rows, index, groups, lam, rtol * energy, energy, max_iterations)


def dual_bound(
    residual: "Float[ndarray, 'n D']",
    x: "Float[ndarray, 'n D']",
    index: "Int[ndarray, 'n s']",
    n_groups: int,
    lam: float,
    weights: "Float[ndarray, ' n'] | None" = None,
) -> float:
    """A lower bound on the cost of all maps at this routing, from any residuals h_t - sum_{k in S_t} M_k h_t (C4).

    The residuals are made dual feasible first (see `weighted_bound`). Tokens without a group cost their energy. Raises
    UsageError for shapes or groups that do not fit, lam or weights < 0.
    """
    rows, index = tokens(x, index, n_groups, weights)
    nu, _ = tokens(residual, index, n_groups, weights)
    require_real("lam", lam, 0)
    if nu.shape != rows.shape:
        raise UsageError(f"the residual has shape {nu.shape}; expected {rows.shape}, as x has")
    return weighted_bound(nu, rows, index, members(index, n_groups), lam)


def weighted_bound(
    nu: "Float[ndarray, 'n D']",
    rows: "Float[ndarray, 'n D']",
    index: "Int[ndarray, 'n s']",
    groups: "list[Int[ndarray, ' m']]",
    lam: float,
    rounds: int = 2,
) -> float:
    """`dual_bound` with sqrt(w) already multiplied into the residuals and the tokens.

    Scaling all residuals by lam / max_k ||.||_op lets the worst group spoil the bound. So each round first takes from
    each group what its constraint forbids: with 2 sum nu h^T = U diag(g) V^T, the residuals of its tokens lose the
    share 1 - lam / g_i of their component along every u_i with g_i > lam, after which this group is feasible. Tokens in
    several groups undo a little of it, and the rest is scaled away. Every round's value is a bound; the best counts.
    """
    on_none = np.all(index < 0, axis=1)
    constant = float(np.square(rows[on_none]).sum())
    nu = np.where(on_none[:, None], 0.0, nu)
    best = 0.0
    for clipped in range(rounds + 1):
        if clipped:
            for on in groups:
                nu[on] = _clip(nu[on], rows[on], lam)
        largest = _largest_norm(nu, rows, groups)
        best = max(best, scaled_value(float(np.sum(nu * rows)), float(np.square(nu).sum()), largest, lam))
    return constant + best


def _clip(nu: "Float[ndarray, 'm D']", rows: "Float[ndarray, 'm D']", lam: float) -> "Float[ndarray, 'm D']":
    """Residuals of one group's tokens, changed so that ||2 sum nu h^T||_op <= lam."""
    gram = _gram(nu, rows)
    if np.linalg.norm(gram) <= lam**2:
        return nu
    # not scipy's eigh for part of the spectrum: LAPACK's evr fails on clusters, and at an optimum many g_i equal lam
    squares, u = np.linalg.eigh(gram)
    u = u[:, squares > lam**2]
    return nu - (nu @ u * (1 - lam / np.sqrt(squares[squares > lam**2]))) @ u.T


def _largest_norm(
    nu: "Float[ndarray, 'n D']", rows: "Float[ndarray, 'n D']", groups: "list[Int[ndarray, ' m']]"
) -> float:
    """max_k ||2 sum_{t in k} nu_t h_t^T||_op; exact, because a bound must not rest on an iteration's word."""
    largest = 0.0
    for on in groups:
        gram = _gram(nu[on], rows[on])
        if np.linalg.norm(gram) > largest:  # no smaller than the largest eigenvalue, and far cheaper
            largest = max(largest, float(np.linalg.eigvalsh(gram)[-1]))
    return math.sqrt(largest)


def _gram(nu: "Float[ndarray, 'm D']", rows: "Float[ndarray, 'm D']") -> "Float[ndarray, 'D D']":
    """G G^T of G = 2 sum nu h^T, whose eigenvalues are the squared singular values of G."""
    product = 2 * nu.T @ rows
    return product @ product.T


def tokens(
    x: "Float[ndarray, 'n D']",
    index: "Int[ndarray, 'n s']",
    n_groups: int,
    weights: "Float[ndarray, ' n'] | None" = None,
) -> "tuple[Float[ndarray, 'n D'], Int[ndarray, 'n s']]":
    """Rows sqrt(w_t) h_t and the routing, checked; UsageError says what does not fit."""
    x, index = as_matrix(x, "x"), np.asarray(index)
    require_count("n_groups", n_groups)
    if index.ndim != 2 or len(index) != len(x) or len(x) == 0 or not np.issubdtype(index.dtype, np.integer):
        raise UsageError(
            f"x has shape {x.shape}, index {index.shape} {index.dtype}; expected (n, D) and integers (n, s), n >= 1"
        )
    if index.size and not (index.min() >= -1 and index.max() < n_groups):
        raise UsageError(f"index holds groups {index.min()} to {index.max()}; expected -1 (none) to {n_groups - 1}")
    ordered = np.sort(index, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise UsageError("a token names the same group twice; name each group once and pad with -1")
    shares = np.full(len(x), 1 / len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != (len(x),) or not ((shares >= 0) & np.isfinite(shares)).all():
        raise UsageError(f"weights have shape {shares.shape}; expected ({len(x)},), finite and none negative")
    return x * np.sqrt(shares)[:, None], index


def members(index: "Int[ndarray, 'n s']", n_groups: int) -> "list[Int[ndarray, ' m']]":
    """For each group the tokens that have it on."""
    width = index.shape[1]
    flat = index.ravel()
    order = np.argsort(flat, kind="stable")
    ends = np.searchsorted(flat[order], np.arange(n_groups + 1))
    return [order[ends[k] : ends[k + 1]] // width for k in range(n_groups)]


def _compress(
    rows: "Float[ndarray, 'n D']", index: "Int[ndarray, 'n s']"
) -> "tuple[Float[ndarray, 'm D'], Int[ndarray, 'm s']]":
    """Replace the tokens of each routing pattern by at most D rows with the same second moment."""
    patterns, which = np.unique(np.sort(index, axis=1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    kept, owners = [], []
    for pattern in range(len(patterns)):
        part = rows[which == pattern]
        part = np.linalg.qr(part, mode="r") if len(part) > part.shape[1] else part
        kept.append(part)
        owners.append(np.repeat(patterns[pattern][None], len(part), axis=0))
    return np.concatenate(kept), np.concatenate(owners)


def _least_squares(
    rows: "Float[ndarray, 'n D']", groups: "list[Int[ndarray, ' m']]"
) -> "tuple[Float[ndarray, 'K D D'], Float[ndarray, 'n D']]":
    """Maps of least norm and their residual at lam = 0: one design matrix for every output coordinate."""
    n, width = rows.shape
    design = np.zeros((n, len(groups), width))
    for group, on in enumerate(groups):
        design[on, group] = rows[on]
    flat = design.reshape(n, -1)
    coefficients = np.linalg.lstsq(flat, rows, rcond=None)[0]
    return coefficients.reshape(len(groups), width, width).transpose(0, 2, 1), rows - flat @ coefficients


def _fista(
    rows: "Float[ndarray, 'n D']",
    index: "Int[ndarray, 'n s']",
    groups: "list[Int[ndarray, ' m']]",
    lam: float,
    target: float,
    energy: float,
    max_iterations: int,
) -> Solution:
    """Accelerated proximal gradient; every tenth iteration prices the point and its dual bound."""
    width = rows.shape[1]
    # ||sum_{k in S} M_k h||^2 <= |S| sum_k ||M_k h||^2 bounds the curvature group by group
    crowd = np.sqrt((index >= 0).sum(axis=1))
    curvature = np.array([2 * np.linalg.norm(rows[on] * crowd[on, None], 2) ** 2 if len(on) else 0.0 for on in groups])
    step = np.divide(1.0, curvature, out=np.zeros_like(curvature), where=curvature > 0)[:, None, None]

    maps = np.zeros((len(groups), width, width))
    best, best_value, bound = maps, energy, 0.0
    ahead, momentum = maps, 1.0
    iteration = 0
    for iteration in range(1, max_iterations + 1):
        slope = _gradient(_residual(ahead, rows, groups), rows, groups)
        moved, nuclear_norm = _threshold(ahead - step * slope, lam * step[:, 0, 0])
        uphill = float(np.sum((ahead - moved) * (moved - maps) * curvature[:, None, None])) > 0
        after = 1.0 if uphill else (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved if uphill else moved + (momentum - 1) / after * (moved - maps)
        maps, momentum = moved, after
        if iteration % 10 == 0 or iteration == max_iterations:
            nu = _residual(maps, rows, groups)
            value = float(np.square(nu).sum()) + lam * nuclear_norm
            if value < best_value:
                best, best_value = maps, value
            bound = max(bound, weighted_bound(nu, rows, index, groups, lam))
            if best_value - bound <= target:
                break
    return Solution(best, best_value, bound, energy, iteration)


def _residual(
    maps: "Float[ndarray, 'K D D']", rows: "Float[ndarray, 'n D']", groups: "list[Int[ndarray, ' m']]"
) -> "Float[ndarray, 'n D']":
    left = rows.copy()
    for map_, on in zip(maps, groups, strict=True):
        left[on] -= rows[on] @ map_.T
    return left


def _gradient(
    nu: "Float[ndarray, 'n D']", rows: "Float[ndarray, 'n D']", groups: "list[Int[ndarray, ' m']]"
) -> "Float[ndarray, 'K D D']":
    return np.stack([-2 * nu[on].T @ rows[on] for on in groups])


def _threshold(
    maps: "Float[ndarray, 'K D D']", amounts: "Float[ndarray, ' K']"
) -> "tuple[Float[ndarray, 'K D D'], float]":
    """Shrink all singular values of map k by amounts[k]; also the nuclear norm that is left, summed over maps."""
    u, values, vt = np.linalg.svd(maps, full_matrices=False)
    values = np.maximum(values - amounts[:, None], 0)
    return (u * values[:, None, :]) @ vt, float(values.sum())
