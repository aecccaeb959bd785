"""When a training step is recorded, what happens where that fails, and (on a GPU) that a recorded run is the plain one.

The tests marked `gpu` have not run yet.
"""

import logging

import pytest
import torch

from sasa_theory import parallel
from sasa_theory.models import SASA, build
from sasa_theory.models.base import Loss
from sasa_theory.training import Trainer, TrainSettings
from sasa_theory.training.device import LossWatch
from sasa_theory.training.recorded import SMALL_STEP, RecordedStep, worth_recording

KINDS = {
    "sasa": {"n_groups": 24, "group_rank": 2, "active_groups": 2, "nuclear": 0.01, "encoder_bias": True},
    "topk": {"n_latents": 48, "active_latents": 3},
    "batchtopk": {"n_latents": 48, "active_latents": 3},
    "matryoshka": {"n_latents": 48, "active_latents": 3},
}
STEPS, SIZE, WIDTH = 12, 32, 10
SETTINGS = {"steps": STEPS, "batch_size": SIZE, "lr": 1e-2, "penalty_warmup_steps": 4, "warmup_steps": 3}
#: one window of firing counts passes, so that the auxiliary loss sets in on the way
SETTINGS |= {"dead_window": 4 * SIZE, "dead_threshold": 0.07, "log_every": 100}


def trainer(kind: str, device: str = "cpu", **changes: object) -> Trainer:
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(SIZE, WIDTH, generator=g) for _ in range(STEPS + 40)]
    model = build(kind, width_in=WIDTH, **KINDS[kind])
    settings = TrainSettings(**{**SETTINGS, **changes})  # type: ignore[arg-type]
    run = Trainer(model, iter(batches), settings, device=device, progress=False)
    if device == "cpu":  # as on a GPU
        run.compiled, run.watch = None, LossWatch(run.optimizer, "cpu")
    return run


def weights(run: Trainer) -> list[torch.Tensor]:
    return [value.detach().cpu().clone() for value in run.model.state_dict().values()]


class Standin:
    """In place of `device.capture`: replays by running the step, or fails."""

    def __init__(self, fails: bool) -> None:
        self.fails, self.recordings, self.replays, self.state = fails, 0, 0, 0

    def __call__(self, step, *given, state):
        self.recordings += 1
        self.state = len(state)
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")

        def replay(*inputs):
            self.replays += 1
            return step(*inputs)

        return replay


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_is_recorded_or_cannot_be_ends_like_the_plain_one(kind, fails, caplog):
    plain, run, record = trainer(kind), trainer(kind), Standin(fails)
    run.recorded = RecordedStep(run._learn, run.model, run.optimizer, record)
    with caplog.at_level(logging.WARNING):
        plain.fit()
        run.fit()
    for ours, theirs in zip(weights(run), weights(plain), strict=True):  # the rate is a float32 tensor here
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(run.firing.counts(), plain.firing.counts())
    assert plain.firing.dead() is not None and plain.firing.dead().any()  # else the auxiliary loss was not tried
    if fails:
        assert (record.recordings, record.replays) == (1, 0)
        assert [entry.message.count("failed (operation not permitted") for entry in caplog.records] == [1]
        assert not any(group["capturable"] for group in run.optimizer.param_groups)
        return
    # once without the auxiliary loss and once with it, each after one step of the kind
    assert (record.recordings, record.replays) == (2, STEPS - 2)
    assert not caplog.records
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    tensors = len(list(run.model.parameters())) + len(list(run.model.buffers())) + 3 * len(parameters) + 1
    assert record.state == tensors  # weights, buffers, moments and counts of steps, the watch's note
    assert all(group["capturable"] for group in run.optimizer.param_groups)


def test_a_batch_of_another_size_is_not_replayed():
    run, record = trainer("topk"), Standin(False)
    run.begin()
    recorded = RecordedStep(run._learn, run.model, run.optimizer, record)
    for rows in (8, 8, 8, 5, 8):
        recorded(torch.randn(rows, WIDTH), None, 1e-3, 1.0)
    assert (record.recordings, record.replays) == (1, 2)


def test_the_rate_stays_one_tensor_when_a_state_is_loaded():
    run = trainer("topk")
    run.begin()
    recorded = RecordedStep(run._learn, run.model, run.optimizer, Standin(False))
    for rate in (1e-3, 1e-4):
        recorded(torch.randn(8, WIDTH), None, rate, 1.0)
        run.optimizer.load_state_dict(run.optimizer.state_dict())
    recorded(torch.randn(8, WIDTH), None, 1e-5, 1.0)
    assert run.optimizer.param_groups[0]["lr"] is recorded.rate
    assert float(recorded.rate) == pytest.approx(1e-5)


def test_small_steps_of_one_process_on_a_gpu_are_recorded(monkeypatch):
    model = build("sasa", width_in=16, n_groups=8, group_rank=2, active_groups=1)
    most = SMALL_STEP // (16 * 8 * 2)
    gpu = torch.device("cuda")
    assert worth_recording(model, most, gpu)
    assert not worth_recording(model, most + 1, gpu)
    assert not worth_recording(model, 1, torch.device("cpu"))

    class Counting(SASA):
        steps = 0

        def post_step(self, loss: Loss) -> None:
            self.steps += 1  # what a replay would not do

    assert worth_recording(SASA(4, 3, 2, 1), 1, gpu)
    assert not worth_recording(Counting(4, 3, 2, 1), 1, gpu)
    assert not worth_recording(build("relu", width_in=4, n_latents=8), 1, gpu)
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    assert not worth_recording(model, 1, gpu)


def test_on_a_cpu_nothing_is_recorded():
    assert trainer("topk").recorded is None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_recorded_run_is_the_plain_run(kind, caplog):
    run, plain = trainer(kind, "cuda", autocast=False), trainer(kind, "cuda", autocast=False)
    assert run.recorded is not None
    plain.recorded = None
    with caplog.at_level(logging.WARNING):
        run.fit()
        plain.fit()
    assert run.recorded._replay is not None and not caplog.records
    for ours, theirs in zip(weights(run), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("recorded", [False, True])
def test_no_step_of_a_trainer_waits_for_the_device(kind, recorded):
    run = trainer(kind, "cuda", steps=STEPS + 20)
    if not recorded:
        run.recorded = None
    run.begin()
    for _ in range(STEPS):  # the first step looks at its rows, kernels compile, steps are recorded
        run._train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            run._train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
