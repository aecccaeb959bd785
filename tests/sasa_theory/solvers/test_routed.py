"""Several groups at a given routing: the solver's gap, the dual bound, and the examples of C2 and C4."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.bounds_groups import simplex_costs, slice_value, soft_routing_floor
from sasa_theory.objectives import routed_cost
from sasa_theory.solvers import nuclear, routed
from synthetic.errors import UsageError


@st.composite
def routings(draw: st.DrawFn, width: int = 4, tokens: int = 12, groups: int = 4) -> tuple[Any, ...]:
    """Tokens (some zero, sometimes all in a plane), a routing padded with -1, weights with zeros."""
    n, d, k = draw(st.integers(1, tokens)), draw(st.integers(1, width)), draw(st.integers(1, groups))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((n, d)) * (rng.random((n, 1)) < 0.9)
    x[:, draw(st.integers(1, d)) :] = 0
    s = draw(st.integers(1, k))
    index = np.stack([rng.choice(k, s, replace=False) for _ in range(n)])
    index[rng.random(index.shape) < draw(st.sampled_from([0.0, 0.3]))] = -1
    weights = rng.choice([0.0, 0.5, 1.0, 2.0], n)
    return x, index, k, weights, rng


@given(routings(), st.sampled_from([0.05, 0.3, 1.0, 1e4]))
@settings(deadline=None)
def test_the_gap_closes_and_nothing_tried_is_below_the_bound(problem: tuple[Any, ...], lam: float) -> None:
    x, index, k, weights, rng = problem
    solution = routed.solve(x, index, k, lam, weights, rtol=1e-7)
    assert solution.gap <= 1e-7 * solution.energy
    assert routed_cost(solution.maps, x, index, lam, weights) == pytest.approx(solution.primal, rel=1e-9, abs=1e-12)
    for size in (0.01, 0.3):
        other = solution.maps + size * rng.standard_normal(solution.maps.shape)
        assert routed_cost(other, x, index, lam, weights) >= solution.dual - 1e-12


@given(routings(), st.sampled_from([0.01, 0.3, 1e4]), st.sampled_from([0.0, 0.1, 1.0, 10.0]))
@settings(deadline=None)
def test_the_bound_of_any_residual_is_below_the_optimum(problem: tuple[Any, ...], lam: float, size: float) -> None:
    x, index, k, weights, rng = problem
    solution = routed.solve(x, index, k, lam, weights, rtol=1e-7)
    nu = x + size * rng.standard_normal(x.shape)
    assert routed.dual_bound(nu, x, index, k, lam, weights) <= solution.primal + 1e-12 * solution.energy


@given(routings())
@settings(deadline=None)
def test_without_a_penalty_it_is_least_squares(problem: tuple[Any, ...]) -> None:
    x, index, k, weights, rng = problem
    solution = routed.solve(x, index, k, 0.0, weights)
    assert abs(solution.gap) <= 1e-10 * solution.energy
    assert routed_cost(solution.maps, x, index, 0.0, weights) == pytest.approx(solution.primal, abs=1e-9)
    other = solution.maps + 0.1 * rng.standard_normal(solution.maps.shape)
    assert routed_cost(other, x, index, 0.0, weights) >= solution.primal - 1e-9


@given(routings(groups=1), st.sampled_from([0.0, 0.1, 1.0]))
@settings(deadline=None)
def test_one_group_for_all_tokens_is_the_closed_form(problem: tuple[Any, ...], lam: float) -> None:
    x, _, _, weights, _ = problem
    sigma = (x * weights[:, None]).T @ x
    solution = routed.solve(x, np.zeros((len(x), 1), dtype=int), 1, lam, weights, rtol=1e-8)
    assert solution.primal == pytest.approx(slice_value(sigma, lam), abs=2e-8 * max(np.trace(sigma), 1e-300))
    best = nuclear.solve(sigma, lam)
    assert solution.dual <= best.primal + 1e-12 * np.trace(sigma)


@given(routings(), st.sampled_from([0.05, 0.5]))
@settings(deadline=None)
def test_hard_routing_splits_into_slices_and_never_beats_one_group(problem: tuple[Any, ...], lam: float) -> None:
    # C2: sum_k tr f(Sigma_k) >= tr f(Sigma); the solver finds the left side without knowing the closed form
    x, index, k, weights, _ = problem
    hard = np.maximum(index[:, :1], 0)
    parts = [(x * (weights * (hard[:, 0] == g))[:, None]).T @ x for g in range(k)]
    solution = routed.solve(x, hard, k, lam, weights, rtol=1e-8)
    exact = sum(slice_value(part, lam) for part in parts)
    assert solution.primal == pytest.approx(exact, abs=2e-8 * max(solution.energy, 1e-300))
    assert exact >= slice_value(sum(parts), lam) - 1e-12 * solution.energy


@given(routings(), st.sampled_from([0.05, 0.5]))
@settings(deadline=None)
def test_soft_routing_never_goes_below_its_floor(problem: tuple[Any, ...], lam: float) -> None:
    x, index, k, weights, _ = problem
    solution = routed.solve(x, index, k, lam, weights, rtol=1e-7)
    assert solution.primal >= soft_routing_floor((x * weights[:, None]).T @ x, lam) - 1e-12 * solution.energy


def test_c4_two_soft_groups_beat_one() -> None:
    p, lam = 0.3, 0.4
    x = np.array([[math.cos(p), math.sin(p)], [math.cos(p), -math.sin(p)]])
    index, ones = np.array([[0, 2], [1, 2]]), np.ones(2)
    code, common = (math.sin(p) * math.cos(p) - lam / 2) / math.cos(p) ** 2, 1 - lam / (4 * math.cos(p) ** 2)
    maps = np.zeros((3, 2, 2))
    maps[2, 0, 0], maps[0, 1, 0], maps[1, 1, 0] = common, code, -code
    solution = routed.solve(x, index, 3, lam, ones, rtol=1e-9)
    assert nuclear.solve(x.T @ x, lam).dual == pytest.approx(0.55275, abs=5e-6)
    assert routed_cost(maps, x, index, lam, ones) == pytest.approx(0.53790, abs=5e-6)
    assert solution.primal == pytest.approx(0.52145, abs=5e-6)
    assert solution.gap <= 1e-8


@pytest.mark.parametrize("d", [2, 3, 5])
def test_c4_the_simplex_family_is_feasible_and_the_optimum_is_lower(d: int) -> None:
    angle, lam = 0.3, 0.1
    corners = np.linalg.qr(np.eye(d) - 1 / d)[0]
    corners = (np.eye(d) - 1 / d) @ corners[:, : d - 1]
    corners /= np.linalg.norm(corners, axis=1, keepdims=True)
    x = np.column_stack([np.full(d, math.cos(angle)), math.sin(angle) * corners])
    index = np.column_stack([np.zeros(d, dtype=int), np.arange(1, d + 1)])
    costs = simplex_costs(d, angle, lam)
    solution = routed.solve(x, index, d + 1, lam, np.ones(d), rtol=1e-8)
    assert nuclear.solve(x.T @ x, lam).primal == pytest.approx(costs.single)
    assert solution.dual <= costs.shared < costs.single


def test_tokens_without_a_group_cost_their_energy_and_no_bound_is_lost() -> None:
    x = np.array([[3.0, 0.0], [0.0, 1.0]])
    solution = routed.solve(x, np.array([[-1], [0]]), 2, 0.5, np.ones(2))
    assert solution.primal == pytest.approx(9 + 0.5 - 0.25 / 4)
    assert solution.gap <= 1e-8 * solution.energy


def test_a_bad_group_does_not_spoil_the_bound_of_another() -> None:
    # disjoint groups: the group whose map is poor is scaled by itself, so half of the optimum is still certified
    x, index = np.eye(2), np.array([[0], [1]])
    nu = np.diag([0.25, 1.0])  # the residual of the best map of group 0 at lam = 1/2, none for group 1
    optimum = 0.5 - 0.5**2 / 4
    assert routed.dual_bound(nu, x, index, 2, 0.5, np.ones(2)) == pytest.approx(2 * optimum)


def test_what_is_not_a_problem_is_named() -> None:
    x = np.eye(2)
    with pytest.raises(UsageError, match="same group twice"):
        routed.solve(x, np.array([[0, 0], [0, 1]]), 2, 0.1)
    with pytest.raises(UsageError, match="groups -2 to 1"):
        routed.solve(x, np.array([[-2, 0], [0, 1]]), 2, 0.1)
    with pytest.raises(UsageError, match="weights"):
        routed.solve(x, np.array([[0], [1]]), 2, 0.1, np.array([1.0, -1.0]))
    with pytest.raises(UsageError, match="integers"):
        routed.solve(x, np.array([[0.0], [1.0]]), 2, 0.1)
    with pytest.raises(UsageError, match="residual"):
        routed.dual_bound(np.eye(3)[:2], x, np.array([[0], [1]]), 2, 0.1)
