"""Maps kept as factors and improved for a stated time: never worse than given, bounded from below, near the optimum."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.objectives import routed_cost
from sasa_theory.solvers import routed, routed_factors
from synthetic.errors import UsageError


@st.composite
def trained(draw: st.DrawFn) -> tuple[Any, ...]:
    """Tokens, a routing that may leave groups and tokens out, and factors of any quality."""
    n, d, k = draw(st.integers(1, 30)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    rank = draw(st.integers(1, d))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((n, d)) * (rng.random((n, 1)) < 0.9)
    index = np.stack([rng.permutation(k) for _ in range(n)])[:, : draw(st.integers(1, k))]
    index[rng.random(index.shape) < draw(st.sampled_from([0.0, 0.3]))] = -1
    size = draw(st.sampled_from([0.0, 0.1, 0.6]))
    left, right = (list(size * rng.standard_normal((k, d, rank))) for _ in range(2))
    return x, index, left, right


@given(trained(), st.sampled_from([0.02, 0.3, 1e4]))
@settings(deadline=None, max_examples=25)
def test_it_ends_between_the_bound_and_the_start_and_says_what_it_costs(problem: tuple[Any, ...], lam: float) -> None:
    x, index, left, right = problem
    answer = routed_factors.improve(x, index, left, right, lam, seconds=1, rtol=1e-7)
    exact = routed.solve(x, index, len(left), lam, rtol=1e-7)
    slack = 1e-9 * (answer.start + answer.energy)
    given_maps = np.stack([p @ q.T for p, q in zip(left, right, strict=True)])
    assert answer.start == pytest.approx(routed_cost(given_maps, x, index, lam), abs=slack)
    assert sum(routed_factors.cost(x, index, left, right, lam)) == pytest.approx(answer.start, abs=slack)
    maps = np.stack([p @ q.T for p, q in zip(answer.left, answer.right, strict=True)])
    assert answer.primal == pytest.approx(routed_cost(maps, x, index, lam), abs=slack)
    assert (np.diff(answer.history) <= slack).all()
    assert 0 <= answer.dual <= exact.primal + slack
    assert exact.dual - slack <= answer.primal


@given(trained(), st.sampled_from([0.02, 0.3]))
@settings(deadline=None, max_examples=15)
def test_a_cap_on_the_rank_is_kept(problem: tuple[Any, ...], lam: float) -> None:
    x, index, left, right = problem
    answer = routed_factors.improve(x, index, left, right, lam, seconds=1, max_rank=left[0].shape[1])
    assert max(p.shape[1] for p in answer.left) <= left[0].shape[1]
    assert answer.primal <= answer.start + 1e-9 * (answer.start + answer.energy)


def test_from_poor_maps_it_reaches_the_convex_optimum() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((300, 12)) * np.linspace(1, 0.1, 12)
    index = np.stack([rng.choice(5, 2, replace=False) for _ in range(300)])
    left, right = (list(0.3 * rng.standard_normal((5, 12, 2))) for _ in range(2))
    answer = routed_factors.improve(x, index, left, right, 0.05, seconds=20, rtol=1e-8)
    exact = routed.solve(x, index, 5, 0.05, rtol=1e-8)
    assert answer.primal == pytest.approx(exact.primal, rel=1e-5)
    assert answer.gap <= 1e-3 * answer.energy
    assert answer.start > 1.5 * exact.primal  # it had something to do


def test_what_does_not_fit_is_named() -> None:
    x, index, good = np.eye(3), np.zeros((3, 1), dtype=int), [np.ones((3, 2))]
    with pytest.raises(UsageError, match=r"routed\.solve"):
        routed_factors.improve(x, index, good, good, 0.0)
    with pytest.raises(UsageError, match=r"pairs \(D, r\) with D = 3"):
        routed_factors.improve(x, index, good, [np.ones((3, 1))], 0.1)
    with pytest.raises(UsageError, match="max_rank is 0"):
        routed_factors.improve(x, index, good, good, 0.1, max_rank=0)
