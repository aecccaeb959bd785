"""What figure planted-absorption trains: its worlds, budgets, dictionaries, and the search for their learning rates.

    python -m figures.planted_absorption_recipe --out results   runs the grid, rewrites planted_absorption_recipe.json

A world is a forest of about `FEATURES` features with `depth` generations below its roots. A feature that is on turns
on one of its two children with probability .7 and none with .3, so that 3 rows in 10 show it without them. Roots are
independent; their rate is such that two features are on in the mean at every depth. Features of dimension 1 are
rays, of dimension 3 spheres; all have the same energy, and a norm that varies by a quarter. Subspaces are orthogonal,
so that interference is not taken for absorption.

Group dictionaries have as many groups on as features in the mean, each of the features' own rank d, which is told to
them: at d = 1 SASA is AbsTopK with a nuclear norm. "SASA, rank 2 d" is not told. Budgets of the others:

    "columns"   as many active columns as SASA
    "bits"      as many bits a row: log2 C(n, active) for which units are on, and the bits a coefficient of E2. At
                d = 1 that is the same; at d = 3 single columns pay more to be named, and get fewer

The grid crosses learning rates, at the second depth, for every architecture alike; SASA's also two nuclear
coefficients, as shares of C6's window. The choice is the smallest held-out unexplained variance among runs within 15 %
of the budget's L0 (else the nearest); of SASA's coefficients it is the larger one if that leaves at most PRICE times
what the other does. Planted truth plays no part; the seed is none of the figure's.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures.splitting_recipe import description_bits
from figures.tuning import Recipe, harmless
from sasa_theory.training import Job, TrainSettings
from synthetic import World
from synthetic.errors import UsageError

#: {"chosen": {dim: {budget: {model: {"lr", "nuclear"}}}}, "grid": [...]}
recipe = Recipe("planted_absorption")
DEPTHS, DIMS = (1, 2, 3, 4), (1, 3)
FEATURES, BRANCHING, CHILD_RATE, ACTIVE = 31, 2, 0.35, 2
NOISE = 0.01
WIDTH = {1: 32, 3: 96}
MANIFOLD: dict[int, dict[str, Any]] = {1: {"manifold": "sign", "nonnegative": True}, 3: {"manifold": "sphere"}}
BUDGETS = ("columns", "bits")
VECTORS = ("relu", "topk", "abstopk", "batchtopk", "jumprelu", "gated", "matryoshka")
GROUPS = {"sasa": 1, "sasa, rank 2 d": 2, "bsf": 1}
MODELS = (*VECTORS, *GROUPS)
PENALISED = ("relu", "jumprelu", "gated")
#: units (groups), and columns a dimension, for each feature
SPARE = 2
SEED, SEARCHED = 100, 2
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
#: shares of C6's window, below which the nuclear norm drops no direction of any feature
NUCLEAR = (0.03, 0.3)


@dataclass(frozen=True)
class Training:
    """How long and on how many rows a step."""

    steps: int
    batch: int


SEARCH = Training(1000, 256)


def roots_of(depth: int) -> int:
    """Trees whose features number about `FEATURES`."""
    return round(FEATURES / sum(BRANCHING**level for level in range(depth + 1)))


def world_of(depth: int, dim: int) -> World:
    """The forest of this depth, features of dimension `dim` (module docstring)."""
    if depth not in DEPTHS or dim not in DIMS:
        raise UsageError(f"depth {depth}, dimension {dim}: depth is one of {DEPTHS}, dimension one of {DIMS}")
    roots = roots_of(depth)
    features = roots * sum(BRANCHING**level for level in range(depth + 1))
    on = sum((BRANCHING * CHILD_RATE) ** level for level in range(depth + 1))
    hierarchy = {"roots": roots, "branching": BRANCHING, "depth": depth, "child_rate": CHILD_RATE, "exclusive": True}
    spec = {
        "width": WIDTH[dim],
        "features": [
            MANIFOLD[dim] | {"count": features, "magnitude": {"law": "rectified_normal", "mean": 1.0, "std": 0.25}}
        ],
        "support": {"law": "independent", "rates": ACTIVE / roots / on, "hierarchy": hierarchy},
        "frames": "orthogonal",
        "noise": NOISE,
    }
    return World.from_spec(spec)


def budget_of(world: World, name: str) -> int:
    """Active columns of a dictionary of single columns under a budget."""
    dim, features = world.dims[0], len(world.dims)
    if name == "columns":
        return ACTIVE * dim
    if name != "bits":
        raise UsageError(f"budget is {name!r}; expected one of {', '.join(BUDGETS)}")
    columns = SPARE * features * dim
    most = description_bits(SPARE * features, ACTIVE, ACTIVE * dim)
    return max(k for k in range(1, ACTIVE * dim + 1) if description_bits(columns, k, k) <= most)


def model_settings(model: str, world: World, budget: str, nuclear: float = 0.0) -> tuple[str, dict[str, Any]]:
    """Architecture and settings of one of `MODELS`; `nuclear` SASA's share of C6's window."""
    dim, features = world.dims[0], len(world.dims)
    if model in GROUPS:
        groups = {"n_groups": SPARE * features, "group_rank": GROUPS[model] * dim, "active_groups": ACTIVE}
        if model == "bsf":
            return model, {**groups, "aux_groups": ACTIVE}
        statistics = world.statistics()
        window = 2 * min(energy / dim for energy in statistics.feature_energy)
        return "sasa", {**groups, "aux_groups": ACTIVE, "nuclear": nuclear * window}
    active = budget_of(world, budget)
    gate = {"target_l0": float(active)} if model in PENALISED else {"active_latents": active}
    return model, {"n_latents": SPARE * features * dim, "aux_latents": active, **gate}


def train_settings(training: Training, seed: int, lr: float) -> TrainSettings:
    """What all have in common."""
    return TrainSettings(
        steps=training.steps,
        batch_size=training.batch,
        lr=lr,
        decay_fraction=0.3,
        dead_window=30 * training.batch,
        log_every=max(1, training.steps // 40),
        checkpoint_every=10_000,
        seed=seed,
    )


def cells_of(dim: int) -> list[tuple[str, str]]:
    """(budget, model) of one dimension: at d = 1 both budgets are one, and groups have only one."""
    cells = [("columns", model) for model in MODELS]
    return cells + ([("bits", model) for model in VECTORS] if dim > 1 else [])


def job(model: str, world: World, budget: str, training: Training, seed: int) -> Job:
    """The tuned run of a model under a budget."""
    chosen = recipe()["chosen"][str(world.dims[0])][budget][model]
    return _job(model, world, budget, training, seed, chosen["lr"], chosen["nuclear"])


def _job(model: str, world: World, budget: str, training: Training, seed: int, lr: float, nuclear: float) -> Job:
    architecture, settings = model_settings(model, world, budget, nuclear)
    return Job(architecture, settings, train_settings(training, seed, lr))


def grid_of(dim: int) -> list[tuple[str, str, float, float]]:
    """(budget, model, learning rate, nuclear share) of the search in one dimension."""
    return [
        (budget, model, lr, nuclear)
        for budget, model in cells_of(dim)
        for lr in RATES
        for nuclear in (NUCLEAR if model.startswith("sasa") else (0.0,))
    ]


def search(out: Path) -> dict[str, Any]:
    """Run the grid and choose (module docstring)."""
    grid: list[dict[str, Any]] = []
    for dim in DIMS:
        world, cells = world_of(SEARCHED, dim), grid_of(dim)
        jobs = [_job(model, world, budget, SEARCH, SEED, lr, nuclear) for budget, model, lr, nuclear in cells]
        named = [
            {"dim": dim, "budget": budget, "model": model, "lr": lr, "nuclear": nuclear}
            for budget, model, lr, nuclear in cells
        ]
        grid += recipe.run_grid(world, named, jobs, out, 10_000)
    return {"training": dataclasses.asdict(SEARCH), "seed": SEED, "chosen": choose(grid), "grid": grid}


def choose(grid: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """What every model is trained with: {dim: {budget: {model: {"lr", "nuclear"}}}}."""
    chosen: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for dim in DIMS:
        world = world_of(SEARCHED, dim)
        for budget, model in cells_of(dim):
            cells = [c for c in grid if (c["dim"], c["budget"], c["model"]) == (dim, budget, model)]
            target = budget_of(world, budget) * GROUPS.get(model, 1)
            cell = harmless(cells, "nuclear", target)
            found = {"lr": cell["lr"], "nuclear": cell["nuclear"]}
            chosen.setdefault(str(dim), {}).setdefault(budget, {})[model] = found
    return chosen


if __name__ == "__main__":
    recipe.make(search, __doc__)
