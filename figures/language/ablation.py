"""What SASA's reconstruction costs: rank, nuclear coefficient and training recipe, each moved alone, at one L0.

From the vector dictionary to SASA in steps, all of equal columns and L0: TopK (codes not negative), AbsTopK (signed),
then groups of r signed columns chosen by norm, for r = 2 and the published 3, 6, 12 (what r s columns lose by being
chosen in blocks is the architecture's part), each r at SASA's rate and at half of it; then, on the first seed, the
nuclear coefficient on the published penalty ("decoder": 0, 10, 100, mean over all groups) and on the objective's own
("map", shares of the energy that a column carries on average; they are no equals of the published coefficients, the
mean rank that they leave stands beside them); then the recipe: the start on data points, splits of merged groups, no
revival of dead groups, double the rate, what finds all subspaces of planted worlds (figure `recovery`: splits, and a
nuclear penalty raised over half of the training), and that at half the rate.
"""

import dataclasses
from typing import Any

import numpy as np

from figures.language.ablation_draw import draw, tables
from figures.language.blocks import BLOCK, BlockErrors, explained_more, whole_blocks, with_interval
from figures.language.study import NEEDS, OPTIONS, Study, decided
from figures.registry import Context, Figure, figures
from sasa_theory.evaluation import Calculator, DeadShare, ExplainedVariance, Sparsity
from sasa_theory.evaluation import run as measure
from sasa_theory.evaluation.subspaces import UnitRanks, decoder_cosine
from sasa_theory.training import Job

RANKS = (2, 3, 6, 12)
DECODER = (0.0, 10.0, 100.0)
#: coefficients of the map penalty, as shares of the energy a column carries on average (D / columns)
MAP = (0.0, 0.1, 0.3)
#: what figure `recovery` found: splits, and the share of the map penalty
SPLITS, SHARE = 5, 0.1
SLOWER = ", half the rate"
#: one in this many of the study's tokens
PART = 2
#: explained variance within this counts as equal
MARGIN = 0.01
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
    errors = {}
    for part, name in variants(study):
        runs = [of_model(study, trained[part, name, seed].model) for seed in seeds_of(study, part)]
        errors[part, name] = np.mean([one.pop("block_errors") for one in runs], axis=0)
        variance = runs[0].pop("variance")
        results.append({"part": part, "name": name, **{key: [one[key] for one in runs] for key in runs[0]}})
    numbers = {
        "gap": parts_of_gap(errors, variance, str(made.group_rank), np.random.default_rng(context.seeds[0])),
        "model": made.model,
        "hook": made.hook,
        "rank": made.group_rank,
        "l0": ablation_l0(study),
        "columns": made.columns,
        "tokens": made.train_tokens // PART,
        "unit": study.width / made.columns,
        "results": results,
    }
    return {
        "numbers": numbers,
        "tables": tables(numbers),
        "findings": decided([finding(numbers)], context),
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
        *(("rank", f"{r}{slower}") for r in ranks for slower in ("", SLOWER)),
        *(("decoder", f"r={r}, {c:g}") for r in RANKS[1:] for c in DECODER[1:]),
        *(("map", f"r={r}, {c:g}") for r in RANKS[1:] for c in MAP[1:]),
        ("recipe", "start on data points"),
        ("recipe", "five splits"),
        ("recipe", "no revival"),
        ("recipe", "double the rate"),
        ("recipe", "as on planted worlds"),
        ("recipe", "as on planted worlds" + SLOWER),
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
    planted = name.startswith("as on planted worlds")
    coefficient = float(name.split(",")[1]) if part in ("decoder", "map") else SHARE * planted
    base = study.job("sasa", made.middle_l0, seed, lr=lr, tokens=made.train_tokens // PART)
    settings = {
        **base.settings,
        "n_groups": made.columns // rank,
        "group_rank": rank,
        "active_groups": l0 // rank,
        "aux_groups": l0 // rank,
        "penalty": "decoder" if part == "decoder" else "map",
        "penalise": "all" if part == "decoder" else "active",
        "nuclear": coefficient if part == "decoder" else coefficient * study.width / made.columns,
    }
    training = base.training
    if name == "start on data points":
        training = dataclasses.replace(training, initialise="data")
    elif name == "five splits" or planted:
        training = dataclasses.replace(training, splits=SPLITS)
    elif name == "no revival":
        settings["aux_groups"] = 0
    elif name == "double the rate":
        training = dataclasses.replace(training, lr=2 * training.lr)
    if planted:
        training = dataclasses.replace(training, penalty_warmup_steps=training.steps // 2)
    if name.endswith(SLOWER):
        training = dataclasses.replace(training, lr=training.lr / 2)
    return Job("sasa", settings, training)


def parts_of_gap(
    errors: dict[tuple[str, str], np.ndarray], variance: float, rank: str, rng: np.random.Generator
) -> dict[str, Any]:
    """Explained variance from TopK to SASA as it is trained, with intervals: signs, blocks, recipe.

    Blocks are charged with what the best of all recipes tried at the study's rank lacks of AbsTopK, the recipe with
    what SASA at the tuned rate lacks of that best.
    """
    sasa = ("rank", rank)
    tried = {key: left for key, left in errors.items() if key[0] == "recipe" or key in (sasa, ("rank", rank + SLOWER))}
    tried |= {key: left for key, left in errors.items() if key[1].startswith(f"r={rank},")}
    best = min(tried, key=lambda key: float(tried[key].sum()))
    steps = {
        "signs": (errors["dictionary", "abstopk"], errors["dictionary", "topk"]),
        "blocks": (errors[best], errors["dictionary", "abstopk"]),
        "recipe": (errors[sasa], errors[best]),
        "all": (errors[sasa], errors["dictionary", "topk"]),
        "best": (errors[best], errors["dictionary", "topk"]),
    }
    found = {name: explained_more(ours, theirs, variance, rng) for name, (ours, theirs) in steps.items()}
    return {**found, "best_recipe": " ".join(best)}


def finding(numbers: dict[str, Any]) -> dict[str, str]:
    """How much of the distance to TopK is the training, and how much the architecture?"""
    gap = numbers["gap"]
    made_up = gap["best"]["value"] >= -MARGIN
    behind = gap["best"]["interval"][1] < -MARGIN
    status = (
        "supported"
        if gap["all"]["value"] >= -MARGIN
        else "needs an assumption"
        if made_up
        else "refuted"
        if behind
        else "undecided"
    )
    return {
        "sentence": "matched-budget",
        "status": status,
        "text": (
            f"{numbers['model']}, {numbers['tokens']:,} tokens, L0 {numbers['l0']}: explained variance of SASA, rank "
            f"{numbers['rank']}, no penalty, less TopK's {with_interval(gap['all'])}: codes of either sign "
            f"{with_interval(gap['signs'])}, choice by blocks {with_interval(gap['blocks'])} with the best recipe "
            f"tried ({gap['best_recipe']}), the rest of the recipe {with_interval(gap['recipe'])}"
        ),
    }


def of_model(study: Study, model: Any) -> dict[str, Any]:
    """What the tables show of one run, its errors on blocks of held-out rows, and their variance."""
    encoder, decoder = model.blocks()
    calculators: list[Calculator] = [ExplainedVariance(), Sparsity(), DeadShare(), UnitRanks(encoder, decoder)]
    calculators.append(BlockErrors())
    got = measure(model, study.data, whole_blocks(study), calculators, batch_size=BLOCK)
    ranks = got["ranks"]
    return {
        "explained_variance": got["explained_variance"].explained_variance,
        "l0": got["l0"].l0,
        "dead": got["dead"].dead_share,
        "rank90": ranks.mean_rank90,
        "stable_rank": float(np.mean(ranks.stable_rank[ranks.fired])) if ranks.fired.any() else None,
        "decoder_cosine": decoder_cosine(decoder).mean_max_absolute,
        "block_errors": got["block_errors"],
        "variance": got["explained_variance"].variance,
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
