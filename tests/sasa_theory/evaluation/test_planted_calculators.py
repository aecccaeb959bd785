"""Energy per feature and owners: against loops over samples, and on dictionaries whose counts are known."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory import evaluation
from sasa_theory.evaluation import planted
from sasa_theory.models.codes import Codes
from synthetic.errors import LabError, UsageError

modest = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@dataclass
class Truth:
    """The part of a world's batch that these calculators read."""

    x: torch.Tensor
    index: torch.Tensor


def frame(d: int, width: int, g: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, d, generator=g, dtype=torch.float64))[0].T


@st.composite
def scenes(draw):
    """Random frames, truth, codes (gated or dense) and reconstructions, with no relation between them."""
    g = torch.Generator().manual_seed(draw(seeds))
    dims = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    width, n, units, rank = 5, 30, draw(st.integers(1, 6)), draw(st.integers(1, 3))
    frames = [frame(d, width, g) for d in dims]
    slots = draw(st.integers(1, len(dims)))
    index = torch.stack([torch.randperm(len(dims), generator=g)[:slots] for _ in range(n)])
    index[torch.rand(n, slots, generator=g) < 0.3] = -1
    decoder = torch.randn(units, rank, width, generator=g, dtype=torch.float64)
    dense = torch.randn(n, units, rank, generator=g, dtype=torch.float64)
    dense[torch.rand(n, units, generator=g) < 0.5] = 0
    if draw(st.booleans()):
        codes = Codes(None, dense, units)
    else:  # every unit has a slot, in a shuffled order, the silent ones marked empty
        order = torch.stack([torch.randperm(units, generator=g) for _ in range(n)])
        values = dense.gather(1, order[..., None].expand(-1, -1, rank))
        codes = Codes(torch.where((values == 0).all(-1), -1, order), values, units)
    x = torch.randn(n, width, generator=g, dtype=torch.float64)
    xhat = torch.randn(n, width, generator=g, dtype=torch.float64)
    return frames, decoder, x, xhat, codes, Truth(x, index)


def part(codes: Codes, rows: slice) -> Codes:
    return Codes(None if codes.index is None else codes.index[rows], codes.values[rows], codes.n_units)


@modest
@given(scene=scenes(), cut=st.integers(0, 30), share=st.floats(0.2, 1.0), chunk=st.integers(1, 40))
def test_energies_counts_and_recovery_equal_loops_over_samples(scene, cut, share, chunk):
    frames, decoder, x, xhat, codes, truth = scene
    bias = torch.arange(5, dtype=torch.float64) / 5
    calculator = evaluation.FeatureEnergy(frames, decoder, bias=bias, share=share)
    kept, planted.CHUNK = planted.CHUNK, chunk
    try:
        for rows in (slice(0, cut), slice(cut, None)):
            calculator.update(x[rows], xhat[rows], part(codes, rows), Truth(x[rows], truth.index[rows]))
    finally:
        planted.CHUNK = kept
    result = calculator.compute()
    dense = codes.dense()
    for i, v in enumerate(frames):
        active = [t for t in range(len(x)) if i in truth.index[t].tolist()]
        assert result.active_rows[i] == len(active)
        if not active:
            assert np.isnan(result.recovered[i])
            assert not result.counted[i]
            assert result.units_per_feature[i] == 0
            continue
        unit = np.zeros(len(decoder))
        column = np.zeros(decoder.shape[0] * decoder.shape[1])
        for t in active:
            for k in range(len(decoder)):
                unit[k] += float((v @ (dense[t, k] @ decoder[k])).square().sum()) / len(active)
                for j in range(decoder.shape[1]):
                    column[k * decoder.shape[1] + j] += float((dense[t, k, j] * v @ decoder[k, j]).square().sum())
        np.testing.assert_allclose(result.unit_energy[i], unit, atol=1e-10)
        for energies, count in ((unit, result.units_per_feature[i]), (column, result.columns_per_feature[i])):
            ordered = np.sort(energies)[::-1]
            if ordered.sum() > 0:
                assert ordered[:count].sum() >= share * ordered.sum() * (1 - 1e-9)
                assert ordered[: count - 1].sum() <= share * ordered.sum() * (1 + 1e-9)
        error = sum(float((v @ (x[t] - xhat[t])).square().sum()) for t in active)
        energy = sum(float((v @ (x[t] - bias)).square().sum()) for t in active)
        assert result.recovered[i] == pytest.approx(1 - error / energy)
        assert result.counted[i] == (result.recovered[i] >= 0.5)
    assert result.features_counted == int(result.counted.sum())


def two_circles(n: int, g: torch.Generator) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two orthogonal planes in R^6, one active per row: frames, angles, x, index."""
    axes = frame(4, 6, g)
    t = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    index = (torch.arange(n) % 2)[:, None]
    circle = torch.stack([t.cos(), t.sin()], dim=1)
    frames = [axes[:2], axes[2:]]
    x = torch.where(index == 0, circle @ frames[0], circle @ frames[1])
    return frames, t, x, index


def nearest_ray_codes(x: torch.Tensor, atoms: torch.Tensor) -> Codes:
    scores, index = (x @ atoms.T).max(dim=1, keepdim=True)
    return Codes(index, scores[..., None], len(atoms))


@pytest.mark.parametrize(("m", "other"), [(4, 3), (7, 6), (16, 5)])
def test_a_dictionary_that_splits_a_circle_into_m_rays_has_m_owners(m, other):
    frames, _, x, index = two_circles(20_000, torch.Generator().manual_seed(0))
    rays = []
    for rows, count in zip(frames, (m, other), strict=True):
        angle = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count + 0.1
        rays.append(torch.stack([angle.cos(), angle.sin()], dim=1) @ rows)
    decoder = torch.cat([*rays, torch.zeros(3, 6)])[:, None, :] * 4  # the length of an atom does not matter
    codes = nearest_ray_codes(x, decoder[:, 0] / 4)
    codes = Codes(codes.index, codes.values / 4, codes.n_units)
    owners = evaluation.OwnerCount(decoder, 2)
    energy = evaluation.FeatureEnergy(frames, decoder)
    xhat = torch.zeros_like(x).add(codes.values[:, 0] * decoder[codes.index[:, 0], 0])
    for rows in (slice(0, 777), slice(777, None)):
        batch = (x[rows], xhat[rows], part(codes, rows), Truth(x[rows], index[rows]))
        owners.update(*batch)
        energy.update(*batch)
    result, spent = owners.compute(), energy.compute()
    np.testing.assert_array_equal(result.owners, [m, other])
    np.testing.assert_array_equal(result.owners_any, [m, other])
    np.testing.assert_array_equal(result.points, [10_000, 10_000])
    assert result.largest[0] == pytest.approx(1 / m, abs=0.01)
    # m equal shares: 90 % of the energy takes ceil(.9 m) of them, a unit more or less for the grid's rounding
    assert spent.units_per_feature[0] == pytest.approx(math.ceil(0.9 * m), abs=1 if m == 16 else 0)


def test_one_group_on_each_plane_owns_it_alone_in_any_gauge():
    g = torch.Generator().manual_seed(3)
    frames, _, x, index = two_circles(4000, g)
    mix = torch.randn(2, 2, 2, generator=g, dtype=torch.float64) + 2 * torch.eye(2)
    decoder = torch.stack([mix[1] @ frames[1], mix[0] @ frames[0]])  # the groups in the other order
    unit = 1 - index
    z = torch.stack([x @ frames[1].T @ torch.linalg.inv(mix[1]), x @ frames[0].T @ torch.linalg.inv(mix[0])], dim=1)
    codes = Codes(unit, z[torch.arange(len(x)), unit[:, 0]][:, None], 2)
    owners, energy = evaluation.OwnerCount(decoder, 2), evaluation.FeatureEnergy(frames, decoder)
    for calculator in (owners, energy):
        calculator.update(x, x, codes, Truth(x, index))
    np.testing.assert_array_equal(owners.compute().owners, 1)
    np.testing.assert_array_equal(energy.compute().units_per_feature, 1)
    np.testing.assert_array_equal(energy.compute().recovered, 1)
    # a reconstruction that returns only the bias recovers nothing, half of x recovers three quarters
    for factor, recovered in ((0.0, 0.0), (0.5, 0.75)):
        other = evaluation.FeatureEnergy(frames, decoder, bias=torch.ones(6))
        other.update(x + 1, factor * x + 1, codes, Truth(x, index))
        np.testing.assert_allclose(other.compute().recovered, recovered, atol=1e-12)


def test_the_floor_drops_rare_owners_and_rows_with_several_features_are_ignored():
    decoder = torch.eye(3)[:, None, :]
    unit = torch.tensor([0] * 190 + [1] * 9 + [2] + [-1] * 50 + [2] * 500)[:, None]
    index = torch.tensor([[0, -1]] * 250 + [[0, 1]] * 400 + [[-1, -1]] * 100)
    codes = Codes(unit, torch.where(unit >= 0, 1.0, 0.0)[..., None], 3)
    x = torch.zeros(750, 3)
    counts = {}
    for floor in (0.0, 0.005, 0.05):
        calculator = evaluation.OwnerCount(decoder, 2, floor=floor)
        calculator.update(x, x, codes, Truth(x, index))
        counts[floor] = calculator.compute()
    assert [result.owners[0] for result in counts.values()] == [3, 2, 1]
    assert all(result.owners_any[0] == 3 for result in counts.values())
    result = counts[0.005]
    np.testing.assert_array_equal(result.points, [250, 0])
    assert result.unowned[0] == pytest.approx(50 / 250)
    assert np.isnan(result.owners[1])
    np.testing.assert_array_equal(result.counts[0], [190, 9, 1])


@modest
@given(scene=scenes())
def test_the_owner_is_the_unit_with_the_largest_contribution(scene):
    _, decoder, _, _, codes, _ = scene
    sizes = torch.einsum("nkr,krD->nkD", codes.dense(), decoder).square().sum(dim=-1)
    expected = torch.where(sizes.amax(dim=1) > 0, sizes.argmax(dim=1), -1)
    assert torch.equal(evaluation.owning_units(codes, evaluation.decoder_grams(decoder)), expected)


def test_missing_truth_and_wrong_sizes_are_refused_with_a_sentence():
    decoder = torch.eye(3)[:, None, :]
    codes = Codes(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1, 1), 3)
    x = torch.zeros(2, 3)
    with pytest.raises(LabError, match="truth"):
        evaluation.OwnerCount(decoder, 1).update(x, x, codes)
    with pytest.raises(LabError, match="truth"):
        evaluation.FeatureEnergy([torch.eye(3)[:1]], decoder).update(x, x, codes)
    with pytest.raises(UsageError, match="width 2"):
        evaluation.FeatureEnergy([torch.eye(2)], decoder)
    with pytest.raises(UsageError, match="no features"):
        evaluation.FeatureEnergy([], decoder)
    with pytest.raises(UsageError, match="floor"):
        evaluation.OwnerCount(decoder, 1, floor=2)
    with pytest.raises(LabError, match="before it saw any row"):
        evaluation.OwnerCount(decoder, 1).compute()
