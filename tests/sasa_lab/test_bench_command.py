"""`sasa-lab bench` as a user meets it, at tiny sizes."""

import builtins
import json
from pathlib import Path

import pytest

from benchmarks import data, lasso, parts, show, step
from benchmarks.contenders import Setting

TINY = Setting(8, 6, 2, 2, 32)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    settings = {name: [TINY] for name in step.SWEEPS} | {"K": [Setting(8, k, 2, 2, 32) for k in (6, 12)]}
    monkeypatch.setattr(step, "SWEEPS", settings)
    monkeypatch.setattr(show, "SWEEPS", settings)
    monkeypatch.setattr(step, "LEAST", 0.0)
    monkeypatch.setattr(parts, "LEAST", 0.05)


def test_step_measures_draws_and_keeps(lab, here):
    words = ["bench", "step", "--sweep", "main", "K", "--contender", "sasa", "restated", "--rounds", 2, "--out", "out"]
    done = lab(*words)
    assert done.status == 0, done.err
    assert "sasa" in done.out and "encoder product" in done.out and "measured: out/step.json" in done.out
    assert len(json.loads(Path("out/step.json").read_text())["runs"]) == 2 and Path("out/step.png").is_file()
    again = lab(*words)
    assert again.status == 0 and again.out.count("kept") == 2
    shown = lab("bench", "show", "--out", "out")
    assert shown.status == 0 and "| sasa-lab sasa |" in shown.out and "restated" in shown.out


def test_readme_gets_its_tables_and_the_picture(lab, here):
    Path("README.md").write_text(f"x\n{show.BEGIN}\n{show.END}\n")
    assert (
        lab("bench", "step", "--sweep", "K", "main", "--contender", "sasa", "--rounds", 1, "--out", "out").status == 0
    )
    done = lab("bench", "show", "--readme", "--out", "out")
    assert done.status == 0, done.err
    written = Path("README.md").read_text()
    assert "sasa-lab sasa" in written and "](docs/step.png)" in written and Path("docs/step.png").is_file()


def test_data_compares_every_world_and_store_with_the_step(lab, here, monkeypatch):
    monkeypatch.setattr(data, "world_names", lambda: ["smoke"])
    monkeypatch.setattr(data, "MAIN", TINY)
    monkeypatch.setattr(data, "SMALL", TINY)
    done = lab("bench", "data", "--rounds", 1, "--out", "out")
    assert done.status == 0, done.err
    runs = json.loads(Path("out/data.json").read_text())["runs"]
    assert [set(run["rows"]) - {"step"} for run in runs] == [{"world smoke"}, {"store bfloat16"}, {"store float32"}]
    # the step that `sasa-lab train` takes on it: 256 columns of a small world, 4,096 of a store
    assert [run["columns"] for run in runs] == [256, 4096, 4096]
    for run in runs:
        assert run["width"] == 32 and run["batch"] == TINY.batch
        for row in run["rows"].values():
            assert row["rows_per_second"] == pytest.approx(1 / row["seconds_per_row"]["median"])
            assert row["over_step"] == pytest.approx(row["rows_per_second"] / run["rows"]["step"]["rows_per_second"])


def test_lasso_runs_the_profile(lab, here, monkeypatch):
    asked = []
    monkeypatch.setattr(lasso, "run", lambda *arguments: asked.append(arguments) or Path("out/lasso.json"))
    assert lab("bench", "lasso", "--threads", 1, "--out", "out").status == 0
    assert lab("bench", "lasso", "--profile", "standard").status == 0
    assert [list(sizes) for sizes, *_ in asked] == [[0], list(range(len(lasso.SIZES)))]
    assert [threads for *_, threads, _ in asked] == [(1,), ()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["step", "--sweep", "mian"], "did you mean 'main'"),
        (["step", "--profile", "gpu"], "--device cuda"),
        (["step", "--rounds", 0], "--rounds is 0"),
        (["step", "--sasa-path", "nowhere"], "sasa/model.py"),
        (["step", "--precision", "bf16"], "on the CPU"),
        (["show", "--out", "nowhere"], "nowhere/step.json does not exist"),
        (["data", "--device", "cuda:99"], "cannot be used here"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_status_2(lab, here, words, said):
    done = lab("bench", *words)
    assert done.status == 2 and said in done.err and done.err.count("\n") == 1


def test_without_the_benchmarks_package_it_says_where_to_run(lab, here, monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest, **named):
        if name.split(".")[0] == "benchmarks":
            raise ImportError(name)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    done = lab("bench", "step")
    assert done.status == 2 and "from a checkout" in done.err
