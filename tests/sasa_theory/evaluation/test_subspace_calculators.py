"""Which subspace a unit uses: hand-built models with known answers, twins that must fail, brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sasa_theory import evaluation, geometry
from sasa_theory.evaluation import subspaces
from sasa_theory.models.codes import Codes

modest = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def frame(d: int, width: int, g: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, d, generator=g, dtype=torch.float64))[0].T


def orthogonal_frames(dims: list[int], width: int, g: torch.Generator) -> list[torch.Tensor]:
    return list(frame(sum(dims), width, g).split(dims))


def blocks_from(frames: list[torch.Tensor], rank: int, g: torch.Generator) -> torch.Tensor:
    """(K, rank, D): each unit's frame in a random gauge (an invertible mix of rows), padded by zero rows."""
    blocks = torch.zeros(len(frames), rank, frames[0].shape[1], dtype=torch.float64)
    for k, rows in enumerate(frames):
        blocks[k, : len(rows)] = (
            torch.randn(len(rows), len(rows), generator=g, dtype=torch.float64) + 2 * torch.eye(len(rows))
        ) @ rows
    return blocks


def feed(calculator, codes: Codes, width: int) -> object:
    x = torch.zeros(len(codes.values), width)
    calculator.update(x, x, codes)
    return calculator.compute()


@st.composite
def random_unit(draw):
    g = torch.Generator().manual_seed(draw(seeds))
    units, rank, width, n = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(4, 9)), 40
    encoder = torch.randn(units, width, rank, generator=g, dtype=torch.float64)
    decoder = torch.randn(units, rank, width, generator=g, dtype=torch.float64)
    x = torch.randn(n, width, generator=g, dtype=torch.float64) * torch.rand(width, generator=g).add(0.2)
    on = torch.rand(n, units, generator=g) < 0.6
    on[0] = True
    return g, encoder, decoder, x, on


@modest
@given(case=random_unit(), dims=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_streaming_r_by_r_moments_equals_the_definition_with_full_second_moments(case, dims):
    """Capture and ranks from C_k equal those from the SVD of M_k Sigma_k^{1/2}, formed in full."""
    g, encoder, decoder, x, on = case
    width = x.shape[1]
    frames = [frame(d, width, g) for d in dims]
    values = torch.einsum("nD,kDr->nkr", x, encoder) * on[..., None]
    calculator, ranks = evaluation.Subspaces(frames, decoder), evaluation.UnitRanks(encoder, decoder)
    for part in values.tensor_split([7, 19]):
        rows = torch.zeros(len(part), width)
        calculator.update(rows, rows, Codes(None, part, len(encoder)))
        ranks.update(rows, rows, Codes(None, part, len(encoder)))
    result, spectrum = calculator.compute(), ranks.compute()
    for k in range(len(encoder)):
        inputs = x[on[:, k]]
        sigma = (inputs.T @ inputs / len(x)).numpy()
        w, v = np.linalg.eigh(sigma)
        m = (encoder[k] @ decoder[k]).T.numpy()  # THEORY.md's M_k acts on columns
        u, s, _ = np.linalg.svd(m @ (v * np.sqrt(np.maximum(w, 0))) @ v.T)
        count = int((s > 1e-6 * s[0]).sum())
        for i, rows in enumerate(frames):
            top = u[:, : min(dims[i], count)]
            expected = np.square(rows.numpy() @ top).sum() / dims[i]
            assert result.captures[i, k] == pytest.approx(expected, abs=1e-7)
        energies = s[:count] ** 2
        assert spectrum.rank90[k] == geometry.energy_rank(energies)
        assert spectrum.stable_rank[k] == pytest.approx(geometry.stable_rank(energies), rel=1e-7)
        assert spectrum.participation[k] == pytest.approx(geometry.participation_ratio(energies), rel=1e-7)
        assert spectrum.entropy_rank[k] == pytest.approx(geometry.entropy_rank(energies), rel=1e-7)
        map_energies = np.linalg.svd(m, compute_uv=False)[:count] ** 2
        assert spectrum.map_rank90[k] == geometry.energy_rank(map_energies)
    assert (result.captures <= 1 + 1e-9).all()


@modest
@given(case=random_unit())
def test_the_gauge_of_a_block_changes_nothing(case):
    """E -> E Q^-1, D -> Q D for any invertible Q (C5): same directions, though D_k alone has other singular values."""
    g, encoder, decoder, x, on = case
    rank = decoder.shape[1]
    mix = torch.randn(len(decoder), rank, rank, generator=g, dtype=torch.float64) + 3 * torch.eye(rank)
    frames = [frame(2, x.shape[1], g), frame(1, x.shape[1], g)]
    results, ranks = [], []
    for enc, dec in ((encoder, decoder), (encoder @ torch.linalg.inv(mix), mix @ decoder)):
        codes = Codes(None, torch.einsum("nD,kDr->nkr", x, enc) * on[..., None], len(enc))
        results.append(feed(evaluation.Subspaces(frames, dec), codes, x.shape[1]))
        ranks.append(feed(evaluation.UnitRanks(enc, dec), codes, x.shape[1]))
    np.testing.assert_allclose(results[0].captures, results[1].captures, atol=1e-6)
    np.testing.assert_allclose(ranks[0].participation, ranks[1].participation, rtol=1e-6)
    np.testing.assert_array_equal(ranks[0].map_rank90, ranks[1].map_rank90)


@modest
@given(seed=seeds, dims=st.lists(st.integers(1, 4), min_size=2, max_size=5), spare=st.integers(0, 2))
def test_groups_that_are_the_planted_frames_and_a_twin_with_turned_frames(seed, dims, spare):
    g = torch.Generator().manual_seed(seed)
    rank, width = max(dims) + spare, sum(dims) + 6
    frames = orthogonal_frames(dims, width, g)
    order = torch.randperm(len(dims), generator=g).tolist()
    n = 4000
    unit = torch.randint(len(dims), (n, 1), generator=g)
    # isotropic inside each frame, so every direction carries the same energy
    decoder = blocks_from([frames[i] for i in order], rank, g)
    values = torch.zeros(n, 1, rank, dtype=torch.float64)
    for k, i in enumerate(order):
        here = unit[:, 0] == k
        z = torch.randn(int(here.sum()), dims[i], generator=g, dtype=torch.float64)
        gauge = decoder[k, : dims[i]] @ frames[i].T
        values[here, 0, : dims[i]] = torch.linalg.solve(gauge.T, z.T).T
    codes = Codes(unit, values, len(dims))
    result = feed(evaluation.Subspaces(frames, decoder), codes, width)
    np.testing.assert_allclose(result.best_capture, 1, atol=1e-9)
    np.testing.assert_array_equal(np.array(order)[result.best_unit], np.arange(len(dims)))
    np.testing.assert_array_equal(result.matched_unit, result.best_unit)
    np.testing.assert_array_equal(result.spanning_units, 1)
    np.testing.assert_array_equal(result.features_per_unit, 1)
    np.testing.assert_array_equal(result.best_rank90, dims)
    assert result.rank_error == 0
    if len(set(dims)) > 1:
        assert result.rank_pearson == pytest.approx(1)
        assert result.rank_spearman == pytest.approx(1)
    # the twin: the same codes into frames turned by 60 degrees out of their subspace capture cos^2 = 1/4
    outside = torch.linalg.svd(torch.cat(frames), full_matrices=True)[2][sum(dims) :]
    turned = [0.5 * f + math.sqrt(0.75) * outside[: len(f)] for f in frames]
    twin = decoder.clone()
    for k, i in enumerate(order):
        twin[k, : dims[i]] = decoder[k, : dims[i]] @ frames[i].T @ turned[i]
    other = feed(evaluation.Subspaces(frames, twin), codes, width)
    np.testing.assert_allclose(other.best_capture, 0.25, atol=1e-9)
    assert (other.features_per_unit == 0).all()
    assert not np.isfinite(other.spanning_units).any()


def test_capture_never_uses_more_than_d_directions_and_silent_units_none():
    g = torch.Generator().manual_seed(0)
    axes = frame(6, 6, g)
    decoder = axes[None, :4].clone().repeat(2, 1, 1)
    values = torch.randn(2000, 1, 4, generator=g, dtype=torch.float64) * torch.tensor([2.0, 1.5, 1.0, 0.5])
    codes = Codes(torch.zeros(2000, 1, dtype=torch.int64), values, 2)
    frames = [axes[2:3], axes[:2], axes[1:4], axes[3:5]]
    result = feed(evaluation.Subspaces(frames, decoder), codes, 6)
    # strongest direction of the unit is axis 0 and so on: feature {2} sees axis 0 only, {1,2,3} sees {0,1,2}
    np.testing.assert_allclose(result.captures[:, 0], [0, 1, 2 / 3, 0], atol=0.02)
    assert (result.captures[:, 1] == 0).all()
    # all four directions together hold features {2}, {0,1}, {1,2,3} whole and half of {3,4}
    assert result.features_per_unit[0] == 4
    assert result.features_per_unit[1] == 0


def test_a_unit_that_merges_two_features_is_reported():
    g = torch.Generator().manual_seed(1)
    frames = orthogonal_frames([2, 2, 2], 9, g)
    decoder = torch.stack([torch.cat(frames[:2]), torch.cat([frames[2], torch.zeros(2, 9)])])
    unit = torch.randint(2, (500, 1), generator=g)
    values = torch.randn(500, 1, 4, generator=g, dtype=torch.float64)
    result = feed(evaluation.Subspaces(frames, decoder), Codes(unit, values, 2), 9)
    np.testing.assert_array_equal(result.features_per_unit, [2, 1])
    assert result.features_per_unit_max == 2
    assert result.matched_unit.min() == -1  # three features, two units
    assert result.matched_capture.min() == 0


def brute_force_span(rows: torch.Tensor, directions: torch.Tensor, share: float) -> int | None:
    """Fewest units by enumeration, spans through QR."""
    d = len(rows)
    for size in range(1, len(directions) + 1):
        for chosen in itertools.combinations(range(len(directions)), size):
            union = directions[list(chosen), :d].reshape(-1, rows.shape[1]).numpy()
            if geometry.capture(rows.numpy(), union) >= share - 1e-9:
                return size
    return None


@modest
@given(seed=seeds, d=st.integers(1, 4), units=st.integers(1, 6), rank=st.integers(1, 3), share=st.floats(0.3, 0.95))
def test_units_to_span_really_span_and_are_at_least_the_fewest(seed, d, units, rank, share):
    g = torch.Generator().manual_seed(seed)
    width = 6
    v = frame(d, width, g)
    rows = torch.stack([frame(rank, width, g) for _ in range(units)])
    if units > 2:
        rows[2] = rows[0]  # a copy adds nothing
    directions = subspaces.UnitDirections(rows, torch.ones(units, rank))
    captures = evaluation.capture_matrix([v], directions)
    np.testing.assert_allclose(
        captures[0], [geometry.capture(v.numpy(), unit[:d].numpy()) for unit in rows], atol=1e-12
    )
    found = float(evaluation.units_to_span([v], directions, captures, share)[0])
    fewest = brute_force_span(v, rows, share)
    if fewest is None:
        assert found == math.inf
    else:
        assert fewest <= found <= units
        if fewest == 1:
            assert found == 1
    # greedy again by brute force: the same steps, spans through QR
    held: list[int] = []
    while len(held) < units:
        options = [k for k in range(units) if k not in held]
        gains = [geometry.capture(v.numpy(), rows[[*held, k], :d].reshape(-1, width).numpy()) for k in options]
        held.append(options[int(np.argmax(gains))])
        if max(gains) >= share - 1e-9:
            assert len(held) == found
            break


@modest
@given(seed=seeds, features=st.integers(1, 5), units=st.integers(1, 5))
def test_matching_maximises_the_total_capture(seed, features, units):
    table = np.random.default_rng(seed).random((features, units))
    matched = evaluation.match(table)
    found = matched >= 0
    assert found.sum() == min(features, units)
    assert len(set(matched[found])) == found.sum()
    value = table[np.flatnonzero(found), matched[found]].sum()
    wide = table if features <= units else table.T
    best = max(
        sum(wide[i, k] for i, k in enumerate(choice))
        for choice in itertools.permutations(range(wide.shape[1]), len(wide))
    )
    assert value == pytest.approx(best)


@modest
@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20))
def test_rank_correlations_match_scipy(pairs):
    a, b = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    found = subspaces.pearson(subspaces.mid_ranks(a), subspaces.mid_ranks(b))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
        assert subspaces.pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)


@modest
@given(seed=seeds, units=st.integers(1, 8), rank=st.integers(1, 3), chunk=st.integers(1, 30), absolute=st.booleans())
def test_mean_max_decoder_cosine_equals_the_full_table_in_any_chunks(seed, units, rank, chunk, absolute):
    g = torch.Generator().manual_seed(seed)
    decoder = torch.randn(units, rank, 5, generator=g)
    decoder[0, 0] = 0
    rows = decoder.reshape(-1, 5)[1:].double()
    found = evaluation.mean_max_decoder_cosine(decoder, absolute=absolute, chunk=chunk)
    if len(rows) < 2:
        assert found is None
        return
    table = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2)
    table = (table.abs() if absolute else table).fill_diagonal_(-2)
    assert found == pytest.approx(float(table.max(dim=1).values.mean()), abs=1e-6)


def test_equally_spaced_latents_are_collinear_at_the_packing_bound():
    t = torch.arange(16) * math.pi / 16  # A5: 16 lines in the plane, cos(pi/16) = .981
    decoder = torch.stack([t.cos(), t.sin()], dim=1)[:, None, :]
    assert evaluation.mean_max_decoder_cosine(decoder) == pytest.approx(math.cos(math.pi / 16), abs=1e-6)


@pytest.mark.parametrize("m", [3, 6])
def test_covering_number_of_a_dictionary_that_tiles_a_circle(m):
    g = torch.Generator().manual_seed(2)
    frames = orthogonal_frames([2, 3], 12, g)
    t = torch.arange(m, dtype=torch.float64) * math.pi / m
    atoms = 5 * torch.stack([t.cos(), t.sin()], dim=1) @ frames[0]
    decoder = torch.cat([atoms, frame(4, 12, g) @ frames[1].T @ frames[1], torch.zeros(1, 12)])[:, None, :]
    radius = math.sin(math.pi / (2 * m)) * 1.01
    result = evaluation.covering_numbers(frames, decoder, 1, radius, np.random.default_rng(0), n_points=2000)
    assert result.atoms[0] == m
    assert result.splitting[0] == m / 2
    assert result.covered[0] == 1
    assert result.atoms[1] == math.inf
    assert result.covered[1] < 1
    # a basis suffices once two may be used together: no splitting
    pair = evaluation.covering_numbers(frames, decoder, 2, radius, np.random.default_rng(0))
    assert pair.splitting[0] == 1
