"""E2: how many units does a feature of dimension d take, d = 1 ... 16, in fifteen dictionaries at matched budgets?

Worlds, budgets, dictionaries and their tuning stand in `splitting_recipe`, the measures in `splitting_measures`. What a
reader should know:

- At the published budget (64 active columns, 4 features) part A forces nothing: 64 >= 16, so A2 and A3 are void, and a
  basis of every feature fits into the dictionary (sum d_i is 6.5 columns a feature, the dictionary has 16). Splitting
  seen there is a choice of training. So it is on the reduced world (32 active columns, 2 features). With as many active
  columns as features are on ("units") A3 binds for every larger d; its ceiling is drawn.
- A basis of a feature takes d atoms of codes that may be negative, and 2 d of codes that may not.
- 16 columns a feature are also a cap: a law that is exponential up to d = 16 does not fit into the dictionary, so an
  "exponential" can be decided only as far as that cap lets it.
- The published rule of counting is inflated where subspaces overlap; see the row of the planted truth, and the count by
  excess energy beside it.
- Only features whose recovered energy is at least one half are counted, as published: the share of these is given, for
  a dictionary that drops the large features looks frugal.
- A dictionary that is not at its plateau may look as if its counts grew exponentially. So the first seed is trained for
  other lengths too (matched columns, `Study.lengths`), and the finding says whether its conclusion stays.
- Learning rates and SASA's coefficient were searched with 1,600 steps, for all alike.
- Dictionaries that are steered to their L0 and miss it by more than 15 % are marked and no part of a finding.
- SASA and the featurizers have a group of 16 columns for each feature that is on, under all budgets; a group that holds
  a feature of dimension 1 pays for 16 coefficients in L0 and in bits.
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from figures.registry import Context, Figure, figures
from figures.splitting_draw import draw
from figures.splitting_findings import findings
from figures.splitting_measures import Effort, ceiling, measure
from figures.splitting_recipe import (
    BUDGETS,
    COEFFICIENT_BITS,
    DIMS,
    ENERGIES,
    MODELS,
    RANK,
    VECTORS,
    WITH_SPLITS,
    Size,
    job,
    published_job,
    recipe,
)
from figures.splitting_tables import tables
from figures.tuning import late_change
from figures.yardsticks import references
from sasa_theory.bounds import atom_floor
from sasa_theory.files import read_json, write_json
from sasa_theory.statistics import Line, growth_law
from sasa_theory.training import Job, Run, fit_all
from synthetic import World
from synthetic.errors import DataError, Interrupted

#: "published" is no matched budget: the settings of the published code as they are
PUBLISHED = "published"


@dataclass(frozen=True)
class Study:
    """What a profile runs: its size, which (energy, budget) cells, how closely each model is looked at.

    reference_rows  rows that the references are fitted to.
    lengths         steps, those of the size among them, for which the first seed is trained (matched columns, "total").
    """

    size: Size
    cells: tuple[tuple[str, str], ...]
    effort: Effort
    reference_rows: int
    lengths: tuple[int, ...] = ()


#: trained for several lengths: every vector dictionary, and the two recipes of SASA
LENGTHENED = (*VECTORS, "sasa", WITH_SPLITS)
CASES = tuple((k, eps) for eps in (0.5, 0.3) for k in (1, 2, 4, 8))
BOTH = tuple((energy, "columns") for energy in ENERGIES)
STUDIES = {
    "quick": Study(
        Size("splitting-192", 96, 4, 1, 400, 256),
        (("total", "columns"),),
        Effort(rows=6000, alone=100, cases=CASES[:4], covered=1, points=100, candidates=128),
        4000,
    ),
    "standard": Study(
        Size("splitting-192", 192, 8, 2, 6400, 256),
        (*BOTH, ("total", "bits"), ("per_dim", "bits"), ("total", "units")),
        Effort(rows=20_000, alone=200, cases=CASES, covered=2, points=200, candidates=192),
        16_000,
        (1600, 6400, 12_800),
    ),
    "paper": Study(
        Size("splitting", 768, 32, 4, 8000, 2048),
        tuple((energy, budget) for energy in ENERGIES for budget in (*BUDGETS, PUBLISHED)),
        Effort(rows=60_000, alone=500, cases=CASES, covered=4, points=500, candidates=512),
        60_000,
        (8000, 32_000),
    ),
}


def run(context: Context) -> dict[str, Any]:
    """Train every dictionary, measure each, fit the growth laws (module docstring)."""
    study = STUDIES[context.profile]
    size = study.size
    results: dict[str, dict[str, Any]] = {}
    yardsticks: dict[str, dict[str, list[dict[str, Any]]]] = {}
    ran = []
    for energy, budget in study.cells:
        world = size.world(energy)
        names = VECTORS if budget in ("bits", "units") else MODELS
        cells = [(name, seed) for name in names for seed in context.seeds]
        jobs = [_job(name, size, budget, seed) for name, seed in cells]
        runs = fit_all(world, jobs, out=context.out, device=context.device, deadline=context.deadline)
        here: dict[str, list[dict[str, Any]]] = {}
        for (name, seed), trained, got in zip(cells, runs, _measured(world, runs, study, context), strict=True):
            here.setdefault(name, []).append({**got, "seed": seed, "settled": late_change(trained)})
            ran.append({"energy": energy, "budget": budget, "model": name, "seed": seed, "run": trained.directory.name})
        results.setdefault(energy, {})[budget] = here
        if energy not in yardsticks:
            yardsticks[energy] = {}
            for seed in context.seeds:
                _stop_in_time(context)
                made = references(world, RANK, size.columns, study.reference_rows, seed)
                for name, (model, own) in made.items():
                    yardsticks[energy].setdefault(name, []).append(measure(model, own, study.effort, seed))
    rng = np.random.default_rng(context.seeds[0])
    numbers = {
        "dims": list(DIMS),
        "columns": size.columns,
        "active": {budget: size.budget(budget) for budget in BUDGETS},
        "cases": [list(case) for case in study.effort.cases],
        "results": results,
        "references": yardsticks,
        "laws": _laws(results, yardsticks, rng),
        "lengths": _lengths(results, study, context, ran, rng) if study.lengths else None,
        "floors": [[atom_floor(d, k, eps) for d in DIMS] for k, eps in study.effort.cases],
        "ceilings": {budget: [ceiling(size.columns, size.budget(budget), d) for d in DIMS] for budget in BUDGETS},
    }
    return {
        "numbers": numbers,
        "tables": tables(numbers),
        "findings": findings(numbers, decided=context.profile != "quick"),
        "settings": {
            "world": size.world("total").spec(),
            "size": asdict(size),
            "effort": asdict(study.effort),
            "group rank": RANK,
            "bits a coefficient": COEFFICIENT_BITS,
            "recipe": {key: recipe()[key] for key in ("size", "seed", "chosen", "nuclear")},
            "runs": ran,
        },
    }


def _lengths(
    results: dict[str, Any], study: Study, context: Context, ran: list[dict[str, Any]], rng: np.random.Generator
) -> dict[str, Any]:
    """The first seed with energy "total" and matched columns: {"models": {name: [at each length]}}."""
    seed = context.seeds[0]
    models: dict[str, list[dict[str, Any]]] = {name: [] for name in LENGTHENED}
    for steps in study.lengths:
        if steps == study.size.steps:
            for name in LENGTHENED:
                models[name].append(results["total"]["columns"][name][0])
            continue
        size = replace(study.size, steps=steps)
        world, jobs = size.world("total"), [job(name, size, "columns", seed) for name in LENGTHENED]
        runs = fit_all(world, jobs, out=context.out, device=context.device, deadline=context.deadline)
        for name, trained, got in zip(LENGTHENED, runs, _measured(world, runs, study, context), strict=True):
            models[name].append({**got, "seed": seed, "settled": late_change(trained)})
            where = {"energy": "total", "budget": "columns", "steps": steps, "model": name, "seed": seed}
            ran.append({**where, "run": trained.directory.name})
    laws = {name: [_law([one], "excess_units", rng) for one in found] for name, found in models.items()}
    return {"seed": seed, "tables": study.size.steps, "steps": list(study.lengths), "models": models, "laws": laws}


def _job(name: str, size: Size, budget: str, seed: int) -> Job:
    return published_job(name, size, seed) if budget == PUBLISHED else job(name, size, budget, seed)


def _measured(world: World, runs: list[Run], study: Study, context: Context) -> Iterable[dict[str, Any]]:
    """The measures of every run, in order; on a CPU two at a time. Each is kept beside its run."""
    if context.device.startswith("cuda"):
        return [_measure_run(world, one, study.effort, context.deadline) for one in runs]
    from joblib import Parallel, delayed

    tasks: Iterator[Any] = (delayed(_measure_run)(world, one, study.effort, context.deadline) for one in runs)
    done: list[dict[str, Any]] = Parallel(n_jobs=-1)(tasks)
    return done


def _measure_run(world: World, trained: Run, effort: Effort, deadline: float | None) -> dict[str, Any]:
    """The measures of one run, from the file beside it where they were taken with this effort already."""
    if deadline is not None and time.monotonic() > deadline:
        raise Interrupted("time is up; the same command goes on from the runs measured so far")
    file = trained.directory / "splitting.json"
    asked = {"effort": {**asdict(effort), "cases": [list(case) for case in effort.cases]}, "version": 1}
    if file.exists() and (kept := read_json(file)) and kept["asked"] == asked:
        got: dict[str, Any] = kept["measured"]
        return got
    torch.set_num_threads(1)
    got = measure(trained.model, world, effort, 0)
    write_json(file, {"asked": asked, "measured": got})
    return got


def _stop_in_time(context: Context) -> None:
    if context.deadline is not None and time.monotonic() > context.deadline:
        raise Interrupted("time is up; the same command goes on from the runs measured so far")


def _laws(
    results: dict[str, Any], yardsticks: dict[str, Any], rng: np.random.Generator
) -> dict[str, dict[str, dict[str, Any]]]:
    """{energy}: {budget}: {model}: {quantity}: the decision (D4) over d >= 2 and all seeds."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for energy, budgets in results.items():
        everything = {**budgets, "references": yardsticks[energy]}
        out[energy] = {
            budget: {
                name: {quantity: _law(seeds, quantity, rng) for quantity in ("units", "excess_units")}
                for name, seeds in models.items()
            }
            for budget, models in everything.items()
        }
    return out


def _law(seeds: list[dict[str, Any]], quantity: str, rng: np.random.Generator) -> dict[str, Any]:
    """Both laws of the mean count at each d >= 2 (d = 1 is a ray: one unit, whatever the dictionary)."""
    pairs = [(d, n) for one in seeds for d, n in zip(DIMS, one[quantity], strict=True) if d > 1 and n]
    d, n = (np.array(column, dtype=float) for column in zip(*pairs, strict=True)) if pairs else (np.empty(0),) * 2
    try:
        found = growth_law(d, n, rng=rng)
    except DataError as error:
        return {"decision": "undecided", "reason": str(error)}

    def line(law: Line) -> dict[str, float]:
        return {"intercept": law.intercept, "slope": law.slope, "low": law.low, "high": law.high}

    numbers = {"difference": found.difference, "lead": found.lead}
    if not all(math.isfinite(v) for v in numbers.values()):
        return {"decision": "undecided", "reason": "no finite likelihood"}
    return {
        "decision": found.decision,
        **numbers,
        "exponential": line(found.exponential),
        "polynomial": line(found.polynomial),
    }


figures.register("splitting")(
    Figure(
        name="splitting",
        title="E2: units per feature against its dimension, fifteen dictionaries at matched budgets",
        run=run,
        draw=draw,
        budget={"quick": 60.0, "standard": 150 * 60.0, "paper": 7 * 3600.0},
        needs="" if recipe.is_made() else "its tuning (python -m figures.splitting_recipe)",
    )
)
