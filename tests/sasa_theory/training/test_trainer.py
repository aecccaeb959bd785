"""Stopping and resuming, the schedule, bad data, and what a checkpoint directory holds."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sasa_theory import saelens
from sasa_theory.models import build
from sasa_theory.training import Trainer, TrainSettings
from sasa_theory.training import trainer as module
from sasa_theory.training.state import load_state
from synthetic import World
from synthetic.errors import DataError, Interrupted, LabError, UsageError

ARCHITECTURES = {
    "sasa": {"n_groups": 10, "group_rank": 3, "active_groups": 2, "nuclear": 0.01},
    "topk": {"n_latents": 30, "active_latents": 3},
    "batchtopk": {"n_latents": 30, "active_latents": 3},
    "relu": {"n_latents": 30, "target_l0": 3.0},
    "jumprelu": {"n_latents": 30, "target_l0": 3.0},
    "gated": {"n_latents": 30, "target_l0": 3.0},
    "matryoshka": {"n_latents": 30, "active_latents": 3},
    "bsf": {"n_groups": 10, "group_rank": 3, "active_groups": 2},
    "grassmannian": {"n_groups": 10, "group_rank": 3, "active_groups": 2},
    "grouplasso": {"n_groups": 10, "group_rank": 3, "target_l0": 3.0},
}
SHORT = {"batch_size": 64, "dead_window": 300, "log_every": 3, "checkpoint_every": 7}


def world() -> World:
    return World.from_spec("smoke")


def trainer(architecture: str, out, steps: int = 24, **extra) -> Trainer:
    model = build(architecture, width_in=32, **ARCHITECTURES[architecture])
    return Trainer(
        model, world().batches(64, stream="train:0"), TrainSettings(steps=steps, **{**SHORT, **extra}), out=out
    )


def stop_at(run: Trainer, step: int) -> None:
    """Make the run believe its time is up after `step` steps."""
    run._late = lambda: run.step >= step
    with pytest.raises(Interrupted, match=f"step {step} of"):
        run.fit()


def tensors(state, prefix=""):
    if isinstance(state, dict):
        for key, value in state.items():
            yield from tensors(value, f"{prefix}/{key}")
    elif isinstance(state, list):
        for i, value in enumerate(state):
            yield from tensors(value, f"{prefix}/{i}")
    else:
        yield prefix, state


def assert_same_state(first: Path, second: Path) -> None:
    a, b = (dict(tensors(load_state(place / "trainer_state.safetensors"))) for place in (first, second))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name
    assert (first / "log.jsonl").read_text() == (second / "log.jsonl").read_text()


# no shrinking: an example is four names already, and each try trains twice
@settings(deadline=None, max_examples=12, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    architecture=st.sampled_from(sorted(ARCHITECTURES)),
    stop=st.integers(1, 23),
    normalise=st.sampled_from(["none", "layer_norm", "mean_scalar"]),
    initialise=st.sampled_from(["random", "data"]),
)
def test_stop_and_resume_is_the_straight_run_bit_for_bit(architecture, stop, normalise, initialise):
    extra = {"normalise": normalise, "initialise": initialise, "penalty_warmup_steps": 10, "warmup_steps": 3}
    with tempfile.TemporaryDirectory() as folder:
        straight, halved = Path(folder) / "straight", Path(folder) / "halved"
        trainer(architecture, straight, **extra).fit()
        stop_at(trainer(architecture, halved, **extra), stop)
        trainer(architecture, halved, **extra).fit(resume=True)
        assert_same_state(straight, halved)


def test_the_comparison_above_can_fail(tmp_path):
    trainer("topk", tmp_path / "a").fit()
    trainer("topk", tmp_path / "b", seed=1).fit()
    with pytest.raises(AssertionError):
        assert_same_state(tmp_path / "a", tmp_path / "b")


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from sasa_theory.models import build
from sasa_theory.training import Trainer, TrainSettings
from synthetic import World
model = build("sasa", width_in=32, n_groups=10, group_rank=3, active_groups=2, nuclear=0.01)
settings = TrainSettings(steps=int(sys.argv[2]), batch_size=64, checkpoint_every=20, dead_window=300)
t = Trainer(model, World.from_spec("smoke").batches(64, stream="train:0"), settings, out=sys.argv[1], progress=False)
print("ready", flush=True)
t.fit(resume=len(sys.argv) > 3)
"""


def start(out: Path, steps: int, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(out), str(steps), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never appeared")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_in_a_process_of_its_own_leaves_a_state_to_resume(tmp_path, number):
    steps = 1500
    run = start(tmp_path / "cut", steps)
    wait_for(tmp_path / "cut" / "trainer_state.safetensors")
    os.kill(run.pid, number)
    _, errors = run.communicate(timeout=120)
    assert run.returncode != 0
    at = load_state(tmp_path / "cut" / "trainer_state.safetensors")["step"]
    assert 0 < at < steps
    if number != signal.SIGKILL:
        assert f"stopped by signal {int(number)} at step {at}" in errors
    assert not list((tmp_path / "cut").glob(".*.tmp")) or number == signal.SIGKILL
    for place, more in (("cut", ("resume",)), ("straight", ())):
        again = start(tmp_path / place, steps, *more)
        assert again.wait(timeout=300) == 0, again.stderr.read()
    assert_same_state(tmp_path / "straight", tmp_path / "cut")


def test_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = trainer("topk", tmp_path, steps=5)
    step = run._train_step
    run._train_step = lambda: (step(), os.kill(os.getpid(), signal.SIGTERM))[0]
    with pytest.raises(Interrupted, match="signal 15 at step 1"):
        run.fit()
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert load_state(tmp_path / "trainer_state.safetensors")["step"] == 1


def test_a_signal_during_the_last_save_is_not_lost(tmp_path, monkeypatch):
    """A sweep of runs must end at Ctrl-C even if it comes as one of them ends; that run is complete all the same."""
    run = trainer("topk", tmp_path, steps=5)
    save = run.save
    monkeypatch.setattr(run, "save", lambda: (save(), os.kill(os.getpid(), signal.SIGINT))[0])
    with pytest.raises(Interrupted, match="signal 2 at step 5 of 5"):
        run.fit()
    resumed = trainer("topk", tmp_path, steps=5).fit(resume=True)
    x = world().sample(20, 1).x
    torch.testing.assert_close(saelens.load(tmp_path)(x), resumed(x), rtol=1e-4, atol=1e-5)


def test_the_last_step_is_never_late(tmp_path):
    run = trainer("topk", tmp_path, steps=5)
    run._late = lambda: run.step >= 5
    run.fit()


@pytest.mark.parametrize("dies", ["save_state", "export", "log"])
@pytest.mark.parametrize("when", [1, 2, 3])
def test_a_kill_inside_a_save_harms_nothing(tmp_path, monkeypatch, dies, when):
    """Power cut before each file of each checkpoint: the resumed run's state, log and export are the straight run's."""

    class Killed(BaseException):
        pass

    calls = 0

    def deadly(write):
        def wrapped(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == when:
                raise Killed
            return write(*arguments, **keywords)

        return wrapped

    trainer("sasa", tmp_path / "straight", steps=14).fit()
    with monkeypatch.context() as patch:
        run = trainer("sasa", tmp_path / "cut", steps=14)
        if dies == "export":
            patch.setattr(module.saelens, "save", deadly(saelens.save))
        else:
            name = "save_state" if dies == "save_state" else "write_text"
            patch.setattr(module, name, deadly(getattr(module, name)))
        try:
            run.fit()
        except Killed:
            again = trainer("sasa", tmp_path / "cut", steps=14)
            again.fit(resume=again.state_file.exists())
    assert_same_state(tmp_path / "straight", tmp_path / "cut")
    x = world().sample(20, 1).x
    assert torch.equal(saelens.load(tmp_path / "straight")(x), saelens.load(tmp_path / "cut")(x))


def test_the_log_can_be_followed_and_a_torn_one_is_repaired(tmp_path):
    straight, run = trainer("topk", tmp_path / "a"), trainer("topk", tmp_path / "b")
    straight.fit()
    step = run._train_step
    seen = []

    def watched():
        step()
        seen.append(len((tmp_path / "b" / "log.jsonl").read_text().splitlines()))
        if run.step == 10:
            raise KeyboardInterrupt  # as if killed: three steps and one line past the checkpoint of step 7

    run._train_step = watched
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert seen == [n // 3 for n in range(1, 11)]
    with open(tmp_path / "b" / "log.jsonl", "a") as file:
        file.write('{"step": 12, "lo')
    trainer("topk", tmp_path / "b").fit(resume=True)
    assert_same_state(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("initialise", ["random", "data"])
def test_every_architecture_starts_from_the_mean(architecture, initialise):
    rows = [torch.randn(512, 32, generator=torch.Generator().manual_seed(i)) + 3 for i in range(40)]
    model = build(architecture, width_in=32, **ARCHITECTURES[architecture])
    run = Trainer(model, iter(rows), TrainSettings(steps=1, batch_size=512, initialise=initialise))
    run._start()
    used = torch.cat(rows[: 32 if initialise == "data" else 2])
    torch.testing.assert_close(model.b_dec.detach(), used.mean(dim=0))
    assert torch.equal(next(run._rows), rows[0])


def test_nan_is_found_at_its_step_and_never_reaches_the_weights():
    rows = [torch.randn(512, 32, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    rows[4][100, 7] = torch.nan
    model = build("topk", width_in=32, n_latents=30, active_latents=3)
    with pytest.raises(DataError, match=r"batch 4 holds NaN or Inf \(first at row 100\)"):
        Trainer(model, iter(rows), TrainSettings(steps=6, batch_size=512, log_every=100)).fit()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_diverging_is_told_apart_from_bad_data():
    rows = [torch.randn(64, 32) for _ in range(20)]
    model = build("relu", width_in=32, n_latents=30, coefficient=0.1)
    wild = TrainSettings(steps=20, batch_size=64, lr=1e30, clip_norm=None)
    with pytest.raises(DataError, match="though the data are; lower the learning rate"):
        Trainer(model, iter(rows), wild).fit()


def test_deadline_stops_after_one_step_and_says_where_the_state_is(tmp_path):
    run = trainer("topk", tmp_path)
    run.deadline = time.monotonic()
    with pytest.raises(Interrupted, match=f"time limit at step 1 of 24; state saved in {tmp_path}"):
        run.fit()


def test_full_disk_keeps_the_last_state(tmp_path, monkeypatch):
    stop_at(trainer("topk", tmp_path), 7)
    before = (tmp_path / "trainer_state.safetensors").read_bytes()
    real = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    again = trainer("topk", tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabError, match="disk is full"):
        again.fit(resume=True)
    monkeypatch.setattr(os, "fsync", real)
    assert (tmp_path / "trainer_state.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))
    trainer("topk", tmp_path).fit(resume=True)


def test_the_directory_is_a_model_in_raw_units(tmp_path):
    model = trainer("sasa", tmp_path, normalise="mean_scalar").fit()
    x = world().sample(50, 3).x
    torch.testing.assert_close(saelens.load(tmp_path)(x), model(x), rtol=1e-4, atol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert lines[-1]["l0_units"] == 2
    parts = [value for name, value in lines[-1].items() if name.startswith("loss_")]
    assert sum(parts) == pytest.approx(lines[-1]["loss"], rel=1e-5)


def test_training_learns(tmp_path):
    trainer("sasa", tmp_path, steps=300, lr=1e-2).fit()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["explained_variance_raw"] > 0.5 > lines[0]["explained_variance_raw"]


@settings(deadline=None, max_examples=50)
@given(
    steps=st.integers(1, 50),
    warmup=st.integers(0, 20),
    decay=st.floats(0, 1),
    step=st.integers(0, 49),
    up=st.integers(0, 30),
)
def test_schedule_is_a_trapezium(steps, warmup, decay, step, up):
    s = TrainSettings(steps=steps, lr=2.0, warmup_steps=warmup, decay_fraction=decay, penalty_warmup_steps=up)
    step = min(step, steps - 1)
    assert 0 < s.rate(step) <= 2.0
    if step + 1 >= warmup and step < (1 - decay) * steps - 1:
        assert s.rate(step) == pytest.approx(2.0)
    if decay > 0 and step >= (1 - decay) * steps and step + 1 >= warmup:
        assert s.rate(step) == pytest.approx(2.0 * min(1, (steps - step) / (decay * steps)))
    assert s.penalty_scale(step) == (1.0 if up == 0 else pytest.approx(min(1, (step + 1) / up)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"optimizer": "adan"}, "did you mean 'adam'"),
        ({"normalise": "layernorm"}, "did you mean 'layer_norm'"),
        ({"weight_decay": 0.1}, "needs optimizer='adamw'"),
        ({"outlier_cap": 5.0}, "needs normalise='mean_scalar'"),
        ({"betas": (0.9, 1.0)}, "betas is"),
        ({"decay_fraction": 1.5}, "decay_fraction is 1.5"),
    ],
)
def test_bad_settings_are_one_sentence(change, words):
    with pytest.raises(UsageError, match=words):
        TrainSettings(**change)


def test_wrong_width_nan_and_short_data_are_named():
    model = build("topk", width_in=32, n_latents=30, active_latents=3)
    plain = TrainSettings(steps=5, batch_size=64)
    with pytest.raises(UsageError, match="width 16, the model 32"):
        Trainer(model, iter([torch.randn(8, 16)]), plain)
    bad = torch.randn(64, 32)
    bad[17, 3] = torch.inf
    with pytest.raises(DataError, match=r"batch 2 holds NaN or Inf \(first at row 17\)"):
        Trainer(model, iter([torch.randn(64, 32), torch.randn(64, 32), bad]), plain).fit()
    with pytest.raises(DataError, match="ended after 2 of 5 steps"):
        Trainer(model, iter([torch.randn(64, 32)] * 2), plain).fit()
    with pytest.raises(UsageError, match="batch 1 has shape"):
        Trainer(model, iter([torch.randn(64, 32), torch.randn(64, 31)]), plain).fit()


def test_resume_refuses_what_does_not_belong(tmp_path):
    with pytest.raises(UsageError, match="nothing to resume"):
        trainer("topk", tmp_path).fit(resume=True)
    stop_at(trainer("topk", tmp_path), 5)
    with pytest.raises(UsageError, match="already holds a training state"):
        trainer("topk", tmp_path).fit()
    with pytest.raises(UsageError, match="trained with settings"):
        trainer("topk", tmp_path, lr=1e-4).fit(resume=True)
    with pytest.raises(UsageError, match="trained with architecture topk, not relu"):
        trainer("relu", tmp_path).fit(resume=True)


def test_a_plain_iterator_trains_and_says_that_it_cannot_resume(tmp_path):
    rows = [torch.randn(64, 32, generator=torch.Generator().manual_seed(i)) for i in range(10)]
    plain = TrainSettings(steps=10, normalise="mean_scalar", **SHORT)
    model = build("topk", width_in=32, n_latents=30, active_latents=3)
    run = Trainer(model, iter(rows), plain, out=tmp_path)
    stop_at(run, 5)
    with pytest.raises(UsageError, match="plain iterator cannot be resumed"):
        Trainer(model, iter(rows), plain, out=tmp_path).fit(resume=True)


def test_the_normaliser_is_fitted_on_rows_that_are_trained_on_too(tmp_path):
    """Peeking at a source must not move it: the first batch trained on is the stream's first batch."""
    seen = []
    run = trainer("topk", None, steps=2, normalise="mean_scalar")
    run.compiled, loss = None, run.model.loss
    run.model.loss = lambda z, *rest: (seen.append(run.normaliser.invert(z, None)), loss(z, *rest))[1]
    run.fit()
    torch.testing.assert_close(seen[0], next(world().batches(64, stream="train:0")), rtol=1e-4, atol=1e-5)
