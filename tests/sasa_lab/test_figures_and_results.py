"""figure and reproduce: what is measured, kept, drawn and reported, with a figure that takes no time."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figures.registry import Figure, figures
from sasa_lab.profiles import PROFILES, SEEDS, TOTAL, plan
from sasa_lab.results import draw
from synthetic.errors import DataError, Interrupted

FOLDER = Path("results/toy/quick")


def _result() -> dict:
    return json.loads((FOLDER / "result.json").read_text())


def test_a_result_says_what_was_run_and_where(lab, toy, here):
    done = lab("figure", "toy", "--option", "store=there", "--seeds", 3, 5)
    assert done.status == 0, done.err
    result = _result()
    assert result["profile"] == "quick" and result["seeds"] == [3, 5] and result["options"] == {"store": "there"}
    assert set(result["versions"]) == {"sasa-lab", "python", "torch", "numpy"}
    assert all(result[key] for key in ("device", "device_name", "threads", "date", "budget_seconds"))
    assert result["numbers"] == {"heights": [1.0, 1.0]}
    assert toy.contexts[0].seeds == (3, 5) and toy.contexts[0].options == {"store": "there"}
    assert {path.name for path in FOLDER.iterdir()} == {"result.json", "figure.svg", "figure.png"}
    assert "splitting: supported" in done.out


def test_a_finished_result_is_kept_and_force_measures_again(lab, toy, here):
    lab("figure", "toy")
    (FOLDER / "figure.png").unlink()
    again = lab("figure", "toy")
    assert len(toy.contexts) == 1 and "kept" in again.out and (FOLDER / "figure.png").is_file()
    lab("figure", "toy", "--force")
    assert len(toy.contexts) == 2


@pytest.mark.parametrize("change", ["code", "seeds", "options"])
def test_other_code_seeds_or_options_are_measured_anew(lab, toy, here, change):
    lab("figure", "toy")
    words = []
    if change == "code":
        file = FOLDER / "result.json"
        file.write_text(file.read_text().replace('"code": "', '"code": "0'))
    else:
        words = {"seeds": ["--seeds", 7], "options": ["--option", "store=x"]}[change]
    lab("figure", "toy", *words)
    assert len(toy.contexts) == 2


def test_pictures_come_from_the_file_and_are_the_same_twice(lab, toy, here):
    lab("figure", "toy")
    svg = (FOLDER / "figure.svg").read_bytes()
    draw(toy.figure, FOLDER / "result.json")
    assert (FOLDER / "figure.svg").read_bytes() == svg
    result = _result()
    result["numbers"]["heights"] = [5.0, -5.0]
    (FOLDER / "result.json").write_text(json.dumps(result))
    draw(toy.figure, FOLDER / "result.json")
    assert (FOLDER / "figure.svg").read_bytes() != svg


def test_a_failing_figure_leaves_the_old_result_and_nothing_half_written(lab, toy, here):
    lab("figure", "toy")
    before = (FOLDER / "result.json").read_bytes()
    toy.failure = DataError("row 3 holds NaN")
    done = lab("figure", "toy", "--force")
    assert done.status == 1 and done.err == "sasa-lab: error: row 3 holds NaN\n"
    assert (FOLDER / "result.json").read_bytes() == before
    assert not list(here.rglob("*.tmp"))


def test_a_result_that_is_not_finite_is_refused(lab, toy, here):
    broken = dataclasses.replace(toy.figure, run=lambda context: {"numbers": {"loss": math.nan}})
    figures._items["toy"] = broken
    done = lab("figure", "toy")
    assert done.status == 2 and "result.json" in done.err and "finite" in done.err
    assert not FOLDER.exists() or not list(FOLDER.iterdir())


@pytest.mark.parametrize("failure", [DataError("broken row"), RuntimeError("a bug")])
def test_reproduce_goes_on_after_a_failure_and_ends_with_status_1(lab, toy, here, failure):
    def raising(context):
        raise failure

    figures._items["first"] = dataclasses.replace(toy.figure, name="first", run=raising, budget={"quick": 1.0})
    done = lab("reproduce")
    assert done.status == 1 and "first" in done.err and str(failure) in done.out
    assert (FOLDER / "result.json").is_file() and Path("results/report.html").is_file()


def test_reproduce_stops_when_interrupted_and_keeps_what_is_done(lab, toy, here):
    def stopped(context):
        raise Interrupted("stopped by signal 2, state saved")

    figures._items["later"] = dataclasses.replace(toy.figure, name="later", run=stopped, budget={"quick": 15.0})
    figures._items["last"] = dataclasses.replace(toy.figure, name="last", budget={"quick": 20.0})
    done = lab("reproduce")
    assert done.status == 1 and done.err == "sasa-lab: error: stopped by signal 2, state saved\n"
    assert (FOLDER / "result.json").is_file() and Path("results/report.html").is_file()
    assert len(toy.contexts) == 1 and not Path("results/last").exists()


def test_reproduce_lists_what_it_leaves_with_its_command(lab, toy, here):
    figures._items["big"] = dataclasses.replace(toy.figure, name="big", budget={"quick": 1e6})
    figures._items["fed"] = dataclasses.replace(toy.figure, name="fed", needs="a store")
    figures._items["gpu"] = dataclasses.replace(toy.figure, name="gpu", budget={"paper": 60.0})
    done = lab("reproduce")
    assert done.status == 0 and len(toy.contexts) == 1
    assert "sasa-lab figure big --profile quick" in done.out
    assert "fed needs a store: sasa-lab figure fed --profile quick --option store=..." in done.out
    assert "sasa-lab figure gpu --profile paper" in done.out


def _figures(budgets: list[float], needs: list[bool]) -> list[Figure]:
    return [
        Figure(f"f{i}", "", lambda c: {}, lambda r: {}, {"quick": b}, needs="x" if n else "")
        for i, (b, n) in enumerate(zip(budgets, needs, strict=True))
    ]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0.1, 300), st.booleans()), max_size=12), st.sampled_from(PROFILES))
def test_the_plan_is_cheapest_first_maximal_and_inside_the_total(drawn, profile):
    made = _figures([b for b, _ in drawn], [n for _, n in drawn])
    chosen = plan(made, profile)
    assert sorted(f.name for f in [*chosen.run, *(f for f, _ in chosen.left)]) == sorted(f.name for f in made)
    if profile != "quick":
        assert not chosen.run
        return
    costs = [f.budget["quick"] for f in chosen.run]
    assert costs == sorted(costs) and sum(costs) <= TOTAL["quick"] and not any(f.needs for f in chosen.run)
    ready = [f.budget["quick"] for f, _ in chosen.left if not f.needs]
    assert not ready or sum(costs) + min(ready) > TOTAL["quick"]


def test_profiles_have_the_promised_seeds_and_totals():
    assert SEEDS["quick"] == (0,) and len(SEEDS["standard"]) == 3
    assert TOTAL["quick"] <= 600 and TOTAL["standard"] <= 7200
