"""How each dictionary of figure E1 is trained, and the search that decided it.

    python -m figures.manifolds_recipe --out results      runs the grid and rewrites manifolds_recipe.json

For every architecture and budget the grid crosses the learning rate with the start of the decoder (random directions
or data points). The choice is the smallest held-out unexplained variance among runs within 15 % of the budget's L0 (or
the run nearest to it). Owner counts play no part in it, and the search's seed is none of the figure's. SASA takes part
on the same terms; its nuclear coefficient comes from C6, not from the grid.
"""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figures.tuning import Recipe, unexplained
from sasa_theory.training import Job, TrainSettings
from synthetic import World

WORLD = "three-manifolds"
COLUMNS, RANK = 256, 4
#: "one unit": one active unit per row; "matched columns": as many active columns as one group has
BUDGETS = {"one unit": 1, "matched columns": RANK}
BASELINES = ("relu", "topk", "batchtopk", "jumprelu", "gated")
#: rates 1/3, so the smallest eigenvalue of a group's second moment is 1/9 (sphere): C6 wants NUCLEAR / 2 below it
NUCLEAR = 0.01
SEED, STEPS = 100, 1500
GRID = {"lr": (5e-4, 2e-3), "initialise": ("random", "data")}
#: {"chosen": {budget: {architecture: {"lr", "initialise"}}}, "grid": [...]}
recipe = Recipe("manifolds")


def model_settings(architecture: str, active: int) -> dict[str, Any]:
    """Settings of an architecture with `active` active columns per row (SASA: one group, whatever the budget)."""
    if architecture == "sasa":
        groups = {"n_groups": COLUMNS // RANK, "group_rank": RANK, "active_groups": 1}
        return {**groups, "nuclear": NUCLEAR, "aux_groups": 1}
    settings: dict[str, Any] = {"n_latents": COLUMNS, "aux_latents": active}
    if architecture in ("topk", "batchtopk"):
        return {**settings, "active_latents": active}
    start = {} if architecture == "jumprelu" else {"coefficient": 0.01}
    return {**settings, "target_l0": float(active), **start}


def train_settings(steps: int, seed: int, **chosen: Any) -> TrainSettings:
    """What all have in common: batches of 1,024, revival of units silent for 30 batches, linear decay."""
    return TrainSettings(
        steps=steps,
        batch_size=1024,
        decay_fraction=0.3,
        dead_window=30 * 1024,
        log_every=20,
        checkpoint_every=10_000,
        seed=seed,
        **chosen,
    )


def job(architecture: str, budget: str, steps: int, seed: int) -> Job:
    """The tuned run of an architecture under a budget."""
    return _job(architecture, budget, steps, seed, recipe()["chosen"][budget][architecture])


def _job(architecture: str, budget: str, steps: int, seed: int, training: Mapping[str, Any]) -> Job:
    return Job(architecture, model_settings(architecture, BUDGETS[budget]), train_settings(steps, seed, **training))


def search(out: Path) -> dict[str, Any]:
    """Run the grid and choose (module docstring)."""
    world = World.from_spec(WORLD)
    named: list[dict[str, Any]] = [
        {"budget": budget, "architecture": architecture, "training": {"lr": lr, "initialise": start}}
        for budget, architecture in itertools.product(BUDGETS, (*BASELINES, "sasa"))
        for lr, start in itertools.product(*GRID.values())
    ]
    jobs = [_job(cell["architecture"], cell["budget"], STEPS, SEED, cell["training"]) for cell in named]
    grid = recipe.run_grid(world, named, jobs, out, 20_000)
    chosen: dict[str, dict[str, Any]] = {budget: {} for budget in BUDGETS}
    for budget, architecture in itertools.product(BUDGETS, (*BASELINES, "sasa")):
        of_it = [cell for cell in grid if cell["budget"] == budget and cell["architecture"] == architecture]
        active = RANK if architecture == "sasa" else BUDGETS[budget]
        matched = [cell for cell in of_it if abs(cell["l0"] / active - 1) <= 0.15]
        best = (
            min(matched, key=unexplained)
            if matched
            else min(of_it, key=lambda cell: abs(math.log(max(cell["l0"], 1e-3) / active)))
        )
        chosen[budget][architecture] = best["training"]
    return {"world": WORLD, "seed": SEED, "steps": STEPS, "chosen": chosen, "grid": grid}


if __name__ == "__main__":
    recipe.make(search, __doc__)
