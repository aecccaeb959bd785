"""What makes a SASA find all planted subspaces? The recipe of E3 with each of its parts changed, and where it fails.

A smaller world of E3's load (sum d_i / D = 1.5, dimensions 1 to 8, coefficient 10 of the penalty "map", two features on
in a row) is trained with the recipe of `rank-recovery` and with one part of it changed at a time, each with and without
splits (training/split_groups.py). Features are matched to groups one to one; found means capture >= FOUND.

Two phase diagrams, again with and without splits: the share found against the load and the number of active features,
and, where all features have FLAT dimensions, against r / d and lam / sigma_d, sigma_d the smallest eigenvalue of a
feature's own second moment weighted by its rate. C6 wants lam / sigma_d < 2, C3 r >= d.

The starts on K-subspaces and on block PCA, and the gate noise, are those of recovery_starts.py; the start on data takes
the decoder's columns from rows. Variants of coherence change the world: its frames have that largest cosine of two
features' subspaces (random frames have .59); above it all features share a direction, the more
the higher.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from figures.rank_recovery import (
    DIMS,
    RANK,
    SIZES,
    feature_energy,
    make_job,
    make_world,
    recovery,
    train_from,
    train_model,
)
from figures.recovery_draw import draw, mean_found, tables
from figures.recovery_starts import FIT_ROWS, STARTS, NoisyGate
from figures.registry import Context, Figure, figures
from sasa_theory.training import Job, Run, fit_all
from synthetic import World

FOUND, GOAL, COEFFICIENT, FLAT = 0.95, 0.95, 10.0, 4
#: the world and training of the ablation; loads, active features, r / d and lam / sigma_d of the phase diagrams; their
#: steps and seeds; seeds that played no part when the splitting was made, for the recipe on this world and on E3's
PLANS: dict[str, dict[str, Any]] = {
    "quick": {
        "size": {"spec": "rank-recovery-192", "width": 96, "count": 4, "active": 2, "steps": 800, "batch": 512},
        "variants": ("recipe", "no penalty"),
        "loads": (1.5,),
        "active": (1, 2),
        "ratios": (1.0, 2.0),
        "shares": (0.1,),
        "phase": {"steps": 400, "seeds": 1},
        "fresh": (),
    },
    "standard": {
        "size": {"spec": "rank-recovery-192", "width": 96, "count": 4, "active": 2, "steps": 1200, "batch": 512},
        "variants": None,
        "loads": (0.75, 1.5, 3.0),
        "active": (1, 2, 4, 6),
        "ratios": (0.5, 1.0, 1.5, 2.0, 3.0),
        "shares": (0.0, 0.1, 0.3, 1.0, 2.5),
        "phase": {"steps": 800, "seeds": 1},
        "fresh": range(3, 8),
    },
    "paper": {
        "size": SIZES["paper"],
        "variants": None,
        "loads": (0.75, 1.5, 3.0),
        "active": (2, 4, 8, 16),
        "ratios": (0.5, 1.0, 1.5, 2.0, 3.0),
        "shares": (0.0, 0.1, 0.3, 1.0, 2.5),
        "phase": {"steps": 10_000, "seeds": 3},
        "fresh": range(3, 8),
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


def outcome(one: Run, world: World) -> dict[str, Any]:
    """Share found, mean capture, and ranks, of the groups matched to the features."""
    got = recovery(one, world, 1000 * len(world.dims) // world.support.active)
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
    fresh = _fresh({"ablation": size, "E3": SIZES[context.profile]}, plan["fresh"], context)
    world = flat_world(size)
    grid = list(itertools.product(plan["ratios"], plan["shares"]))
    jobs = [flat_job(size, *at, phase["steps"], seed, split) for at in grid for split, seed in both]
    found = [one["found"] for one in _train(world, jobs, context)]
    by_rank = [
        {"ratio": ratio, "share": share, **_sorted(found[i * len(both) : (i + 1) * len(both)], both)}
        for i, (ratio, share) in enumerate(grid)
    ]
    return {
        "numbers": {
            "ablation": ablation,
            "by_load": by_load,
            "by_rank": by_rank,
            "fresh": fresh,
            "goal": GOAL,
            "found": FOUND,
        },
        "tables": tables(ablation, fresh, FOUND),
        "findings": [finding(ablation, fresh, decided=context.profile != "quick")],
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
                found[name, splits, seed] = outcome(train_variant(own, name, seed, splits, context), world)
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


def _train(world: World, jobs: list[Job], context: Context) -> list[dict[str, Any]]:
    runs = fit_all(world, jobs, out=context.out, device=context.device, deadline=context.deadline)
    return [outcome(one, world) for one in runs]


def _cells(size: dict[str, Any], both: list[tuple[bool, int]], context: Context) -> dict[str, list[float]]:
    jobs = [variant_job(size, "recipe", seed, splits) for splits, seed in both]
    return _sorted([one["found"] for one in _train(make_world(size), jobs, context)], both)


def _sorted(found: list[float], both: list[tuple[bool, int]]) -> dict[str, list[float]]:
    """Shares found of the seeds, with splits and without."""
    paired = list(zip(found, both, strict=True))
    return {"with": [f for f, (w, _) in paired if w], "without": [f for f, (w, _) in paired if not w]}


def finding(ablation: list[dict[str, Any]], fresh: list[dict[str, Any]], decided: bool) -> dict[str, str]:
    """Supported: GOAL of the features found for every seed of the recipe; the best without splits beside it."""
    shares = [one["found"] for one in ablation if one["variant"] == "recipe" and one["splits"]]
    shares += [one["found"] for one in fresh]
    plain = {one["variant"] for one in ablation if not one["splits"]}
    best = max(plain, key=lambda name: mean_found(ablation, name, False))
    text = (
        f"{np.mean(shares):.0%} of the features found (capture >= {FOUND}; worst of {len(shares)} seeds "
        f"{min(shares):.0%}) where training splits merged groups, {mean_found(ablation, 'recipe', False):.0%} where it "
        f"does not; best without splits: {best}, {mean_found(ablation, best, False):.0%}"
    )
    status = "needs an assumption" if min(shares) >= GOAL else "undecided"
    return {"sentence": "rank-recovery", "status": status if decided else "undecided", "text": text}


figures.register("recovery")(
    Figure(
        name="recovery",
        title="Joint recovery: what makes a SASA find every planted subspace",
        run=run,
        draw=draw,
        budget={"quick": 60.0, "standard": 12 * 60.0, "paper": 12 * 3600.0},
    )
)
