"""The solvers' problems written down a second time in cvxpy: an independent oracle, slow and general.

Each function states its problem as in THEORY.md and hands it to a conic solver (Clarabel for cones and quadratics, SCS
for nuclear norms, where Clarabel is far slower). Nothing of the fast solvers is shared. cvxpy is imported on first use.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from sasa_theory.arguments import require_real, second_moment
from sasa_theory.geometry import as_matrix
from synthetic.errors import LabError, UsageError


class Answer(NamedTuple):
    """The optimal value the conic solver reports, and the point that reaches it."""

    value: float
    point: ndarray


def lasso(atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, ' D']", lam: float, signed: bool = True) -> "Answer":
    """min_a 1/2 ||x - D a||^2 + lam ||a||_1 for one sample, a >= 0 unless `signed`; the point is a (N,) (B).

    Raises UsageError for shapes that do not fit or lam < 0, LabError when the solver gives up.
    """
    import cvxpy as cp

    atoms, x = _sample(atoms, x, lam)
    a = cp.Variable(len(atoms), nonneg=not signed)
    value = _minimise(0.5 * cp.sum_squares(x - atoms.T @ a) + lam * cp.norm1(a))
    return Answer(value, np.asarray(a.value))


def lasso_dual(atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, ' D']", lam: float, signed: bool = True) -> "Answer":
    """The same value from the other side: 1/2 ||x||^2 - 1/2 dist(x, lam P*)^2; the point is the projection u (D,) (B1).

    lam P* = {u : |<d_j, u>| <= lam}, one-sided for non-negative codes. Raises as `lasso`.
    """
    import cvxpy as cp

    atoms, x = _sample(atoms, x, lam)
    u = cp.Variable(len(x))
    limits = [atoms @ u <= lam] + ([atoms @ u >= -lam] if signed else [])
    distance = _minimise(0.5 * cp.sum_squares(x - u), limits)
    return Answer(float(x @ x) / 2 - distance, np.asarray(u.value))


def group_lasso(
    atoms: "Float[ndarray, 'N D']", groups: "Int[ndarray, ' N']", x: "Float[ndarray, ' D']", lam: float
) -> "Answer":
    """min_a 1/2 ||x - D a||^2 + lam sum_g ||a_g||_2, `groups` the group of each atom; the point is a (N,) (B3).

    Raises as `lasso`, UsageError too when groups are not one per atom.
    """
    import cvxpy as cp

    atoms, x = _sample(atoms, x, lam)
    groups = np.asarray(groups)
    if groups.shape != (len(atoms),):
        raise UsageError(f"groups have shape {groups.shape}; expected one group per atom, ({len(atoms)},)")
    a = cp.Variable(len(atoms))
    norms = sum(cp.norm2(a[np.flatnonzero(groups == g)]) for g in np.unique(groups))
    value = _minimise(0.5 * cp.sum_squares(x - atoms.T @ a) + lam * norms)
    return Answer(value, np.asarray(a.value))


def slice_problem(sigma: "Float[ndarray, 'D D']", lam: float, accuracy: float = 1e-9) -> "Answer":
    """min_M tr((I - M) Sigma (I - M)^T) + lam ||M||_*; the point is M (D, D) (C1).

    `accuracy` is SCS's tolerance. Raises UsageError when Sigma is no second moment or lam < 0, LabError when the solver
    gives up.
    """
    import cvxpy as cp

    sigma = second_moment("Sigma", sigma)
    require_real("lam", lam, 0)
    m = cp.Variable(sigma.shape)
    cost = cp.sum_squares((np.eye(len(sigma)) - m) @ _root(sigma)) + lam * cp.normNuc(m)
    return Answer(_minimise(cost, solver="SCS", accuracy=accuracy), np.asarray(m.value))


def routed_problem(
    x: "Float[ndarray, 'n D']",
    index: "Int[ndarray, 'n s']",
    n_groups: int,
    lam: float,
    weights: "Float[ndarray, ' n'] | None" = None,
    accuracy: float = 1e-8,
) -> "Answer":
    """min sum_t w_t ||x_t - sum_{k in S_t} M_k x_t||^2 + lam sum_k ||M_k||_*; the point is (K, D, D) (C4).

    S_t are the groups in row t of `index` (-1: none), weights 1 / n unless given. Raises UsageError for shapes that do
    not fit or lam < 0, LabError when the solver gives up.
    """
    import cvxpy as cp

    x, index = as_matrix(x, "x"), np.asarray(index)
    require_real("lam", lam, 0)
    if index.ndim != 2 or len(index) != len(x):
        raise UsageError(f"index has shape {index.shape}; expected ({len(x)}, s), one row per token")
    shares = np.full(len(x), 1 / max(len(x), 1)) if weights is None else np.asarray(weights, dtype=np.float64)
    maps = [cp.Variable((x.shape[1], x.shape[1])) for _ in range(n_groups)]
    cost: Any = lam * sum(cp.normNuc(m) for m in maps)
    for token, row, share in zip(x, index, shares, strict=True):
        on = [maps[k] @ token for k in row if k >= 0]
        cost = cost + share * cp.sum_squares(token - sum(on, np.zeros(len(token))))
    value = _minimise(cost, solver="SCS", accuracy=accuracy)
    return Answer(value, np.stack([np.asarray(m.value) for m in maps]))


def _minimise(cost: Any, limits: Any = (), solver: str = "CLARABEL", accuracy: float = 1e-10) -> float:
    """The minimum to `accuracy`, or to 1e-8 or 1e-6 where the solver stops short of it."""
    import cvxpy as cp

    problem = cp.Problem(cp.Minimize(cost), list(limits))
    for goal in sorted({accuracy, max(accuracy, 1e-8), max(accuracy, 1e-6)}):
        settings: dict[str, Any] = (
            {"eps_abs": goal, "eps_rel": goal, "max_iters": 200_000}
            if solver == "SCS"
            else {"tol_gap_abs": goal, "tol_gap_rel": goal, "tol_feas": goal}
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Solution may be inaccurate")
                value = problem.solve(solver=solver, **settings)
        except cp.SolverError:
            continue
        if problem.status == cp.OPTIMAL:
            return float(value)
    raise LabError(f"{solver} stopped with status {problem.status!r}; scale the problem to values near 1")


def _sample(
    atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, ' D']", lam: float
) -> "tuple[Float[ndarray, 'N D'], Float[ndarray, ' D']]":
    atoms, x = as_matrix(atoms, "atoms"), np.asarray(x, dtype=np.float64)
    require_real("lam", lam, 0)
    if x.shape != (atoms.shape[1],) or not np.isfinite(x).all():
        raise UsageError(f"x has shape {x.shape}; expected one finite sample of width {atoms.shape[1]}")
    return atoms, x


def _root(sigma: "Float[ndarray, 'D D']") -> "Float[ndarray, 'D D']":
    values, vectors = np.linalg.eigh(sigma)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
