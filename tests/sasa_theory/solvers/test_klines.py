"""K-lines against planted lines, enumeration, an angular grid, and its own definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.geometry import sphere
from sasa_theory.solvers import klines
from synthetic.errors import DataError, UsageError

modest = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def objective(rows: np.ndarray, atoms: np.ndarray, signed: bool) -> float:
    """sum_t min_k ||x_t - a d_k||^2, straight from the definition."""
    scores = rows @ atoms.T
    codes = np.abs(scores).max(axis=1) if signed else np.maximum(scores.max(axis=1), 0)
    return float((rows**2).sum() - (codes**2).sum())


def unexplained(rows: np.ndarray, bias: np.ndarray, atoms: np.ndarray, signed: bool) -> float:
    return objective(rows - bias, atoms, signed) / float(((rows - rows.mean(axis=0)) ** 2).sum())


@modest
@given(
    seed=seeds, n=st.integers(2, 120), width=st.integers(1, 9), count=st.integers(1, 12),
    signed=st.booleans(), centre=st.booleans(), dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_the_solution_is_what_it_says_and_the_history_never_increases(seed, n, width, count, signed, centre, dtype):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, width)) * rng.uniform(0.1, 3, width) + rng.standard_normal(width)
    fit = klines.fit(x, count, rng, signed=signed, centre=centre, restarts=2, dtype=dtype)
    tolerance = 2e-5 if dtype is np.float32 else 1e-10
    assert fit.atoms.shape == (count, width)
    np.testing.assert_allclose(np.linalg.norm(fit.atoms, axis=1), 1, atol=1e-5)
    assert all(later <= earlier for earlier, later in itertools.pairwise(fit.history))
    assert fit.unexplained == fit.history[-1]
    expected = unexplained(x, fit.bias, fit.atoms.astype(float), signed)
    assert fit.unexplained == pytest.approx(expected, abs=tolerance)
    assert fit.evaluate(x) == pytest.approx(expected, abs=tolerance)
    served = fit.assignment >= 0
    xhat = np.where(served[:, None], fit.codes[:, None] * fit.atoms[fit.assignment], 0) + fit.bias
    total = ((x - x.mean(axis=0)) ** 2).sum()
    assert ((x - xhat) ** 2).sum() / total == pytest.approx(expected, abs=tolerance)
    if not signed:
        assert (fit.codes >= 0).all()
    if not centre:
        assert not fit.bias.any()


@modest
@given(
    seed=seeds, n=st.integers(3, 60), width=st.integers(2, 6), count=st.integers(1, 4), signed=st.booleans(),
    steps=st.integers(1, 20),
)  # fmt: skip
def test_each_half_step_lowers_the_objective(seed, n, width, count, signed, steps):
    """The history is cut where it would rise, so the steps themselves are held to it here, from any start."""
    rng = np.random.default_rng(seed)
    rows, atoms = rng.standard_normal((n, width)), sphere(count, width, rng)
    for _ in range(4):
        before = objective(rows, atoms, signed)
        assignment, codes = klines._assign(rows, atoms, signed)
        assert klines._residual(rows, codes) == pytest.approx(before)
        moved = klines._move(rows, atoms, assignment, signed, steps=steps)
        assert objective(rows, moved, signed) <= before + 1e-9
        # even with the assignment held fixed
        kept = np.where(assignment >= 0, np.einsum("nd,nd->n", rows, moved[assignment]), 0)
        kept = kept if signed else np.maximum(kept, 0)
        assert klines._residual(rows, kept) <= before + 1e-9
        assignment, codes = klines._assign(rows, moved, signed)
        atoms = klines._reseed(rows, moved, assignment, codes, signed)
        assert objective(rows, atoms, signed) <= objective(rows, moved, signed) + 1e-9


@modest
@given(seed=seeds, width=st.integers(2, 8))
def test_one_signed_line_is_the_top_singular_vector(seed, width):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((50, width)) * 2.0 ** -np.arange(width)
    fit = klines.fit(x, 1, rng, centre=False, iterations=500, rtol=1e-14, dtype=np.float64)
    sigma = np.linalg.svd(x, compute_uv=False)
    best = 1 - sigma[0] ** 2 / (sigma**2).sum()
    assert unexplained(x, fit.bias, fit.atoms, True) * ((x - x.mean(0)) ** 2).sum() == pytest.approx(
        best * (sigma**2).sum(), rel=1e-6
    )


@modest
@given(seed=seeds, width=st.integers(2, 4))
def test_two_signed_lines_match_enumeration_of_all_assignments(seed, width):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, width))
    best = np.inf
    for sides in itertools.product([False, True], repeat=7):
        side = np.array([False, *sides])
        cost = (x**2).sum()
        for part in (x[side], x[~side]):
            if len(part):
                cost -= np.linalg.svd(part, compute_uv=False)[0] ** 2
        best = min(best, cost)
    fit = klines.fit(x, 2, rng, centre=False, restarts=200, iterations=400, rtol=1e-12, dtype=np.float64)
    assert objective(x, fit.atoms, True) == pytest.approx(best, rel=1e-4)


@modest
@given(seed=seeds)
def test_two_rays_match_a_fine_angular_grid(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((12, 2))
    angle = np.linspace(0, 2 * np.pi, 361)[:-1]
    left = (x**2).sum(axis=1) - np.maximum(x @ np.stack([np.cos(angle), np.sin(angle)]), 0).T ** 2
    pairs = [(i, i + int(np.minimum(left[i], left[i:]).sum(axis=1).argmin())) for i in range(len(angle))]
    grid, best = min((float(np.minimum(left[i], left[j]).sum()), (i, j)) for i, j in pairs)
    start = np.stack([[np.cos(angle[i]), np.sin(angle[i])] for i in best])
    # the descent never rises, so from the grid's best pair it ends below it, by no more than the grid's spacing allows
    polished = objective(x, klines._descend(x, start, False, 400, 1e-12)[0], False)
    assert grid - 2 * np.pi / 360 * (x**2).sum() <= polished <= grid + 1e-9
    # from random starts it is a local search: the best of 200 may end beside the optimum, hardly worse
    fit = klines.fit(x, 2, rng, signed=False, centre=False, restarts=200, iterations=400, rtol=1e-12, dtype=np.float64)
    assert grid - 2 * np.pi / 360 * (x**2).sum() <= objective(x, fit.atoms, False) <= polished * (1 + 1e-3)


@pytest.mark.parametrize("signed", [True, False])
def test_planted_lines_of_very_unequal_weight_are_all_found_from_any_start(signed):
    rng = np.random.default_rng(5)
    lines = np.linalg.qr(rng.standard_normal((20, 20)))[0][:12]
    which = np.r_[np.arange(12).repeat(3), np.zeros(3000, int)]  # one line has nearly all the samples
    codes = rng.uniform(0.5, 2, len(which)) * (rng.choice([-1, 1], len(which)) if signed else 1)
    x = codes[:, None] * lines[which]
    fit = klines.fit(x, 12, rng, signed=signed, centre=False, restarts=1, dtype=np.float64)
    assert fit.unexplained < 1e-9
    cosine = fit.atoms @ lines.T
    assert ((np.abs(cosine) if signed else cosine).max(axis=0) > 1 - 1e-6).all()
    fresh = rng.uniform(0.5, 2, (50, 1)) * lines[rng.integers(0, 12, 50)]
    assert fit.evaluate(fresh) < 1e-9
    if not signed:  # a ray does not serve the opposite side
        assert fit.evaluate(-fresh) > 0.5


def test_a_ray_is_moved_by_its_positive_side_only():
    # the top singular direction (0, 1) serves half of these points from the wrong side: worse than where we start
    x = np.array([[0.8, 1.0], [0.8, -1.0]] * 10) + 0.01 * np.random.default_rng(0).standard_normal((20, 2))
    start = np.array([[1.0, 0.02]]) / np.hypot(1, 0.02)
    moved = klines._move(x, start, np.zeros(20, int), signed=False, steps=200)
    assert objective(x, moved, False) <= objective(x, start, False)
    assert objective(x, klines._move(x, start, np.zeros(20, int), signed=True, steps=200), False) > objective(
        x, start, False
    )


@pytest.mark.parametrize("signed", [True, False])
def test_a_start_that_leaves_atoms_without_samples_is_repaired(signed):
    lines = np.eye(6)
    x = (np.random.default_rng(0).uniform(1, 2, (60, 1)) * lines[np.arange(60) % 6]).astype(np.float64)
    same = np.ones((6, 6)) / np.sqrt(6)
    assignment, codes = klines._assign(x, same, signed)
    assert set(assignment) == {0}
    seeded = klines._reseed(x, same, assignment, codes, signed)
    np.testing.assert_array_equal(seeded[0], same[0])
    assert len(np.unique((seeded[1:] @ lines.T).argmax(axis=1))) == 5  # one each, not five on the worst line
    atoms, history = klines._descend(x, same, signed, 2, 1e-12)  # at once, not by slow peeling
    assert history[-1] < 1e-9 * history[0]
    assert len(np.unique((atoms @ lines.T).argmax(axis=1))) == 6


def test_empty_atoms_are_put_to_use_and_rays_need_twice_the_lines():
    t = np.random.default_rng(0).uniform(0, 2 * np.pi, 4000)
    x = np.stack([np.cos(t), np.sin(t)], axis=1)
    values = {}
    for signed in (True, False):
        fit = klines.fit(x, 16, np.random.default_rng(1), signed=signed, centre=False, restarts=5, rtol=1e-9)
        assert len(np.unique(fit.assignment)) == 16
        values[signed] = fit.unexplained
    arc = np.pi / 16  # equally spaced lines: cells of half-width pi/32; rays: pi/16
    exact = {half: 0.5 - np.sin(2 * half) / (4 * half) for half in (arc / 2, arc)}
    assert values[True] == pytest.approx(exact[arc / 2], rel=0.1)
    assert values[False] == pytest.approx(exact[arc], rel=0.1)


def test_the_same_generator_state_gives_the_same_fit():
    x = np.random.default_rng(3).standard_normal((200, 5))
    one, two = (klines.fit(x, 7, np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(one.atoms, two.atoms)
    assert one.history == two.history


def test_more_atoms_than_distinct_samples_leave_nothing_unexplained():
    x = np.eye(4).repeat(3, axis=0)
    fit = klines.fit(x, 9, np.random.default_rng(0), centre=False, dtype=np.float64)
    assert fit.unexplained == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(np.linalg.norm(fit.atoms, axis=1), 1)


@pytest.mark.parametrize(
    ("x", "count", "error"),
    [
        (np.ones((5, 2)), 2, DataError),
        (np.array([[1.0, np.nan], [0, 1]]), 2, DataError),
        (np.eye(3), 0, UsageError),
        (np.ones(4), 1, UsageError),
        (np.ones((0, 3)), 1, UsageError),
    ],
)
def test_bad_input_is_refused_with_a_sentence(x, count, error):
    with pytest.raises(error):
        klines.fit(x, count, np.random.default_rng(0))


def test_held_out_rows_must_have_the_fitted_width():
    fit = klines.fit(np.eye(3), 2, np.random.default_rng(0))
    with pytest.raises(UsageError):
        fit.evaluate(np.ones((4, 2)))
