"""Part A over generated dimensions, budgets and dictionaries."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proofs_checks import CLAIMS, claims, verify
from proofs_checks.dictionaries import (
    circle,
    coherence,
    equal_lines,
    fitted_pairs,
    log_tube_by_angle,
    repelled_lines,
    squared_distances,
)
from sasa_theory import bounds
from sasa_theory.geometry import sphere
from synthetic.errors import UsageError

claims()


@pytest.mark.parametrize("name", ["A1", "A2", "A3", "A4", "A5"])
def test_part_a_is_as_stated(name):
    verdict = verify(CLAIMS[name])
    assert verdict.as_stated, verdict.to_json()


@given(st.integers(2, 80), st.data())
def test_the_tube_measure_is_a_distribution_function_that_grows_with_the_subspace(d, data):
    k = data.draw(st.integers(1, d - 1))
    low, high = sorted(data.draw(st.tuples(st.floats(0.001, 0.999), st.floats(0.001, 0.999))))
    assert bounds.log_tube_cdf(low, d, k) <= bounds.log_tube_cdf(high, d, k) <= 0
    assert bounds.log_tube_cdf(low, d, k) <= bounds.log_tube_cdf(low, d, k + 1) + 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 400), st.floats(1e-8, 0.9), st.data())
def test_tails_far_below_the_range_of_a_float_agree_with_quadrature(d, t, data):
    k = data.draw(st.integers(1, d - 1))
    assert bounds.log_tube_cdf(t, d, k) == pytest.approx(log_tube_by_angle(t, d, k), rel=1e-6, abs=1e-9)


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0.05, 0.9))
def test_the_count_is_the_first_that_suffices(d, k, eps):
    n = bounds.min_atoms(d, k, eps)
    if k >= d:
        assert n == d
        return
    share = bounds.log_tube_cdf(eps**2, d, k)
    assert bounds.log_binomial(n, k) + share >= -1e-9
    assert n == k or bounds.log_binomial(n - 1, k) + share < 1e-9


@given(st.integers(1, 10**6), st.integers(1, 12), st.integers(1, 64), st.booleans())
def test_the_distortion_floor_falls_with_every_atom_and_is_a_share(n, k, d, signed):
    here, more = (bounds.distortion_floor(count, k, d, signed) for count in (n, 2 * n))
    assert 0 <= more <= here + 1e-12 <= 1 + 1e-12
    assert bounds.distortion_floor(n, k, d, True) <= here + 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(1, 3), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_no_random_or_fitted_dictionary_falls_below_the_floor_on_fresh_points(d, k, extra, seed):
    assume(k < d)
    rng = np.random.default_rng(seed)
    n_atoms = k + extra
    atoms = fitted_pairs(n_atoms, d, k, rng, 300) if k > 1 else sphere(n_atoms, d, rng)
    left = squared_distances(sphere(4000, d, rng), atoms, k)
    # 6 standard errors: hypothesis tries thousands of cases over the years
    assert left.mean() + 6 * left.std() / math.sqrt(len(left)) >= bounds.distortion_floor(n_atoms, k, d)


@given(st.integers(2, 60))
def test_equal_lines_reach_the_bounds_of_the_plane_exactly(n):
    assert coherence(equal_lines(n)) == pytest.approx(bounds.packing_cosine(n, 2), abs=1e-9)
    left = squared_distances(circle(400 * n), equal_lines(n), 1).mean()
    assert left == pytest.approx(bounds.distortion_floor(n, 1, 2), rel=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(3, 6), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_no_repelled_lines_are_farther_apart_than_the_packing_bound(d, n, seed):
    assert coherence(repelled_lines(n, d, np.random.default_rng(seed), 200)) >= bounds.packing_cosine(n, d) - 1e-9


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bounds.min_atoms(4, 1, 1.5), "eps is 1.5"),
        (lambda: bounds.min_atoms(0, 1, 0.5), "d is 0"),
        (lambda: bounds.tube_cdf(math.nan, 4, 1), "t is nan"),
        (lambda: bounds.distortion_floor(4, 1, 2, overflow=1.2), "overflow is 1.2"),
        (lambda: bounds.packing_cosine(1, 3), "at least 2 atoms"),
        (lambda: bounds.tiling_floor(3, 2, -1.0, 0.1), "radius -1.0"),
        (lambda: bounds.tiling_atoms(3, 0.0, 1.0, 0.3), "delta is 0.0"),
    ],
)
def test_impossible_arguments_are_named(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_every_bound_is_defined_in_one_dimension():
    assert bounds.tube_cdf(0.5, 1, 1) == 1
    assert bounds.min_atoms(1, 1, 0.1) == bounds.atom_floor(1, 1, 0.1) == 1
    assert bounds.distortion_floor(1, 1, 1) == 0
    assert bounds.distortion_floor(1, 1, 1, signed=False) == pytest.approx(0.5)
    assert bounds.packing_cosine(2, 1) == 1
    assert bounds.tiling_floor(1, 1, 1.0, 0.3) == pytest.approx(bounds.tiled_limit(1.0, 0.3))
    assert bounds.tiling_atoms(1, 1e-6, 1.0, 0.3) == 1
    assert bounds.basis_slope(np.ones((3, 1)), 0.2) == 0
