"""Planted clusters of known redundancy, random directions that have none, and firing mass by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.concepts.scores import UnitScores
from sasa_theory.evaluation.clusters import FiringMass, decoder_clusters, redundancy
from synthetic.errors import UsageError

WIDTH = 96


def frames(rng, count, dim):
    """`count` orthogonal subspaces of `dim` dimensions."""
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    return basis[: count * dim].reshape(count, dim, WIDTH)


@settings(deadline=None, max_examples=20)
@given(count=st.integers(2, 6), dim=st.integers(1, 8), copies=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_clusters_that_fill_subspaces_have_the_known_ratio(count, dim, copies, seed):
    rng = np.random.default_rng(seed)
    # `copies` rotated bases of each subspace: a flat spectrum, so 80 % of it takes ceil(.8 dim) dimensions
    rows, labels = [], []
    for i, frame in enumerate(frames(rng, count, dim)):
        for _ in range(copies):
            rows.append(np.linalg.qr(rng.standard_normal((dim, dim)))[0] @ frame)
            labels += [i] * dim
    got = redundancy(np.concatenate(rows) * rng.choice([-1, 1], (len(labels), 1)), np.array(labels))
    assert got.ratio == pytest.approx(copies * dim / np.ceil(0.8 * dim - 1e-9))
    assert got.largest == pytest.approx(got.ratio)
    assert got.sizes.tolist() == [copies * dim] * count


@settings(deadline=None, max_examples=10)
@given(count=st.integers(4, 10), size=st.integers(4, 8), seed=st.integers(0, 2**32 - 1))
def test_split_directions_are_found_and_random_ones_are_not_redundant(count, size, seed):
    rng = np.random.default_rng(seed)
    # each direction split into `size` nearly parallel ones, some turned round
    lines = frames(rng, count, 1)[:, 0]
    split = np.repeat(lines, size, axis=0) + 0.02 * rng.standard_normal((count * size, WIDTH))
    split *= rng.choice([-1, 1], (len(split), 1))
    got = decoder_clusters(split, size, rng)
    assert got.ratio > 0.6 * size  # all of them one-dimensional when K-lines finds every cluster
    twin = decoder_clusters(rng.standard_normal((count * size, WIDTH)), size, rng)
    assert 1 <= twin.ratio < 1.6


def test_a_split_dictionary_is_told_from_a_basis_of_as_many_directions():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    assert decoder_clusters(basis, 8, rng).ratio < 1.35
    pairs = np.repeat(basis[: WIDTH // 2], 2, axis=0)
    assert decoder_clusters(pairs, 8, rng).ratio > 1.9


def mass(dense, on, documents):
    row, unit = np.nonzero(dense)
    scores = UnitScores.of_pairs(row, unit, dense[row, unit], *dense.shape)
    return FiringMass(scores, on, ~on, documents)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(8, 60), units=st.integers(1, 7), seed=st.integers(0, 2**32 - 1))
def test_mass_and_units_equal_the_plain_sums(n, units, seed):
    rng = np.random.default_rng(seed)
    dense = rng.random((n, units)) * (rng.random((n, units)) < 0.5)
    on = np.arange(n) % 3 == 0
    got = mass(dense, on, rng.integers(0, 4, n))
    np.testing.assert_allclose(got.mass(excess=False)[0], dense[on].mean(axis=0))
    excess = np.maximum(dense[on].mean(axis=0) - dense[~on].mean(axis=0), 0)
    np.testing.assert_allclose(got.mass()[0], excess, atol=1e-12)
    ordered = np.sort(excess)[::-1].cumsum()
    for share in (0.5, 0.9):
        want = 0 if ordered[-1] == 0 else int((ordered < share * ordered[-1] - 1e-12).sum()) + 1
        assert got.units(share, rng)[0] == want


def test_one_unit_carries_a_concept_and_many_carry_a_split_one():
    rng = np.random.default_rng(1)
    n = 2000
    on, documents, part = rng.random(n) < 0.2, np.arange(n) // 20, rng.integers(0, 10, n)
    background = rng.random((n, 4)) * (rng.random((n, 4)) < 0.5)
    one = np.concatenate([background, on[:, None] * 1.0], axis=1)
    many = np.concatenate([background, (on[:, None] & (part[:, None] == np.arange(10))) * 1.0], axis=1)
    assert mass(one, on, documents).units(0.9, rng)[0] == 1
    count, error = mass(many, on, documents).units(0.9, rng)
    assert 8 <= count <= 10
    assert 0 <= error < 2


def test_bad_input_is_one_sentence():
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="3 directions and 2 labels"):
        redundancy(np.eye(3), np.zeros(2))
    with pytest.raises(UsageError, match="1 of them zero"):
        decoder_clusters(np.array([[1.0, 0], [0, 0]]), 1, rng)
    with pytest.raises(UsageError, match="with and without"):
        mass(np.ones((4, 2)), np.ones(4, bool), np.arange(4))
