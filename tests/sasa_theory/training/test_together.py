"""Dictionaries trained over one pass are those of `fit`, bit for bit, however the pass was stopped."""

import itertools
import time
from typing import Any

import pytest
import torch

from sasa_theory.models import TopK
from sasa_theory.models.registry import architectures
from sasa_theory.training import Job, TrainSettings, fit, fit_together
from sasa_theory.training.cost import PER_PARAMETER, parameters, split_to_fit
from sasa_theory.training.runs import directory, locked
from sasa_theory.training.together import _Member
from synthetic import World
from synthetic.errors import DataError, Interrupted

WORLD = {
    "width": 12,
    "features": [{"manifold": "subspace", "dim": 2, "count": 6}],
    "support": {"law": "exact", "active": 2},
    "noise": 0.01,
}
SASA = {"n_groups": 8, "group_rank": 4, "active_groups": 2, "nuclear": 0.01, "aux_groups": 2}
TOPK = {"n_latents": 24, "active_latents": 4, "aux_latents": 4}


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"steps": 30, "batch_size": 64, "checkpoint_every": 10, "log_every": 5, **changes})


def jobs() -> list[Job]:
    return [
        Job("sasa", SASA, settings(splits=2, initialise="data", normalise="mean_scalar")),
        Job("topk", TOPK, settings(initialise="data")),
        Job("jumprelu", {"n_latents": 24, "target_l0": 4.0}, settings(steps=20)),
        Job("sasa", SASA, settings(seed=1)),
    ]


def weights(place: Any) -> bytes:
    return (place / "sae_weights.safetensors").read_bytes()


def equal(world: World, wanted: list[Job], one: Any, other: Any) -> bool:
    places = [(directory(world, job, one), directory(world, job, other)) for job in wanted]
    return all(
        weights(a) == weights(b) and (a / "log.jsonl").read_text() == (b / "log.jsonl").read_text() for a, b in places
    )


class Counting:
    """A world that counts the batches of its training streams."""

    def __init__(self, world: World) -> None:
        self.world, self.width, self.read = world, world.width, 0

    def fingerprint(self) -> str:
        return self.world.fingerprint()

    def batches(self, *args: Any, **kwargs: Any) -> Any:
        stream, outer = self.world.batches(*args, **kwargs), self

        class Stream:
            width = outer.width

            def __iter__(self) -> Any:
                return self

            def __next__(self) -> torch.Tensor:
                outer.read += 1
                return next(stream)

            def state_dict(self) -> Any:
                return stream.state_dict()

            def load_state_dict(self, state: Any) -> None:
                stream.load_state_dict(state)

        return Stream()


def test_runs_of_one_pass_are_those_of_fit(tmp_path):
    world = World.from_spec(WORLD)
    together = fit_together(world, jobs(), out=tmp_path / "a", progress=False)
    for job, run in zip(jobs(), together, strict=True):
        alone = fit(world, job.architecture, job.settings, job.training, out=tmp_path / "b", progress=False)
        assert run.log == alone.log
    assert equal(world, jobs(), tmp_path / "a", tmp_path / "b")


def test_each_batch_is_read_once(tmp_path):
    plain = [Job("topk", {**TOPK, "active_latents": k}, settings()) for k in (1, 2, 3, 4, 5)]
    counting = Counting(World.from_spec(WORLD))
    fit_together(counting, plain, out=tmp_path, progress=False)
    looked_ahead = 16  # MEAN_ROWS / 64 rows of each, for the mean that b_dec starts from
    assert counting.read == 30 + 5 * looked_ahead


@pytest.mark.parametrize(("room", "passes"), [(3, 1), (2.5, 2), (1, 3), (0.1, 3)])
def test_what_memory_does_not_hold_is_trained_in_several_passes(tmp_path, room, passes):
    """The same runs; what was trained before takes no room."""
    world, looked_ahead = World.from_spec(WORLD), 16
    wanted = [Job("topk", {**TOPK, "active_latents": k}, settings()) for k in (1, 2, 3, 4)]
    fit_together(world, wanted[:1], out=tmp_path / "a", progress=False)
    counting = Counting(world)
    room *= PER_PARAMETER * parameters(TOPK, world.width)
    fit_together(counting, wanted, out=tmp_path / "a", progress=False, room=room)
    assert counting.read == passes * 30 + 3 * looked_ahead
    fit_together(world, wanted, out=tmp_path / "b", progress=False)
    assert equal(world, wanted, tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("sizes", [[], [1], [3, 3, 3], [9, 1, 1, 9, 9], [2, 2, 2, 2]])
def test_stretches_fit_and_no_two_neighbours_could_be_one(sizes):
    parts = split_to_fit(sizes, sizes, 5)
    assert [size for part in parts for size in part] == sizes
    assert all(sum(part) <= 5 or len(part) == 1 for part in parts)
    assert all(sum(a) + b[0] > 5 for a, b in itertools.pairwise(parts))


@pytest.mark.parametrize("when", [0.0, 0.15])
def test_a_stopped_pass_goes_on(tmp_path, when):
    world = World.from_spec(WORLD)
    try:
        fit_together(world, jobs(), out=tmp_path / "a", deadline=time.monotonic() + when, progress=False)
    except Interrupted as error:
        assert "runs are saved" in str(error)
    else:
        assert when > 0
    fit_together(world, jobs(), out=tmp_path / "a", progress=False)
    fit_together(world, jobs(), out=tmp_path / "b", progress=False)
    assert equal(world, jobs(), tmp_path / "a", tmp_path / "b")


def test_dictionaries_that_stand_at_different_steps_meet_again(tmp_path, monkeypatch):
    """A kill between two checkpoints leaves one run ahead, one behind, one finished and one not begun."""
    world, wanted = World.from_spec(WORLD), jobs()[:3]
    taken = _Member.take

    def killed(self: _Member, batch: torch.Tensor, step: int) -> None:
        if step == 19 and self.record["architecture"] == "topk":
            raise RuntimeError("killed")
        taken(self, batch, step)

    monkeypatch.setattr(_Member, "take", killed)
    with pytest.raises(RuntimeError, match="killed"):
        fit_together(world, wanted[:2], out=tmp_path / "a", progress=False)
    monkeypatch.undo()
    fit(world, "jumprelu", wanted[2].settings, wanted[2].training, out=tmp_path / "a", progress=False)
    more = [*wanted, Job("topk", {**TOPK, "active_latents": 1}, settings())]
    fit_together(world, more, out=tmp_path / "a", progress=False)
    fit_together(world, more, out=tmp_path / "b", progress=False)
    assert equal(world, more, tmp_path / "a", tmp_path / "b")


def test_a_run_that_diverges_is_named(tmp_path):
    wild = Job("topk", TOPK, settings(lr=1e30, clip_norm=None))
    with pytest.raises(DataError, match=r"topk in .*runs/.*lower the learning rate"):
        fit_together(World.from_spec(WORLD), [jobs()[1], wild], out=tmp_path, progress=False)


def test_finished_runs_are_not_locked(tmp_path):
    world, wanted = World.from_spec(WORLD), jobs()[:2]
    fit_together(world, wanted, out=tmp_path, progress=False)
    with locked(directory(world, wanted[0], tmp_path)):  # as a sweep that has them too, and has more to train
        fit_together(world, wanted, out=tmp_path, progress=False)


def test_an_architecture_with_sizes_of_its_own_is_trained_with_the_others(tmp_path, monkeypatch):
    """`room` has to know how large a dictionary is; without it nobody asks."""

    class Own(TopK):
        def __init__(self, width_in: int, n_atoms: int) -> None:
            super().__init__(width_in, n_atoms, 2)

    monkeypatch.setitem(architectures._items, "own-sizes", Own)
    wanted = [Job("own-sizes", {"n_atoms": 8}, settings()), jobs()[1]]
    assert len(fit_together(World.from_spec(WORLD), wanted, out=tmp_path, progress=False)) == 2
