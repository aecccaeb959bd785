"""The fast solvers against the same problems in cvxpy, degenerate ones included."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.solvers import group_lasso, lasso, nuclear, reference, routed
from synthetic.errors import UsageError

FEW = settings(max_examples=12, deadline=None)


@st.composite
def codings(draw: st.DrawFn) -> tuple[Any, ...]:
    """Atoms with duplicates, zeros and any norm; a sample that is sometimes zero."""
    n_atoms, width = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    atoms = rng.standard_normal((n_atoms, width))
    if draw(st.booleans()):
        atoms[-1] = draw(st.sampled_from([0.0, 1.0, -1.0])) * atoms[0]
    x = rng.standard_normal(width) * draw(st.sampled_from([0.0, 1.0, 3.0]))
    return atoms, x


@given(codings(), st.sampled_from([0.0, 0.1, 1.0, 1e3]), st.booleans())
@FEW
def test_the_lasso_and_its_dual_are_one_number(problem: tuple[Any, ...], lam: float, signed: bool) -> None:
    atoms, x = problem
    primal, dual = reference.lasso(atoms, x, lam, signed), reference.lasso_dual(atoms, x, lam, signed)
    assert primal.value == pytest.approx(dual.value, abs=1e-7 * (1 + x @ x))
    assert primal.point.shape == (len(atoms),) and dual.point.shape == x.shape
    # the dual point is the residual
    assert x - atoms.T @ primal.point == pytest.approx(dual.point, abs=1e-3 * (1 + float(np.linalg.norm(x))))


@given(codings(), st.sampled_from([0.0, 1e-3, 0.1, 1.0, 1e3]), st.booleans())
@FEW
def test_codes_of_the_working_set_solver(problem: tuple[Any, ...], lam: float, signed: bool) -> None:
    atoms, x = problem
    answer, solution = reference.lasso(atoms, x, lam, signed), lasso.solve(atoms, x[None], lam, signed=signed)
    slack = 2e-6 * (x @ x) + 1e-8
    assert solution.primal[0] == pytest.approx(answer.value, abs=slack)
    assert solution.dual[0] <= answer.value + slack


@given(codings(), st.sampled_from([0.1, 1.0]))
@FEW
def test_groups_of_one_atom_are_the_lasso(problem: tuple[Any, ...], lam: float) -> None:
    atoms, x = problem
    grouped = reference.group_lasso(atoms, np.arange(len(atoms)), x, lam)
    assert grouped.value == pytest.approx(reference.lasso(atoms, x, lam).value, abs=1e-7 * (1 + x @ x))


@given(codings(), st.data(), st.sampled_from([1e-3, 0.1, 1.0, 1e3]))
@FEW
def test_codes_of_the_group_solver(problem: tuple[Any, ...], data: st.DataObject, lam: float) -> None:
    atoms, x = problem
    groups = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(atoms), max_size=len(atoms))))
    answer, solution = reference.group_lasso(atoms, groups, x, lam), group_lasso.solve(atoms, groups, x[None], lam)
    slack = 2e-6 * (x @ x) + 1e-8
    assert solution.primal[0] == pytest.approx(answer.value, abs=slack)
    assert solution.dual[0] <= answer.value + slack


def test_one_orthonormal_group_reaches_the_tiled_limit() -> None:
    # B3: lam ||h|| - lam^2 / 2 for ||h|| >= lam
    x = np.array([3.0, 4.0])
    assert reference.group_lasso(np.eye(2), np.zeros(2, dtype=int), x, 2.0).value == pytest.approx(2 * 5 - 2)


@st.composite
def slices(draw: st.DrawFn) -> np.ndarray:
    width = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = rng.standard_normal((draw(st.integers(0, 6)), width))  # fewer rows than width: rank-deficient
    return rows.T @ rows / max(len(rows), 1)


@given(slices(), st.sampled_from([0.0, 0.1, 1.0, 50.0]))
@FEW
def test_the_closed_form_of_one_group(sigma: np.ndarray, lam: float) -> None:
    answer, solution = reference.slice_problem(sigma, lam), nuclear.solve(sigma, lam)
    scale = 1 + np.trace(sigma)
    assert answer.value == pytest.approx(solution.primal, abs=1e-6 * scale)
    if lam > 0:  # at lam = 0 the map is unique on the range of Sigma only
        assert answer.point == pytest.approx(solution.map, abs=1e-3)


@given(st.data())
@FEW
def test_routed_maps(data: st.DataObject) -> None:
    n, width, groups = (data.draw(st.integers(1, most)) for most in (6, 3, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((n, width)) * (rng.random((n, 1)) < 0.8)
    index = np.stack([rng.permutation(groups) for _ in range(n)])[:, : data.draw(st.integers(1, groups))]
    index[rng.random(index.shape) < 0.2] = -1
    lam = data.draw(st.sampled_from([0.0, 0.1, 0.5, 50.0]))
    weights = data.draw(st.sampled_from([None, rng.random(n)]))
    solution = routed.solve(x, index, groups, lam, weights)
    answer = reference.routed_problem(x, index, groups, lam, weights)
    assert solution.primal == pytest.approx(answer.value, abs=1e-5 * (1 + solution.energy))
    assert solution.gap <= 1e-7 * (1e-9 + solution.energy)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UsageError, match="one finite sample of width 2"):
        reference.lasso(np.eye(2), np.ones(3), 0.1)
    with pytest.raises(UsageError, match="one group per atom"):
        reference.group_lasso(np.eye(2), np.zeros(3, dtype=int), np.ones(2), 0.1)
    with pytest.raises(UsageError, match="one row per token"):
        reference.routed_problem(np.eye(2), np.zeros((3, 1), dtype=int), 1, 0.1)
