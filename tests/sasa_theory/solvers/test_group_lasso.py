"""Group LASSO: certified, the same as cvxpy, and the LASSO when groups have one atom each."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.solvers import group_lasso, lasso, reference
from synthetic.errors import UsageError

problems = st.fixed_dictionaries(
    {
        "n": st.integers(1, 4),
        "sizes": st.lists(st.integers(1, 5), min_size=1, max_size=5),
        "width": st.integers(1, 7),
        "lam": st.floats(0.02, 1.2),
        "twins": st.booleans(),
        "shuffled": st.booleans(),
        "zero_sample": st.booleans(),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def problem(case):
    rng = np.random.default_rng(case["seed"])
    labels = np.repeat(np.arange(len(case["sizes"])) * 3 - 4, case["sizes"])
    if case["shuffled"]:
        rng.shuffle(labels)
    atoms, x = rng.standard_normal((len(labels), case["width"])), rng.standard_normal((case["n"], case["width"]))
    if case["twins"]:
        atoms[-1] = atoms[0]
    if case["zero_sample"]:
        x[0] = 0
    lam = max(case["lam"] * float(group_lasso.lam_max(atoms, labels, x).max()), 1e-6)
    return atoms, labels, x, lam


def cost(atoms, labels, x, codes, lam):
    norms = sum(np.linalg.norm(codes[:, labels == g], axis=1) for g in np.unique(labels))
    return np.square(x - codes @ atoms).sum(1) / 2 + lam * norms


@settings(max_examples=100, deadline=None)
@given(problems)
def test_every_sample_is_certified_and_what_is_returned_is_what_it_costs(case):
    atoms, labels, x, lam = problem(case)
    found = group_lasso.solve(atoms, labels, x, lam)
    assert (found.gap <= 1e-6).all() and found.gap.min() >= -1e-9
    assert np.allclose(cost(atoms, labels, x, found.codes, lam), found.primal, rtol=1e-8, atol=1e-10)
    assert not found.codes[~x.any(1)].any()


@settings(max_examples=15, deadline=None)
@given(problems)
def test_values_are_those_of_cvxpy(case):
    atoms, labels, x, lam = problem(case)
    found = group_lasso.solve(atoms, labels, x, lam, rtol=1e-8)
    for sample, value in zip(x, found.primal, strict=True):
        assert value == pytest.approx(reference.group_lasso(atoms, labels, sample, lam).value, rel=1e-5, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(problems)
def test_groups_of_one_are_the_lasso(case):
    atoms, _, x, lam = problem(case)
    ours = group_lasso.solve(atoms, np.arange(len(atoms)), x, lam, rtol=1e-9)
    assert np.allclose(ours.primal, lasso.solve(atoms, x, lam, rtol=1e-9).primal, rtol=1e-7, atol=1e-10)


@given(problems, st.floats(1.0, 3.0))
def test_from_lam_max_on_the_codes_are_exactly_zero(case, factor):
    atoms, labels, x, _ = problem(case)
    lams = factor * group_lasso.lam_max(atoms, labels, x) + 1e-12
    assert not group_lasso.solve(atoms, labels, x, lams).codes.any()


@given(problems)
def test_lam_zero_is_least_squares(case):
    atoms, labels, x, _ = problem(case)
    best = np.square(x - x @ np.linalg.pinv(atoms) @ atoms).sum(1) / 2
    assert np.allclose(group_lasso.solve(atoms, labels, x, 0.0).primal, best, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems)
def test_turning_a_groups_atoms_changes_no_value(case):
    atoms, labels, x, lam = problem(case)
    rng = np.random.default_rng(case["seed"])
    turned = atoms.copy()
    for g in np.unique(labels):
        q = np.linalg.qr(rng.standard_normal((2, (labels == g).sum(), (labels == g).sum())))[0][0]
        turned[labels == g] = q @ atoms[labels == g]
    first, second = (group_lasso.solve(a, labels, x, lam, rtol=1e-9).primal for a in (atoms, turned))
    assert np.allclose(first, second, rtol=1e-7, atol=1e-10)


def test_bad_labels_are_named():
    with pytest.raises(UsageError, match="expected \\(3,\\) integers"):
        group_lasso.solve(np.ones((3, 2)), np.array([0.0, 1.0, 1.0]), np.ones((1, 2)), 0.1)
