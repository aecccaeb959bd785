"""The nuclear-norm problem of one group: closed form, dual bound, subdifferential, rank constraint."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.bounds_groups import slice_value
from sasa_theory.objectives import slice_cost
from sasa_theory.solvers import nuclear
from synthetic.errors import UsageError

LAMS = st.sampled_from([0.0, 1e-3, 0.1, 0.5, 2.0, 100.0])


@st.composite
def slices(draw: st.DrawFn, most: int = 6) -> tuple[Any, ...]:
    """A second moment from a random basis and a spectrum with zeros and ties; sometimes the zero matrix."""
    width = draw(st.integers(1, most))
    spectrum = draw(st.lists(st.sampled_from([0.0, 0.01, 0.3, 0.3, 1.0, 4.0]), min_size=width, max_size=width))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    basis = np.linalg.qr(rng.standard_normal((width, width)))[0]
    return (basis * spectrum) @ basis.T, rng


@given(slices(), LAMS)
def test_closed_form_closes_both_certificates(problem: tuple[Any, ...], lam: float) -> None:
    sigma, _ = problem
    solution = nuclear.solve(sigma, lam)
    scale = max(np.trace(sigma), 1e-300)
    assert solution.primal == pytest.approx(slice_value(sigma, lam), abs=1e-12 * scale)
    assert abs(solution.gap) <= 1e-12 * scale
    assert nuclear.subdifferential_distance(solution.map, sigma, lam) <= 1e-12 * (scale + lam)


@given(slices(), LAMS, st.sampled_from([1e-3, 0.1, 1.0, 5.0]))
def test_the_bound_of_any_map_stays_below_the_cost_of_every_map(
    problem: tuple[Any, ...], lam: float, size: float
) -> None:
    sigma, rng = problem
    tried = [size * rng.standard_normal(sigma.shape) for _ in range(3)] + [np.zeros_like(sigma), np.eye(len(sigma))]
    costs = [slice_cost(m, sigma, lam) for m in tried]
    bounds = [nuclear.dual_bound(m, sigma, lam) for m in tried]
    assert max(bounds) <= slice_value(sigma, lam) + 1e-12 * max(np.trace(sigma), 1e-300)
    assert max(bounds) <= min(costs) + 1e-12 * max(np.trace(sigma), 1e-300)
    assert min(bounds) >= 0


@given(slices(), st.sampled_from([1e-3, 0.1, 0.5, 2.0]), st.sampled_from([1e-2, 1.0]))
def test_away_from_the_optimum_the_subdifferential_is_far(problem: tuple[Any, ...], lam: float, size: float) -> None:
    # a convex function falls by at most distance(0, subdifferential) per unit length
    sigma, rng = problem
    best = nuclear.solve(sigma, lam)
    other = best.map + size * rng.standard_normal(sigma.shape)
    excess = slice_cost(other, sigma, lam) - best.primal
    slope = nuclear.subdifferential_distance(other, sigma, lam)
    assert slope * np.linalg.norm(other - best.map) >= excess - 1e-12


def test_subdifferential_distance_by_hand() -> None:
    sigma = np.diag([2.0, 1.0])
    # at M = 0 the set is the operator-norm ball of radius lam = 1: 2 Sigma = diag(4, 2) is 3 and 1 away from it
    assert nuclear.subdifferential_distance(np.zeros((2, 2)), sigma, 1.0) == pytest.approx(math.hypot(3, 1))
    # at M = diag(1/2, 0): tangent part 2 * (1/2) * 2 - 1 = 1; normal part 2 - 1 = 1
    assert nuclear.subdifferential_distance(np.diag([0.5, 0.0]), sigma, 1.0) == pytest.approx(math.sqrt(2))


@given(slices(), LAMS, st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_rank_constrained_maps_are_between_the_bound_and_the_leading_eigenvectors(
    problem: tuple[Any, ...], lam: float, rank: int
) -> None:
    sigma, rng = problem
    solution = nuclear.solve(sigma, lam, rank, starts=2, rng=rng)
    values, vectors = np.linalg.eigh(sigma)
    gains = np.zeros(len(sigma))
    top = values[-rank:] > max(lam / 2, 1e-12)
    gains[-rank:][top] = 1 - lam / (2 * values[-rank:][top])
    truncated = slice_cost((vectors * gains) @ vectors.T, sigma, lam)
    assert np.linalg.matrix_rank(solution.map, tol=1e-9) <= rank
    scale = max(np.trace(sigma), 1e-300)
    assert slice_value(sigma, lam) - 1e-12 * scale <= solution.primal <= truncated + 1e-9 * scale
    if rank >= (values > lam / 2).sum():
        assert solution.primal == pytest.approx(slice_value(sigma, lam), abs=1e-12 * scale)


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.5])
def test_c3_one_group_of_rank_one_pays_for_the_second_direction(lam: float) -> None:
    # tokens e1, e2: at least 1 by Eckart-Young, while the dual of the convex problem is 2 (lam - lam^2 / 4)
    solution = nuclear.solve(np.eye(2), lam, rank=1)
    assert solution.primal >= 1 - 1e-12
    assert solution.dual == pytest.approx(2 * (lam - lam**2 / 4))
    assert solution.primal == pytest.approx(1 + lam - lam**2 / 4, abs=1e-6)


def test_what_is_not_a_problem_is_named() -> None:
    with pytest.raises(UsageError, match="symmetric"):
        nuclear.solve(np.array([[1.0, 1.0], [0.0, 1.0]]), 0.1)
    with pytest.raises(UsageError, match="lam is -1"):
        nuclear.solve(np.eye(2), -1)
    with pytest.raises(UsageError, match="rank is 0"):
        nuclear.solve(np.eye(2), 0.1, rank=0)
    with pytest.raises(UsageError, match=r"\(3, 3\)"):
        nuclear.dual_bound(np.eye(3), np.eye(2), 0.1)
