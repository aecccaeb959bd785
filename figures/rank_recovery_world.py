"""The world of E3, its training, its measure and its window: shared by figures `rank-recovery` and `recovery`.

Published: 256 features of dimensions 1 to 8, balanced, in R^768, 8 on, E||h||^2 = 80,652.6, groups of 10 columns, as
many groups active as features are on. For two cores a quarter of that: 64 in R^192, 2 on, the same energy a feature.

Coefficients are the published ones, in raw units: lam sum_k ||M_k||_* (penalty "map") and lam mean_k ||D_k||_*
("decoder", the published code's). Training divides the data by the root of a feature's energy E_f, so both are divided
by E_f. That leaves the maps as they are and takes Adam's steps to the scale they are meant for.
"""

from typing import Any

import numpy as np

from sasa_theory.bounds_groups import Window, rank_window
from sasa_theory.evaluation import DeadShare, ExplainedVariance, Subspaces
from sasa_theory.evaluation import run as measure
from sasa_theory.evaluation.subspaces import mid_ranks, pearson
from sasa_theory.models import SparseModel
from sasa_theory.models.normaliser import NormalisedModel
from sasa_theory.training import Job, TrainSettings
from synthetic import World

DIMS = tuple(range(1, 9))
RANK, FOUND = 10, 0.9
#: spec, width, features of each dimension, active, coefficients, steps, batch, rows evaluated
SIZES: dict[str, dict[str, Any]] = {
    "quick": {"spec": "rank-recovery-192", "width": 96, "count": 4, "active": 1, "steps": 400, "batch": 256},
    "standard": {"spec": "rank-recovery-192", "width": 192, "count": 8, "active": 2, "steps": 2500, "batch": 512},
    "paper": {"spec": "rank-recovery", "width": 768, "count": 32, "active": 8, "steps": 20_000, "batch": 4096},
}
RATE, SPLITS = 3e-3, 5
#: evaluated rows on which a feature is on; with 600 the sampled spectrum of d = 8 is uneven enough to have 90 % rank 7
ROWS = 2000


def make_world(size: dict[str, Any]) -> World:
    """The world, each active feature with energy 1 (the published world divided by E_f)."""
    spec = World.from_spec(size["spec"]).spec()
    changed = {
        "width": size["width"],
        "features": [{**group, "count": size["count"]} for group in spec["features"]],
        "support": {"law": "exact", "active": size["active"]},
        "energy": float(size["active"]),
        **({"frames": size["frames"]} if "frames" in size else {}),
    }
    return World.from_spec({**spec, **changed})


def feature_energy(spec: str) -> float:
    """E_f: the energy of an active feature in the shipped world."""
    world = World.from_spec(spec)
    return world.statistics().total_energy / world.support.active


def make_job(size: dict[str, Any], kind: str, coefficient: float, seed: int, splits: int = SPLITS) -> Job:
    """A SASA with a published coefficient (module docstring), warmed up over half the steps; silent groups revived."""
    groups = size["count"] * len(DIMS)
    model = {
        "n_groups": groups,
        "group_rank": RANK,
        "active_groups": size["active"],
        "penalty": kind,
        "nuclear": coefficient / feature_energy(size["spec"]),
        "penalise": "all",
        "aux_groups": size["active"],
    }
    training = TrainSettings(
        steps=size["steps"],
        batch_size=size["batch"],
        lr=RATE,
        decay_fraction=0.3,
        penalty_warmup_steps=size["steps"] // 2,
        splits=splits,
        dead_window=30 * size["batch"],
        log_every=max(1, size["steps"] // 40),
        checkpoint_every=10_000,
        seed=seed,
    )
    return Job("sasa", model, training)


def windows(size: dict[str, Any]) -> list[Window]:
    """C6's window of each dimension, in raw coefficients of the penalty "map"."""
    rate = size["active"] / (size["count"] * len(DIMS))
    noise = (size["active"] - 1) / size["width"]
    scale = feature_energy(size["spec"])
    found = [rank_window([1 / d + noise] * d, rate * noise, rate) for d in DIMS]
    return [Window(scale * window.low, scale * window.high) for window in found]


def recovery(model: SparseModel | NormalisedModel, world: World, rows: int) -> dict[str, Any]:
    """Capture and rank of the group matched to each feature, and how they agree with the truth."""
    decoder = model.blocks()[1]
    got = measure(model, world, rows, [ExplainedVariance(), DeadShare(), Subspaces(world.frames(), decoder)])
    spaces, dims = got["subspaces"], np.array(world.dims)
    held = spaces.matched_capture >= FOUND
    right = np.abs(spaces.matched_rank - dims)
    return {
        "explained": got["explained_variance"].explained_variance,
        "dead_share": got["dead"].dead_share,
        "found": float(held.mean()),
        "capture": float(spaces.mean_matched_capture),
        "rank_error": spaces.rank_error,
        "pearson": spaces.rank_pearson,
        "spearman": spaces.rank_spearman,
        "rank_error_found": float(right[held].mean()) if held.any() else None,
        "spearman_found": pearson(mid_ranks(spaces.matched_rank[held]), mid_ranks(dims[held])),
        "most_features_a_group": spaces.features_per_unit_max,
        "ranks": [[int(r) for r in spaces.matched_rank[dims == d]] for d in DIMS],
        "captures": [[round(float(c), 4) for c in spaces.matched_capture[dims == d]] for d in DIMS],
    }
