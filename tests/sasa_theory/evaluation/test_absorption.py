"""Planted absorption: against loops over rows, and on dictionaries that absorb, keep, lose or share by construction."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.evaluation import Absorption
from sasa_theory.models import Codes
from synthetic import World
from synthetic.errors import LabError, UsageError


@dataclass
class Truth:
    """The part of a world's batch that the calculator reads."""

    x: torch.Tensor
    index: torch.Tensor
    planted: torch.Tensor

    def contributions(self) -> torch.Tensor:
        return self.planted


@st.composite
def scenes(draw, rows: int = 20):
    """A random forest, random contributions (some cut to zero) and random codes, with no relation between them."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    features, units, rank, width = 5, draw(st.integers(1, 6)), draw(st.integers(1, 3)), 4
    parent = torch.tensor([-1, *(draw(st.integers(-1, i - 1)) for i in range(1, features - 1)), 0])
    slots = draw(st.integers(2, features))
    index = torch.stack([torch.randperm(features, generator=g)[:slots] for _ in range(rows)]).sort(1).values
    index[torch.rand(rows, slots, generator=g) < 0.2] = -1
    planted = torch.randn(rows, slots, width, generator=g, dtype=torch.float64)
    planted[torch.rand(rows, slots, generator=g) < 0.1] = 0
    planted[index < 0] = 0
    decoder = torch.randn(units, rank, width, generator=g, dtype=torch.float64)
    values = torch.randn(rows, units, rank, generator=g, dtype=torch.float64)
    values[torch.rand(rows, units, generator=g) < 0.5] = 0
    return parent, decoder, Codes(None, values, units), Truth(torch.zeros(rows, width), index, planted)


def feed(calculator: Absorption, codes: Codes, truth: Truth, cuts: tuple[int, ...]):
    for start, stop in itertools.pairwise(cuts):
        rows = slice(start, stop)
        part = Truth(truth.x[rows], truth.index[rows], truth.planted[rows])
        calculator.update(part.x, part.x, Codes(None, codes.values[rows], codes.n_units), part)
    return calculator.compute()


def fewest(carried: list[float], share: float) -> set[int]:
    """The largest entries of the positive part, one by one, until they hold `share` of it."""
    positive = [max(0.0, v) for v in carried]
    chosen: set[int] = set()
    while sum(positive[k] for k in chosen) < (share - 1e-12) * sum(positive):
        chosen.add(max(set(range(len(positive))) - chosen, key=lambda k: positive[k]))
    return chosen


@settings(max_examples=40, deadline=None)
@given(scenes(), st.integers(1, 19))
def test_it_is_its_definition(scene, cut):
    parent, decoder, codes, truth = scene
    found = feed(Absorption(decoder, parent), codes, truth, (0, cut, 20))
    features, units = len(parent), len(decoder)
    on = [
        {int(i): h for i, h in zip(truth.index[t], truth.planted[t], strict=True) if i >= 0 and bool(h.any())}
        for t in range(20)
    ]

    def inner(t: int, k: int, i: int) -> float:
        return float((codes.values[t, k] @ decoder[k]) @ on[t][i])

    def below(t: int, i: int) -> list[int]:
        return [c for c in on[t] if parent[c] == i]

    alone = [[t for t in range(20) if i in on[t] and not below(t, i)] for i in range(features)]
    main = [fewest([sum(inner(t, k, i) for t in alone[i]) for k in range(units)], 0.9) for i in range(features)]
    for i in range(features):
        assert found.units[i] == len(main[i]) and set(found.main[i].nonzero()[0]) == main[i]
        rows = [t for t in range(20) if i in on[t] and below(t, i)]
        assert found.rows_with_child[i] == len(rows)
        energy = sum(float(on[t][i] @ on[t][i]) for t in alone[i])
        told = sum(inner(t, k, i) for t in alone[i] for k in range(units))
        assert found.alone[i] == pytest.approx(told / energy) if energy else math.isnan(found.alone[i])
        assert bool(found.counted[i]) == bool(rows and energy and told / energy >= 0.5)
        assert bool(found.shared[i]) == any(main[i] & main[c] for c in range(features) if parent[c] == i)
        if not rows:
            assert math.isnan(found.absorbed[i])
            continue
        carried = [sum(inner(t, k, i) for t in rows) for k in range(units)]
        assert found.units_with_child[i] == len(fewest(carried, 0.9))
        kept = absorbed = lost = children = 0
        for t in rows:
            share = [inner(t, k, i) / float(on[t][i] @ on[t][i]) for k in range(units)]
            mine = sum(share[k] for k in main[i])
            others = sum(share[k] for k in range(units) if k not in main[i])
            theirs = set().union(*(main[c] for c in below(t, i))) - main[i]
            kept += mine >= 0.5
            absorbed += mine < 0.5 <= others
            lost += mine < 0.5 and others < 0.5
            children += mine < 0.5 <= others and sum(share[k] for k in theirs) >= 0.5
        assert found.kept[i] == pytest.approx(kept / len(rows))
        assert found.absorbed[i] == pytest.approx(absorbed / len(rows))
        assert found.lost[i] == pytest.approx(lost / len(rows))
        if absorbed:
            assert found.by_children[i] == pytest.approx(children / absorbed)


def test_parts_partition_and_the_pooled_shares_weigh_by_rows():
    g = torch.Generator().manual_seed(3)
    world, batch, decoder, values = planted(noise=0.2)
    values *= 0.3 + torch.rand(values.shape, generator=g, dtype=values.dtype)
    found = feed_world(Absorption(decoder, world.support.parent), values, batch)
    parents = found.rows_with_child > 0
    assert found.kept[parents] + found.absorbed[parents] + found.lost[parents] == pytest.approx(1)
    rows = found.rows_with_child[found.counted]
    assert found.absorbed_share == pytest.approx((rows * found.absorbed[found.counted]).sum() / rows.sum())
    assert found.lost_share == pytest.approx((rows * found.lost[found.counted]).sum() / rows.sum())


# ---- twins: the same rows, dictionaries of known behaviour ---------------------------------------------------------


def planted(dim: int = 1, noise: float = 0.0):
    """A world of two families (parent, two children, four grandchildren each) and the true unit of each feature."""
    world = World.from_spec(
        {
            "width": 14 * dim,
            "features": [{"manifold": "sign", "nonnegative": True} | {"count": 14}]
            if dim == 1
            else [{"manifold": "sphere", "count": 14}],
            "frames": "orthogonal",
            "support": {
                "law": "independent",
                "rates": 0.5,
                "hierarchy": {"roots": 2, "branching": 2, "depth": 2, "child_rate": 0.4, "exclusive": True},
            },
            "noise": noise,
        }
    )
    batch = world.sample(3000, 0)
    decoder = torch.stack(world.frames()).double()
    values = torch.zeros(3000, 14, dim, dtype=torch.float64)
    row, slot = (batch.index >= 0).nonzero(as_tuple=True)
    values[row, batch.index[row, slot]] = batch.coords[row, slot].double()
    return world, batch, decoder, values


def feed_world(calculator: Absorption, values: torch.Tensor, batch):
    calculator.update(batch.x, batch.x, Codes(None, values, values.shape[1]), batch)
    return calculator.compute()


def with_child(world: World, batch) -> torch.Tensor:
    """(rows, features) whether a child of each feature is on."""
    out = torch.zeros(batch.active.shape, dtype=torch.bool)
    for child, parent in enumerate(world.support.parent.tolist()):
        if parent >= 0:
            out[:, parent] |= batch.active[:, child]
    return out


@pytest.mark.parametrize("dim", [1, 3])
def test_the_true_dictionary_keeps_every_parent(dim):
    world, batch, decoder, values = planted(dim)
    found = feed_world(Absorption(decoder, world.support.parent), values, batch)
    assert found.absorbed_share == 0 and found.lost_share == 0 and found.shared_share == 0
    assert found.parents_counted == 6 and found.mean_units == 1 and found.mean_units_with_child == 1


def test_a_planted_absorber_absorbs_every_parent_and_explains_as_much():
    """A child's unit points along itself and all above it; it alone is on. The reconstruction stays exact."""
    world, batch, decoder, values = planted()
    scales, above = world.scales, decoder.clone()
    for child, parent in enumerate(world.support.parent.tolist()):
        if parent >= 0:  # parents come first
            above[child] = decoder[child] + above[parent] * scales[parent] / scales[child]
    absorbing = values * ~with_child(world, batch)[:, :, None]
    rebuilt = torch.einsum("bkr,krd->bd", absorbing, above)
    assert torch.allclose(rebuilt, batch.x.double(), atol=1e-5)
    found = feed_world(Absorption(above, world.support.parent), absorbing, batch)
    assert found.absorbed_share == 1 and found.lost_share == 0
    assert found.mean_units == 1 and found.mean_units_with_child >= 2
    leaves = found.rows_with_child > 0
    # a root with a grandchild on is carried by that grandchild's unit, which is no main unit of its own child
    assert (found.by_children[leaves & (world.support.level.numpy() == 1)] == 1).all()


def test_an_absorber_of_one_family_is_found_where_it_is():
    world, batch, decoder, values = planted()
    mixed, kept = decoder.clone(), values.clone()
    for child in (2, 3):  # the children of feature 0
        mixed[child] = decoder[child] + decoder[0] * world.scales[0] / world.scales[child]
        kept[batch.active[:, child], 0] = 0
    found = feed_world(Absorption(mixed, world.support.parent), kept, batch)
    assert found.absorbed[0] == 1 and found.by_children[0] == 1
    assert (found.absorbed[1:6] == 0).all()


def test_dropping_is_losing_and_one_group_for_a_family_is_sharing():
    world, batch, decoder, values = planted()
    dropped = values * ~with_child(world, batch)[:, :, None]
    found = feed_world(Absorption(decoder, world.support.parent), dropped, batch)
    assert found.lost_share == 1 and found.absorbed_share == 0
    family = torch.stack([decoder[[0, 2, 3, 6, 7, 8, 9], 0], decoder[[1, 4, 5, 10, 11, 12, 13], 0]])
    codes = torch.stack([values[:, [0, 2, 3, 6, 7, 8, 9], 0], values[:, [1, 4, 5, 10, 11, 12, 13], 0]], dim=1)
    found = feed_world(Absorption(family, world.support.parent), codes, batch)
    assert found.shared_share == 1 and found.absorbed_share == 0 and found.mean_units == 1


def test_a_parent_that_nothing_carries_alone_is_not_counted():
    world, batch, decoder, values = planted()
    values[:, 0] = 0
    found = feed_world(Absorption(decoder, world.support.parent), values, batch)
    assert not found.counted[0] and found.parents_counted == 5 and found.alone[0] == pytest.approx(0, abs=1e-6)


def test_bad_input_is_named():
    decoder = torch.zeros(2, 1, 3)
    with pytest.raises(UsageError, match="hierarchy"):
        Absorption(decoder, torch.tensor([-1, -1]))
    with pytest.raises(UsageError, match="outside"):
        Absorption(decoder, torch.tensor([-1, 2]))
    with pytest.raises(LabError, match="planted truth"):
        Absorption(decoder, torch.tensor([-1, 0])).update(
            torch.zeros(1, 3), torch.zeros(1, 3), Codes(None, torch.zeros(1, 2, 1), 2)
        )
