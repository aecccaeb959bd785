"""Subspaces with known angles, spectra with known ranks, coverings against brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory import geometry
from synthetic.errors import UsageError

modest = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def rotation(n: int, rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return q * np.sign(np.diag(r))


@modest
@given(seed=seeds, d=st.integers(1, 5), extra=st.integers(0, 4), data=st.data())
def test_principal_angles_are_recovered_to_full_precision(seed, d, extra, data):
    angles = np.array(sorted(data.draw(st.lists(st.floats(1e-9, math.pi / 2), min_size=d, max_size=d))))
    rng = np.random.default_rng(seed)
    axes = rotation(2 * d + extra, rng)
    v = axes[:d]
    u = np.cos(angles)[:, None] * axes[:d] + np.sin(angles)[:, None] * axes[d : 2 * d]
    mixed = rng.standard_normal((d + 2, d)) @ u  # any spanning set gives the same subspace
    found = geometry.principal_angles(v, mixed)
    np.testing.assert_allclose(found, angles, rtol=1e-4, atol=1e-12)
    assert geometry.capture(v, u) == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-12)


@modest
@given(seed=seeds, d=st.integers(1, 4), q=st.integers(1, 6))
def test_angles_and_capture_follow_a_common_rotation_and_a_containing_space(seed, d, q):
    rng = np.random.default_rng(seed)
    v, u = rng.standard_normal((d, 9)), rng.standard_normal((q, 9))
    turn = rotation(9, rng)
    np.testing.assert_allclose(
        geometry.principal_angles(v, u), geometry.principal_angles(u @ turn, v @ turn), atol=1e-10
    )
    assert geometry.capture(v @ turn, u @ turn) == pytest.approx(geometry.capture(v, u), abs=1e-10)
    assert geometry.capture(v, np.vstack([v, u])) == pytest.approx(1.0)
    # d capture(V, U) = tr(P_V P_U) = q capture(U, V): symmetric only when the dimensions agree
    assert d * geometry.capture(v, u) == pytest.approx(q * geometry.capture(u, v))


def test_basis_drops_repeated_and_zero_rows():
    rows = np.array([[3.0, 0, 0], [0, 0, 0], [-1.0, 0, 0], [1.0, 1.0, 0]])
    basis = geometry.orthonormal_basis(rows)
    assert basis.shape == (2, 3)
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(rows @ basis.T @ basis, rows, atol=1e-14)
    assert geometry.orthonormal_basis(np.zeros((4, 3))).shape == (0, 3)


@modest
@given(seed=seeds, d=st.integers(1, 12))
def test_sphere_points_are_unit_and_isotropic(seed, d):
    n = 4000
    points = geometry.sphere(n, d, np.random.default_rng(seed))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-12)
    # u_1^2 ~ Beta(1/2, (d-1)/2) has variance 2 (d-1) / (d^2 (d+2)); six standard errors, twelve coordinates
    error = 6.5 * math.sqrt(2 * (d - 1) / (d * d * (d + 2)) / n)
    assert np.abs((points**2).mean(axis=0) - 1 / d).max() <= error + 1e-12
    assert np.abs(points.mean(axis=0)).max() <= 6.5 / math.sqrt(d * n)


@pytest.mark.parametrize("size", [1, 2, 8, 12, 16])
def test_flat_spectra_have_full_effective_rank(size):
    flat = np.full((3, size), 0.7)
    for rank in (geometry.stable_rank, geometry.participation_ratio, geometry.entropy_rank):
        np.testing.assert_allclose(rank(flat), size)
    # C6: the 90 % rank of a flat 12-dimensional spectrum is 11, of a 16-dimensional one 15
    np.testing.assert_array_equal(geometry.energy_rank(flat), math.ceil(0.9 * size))


@modest
@given(
    energies=st.lists(st.floats(0, 1e6), min_size=1, max_size=9), share=st.floats(0.05, 1), scale=st.floats(1e-6, 1e6)
)
def test_effective_ranks_are_ordered_scale_free_and_the_energy_rank_is_minimal(energies, share, scale):
    e = np.array(energies)
    e[e < 1e-3] = 0  # zero, not denormal
    if e.sum() == 0:
        for rank in (geometry.stable_rank, geometry.participation_ratio, geometry.entropy_rank, geometry.energy_rank):
            assert rank(e) == 0
        return
    stable, part, entropy = geometry.stable_rank(e), geometry.participation_ratio(e), geometry.entropy_rank(e)
    tiny = 1 + 1e-9
    assert 1 <= stable * tiny <= part * tiny**2 <= entropy * tiny**3 <= np.count_nonzero(e) * tiny**4
    np.testing.assert_allclose(geometry.entropy_rank(e * scale), entropy)
    count = int(geometry.energy_rank(e, share))
    ordered = np.sort(e)[::-1]
    assert ordered[:count].sum() >= share * e.sum() * (1 - 1e-9)
    assert ordered[: count - 1].sum() < share * e.sum()


# ---- coverings ------------------------------------------------------------------------------------------------------


def nearest(points: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    """Distance of every point to the closest span of at most k atoms, by least squares over all subsets."""
    best = np.linalg.norm(points, axis=1)
    for size in range(1, min(k, len(atoms)) + 1):
        for subset in itertools.combinations(range(len(atoms)), size):
            chosen = atoms[list(subset)].T
            fit = chosen @ np.linalg.lstsq(chosen, points.T, rcond=None)[0]
            best = np.minimum(best, np.linalg.norm(points.T - fit, axis=0))
    return best


@modest
@given(
    seed=seeds, d=st.integers(2, 4), count=st.integers(1, 7), k=st.integers(1, 3), eps=st.floats(0.15, 0.9),
    ambient=st.integers(0, 2),
)  # fmt: skip
def test_coverings_cover_what_they_say_and_enumeration_is_minimal(seed, d, count, k, eps, ambient):
    rng = np.random.default_rng(seed)
    points = np.pad(geometry.sphere(40, d, rng), ((0, 0), (0, ambient)))
    atoms = rng.standard_normal((count, d + ambient))
    reach = nearest(points, atoms, k)
    if np.abs(reach - eps).min() < 1e-6:
        return  # a point on the boundary may fall either way
    exact = geometry.covering_number_exact(points, atoms, k, eps)
    np.testing.assert_array_equal(exact.covered, reach <= eps)
    greedy = geometry.covering_number(points, atoms, k, eps)
    assert not (greedy.covered & ~exact.covered).any()
    assert len(set(greedy.chosen.tolist())) == len(greedy.chosen)
    for covering in (exact, greedy):
        inside = nearest(points, atoms[covering.chosen], k) <= eps + 1e-6 if len(covering.chosen) else reach < -1
        assert not (covering.covered & ~inside).any()
        assert covering.covered_fraction == covering.covered.mean()
        assert (covering.atoms == math.inf) == (not covering.covered.all())
    if (greedy.covered == exact.covered).all():
        assert len(greedy.chosen) >= len(exact.chosen)
    # minimal: no smaller subset covers the same points
    for size in range(len(exact.chosen)):
        for subset in itertools.combinations(range(count), size):
            near = nearest(points, atoms[list(subset)], k) if subset else np.ones(len(points))
            assert not (near[exact.covered] <= eps - 1e-9).all()


@modest
@given(seed=seeds, width=st.integers(2, 5), count=st.integers(2, 6), k=st.integers(1, 3))
def test_the_last_pursuit_step_is_the_exact_least_squares_distance(seed, width, count, k):
    rng = np.random.default_rng(seed)
    points, atoms = rng.standard_normal((5, width)), rng.standard_normal((count, width))
    available = rng.random(count) < 0.6
    available[0] = True
    distance, after = geometry._pursuit(points @ atoms.T, np.square(points).sum(axis=1), atoms @ atoms.T, available, k)
    for t, point in enumerate(points):
        picked: list[int] = []
        residual = point
        for _ in range(min(k - 1, available.sum())):  # matching pursuit as the textbook has it
            score = np.abs(atoms @ residual) / np.linalg.norm(atoms, axis=1)
            score[~available | np.isin(np.arange(count), picked)] = -1
            picked.append(int(score.argmax()))
            residual = point - nearest_point(point, atoms[picked])
        if np.linalg.norm(residual) < 1e-6:
            assert distance[t] < 1e-9
            continue
        left = [np.square(point - nearest_point(point, atoms[[*picked, atom]])).sum() for atom in range(count)]
        np.testing.assert_allclose(after[t], left, atol=1e-8)
        assert distance[t] == pytest.approx(np.array(left)[available].min(), abs=1e-8)


def nearest_point(point: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    return atoms.T @ np.linalg.lstsq(atoms.T, point, rcond=None)[0]


@modest
@given(seed=seeds, d=st.integers(2, 3), count=st.integers(2, 20), eps=st.floats(0.2, 0.7))
def test_with_one_atom_at_a_time_the_choice_is_greedy_set_cover(seed, d, count, eps):
    rng = np.random.default_rng(seed)
    points, atoms = geometry.sphere(60, d, rng), geometry.sphere(count, d, rng)
    distance = 1 - np.square(points @ atoms.T)
    near = distance <= eps**2
    chosen: list[int] = []
    todo = near.any(axis=1)
    while todo.any():
        excess = np.maximum(distance[todo] - eps**2, 0).sum(axis=0)
        chosen.append(int(np.lexsort((excess, -near[todo].sum(axis=0)))[0]))
        todo &= ~near[:, chosen[-1]]
    assert geometry.covering_number(points, atoms, 1, eps).chosen.tolist() == chosen


@pytest.mark.parametrize("m", [2, 3, 5, 8])
def test_equally_spaced_lines_cover_the_circle_only_at_their_own_radius(m):
    turn = np.arange(m) * math.pi / m
    atoms = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    t = np.linspace(0, 2 * math.pi, 720 * m, endpoint=False)
    points = np.stack([np.cos(t), np.sin(t)], axis=1)
    radius = math.sin(math.pi / (2 * m))
    for covering in (geometry.covering_number, geometry.covering_number_exact):
        assert covering(points, atoms, 1, radius * 1.001).atoms == m
        short = covering(points, atoms, 1, radius * 0.9)
        assert short.atoms == math.inf
        assert 0 < short.covered_fraction < 1


def test_a_basis_covers_with_two_atoms_up_to_its_smallest_coordinate():
    # dist(u, best coordinate plane) = min |u_i| <= 1/sqrt(3), so eps just above needs exactly the three axes
    points = geometry.sphere(4000, 3, np.random.default_rng(0))
    atoms = np.vstack([np.eye(3), np.eye(3)])
    assert geometry.covering_number(points, atoms, 2, 0.58).atoms == 3
    assert geometry.covering_number_exact(points[:300], atoms, 2, 0.58).atoms == 3
    assert geometry.covering_number(points, atoms, 2, 0.5).atoms == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: geometry.covering_number(np.ones((3, 2)), np.ones((2, 2)), 0, 0.5),
        lambda: geometry.covering_number(np.ones((3, 2)), np.ones((2, 2)), 1, 1.5),
        lambda: geometry.covering_number(np.ones((3, 2)), np.ones((2, 3)), 1, 0.5),
        lambda: geometry.covering_number(np.ones((0, 2)), np.ones((2, 2)), 1, 0.5),
        lambda: geometry.covering_number_exact(np.ones((3, 2)), np.ones((40, 2)), 1, 0.5),
        lambda: geometry.capture(np.zeros((1, 3)), np.ones((1, 3))),
        lambda: geometry.principal_angles(np.ones((1, 3)), np.ones((1, 4))),
        lambda: geometry.orthonormal_basis(np.array([np.nan, 1.0])[None]),
        lambda: geometry.orthonormal_basis(np.ones(3)),
        lambda: geometry.energy_rank(np.array([1.0, -1.0])),
        lambda: geometry.energy_rank(np.ones(3), 0),
        lambda: geometry.sphere(3, 0, np.random.default_rng(0)),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call):
    with pytest.raises(UsageError):
        call()
