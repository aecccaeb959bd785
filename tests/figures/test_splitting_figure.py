"""Figure E2 on tiny runs: its measures on planted models, its bounds, the search's choice, and the round trip."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from joblib import parallel_config

import figures.splitting as e2
import figures.splitting_findings as said
import figures.splitting_measures as measures
import figures.splitting_recipe as tuning
import figures.splitting_tables as shown
from figures import Context, figures, load_all
from figures.splitting_measures import Effort, by_dim, ceiling, measure
from figures.splitting_recipe import BLOCKS, BUDGETS, MODELS, SASAS, VECTORS, Size, description_bits
from figures.yardsticks import references
from sasa_theory.models import AbsTopK, TopK, build
from synthetic import World

SMALL = Size("splitting-192", 64, 1, 1, 3, 32)
EFFORT = Effort(rows=1500, alone=60, cases=((1, 0.5), (8, 0.5)), covered=1, points=40, candidates=24)
RECIPE = {
    "size": {},
    "seed": 0,
    "chosen": {budget: dict.fromkeys((*VECTORS, *BLOCKS, "sasa"), 1e-3) for budget in BUDGETS},
    "nuclear": 0.3,
}


@pytest.fixture
def tuned(monkeypatch):
    for module in (tuning, e2):
        monkeypatch.setattr(module, "recipe", lambda: RECIPE)


@pytest.fixture(scope="module")
def orthogonal():
    """One feature of each of the dimensions 1 to 6, orthogonal to each other."""
    group = {"manifold": "subspace", "dim": [1, 2, 3, 4, 6], "count": 1}
    spec = {"width": 24, "features": [group], "frames": "orthogonal", "support": {"law": "exact", "active": 2}}
    return World.from_spec(spec)


def basis(world, kind, copies=1):
    """A dictionary of the planted bases, every atom repeated; TopK also has the opposite of each."""
    rows = torch.cat(world.frames()).repeat_interleave(copies, 0)
    rows = torch.cat([rows, -rows]) if kind is TopK else rows
    model = kind(world.width, len(rows), len(rows))
    with torch.no_grad():
        model.W_dec.copy_(rows)
        model.W_enc.copy_(rows.T / copies)
    return model


def test_a_planted_basis_counts_d_atoms_and_rays_twice_as_many(orthogonal):
    got = measure(basis(orthogonal, AbsTopK), orthogonal, EFFORT, 0)
    # 90 % of an even spectrum of d takes d atoms for d <= 6
    assert got["units"] == got["excess_units"] == [1, 2, 3, 4, 6]
    assert got["spanning_groups"] == [1, 2, 3, 4, 6]
    assert got["unexplained"] == pytest.approx(0, abs=1e-6)
    assert got["alone"] == pytest.approx([1] * 5, abs=1e-6)
    rays = measure(basis(orthogonal, TopK), orthogonal, EFFORT, 0)
    assert rays["units"] == [2, 4, 6, 8, 11]  # 11 of 12 carry 92 %, 10 carry 83 %
    assert rays["cosine"] == pytest.approx([1] * 5, abs=1e-6)  # opposite rays
    assert got["binding"] == got["above_ceiling"] == 0


def test_split_atoms_are_counted_and_covered_by_as_many_as_the_feature_has_dimensions(orthogonal):
    got = measure(basis(orthogonal, AbsTopK, copies=3), orthogonal, EFFORT, 0)
    assert got["units"] == [3, 6, 9, 11, 17]  # 11 of 12 carry 92 %, 17 of 18 carry 94 %
    assert got["covering"][1]["atoms"] == [1, 2, 3, 4, 6]
    assert got["covering"][1]["covered"] == [1] * 5


def test_overlap_inflates_the_published_count_of_the_truth_and_not_the_count_by_excess():
    world = Size("splitting-192", 96, 4, 4, 1, 32).world("total")
    planted, _ = references(world, tuning.RANK, 128, 1000, 0)["planted truth"]
    got = measure(planted, world, dataclasses.replace(EFFORT, rows=6000, cases=()), 0)
    assert max(n for n in got["units"] if n) > 3
    assert {n for n in got["excess_units"] if n} <= {1.0, 1.25, 1.5}
    assert got["spanning_groups"] == [1] * 8


def test_no_dictionary_is_above_the_ceiling_and_a_false_ceiling_is_seen(orthogonal, monkeypatch):
    torch.manual_seed(0)
    atoms = 200
    model = AbsTopK(orthogonal.width, atoms, 1)
    with torch.no_grad():
        stacked = torch.cat([torch.randn(40, len(f)) @ f for f in orthogonal.frames()])
        model.W_dec.copy_(stacked / stacked.norm(dim=1, keepdim=True))
        model.W_enc.copy_(model.W_dec.T)
    effort = dataclasses.replace(EFFORT, alone=2000, cases=())
    got = measure(model, orthogonal, effort, 0)
    assert got["binding"] == 4 and got["above_ceiling"] == 0  # d = 1 is void
    assert all(a <= c + 0.01 for a, c in zip(got["alone"], got["ceiling"], strict=True))
    true = measures.bounds.distortion_floor
    monkeypatch.setattr(measures.bounds, "distortion_floor", lambda n, k, d: min(0.99, 3 * true(n, k, d)))
    assert measure(model, orthogonal, effort, 0)["above_ceiling"] > 0


def test_the_ceiling_is_free_from_a_basis_on():
    assert ceiling(1024, 16, 16) == 1
    assert ceiling(1024, 2, 2) == 1
    assert ceiling(1024, 2, 16) < ceiling(1024, 4, 16) < 1


def test_by_dim_averages_only_where_told():
    dims = np.array([2, 1, 2, 1])
    assert by_dim([1.0, 2.0, 3.0, 4.0], dims) == [3.0, 2.0]
    assert by_dim([1.0, np.inf, 3.0, np.inf], dims) == [None, 2.0]
    assert by_dim([1.0, 2.0, 3.0, 4.0], dims, np.array([True, True, False, False])) == [2.0, 1.0]


def test_budgets_match_what_they_are_named_after():
    size = tuning.SEARCH
    groups = description_bits(size.features, size.active, size.budget("columns"))
    k = size.budget("bits")
    assert description_bits(size.columns, k, k) <= groups < description_bits(size.columns, k + 1, k + 1)
    assert size.budget("columns") == 16 * size.budget("units")
    world = size.world("per_dim")
    assert len(world.dims) == size.features
    for energy in ("total", "per_dim"):
        assert size.world(energy).statistics().total_energy == pytest.approx(size.active * 1.01)
    paper = e2.STUDIES["paper"].size
    assert (paper.columns, paper.budget("columns"), paper.features) == (4096, 64, 256)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_every_job_can_be_built_at_its_budget(model, budget, tuned):
    one = tuning.job(model, SMALL, budget, 0)
    built = build(one.architecture, width_in=SMALL.width, **one.settings)
    assert built.n_units * built.rank == SMALL.columns
    columns = SMALL.budget(budget if model in VECTORS else "columns")
    asked = one.settings.get("target_l0") or one.settings.get("active_latents") or 16 * one.settings["active_groups"]
    assert asked == columns
    if model in SASAS:
        tuned_coefficient, revived = SASAS[model]
        assert (one.settings["nuclear"] > 0) == (tuned_coefficient == "tuned")
        assert (one.settings["aux_groups"] > 0) == revived
        assert (one.training.splits > 0) == (model == tuning.WITH_SPLITS)
        assert one.training.penalty_warmup_steps == int(SMALL.steps * (0.5 if one.training.splits else 0.25))


def test_the_published_settings_have_their_coefficients_and_no_revival():
    for model in MODELS:
        one = tuning.published_job(model, SMALL, 0)
        build(one.architecture, width_in=SMALL.width, **one.settings)
        assert one.training.lr == 1e-3
        assert not [name for name, value in one.settings.items() if name.startswith("aux_") and value]
        assert one.settings.items() >= tuning.PUBLISHED_PENALTIES.get(model, {}).items()


def test_the_search_takes_the_best_matched_run_and_the_strongest_cheap_penalty():
    grid = [
        {"budget": budget, "model": model, "lr": lr, "nuclear": 0.0, "unexplained": lr, "l0": SEARCHED[budget]}
        for budget in BUDGETS
        for model in VECTORS
        for lr in tuning.RATES
    ]
    grid += [
        {"budget": "columns", "model": model, "lr": lr, "nuclear": 0.0, "unexplained": -lr, "l0": 32.0}
        for model in BLOCKS
        for lr in tuning.RATES
    ]
    price = dict(zip(tuning.NUCLEAR, (1.0, 1.04, 1.2), strict=True))
    grid += [
        {"budget": "columns", "model": "sasa", "lr": lr, "nuclear": lam, "unexplained": price[lam] + lr, "l0": 32.0}
        for lr in tuning.RATES
        for lam in tuning.NUCLEAR
    ]
    grid[0]["l0"] *= 2  # ReLU's best run misses the budget
    found = tuning.choose(grid)
    assert found["nuclear"] == tuning.NUCLEAR[1]
    assert found["chosen"]["columns"]["relu"] == tuning.RATES[1]
    assert found["chosen"]["columns"]["topk"] == tuning.RATES[0]
    assert found["chosen"]["bits"]["bsf"] == tuning.RATES[-1]
    assert found["chosen"]["units"]["sasa"] == tuning.RATES[0]


SEARCHED = {budget: float(tuning.SEARCH.budget(budget)) for budget in BUDGETS}


@pytest.fixture(scope="module")
def study():
    return e2.Study(SMALL, (("total", "columns"), ("total", "units")), EFFORT, 300, lengths=(2, 3, 6))


def test_tiny_run_round_trip_and_drawing(tuned, study, tmp_path, monkeypatch):
    load_all()
    monkeypatch.setitem(e2.STUDIES, "standard", study)
    for module in (e2, tuning, shown, said):  # one of each kind: the rest differ in training only
        monkeypatch.setattr(module, "VECTORS", ("topk", "relu"))
    monkeypatch.setattr(e2, "MODELS", ("topk", "relu", "sasa", "sasa, as published", "bsf"))
    monkeypatch.setattr(e2, "LENGTHENED", ("topk", "relu", "sasa"))
    context = Context("standard", (0,), tmp_path)
    figure = figures["splitting"]
    with parallel_config(backend="sequential"):
        measured = figure.run(context)
    read_back = json.loads(json.dumps(measured, allow_nan=False))
    assert {f["sentence"] for f in read_back["findings"]} == {"splitting", "covering", "collinear"}
    numbers = read_back["numbers"]
    assert set(numbers["results"]["total"]["units"]) == {"topk", "relu"}
    titles = [t["title"] for t in read_back["tables"]]
    assert len(titles) == len(set(titles)) == 11
    named = {t["title"]: [row[0] for row in t["rows"]] for t in read_back["tables"]}
    # the groups that single columns are matched to stand beside them
    assert {"SASA", "BSF"} <= set(named["Fit: energy total, budget units"])
    assert len(named["Length of training"]) == 3 and numbers["lengths"]["steps"] == [2, 3, 6]
    for name, lengths in numbers["lengths"]["models"].items():
        assert lengths[1] == numbers["results"]["total"]["columns"][name][0]
        assert len({one["unexplained"] for one in lengths}) == 3
    assert all(len(row) == len(t["columns"]) for t in read_back["tables"] for row in t["rows"])
    pictures = figure.draw(read_back)
    assert set(pictures) == {"figure", "budget-units", "covering"}
    for picture in pictures.values():
        picture.savefig(tmp_path / "picture.png", dpi=40)
    # measured runs are not measured again
    monkeypatch.setattr(e2, "measure", lambda *_: pytest.fail("measured again"))
    world = study.size.world("total")
    kept = next(iter(read_back["settings"]["runs"]))
    run = e2.fit_all(world, [tuning.job(kept["model"], SMALL, kept["budget"], 0)], out=tmp_path)[0]
    again = e2._measure_run(world, run, EFFORT, None)
    assert again["units"] == read_back["numbers"]["results"]["total"]["columns"]["topk"][0]["units"]


@pytest.fixture
def made_up():
    """(numbers, the measures, the law) that all dictionaries share; with 20 d + 1 units everywhere."""
    d = list(tuning.DIMS)
    cell = {"excess_units": [1.0 + 20 * v for v in d], "cosine": [0.99] * 8, "least_cosine": [0.5] * 8}
    cell |= {"covering": [{"atoms": [float(v + 1) for v in d], "whole": [1.0] * 8}], "l0_columns": 32.0}
    law = {"excess_units": {"decision": "exponential"}}
    numbers = {
        "dims": d,
        "cases": [[1, 0.5]],
        "active": {"columns": 32},
        "results": {"total": {"columns": {name: [cell] for name in MODELS}}},
        "laws": {"total": {"columns": dict.fromkeys(MODELS, law)}},
        "lengths": None,
    }
    return numbers, cell, law


def test_findings_follow_the_numbers_and_a_quick_run_decides_nothing(made_up):
    numbers, cell, law = made_up
    assert {f["status"] for f in said.findings(numbers, decided=False)} == {"undecided"}
    assert {f["status"] for f in said.findings(numbers, decided=True)} == {"supported"}
    law["excess_units"]["decision"] = "polynomial"
    assert said.findings(numbers, decided=True)[0]["status"] == "needs an assumption"
    cell["excess_units"] = [float(v) for v in numbers["dims"]]
    cell["covering"][0]["atoms"] = [float(v) for v in numbers["dims"]]
    assert [f["status"] for f in said.findings(numbers, decided=True)][:2] == ["refuted", "needs an assumption"]


def test_an_exception_under_any_budget_counts_against_covering(made_up):
    numbers, cell, _ = made_up
    few = {**cell, "covering": [{"atoms": [float(d) for d in numbers["dims"]], "whole": [1.0] * 8}], "l0_columns": 10.0}
    numbers["active"]["bits"] = 10
    assert said._covering(numbers, decided=True)["status"] == "supported"
    numbers["results"]["total"]["bits"] = {name: [few] for name in VECTORS}
    assert said._covering(numbers, decided=True)["status"] == "needs an assumption"


def test_a_dictionary_off_its_budget_is_marked_and_no_part_of_a_finding(made_up):
    numbers, cell, _ = made_up
    results = numbers["results"]["total"]["columns"]
    few = {**cell, "excess_units": [1.0] * 8, "cosine": [0.1] * 8}
    results["jumprelu"] = [few]
    assert [f["status"] for f in said.findings(numbers, decided=True)][::2] == ["needs an assumption"] * 2
    results["jumprelu"] = [{**few, "l0_columns": 16.5}]
    assert shown.off_budget(numbers, "columns", "jumprelu", results["jumprelu"])
    assert not shown.off_budget(numbers, "columns", "topk", results["topk"])
    assert not shown.off_budget(numbers, "columns", "K-lines", [{"l0_columns": 1.0}])
    found = said.findings(numbers, decided=True)
    assert {f["status"] for f in found} == {"supported"} and "off budget: JumpReLU" in found[0]["text"]


def test_a_conclusion_that_the_length_of_training_changes_is_none(made_up):
    numbers, cell, _ = made_up
    models = {name: [{**cell, "unexplained": left} for left in (0.4, 0.2, 0.19)] for name in MODELS}
    laws = {name: [{"decision": "exponential"}] * 3 for name in MODELS}
    numbers["lengths"] = {"seed": 0, "tables": 6400, "steps": [1600, 6400, 12800], "models": models, "laws": laws}
    found = said.findings(numbers, decided=True)[0]
    assert found["status"] == "supported" and "the conclusion stays" in found["text"]
    assert "from 6,400 to 12,800 steps unexplained variance falls by 5% at most" in found["text"]
    laws["topk"] = [{"decision": "exponential"}, {"decision": "exponential"}, {"decision": "polynomial"}]
    found = said.findings(numbers, decided=True)[0]
    assert found["status"] == "undecided" and "changes: supported, needs an assumption" in found["text"]
    laws["topk"] = [{"decision": "polynomial"}, {"decision": "exponential"}, {"decision": "exponential"}]
    assert said.findings(numbers, decided=True)[0]["status"] == "supported"  # shorter than the tables: told, no more


def test_the_command_line_lists_it_and_sentences_point_to_it(capsys):
    from sasa_lab.cli import main
    from sasa_lab.sentences import sentences

    assert main(["figure", "list"]) == 0
    assert "splitting: E2" in capsys.readouterr().out
    assert {s.id for s in sentences().values() if "splitting" in s.figures} >= {"splitting", "covering", "collinear"}
