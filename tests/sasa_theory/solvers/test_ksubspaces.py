"""K-subspaces against planted subspaces, the SVD, K-lines, enumeration, and its own definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.solvers import klines, ksubspaces
from synthetic.errors import DataError, UsageError

modest = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def objective(rows: np.ndarray, bases: np.ndarray) -> float:
    """sum_t min_k ||x_t - U_k U_k^T x_t||^2, straight from the definition."""
    return float(np.min([((rows - rows @ u.T @ u) ** 2).sum(axis=1) for u in bases], axis=0).sum())


@modest
@given(
    seed=seeds, n=st.integers(6, 80), width=st.integers(1, 7), count=st.integers(1, 6), rank=st.integers(1, 4),
    centre=st.booleans(), distinct=st.integers(1, 80),
)  # fmt: skip
def test_the_solution_is_what_it_says_and_the_history_never_increases(seed, n, width, count, rank, centre, distinct):
    rng = np.random.default_rng(seed)
    rank = min(rank, width)
    x = rng.standard_normal((n, width)) * rng.uniform(0.1, 3, width)
    x = np.vstack([x[np.arange(n) % distinct], rng.standard_normal(width)])  # repeated rows leave blocks short of rank
    fit = ksubspaces.fit(x, count, rank, rng, centre=centre, restarts=2)
    assert fit.bases.shape == (count, rank, width)
    np.testing.assert_allclose(fit.bases @ fit.bases.transpose(0, 2, 1), np.eye(rank)[None].repeat(count, 0), atol=1e-9)
    assert all(later <= earlier for earlier, later in itertools.pairwise(fit.history))
    total = float(((x - x.mean(axis=0)) ** 2).sum())
    expected = objective(x - fit.bias, fit.bases) / total
    assert fit.unexplained == pytest.approx(expected, abs=1e-10)
    assert fit.evaluate(x) == pytest.approx(expected, abs=1e-10)
    assignment, coords = fit.encode(x)
    xhat = np.einsum("nr,nrD->nD", coords, fit.bases[assignment]) + fit.bias
    assert ((x - xhat) ** 2).sum() / total == pytest.approx(expected, abs=1e-10)
    assert fit.bias.any() == centre


@modest
@given(
    seed=seeds, n=st.integers(4, 50), width=st.integers(2, 6), count=st.integers(1, 4), rank=st.integers(1, 3)
)  # fmt: skip
def test_each_half_step_lowers_the_objective(seed, n, width, count, rank):
    """The history is cut where it would rise, so the steps themselves are held to it here, from any start."""
    rng = np.random.default_rng(seed)
    rank = min(rank, width)
    rows = rng.standard_normal((n, width))
    bases = np.linalg.qr(rng.standard_normal((count, width, rank)))[0].transpose(0, 2, 1)
    for _ in range(4):
        before = objective(rows, bases)
        assignment, explained = ksubspaces._assign(rows, bases)
        assert ksubspaces._residual(rows, explained) == pytest.approx(before, abs=1e-9)
        seeded = ksubspaces._reseed(rows, bases, assignment, explained)
        assert objective(rows, seeded) <= before + 1e-9
        bases = ksubspaces._move(rows, seeded, assignment)
        assert objective(rows, bases) <= before + 1e-9


@modest
@given(seed=seeds, width=st.integers(2, 8), rank=st.integers(1, 3))
def test_one_subspace_is_the_top_of_the_svd(seed, width, rank):
    rng = np.random.default_rng(seed)
    rank = min(rank, width)
    x = rng.standard_normal((40, width)) * 1.5 ** -np.arange(width)
    fit = ksubspaces.fit(x, 1, rank, rng)
    sigma = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    assert fit.unexplained == pytest.approx((sigma[rank:] ** 2).sum() / (sigma**2).sum(), abs=1e-10)


def test_two_planes_match_enumeration_of_all_assignments():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((9, 3))
    best = np.inf
    for sides in itertools.product([False, True], repeat=8):
        side = np.array([False, *sides])
        parts = [x[side], x[~side]]
        best = min(best, sum((np.linalg.svd(p, compute_uv=False)[2:] ** 2).sum() for p in parts if len(p) > 2))
    fit = ksubspaces.fit(x, 2, 2, rng, centre=False, restarts=200, rtol=1e-12)
    assert objective(x, fit.bases) == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_subspaces_of_rank_one_are_signed_lines():
    x = np.random.default_rng(1).standard_normal((300, 3))
    blocks = ksubspaces.fit(x, 6, 1, np.random.default_rng(2), centre=False, restarts=20, rtol=1e-9)
    lines = klines.fit(x, 6, np.random.default_rng(2), centre=False, restarts=20, rtol=1e-9, dtype=np.float64)
    assert blocks.unexplained == pytest.approx(lines.unexplained, rel=0.05)


def test_planted_subspaces_of_unequal_weight_are_found():
    rng = np.random.default_rng(5)
    frames = [np.linalg.qr(rng.standard_normal((24, 3)))[0].T for _ in range(6)]
    counts = [30, 30, 30, 30, 30, 2000]
    x = np.vstack([rng.standard_normal((n, 3)) @ frame for n, frame in zip(counts, frames, strict=True)])
    fit = ksubspaces.fit(x, 6, 3, rng, centre=False, restarts=5)
    assert fit.unexplained < 1e-9
    capture = [max(np.square(u @ frame.T).sum() / 3 for u in fit.bases) for frame in frames]
    assert min(capture) > 1 - 1e-9


def test_a_subspace_without_samples_is_turned_to_the_worst_served_one():
    rows = np.vstack([np.eye(4)[:2].repeat(20, 0), 5 * np.eye(4)[3:]])
    same = np.eye(4)[None, :2].repeat(2, 0)
    assignment, explained = ksubspaces._assign(rows, same)
    assert set(assignment) == {0}
    seeded = ksubspaces._reseed(rows, same, assignment, explained)
    np.testing.assert_array_equal(seeded[0], same[0])
    assert objective(rows, seeded) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(seeded[1] @ seeded[1].T, np.eye(2), atol=1e-12)


def test_the_same_generator_state_gives_the_same_fit():
    x = np.random.default_rng(3).standard_normal((100, 5))
    one, two = (ksubspaces.fit(x, 4, 2, np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(one.bases, two.bases)


@pytest.mark.parametrize(
    ("x", "count", "rank", "error"),
    [
        (np.ones((5, 2)), 2, 1, DataError),
        (np.array([[1.0, np.inf], [0, 1]]), 2, 1, DataError),
        (np.eye(3), 0, 1, UsageError),
        (np.eye(3), 1, 4, UsageError),
        (np.eye(3), 1, 0, UsageError),
        (np.ones(4), 1, 1, UsageError),
    ],
)
def test_bad_input_is_refused(x, count, rank, error):
    with pytest.raises(error):
        ksubspaces.fit(x, count, rank, np.random.default_rng(0))


def test_held_out_rows_must_have_the_fitted_width():
    fit = ksubspaces.fit(np.eye(3), 2, 1, np.random.default_rng(0))
    with pytest.raises(UsageError):
        fit.evaluate(np.ones((4, 2)))
