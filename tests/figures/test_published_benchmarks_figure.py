"""Benchmarks that others wrote, on tiny runs: budgets, the search's choice, yardsticks, findings, the round trip."""

import json

import numpy as np
import pytest
import torch
from joblib import parallel_config

import figures.published_benchmarks as bench
import figures.published_draw as shown
import figures.published_recipe as tuning
from figures import Context, figures, load_all
from figures.published_measures import (
    by_kind,
    detection_yardsticks,
    factor_yardsticks,
    kinds,
    measure_detection,
    measure_factors,
    oracle,
)
from figures.published_recipe import BLOCKS, COUNTED, LOOSE, MANIFOLD, NUCLEAR, RATES, SASAS, SYNTH, Length
from figures.splitting_recipe import description_bits
from sasa_theory.models import build
from synthetic import World

RECIPE = {
    "seed": 0,
    "manifold": {
        "chosen": {budget: dict.fromkeys(models, 1e-3) for budget, models in MANIFOLD.items()},
        "nuclear": 0.1,
        "coefficient": 0.3,
    },
    "synth": {
        "length": {"steps": 3, "batch": 32},
        "chosen": dict.fromkeys(SYNTH, 1e-3),
        "grid": [{"model": m, "lr": lr, "unexplained": 0.5, "l0": 25.0} for m in SYNTH for lr in (1e-3, 3e-3)],
    },
}


@pytest.fixture
def tuned(monkeypatch):
    for module in (tuning, bench):
        monkeypatch.setattr(module, "recipe", lambda: RECIPE)


@pytest.fixture(scope="module")
def factors():
    return World.from_spec("manifold-superposition")


@pytest.fixture(scope="module")
def detections():
    """SynthSAEBench's law on 600 features in R^64, 5 trees."""
    spec = World.from_spec("smoke").spec()
    group = {"manifold": "sign", "nonnegative": True, "count": 600, "magnitude": {"law": "rectified_normal"}}
    rates = {"law": "zipf", "exponent": 0.5, "max": 0.3, "min": 0.005, "order": "listed"}
    hierarchy = {"roots": 5, "branching": 2, "depth": 2, "exclusive": True, "compensate": True}
    support = {"law": "independent", "rates": rates, "hierarchy": hierarchy}
    return World.from_spec({"width": 64, "seed": spec["seed"], "features": [group], "support": support, "bias": 0.5})


def test_the_budget_of_bits_is_met_from_below():
    most = description_bits(tuning.GROUPS, tuning.ON, tuning.ON * tuning.RANK)
    k = tuning.columns("bits")
    width = tuning.GROUPS * tuning.RANK
    assert description_bits(width, k, k) <= most < description_bits(width, k + 1, k + 1)
    assert tuning.columns("columns") == 16
    with pytest.raises(tuning.UsageError, match="budget"):
        tuning.columns("units")


def test_every_model_is_built_at_its_budget(tuned):
    for budget, models in MANIFOLD.items():
        for model in models:
            one = tuning.manifold_job(model, budget, Length(3, 32), 0)
            built = build(one.architecture, width_in=128, **one.settings)
            assert built.n_units * built.rank == 1024
            if model != LOOSE:
                settings = one.settings
                asked = settings.get("target_l0") or settings.get("active_latents") or 4 * settings["active_groups"]
                assert asked == (16 if model in BLOCKS else tuning.columns(budget))
    for model in SYNTH:
        one = tuning.synth_job(model, 256, Length(3, 32), 0)
        built = build(one.architecture, width_in=64, **one.settings)
        assert built.n_units * built.rank == 256
        rank, on = SASAS.get(model, (1, 25))
        assert (built.rank, rank * on) in ((1, 25), (2, 24), (4, 24))
        assert tuning.synth_job(model, 256, Length(3, 32), 0, lr=0.5).training.lr == 0.5


def grid(unexplained, l0=lambda model, lr, weight: 16.0):
    """A grid as the search makes it, from functions of (model, lr, nuclear share) and (model, lr, coefficient)."""
    cells = []
    for budget, models in MANIFOLD.items():
        for model in models:
            for lr in RATES:
                for share in NUCLEAR if model == "sasa" else (0.0,):
                    for weight in tuning.COEFFICIENTS if model == LOOSE else (0.1,):
                        on = tuning.columns(budget) if budget == "bits" else l0(model, lr, weight)
                        left = unexplained(model, lr, share)
                        cell = {"budget": budget, "model": model, "lr": lr, "nuclear": share, "coefficient": weight}
                        cells.append({**cell, "unexplained": left, "l0": on})
    return cells


def test_the_search_takes_the_best_rate_and_the_largest_nuclear_coefficient_that_costs_little():
    price = dict(zip(NUCLEAR, (1.02, 1.0, 1.04, 1.06, 2.0), strict=True))

    def unexplained(model, lr, share):
        best = 1e-2 if model in ("topk", "sasa") else 3e-3
        return 0.1 * (1 + abs(np.log(lr / best))) * price.get(share, 1.0)

    got = tuning.choose_manifold(grid(unexplained))
    assert got["nuclear"] == NUCLEAR[2]
    assert got["chosen"]["columns"]["topk"] == got["chosen"]["columns"]["sasa"] == 1e-2
    assert got["chosen"]["columns"]["bsf"] == got["chosen"]["bits"]["batchtopk"] == 3e-3
    assert set(got["chosen"]["bits"]) == set(COUNTED)


def test_the_search_passes_over_runs_off_their_budget():
    def l0(model, lr, weight):
        if model == LOOSE:
            return {0.03: 200.0, 0.1: 30.0, 0.3: 17.0}[weight]
        return 40.0 if (model, lr) == ("relu", 1e-3) else 16.0

    def unexplained(model, lr, share):
        return lr  # the smallest rate is best

    got = tuning.choose_manifold(grid(unexplained, l0))
    assert got["chosen"]["columns"]["relu"] == 3e-3
    assert got["chosen"]["columns"]["jumprelu"] == 1e-3
    assert got["coefficient"] in (0.1, 0.3)


def test_the_tracked_search_chooses_what_its_runs_say():
    found = tuning.recipe()
    assert tuning.choose_manifold(found["manifold"]["grid"]).items() <= found["manifold"].items()
    assert tuning.choose_synth(found["synth"]["grid"]) == found["synth"]["chosen"]
    assert found["seed"] not in (0, 1, 2)


def test_a_short_run_averages_its_threshold_over_a_tenth_of_it():
    for steps, decay in ((5, 0.0), (40, 0.75), (200, 0.95), (195_313, 0.99)):
        assert tuning.synth_settings("batchtopk", 64, steps)[1]["threshold_decay"] == pytest.approx(decay)


def test_recovery_is_averaged_by_kind(factors):
    names = kinds(factors)
    assert len(names) == 128 and names.count("segment") == 64 and names.count("circle") == 10
    values = np.where(np.array(names) == "segment", 0.0, 1.0)
    values[0] = np.nan  # a factor that was never on
    got = by_kind(factors, values)
    assert got["segment"] == 0 and got["curved"] == got["torus"] == 1
    assert got["all"] == pytest.approx(64 / 127)


def test_planted_subspaces_are_recovered_and_principal_directions_are_not(factors):
    made = factor_yardsticks(factors, 3000, 0)
    got = {name: measure_factors(model, own, 3000) for name, (model, own) in made.items()}
    assert oracle(factors, 3000)["all"] == pytest.approx(1, abs=1e-6)
    # one factor a row: the planted blocks would be exact, K-subspaces come near
    assert got["K-subspaces"]["r2"]["all"] > 0.7
    assert got["planted truth"]["r2"]["all"] > got["PCA"]["r2"]["all"] + 0.3
    assert got["planted truth"]["presence"] > 0.8
    # d_i coefficients each, and no fewer than a fair choice of four would have
    assert factors.statistics().expected_dims <= got["planted truth"]["l0"] < 4 * 3
    assert got["PCA"]["l0"] == 16


def test_planted_directions_have_mcc_1_and_chance_is_larger_for_blocks(detections):
    made = detection_yardsticks(detections, 60, (1, 4), 1000, 0)
    got = {name: measure_detection(model, detections, 1500) for name, model in made.items()}
    assert got["planted truth"]["mcc"] == pytest.approx(1, abs=1e-5)
    assert got["planted truth"]["uniqueness"] == 1
    assert got["planted truth"]["f1"] > got["random directions"]["f1"] + 0.1
    assert got["random, r = 4"]["mcc"] > got["random directions"]["mcc"]
    assert got["PCA"]["l0"] == got["K-lines"]["l0"] == tuning.L0
    # lines that were fitted, and coded with care, explain more than lines at random
    assert got["K-lines"]["explained"] > got["random directions"]["explained"]


def cells(**curved):
    """One cell per seed and model at one length, from the R^2 of the curved factors."""
    rest = {"budget": "columns", "rows": 1000}
    return [
        {"model": model, "seed": seed, **rest, "r2": {"curved": value}}
        for model, values in curved.items()
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("sasa", "topk", "expected"),
    [
        ((0.95, 0.93), (0.5, 0.6), ("supported", "supported")),
        ((0.8, 0.93), (0.5, 0.6), ("undecided", "supported")),
        ((0.95, 0.8), (0.5, 0.81), ("undecided", "undecided")),
        ((0.95, 0.93), (0.95, 0.96), ("supported", "needs an assumption")),
    ],
)
def test_findings_follow_the_numbers(sasa, topk, expected):
    measured = {
        "cells": cells(sasa=sasa, topk=topk, bsf=(0.99, 0.99)),
        "yardsticks": {"planted truth": [{"r2": {"curved": 0.9}}]},
        "oracle": {"curved": 1.0},
    }
    got = {f["sentence"]: f["status"] for f in bench.findings(measured, decided=True)}
    assert (got["consolidation"], got["splitting"]) == expected
    assert {f["status"] for f in bench.findings(measured, decided=False)} == {"undecided"}


def test_published_values_stand_beside_the_budget_they_may_belong_to():
    assert shown.published("topk", "columns") == "0.53"
    assert shown.published("bsf", "columns") == "0.93 to 0.97"
    assert shown.published("topk", "bits") is None and shown.published("sasa", "columns") is None


def test_round_trip_on_tiny_runs(tmp_path, monkeypatch, tuned, detections):
    budgets = {"columns": ("sasa", LOOSE, "topk"), "bits": ("topk",)}
    monkeypatch.setattr(bench, "MANIFOLD", budgets)
    short, few = (Length(2, 16), Length(4, 16)), ("batchtopk", "sasa, r = 4")
    study = bench.Study(short, ("columns", "bits"), 300, 1100, short, few, 64, 200, 1)
    monkeypatch.setitem(bench.STUDIES, "quick", study)
    monkeypatch.setattr(bench, "SYNTHSAEBENCH", detections.spec())
    context = Context("quick", (0, 1), tmp_path)
    with parallel_config(backend="sequential"):
        result = json.loads(json.dumps(bench.run(context), allow_nan=False))
    trained = result["numbers"]["factors"]["cells"]
    assert len(trained) == 4 * 3  # two seeds, one of them at both lengths
    assert len(result["numbers"]["detections"]["cells"]) == 2 * len(few)
    assert len(result["settings"]["runs"]) == len(trained) + 2 * len(few)
    for one in result["tables"]:
        assert {len(row) for row in one["rows"]} == {len(one["columns"])}
    main = result["tables"][0]
    by_name = {row[0]: row for row in main["rows"]}
    assert by_name["TopK"][2] == "0.53" and by_name["TopK, bits"][2] is None and by_name["oracle"][2] == "0.99"
    l0 = main["columns"].index("L0")
    assert by_name["TopK, bits"][l0] <= tuning.columns("bits") < by_name["TopK"][l0] <= 16
    pictures = shown.draw(result)
    assert set(pictures) == {"figure", "synthsaebench"}
    for name, picture in pictures.items():
        picture.savefig(tmp_path / f"{name}.png")

    # a second call takes the measures of every run from the file beside it
    asked = []
    monkeypatch.setattr(bench, "measure_factors", lambda *given: asked.append(given) or measure_factors(*given))
    with parallel_config(backend="sequential"):
        again = bench.run(Context("quick", (0,), tmp_path))
    assert len(asked) == 5  # the yardsticks
    assert again["numbers"]["factors"]["cells"] == [cell for cell in trained if cell["seed"] == 0]


def test_the_figure_is_registered_with_every_profile():
    load_all()
    figure = figures["published-benchmarks"]
    assert set(figure.budget) == set(bench.STUDIES)
    paper = bench.STUDIES["paper"]
    assert paper.lr == 3e-4 and paper.detections[-1].rows == pytest.approx(200e6, rel=1e-3)
    assert paper.width == 4096


def test_spread_is_the_sample_deviation():
    assert shown.spread([0.5]) == "0.500"
    assert shown.spread([0.4, 0.6]) == f"0.500 ± {np.std([0.4, 0.6], ddof=1):.3f}"
    assert torch.tensor([0.4, 0.6]).std() == pytest.approx(np.std([0.4, 0.6], ddof=1))
