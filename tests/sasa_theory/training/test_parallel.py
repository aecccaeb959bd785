"""Two processes stop together and go on bit for bit; what they train is held in test_joint_batches.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sasa_theory import saelens
from sasa_theory.training import __main__ as command
from sasa_theory.training.state import load_state
from synthetic import World
from synthetic.errors import UsageError

PROCESSES = 2


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
