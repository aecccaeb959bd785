"""Figure sample-growth: its rows, bounds and searches, and findings and pictures on made-up runs."""

import functools
import json
import math

import numpy as np
import pytest
import torch

import figures.sample_growth as shown
import figures.sample_growth_recipe as growth
from figures import figures, load_all
from sasa_theory.bounds import distortion_floor


def test_more_rows_of_a_seed_begin_with_the_fewer_and_held_out_rows_are_others():
    few, many = growth.FiniteRows(5, 3, 0, 64), growth.FiniteRows(50, 3, 0, 64)
    assert torch.equal(few.rows(), many.rows()[:5])
    assert few.fingerprint() != many.fingerprint()
    assert not torch.equal(few.rows(), growth.FiniteRows(5, 3, 1, 64).rows())
    batch = next(few.batches(100))
    assert (batch[:, None] == few.rows()).all(dim=2).any(dim=1).all()
    clean = growth.clean_rows(3)
    frames = torch.cat(growth.world_of(3).frames())
    assert torch.allclose(clean @ frames.T @ frames, clean, atol=1e-5)  # noise-free
    assert torch.cdist(clean[:100], few.rows()).min() > 1e-3


@pytest.mark.parametrize("d", [2, 4, 6])
def test_atoms_needed_is_where_the_floor_comes_down_to_the_target(d):
    each = growth.atoms_needed(d) // growth.COUNT
    assert distortion_floor(each, 1, d) <= growth.TARGET < distortion_floor(each - 1, 1, d)


def test_true_lines_subspaces_and_directions_need_few_rows():
    """With rows enough the planted subspaces are found, and one line each is not."""
    errors = {name: growth.fitted_error(name, 256, 3, 0, 256) for name in ("lines", "ksubspaces", "pca")}
    assert errors["ksubspaces"] < 0.01 and errors["pca"] < 0.01 and errors["lines"] < 0.25
    assert growth.fitted_error("pca", 2, 3, 0, 256) > 0.4


@pytest.mark.parametrize("d", [2, 6])
def test_the_planted_truth_reaches_the_target_without_samples(d):
    assert growth.truth_error(d) < 0.01


def test_a_search_is_the_crossing_of_its_own_errors():
    study = growth.Study({}, (4, 16, 64), 1)
    absolute, relative = growth.fitted_searches("pca", "dense", 4, 0, study)
    seen = dict(absolute.seen)
    reached = min(n for n, error in seen.items() if error <= growth.TARGET)
    before = max(n for n, error in seen.items() if error > growth.TARGET)
    assert before <= absolute.n <= reached and not absolute.censored and absolute.target == "absolute"
    assert relative.n >= absolute.n
    never = growth.fitted_searches("lines", "unit", 12, 0, study)[0]
    assert never.censored and never.n == 64


def test_the_single_atom_of_a_row_is_the_best_of_all():
    rng = np.random.default_rng(0)
    atoms, x = rng.standard_normal((7, 3)), rng.standard_normal((20, 3))
    got = growth.best_single_atom(atoms, x)
    for row, found in zip(x, got, strict=True):
        tries = [np.zeros(3)] + [max(0.0, a @ row) * a / (a @ a) for a in atoms]
        assert np.square(row - found).sum() == pytest.approx(min(np.square(row - t).sum() for t in tries))


def test_a_trained_search_runs_resumes_and_agrees(tmp_path):
    study = growth.Study({}, (8, 32), 3)
    arguments = ("topk", "columns", 2, 0, study, tmp_path, "cpu", None)
    first = growth.trained_search(*arguments)
    assert first.late is not None and 0 < first.late < 2
    runs = {p.name for p in (tmp_path / "runs").iterdir()}
    assert growth.trained_search(*arguments) == first
    assert {p.name for p in (tmp_path / "runs").iterdir()} == runs


def made_up(changed=None, limit=math.inf):
    """Runs of every series under a planted law ("e" or "p"), three at each d, with 5 % scatter."""
    rng = np.random.default_rng(3)
    laws = {(name, "unit", "absolute"): "e" for name in ("lines", *growth.VECTORS)}
    laws |= {("topk", "columns", "absolute"): "p", ("abstopk", "columns", "absolute"): "p"}
    laws |= {("sasa", "unit", "absolute"): "p", ("ksubspaces", "unit", "absolute"): "p"}
    laws |= {("lines", "unit", "relative"): "p"}
    runs = []
    for (name, budget, target), law in (laws | (changed or {})).items():
        for d in (2, 3, 4, 5, 6, 8) * 3:
            n = (math.exp(0.9 * d) if law == "e" else 2 * d) * math.exp(0.05 * rng.standard_normal())
            cell = {"name": name, "budget": budget, "target": target, "d": d, "seed": 0}
            runs.append(
                {**cell, "n": min(n, limit), "censored": bool(n > limit), "first": False, "seen": [], "late": 0.9}
            )
    return runs


def judged(runs):
    return {"/".join(k): shown.law_of(shown.series(runs, k), np.random.default_rng(0)) for k in shown._keys(runs)}


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(shown, "growth_law", functools.partial(shown.growth_law, resamples=20))


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, "needs an assumption"),
        ({("topk", "columns", "absolute"): "e", ("abstopk", "columns", "absolute"): "e"}, "supported"),
        ({("sasa", "unit", "absolute"): "e"}, "refuted"),
        ({("topk", "unit", "absolute"): "p"}, "refuted"),
    ],
)
def test_the_finding_follows_the_decisions(changed, status):
    laws = judged(made_up(changed))
    assert shown.finding(laws, decided=True)["status"] == status
    assert shown.finding(laws, decided=False)["status"] == "undecided"


@pytest.mark.usefixtures("few_resamples")
def test_it_draws_and_tabulates_censored_runs_as_such():
    runs = made_up(limit=300.0)
    laws = judged(runs)
    assert laws["topk/unit/absolute"]["censored"] == 3
    numbers = {"runs": runs, "laws": laws, "atoms": [[2, 4], [3, 8]], "exact": [[2, 4], [8, 16]]}
    result = json.loads(json.dumps({"numbers": numbers}))
    assert len(shown.draw(result)["figure"].axes) == 3
    made = shown._run_table(runs, [[d, 0.0] for d in (2, 3, 4, 5, 6, 8)])
    assert {len(row) for row in made["rows"]} == {len(made["columns"])}
    assert next(row for row in made["rows"] if row[:2] == ["TopK", "unit"])[-2].startswith("> 300")
    late = [r | {"censored": True} for r in runs if r["name"] == "sasa"]
    assert judged(late)["sasa/unit/absolute"]["decision"] == "undecided"


def test_it_is_registered_with_its_budgets():
    load_all()
    assert figures["sample-growth"].budget["quick"] <= 60 and figures["sample-growth"].budget["standard"] <= 600
