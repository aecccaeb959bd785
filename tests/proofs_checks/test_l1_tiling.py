"""B4: the floor against quadrature and against dictionaries of every kind hypothesis can think of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proofs_checks import CLAIMS, Bench, verify
from proofs_checks.l1_measures import excess_at_large_n, floor_by_angle, gathered_excess
from proofs_checks.l1_tiling import tiling_excess
from sasa_theory import bounds
from sasa_theory.geometry import sphere
from sasa_theory.solvers import tiling

seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 500), st.integers(1, 12), st.floats(0.05, 3), st.floats(0.02, 2), st.booleans())
def test_the_floor_is_its_integral_over_the_angle(n_atoms, d, radius, lam, signed):
    ours = bounds.tiling_floor(n_atoms, d, radius, lam, signed)
    assert ours == pytest.approx(floor_by_angle(n_atoms, d, radius, lam, signed), rel=1e-8)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 7), st.floats(0.05, 0.9), st.booleans())
def test_the_excess_has_its_leading_order(d, lam, signed):
    n_atoms = round(10 ** (2.5 * (d - 1)))
    expected = excess_at_large_n(n_atoms, d, 1.0, lam, signed)
    assert tiling_excess(n_atoms, d, 1.0, lam, signed) == pytest.approx(expected, rel=1e-2)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 6),
    st.integers(1, 20),
    st.lists(st.sampled_from([0.2, 0.5, 1.0, 3.0]), min_size=1, max_size=3),
    st.sampled_from([0.05, 0.3, 0.8]),
    st.booleans(),
    st.sampled_from(["random", "spread", "basis", "short"]),
    seeds,
)
def test_no_dictionary_beats_the_floor_under_any_radial_law(d, n_atoms, radii, lam, signed, kind, seed):
    """Random, spread, duplicated and short atoms; radii equally likely, below and above lam."""
    rng = np.random.default_rng(seed)
    atoms = tiling.start("random" if kind == "short" else kind, n_atoms, d, rng, signed)
    if kind == "short":
        atoms *= rng.uniform(0.2, 1, (n_atoms, 1))
    x = np.resize(radii, 600)[:, None] * sphere(600, d, rng)
    seen = tiling.excess_risk(atoms, x, lam, signed)
    floor = np.mean([bounds.tiling_floor(n_atoms, d, r, lam, signed) - bounds.tiled_limit(r, lam) for r in radii])
    # the cost of a point is bounded, but not normal: 6 standard errors and a little for the rare region
    assert seen.value + 6 * seen.error + 1e-3 * floor + 1e-12 >= floor


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 8), st.floats(0.01, 1), seeds)
def test_a_bias_never_helps_signed_codes_on_a_symmetric_sample(d, n_atoms, shift, seed):
    rng = np.random.default_rng(seed)
    atoms, half = sphere(n_atoms, d, rng), sphere(20, d, rng)
    x, bias = np.concatenate([half, -half]), shift * rng.standard_normal(d)
    without, within = (tiling.risk(atoms, points, 0.2, rtol=1e-10).value for points in (x, x - bias))
    assert without <= within + 1e-8


def test_an_anisotropic_law_beats_the_floor_and_the_uniform_one_does_not():
    floor = tiling_excess(8, 2, 1.0, 0.3)
    assert gathered_excess(8, 0.3, 0.1) < 0.95 * floor
    assert gathered_excess(8, 0.3, 1.0) > floor


@pytest.mark.slow
def test_the_claim_is_as_stated():
    verdict = verify(CLAIMS["B4"], seed=1)
    assert verdict.as_stated, [(row.name, row.outcome, row.twins) for row in verdict.rows]


@pytest.mark.parametrize("value", CLAIMS["B4"].values, ids=lambda value: value.name)
def test_values_of_the_claim(value):
    bench = Bench()
    found = value.check(value.formula, bench)
    assert found.state == "holds", found
    assert {twin.state for twin in value.twins(bench, found).values()} == {"refuted"}
