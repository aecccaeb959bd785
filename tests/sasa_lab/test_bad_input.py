"""Every mistake a user can make at the command line: the exit status, and what the sentence must say."""

import json
from pathlib import Path

import pytest
import torch

from sasa_lab.cli import main
from sasa_theory.activations import StoreWriter

WORLD = {"width": 8, "features": [{"manifold": "circle", "count": 2}], "support": {"law": "exact", "active": 1}}


def _world(**changes) -> str:
    Path("world.json").write_text(json.dumps({**WORLD, **changes}))
    return "world.json"


def _store(rows: torch.Tensor) -> None:
    with StoreWriter("store", rows.shape[1], meta={"model": "none"}, dtype="float32") as writer:
        writer.append(rows, mark=len(rows))
        writer.finish()


TRAIN = ["train", "--arch", "sasa", "--world"]
MISTAKES = {
    "unknown command": (["trian"], 2, ["trian", "'train'"]),
    "no such option": ([*TRAIN, "smoke", "--stps", "3"], 2, ["--stps", "'--steps'"]),
    "not a number": ([*TRAIN, "smoke", "--steps", "many"], 2, ["--steps", "many"]),
    "missing argument": (["evaluate", "--world", "smoke"], 2, ["CHECKPOINT"]),
    "unknown profile": (["reproduce", "--profile", "quik"], 2, ["quik", "quick"]),
    "unknown architecture": (["train", "--arch", "sasaa", "--world", "smoke"], 2, ["sasaa", "'sasa'"]),
    "unknown world": ([*TRAIN, "three-manifold"], 2, ["three-manifold", "'three-manifolds'"]),
    "missing world file": ([*TRAIN, "nowhere.json"], 2, ["nowhere.json"]),
    "unknown figure": (["figure", "temporl"], 2, ["temporl", "'temporal'"]),
    "unknown figure option": (["figure", "temporal", "--option", "sas=x"], 2, ["'sas'", "'sasa'"]),
    "figure without its input": (["figure", "temporal"], 2, ["--option sasa=", "--option topk="]),
    "option without =": (["figure", "temporal", "--option", "sasa"], 2, ["sasa", "key=value"]),
    "option twice": (["figure", "temporal", "--option", "hook=a", "--option", "hook=b"], 2, ["hook", "twice"]),
    "seeds twice": (["figure", "temporal", "--seeds", "1", "1"], 2, ["(1, 1)"]),
    "unknown setting": ([*TRAIN, "smoke", "--set", "n_group=3"], 2, ["n_group", "'n_groups'"]),
    "setting of the wrong type": ([*TRAIN, "smoke", "--set", "n_groups=3.5"], 2, ["3.5", "positive integer"]),
    "more active than there are": ([*TRAIN, "smoke", "--set", "n_groups=2", "active_groups=3"], 2, ["3", "2 groups"]),
    "L0 not a multiple of r": ([*TRAIN, "smoke", "--set", "l0=7", "group_rank=4"], 2, ["l0 is 7", "multiple of 4"]),
    "no steps": ([*TRAIN, "smoke", "--steps", "0"], 2, ["steps is 0"]),
    "no data": (["train", "--arch", "sasa"], 2, ["--world", "--store", "neither"]),
    "two kinds of data": ([*TRAIN, "smoke", "--store", "x"], 2, ["--world", "--store", "both"]),
    "nothing to resume": ([*TRAIN, "smoke", "--resume"], 2, ["nothing to resume"]),
    "unknown device": ([*TRAIN, "smoke", "--device", "cdua"], 2, ["cdua", "--device cpu"]),
    "no time": ([*TRAIN, "smoke", "--max-minutes", "0"], 2, ["--max-minutes"]),
    "missing store": (["train", "--arch", "sasa", "--store", "nowhere"], 2, ["nowhere", "sasa-lab activations"]),
    "missing checkpoint": (["evaluate", "nowhere", "--world", "smoke"], 2, ["nowhere"]),
    "missing plugin": (["report", "--plugin", "nowhere.py"], 2, ["nowhere.py"]),
    "plugin without a file": (["report", "--plugin"], 2, ["--plugin"]),
    "README picture not drawn": (["report", "--docs"], 2, ["manifolds", "sasa-lab figure manifolds"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_sentence(lab, here, mistake):
    words, status, said = MISTAKES[mistake]
    done = lab(*words)
    assert done.status == status, done.err
    assert done.err.startswith("sasa-lab: error: ") and done.err.count("\n") == 1, done.err
    for word in said:
        assert word in done.err
    assert not [path for path in here.rglob("*") if path.is_file()], "a refused command left files"


WORLDS = {
    "s > n": ({"support": {"law": "exact", "active": 5}}, ["5", "2"]),
    "orthogonal dims > D": ({"width": 3, "frames": "orthogonal"}, ["4", "3"]),
    "coherence out of reach": ({"width": 3, "frames": {"coherence": 0.1}}, ["0.1"]),
    "unknown manifold": ({"features": [{"manifold": "circel"}]}, ["circel", "'circle'"]),
    "unknown key": ({"nois": 0.1}, ["nois", "'noise'"]),
    "NaN": ({"noise": float("nan")}, ["noise"]),
}


@pytest.mark.parametrize("impossible", WORLDS)
def test_an_impossible_world_is_refused(lab, here, impossible):
    changes, said = WORLDS[impossible]
    done = lab(*TRAIN, _world(**changes))
    assert done.status == 2 and done.err.count("\n") == 1, done.err
    assert all(word in done.err for word in said), done.err
    assert not Path("results").exists()


def test_a_world_that_is_not_json_is_a_failure(lab, here):
    Path("world.json").write_text("{")
    done = lab(*TRAIN, "world.json")
    assert done.status == 1 and "world.json" in done.err and "JSON" in done.err


def test_a_flipped_byte_in_a_store_names_the_shard(lab, here):
    _store(torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)))
    shard = next(Path("store").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    done = lab("train", "--arch", "topk", "--store", "store", "--set", "n_latents=16", "active_latents=2")
    assert done.status == 1 and shard.name in done.err and done.err.count("\n") == 1, done.err


def test_a_checkpoint_of_another_width_is_refused(lab, here):
    _world()
    small = ["--set", "n_groups=4", "--steps", "2", "--batch-size", "1024"]
    path = lab(*TRAIN, "world.json", *small).out.split()[-1]
    done = lab("evaluate", path, "--world", "smoke")
    assert done.status == 2 and "8" in done.err and done.err.count("\n") == 1, done.err
    assert not Path("results/evaluate").exists()


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
def test_a_checkpoint_with_a_part_missing_is_refused(lab, here, file):
    _world()
    path = Path(
        lab(*TRAIN, "world.json", "--set", "n_groups=4", "--steps", "2", "--batch-size", "1024").out.split()[-1]
    )
    (path / file).unlink()
    done = lab("evaluate", path, "--world", "world.json")
    assert done.status in (1, 2) and file in done.err and done.err.count("\n") == 1, done.err


def test_a_full_disk_is_one_sentence_and_leaves_nothing(lab, here, monkeypatch):
    import errno
    import os

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    _world()
    monkeypatch.setattr(os, "fsync", full)
    done = lab("report")
    assert done.status == 1 and "disk is full" in done.err and done.err.count("\n") == 1
    assert not Path("results/report.html").exists() and not list(here.rglob("*.tmp"))


@pytest.mark.parametrize("command", [[*TRAIN, "smoke", "--steps", "2"], ["report"]])
def test_an_out_that_is_a_file_is_named(lab, here, command):
    Path("taken").write_text("mine")
    done = lab(*command, "--out", "taken")
    assert done.status == 1 and "taken" in done.err and done.err.count("\n") == 1, done.err
    assert Path("taken").read_text() == "mine"


def test_an_evaluation_stays_in_its_folder(lab, here):
    _world()
    path = lab(*TRAIN, "world.json", "--set", "n_groups=4", "--steps", "2", "--batch-size", "1024").out.split()[-1]
    for name in ("..", ".", "a/b", "../../elsewhere"):
        done = lab("evaluate", path, "--world", "world.json", "--name", name)
        assert done.status == 2 and repr(name) in done.err and not list(here.rglob("result.json"))


def test_an_evaluation_replaces_no_other_checkpoints(lab, here):
    _world()
    small = ["--set", "n_groups=4", "--steps", "2", "--batch-size", "1024"]
    first, second = (lab(*TRAIN, "world.json", *small, "--seed", seed).out.split()[-1] for seed in (0, 1))
    evaluate = ["--world", "world.json", "--rows", "50", "--name", "mine"]
    assert lab("evaluate", first, *evaluate).status == 0
    before = Path("results/evaluate/mine/result.json").read_bytes()
    done = lab("evaluate", second, *evaluate)
    assert done.status == 2 and first in done.err and "--name" in done.err
    assert Path("results/evaluate/mine/result.json").read_bytes() == before
    assert lab("evaluate", first, *evaluate).status == 0


def test_ctrl_c_is_a_sentence_and_status_1(lab, here, monkeypatch):
    from sasa_lab.commands import report

    def stopped(out):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write_report", stopped)
    done = lab("report")
    assert done.status == 1 and done.err.startswith("sasa-lab: error: stopped") and done.err.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch, here):
    from sasa_lab.commands import report

    def broken(out):
        raise ZeroDivisionError

    monkeypatch.setattr(report, "write_report", broken)
    with pytest.raises(ZeroDivisionError):
        main(["report"])
