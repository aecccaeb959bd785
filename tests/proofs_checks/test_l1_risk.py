"""B1 to B3: exact codes, projections and the entry rule over random dictionaries; the claims hold as stated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import proofs_checks.l1_risk  # noqa: F401  (files the claims)
from proofs_checks import CLAIMS, verify
from proofs_checks.l1_measures import exact_codes, exact_psi, new_atoms, problems, project
from sasa_theory.bounds import tiled_limit
from sasa_theory.objectives import lasso_cost, lasso_dual
from sasa_theory.solvers import lasso

lams = st.sampled_from([0.01, 0.1, 0.5, 2.0])


@st.composite
def coding(draw):
    """Atoms (duplicates, opposite and zero ones among them), points (zero and on an atom among them), code sign.

    Entries are small multiples of a quarter, so that a failing example can be read.
    """
    d, n_atoms = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    quarter = st.integers(-6, 6).map(lambda v: v / 4)
    atoms = draw(st.lists(st.lists(quarter, min_size=d, max_size=d), min_size=n_atoms, max_size=n_atoms))
    x = draw(st.lists(st.lists(quarter, min_size=d, max_size=d), min_size=1, max_size=3))
    return np.array(atoms), np.array(x), draw(st.booleans())


@settings(deadline=None, max_examples=60)
@given(coding(), lams)
def test_psi_is_a_distance_to_the_polytope(problem, lam):
    atoms, x, signed = problem
    u = project(atoms, x, lam, signed)
    reach = np.abs(u @ atoms.T) if signed else u @ atoms.T
    assert reach.max() <= lam + 1e-9
    assert np.allclose(lasso_dual(x, u), exact_psi(atoms, x, lam, signed), atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(coding(), lams)
def test_the_solver_finds_the_enumerated_optimum(problem, lam):
    atoms, x, signed = problem
    codes = exact_codes(atoms, x, lam, signed)
    assert signed or (codes >= 0).all()
    found = lasso.solve(atoms, x, lam, signed=signed, rtol=1e-10)
    assert np.allclose(found.primal, lasso_cost(atoms, x, codes, lam), atol=1e-8)


@settings(deadline=None, max_examples=40)
@given(coding(), lams, st.data())
def test_a_new_atom_never_raises_psi_and_gains_what_its_own_step_gains(problem, lam, data):
    atoms, x, signed = problem
    v = np.array(data.draw(st.lists(st.integers(-6, 6).map(lambda k: k / 4), min_size=len(x[0]), max_size=len(x[0]))))
    before, after = (exact_psi(a, x, lam, signed) for a in (atoms, np.vstack([atoms, v])))
    assert (after <= before + 1e-9).all()
    nu = x - exact_codes(atoms, x, lam, signed) @ atoms
    reach = np.abs(nu @ v) if signed else nu @ v
    if not v.any():
        return
    gain = np.maximum(reach - lam, 0) ** 2 / (2 * v @ v)
    assert (before - after >= gain - 1e-9).all()
    assert np.allclose((before - after)[reach <= lam - 1e-9], 0, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(coding(), lams)
def test_no_dictionary_of_unit_atoms_is_below_the_tiled_limit(problem, lam):
    atoms, x, signed = problem
    lengths = np.linalg.norm(atoms, axis=1, keepdims=True)
    psi = exact_psi(atoms / np.maximum(lengths, 1), x, lam, signed)
    assert (psi >= tiled_limit(np.linalg.norm(x, axis=1), lam) - 1e-9).all()


def test_without_a_penalty_psi_is_the_distance_from_the_span():
    atoms = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    x = np.array([[3.0, -2.0, 0.5]])
    assert exact_psi(atoms, x, 0.0) == pytest.approx(0.125)
    assert lasso_dual(x, project(atoms, x, 0.0)) == pytest.approx(0.125)


def test_the_cases_of_the_entry_rule_lie_on_both_sides_of_it():
    cases = new_atoms(1, 0)
    assert {case.lowered for case in cases if case.signed} == {True, False}
    assert any(case.reach < -case.lam and not case.lowered for case in cases if not case.signed)
    assert {lam for _, _, lam, _ in problems(np.random.default_rng(0))} == {0.0, 0.1, 0.6}


@pytest.mark.parametrize("name", ["B1", "B2", "B3"])
def test_claims_are_as_stated(name):
    verdict = verify(CLAIMS[name], seed=1)
    assert verdict.as_stated, [(row.name, row.outcome, row.twins) for row in verdict.rows]
