"""LASSO coding: certified, optimal, and the same as independent solvers, degenerate problems included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from sasa_theory.objectives import lasso_cost
from sasa_theory.solvers import lasso, lasso_loops, lasso_torch
from synthetic.errors import UsageError

problems = st.fixed_dictionaries(
    {
        "n": st.integers(1, 6),
        "count": st.integers(1, 20),
        "width": st.integers(1, 7),
        "rank": st.integers(1, 7),
        "lam": st.floats(0.01, 1.5),
        "signed": st.booleans(),
        "twins": st.booleans(),
        "zero_atom": st.booleans(),
        "zero_sample": st.booleans(),
        "lengths": st.booleans(),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def problem(case):
    """Atoms and samples as described, lam as a share of the largest price."""
    rng = np.random.default_rng(case["seed"])
    low = min(case["rank"], case["width"])
    atoms = rng.standard_normal((case["count"], low)) @ rng.standard_normal((low, case["width"]))
    if case["lengths"]:
        atoms *= 10 ** rng.uniform(-2, 2, (case["count"], 1))
    if case["twins"] and case["count"] > 1:
        atoms[-1] = atoms[0]
    if case["zero_atom"]:
        atoms[case["count"] // 2] = 0
    x = rng.standard_normal((case["n"], case["width"]))
    if case["zero_sample"]:
        x[0] = 0
    lam = case["lam"] * float(lasso.lam_max(atoms, x, case["signed"]).max())
    return atoms, x, max(lam, 1e-9)


@settings(max_examples=150, deadline=None)
@given(problems)
def test_every_sample_is_certified_and_what_is_returned_is_what_it_costs(case):
    atoms, x, lam = problem(case)
    found = lasso.solve(atoms, x, lam, case["signed"])
    assert (found.gap <= 1e-6).all()
    assert found.gap.min() >= -1e-9
    assert np.allclose(lasso_cost(atoms, x, found.codes, lam), found.primal, rtol=1e-9, atol=1e-12)
    assert case["signed"] or (found.codes >= 0).all()
    assert (found.gap[~x.any(1)] == 0).all() and not found.codes[~x.any(1)].any()


@settings(max_examples=60, deadline=None)
@given(problems)
def test_a_fine_gap_means_the_conditions_of_optimality(case):
    atoms, x, lam = problem({**case, "lengths": False})
    found = lasso.solve(atoms, x, lam, case["signed"], rtol=1e-13)
    prices = (x - found.codes @ atoms) @ atoms.T
    scale = 1e-5 * lam + 1e-7
    assert ((np.abs(prices) if case["signed"] else prices) <= lam + scale).all()
    on = found.codes != 0
    weight = np.abs(found.codes) / max(np.abs(found.codes).max(), 1e-300)
    assert (np.abs(prices - lam * np.sign(found.codes))[on] * weight[on] <= scale).all()


@settings(max_examples=25, deadline=None)
@given(problems)
def test_values_are_those_of_scikit_learn(case):
    atoms, x, lam = problem({**case, "lengths": False})
    found = lasso.solve(atoms, x, lam, case["signed"], rtol=1e-10)
    width = x.shape[1]
    for sample, value in zip(x, found.primal, strict=True):
        peer = Lasso(lam / width, fit_intercept=False, tol=1e-12, max_iter=100_000, positive=not case["signed"])
        codes = peer.fit(atoms.T, sample).coef_
        assert value <= lasso_cost(atoms, sample[None], codes[None], lam)[0] + 1e-8 * (1 + value)


@given(problems, st.floats(1.0, 3.0))
def test_from_lam_max_on_the_codes_are_exactly_zero(case, factor):
    atoms, x, _ = problem(case)
    lams = factor * lasso.lam_max(atoms, x, case["signed"]) + 1e-12
    found = lasso.solve(atoms, x, lams, case["signed"])
    assert not found.codes.any() and np.allclose(found.gap, 0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(problems)
def test_lam_zero_is_least_squares_with_its_certificate(case):
    atoms, x, _ = problem({**case, "lengths": False})
    found = lasso.solve(atoms, x, 0.0)
    best = np.square(x - x @ np.linalg.pinv(atoms) @ atoms).sum(1) / 2
    assert np.allclose(found.primal, best, atol=1e-9) and (np.abs(found.gap) <= 1e-6).all()


def test_a_penalty_for_each_sample_is_the_same_as_one_at_a_time():
    rng = np.random.default_rng(0)
    atoms, x = rng.standard_normal((30, 8)), rng.standard_normal((700, 8))
    lams = rng.uniform(0.05, 2, 700)
    together = lasso.solve(atoms, x, lams, rtol=1e-10)
    for i in (0, 255, 256, 699):
        alone = lasso.solve(atoms, x[i : i + 1], float(lams[i]), rtol=1e-10)
        assert alone.primal[0] == pytest.approx(together.primal[i], rel=1e-9)


def test_more_codes_than_a_working_set_first_has_room_for():
    rng = np.random.default_rng(1)
    atoms = np.vstack([np.eye(90), rng.standard_normal((60, 90))])
    found = lasso.solve(atoms, rng.standard_normal((3, 90)), 1e-4)
    assert (found.gap <= 1e-6).all() and (found.codes != 0).sum(1).min() > 80


def test_what_was_not_reached_is_not_claimed():
    rng = np.random.default_rng(2)
    atoms, x = rng.standard_normal((200, 20)), rng.standard_normal((5, 20))
    assert lasso.solve(atoms, x, 0.01, rounds=2).gap.max() > 1e-6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.ones((2, 3))}, "expected \\(N, D\\) and \\(n, D\\)"),
        ({"lam": -1.0}, "lam is -1.0"),
        ({"lam": np.ones(5)}, "one for each of the 2 samples"),
        ({"x": np.full((2, 4), math.nan)}, "NaN or Inf"),
        ({"rtol": -1e-6}, "rtol is -1e-06"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(UsageError, match=words):
        lasso.solve(**{"atoms": np.ones((3, 4)), "x": np.ones((2, 4)), "lam": 0.1, **change})


@settings(max_examples=50, deadline=None)
@given(problems)
def test_loops_equal_their_plain_twins(case):
    atoms, x, lam = problem(case)
    rng = np.random.default_rng(case["seed"])
    nu, l1 = rng.standard_normal(x.shape), rng.random(len(x))
    prices, lams = nu @ atoms.T, np.full(len(x), lam)
    primal, dual = np.empty(len(x)), np.empty(len(x))
    tops = [
        lasso_loops.certify(x[i], nu[i], prices[i], lams[i], l1[i], case["signed"], primal[i:], dual[i:])
        for i in range(len(x))
    ]
    values = np.column_stack([primal, dual, tops])
    top = np.maximum((np.abs(prices) if case["signed"] else prices).max(1), 0)
    left, cross = np.square(nu).sum(1), (nu * x).sum(1)
    t = np.minimum(cross / left, lam / np.where(top > 0, top, 1e-300)).clip(0)
    plain = np.column_stack([left / 2 + lam * l1, t * cross - t**2 * left / 2, top])
    assert np.allclose(values, plain, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems)
def test_torch_finds_the_same_values(case):
    atoms, x, lam = problem({**case, "lengths": False, "lam": max(case["lam"], 0.05)})
    ours = lasso.solve(atoms, x, lam, case["signed"], rtol=1e-9)
    theirs = lasso_torch.solve(torch.tensor(atoms), torch.tensor(x), lam, case["signed"], rtol=1e-7)
    assert float(theirs.gap.max()) <= 1e-7
    assert np.allclose(ours.primal, theirs.primal.numpy(), rtol=1e-6, atol=1e-9)


def test_torch_says_what_it_cannot_take():
    atoms, x = torch.ones(3, 4), torch.ones(2, 4)
    with pytest.raises(UsageError, match="lam is 0"):
        lasso_torch.solve(atoms, x, 0.0)
    with pytest.raises(UsageError, match="expected the same"):
        lasso_torch.solve(atoms, x.double(), 0.1)
    assert float(lasso_torch.solve(atoms, x, 0.1, rtol=1e-4).gap.max()) <= 1e-4


@pytest.mark.gpu
def test_torch_on_a_gpu_certifies_in_float64():
    rng = np.random.default_rng(0)
    atoms, x = rng.standard_normal((512, 32)), rng.standard_normal((2000, 32))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    found = lasso_torch.solve(torch.tensor(atoms, device="cuda"), torch.tensor(x, device="cuda"), 0.2)
    assert float(found.gap.max()) <= 1e-6
    assert np.allclose(found.primal.cpu().numpy(), lasso.solve(atoms, x, 0.2).primal, rtol=1e-5)
