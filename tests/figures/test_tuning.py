"""Searches: what is chosen, the file it is read from, and a grid on a tiny world."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from figures.tuning import PRICE, Recipe, best, harmless, late_change
from sasa_theory.training import Job, Run, TrainSettings
from synthetic import World
from synthetic.errors import LabError

RECIPES = ("manifolds", "planted_absorption", "published", "splitting")
grids = st.lists(
    st.fixed_dictionaries(
        {
            "lr": st.sampled_from((1e-3, 1e-2)),
            "nuclear": st.sampled_from((0.0, 0.1, 0.3)),
            "unexplained": st.floats(0.01, 1.0),
            "l0": st.floats(1.0, 100.0),
        }
    ),
    min_size=1,
    max_size=20,
)


@given(grids, st.floats(1.0, 100.0))
def test_the_best_meets_the_budget_where_any_does(cells, target):
    chosen = best(cells, target)
    allowed = [cell for cell in cells if cell["l0"] <= 1.15 * target]
    assert chosen in cells
    if allowed:
        assert chosen["unexplained"] == min(cell["unexplained"] for cell in allowed) and chosen["l0"] <= 1.15 * target
    else:
        assert chosen["l0"] == min(cell["l0"] for cell in cells)


@given(grids, st.floats(1.0, 100.0))
def test_no_larger_penalty_is_harmless(cells, target):
    chosen = harmless(cells, "nuclear", target)
    at = {
        value: best([cell for cell in cells if cell["nuclear"] == value], target)["unexplained"]
        for value in {cell["nuclear"] for cell in cells}
    }
    most = PRICE * min(at.values())
    assert chosen["unexplained"] <= most
    assert all(left > most for value, left in at.items() if value > chosen["nuclear"])


@pytest.mark.parametrize("name", RECIPES)
def test_tracked_recipes_name_the_runs_behind_them(name):
    recipe = Recipe(name)
    assert recipe.is_made()
    found = recipe()
    grids = [part["grid"] for part in (found, *found.values()) if isinstance(part, dict) and "grid" in part]
    assert grids and all({"unexplained", "l0", "run"} <= cell.keys() for grid in grids for cell in grid)


def test_a_search_that_was_not_run_is_named_and_can_be_made(tmp_path, monkeypatch):
    recipe = Recipe("made_up")
    assert not recipe.is_made()
    with pytest.raises(LabError, match=r"made_up_recipe.json is missing; make it with: python -m figures.made_up_rec"):
        recipe()
    recipe.file = tmp_path / "made_up_recipe.json"
    monkeypatch.setattr(sys, "argv", ["search", "--out", str(tmp_path / "runs")])
    recipe.make(lambda out: {"out": out.name}, "What is searched.\nMore.")
    assert recipe() == {"out": "runs"} == json.loads(recipe.file.read_text())


def test_a_search_that_fails_is_one_line_and_leaves_what_is_tracked(tmp_path, monkeypatch, capsys):
    recipe = Recipe("made_up")
    recipe.file = tmp_path / "made_up_recipe.json"
    recipe.file.write_text('{"grid": []}')

    def failing(out):
        raise LabError("the disk is full")

    for out, words in ((recipe.file, "a file; expected a directory"), (tmp_path / "runs", "error: the disk is full")):
        monkeypatch.setattr(sys, "argv", ["search", "--out", str(out)])
        with pytest.raises(SystemExit):
            recipe.make(failing, "What is searched.")
        assert words in capsys.readouterr().err
    assert recipe.file.read_text() == '{"grid": []}'


def test_late_change_compares_the_end_with_where_the_rate_began_to_fall():
    def of(explained):
        return late_change(Run(None, None, [{"explained_variance_raw": v} for v in explained], 0.0))

    assert of([0.5] * 40) == 1.0 and of([]) == 1.0
    assert of([0.5] * 30 + [0.75] * 10) == pytest.approx(0.5)
    assert of([0.0] * 24 + [0.8] * 16) == pytest.approx(1.0)  # what happened before does not count


def test_a_grid_holds_what_every_run_left(tmp_path):
    world, recipe = World.from_spec("smoke"), Recipe("made_up")
    settings = {"n_latents": 16, "active_latents": 2}
    jobs = [Job("topk", settings, TrainSettings(steps=steps, batch_size=64, lr=1e-2, seed=0)) for steps in (1, 60)]
    short, long = recipe.run_grid(world, [{"steps": 1}, {"steps": 60}], jobs, tmp_path, 512)
    assert short["steps"] == 1 and short["l0"] == long["l0"] == 2
    assert 0 < long["unexplained"] < short["unexplained"]
    assert (tmp_path / "runs" / long["run"]).is_dir()


def test_a_search_again_runs_what_has_changed_alone(tmp_path, monkeypatch):
    """Tracked cells are found by their runs' names; --afresh, or another setting, runs them."""
    recipe = Recipe("made_up")
    recipe.file = tmp_path / "made_up_recipe.json"
    active, training = [2, 3], TrainSettings(steps=2, batch_size=32, lr=1e-2, seed=0)

    def search(out):
        jobs = [Job("topk", {"n_latents": 16, "active_latents": k}, training) for k in active]
        return {
            "inside": {"grid": recipe.run_grid(World.from_spec("smoke"), [{"k": k} for k in active], jobs, out, 64)}
        }

    def made(folder, *flags):
        monkeypatch.setattr(sys, "argv", ["search", "--out", str(tmp_path / folder), *flags])
        recipe.make(search, "What is searched.")
        runs = tmp_path / folder / "runs"
        return recipe()["inside"]["grid"], sorted(path.name for path in runs.iterdir()) if runs.exists() else []

    first, ran = made("first")
    assert ran == sorted(cell["run"] for cell in first)
    assert made("again") == (first, [])
    assert made("afresh", "--afresh") == (first, ran)
    active[1] = 4
    second, ran = made("changed")
    assert second[0] == first[0] and ran == [second[1]["run"]] and ran[0] != first[1]["run"]
