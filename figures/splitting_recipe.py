"""What figure E2 trains: its worlds, budgets, dictionaries, and the search for their learning rates.

    python -m figures.splitting_recipe --out results      runs the grid and rewrites splitting_recipe.json

Budgets, for dictionaries of single columns against s groups of 16, s as many as features are on (4 as published):
    "columns"   as many active columns, 16 s
    "bits"      as many bits a row: log2 C(n, active) to say which units are on, and COEFFICIENT_BITS a coefficient
    "units"     as many active units, s: here alone part A binds, because one feature has at most s atoms on a row
Group dictionaries have s groups of 16 in all three. A coefficient costs 1/2 log2(signal / noise) bits, the fewest that
keep its rounding below the noise.

The world for two cores is a quarter of the published one: R^192 for R^768, 64 features for 256, 1,024 columns for
4,096. Two features are on, with 32 active columns: with all four the 64 columns would be a third of R^192, and its
principal directions alone would explain two thirds.

The grid crosses the learning rate with the sparsity (the three budgets) for every architecture alike; SASA's nuclear
coefficient is a grid of its own. The choice is the smallest held-out unexplained variance among runs with at most 15 %
more than the budget's L0 (else the run nearest to it); the nuclear coefficient is the largest one that leaves at most
PRICE times the best one's. Planted truth plays no part in it, and the search's seed is none of the figure's. Energy
"total" only.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures.tuning import Recipe, best, harmless
from sasa_theory.bounds import log_binomial
from sasa_theory.training import Job, TrainSettings
from synthetic import World
from synthetic.errors import UsageError

DIMS = (1, 2, 3, 4, 6, 8, 12, 16)
ENERGIES = ("total", "per_dim")
RANK, NOISE = 16, 0.01
COEFFICIENT_BITS = math.log2(1 / NOISE) / 2
BUDGETS = ("columns", "bits", "units")
#: codes of either sign; the others take two opposite atoms for a direction
SIGNED = ("abstopk",)
VECTORS = ("relu", "topk", "abstopk", "batchtopk", "jumprelu", "gated", "matryoshka")
#: the recipe of figure `recovery`: this many splits, and the penalty raised over half of the steps
WITH_SPLITS, SPLITS = "sasa, with splits", 5
#: SASA with the tuned nuclear coefficient and with 0, each with and without the revival of silent groups
SASAS = {
    "sasa": ("tuned", True),
    "sasa, coefficient 0": ("zero", True),
    "sasa, no revival": ("tuned", False),
    "sasa, as published": ("zero", False),
    WITH_SPLITS: ("tuned", True),
}
BLOCKS = ("bsf", "grassmannian", "grouplasso")
#: their runs are the same under every budget, and "bits" and "units" are matched to them
GROUPED = ("sasa", WITH_SPLITS, "bsf")
MODELS = (*VECTORS, *SASAS, *BLOCKS)
#: steered by a penalty; the others are told how many units may be on
PENALISED = ("relu", "jumprelu", "gated", "grouplasso")
#: as the published code trains them (with the defaults of sae-lens)
PUBLISHED_PENALTIES = {
    "relu": {"coefficient": 0.03},
    "gated": {"coefficient": 0.06},
    "jumprelu": {"coefficient": 1.0, "initial_threshold": 0.01, "bandwidth": 0.05},
}

#: share of the steps over which SASA's penalty is raised
WARM = 1 / 4
SEED = 100
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
#: shares of the upper edge of C6's window for the weakest directions (d = 16, energy "total")
NUCLEAR = (0.1, 0.3, 0.8)

#: {"chosen": {budget: {model: lr}}, "nuclear": float, "grid": [...]}
recipe = Recipe("splitting")


@dataclass(frozen=True)
class Size:
    """A world and a length of training.

    spec    a shipped world.      width, count, active   its width, features of each dimension, features on in a row.
    """

    spec: str
    width: int
    count: int
    active: int
    steps: int
    batch: int

    @property
    def features(self) -> int:
        return self.count * len(DIMS)

    @property
    def columns(self) -> int:
        """16 for each feature, as published (4,096 for 256)."""
        return RANK * self.features

    @property
    def window(self) -> float:
        """C6: below this coefficient the weakest directions stay, lam / 2 < rate / 16 (a feature's energy is 1)."""
        return 2 * self.active / self.features / max(DIMS)

    def world(self, energy: str) -> World:
        """The world, with equal energy of every feature ("total") or of every direction ("per_dim").

        E||x||^2 = 1.01 times the features on, in both: without a common scale one coefficient would mean two penalties.
        """
        spec = World.from_spec(self.spec).spec()
        changed = {
            "width": self.width,
            "features": [{**group, "count": self.count} for group in spec["features"]],
            "energy_mode": energy,
            "energy": self.active * (1 + NOISE),
            "support": {"law": "exact", "active": self.active},
        }
        return World.from_spec({**spec, **changed})

    def budget(self, name: str) -> int:
        """Active columns of a dictionary of single columns under a budget."""
        if name == "columns":
            return self.active * RANK
        if name == "units":
            return self.active
        if name != "bits":
            raise UsageError(f"budget is {name!r}; expected one of {', '.join(BUDGETS)}")
        most = description_bits(self.features, self.active, self.active * RANK)
        return max(k for k in range(1, self.active * RANK + 1) if description_bits(self.columns, k, k) <= most)


#: the search trains on the world of the standard profile
SEARCH = Size("splitting-192", 192, 8, 2, 1600, 256)


def description_bits(units: int, active: float, coefficients: float, each: float = COEFFICIENT_BITS) -> float:
    """Bits of a row's code: log2 C(units, active), the rounded mean, and `each` a coefficient."""
    return log_binomial(units, round(active)) / math.log(2) + each * coefficients


def model_settings(model: str, size: Size, budget: str, nuclear: float = 0.0) -> tuple[str, dict[str, Any]]:
    """Architecture and settings of one of `MODELS`; `nuclear` the tuned SASAs' share of C6's window."""
    if model in SASAS:
        tuned, revived = SASAS[model]
        groups = {"n_groups": size.features, "group_rank": RANK, "active_groups": size.active}
        lam = nuclear * size.window if tuned == "tuned" else 0.0
        return "sasa", {**groups, "nuclear": lam, "aux_groups": size.active * revived}
    if model in BLOCKS:
        blocks = {"n_groups": size.features, "group_rank": RANK, "aux_groups": size.active}
        # its coefficient ends near 1, so that is where it starts: steering takes 460 steps for a factor of 100
        gate = (
            {"target_l0": float(size.active * RANK), "coefficient": 0.3}
            if model in PENALISED
            else {"active_groups": size.active}
        )
        return model, {**blocks, **gate}
    active = size.budget(budget)
    gate = {"target_l0": float(active)} if model in PENALISED else {"active_latents": active}
    return model, {"n_latents": size.columns, "aux_latents": active, **gate}


def train_settings(size: Size, seed: int, lr: float, warm: float = 0.0, splits: int = 0) -> TrainSettings:
    """What all have in common; the nuclear penalty is raised over the share `warm` of the steps.

    Without it groups settle before they have found a feature each. A coefficient that is steered has no use for it.
    """
    return TrainSettings(
        steps=size.steps,
        batch_size=size.batch,
        lr=lr,
        decay_fraction=0.3,
        dead_window=30 * size.batch,
        penalty_warmup_steps=int(size.steps * warm),
        splits=splits,
        log_every=max(1, size.steps // 40),
        checkpoint_every=10_000,
        seed=seed,
    )


def job(model: str, size: Size, budget: str, seed: int) -> Job:
    """The tuned run of a model under a budget; every SASA takes the learning rate of the tuned one."""
    found = recipe()
    lr = found["chosen"][budget]["sasa" if model in SASAS else model]
    architecture, settings = model_settings(model, size, budget, found["nuclear"])
    if model == WITH_SPLITS:
        return Job(architecture, settings, train_settings(size, seed, lr, warm=1 / 2, splits=SPLITS))
    return Job(architecture, settings, train_settings(size, seed, lr, warm=WARM if architecture == "sasa" else 0.0))


def published_job(model: str, size: Size, seed: int) -> Job:
    """As the published code: Adam at 1e-3, its l1 coefficients, no revival, nuclear coefficient 0."""
    architecture, settings = model_settings(model, size, "columns")
    if model in PUBLISHED_PENALTIES:
        settings |= {"target_l0": None, **PUBLISHED_PENALTIES[model]}
    settings |= {name: 0 for name in settings if name.startswith("aux_")}
    return Job(architecture, settings, train_settings(size, seed, 1e-3))


def search(out: Path) -> dict[str, Any]:
    """Run the grid and choose (module docstring)."""
    world = SEARCH.world("total")
    cells: list[tuple[str, str, float, float]] = [
        (budget, model, lr, 0.0) for budget in BUDGETS for model in VECTORS for lr in RATES
    ]
    cells += [("columns", model, lr, 0.0) for model in BLOCKS for lr in RATES]
    cells += [("columns", "sasa", lr, nuclear) for lr in RATES for nuclear in NUCLEAR]
    jobs, named = [], []
    for budget, model, lr, nuclear in cells:
        architecture, settings = model_settings(model, SEARCH, budget, nuclear)
        jobs.append(Job(architecture, settings, train_settings(SEARCH, SEED, lr, WARM if model == "sasa" else 0.0)))
        named.append({"budget": budget, "model": model, "lr": lr, "nuclear": nuclear})
    grid = recipe.run_grid(world, named, jobs, out, 10_000)
    return {"size": dataclasses.asdict(SEARCH), "seed": SEED, **choose(grid), "grid": grid}


def choose(grid: list[dict[str, Any]]) -> dict[str, Any]:
    """The learning rate of every model under every budget, and SASA's nuclear coefficient."""
    groups = SEARCH.budget("columns")
    sasa = harmless([cell for cell in grid if cell["model"] == "sasa"], "nuclear", groups)
    chosen: dict[str, dict[str, float]] = {budget: {} for budget in BUDGETS}
    for budget, model in itertools.product(BUDGETS, (*VECTORS, *BLOCKS, "sasa")):
        grouped = model not in VECTORS
        cells = [c for c in grid if c["model"] == model and c["budget"] == ("columns" if grouped else budget)]
        target = groups if grouped else SEARCH.budget(budget)
        cell = sasa if model == "sasa" else best(cells, target)
        chosen[budget][model] = cell["lr"]
    return {"chosen": chosen, "nuclear": sasa["nuclear"]}


if __name__ == "__main__":
    recipe.make(search, __doc__)
