"""What the figure `published-benchmarks` trains, and the search for its learning rates and coefficients.

    python -m figures.published_recipe --out results      runs the grid and rewrites published_recipe.json

Two worlds that others wrote (synthetic/specs/README.md):

`manifold-superposition`: 256 blocks of 4 columns with 4 on, as many as factors are on, against 1,024 single columns:
    "columns"   as many active columns, 16
    "bits"      as many bits a row, log2 C(n, active) and 3.3 bits a coefficient (as figure E2 counts: a
                rounding at 1 % of the signal; this world has no noise of its own). Only for the gates that are told how
                many columns are on, so that the budget is met and not approached.
The group lasso stands there twice. "grouplasso" is steered to 16 active columns (its shrinkage leaves half of the
variance unexplained at small learning rates, a tenth at the largest); "grouplasso, loose" has the
coefficient of a grid that explains most with at most twice as many.

`synthsaebench-16k`: 4,096 columns, L0 25; SASA has blocks of 2 with 12 on or of 4 with 6 on (L0 24), no nuclear norm.

For every architecture alike the learning rate is that of the largest held-out explained variance among runs with at
most 15 % more than the budget's L0 (else the run nearest to it): runs that are steered have not all settled after 800
steps. SASA's nuclear coefficient is a grid of its own, in shares of the upper edge of C6's window for a factor of three
even directions: the largest that leaves at most PRICE times the least unexplained variance. Planted truth plays no part
in it, and the search's seed is none of the figure's.

On SynthSAEBench the search has 300 steps of 256 rows, half the steps of the standard profile and an eighth of its rows
(the figure's table says so); one of 30 steps took rates that were too small for either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from figures.splitting_recipe import description_bits
from figures.tuning import Recipe, best, harmless, unexplained
from sasa_theory.training import Job, TrainSettings
from synthetic import World
from synthetic.errors import UsageError

#: {"manifold": ..., "synth": ...}
recipe = Recipe("published")
FACTORS, SYNTHSAEBENCH = "manifold-superposition", "synthsaebench-16k"
#: told how many units are on
COUNTED = ("topk", "abstopk", "batchtopk", "matryoshka")
VECTORS = (*COUNTED, "relu", "jumprelu", "gated")
LOOSE = "grouplasso, loose"
BLOCKS = ("sasa", "bsf", "grassmannian", "grouplasso", LOOSE)
MANIFOLD = {"columns": (*BLOCKS, *VECTORS), "bits": COUNTED}
GROUPS, RANK, ON = 256, 4, 4
LOOSEST = 2.0

#: rank and active blocks of the SASAs on SynthSAEBench
SASAS = {"sasa, r = 2": (2, 12), "sasa, r = 4": (4, 6)}
SYNTH = ("batchtopk", "matryoshka", "topk", "relu", "jumprelu", *SASAS)
#: those that two cores train; ReLU's penalty takes more steps than that to steer, and its steps are the slowest
SHORT = tuple(model for model in SYNTH if model != "relu")
L0 = 25

SEED = 100
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SYNTH_RATES = (1e-3, 3e-3, 1e-2)
#: shares of `WINDOW`
NUCLEAR = (0.0, 0.01, 0.03, 0.1, 0.3)
#: C6: lam / 2 < rate sigma_d, with rate 4 / 128 and a factor's energy 1 / 4 spread over three directions
WINDOW = 2 * (4 / 128) * (1 / 4) / 3
COEFFICIENTS = (0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Length:
    """How long a run is: optimiser steps, and rows a step."""

    steps: int
    batch: int

    @property
    def rows(self) -> int:
        return self.steps * self.batch


MANIFOLD_SEARCH, SYNTH_SEARCH = Length(800, 256), Length(300, 256)


def columns(budget: str) -> int:
    """Active single columns under a budget of `manifold-superposition`; raises UsageError for an unknown one."""
    if budget == "columns":
        return RANK * ON
    if budget != "bits":
        raise UsageError(f"budget is {budget!r}; expected one of {', '.join(MANIFOLD)}")
    most = description_bits(GROUPS, ON, RANK * ON)
    return max(k for k in range(1, RANK * ON + 1) if description_bits(GROUPS * RANK, k, k) <= most)


def manifold_settings(
    model: str, budget: str, nuclear: float = 0.0, coefficient: float = 0.1
) -> tuple[str, dict[str, Any]]:
    """Architecture and settings; `nuclear` is a share of C6's window, `coefficient` that of the loose group lasso."""
    if model in BLOCKS:
        blocks: dict[str, Any] = {"n_groups": GROUPS, "group_rank": RANK, "aux_groups": ON}
        if model == LOOSE:
            return "grouplasso", {**blocks, "coefficient": coefficient}
        if model == "grouplasso":
            return model, {**blocks, "coefficient": 0.3, "target_l0": float(RANK * ON)}
        extra = {"nuclear": nuclear * WINDOW} if model == "sasa" else {}
        return model, {**blocks, "active_groups": ON, **extra}
    active = columns(budget)
    gate = {"active_latents": active} if model in COUNTED else {"target_l0": float(active)}
    return model, {"n_latents": GROUPS * RANK, "aux_latents": active, **gate}


def synth_settings(model: str, width: int, steps: int) -> tuple[str, dict[str, Any]]:
    """Architecture and settings on SynthSAEBench with `width` columns, for a run of so many steps.

    Features have lengths from 4 to 5 there, so ReLU's penalty starts at that scale; steering it there from its default
    would take more steps than two cores have. The running mean of BatchTopK's threshold spans at most a tenth of a
    run: with the usual 100 steps it would lag in a short one.
    """
    if model in SASAS:
        rank, on = SASAS[model]
        return "sasa", {"n_groups": width // rank, "group_rank": rank, "active_groups": on, "aux_groups": on}
    settings: dict[str, Any] = {"n_latents": width, "aux_latents": L0}
    if model in COUNTED:
        averaged = {"threshold_decay": max(0.0, min(0.99, 1 - 10 / steps))} if model != "topk" else {}
        return model, {**settings, "active_latents": L0, **averaged}
    start = {"coefficient": 3.0} if model == "relu" else {}
    return model, {**settings, **start, "target_l0": float(L0)}


def train_settings(length: Length, seed: int, lr: float, warm: bool = False, decay: float = 0.3) -> TrainSettings:
    """What all have in common; `warm` raises the nuclear penalty over the first quarter, as in figure E2."""
    return TrainSettings(
        steps=length.steps,
        batch_size=length.batch,
        lr=lr,
        decay_fraction=decay,
        dead_window=30 * length.batch,
        penalty_warmup_steps=length.steps // 4 if warm else 0,
        log_every=max(1, length.steps // 40),
        checkpoint_every=10_000,
        seed=seed,
    )


def manifold_job(model: str, budget: str, length: Length, seed: int) -> Job:
    """The tuned run of a model on `manifold-superposition`."""
    found = recipe()["manifold"]
    architecture, settings = manifold_settings(model, budget, found["nuclear"], found["coefficient"])
    lr = found["chosen"][budget][model]
    return Job(architecture, settings, train_settings(length, seed, lr, warm=model == "sasa"))


def synth_job(model: str, width: int, length: Length, seed: int, lr: float | None = None) -> Job:
    """The run of a model on SynthSAEBench: tuned for short runs, or with the learning rate that is given."""
    architecture, settings = synth_settings(model, width, length.steps)
    rate = recipe()["synth"]["chosen"][model] if lr is None else lr
    return Job(architecture, settings, train_settings(length, seed, rate))


def search(out: Path) -> dict[str, Any]:
    """Run both grids and choose (module docstring)."""
    cells: list[dict[str, Any]] = []
    for budget, models in MANIFOLD.items():
        for model in models:
            shares = NUCLEAR if model == "sasa" else (0.0,)
            weights = COEFFICIENTS if model == LOOSE else (0.1,)
            cells += [
                {"budget": budget, "model": model, "lr": lr, "nuclear": share, "coefficient": weight}
                for lr in RATES
                for share in shares
                for weight in weights
            ]
    jobs = []
    for cell in cells:
        made = manifold_settings(cell["model"], cell["budget"], cell["nuclear"], cell["coefficient"])
        jobs.append(Job(*made, train_settings(MANIFOLD_SEARCH, SEED, cell["lr"], warm=cell["model"] == "sasa")))
    manifold = recipe.run_grid(World.from_spec(FACTORS), cells, jobs, out, 8192)
    synth_cells: list[dict[str, Any]] = [{"model": model, "lr": lr} for model in SHORT for lr in SYNTH_RATES]
    jobs = [
        Job(*synth_settings(c["model"], 4096, SYNTH_SEARCH.steps), train_settings(SYNTH_SEARCH, SEED, c["lr"]))
        for c in synth_cells
    ]
    synth = recipe.run_grid(World.from_spec(SYNTHSAEBENCH), synth_cells, jobs, out, 2048)
    return {
        "seed": SEED,
        "manifold": {"length": asdict(MANIFOLD_SEARCH), **choose_manifold(manifold), "grid": manifold},
        "synth": {"length": asdict(SYNTH_SEARCH), "chosen": choose_synth(synth), "grid": synth},
    }


def choose_manifold(grid: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every model's learning rate under every budget, SASA's nuclear share and the loose group lasso's coefficient."""
    sasa = harmless([c for c in grid if c["model"] == "sasa"], "nuclear", columns("columns"))
    loose = [c for c in grid if c["model"] == LOOSE]
    allowed = [c for c in loose if c["l0"] <= LOOSEST * columns("columns")]
    free = min(allowed, key=unexplained) if allowed else min(loose, key=lambda c: c["l0"])
    chosen: dict[str, dict[str, float]] = {}
    for budget, models in MANIFOLD.items():
        cells = {m: [c for c in grid if c["model"] == m and c["budget"] == budget] for m in models}
        chosen[budget] = {model: best(cells[model], columns(budget))["lr"] for model in models}
    chosen["columns"] |= {"sasa": sasa["lr"], LOOSE: free["lr"]}
    return {"chosen": chosen, "nuclear": sasa["nuclear"], "coefficient": free["coefficient"]}


def choose_synth(grid: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Every model's learning rate on SynthSAEBench."""
    return {model: best([c for c in grid if c["model"] == model], L0)["lr"] for model in SHORT}


if __name__ == "__main__":
    recipe.make(search, __doc__)
