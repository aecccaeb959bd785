"""Worlds: x is the sum of its parts, energies are as stated, specs and streams repeat exactly."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthetic import Batch, World, world_names
from synthetic.errors import DataError, UsageError
from synthetic.source import Dataset, Source

SEEDS = st.integers(0, 2**31)
Z = 6.5

GROUPS = st.lists(
    st.fixed_dictionaries(
        {
            "manifold": st.sampled_from(["circle", "disk", "sphere", "torus", "moebius", "swiss_roll", "helix"]),
            "count": st.integers(1, 3),
            "scale": st.one_of(st.floats(0.2, 3), st.just({"law": "lognormal", "sigma": 0.4})),
            "magnitude": st.sampled_from(["constant", "gaussian", "uniform", "rectified_normal"]),
        }
    ),
    max_size=3,
)


@st.composite
def specs(draw: st.DrawFn, noise: bool = True) -> dict[str, Any]:
    lines = {"manifold": "line", "count": draw(st.integers(2, 4)), "nonnegative": draw(st.booleans())}
    planes = {"manifold": "subspace", "dim": draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)), "count": 2}
    features = [lines, *draw(GROUPS), planes]
    hierarchy = draw(st.sampled_from([None, {"roots": 1, "branching": 2, "depth": 1, "child_rate": 0.4}]))
    if hierarchy:
        hierarchy = {**hierarchy, "scale_children": draw(st.booleans()), "exclusive": draw(st.booleans())}
    support = draw(
        st.sampled_from(
            [
                {"law": "exact", "active": 2},
                {"law": "independent", "rates": 0.3},
                {"law": "independent", "rates": {"law": "zipf", "max": 0.5}},
                {"law": "independent", "rates": 0.2, "cofiring": {"rank": 1, "strength": 0.6}},
            ]
        )
    )
    return {
        "width": draw(st.integers(6, 40)),
        "seed": draw(st.integers(0, 100)),
        "features": features,
        "energy_mode": draw(st.sampled_from(["total", "per_dim"])),
        "support": {**support, "hierarchy": hierarchy},
        "noise": draw(st.sampled_from([0.0, 0.05, 1.0])) if noise else 0.0,
        "bias": draw(st.sampled_from([0.0, 2.0])),
        "energy": draw(st.sampled_from([None, 1.0, 80652.6])),
    }


def sum_error(world: World, batch: Batch) -> float:
    """Largest |x - bias - noise - sum_i V_i z_i| in units of the largest |x|, by plain loops in float64."""
    frames, worst = [frame.double() for frame in world.frames()], 0.0
    for t in range(len(batch)):
        rest = batch.x[t].double() - world.bias.double()
        if batch.noise is not None:
            rest -= batch.noise[t].double()
        for i, coords in zip(batch.index[t].tolist(), batch.coords[t].double(), strict=True):
            if i >= 0:
                rest -= coords[: len(frames[i])] @ frames[i]
        worst = max(worst, float(rest.abs().max()))
    return worst / max(1.0, float(batch.x.abs().max()))


@settings(deadline=None, max_examples=40)
@given(specs(), SEEDS)
def test_x_is_the_sum_of_contributions_and_noise(spec: dict[str, Any], seed: int) -> None:
    world = World.from_spec(spec)
    batch = world.sample(25, seed)
    assert batch.x.dtype == torch.float32 and sum_error(world, batch) < 2e-6
    total = batch.contributions().sum(dim=1) + world.bias + (0 if batch.noise is None else batch.noise)
    torch.testing.assert_close(batch.x, total, rtol=1e-5, atol=2e-6 * float(batch.x.abs().max()))


def test_the_check_above_refutes_perturbed_batches() -> None:
    world = World.from_spec("smoke")
    batch = world.sample(50, 0)
    coords = batch.coords.clone()
    coords[7, 1, 0] += 1e-3
    wrong = [
        Batch(batch.x, batch.index, coords, batch.theta, batch.noise, frames=batch.frames),
        Batch(batch.x, batch.index.roll(1, 0), batch.coords, batch.theta, batch.noise, frames=batch.frames),
        Batch(batch.x, batch.index, batch.coords, batch.theta, None, frames=batch.frames),
    ]
    assert sum_error(world, batch) < 2e-6
    assert all(sum_error(world, twin) > 1e-4 for twin in wrong)


@settings(deadline=None, max_examples=30)
@given(specs(), SEEDS)
def test_truth_is_well_formed(spec: dict[str, Any], seed: int) -> None:
    world = World.from_spec(spec)
    batch = world.sample(30, seed)
    index, slots = batch.index, batch.index.shape[1]
    assert index.dtype == torch.int64 and batch.coords.shape == (30, slots, max(world.dims))
    used = index >= 0
    assert bool((used[:, :-1] | ~used[:, 1:]).all())  # empty slots last
    assert bool(((index[:, 1:] > index[:, :-1]) | ~used[:, 1:]).all())  # ascending, distinct
    assert bool((batch.coords[~used] == 0).all())
    dims = torch.tensor(world.dims)[index.clamp_min(0)]
    assert bool((batch.coords[torch.arange(max(world.dims)) >= dims[:, :, None]] == 0).all())
    active = torch.zeros(30, len(world.dims), dtype=torch.bool)
    for t in range(30):
        active[t, index[t][used[t]]] = True
    assert torch.equal(batch.active, active)
    for frame, dim in zip(world.frames(), world.dims, strict=True):
        assert frame.shape == (dim, world.width)
        torch.testing.assert_close(frame @ frame.T, torch.eye(dim), atol=2e-6, rtol=0)


@settings(deadline=None, max_examples=25)
@given(specs(), SEEDS)
def test_energies_are_as_stated(spec: dict[str, Any], seed: int) -> None:
    """E||signal||^2, E||noise||^2, E||x||^2 and each feature's energy, against averages of a sample."""
    world = World.from_spec(spec)
    facts, batch = world.statistics(), world.sample(6000, seed)
    contributions = batch.contributions().double()
    signal = contributions.sum(dim=1).square().sum(dim=1)
    noise = torch.zeros(2) if batch.noise is None else batch.noise.double().square().sum(dim=1)
    rows = [
        (facts.signal_energy, signal),
        (facts.noise_energy, noise),
        (facts.total_energy, batch.x.double().square().sum(dim=1)),
    ]
    estimate = facts.signal_energy_error * (1 + facts.total_energy / facts.signal_energy)
    for expected, values in rows:
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - expected) <= Z * math.hypot(error, estimate) + 1e-5 * expected
    assert facts.noise_energy == pytest.approx(spec["noise"] * facts.signal_energy, rel=1e-9, abs=0)
    if spec["energy"] is not None:
        assert facts.total_energy == pytest.approx(spec["energy"], rel=1e-6)  # the bias is float32
    energy = torch.zeros(6000, len(world.dims) + 1, dtype=torch.float64)
    energy.scatter_add_(1, batch.index % (len(world.dims) + 1), contributions.square().sum(dim=2))
    energy = energy[:, :-1]
    # a rate below 5/6000 would give too few activations for a standard error
    often = torch.tensor(facts.rates) > 0.005
    error = energy.std(dim=0) / math.sqrt(6000)
    expected_energy = torch.tensor(facts.feature_energy, dtype=torch.float64)
    assert bool(((energy.mean(dim=0) - expected_energy).abs() < 9 * error + 1e-5 * expected_energy)[often].all())
    assert facts.expected_active == pytest.approx(sum(facts.rates))
    assert facts.load == pytest.approx(sum(world.dims) / world.width)


@pytest.mark.parametrize(
    ("width", "count", "support"),
    [
        (1, 3, {"law": "exact", "active": 2}),
        (4, 40, {"law": "exact", "active": 10}),
        (1, 3, {"law": "independent", "rates": [0.9, 0.5, 0.2]}),
        (4, 40, {"law": "independent", "rates": 0.25}),
    ],
)
def test_nonnegative_features_need_their_cross_terms(width: int, count: int, support: dict[str, Any]) -> None:
    """Non-negative lines in a narrow space overlap: the sum of their energies alone is refuted by the sample."""
    features = [{"manifold": "line", "count": count, "nonnegative": True}]
    world = World.from_spec({"width": width, "features": features, "support": support, "noise": 0.1, "bias": 1.0})
    facts = world.statistics()
    signal = world.sample(40_000, 1).contributions().double().sum(dim=1)
    energy = signal.square().sum(dim=1)
    error = float(energy.std()) / math.sqrt(40_000)
    assert facts.signal_energy_error == 0
    assert abs(float(energy.mean()) - facts.signal_energy) < Z * error
    assert abs(float(energy.mean()) - sum(facts.feature_energy)) > 20 * error
    mean_error = signal.std(dim=0) / math.sqrt(40_000)
    assert bool(((signal.mean(dim=0) - world.moments.mean).abs() < Z * mean_error).all())


def test_noise_is_isotropic() -> None:
    noise = World.from_spec("smoke").sample(20_000, 3).noise
    assert noise is not None
    noise = noise.double()
    variance = noise.square().mean()
    products = noise.T @ noise / len(noise)
    error = variance * math.sqrt(2 / len(noise))
    assert bool(((products - variance * torch.eye(32)).abs() < Z * error).all())


def test_children_are_scaled_by_their_parent() -> None:
    spec = {
        "width": 12,
        "features": [
            {"manifold": "subspace", "dim": 2, "scale": 3.0},
            {"manifold": "circle", "scale": 0.5, "count": 2},
        ],
        "support": {
            "law": "exact",
            "active": 1,
            "hierarchy": {"parents": [-1, 0, 1], "child_rate": 1.0, "scale_children": True},
        },
    }
    norms = World.from_spec(spec).sample(200, 0).coords.norm(dim=2)
    torch.testing.assert_close(norms[:, 1], 0.5 * norms[:, 0] / 3)
    torch.testing.assert_close(norms[:, 2], norms[:, 1])
    alone = World.from_spec(spec).points(1, 50, 0)
    torch.testing.assert_close(alone.coords.norm(dim=2)[:, 0], torch.full((50,), 0.5))


@settings(deadline=None, max_examples=20)
@given(specs(), st.data(), SEEDS)
def test_points_are_clean_rows_of_one_feature(spec: dict[str, Any], data: st.DataObject, seed: int) -> None:
    world = World.from_spec(spec)
    i = data.draw(st.integers(0, len(world.features) - 1))
    batch = world.points(i, 20, seed)
    assert batch.noise is None and bool((batch.index == i).all()) and batch.index.shape == (20, 1)
    frame = world.frames()[i].double()
    centred = batch.x.double() - world.bias.double()
    scale = float(batch.x.abs().max())
    torch.testing.assert_close(centred @ frame.T @ frame, centred, atol=5e-6 * scale, rtol=0)
    with pytest.raises(UsageError, match="does not exist"):
        world.points(len(world.features), 5, 0)


@settings(deadline=None, max_examples=25)
@given(specs(), st.sampled_from(["random", {"coherence": 0.9}]), SEEDS)
def test_spec_round_trip_gives_the_same_stream(spec: dict[str, Any], frames: Any, seed: int) -> None:
    world = World.from_spec({**spec, "width": 40, "frames": frames})
    again = World.from_spec(json.loads(json.dumps(world.spec())))
    assert again.spec() == world.spec() and again.fingerprint() == world.fingerprint()
    streams = [w.batches(16, stream=f"train:{seed}") for w in (world, again)]
    for _ in range(2):
        first, second = (stream.batch() for stream in streams)
        assert torch.equal(first.x, second.x) and torch.equal(first.index, second.index)


def test_any_change_of_the_spec_changes_the_fingerprint() -> None:
    spec = World.from_spec("smoke").spec()
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"width": 33},
        {"noise": 0.02},
        {"bias": 1.0},
        {"energy": 1.0},
        {"energy_mode": "per_dim"},
        {"frames": "orthogonal"},
        {"support": {"law": "exact", "active": 3}},
    ]
    prints = {World.from_spec({**spec, **change}).fingerprint() for change in [{}, *changes]}
    assert len(prints) == len(changes) + 1


@settings(deadline=None, max_examples=20)
@given(specs(), st.integers(0, 4), st.integers(1, 3))
def test_a_stopped_stream_resumes_identically(spec: dict[str, Any], before: int, after: int) -> None:
    world = World.from_spec(spec)
    straight = world.batches(8)
    for _ in range(before):
        next(straight)
    state = straight.state_dict()
    resumed = World.from_spec(spec).batches(8)
    resumed.load_state_dict(state)
    assert resumed.position == before
    for _ in range(after):
        assert torch.equal(next(straight), next(resumed))


def test_streams_of_different_names_are_different_data() -> None:
    world = World.from_spec("smoke")
    rows = [tuple(next(world.batches(4, stream=name))[0].tolist()) for name in ("train", "train:1", "eval", "eval/1")]
    assert len(set(rows)) == 4
    assert torch.equal(next(world.batches(4)), next(world.batches(4, stream="train")))


def test_a_stream_is_a_source_and_refuses_the_state_of_another() -> None:
    world = World.from_spec("smoke")
    stream = world.batches(4)
    assert isinstance(stream, Source) and isinstance(world, Dataset) and iter(stream) is stream
    for other in (world.batches(4, stream="eval"), world.batches(5), World.from_spec("three-manifolds").batches(4)):
        with pytest.raises(UsageError, match="resume with the settings"):
            other.load_state_dict(stream.state_dict())
    for size in (0, -1, True, 2.0):
        with pytest.raises(UsageError, match="batch size"):
            world.batches(size)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="stream is ''"):
        world.batches(4, stream="")


def test_shipped_worlds_are_the_papers() -> None:
    assert set(world_names()) >= {"three-manifolds", "splitting", "rank-recovery", "smoke"}
    three = World.from_spec("three-manifolds")
    assert three.dims == [2, 3, 3] and three.width == 64 and three.statistics().total_energy == pytest.approx(1)
    splitting = World.from_spec("splitting")
    assert [splitting.dims.count(d) for d in (1, 2, 3, 4, 6, 8, 12, 16)] == [32] * 8
    facts = splitting.statistics()
    assert splitting.width == 768 and facts.expected_active == pytest.approx(4)
    assert facts.noise_energy == pytest.approx(0.01 * facts.signal_energy)
    recovery = World.from_spec("rank-recovery")
    assert [recovery.dims.count(d) for d in range(1, 9)] == [32] * 8
    assert recovery.statistics().total_energy == pytest.approx(80652.6)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=8), st.floats(0.75, 1.0), st.integers(0, 50))
def test_statistics_report_the_prescribed_coherence(dims: list[int], coherence: float, seed: int) -> None:
    spec = {
        "width": 12,
        "seed": seed,
        "features": [{"manifold": "subspace", "dim": dims}],
        "frames": {"coherence": coherence},
        "support": {"law": "exact", "active": 1},
    }
    facts = World.from_spec(spec).statistics()
    assert facts.coherence == pytest.approx(coherence, abs=1e-6)
    i, j = facts.coherence_pair
    assert i != j
    assert json.loads(json.dumps(facts.as_dict()))["dims"] == dims


def test_bias_is_a_vector_or_the_norm_of_one() -> None:
    spec = World.from_spec("smoke").spec()
    assert float(World.from_spec({**spec, "bias": 2.5}).bias.norm()) == pytest.approx(2.5)
    vector = [0.5] * 31 + [-1.0]
    given_bias = World.from_spec({**spec, "bias": vector})
    assert given_bias.bias.tolist() == vector
    scaled = World.from_spec({**spec, "bias": vector, "energy": 9.0}).bias
    assert float(scaled[0] / scaled[31]) == pytest.approx(-0.5) and scaled.tolist() != vector


def test_specs_come_from_files_and_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(World.from_spec("smoke").spec()), encoding="utf-8")
    assert World.from_spec(file).fingerprint() == World.from_spec("smoke").fingerprint()
    assert World.from_spec(str(file)).width == 32
    with pytest.raises(UsageError, match="did you mean 'smoke'"):
        World.from_spec("smoek")
    with pytest.raises(UsageError, match="cannot read the world"):
        World.from_spec(tmp_path / "missing.json")
    file.write_text("{not json", encoding="utf-8")
    with pytest.raises(DataError, match=r"mine\.json is not valid JSON"):
        World.from_spec(file)
    file.write_text("[1]", encoding="utf-8")
    with pytest.raises(UsageError, match="expected a JSON object"):
        World.from_spec(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 3}, "unknown key in world: 'widht'; did you mean 'width'"),
        ({"width": 0}, "world.width is 0"),
        ({"width": "64"}, "world.width is '64'; expected an integer"),
        ({"features": []}, "expected a list of groups"),
        ({"features": ["circle"]}, r"features\[0\] is 'circle'; expected a JSON object"),
        ({"features": [{}]}, r"features\[0\] lacks 'manifold'"),
        ({"frames": "orthogonol"}, "did you mean 'orthogonal'"),
        ({"frames": "orthogonal", "width": 17}, "18 jointly orthogonal dimensions do not fit into width 17"),
        ({"frames": {"coherence": 0.05}, "width": 12}, "out of reach"),
        ({"frames": {"coherence": 1.2}}, "coherence is 1.2"),
        ({"energy_mode": "perdim"}, "did you mean 'per_dim'"),
        ({"noise": -0.1}, "world.noise is -0.1; expected a number >= 0"),
        ({"noise": "1%"}, "world.noise is '1%'"),
        ({"energy": 0}, "world.energy is 0"),
        ({"bias": [1.0]}, "bias has 1 numbers; expected 32"),
        ({"bias": -1}, "world.bias is -1"),
        ({"support": {"law": "exact", "active": 9}}, "there are only 8 features"),
    ],
)
def test_impossible_worlds_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        World.from_spec({**World.from_spec("smoke").spec(), **change})


def test_bad_generators_and_counts_are_refused() -> None:
    world = World.from_spec("smoke")
    with pytest.raises(UsageError, match=r"expected a torch\.Generator on the CPU, or a seed"):
        world.sample(3, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="number of rows is 0"):
        world.sample(0, 1)


def test_the_global_seed_is_neither_read_nor_changed() -> None:
    world = World.from_spec("splitting")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    x = next(world.batches(32))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(next(World.from_spec("splitting").batches(32)), x)


@pytest.mark.gpu
def test_truth_is_the_same_on_a_gpu() -> None:
    world = World.from_spec("splitting")
    cpu, gpu = world.batches(256).batch(), world.batches(256, device="cuda").batch()
    assert gpu.x.is_cuda and torch.equal(gpu.index.cpu(), cpu.index) and torch.equal(gpu.coords.cpu(), cpu.coords)
    torch.testing.assert_close(gpu.x.cpu(), cpu.x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gpu.contributions().cpu(), cpu.contributions(), rtol=1e-5, atol=1e-6)
