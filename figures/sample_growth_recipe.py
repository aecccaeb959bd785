"""What figure sample-growth trains and fits: finite sets of rows, budgets, and the search for the n that is enough.

The world has `COUNT` orthogonal features of dimension d in R^32, Gaussian, one on in a row, noise 1 % of the power;
nobody is told which. n rows are drawn once and used again and again, to the plateau; the first n of a seed are the same
for every n and method. Held-out error is the unexplained share of clean rows of the same features.

Budgets. "unit": one active unit for the one feature that is on, which is where part A binds: a line is an atom, and
the target takes at least COUNT times A3's number of them (orthogonal features share no atom to any profit: the best
share of an atom's length is all or nothing, because the energy explained is convex in it). "columns": as many active
columns as SASA has, d of them: a basis suffices, and A3 is void. SASA and K-subspaces are told d and COUNT.

Dictionaries start on data rows, the best for them. Every size is the same for all d. The l1 dictionary and BatchTopK
fix no number of units for a held-out row, so their budgets would not match: they are charged by their decoders alone,
with the best single atom for every row. (By its own threshold BatchTopK needs 400 rows at d = 2, and above d = 3 more
than the 4,096 tried: that is its gate, which shuts out rows it has not seen.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from figures.tuning import late_change
from figures.yardsticks import planted_truth
from proofs_checks.samples_measures import crossing, crossing_by_bisection, sizes_from
from proofs_checks.samples_trained import FixedRows, unit_rows
from sasa_theory.bounds import distortion_floor
from sasa_theory.solvers import klines, ksubspaces
from sasa_theory.training import TrainSettings, fit
from synthetic import World

WIDTH, COUNT, NOISE = 32, 2, 0.01
ATOMS, BATCH, CLEAN = 512, 256, 4000
#: unexplained share to reach
TARGET = 0.25
#: share of what a method explains with the most rows, for the relative target
CLOSE = 0.9
L1 = 0.6
VECTORS = ("topk", "abstopk", "batchtopk", "relu")
#: charged by their decoders alone at one active unit
BY_DECODER = ("batchtopk", "relu")
#: held-out rows come from another seed than any training rows
HELD_OUT = 10_000
RATE = 3e-3


@dataclass(frozen=True)
class Study:
    """Dimensions of each (method, budget), sample sizes, steps of training."""

    dims: dict[tuple[str, str], tuple[int, ...]]
    sizes: tuple[int, ...]
    steps: int


LINES, WIDE = (2, 3, 4, 5, 6), (2, 3, 4, 6, 8, 12)
FITTED: dict[tuple[str, str], tuple[int, ...]] = {
    ("lines", "unit"): LINES,
    ("ksubspaces", "unit"): WIDE,
    ("pca", "dense"): WIDE,
}
STUDIES = {
    "quick": Study({("topk", "unit"): (2, 3, 4), ("sasa", "unit"): (2, 4, 8), **FITTED}, (4, 16, 64, 256, 1024), 200),
    "standard": Study(
        {
            **{(name, "unit"): LINES for name in VECTORS},
            **{(name, "columns"): WIDE for name in ("topk", "abstopk")},
            ("sasa", "unit"): WIDE,
            **FITTED,
        },
        tuple(2**i for i in range(1, 13)),
        400,
    ),
    "paper": Study(
        {
            **{(name, "unit"): (2, 3, 4, 5, 6, 7) for name in VECTORS},
            **{(name, "columns"): WIDE for name in ("topk", "abstopk", "batchtopk")},
            ("sasa", "unit"): WIDE,
            **FITTED,
        },
        tuple(2**i for i in range(1, 17)),
        4000,
    ),
}


def world_of(d: int, noise: float = NOISE) -> World:
    """The world of one dimension."""
    spec = {
        "width": WIDTH,
        "features": [{"manifold": "subspace", "dim": d, "count": COUNT}],
        "frames": "orthogonal",
        "support": {"law": "exact", "active": 1},
        "noise": noise,
    }
    return World.from_spec(spec)


class FiniteRows(FixedRows):
    """The first n rows of a seed of the world, drawn from with replacement without end."""

    def __init__(self, n: int, d: int, seed: int, largest: int) -> None:
        super().__init__(n, d, WIDTH, NOISE, seed, largest)

    def fingerprint(self) -> str:
        """All that decides the rows."""
        return f"finite rows {self.n} of {self.largest}, world {world_of(self.d).fingerprint()}, seed {self.seed}"

    def rows(self) -> "Float[Tensor, 'n D']":
        """The n rows."""
        return world_of(self.d).rows(self.largest, self.seed)[: self.n]


def clean_rows(d: int) -> "Float[Tensor, 'n D']":
    """Held-out rows of the same features, without noise."""
    return world_of(d, noise=0.0).rows(CLEAN, HELD_OUT)


def model_settings(name: str, budget: str, d: int) -> tuple[str, dict[str, Any]]:
    """Architecture and settings of a trained method."""
    if name == "sasa":
        # far below C6's window, lam < 2 / (COUNT d)
        groups = {"n_groups": 2 * COUNT, "group_rank": d, "active_groups": 1}
        return name, {**groups, "nuclear": 0.1 / (COUNT * d), "aux_groups": 1}
    if name == "relu":
        return name, {"n_latents": ATOMS, "coefficient": L1, "aux_latents": 1}
    return name, {"n_latents": ATOMS, "active_latents": d if budget == "columns" else 1, "aux_latents": 1}


def train_settings(steps: int, seed: int) -> TrainSettings:
    """What all have in common."""
    return TrainSettings(
        steps=steps,
        batch_size=BATCH,
        lr=RATE,
        initialise="data",
        decay_fraction=0.3,
        dead_window=30 * BATCH,
        log_every=max(1, steps // 40),
        checkpoint_every=10_000,
        seed=seed,
    )


def unexplained(x: "Float[ndarray, 'n D']", xhat: "Float[ndarray, 'n D']") -> float:
    """sum ||x - xhat||^2 / sum ||x||^2 (the features are centred)."""
    return float(np.square(x - xhat).sum() / np.square(x).sum())


def best_single_atom(atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, 'n D']") -> "Float[ndarray, 'n D']":
    """Each row's projection on the ray of the atom nearest to it; zero where no inner product is positive."""
    inner = x @ unit_rows(atoms).T
    best = inner.argmax(axis=1)
    return np.maximum(inner.max(axis=1), 0)[:, None] * unit_rows(atoms)[best]


@torch.no_grad()
def held_out(model: Any, name: str, budget: str, d: int) -> float:
    """Unexplained share of clean rows."""
    clean = clean_rows(d)
    if name in BY_DECODER and budget == "unit":
        bias = model.b_dec.double().cpu().numpy()
        x = clean.double().numpy()
        return unexplained(x, bias + best_single_atom(model.W_dec.double().cpu().numpy(), x - bias))
    rows = clean.to(model.W_dec)
    return unexplained(clean.double().numpy(), model(rows).double().cpu().numpy())


def truth_error(d: int) -> float:
    """Unexplained share of clean rows that the planted subspaces leave with one on; they need no samples."""
    clean = clean_rows(d)
    return unexplained(clean.double().numpy(), planted_truth(world_of(d), d)(clean).double().detach().numpy())


def fitted_error(name: str, n: int, d: int, seed: int, largest: int) -> float:
    """Held-out error of a classical method on the first n rows of a seed."""
    rows = FiniteRows(n, d, seed, largest).rows().double().numpy()
    clean = clean_rows(d).double().numpy()
    rng = np.random.default_rng([seed, n, d])
    if name == "pca":
        _, sigma, right = np.linalg.svd(rows, full_matrices=False)
        basis = right[: COUNT * d][sigma[: COUNT * d] > 1e-9 * sigma[0]]
        return unexplained(clean, clean @ basis.T @ basis)
    if name == "lines":
        lines = klines.fit(rows, min(n, ATOMS), rng, centre=False, restarts=1)
        which, codes = lines.encode(clean)
        return unexplained(clean, codes[:, None] * lines.atoms[which])
    found = ksubspaces.fit(rows, COUNT, min(d, n), rng, centre=False, restarts=10)
    which, coordinates = found.encode(clean)
    return unexplained(clean, np.einsum("nr,nrD->nD", coordinates, found.bases[which]))


@dataclass(frozen=True)
class Search:
    """What one method needed at one d with one seed.

    target   "absolute", or "relative" to what the method explains with the most rows.
    n        samples, log-log between sizes tried.
    censored never reached: n is the largest size.   first  the smallest size tried was enough: n is at most that.
    seen     (n, error) tried.       late  late change (tuning.late_change) of the run that decided; None: not trained.
    """

    name: str
    budget: str
    target: str
    d: int
    seed: int
    n: float
    censored: bool
    first: bool
    seen: tuple[tuple[int, float], ...]
    late: float | None = None


def trained_search(
    name: str, budget: str, d: int, seed: int, study: Study, out: Path, device: str, deadline: float | None
) -> Search:
    """Bisect the sizes for the target; the models are shared runs under out/"runs"."""
    if not device.startswith("cuda"):
        torch.set_num_threads(1)

    late: dict[int, float] = {}

    def error(n: int) -> float:
        data = FiniteRows(n, d, seed, study.sizes[-1])
        architecture, settings = model_settings(name, budget, d)
        training = train_settings(study.steps, seed)
        run = fit(data, architecture, settings, training, out=out, device=device, deadline=deadline, progress=False)
        late[n] = late_change(run)
        return held_out(run.model, name, budget, d)

    n, censored, seen = crossing_by_bisection(error, TARGET, study.sizes)
    decided = max(late) if censored else min(size for size, left in seen if left <= TARGET)
    return _search(name, budget, "absolute", d, seed, n, censored, seen, study, late[decided])


def fitted_searches(name: str, budget: str, d: int, seed: int, study: Study) -> list[Search]:
    """The n for the absolute target, and for `CLOSE` of what the method explains with the most rows."""
    sizes = sizes_from(study.sizes[0], study.sizes[-1])  # finer: these are cheap, and whole octaves blur small n
    errors = {n: fitted_error(name, n, d, seed, study.sizes[-1]) for n in sizes}
    relative = 1 - CLOSE * (1 - errors[sizes[-1]])
    return [
        _search(name, budget, kind, d, seed, *crossing(errors.__getitem__, target, sizes), study)
        for kind, target in (("absolute", TARGET), ("relative", relative))
    ]


def _search(
    name: str,
    budget: str,
    target: str,
    d: int,
    seed: int,
    n: float,
    censored: bool,
    seen: Sequence[tuple[int, float]],
    study: Study,
    late: float | None = None,
) -> Search:
    first = not censored and n <= study.sizes[0]
    return Search(name, budget, target, d, seed, n, censored, first, tuple(seen), late)


def atoms_needed(d: int, target: float = TARGET) -> int:
    """Atoms with codes of either sign below which `target` is out of reach with one active (A3), all features."""
    n = 1
    while distortion_floor(n, 1, d) > target:
        n += 1
    return COUNT * n
