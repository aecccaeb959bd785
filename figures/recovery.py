"""What makes a SASA find all planted subspaces? The recipe of E3 with each of its parts changed, and where it fails.

A smaller world of E3's load (sum d_i / D = 1.5, dimensions 1 to 8, coefficient 10 of the penalty "map", two features on
in a row) is trained with the recipe of `rank-recovery` and with one part of it changed at a time, each with and without
splits (training/split_groups.py). Features are matched to groups one to one; found means capture >= FOUND.

Two phase diagrams, again with and without splits: the share found against the load and the number of active features,
and, where all features have FLAT dimensions, against r / d and lam / sigma_d, sigma_d the smallest eigenvalue of a
feature's own second moment weighted by its rate. C6 wants lam / sigma_d < 2, C3 r >= d.

The starts on K-subspaces and on block PCA, and the gate noise, are those of recovery_starts.py; the start on data takes
the decoder's columns from rows. Variants of coherence change the world: its frames have that largest cosine of two
features' subspaces; beyond what random frames have, all features share a direction, the more the higher.

Two parts stand beside these: the published size (recovery_full.py), and, at one place of the second diagram where C6 is
kept but nothing is found, training without the gauge, for LONG times the steps with the penalty warmed up over all of
them, and from the planted truth: is it C6 or training that fails?
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from figures.rank_recovery_starts import LONG, objective, planted_places, train_from, train_model, ungauged
from figures.rank_recovery_world import DIMS, RANK, SIZES, feature_energy, make_job, make_world, recovery
from figures.recovery_draw import check_table, draw, mean_found, tables
from figures.recovery_full import GROUPS, SIZE, full_job, full_table, full_text
from figures.recovery_starts import FIT_ROWS, STARTS, NoisyGate
from figures.registry import Context, Figure, figures
from figures.yardsticks import references
from sasa_theory.models import SparseModel
from sasa_theory.models.normaliser import NormalisedModel
from sasa_theory.training import Job, Run, fit_all
from synthetic import World

FOUND, GOAL, COEFFICIENT, FLAT = 0.95, 0.95, 10.0, 4
#: evaluated rows on which a feature is on
ROWS = 1000
#: the world and training of the ablation; loads, active features, r / d and lam / sigma_d of the phase diagrams; their
#: steps and seeds; r / d and lam / sigma_d of the check; seeds that played no part when the splitting was made, for the
#: recipe on this world and on E3's; seeds of the published size
PLANS: dict[str, dict[str, Any]] = {
    "quick": {
        "size": {"spec": "rank-recovery-192", "width": 96, "count": 4, "active": 2, "steps": 800, "batch": 512},
        "variants": ("recipe", "no penalty"),
        "loads": (1.5,),
        "active": (1, 2),
        "ratios": (1.0, 2.0),
        "shares": (0.1,),
        "phase": {"steps": 400, "seeds": 1},
        "check": None,
        "fresh": (),
        "full": (),
    },
    "standard": {
        "size": {"spec": "rank-recovery-192", "width": 96, "count": 4, "active": 2, "steps": 1200, "batch": 512},
        "variants": None,
        "loads": (0.75, 1.5, 3.0),
        "active": (1, 2, 4, 6),
        "ratios": (0.5, 1.0, 1.5, 2.0, 3.0),
        "shares": (0.0, 0.1, 0.3, 1.0, 2.5),
        "phase": {"steps": 800, "seeds": 1},
        "check": (1.5, 1.0),
        "fresh": range(3, 8),
        "full": (0,),
    },
    "paper": {
        "size": SIZES["paper"],
        "variants": None,
        "loads": (0.75, 1.5, 3.0),
        "active": (2, 4, 8, 16),
        "ratios": (0.5, 1.0, 1.5, 2.0, 3.0),
        "shares": (0.0, 0.1, 0.3, 1.0, 2.5),
        "phase": {"steps": 10_000, "seeds": 3},
        "check": (1.5, 1.0),
        "fresh": range(3, 8),
        "full": (0, 1, 2),
    },
}
#: name -> changed settings of model, training and world; factors of n_groups, rate, batch and coefficient; a start
VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "no penalty": {"price": 0.0},
    "a third of the penalty": {"price": 1 / 3},
    "three times the penalty": {"price": 3.0},
    "no warm-up of the penalty": {"training": {"penalty_warmup_steps": 0}},
    "no revival": {"model": {"aux_groups": 0}},
    "start on data": {"training": {"initialise": "data"}},
    "start on block PCA": {"start": "block pca"},
    "start on K-subspaces": {"start": "ksubspaces"},
    "gate noise 0.3": {"noise": 0.3},
    "gate noise 1": {"noise": 1.0},
    "no gauge": {"model": {"gauge": False}},
    "rank 8, the largest d": {"model": {"group_rank": max(DIMS)}},
    "2 K groups": {"groups": 2},
    "4 K groups": {"groups": 4},
    "a third of the rate": {"rate": 1 / 3},
    "a quarter of the batch": {"batch": 1 / 4},
    "splits once": {"once": True},
    "coherence 0.4": {"world": {"frames": {"coherence": 0.4}}},
    "coherence 0.7": {"world": {"frames": {"coherence": 0.7}}},
    "coherence 0.8": {"world": {"frames": {"coherence": 0.8}}},
}


def variant_job(size: dict[str, Any], name: str, seed: int, splits: bool) -> Job:
    """The recipe's job with the variant's change, with or without splits."""
    change = VARIANTS[name]
    job = make_job(size, "map", COEFFICIENT * change.get("price", 1.0), seed)
    settings = {**job.settings, **change.get("model", {})}
    settings["n_groups"] *= change.get("groups", 1)
    made = job.training
    training = dataclasses.replace(
        made,
        lr=made.lr * change.get("rate", 1.0),
        batch_size=int(made.batch_size * change.get("batch", 1)),
        splits=(1 if change.get("once") else made.splits) if splits else 0,
        **change.get("training", {}),
    )
    return Job(job.architecture, settings, training)


def loaded(size: dict[str, Any], load: float, active: int, steps: int) -> dict[str, Any]:
    """The size with as many features in the width that gives the load, `active` of them on."""
    width = round(size["count"] * sum(DIMS) / load)
    return {**size, "width": width, "active": active, "steps": steps}


def flat_world(size: dict[str, Any]) -> World:
    """As many features in the same width, all of FLAT dimensions at the same load, each of energy 1 when active."""
    spec = make_world(size).spec()
    count = size["count"] * sum(DIMS) // FLAT
    features = [{"manifold": "subspace", "dim": FLAT, "count": count}]
    return World.from_spec({**spec, "features": features})


def flat_job(size: dict[str, Any], ratio: float, share: float, steps: int, seed: int, splits: bool) -> Job:
    """Groups of ratio * FLAT columns, and the coefficient share * sigma_d, sigma_d = (rate of a feature) / FLAT."""
    groups = size["count"] * sum(DIMS) // FLAT
    job = make_job({**size, "steps": steps}, "map", 0.0, seed)
    rate = size["active"] / groups
    settings = {
        **job.settings,
        "n_groups": groups,
        "group_rank": round(ratio * FLAT),
        "nuclear": share * rate / FLAT,
    }
    training = job.training if splits else dataclasses.replace(job.training, splits=0)
    return Job(job.architecture, settings, training)


def train_variant(size: dict[str, Any], name: str, seed: int, splits: bool, context: Context) -> Run:
    """A variant that the registry does not know: from a start fitted to rows of its stream, or with a noisy gate."""
    change, world = VARIANTS[name], make_world(size)
    job = variant_job(size, name, seed, splits)
    if "noise" in change:
        model = NoisyGate(world.width, **job.settings)
        model.gate_noise = change["noise"]
        return train_model(model, name, world, job, context)
    groups = len(world.dims)
    rows = next(world.batches(FIT_ROWS * groups, stream=f"train:{seed}"))
    frames = STARTS[change["start"]](rows, groups, RANK, seed)
    return train_from([(k * RANK, frame) for k, frame in enumerate(frames)], change["start"], world, job, context)


def outcome(model: SparseModel | NormalisedModel, world: World) -> dict[str, Any]:
    """Share found, mean capture, and ranks, of the groups matched to the features."""
    got = recovery(model, world, ROWS * len(world.dims) // world.support.active)
    captures = [c for held in got["captures"] for c in held]
    names = ("capture", "rank_error", "spearman", "explained", "dead_share", "most_features_a_group")
    return {"found": float(np.mean([c >= FOUND for c in captures])), **{name: got[name] for name in names}}


def run(context: Context) -> dict[str, Any]:
    """The ablation and both phase diagrams (module docstring)."""
    plan = PLANS[context.profile]
    size, phase = plan["size"], plan["phase"]
    names = plan["variants"] or tuple(VARIANTS)
    ablation = _ablation(size, names, context)
    seeds = context.seeds[: phase["seeds"]]
    both = list(itertools.product((True, False), seeds))
    by_load = [
        {"load": load, "active": active, **_cells(loaded(size, load, active, phase["steps"]), both, context)}
        for load, active in itertools.product(plan["loads"], plan["active"])
    ]
    worlds = {"E3": SIZES[context.profile]}
    if size != worlds["E3"]:
        worlds = {"ablation": size, **worlds}
    fresh = _fresh(worlds, plan["fresh"], context)
    yardsticks = _yardsticks(make_world(size), context)
    full = _full(plan["full"], context)
    world = flat_world(size)
    grid = list(itertools.product(plan["ratios"], plan["shares"]))
    jobs = [flat_job(size, *at, phase["steps"], seed, split) for at in grid for split, seed in both]
    found = [one["found"] for one in _train(world, jobs, context)]
    by_rank = [
        {"ratio": ratio, "share": share, **_sorted(found[i * len(both) : (i + 1) * len(both)], both)}
        for i, (ratio, share) in enumerate(grid)
    ]
    check = _check(size, plan["check"], phase["steps"], context) if plan["check"] else []
    return {
        "numbers": {
            "ablation": ablation,
            "yardsticks": yardsticks,
            "full": full,
            "check": check,
            "by_load": by_load,
            "by_rank": by_rank,
            "fresh": fresh,
            "goal": GOAL,
            "found": FOUND,
        },
        "tables": [
            tables(ablation, yardsticks, fresh, FOUND),
            *([full_table(full, FOUND)] if full else []),
            *([check_table(check, plan["check"], FOUND)] if check else []),
        ],
        "findings": [finding(ablation, fresh, full, check, decided=context.profile != "quick")],
        "settings": {
            "world": make_world(size).spec(),
            "size": size,
            "energy a feature": feature_energy(size["spec"]),
            "flat world": world.spec(),
            "variants": {name: VARIANTS[name] for name in names},
            "recipe": {
                "model": dict(variant_job(size, "recipe", 0, True).settings),
                "training": variant_job(size, "recipe", 0, True).training.as_dict(),
            },
        },
    }


def _ablation(size: dict[str, Any], names: tuple[str, ...], context: Context) -> list[dict[str, Any]]:
    cells = [
        (name, splits, seed)
        for name in names
        for splits in (True, False)
        for seed in context.seeds
        if splits or not VARIANTS[name].get("once")
    ]
    found: dict[tuple[str, bool, int], dict[str, Any]] = {}
    for changed, group in itertools.groupby(cells, lambda cell: VARIANTS[cell[0]].get("world", {})):
        own, here = {**size, **changed}, list(group)
        world = make_world(own)
        plain = [cell for cell in here if not {"start", "noise"} & set(VARIANTS[cell[0]])]
        found |= dict(zip(plain, _train(world, [variant_job(own, n, s, w) for n, w, s in plain], context), strict=True))
        for name, splits, seed in here:
            if (name, splits, seed) not in found:
                trained = train_variant(own, name, seed, splits, context)
                found[name, splits, seed] = outcome(trained.model, world)
    return [{"variant": name, "splits": w, "seed": seed, **found[name, w, seed]} for name, w, seed in cells]


def _fresh(
    sizes: dict[str, dict[str, Any]], seeds: "range | tuple[int, ...]", context: Context
) -> list[dict[str, Any]]:
    """The recipe with splits on each world."""
    out = []
    for name, size in sizes.items():
        jobs = [variant_job(size, "recipe", seed, True) for seed in seeds]
        for seed, got in zip(seeds, _train(make_world(size), jobs, context), strict=True):
            out.append({"world": name, "seed": seed, **got})
    return out


def _yardsticks(world: World, context: Context) -> list[dict[str, Any]]:
    features = len(world.dims)
    return [
        {"name": name, "seed": seed, **outcome(model.to(context.device), own)}
        for seed in context.seeds
        for name, (model, own) in references(world, RANK, RANK * features, 2 * FIT_ROWS * features, seed).items()
    ]


def _full(seeds: tuple[int, ...], context: Context) -> list[dict[str, Any]]:
    """The published size with and without the recipe."""
    cells = [(groups, recipe, seed) for groups in GROUPS for recipe in (False, True) for seed in seeds]
    jobs = [full_job(groups, recipe, COEFFICIENT, seed) for groups, recipe, seed in cells]
    found = _train(make_world(SIZE), jobs, context)
    return [
        {"groups": groups, "recipe": recipe, "seed": seed, **got}
        for (groups, recipe, seed), got in zip(cells, found, strict=True)
    ]


def _check(size: dict[str, Any], at: tuple[float, float], steps: int, context: Context) -> list[dict[str, Any]]:
    """One place of the second diagram: the recipe, without the gauge, for longer, and from the truth; first seed."""
    world, seed = flat_world(size), context.seeds[0]
    recipe = flat_job(size, *at, steps, seed, True)
    late = dataclasses.replace(recipe.training, steps=LONG * steps, penalty_warmup_steps=LONG * steps)
    jobs = {"recipe": recipe, "no gauge": ungauged(recipe), "long": dataclasses.replace(recipe, training=late)}
    runs = fit_all(world, list(jobs.values()), out=context.out, device=context.device, deadline=context.deadline)
    made = dict(zip(jobs, runs, strict=True))
    places = planted_places(world, False, recipe.settings["group_rank"])
    made["truth"] = train_from(places, "truth", world, flat_job(size, *at, steps, seed, False), context)
    lam, rows = recipe.settings["nuclear"], ROWS * len(world.dims) // size["active"]
    return [
        {"start": name, "objective": objective(one.model, world, lam, rows), **outcome(one.model, world)}
        for name, one in made.items()
    ]


def _train(world: World, jobs: list[Job], context: Context) -> list[dict[str, Any]]:
    runs = fit_all(world, jobs, out=context.out, device=context.device, deadline=context.deadline)
    return [outcome(one.model, world) for one in runs]


def _cells(size: dict[str, Any], both: list[tuple[bool, int]], context: Context) -> dict[str, list[float]]:
    jobs = [variant_job(size, "recipe", seed, splits) for splits, seed in both]
    return _sorted([one["found"] for one in _train(make_world(size), jobs, context)], both)


def _sorted(found: list[float], both: list[tuple[bool, int]]) -> dict[str, list[float]]:
    """Shares found of the seeds, with splits and without."""
    paired = list(zip(found, both, strict=True))
    return {"with": [f for f, (w, _) in paired if w], "without": [f for f, (w, _) in paired if not w]}


def finding(
    ablation: list[dict[str, Any]],
    fresh: list[dict[str, Any]],
    full: list[dict[str, Any]],
    check: list[dict[str, Any]],
    decided: bool,
) -> dict[str, str]:
    """GOAL of the features found for every seed of the recipe, at the published size too, and only with splits."""
    shares = [one["found"] for one in ablation if one["variant"] == "recipe" and one["splits"]]
    shares += [one["found"] for one in fresh] + [one["found"] for one in full if one["recipe"]]
    plain = {one["variant"] for one in ablation if not one["splits"]}
    best = max(plain, key=lambda name: mean_found(ablation, name, False))
    text = (
        f"{np.mean(shares):.0%} of the features found (capture >= {FOUND}; worst of {len(shares)} seeds "
        f"{min(shares):.0%}) where training splits merged groups, {mean_found(ablation, 'recipe', False):.0%} where it "
        f"does not; best without splits: {best}, {mean_found(ablation, best, False):.0%}"
    )
    text += full_text(full)
    if check:
        ends = ", ".join(f"{one['start']} {one['found']:.0%} (objective {one['objective']:.3f})" for one in check)
        text += f"; where C6 is kept but the recipe finds little: {ends}"
    status = "needs an assumption" if min(shares) >= GOAL else "undecided"
    return {"sentence": "rank-recovery", "status": status if decided else "undecided", "text": text}


figures.register("recovery")(
    Figure(
        name="recovery",
        title="Joint recovery: what makes a SASA find every planted subspace",
        run=run,
        draw=draw,
        budget={"quick": 60.0, "standard": 40 * 60.0, "paper": 12 * 3600.0},
    )
)
