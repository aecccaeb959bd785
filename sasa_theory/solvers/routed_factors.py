"""The routed problem of C4 at the size of trained models: maps kept as factors, improved for a stated time.

    min over M_k = P_k Q_k^T of  sum_t w_t ||h_t - sum_{k in S_t} M_k h_t||^2 + lam sum_k ||M_k||_*

One group after another is improved with all others fixed. A visit first adds the directions in which the gradient
2 sum w nu h^T exceeds lam (each with its exact step), then alternates least squares in P and Q, using ||M||_* =
min (||P||_F^2 + ||Q||_F^2) / 2; nothing of size D x D is formed and no step raises the cost. Where it stops is no
optimum: what is known about it is the dual bound, computed from the residual with exact operator norms.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from sasa_theory.arguments import require_count, require_real
from sasa_theory.solvers.routed import members, tokens, weighted_bound
from synthetic.errors import UsageError

#: directions a group may gain in one visit, and rounds of alternating least squares per visit
GROWTH = 4
ROUNDS = 3


@dataclass(frozen=True)
class Solution:
    """Improved maps M_k = left[k] @ right[k].T, their cost, and a lower bound on the cost of any maps.

    left, right  K matrices (D, m_k); m_k = 0 for groups that are off on every token.
    start        cost of the maps given.   primal  cost now.   energy  sum w ||h||^2, the cost of no map at all.
    dual         lower bound from the last residual; 0, which is one too, if none was asked for.
    history      the cost at the start, without the groups that are off on every token, and after each (perhaps
                 interrupted) pass; never increases.
    """

    left: "list[Float[ndarray, 'D m']]"
    right: "list[Float[ndarray, 'D m']]"
    start: float
    primal: float
    dual: float
    energy: float
    history: tuple[float, ...]

    @property
    def gap(self) -> float:
        """primal - dual: at most this much is left to gain, in the units of the cost."""
        return self.primal - self.dual


def improve(
    x: "Float[ndarray, 'n D']",
    index: "Int[ndarray, 'n s']",
    left: "Sequence[Float[ndarray, 'D r']]",
    right: "Sequence[Float[ndarray, 'D r']]",
    lam: float,
    weights: "Float[ndarray, ' n'] | None" = None,
    *,
    seconds: float = 60.0,
    max_rank: int | None = None,
    rtol: float = 1e-6,
    bound: bool = True,
) -> Solution:
    """Improve given maps left[k] @ right[k].T at a fixed routing until a pass gains less than rtol of sum w ||h||^2.

    `seconds` bounds the descent; the dual bound, if asked for, comes on top (about 5 K decompositions of D x D).
    `max_rank` lets no map grow beyond that rank, the model's own class; without it they may grow, and only then can
    the gap close. Arguments otherwise as `routed.solve`, which raises the same errors; UsageError too unless lam > 0
    and the factors fit.
    """
    rows, index = tokens(x, index, len(left), weights)
    require_real("lam", lam, 0)
    if lam == 0:
        raise UsageError("lam is 0, where the problem is one least-squares problem; use routed.solve")
    if max_rank is not None:
        require_count("max_rank", max_rank)
    shapes = {np.shape(p)[:1] for p in (*left, *right)}
    if shapes != {(rows.shape[1],)} or [np.shape(p) for p in left] != [np.shape(q) for q in right]:
        raise UsageError(f"the factors do not fit; expected {len(left)} pairs (D, r) with D = {rows.shape[1]}")
    groups = members(index, len(left))
    energy = float(np.square(rows).sum())

    balanced = [_rebalance(np.asarray(p, float), np.asarray(q, float)) for p, q in zip(left, right, strict=True)]
    ps, qs = [p for p, _ in balanced], [q for _, q in balanced]
    nu = _residual(ps, qs, rows, groups)
    start = _cost(nu, ps, qs, lam)
    # a group that is off everywhere only costs its norm
    empty = np.zeros((rows.shape[1], 0))
    ps = [p if len(on) else empty for p, on in zip(ps, groups, strict=True)]
    qs = [q if len(on) else empty for q, on in zip(qs, groups, strict=True)]

    history = [start, _cost(nu, ps, qs, lam)]
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        for group, on in enumerate(groups):
            if len(on) == 0:
                continue
            if time.monotonic() >= stop:
                break
            seen = rows[on]
            target = nu[on] + (seen @ qs[group]) @ ps[group].T
            ps[group], qs[group] = _fit(seen, target, ps[group], qs[group], lam, max_rank)
            nu[on] = target - (seen @ qs[group]) @ ps[group].T
        nu = _residual(ps, qs, rows, groups)  # afresh: updates in place gather rounding
        history.append(_cost(nu, ps, qs, lam))
        if history[-2] - history[-1] <= rtol * energy:
            break
    dual = weighted_bound(nu, rows, index, groups, lam) if bound else 0.0
    return Solution(ps, qs, start, history[-1], dual, energy, tuple(history))


def cost(
    x: "Float[ndarray, 'n D']",
    index: "Int[ndarray, 'n s']",
    left: "Sequence[Float[ndarray, 'D r']]",
    right: "Sequence[Float[ndarray, 'D r']]",
    lam: float,
    weights: "Float[ndarray, ' n'] | None" = None,
) -> tuple[float, float]:
    """The two terms of the cost of maps left[k] @ right[k].T: sum w ||residual||^2 and lam sum ||M_k||_* (all groups).

    Raises UsageError for shapes or groups that do not fit, lam or weights < 0.
    """
    rows, index = tokens(x, index, len(left), weights)
    require_real("lam", lam, 0)
    nu = _residual(left, right, rows, members(index, len(left)))
    return float(np.square(nu).sum()), lam * sum(_nuclear(p, q) for p, q in zip(left, right, strict=True))


def _fit(
    seen: "Float[ndarray, 'n D']",
    target: "Float[ndarray, 'n D']",
    p: "Float[ndarray, 'D m']",
    q: "Float[ndarray, 'D m']",
    lam: float,
    max_rank: int | None,
) -> "tuple[Float[ndarray, 'D m'], Float[ndarray, 'D m']]":
    """Lower ||target - seen Q P^T||_F^2 + lam ||P Q^T||_* from (p, q): grow, alternate, rebalance."""
    room = min(seen.shape) - p.shape[1] if max_rank is None else max_rank - p.shape[1]
    if room > 0:
        p, q = _grow(seen, target - (seen @ q) @ p.T, p, q, lam, min(room, GROWTH))
    for _ in range(ROUNDS if p.shape[1] else 0):
        coded = seen @ q
        p = (target.T @ coded) @ np.linalg.inv(coded.T @ coded + lam / 2 * np.eye(q.shape[1]))
        q = _right(seen, target @ p, p, q, lam)
    return _rebalance(p, q)


def _grow(
    seen: "Float[ndarray, 'n D']",
    nu: "Float[ndarray, 'n D']",
    p: "Float[ndarray, 'D m']",
    q: "Float[ndarray, 'D m']",
    lam: float,
    room: int,
) -> "tuple[Float[ndarray, 'D m'], Float[ndarray, 'D m']]":
    """Append the leading singular directions u v^T of 2 nu^T seen above lam, each as long as is best.

    With orthonormal u the added cost separates: -a (g - lam) + a^2 ||seen v||^2, g = u^T (2 nu^T seen) v.
    """
    # block power iteration from the longest residuals: fixed, so that a run can be repeated
    longest = np.argsort(-np.square(nu).sum(1), kind="stable")[: room + 2]
    u = np.linalg.qr(nu[longest].T)[0]
    for _ in range(3):
        v = np.linalg.qr(seen.T @ (nu @ u))[0]
        u = np.linalg.qr(nu.T @ (seen @ v))[0]
    core_u, gain, core_v = np.linalg.svd(2 * (nu @ u).T @ (seen @ v))
    u, v = (u @ core_u)[:, :room], (v @ core_v.T)[:, :room]
    gain = gain[:room]
    curvature = np.square(seen @ v).sum(0)
    useful = (gain > lam) & (curvature > 0)
    size = np.sqrt((gain[useful] - lam) / (2 * curvature[useful]))
    return np.hstack([p, u[:, useful] * size]), np.hstack([q, v[:, useful] * size])


def _right(
    seen: "Float[ndarray, 'n D']",
    along: "Float[ndarray, 'n m']",
    p: "Float[ndarray, 'D m']",
    q: "Float[ndarray, 'D m']",
    lam: float,
    steps: int = 8,
) -> "Float[ndarray, 'D m']":
    """Some conjugate-gradient steps from q on seen^T seen Q P^T P + lam/2 Q = seen^T target P; `along` = target P.

    Diagonal in the eigenbasis of P^T P: one system (a_i seen^T seen + lam/2) y_i = b_i per column.
    """
    strength, basis = np.linalg.eigh(p.T @ p)
    strength = np.maximum(strength, 0)

    def apply(y: "Float[ndarray, 'D m']") -> "Float[ndarray, 'D m']":
        return seen.T @ (seen @ y) * strength + lam / 2 * y

    y = q @ basis
    left = seen.T @ (along @ basis) - apply(y)
    direction, size = left.copy(), np.square(left).sum(0)
    for _ in range(steps):
        turned = apply(direction)
        bend = (direction * turned).sum(0)
        length = np.divide(size, bend, out=np.zeros_like(size), where=bend > 0)
        y = y + length * direction
        left = left - length * turned
        after = np.square(left).sum(0)
        direction = left + np.divide(after, size, out=np.zeros_like(size), where=size > 0) * direction
        size = after
    return y @ basis.T


def _rebalance(
    p: "Float[ndarray, 'D m']", q: "Float[ndarray, 'D m']"
) -> "tuple[Float[ndarray, 'D m'], Float[ndarray, 'D m']]":
    """The same product with ||P||_F^2 = ||Q||_F^2 = ||P Q^T||_*, without columns that carry nothing."""
    p_basis, p_core = np.linalg.qr(p)
    q_basis, q_core = np.linalg.qr(q)
    u, values, vt = np.linalg.svd(p_core @ q_core.T)
    kept = values > 1e-12 * max(float(values.max(initial=0.0)), 1e-300)
    root = np.sqrt(values[kept])
    return p_basis @ u[:, kept] * root, q_basis @ vt[kept].T * root


def _nuclear(p: "Float[ndarray, 'D m']", q: "Float[ndarray, 'D m']") -> float:
    """||P Q^T||_* without forming the D x D product."""
    p_core, q_core = np.linalg.qr(p)[1], np.linalg.qr(q)[1]
    return float(np.linalg.norm(p_core @ q_core.T, "nuc"))


def _cost(
    nu: "Float[ndarray, 'n D']",
    ps: "list[Float[ndarray, 'D m']]",
    qs: "list[Float[ndarray, 'D m']]",
    lam: float,
) -> float:
    return float(np.square(nu).sum()) + lam * sum(_nuclear(p, q) for p, q in zip(ps, qs, strict=True))


def _residual(
    ps: "Sequence[Float[ndarray, 'D m']]",
    qs: "Sequence[Float[ndarray, 'D m']]",
    rows: "Float[ndarray, 'n D']",
    groups: "list[Int[ndarray, ' m']]",
) -> "Float[ndarray, 'n D']":
    left = rows.copy()
    for p, q, on in zip(ps, qs, groups, strict=True):
        left[on] -= (rows[on] @ q) @ p.T
    return left
