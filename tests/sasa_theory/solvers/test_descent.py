"""The turned copy, the widest gap and the path that fills gaps, against computations that share nothing with them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory import objectives
from sasa_theory.geometry import sphere
from sasa_theory.solvers import lasso
from sasa_theory.solvers.descent import gap_path, turn, turned_cost, widest_gap
from synthetic.errors import UsageError

angles = st.floats(0, math.pi / 2)
rows = st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=1, max_size=4).map(np.array)


@settings(max_examples=40, deadline=None)
@given(rows, angles, st.floats(0, 2), st.booleans())
def test_turned_cost_is_the_best_cost_of_basis_and_copy(h, theta, lam, signed):
    atoms = np.vstack([np.eye(3), [math.cos(theta), math.sin(theta), 0]])
    coded = lasso.solve(atoms, h, lam, signed=signed, rtol=1e-9)
    cost = turned_cost(h, theta, lam, signed)
    assert (cost <= coded.primal + 1e-9).all()
    assert (cost >= coded.dual - 1e-9).all()
    if lam > 1e-9 or signed:  # non-negative codes keep a gap where lam drowns in rounding, see `lasso.solve`
        assert (coded.primal - coded.dual <= 1e-7).all()  # so the two sides leave it no room


@given(rows, angles, st.floats(0, 2), st.booleans())
def test_the_copy_never_raises_a_cost_and_leaves_it_at_both_ends(h, theta, lam, signed):
    basis = objectives.huber(h, lam, signed).sum(1)
    assert (turned_cost(h, theta, lam, signed) <= basis + 1e-12).all()
    for end in (0.0, math.pi / 2):
        assert turned_cost(h, end, lam, signed) == pytest.approx(basis, abs=1e-12)


@given(st.integers(2, 6), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_turn_stays_on_the_arc_and_divides_its_angle(d, share, seed):
    start, end = sphere(2, d, np.random.default_rng(seed))
    middle = turn(start, end, share)
    angle = math.acos(np.clip(start @ end, -1, 1))
    assert np.linalg.norm(middle) == pytest.approx(1)
    assert math.acos(np.clip(start @ middle, -1, 1)) == pytest.approx(share * angle, abs=1e-6)
    assert math.acos(np.clip(middle @ end, -1, 1)) == pytest.approx((1 - share) * angle, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 12), st.booleans(), st.integers(0, 2**32 - 1))
def test_no_direction_is_farther_from_the_atoms_than_the_widest_gap(d, extra, signed, seed):
    rng = np.random.default_rng(seed)
    corners = np.vstack([np.eye(d), -np.ones((1, d)) / math.sqrt(d)])  # surround the origin
    atoms = np.vstack([corners, sphere(extra, d, rng)])
    gap = widest_gap(atoms, signed)
    others = np.vstack([sphere(2000, d, rng), gap.direction + 0.05 * sphere(500, d, rng)])
    others /= np.linalg.norm(others, axis=1, keepdims=True)

    def distance(u):
        cosines = u @ atoms.T
        return np.arccos(np.clip((np.abs(cosines) if signed else cosines).max(-1), -1, 1))

    assert distance(gap.direction) == pytest.approx(gap.angle, abs=1e-6)
    assert distance(others).max() <= gap.angle + 1e-6


@pytest.mark.parametrize("d", [2, 3, 4, 5])
def test_gaps_of_a_basis_are_its_diagonals(d):
    for atoms, signed in ((np.eye(d), True), (np.vstack([np.eye(d), -np.eye(d)]), False)):
        gap = widest_gap(atoms, signed)
        assert math.cos(gap.angle) == pytest.approx(1 / math.sqrt(d))
        assert np.abs(gap.direction) == pytest.approx(np.full(d, 1 / math.sqrt(d)))


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 4), st.integers(0, 20), st.booleans(), st.data())
def test_the_path_is_continuous_and_its_gaps_only_shrink(d, copies, signed, data):
    path = gap_path(d, (d if signed else 2 * d) + copies, signed)
    assert path.moves == copies
    assert (np.diff(path.gaps) <= 1e-9).all()
    time = data.draw(st.floats(0, copies))
    before, after = path.atoms(max(0, time - 1e-7)), path.atoms(min(copies, time + 1e-7))
    assert np.abs(after - before).max() < 1e-6  # no atom moves faster than pi a move
    assert np.linalg.norm(path.atoms(time), axis=1) == pytest.approx(1)
    assert set(map(tuple, np.round(path.atoms(0), 9))) == set(map(tuple, path.basis))
    assert path.atoms(copies) == pytest.approx(np.vstack([path.basis, path.ends]))


def test_the_plane_is_halved_and_halved_again():
    path = gap_path(2, 8)
    assert path.gaps == pytest.approx(np.pi / 4 * np.array([1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: turned_cost(np.ones((2, 1)), 0.1, 0.2), "shape"),
        (lambda: turned_cost(np.ones((2, 2)), 2.0, 0.2), "theta is 2.0"),
        (lambda: turned_cost(np.ones((2, 2)), 0.1, -1.0), "lam is -1.0"),
        (lambda: turn(np.array([1.0, 0]), np.array([-1.0, 0]), 0.5), "opposite"),
        (lambda: turn(np.array([2.0, 0]), np.array([0, 1.0]), 0.5), "unit length"),
        (lambda: widest_gap(np.array([[1.0, 0, 0]])), "span"),
        (lambda: widest_gap(np.array([[1.0, 0], [0, 1], [0.6, 0.8]]), signed=False), "half space"),
        (lambda: widest_gap(np.array([[1.0], [1.0]]), signed=False), "half space"),
        (lambda: widest_gap(2 * np.eye(2)), "unit rows"),
        (lambda: gap_path(1, 4), "d is 1"),
        (lambda: gap_path(3, 5, signed=False), "n_atoms is 5"),
        (lambda: gap_path(2, 4).atoms(2.5), "time is 2.5"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(UsageError, match=named):
        call()
