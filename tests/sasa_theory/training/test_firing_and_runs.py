"""Dead units by brute force over the window; runs trained once, in one place, by one process."""

import json

import joblib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models.codes import Codes
from sasa_theory.training import FiringTracker, Job, TrainSettings, fit, fit_all
from sasa_theory.training import runs as shared
from synthetic import World
from synthetic.errors import Interrupted, LabError

SHORT = TrainSettings(steps=6, batch_size=32, log_every=2)
SETTINGS = {"n_latents": 20, "active_latents": 2}


def batch(fired: list[list[int]], n_units: int) -> Codes:
    index = torch.full((len(fired), n_units), -1)
    for row, units in enumerate(fired):
        index[row, : len(units)] = torch.tensor(units, dtype=torch.long)
    return Codes(index, (index >= 0).float()[..., None], n_units)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), n_units=st.integers(1, 6), size=st.integers(1, 8), batches_per_bucket=st.integers(1, 3))
def test_dead_equals_counting_over_the_window(data, n_units, size, batches_per_bucket):
    window = 10 * size * batches_per_bucket
    threshold = data.draw(st.sampled_from([0.0, 0.1, 0.3]))
    tracker = FiringTracker(n_units, window, threshold)
    history = []
    for _ in range(data.draw(st.integers(1, 25 * batches_per_bucket))):
        fired = data.draw(st.lists(st.sets(st.integers(0, n_units - 1)).map(sorted), min_size=size, max_size=size))
        history.append(fired)
        tracker.update(batch(fired, n_units))
        # at every step, not only the last: nothing is dead before one whole window has passed
        assert (tracker.dead() is None) == (len(history) * size < window)
    # the window slides by tenths: ten whole buckets and the one being filled
    done = len(history)
    started = -(-done // batches_per_bucket)
    first = max(0, started - 11) * batches_per_bucket
    rows = [row for fired in history[first:] for row in fired]
    counts = [sum(unit in row for row in rows) for unit in range(n_units)]
    assert tracker.counts().tolist() == counts
    dead = tracker.dead()
    if len(rows) < window:
        assert dead is None
    else:
        assert dead.tolist() == [count <= threshold * len(rows) for count in counts]
    copy = FiringTracker(n_units, window, threshold)
    copy.load_state_dict(tracker.state_dict())
    more = batch([[0]] * size, n_units)
    copy.update(more)
    tracker.update(more)
    assert copy.counts().tolist() == tracker.counts().tolist()


def test_a_run_is_trained_once(tmp_path, monkeypatch):
    world = World.from_spec("smoke")
    first = fit(world, "topk", SETTINGS, SHORT, out=tmp_path, progress=False)
    monkeypatch.setattr(shared, "Trainer", None)  # training again would fail
    second = fit(world, "topk", SETTINGS, SHORT, out=tmp_path, progress=False)
    assert first.directory == second.directory
    assert second.log == first.log and len(first.log) == 3
    x = world.sample(20, 0).x
    torch.testing.assert_close(first.model(x), second.model(x))
    record = json.loads((first.directory / "run.json").read_text())
    assert record["finished"] and record["training"]["steps"] == 6 and record["model"]["n_latents"] == 20


def test_every_part_of_a_run_names_it(tmp_path):
    world, other = World.from_spec("smoke"), World.from_spec({**World.from_spec("smoke").spec(), "seed": 1})
    places = {
        shared.directory(world, Job("topk", SETTINGS, SHORT), tmp_path),
        shared.directory(other, Job("topk", SETTINGS, SHORT), tmp_path),
        shared.directory(world, Job("topk", {**SETTINGS, "signed": True}, SHORT), tmp_path),
        shared.directory(world, Job("topk", SETTINGS, TrainSettings(steps=6, batch_size=32, seed=1)), tmp_path),
        shared.directory(world, Job("batchtopk", SETTINGS, SHORT), tmp_path),
    }
    assert len(places) == 5
    # settings left at their defaults and spelt out are the same run
    spelt = Job("topk", {**SETTINGS, "signed": False}, SHORT)
    assert shared.directory(world, spelt, tmp_path) == shared.directory(world, Job("topk", SETTINGS, SHORT), tmp_path)


def test_a_stopped_run_goes_on(tmp_path):
    world = World.from_spec("smoke")
    with pytest.raises(Interrupted):
        fit(world, "topk", SETTINGS, SHORT, out=tmp_path, deadline=0.0, progress=False)
    place = shared.directory(world, Job("topk", SETTINGS, SHORT), tmp_path)
    with pytest.raises(LabError, match="no finished run"):
        shared.load(place)
    resumed = fit(world, "topk", SETTINGS, SHORT, out=tmp_path, progress=False)
    straight = fit(world, "topk", SETTINGS, SHORT, out=tmp_path / "other", progress=False)
    assert resumed.log == straight.log
    x = world.sample(20, 0).x
    assert torch.equal(resumed.model(x), straight.model(x))


def test_two_processes_do_not_train_one_run(tmp_path):
    world = World.from_spec("smoke")
    place = shared.directory(world, Job("topk", SETTINGS, SHORT), tmp_path)
    place.mkdir(parents=True)
    with shared.locked(place), pytest.raises(LabError, match="another process is training"):
        fit(world, "topk", SETTINGS, SHORT, out=tmp_path, progress=False)
    fit(world, "topk", SETTINGS, SHORT, out=tmp_path, progress=False)


def test_a_job_given_twice_is_one_run(tmp_path, monkeypatch):
    """Two workers on one run would fight for its lock; one job left to do needs no workers at all."""
    monkeypatch.setattr(joblib, "effective_n_jobs", lambda _: 2)
    monkeypatch.setattr(joblib, "Parallel", None)
    job = Job("topk", SETTINGS, SHORT)
    first, second = fit_all(World.from_spec("smoke"), [job, job], out=tmp_path)
    assert first.directory == second.directory


@pytest.mark.slow
def test_several_processes_give_the_runs_of_one(tmp_path):
    world = World.from_spec("smoke")
    jobs = [Job("topk", SETTINGS, TrainSettings(steps=6, batch_size=32, seed=seed)) for seed in range(3)]
    many = fit_all(world, jobs, out=tmp_path / "many", workers=2)
    one = fit_all(world, jobs, out=tmp_path / "one", workers=1)
    x = world.sample(20, 0).x
    for a, b in zip(many, one, strict=True):
        torch.testing.assert_close(a.model(x), b.model(x))
    assert not torch.allclose(many[0].model(x), many[1].model(x))
