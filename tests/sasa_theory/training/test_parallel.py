"""Two processes train as one does on both their batches; they stop together and go on bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sasa_theory import saelens
from sasa_theory.models import build
from sasa_theory.training import Trainer, TrainSettings
from sasa_theory.training import __main__ as command
from sasa_theory.training.state import load_state
from synthetic import World
from synthetic.errors import UsageError

PROCESSES, SIZE, STEPS, WIDTH = 2, 96, 5, 12
#: losses that are means over rows, so that the mean of two gradients is the joint one
MODEL = {"n_latents": 20, "active_latents": 3}

WORKER = """
import sys, torch
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
from sasa_theory.models import build
from sasa_theory.training import Trainer, TrainSettings
rows = torch.load(f"{folder}/rows.pt")
model = build("topk", width_in=rows.shape[2], n_latents=20, active_latents=3)
settings = TrainSettings(**torch.load(f"{folder}/settings.pt"))
run = Trainer(model, iter([r.chunk(2)[rank] for r in rows]), settings, progress=False)
run.fit()
torch.save({
    "weights": {n: p.detach() for n, p in model.named_parameters()},
    "gradients": {n: p.grad for n, p in model.named_parameters()},
    "normaliser": run.normaliser.state(), "counts": run.firing.counts(), "seen": run.firing.rows,
}, f"{folder}/rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


def rows() -> torch.Tensor:
    """Batches whose halves differ in mean and scale, so that a process alone would go elsewhere."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, PROCESSES * SIZE, WIDTH, generator=generator)
    x[:, :SIZE] = 2 * x[:, :SIZE] + 1
    return x


def joint(x: torch.Tensor, **settings) -> Trainer:
    run = Trainer(build("topk", width_in=WIDTH, **MODEL), iter(list(x)), TrainSettings(**settings), progress=False)
    run.fit()
    return run


def both(folder: Path, x: torch.Tensor, **settings) -> list[dict]:
    torch.save(x, folder / "rows.pt")
    torch.save(settings, folder / "settings.pt")
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(PROCESSES)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=180)
        assert worker.returncode == 0, errors
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.slow
def test_the_mean_gradient_is_that_of_the_joint_batch(tmp_path):
    # one step from the same start: without the mean of b_dec, which each fits to its own first rows and shares
    x = rows()[:1]
    x -= x[:, :SIZE].mean(dim=1, keepdim=True)
    x[:, SIZE:] = x[:, SIZE:] - x[:, SIZE:].mean(dim=1, keepdim=True)
    settings = {"steps": 1, "batch_size": SIZE, "clip_norm": None, "lr": 1e-3}
    first, second = both(tmp_path, x, **settings)
    whole = joint(x, **settings)
    for name, parameter in whole.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
        torch.testing.assert_close(first["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["gradients"][name], second["gradients"][name])
    assert first["counts"].tolist() == whole.firing.counts().tolist()
    assert first["seen"] == PROCESSES * SIZE
    # a process alone has another gradient: the comparison above can fail
    alone = joint(x[:, :SIZE], **settings)
    assert not torch.allclose(first["gradients"]["W_dec"], alone.model.W_dec.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_all_processes_hold_one_model_and_one_normaliser(tmp_path):
    settings = {"steps": STEPS, "batch_size": SIZE, "normalise": "mean_scalar", "initialise": "data"}
    first, second = both(tmp_path, rows(), **settings)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    for name in ("mean", "scale"):
        assert torch.equal(first["normaliser"][name], second["normaliser"][name])
    assert torch.equal(first["counts"], second["counts"])


def write_config(folder: Path, out: str, steps: int) -> Path:
    config = {
        "world": "smoke",
        "architecture": "sasa",
        "model": {"n_groups": 10, "group_rank": 3, "active_groups": 2, "nuclear": 0.01},
        "training": {"steps": steps, "batch_size": 64, "checkpoint_every": 50, "dead_window": 300, "log_every": 10},
        "out": str(folder / out),
    }
    file = folder / f"{out}.json"
    file.write_text(json.dumps(config))
    return file


def torchrun(config: Path, port: int) -> list[subprocess.Popen]:
    """What torchrun starts, process by process, so that one alone can be signalled."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command_line = [sys.executable, "-m", "sasa_theory.training", str(config)]
    return [
        subprocess.Popen(
            command_line,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_one_step_and_they_go_on_bit_for_bit(tmp_path):
    steps = 600
    cut = write_config(tmp_path, "cut", steps)
    workers = torchrun(cut, free_port())
    state = tmp_path / "cut" / "trainer_state.safetensors"
    for _ in range(1200):
        if state.exists():
            break
        time.sleep(0.05)
    os.kill(workers[1].pid, signal.SIGTERM)
    words = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [1, 1], words
    at = load_state(state)["step"]
    assert 0 < at < steps
    assert all(f"stopped by signal 15 at step {at} of {steps}" in word for word in words)
    for config in (cut, write_config(tmp_path, "straight", steps)):
        for worker in torchrun(config, free_port()):
            assert worker.wait(timeout=180) == 0, worker.stderr.read()
    for name in ("trainer_state.safetensors", "log.jsonl", "sae_weights.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    # each process read a stream of its own
    positions = [source["identity"] for source in load_state(state)["sources"]]
    assert len(set(positions)) == PROCESSES


def test_one_process_needs_no_torchrun(tmp_path, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert command.main([str(write_config(tmp_path, "run", 4))]) == 0
    x = World.from_spec("smoke").sample(5, 0).x
    assert saelens.load(tmp_path / "run")(x).shape == x.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wrld": "smoke"}, "did you mean 'world'"),
        ({"store": "x"}, "exactly one of 'world' and 'store'"),
        ({"training": {"step": 3}}, "did you mean 'steps'"),
        ({"out": None}, "lacks 'out'"),
    ],
)
def test_a_bad_config_is_one_sentence(tmp_path, capsys, change, words):
    file = write_config(tmp_path, "run", 4)
    config = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UsageError, match=words):
        command.read_config(file)
    assert command.main([str(file)]) == 2
    assert words in capsys.readouterr().err
    assert command.main([]) == 2
