"""The generators of two published benchmarks: statistics of a sample against the figures their papers print."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthetic import Batch, World
from synthetic.errors import UsageError
from synthetic.features import VariedMagnitude
from synthetic.placement import mutual_coherence, random_frames, tight_frames
from synthetic.rates import compensated
from synthetic.support import Support

Z = 6.5


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the block-sparse featurizer paper (arXiv:2606.25234, appendix H) ----------------------------------------------


def test_manifold_superposition_is_the_papers() -> None:
    """128 factors in R^128, half segments, half in turn from seven curved kinds; 4 on; E||x||^2 = 1; no noise."""
    world = World.from_spec("manifold-superposition")
    kinds = Counter(feature.name.split("/")[0] for feature in world.features)
    curved = {"circle": 2, "disk": 2, "sphere": 3, "torus": 3, "moebius": 3, "swiss_roll": 3, "helix": 3}
    assert world.width == sum(kinds.values()) == 128 and kinds.pop("segment") == 64
    assert set(kinds) == set(curved) and set(kinds.values()) == {9, 10}
    for feature in world.features:
        assert feature.dim == curved.get(feature.name.split("/")[0], 1)
    batch = world.sample(40_000, 0)
    assert batch.noise is None and not world.bias.any()
    assert ((batch.index >= 0).sum(1) == 4).all()
    norms = batch.x.double().square().sum(1)
    assert abs(float(norms.mean()) - 1) < Z * float(norms.std()) / 200
    active = batch.active.double()
    assert float((active.mean(0) - 4 / 128).abs().max()) < Z * math.sqrt(4 / 128 / 40_000)
    # every factor weighs equally: RMS 1 before the common factor 1/2
    energy = batch.contributions().double().square().sum(2)
    for factor in range(0, 128, 9):
        own = energy[batch.index == factor]
        assert abs(float(own.mean()) - 0.25) < Z * float(own.std()) / math.sqrt(len(own)) + 1e-6


# ---- SynthSAEBench-16k (arXiv:2602.14687) --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> World:
    return World.from_spec("synthsaebench-16k")


@pytest.fixture(scope="module")
def rows(bench: World) -> Batch:
    return bench.sample(6000, 0)


def test_synthsaebench_has_the_published_size_and_l0(bench: World, rows: Batch) -> None:
    """Published: 16,384 features in R^768; L0 about 34, about 25 among the 4,096 most frequent; |cos| at most .15
    with the nearest other feature, on average; a bias of norm 0.5."""
    assert (len(bench.features), bench.width, set(bench.dims)) == (16_384, 768, {1})
    rates = bench.support.rates
    assert float(rates.sum()) == pytest.approx(34, abs=1)
    assert float(rates.topk(4096).values.sum()) == pytest.approx(25, abs=1)
    assert float(bench.bias.norm()) == pytest.approx(0.5, rel=1e-5)
    directions = torch.cat(bench.frames())
    cosines = (directions[::64] @ directions.T).abs()
    cosines[torch.arange(256), 64 * torch.arange(256)] = 0
    assert float(cosines.amax(1).mean()) == pytest.approx(0.15, abs=0.01)
    l0 = (rows.index >= 0).sum(1).double()
    assert abs(float(l0.mean() - rates.sum())) < Z * float(l0.std()) / math.sqrt(len(l0))


def test_synthsaebench_frequencies_are_zipf_and_match_the_stated_rates(bench: World, rows: Batch) -> None:
    """Features outside the trees keep .4 k^-.5 mapped onto [5e-4, .4]; every feature fires at its stated rate."""
    rank = torch.arange(1, 16_385, dtype=torch.float64) ** -0.5
    zipf = 5e-4 + (0.4 - 5e-4) * (rank - rank[-1]) / (1 - rank[-1])
    outside = bench.support.parent < 0
    assert int(outside.sum()) == 128 + 16_384 - 10_880
    torch.testing.assert_close(bench.support.rates[outside], zipf[outside])
    expected = bench.support.rates * len(rows)
    seen = rows.active.double().sum(0)
    common = expected > 30
    score = (seen - expected) / expected.sqrt()
    assert int(common.sum()) > 900 and float(score[common].abs().max()) < Z


def test_synthsaebench_hierarchy_is_obeyed(bench: World, rows: Batch) -> None:
    """128 trees of branching 4 and depth 3, level by level; a child needs its parent, siblings exclude each other."""
    parent, level = bench.support.parent, bench.support.level
    assert torch.bincount(level).tolist() == [128 + 5504, 512, 2048, 8192]
    assert parent[128:132].tolist() == [0] * 4 and parent[639] == 127 and parent[640] == 128 and parent[10_879] == 2687
    active = rows.active
    children = (parent >= 0).nonzero()[:, 0]
    assert not (active[:, children] & ~active[:, parent[children]]).any()
    families = torch.zeros(len(rows), len(parent)).index_add_(1, parent[children], active[:, children].float())
    assert float(families.max()) == 1


def test_synthsaebench_magnitudes(bench: World, rows: Batch) -> None:
    """Mean 5 to 4 from the most to the least frequent, a spread of its own for each; children follow their parents."""
    laws = [feature.magnitude for feature in bench.features]
    means = torch.tensor([law.mean for law in laws if law])
    stds = torch.tensor([law.std for law in laws if law])
    torch.testing.assert_close(means, torch.linspace(5, 4, 16_384))
    # |N(.5, .5^2)|: E = .5834, E^2 = .5
    assert float(stds.mean()) == pytest.approx(0.5834, abs=0.02) and float(stds.square().mean()) == pytest.approx(
        0.5, abs=0.03
    )
    length = rows.coords[..., 0]
    assert (length >= 0).all()
    for feature in (0, 1, 2):
        own = length[rows.index == feature].double()
        error = Z / math.sqrt(len(own))
        assert abs(float(own.mean()) - means[feature]) < error * stds[feature]
        assert abs(float(own.std()) - stds[feature]) < error * stds[feature]
    for chain in ([0, 128], [0, 128, 640], [0, 128, 640, 2688]):
        # a descendant's length is its own draw times each ancestor's draw over that ancestor's mean
        batch = bench.points(chain[-1], 2000, 0).coords[:, 0, 0].double() / bench.scales[chain[-1]]
        own, above = laws[chain[-1]], [laws[i] for i in chain[:-1]]
        factor = math.prod(math.sqrt(law.second_moment()) / law.mean for law in above if law)
        assert own is not None
        expected = math.sqrt(own.second_moment()) * factor
        assert float(bench.scales[chain[-1]]) == pytest.approx(expected, rel=1e-6)
        assert abs(float(batch.square().mean()) - 1) < Z * float(batch.square().std()) / math.sqrt(2000)
    child = 128
    has = (rows.index == child).any(1)
    both = [(length[has] * (rows.index[has] == which)).sum(1) for which in (0, child)]
    relative = both[1] / (both[0] / means[0])
    law = laws[child]
    assert law is not None and abs(float(relative.mean()) - law.mean) < Z * law.std / math.sqrt(len(relative))


# ---- what these worlds are made of ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 0.5), min_size=7, max_size=7), st.booleans())
def test_compensated_rates_are_the_published_formula(own: list[float], exclusive: bool) -> None:
    parent = [-1, 0, 0, 1, 1, 1, -1]
    got = compensated(torch.tensor(own, dtype=torch.float64), torch.tensor(parent), exclusive).tolist()
    for i, above in enumerate(parent):
        expected = own[i]
        if above >= 0:
            rivals = sum(own[j] for j in range(7) if parent[j] == above and j != i) / own[above]
            expected = min(1.0, own[i] / own[above] * (1 + exclusive * rivals))
        assert got[i] == pytest.approx(expected)


def test_compensated_trees_fire_as_the_published_algorithm() -> None:
    """Its steps taken one after the other: draw everyone, drop children of the silent, let one sibling stay."""
    rates = [0.4, 0.2, 0.15, 0.1, 0.05, 0.12]
    parents = [-1, 0, 0, 0, 1, 1]
    tree = {"parents": parents, "exclusive": True, "compensate": True}
    support = Support({"law": "independent", "rates": rates, "hierarchy": tree}, 6, rng(0))
    n, generator = 200_000, rng(1)
    q = compensated(torch.tensor(rates, dtype=torch.float64), torch.tensor(parents), True)
    on = torch.rand(n, 6, generator=generator, dtype=torch.float64) < q
    for node, children in ((0, [1, 2, 3]), (1, [4, 5])):
        on[:, children] &= on[:, [node]]
        stays = (torch.rand(n, len(children), generator=generator) * on[:, children]).argmax(1)
        on[:, children] &= torch.nn.functional.one_hot(stays, len(children)).bool()
    frequency = on.double().mean(0)
    assert float((frequency - support.rates).abs().max()) < Z * math.sqrt(0.25 / n)
    # and what is left of a child is near its own rate, not near what an uncompensated tree leaves
    assert support.rates[4:].tolist() == pytest.approx(rates[4:], rel=0.3)


def test_gaussian_loadings_have_the_stated_rms_length_and_are_cut() -> None:
    value = {"law": "independent", "rates": 0.1, "cofiring": {"rank": 25, "strength": 0.5, "kind": "gaussian"}}
    lengths = Support(value, 4000, rng(0))._loadings.norm(dim=1)
    assert float(lengths.square().mean().sqrt()) == pytest.approx(0.5, abs=0.01) and float(lengths.std()) > 0.05
    value["cofiring"] = {"rank": 2, "strength": 0.9, "kind": "gaussian"}
    assert float(Support(value, 4000, rng(0))._loadings.norm(dim=1).max()) == pytest.approx(0.99**0.5)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 6), st.floats(0.5, 6), st.floats(0, 2), st.floats(0, 1), st.floats(0.2, 3), st.booleans())
def test_varied_magnitudes_carry_each_features_own_energy(
    first: float, last: float, mean: float, std: float, scale: float, nonnegative: bool
) -> None:
    """E||h_i||^2 = scale^2 E a_i^2, E a_i^2 of the rectified normal by quadrature."""
    magnitude = {"law": "varied_normal", "mean": [first, last], "std": {"mean": mean, "std": std}}
    group = {"manifold": "sign", "count": 4, "magnitude": magnitude, "scale": scale, "nonnegative": nonnegative}
    world = World.from_spec({"width": 6, "features": [group], "support": {"law": "exact", "active": 1}})
    again = World.from_spec(world.spec())
    assert again.fingerprint() == world.fingerprint() and torch.equal(again.sample(9, 1).x, world.sample(9, 1).x)
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    weight = torch.exp(-grid.square() / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    for i, feature in enumerate(world.features):
        law = feature.magnitude
        assert law is not None and law.mean == pytest.approx(first + (last - first) * i / 3)
        expected = float(((law.mean + law.std * grid).clamp_min(0).square() * weight).sum())
        assert float(world.scales[i]) == pytest.approx(scale * math.sqrt(expected), rel=1e-6)
        own = world.points(i, 4000, 0).coords[:, 0, 0].double()
        square = own.square()
        error = Z * float(square.std()) / math.sqrt(4000) + 1e-5 * scale**2 * expected
        assert abs(float(square.mean()) - scale**2 * expected) < error
        assert bool((own >= 0).all()) == nonnegative


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=60, max_size=90), st.integers(8, 16), st.integers(0, 10**6))
def test_tight_frames_are_orthonormal_and_more_even_than_random_ones(dims: list[int], width: int, seed: int) -> None:
    def potential(rows: torch.Tensor) -> float:
        return float((rows.double() @ rows.double().T).square().sum())

    rows = tight_frames(dims, width, rng(seed))
    for frame in rows.split(dims):
        torch.testing.assert_close(frame @ frame.T, torch.eye(len(frame)), rtol=1e-5, atol=1e-5)
    least, random = sum(dims) ** 2 / width, potential(random_frames(dims, width, rng(seed)))
    assert least * (1 - 1e-6) <= potential(rows) <= least + 0.5 * (random - least) + 1e-6
    assert mutual_coherence(rows, dims)[0] <= 1 + 1e-6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"magnitude": {"law": "varied_normal", "mean": [5.0], "std": {"mean": 1, "std": 0}}}, "two positive numbers"),
        ({"magnitude": {"law": "varied_normal", "mean": [5.0, -1], "std": {"mean": 1, "std": 0}}}, "two positive"),
        ({"magnitude": {"law": "varied_normal", "mean": [5.0, 4], "std": {"mean": 1}}}, "lacks 'std'"),
    ],
)
def test_bad_varied_magnitudes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        World.from_spec(
            {"width": 4, "features": [{"manifold": "sign", **change}], "support": {"law": "exact", "active": 1}}
        )


def test_bad_trees_and_frames_are_refused() -> None:
    both = {"parents": [-1, 0], "child_rate": 0.5, "compensate": True}
    with pytest.raises(UsageError, match="needs no compensation"):
        Support({"law": "independent", "rates": 0.1, "hierarchy": both}, 2, rng(0))
    with pytest.raises(UsageError, match="cannot be tight in width 9"):
        tight_frames([2, 2], 9, rng(0))
    assert VariedMagnitude("varied_normal", first=1, last=2).spec()["mean"] == [1, 2]
