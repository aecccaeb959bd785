"""B5, B5' and B6 over generated laws, dictionaries and paths."""

import importlib
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proofs_checks import CLAIMS, verify
from proofs_checks.l1_descent_measures import (
    LAWS,
    basis_slope_by_costs,
    normal_mean,
    normal_slope,
    quiet_laws,
    slope_at_zero,
    split_slope_by_costs,
    splits,
    stationary,
    walk,
)
from sasa_theory import bounds
from sasa_theory.geometry import sphere
from sasa_theory.solvers.descent import turned_cost, widest_gap

for module in ("l1_descent", "l1_path"):
    importlib.import_module(f"proofs_checks.{module}")

seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([0.05, 0.2, 0.7])


@pytest.mark.parametrize("name", ["B5", "B5'", pytest.param("B6", marks=pytest.mark.slow)])
def test_descent_is_as_stated(name):
    verdict = verify(CLAIMS[name])
    assert verdict.as_stated, verdict.to_json()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(LAWS)), st.integers(2, 5), lams, st.booleans(), seeds)
def test_the_slope_at_the_basis_is_that_of_its_costs_under_every_law(law, d, lam, signed, seed):
    h = LAWS[law](200, d, np.random.default_rng(seed))
    # a row within the finite step of the threshold has its kink there
    assume(np.abs(np.abs(h[:, 0]) - lam).min() > 1e-4)
    assert basis_slope_by_costs(h, lam, signed) == pytest.approx(bounds.basis_slope(h, lam, signed), rel=1e-5, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), lams, st.booleans(), seeds)
def test_laws_without_the_event_have_slope_zero(d, lam, signed, seed):
    for name, h in quiet_laws(200, d, lam, np.random.default_rng(seed)).items():
        assert bounds.basis_slope(h, lam, signed) == 0, name
        assert basis_slope_by_costs(h, lam, signed) == pytest.approx(0, abs=1e-9), name


def test_the_standard_normal_has_the_numbers_of_the_theory():
    assert normal_slope(0.2) == pytest.approx(-0.05650, abs=5e-6)
    start = normal_mean(lambda h: turned_cost(h, 0.0, 0.2))
    # THEORY.md has -0.05551 for the first; a quadrature with 2,400 nodes a coordinate says -0.0554742
    for theta, secant in ((0.02, -0.05547), (math.pi / 4, -0.02543)):
        end = normal_mean(lambda h, theta=theta: turned_cost(h, theta, 0.2))
        assert (end - start) / theta == pytest.approx(secant, abs=6e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 3), st.integers(2, 5), lams, st.booleans(), seeds)
def test_splitting_any_dictionary_has_the_slope_of_its_costs(d, n_atoms, lam, signed, seed):
    rng = np.random.default_rng(seed)
    atoms, x = sphere(n_atoms, d, rng), rng.standard_normal((40, d))
    cosines = np.abs(atoms @ atoms.T - np.eye(n_atoms))
    assume(cosines.max() < 0.99)  # nearly equal atoms: the enumeration's systems are near singular
    for split in splits(atoms, x, lam, rng, signed, directions=1):
        # a used code within the finite step of 0 has its kink there
        assume(np.abs(split.codes)[split.codes != 0].min(initial=1) > 1e-3)
        formula = bounds.split_slope(split.codes, split.residuals, split.direction)
        measured = split_slope_by_costs(atoms, x, split.atom, split.direction, lam, signed)
        assert measured == pytest.approx(formula, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_where_no_atom_gains_by_turning_every_split_gains_alike_both_ways(signed):
    atoms, x = stationary(4, 2, 200, 0.2, signed, seed=3)
    for split in splits(atoms, x, 0.2, np.random.default_rng(0), signed):
        there = bounds.split_slope(split.codes, split.residuals, split.direction)
        back = bounds.split_slope(split.codes, split.residuals, -split.direction)
        assert there < 0
        assert there == pytest.approx(back, rel=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 4), st.integers(1, 6), st.sampled_from([0.1, 0.3, 0.8]), st.booleans(), st.integers(0, 10**6))
def test_no_move_raises_any_tokens_cost_above_its_start(d, copies, lam, signed, seed):
    n_atoms = (d if signed else 2 * d) + copies
    found = walk(d, n_atoms, lam, signed, 40, seed)
    assert found.costs.shape == (copies, 5, 40)
    assert (found.costs <= found.costs[:, :1] + 1e-8).all()
    assert np.allclose(found.costs[1:, 0], found.costs[:-1, -1], atol=1e-8)  # one move begins where another ended
    assert found.path.gaps[-1] == widest_gap(found.path.atoms(copies), signed).angle


def test_a_slope_from_costs_is_one_sided_and_free_of_curvature():
    assert slope_at_zero(lambda t: np.array([3 * t + 50 * t**2, -t])) == pytest.approx(1.0, abs=1e-8)
