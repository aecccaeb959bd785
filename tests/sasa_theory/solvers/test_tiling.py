"""Risks against closed forms, spread dictionaries against symmetric ones, descents against finite differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.bounds import tiled_limit, tiling_floor
from sasa_theory.geometry import sphere
from sasa_theory.objectives import huber
from sasa_theory.solvers import tiling
from synthetic.errors import UsageError

seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.floats(0.01, 1.5), st.booleans(), seeds)
def test_the_risk_of_an_orthonormal_basis_is_the_huber_risk(d, lam, signed, seed):
    x = np.random.default_rng(seed).standard_normal((50, d))
    seen = tiling.risk(np.eye(d), x, lam, signed, rtol=1e-10)
    costs = huber(x, lam, signed).sum(1)
    assert seen.value == pytest.approx(costs.mean(), rel=1e-8)
    assert seen.error == pytest.approx(costs.std(ddof=1) / np.sqrt(50), rel=1e-6)
    limits = tiled_limit(np.linalg.norm(x, axis=1), lam)
    excess = tiling.excess_risk(np.eye(d), x, lam, signed, rtol=1e-10).value
    assert excess == pytest.approx((costs - limits).mean(), abs=1e-8)


def test_the_risk_of_one_line_in_the_plane_is_an_integral():
    # psi = 1/2 - (|cos| - lam)_+^2 / 2 for one unit atom and unit points
    lam = 0.3
    edge = np.arccos(lam)
    mean = 0.5 - ((np.sin(2 * edge) / 4 + edge / 2) - 2 * lam * np.sin(edge) + lam**2 * edge) / np.pi
    seen = tiling.circle_risk(np.array([[1.0, 0.0]]), 1.0, lam)
    assert seen.value == pytest.approx(mean, abs=1e-7)
    assert abs(seen.value - mean) <= 10 * seen.error + 1e-9


@pytest.mark.parametrize(("lam", "ratio"), [(0.05, 1.95), (0.3, 1.7), (0.9, 1.1)])
def test_equal_angles_stay_2_minus_lam_times_above_the_floor(lam, ratio):
    lines = tiling.well_spread(32, 2, np.random.default_rng(0))
    limit = tiled_limit(1.0, lam)
    excess = tiling.circle_risk(lines, 1.0, lam).value - limit
    assert excess / (tiling_floor(32, 2, 1.0, lam) - limit) == pytest.approx(ratio, abs=0.02)


def test_sampling_and_quadrature_agree_in_the_plane():
    rng = np.random.default_rng(5)
    atoms = sphere(5, 2, rng)
    sampled = tiling.risk(atoms, sphere(4000, 2, rng), 0.2, signed=False)
    assert abs(sampled.value - tiling.circle_risk(atoms, 1.0, 0.2, signed=False).value) < 5 * sampled.error


@pytest.mark.parametrize(
    ("n_atoms", "d", "signed", "cosine"),
    [(3, 3, True, 0.0), (6, 3, True, 1 / np.sqrt(5)), (4, 3, False, -1 / 3), (5, 4, False, -1 / 4), (2, 3, False, -1)],
)
def test_few_atoms_spread_to_the_symmetric_arrangement(n_atoms, d, signed, cosine):
    """A basis, the six diagonals of the icosahedron, the regular simplices, a pair of opposite rays."""
    atoms = tiling.well_spread(n_atoms, d, np.random.default_rng(1), signed)
    inner = (atoms @ atoms.T)[np.triu_indices(n_atoms, 1)]
    nearest = np.abs(inner).max() if signed else inner.max()
    assert nearest == pytest.approx(cosine, abs=2e-3)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(1, 5), st.booleans(), st.sampled_from(tiling.STARTS), seeds)
def test_starts_and_descents_keep_unit_atoms_and_never_rise(n_atoms, d, signed, kind, seed):
    rng = np.random.default_rng(seed)
    begin = tiling.start(kind, n_atoms, d, rng, signed)
    assert begin.shape == (n_atoms, d)
    assert np.allclose(np.linalg.norm(begin, axis=1), 1)
    end = tiling.descend(begin, sphere(60, d, rng), 0.25, signed, steps=5)
    assert np.allclose(np.linalg.norm(end.atoms, axis=1), 1)
    assert (np.diff(end.history) <= 0).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 5), st.booleans(), seeds)
def test_the_gradient_is_the_slope_of_the_risk_along_the_sphere(d, signed, seed):
    rng = np.random.default_rng(seed)
    atoms, x = sphere(d + 2, d, rng), sphere(40, d, rng)
    _, gradient, _ = tiling._slope(atoms, x, 0.2, signed, 1e-12)
    move = rng.standard_normal(atoms.shape)
    move -= (move * atoms).sum(1, keepdims=True) * atoms
    step = 1e-4
    ends = [tiling.risk(tiling._unit(atoms + s * step * move), x, 0.2, signed, 1e-12).value for s in (1, -1)]
    # psi is once differentiable: kinks of the slope cost the difference quotient a term of first order in the step
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx((gradient * move).sum(), abs=50 * step)


def test_descent_from_a_tilted_basis_leaves_it():
    rng = np.random.default_rng(3)
    x = sphere(400, 2, rng)
    end = tiling.descend(tiling.start("basis", 6, 2, rng), x, 0.3, steps=60)
    spread = tiling.risk(tiling.well_spread(6, 2, rng), x, 0.3).value - tiled_limit(1.0, 0.3)
    assert end.history[0] - tiled_limit(1.0, 0.3) > 5 * spread
    assert end.history[-1] - tiled_limit(1.0, 0.3) < 1.5 * spread


def test_candidates_are_named_by_their_start():
    rng = np.random.default_rng(0)
    found = tiling.candidates(4, sphere(50, 3, rng), 0.3, rng, steps=2)
    assert list(found) == ["well-spread", *(f"descent from {kind}" for kind in tiling.STARTS)]


def test_bad_input_is_named():
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="at least 2"):
        tiling.risk(np.eye(2), np.ones((1, 2)), 0.1)
    with pytest.raises(UsageError, match=r"expected \(N, 2\)"):
        tiling.circle_risk(np.eye(3), 1.0, 0.1)
    with pytest.raises(UsageError, match="basis, random, spread"):
        tiling.start("grid", 3, 2, rng)
    with pytest.raises(UsageError, match="n_atoms is 0"):
        tiling.well_spread(0, 3, rng)
    with pytest.raises(UsageError, match="a direction"):
        tiling.descend(np.zeros((2, 3)), np.ones((4, 3)), 0.1)
    with pytest.raises(UsageError, match=r"\(N, d\) and \(n, d\)"):
        tiling.descend(np.eye(2), np.ones((4, 3)), 0.1)
