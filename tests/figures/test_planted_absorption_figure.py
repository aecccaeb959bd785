"""Figure planted-absorption: its worlds and budgets, the planted dictionary, the choice, the finding, the picture."""

import json
import math

import pytest
from joblib import parallel_config

import figures.planted_absorption as shown
import figures.planted_absorption_recipe as tuning
from figures import Context, figures, load_all
from figures.planted_absorption_recipe import ACTIVE, DEPTHS, DIMS, MODELS, RATES, Training
from figures.planted_absorption_references import REFERENCES, planted, references
from figures.splitting_recipe import description_bits
from sasa_theory.models import build
from synthetic.errors import UsageError


@pytest.mark.parametrize("dim", DIMS)
def test_every_depth_has_as_many_features_on(dim):
    for depth in DEPTHS:
        world = tuning.world_of(depth, dim)
        assert world.support.depth == depth
        assert world.statistics().expected_active == pytest.approx(ACTIVE)
        assert world.statistics().coherence == pytest.approx(0, abs=1e-5)
        assert abs(len(world.dims) / tuning.FEATURES - 1) <= 0.15
        assert set(world.dims) == {dim}


def test_worlds_that_are_not_there_are_refused():
    with pytest.raises(UsageError, match="depth"):
        tuning.world_of(5, 1)
    with pytest.raises(UsageError, match="budget"):
        tuning.budget_of(tuning.world_of(1, 1), "units")


def test_bits_match_groups_and_differ_only_where_a_group_is_no_column():
    flat, thick = tuning.world_of(2, 1), tuning.world_of(2, 3)
    assert tuning.budget_of(flat, "bits") == tuning.budget_of(flat, "columns") == ACTIVE
    k, columns = tuning.budget_of(thick, "bits"), 2 * 3 * len(thick.dims)
    most = description_bits(2 * len(thick.dims), ACTIVE, 3 * ACTIVE)
    assert ACTIVE < k < 3 * ACTIVE
    assert description_bits(columns, k, k) <= most < description_bits(columns, k + 1, k + 1)


def test_every_model_builds_and_its_budget_is_the_one_named():
    world = tuning.world_of(1, 3)
    for model in MODELS:
        name, settings = tuning.model_settings(model, world, "columns")
        made = build(name, width_in=world.width, **settings)
        groups = tuning.GROUPS.get(model)
        assert made.n_units * made.rank == 6 * len(world.dims) * (groups or 1)
        if groups == 1:
            assert settings["active_groups"] * made.rank == tuning.budget_of(world, "columns")


def test_the_planted_dictionary_absorbs_nothing_and_drops_what_its_budget_leaves_out():
    world = tuning.world_of(4, 1)
    got = shown.measure(planted(world), world, 3000)
    assert got["absorbed"] == 0 and got["shared"] == 0 and got["units"] == 1 and got["counted"] == 1
    assert got["lost"] > 0.2 and got["by_children"] is None


def test_no_reference_explains_less_than_the_mean_does():
    world = tuning.world_of(1, 3)
    got = {name: shown.measure(model, world, 1500) for name, model in references(world, 0).items()}
    assert all(one["explained"] > 0 for one in got.values())
    assert got["K-lines"]["l0"] == got["PCA"]["l0"] == tuning.budget_of(world, "columns")


def grid(unexplained, l0):
    """One cell for everything the search runs, from functions of the learning rate (and the nuclear share)."""
    for dim in DIMS:
        world = tuning.world_of(tuning.SEARCHED, dim)
        for budget, model, lr, nuclear in tuning.grid_of(dim):
            target = tuning.budget_of(world, budget) * tuning.GROUPS.get(model, 1)
            cell = {"dim": dim, "budget": budget, "model": model, "lr": lr, "nuclear": nuclear, "run": "r"}
            yield cell | {"unexplained": unexplained(lr, nuclear), "l0": target * l0(lr)}


def test_the_choice_is_the_best_fit_within_the_budget_or_else_the_nearest():
    best = tuning.choose(list(grid(lambda lr, _: 1 + abs(math.log(lr / RATES[1])), lambda lr: 1.0)))
    assert {c["lr"] for budgets in best.values() for models in budgets.values() for c in models.values()} == {RATES[1]}
    over = tuning.choose(list(grid(lambda lr, _: 1 - lr, lambda lr: 1.5 if lr == RATES[-1] else 1.1)))
    assert over["1"]["columns"]["topk"]["lr"] == RATES[-2]
    none = tuning.choose(list(grid(lambda lr, _: 1 - lr, lambda lr: 2 + lr)))
    assert none["3"]["bits"]["relu"]["lr"] == RATES[0]


@pytest.mark.parametrize(("price", "share"), [(1.04, tuning.NUCLEAR[1]), (1.06, tuning.NUCLEAR[0])])
def test_the_larger_nuclear_coefficient_is_taken_where_it_costs_little(price, share):
    cells = list(grid(lambda lr, nuclear: price if nuclear == tuning.NUCLEAR[1] else 1.0, lambda lr: 1.0))
    chosen = tuning.choose(cells)["3"]["columns"]
    assert chosen["sasa"]["nuclear"] == share and chosen["topk"]["nuclear"] == 0


def made_up(absorbed):
    """Runs of every model in both dimensions at two depths; `absorbed` says how much of the parents per model."""
    runs = []
    for dim in (1, 3):
        for depth in (1, 2):
            for model in (*MODELS, *REFERENCES):
                for seed in (0, 1, 2):
                    measures = {
                        **dict.fromkeys(("explained", "l0", "bits", "dead", "lost", "counted", "settled"), 0.5),
                        **dict.fromkeys(("units", "units_with_child"), 2.0),
                        "absorbed": absorbed(model, dim) + 0.001 * seed,
                        "shared": 0.1,
                        "by_children": None,
                    }
                    cell = {"dim": dim, "budget": "columns", "depth": depth, "model": model, "seed": seed}
                    runs.append({**cell, **measures})
    return runs


@pytest.mark.parametrize(
    ("sasa", "status"),
    [
        (lambda dim: 0.1, "supported"),
        (lambda dim: 0.9, "refuted"),
        (lambda dim: 0.1 if dim == 1 else 0.9, "needs an assumption"),
        (lambda dim: 0.5, "undecided"),
    ],
)
def test_the_finding_follows_the_shares(sasa, status):
    runs = made_up(lambda model, dim: sasa(dim) if model == "sasa" else 0.5)
    assert shown.finding(runs, decided=True)["status"] == status
    assert shown.finding(runs, decided=False)["status"] == "undecided"


def test_a_quick_round_trip_draws_from_the_result_alone(monkeypatch, tmp_path):
    study = shown.Study(((1, "columns", (1, 2)), (3, "bits", (1,))), Training(3, 64), 300)
    monkeypatch.setitem(shown.STUDIES, "quick", study)
    rates = {budget: {model: {"lr": 1e-3, "nuclear": 0.03} for model in MODELS} for budget in tuning.BUDGETS}
    recipe = {"training": {}, "seed": 0, "chosen": {"1": rates, "3": rates}}
    for module in (shown, tuning):
        monkeypatch.setattr(module, "recipe", lambda: recipe)
    monkeypatch.setattr(shown, "MODELS", ("topk", "sasa"))
    monkeypatch.setattr(shown, "cells_of", lambda dim: [("columns", "topk"), ("columns", "sasa"), ("bits", "topk")])
    with parallel_config(backend="sequential"):
        result = json.loads(json.dumps(shown.run(Context("quick", (0, 1), tmp_path))))
    assert result["findings"][0]["status"] == "undecided"
    assert [t["title"] for t in result["tables"]].count("Fit: d = 3, budget bits") == 1
    picture = shown.draw(result)["figure"]
    assert len(picture.axes) == 2 * len(shown.QUANTITIES)


def test_it_is_registered_with_its_budgets():
    load_all()
    assert figures["planted-absorption"].budget["quick"] <= 60
    assert figures["planted-absorption"].budget["standard"] <= 600
