"""Compiled loops over activations against the torch operations they stand for; training rows against full batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthetic import loops
from synthetic.spec import world_names
from synthetic.support import Support, _above_phi
from synthetic.world import World


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)  # the first example compiles
@given(seed=st.integers(0, 2**31), m=st.integers(0, 60), rows=st.integers(1, 12), n=st.integers(1, 9))
def test_pairs_are_sorted_by_row_and_then_by_feature(seed: int, m: int, rows: int, n: int) -> None:
    row, feature = torch.randint(rows, (m,), generator=rng(seed)), torch.randint(n, (m,), generator=rng(seed + 1))
    key = (row * n + feature).sort().values
    found = loops.by_row(row.numpy(), feature.numpy(), rows, n)
    assert np.array_equal(found[0] * n + found[1], key)
    order, starts = loops.grouped(feature.numpy(), n)
    assert np.array_equal(order, feature.argsort(stable=True))
    assert np.array_equal(np.diff(starts), torch.bincount(feature, minlength=n))


@settings(deadline=None)  # the first example compiles
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 12), hits=st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_cells_are_the_distinct_ones(seed: int, rows: int, hits: list[int]) -> None:
    row = torch.randint(rows, (sum(hits),), generator=rng(seed))
    column = torch.repeat_interleave(torch.arange(len(hits)), torch.tensor(hits))
    key = torch.unique(row * len(hits) + column)
    found = loops.cells(row.numpy(), np.array(hits), rows)
    assert np.array_equal(found[0] * len(hits) + found[1], key)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), m=st.integers(1, 300), spread=st.floats(0.1, 12), peak=st.floats(-6, 9))
def test_cells_that_are_turned_away_early_would_not_be_kept(seed: int, m: int, spread: float, peak: float) -> None:
    """Also at scores beyond the table, an infinite one (rate 1), and a u that is just at the border."""
    row, column = torch.arange(m), torch.arange(m) % 2
    shift = (peak - spread * torch.rand(m, 2, generator=rng(seed))).float()
    threshold = torch.tensor([0.25, torch.inf])
    score = threshold[column] + shift[row, column]
    highest = torch.special.ndtr(torch.stack([threshold[0] + shift[:, 0].max(), threshold[1]]))
    chance = torch.special.ndtr(score) / highest[column]
    u = torch.rand(m, generator=rng(seed + 1))
    u[::3] = torch.nextafter(chance[::3], torch.tensor(0.0))
    cells = row.numpy(), column.numpy(), u.numpy()
    *left, found = loops.hopeful(*cells, threshold.numpy(), shift.numpy(), highest.numpy(), _above_phi())
    assert np.array_equal(found, score[left[0]])
    kept = loops.kept(*left, torch.special.ndtr(torch.from_numpy(found)).numpy(), highest.numpy())
    assert np.array_equal(kept[0], (u < chance).nonzero()[:, 0])


@settings(deadline=None)  # the first example compiles
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 9), s=st.integers(1, 6), extra=st.integers(0, 6))
def test_floyd_draws_the_same_subsets_in_either_order(seed: int, rows: int, s: int, extra: int) -> None:
    n = s + extra
    last = [n - s + k for k in range(s)]
    draw = torch.stack([torch.randint(0, end + 1, (rows,), generator=rng(seed + k)) for k, end in enumerate(last)])
    roots = torch.arange(n) * 3 + 1
    row, drawn = loops.floyd(draw.numpy(), roots.numpy(), False)
    expected = torch.empty(rows, s, dtype=torch.int64)
    for k, end in enumerate(last):
        taken = (expected[:, :k] == draw[k][:, None]).any(dim=1)
        expected[:, k] = torch.where(taken, end, draw[k])
    assert np.array_equal(drawn.reshape(rows, s), roots[expected])
    assert np.array_equal(row.reshape(rows, s), np.arange(rows)[:, None].repeat(s, axis=1))
    ascending = loops.floyd(draw.numpy(), roots.numpy(), True)[1].reshape(rows, s)
    assert np.array_equal(ascending, roots[expected.sort(dim=1).values])


@settings(deadline=None)  # the first example compiles
@given(
    seed=st.integers(0, 2**31),
    parents=st.lists(st.integers(-1, 6), min_size=7, max_size=7),
    rows=st.integers(1, 8),
    density=st.floats(0, 1),
)
def test_parents_are_found_in_their_own_row(seed: int, parents: list[int], rows: int, density: float) -> None:
    active = torch.rand(rows, 7, generator=rng(seed)) < density
    row, feature = active.nonzero(as_tuple=True)
    at = loops.parents(row.numpy(), feature.numpy(), np.array(parents))
    for i, (r, f) in enumerate(zip(row.tolist(), feature.tolist(), strict=True)):
        there = parents[f] >= 0 and bool(active[r, parents[f]])
        assert (at[i] >= 0) == there
        assert not there or (int(row[at[i]]), int(feature[at[i]])) == (r, parents[f])


@settings(deadline=None)  # the first example compiles
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 8), density=st.floats(0, 1))
def test_slots_and_terms_hold_every_activation_once(seed: int, rows: int, density: float) -> None:
    dims = np.array([1, 3, 2])
    active = torch.rand(rows, 3, generator=rng(seed)) < density
    row, feature = (part.numpy() for part in active.nonzero(as_tuple=True))
    flat = torch.randn(len(row), 3, generator=rng(seed)).numpy()
    theta = torch.randn(len(row), 2, generator=rng(seed + 1)).numpy()
    index, coords, angles = loops.padded(row, feature, flat, theta, rows)
    assert index.shape == (rows, max(1, int(active.sum(1).max())))
    used = index >= 0
    assert np.array_equal(index[used], feature) and np.array_equal(coords[used], flat)
    assert np.array_equal(angles[used], theta) and not coords[~used].any() and not angles[~used].any()
    assert np.array_equal(used.sum(1), active.sum(1))
    starts = dims.cumsum() - dims
    table_row, weight, offsets = loops.terms(row, feature, flat, dims, starts, rows)
    expected = [(starts[f] + k, flat[i, k]) for i, f in enumerate(feature) for k in range(dims[f])]
    assert [*zip(table_row, weight, strict=True)] == expected
    assert np.array_equal(np.append(offsets, len(weight)), np.append(0, (active.long() @ torch.tensor(dims)).cumsum(0)))


@pytest.mark.parametrize("name", world_names())
def test_training_rows_are_those_of_the_batch_with_truth(name: str) -> None:
    world = World.from_spec(name)
    assert torch.equal(world.rows(300, 5), world.sample(300, 5).x)
    stream, twin = world.batches(64), world.batches(64)
    for _ in range(2):
        assert torch.equal(next(stream), twin.batch().x)
    assert torch.equal(stream.state_dict()["generator"], twin.state_dict()["generator"])
    assert not next(stream).is_inference()  # may be saved for a backward pass


def test_a_batch_is_the_sum_of_its_own_truth() -> None:
    spec = {
        "width": 24,
        "features": [{"manifold": "sphere", "count": 6, "magnitude": "uniform"}, {"manifold": "helix", "count": 8}],
        "support": {
            "law": "independent",
            "rates": 0.3,
            "hierarchy": {"roots": 2, "branching": 2, "depth": 2, "child_rate": 0.6, "scale_children": True},
        },
        "bias": 1.0,
        "noise": 0.1,
    }
    world = World.from_spec(spec)
    batch = world.sample(200, 0)
    assert batch.noise is not None
    x = batch.frames.combine(batch.index, batch.coords).add_(world.bias).add_(batch.noise)
    assert torch.equal(batch.x, x)


def test_an_exact_support_is_sorted_with_and_without_families() -> None:
    for family in (None, {"parents": [-1] * 6 + [0, 3, 3, 5], "child_rate": 0.5}):
        support = Support({"law": "exact", "active": 4, "hierarchy": family}, 10, rng(0))
        row, feature = support.sample(50, rng(1))
        assert bool(((row * 10 + feature).diff() > 0).all())
