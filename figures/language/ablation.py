"""What SASA's reconstruction costs: rank, nuclear coefficient and training recipe, each moved alone, at one L0.

From the vector dictionary to SASA in steps, all of equal columns and L0: TopK (codes not negative), AbsTopK (signed),
then groups of r signed columns chosen by norm, for r = 2 and the published 3, 6, 12 (what r s columns lose by being
chosen in blocks is the architecture's part); then, on the first seed, the nuclear coefficient on the published penalty
("decoder": 0, 10, 100, mean over groups) and on the objective's own ("map", shares of the energy that a column carries
on average); then the recipe: the start on data points, splits of merged groups, no revival of dead groups, half and
double the rate.
"""

import dataclasses
from typing import Any

import numpy as np

from figures.language.ablation_draw import draw, tables
from figures.language.study import NEEDS, OPTIONS, Study
from figures.registry import Context, Figure, figures
from sasa_theory.evaluation import Calculator, DeadShare, ExplainedVariance, Sparsity
from sasa_theory.evaluation import run as measure
from sasa_theory.evaluation.subspaces import UnitRanks, decoder_cosine
from sasa_theory.training import Job

RANKS = (2, 3, 6, 12)
DECODER = (0.0, 10.0, 100.0)
#: coefficients of the map penalty, as shares of the energy a column carries on average (D / columns)
MAP = (0.0, 0.1, 0.3)
#: one in this many of the study's tokens
PART = 2
#: the L0 of every run: the multiple of all ranks nearest to the study's middle one
STEP = 12


def run(context: Context) -> dict[str, Any]:
    """Train every variant with the study's seeds and measure it on held-out rows."""
    study = Study.open(context)
    made = study.configuration
    wanted = [(part, name, seed) for part, name in variants(study) for seed in seeds_of(study, part)]
    jobs = {(part, name, seed): job(study, part, name, seed) for part, name, seed in wanted}
    trained = dict(zip(wanted, study.fit([jobs[key] for key in wanted]), strict=True))
    results: list[dict[str, Any]] = []
    for part, name in variants(study):
        runs = [of_model(study, trained[part, name, seed].model) for seed in seeds_of(study, part)]
        results.append({"part": part, "name": name, **{key: [one[key] for one in runs] for key in runs[0]}})
    numbers = {
        "model": made.model,
        "hook": made.hook,
        "l0": ablation_l0(study),
        "columns": made.columns,
        "tokens": made.train_tokens // PART,
        "unit": study.width / made.columns,
        "results": results,
    }
    return {
        "numbers": numbers,
        "tables": tables(numbers),
        "findings": [],
        "settings": {
            **study.settings(),
            "models": {f"{k[0]}, {k[1]}": dict(jobs[k].settings) for k in wanted},
        },
    }


def ablation_l0(study: Study) -> int:
    """Columns on in every run."""
    return max(STEP, round(study.configuration.middle_l0 / STEP) * STEP)


def variants(study: Study) -> list[tuple[str, str]]:
    """(part, name) of every variant; names say what is moved."""
    rank = study.configuration.group_rank
    ranks = sorted({*RANKS, rank})
    return [
        ("dictionary", "topk"),
        ("dictionary", "abstopk"),
        *(("rank", str(r)) for r in ranks),
        *(("decoder", f"r={r}, {c:g}") for r in RANKS[1:] for c in DECODER[1:]),
        *(("map", f"r={r}, {c:g}") for r in RANKS[1:] for c in MAP[1:]),
        ("recipe", "start on data points"),
        ("recipe", "five splits"),
        ("recipe", "no revival"),
        ("recipe", "half the rate"),
        ("recipe", "double the rate"),
    ]


def seeds_of(study: Study, part: str) -> tuple[int, ...]:
    """The first `ablation_seeds` of the study's seeds; the first alone for the grids of coefficients."""
    made = study.configuration
    return made.seeds[: 1 if part in ("decoder", "map") else made.ablation_seeds]


def job(study: Study, part: str, name: str, seed: int, *, lr: float | None = None) -> Job:
    """The job of a variant; groups of rank r fill the columns as far as they go (a few columns may be left out).

    All have the multiple of STEP columns on that is nearest to the study's middle L0.
    """
    made = study.configuration
    l0 = ablation_l0(study)
    if part == "dictionary":
        return study.job(name, l0, seed, lr=lr, tokens=made.train_tokens // PART)
    rank = int(name.split(",")[0].removeprefix("r=")) if part != "recipe" else made.group_rank
    coefficient = float(name.split(",")[1]) if part in ("decoder", "map") else 0.0
    base = study.job("sasa", made.middle_l0, seed, lr=lr, tokens=made.train_tokens // PART)
    settings = {
        **base.settings,
        "n_groups": made.columns // rank,
        "group_rank": rank,
        "active_groups": l0 // rank,
        "aux_groups": l0 // rank,
        "penalty": part if part in ("decoder", "map") else "map",
        "nuclear": coefficient * study.width / made.columns if part == "map" else coefficient,
    }
    training = base.training
    if name == "start on data points":
        training = dataclasses.replace(training, initialise="data")
    elif name == "five splits":
        training = dataclasses.replace(training, splits=5)
    elif name == "no revival":
        settings["aux_groups"] = 0
    elif part == "recipe":
        training = dataclasses.replace(training, lr=training.lr * (0.5 if name.startswith("half") else 2.0))
    return Job("sasa", settings, training)


def of_model(study: Study, model: Any) -> dict[str, float | None]:
    """What the tables show of one run."""
    encoder, decoder = model.blocks()
    calculators: list[Calculator] = [ExplainedVariance(), Sparsity(), DeadShare(), UnitRanks(encoder, decoder)]
    got = measure(model, study.data, study.configuration.evaluation_tokens, calculators)
    ranks = got["ranks"]
    return {
        "explained_variance": got["explained_variance"].explained_variance,
        "l0": got["l0"].l0,
        "dead": got["dead"].dead_share,
        "rank90": ranks.mean_rank90,
        "stable_rank": float(np.mean(ranks.stable_rank[ranks.fired])) if ranks.fired.any() else None,
        "decoder_cosine": decoder_cosine(decoder).mean_max_absolute,
    }


figures.register("ablation")(
    Figure(
        name="ablation",
        title="E4: rank, nuclear coefficient and recipe of SASA on a language model",
        run=run,
        draw=draw,
        budget={"quick": 5 * 60.0, "standard": 2 * 3600.0, "paper": 24 * 3600.0},
        options=OPTIONS,
        needs=NEEDS,
    )
)
