"""E3: do trained groups find the subspaces and the dimensions of many planted features? Ranks against the penalty.

Dimensions 1 to 8, balanced, groups of 10 columns, as many groups as features, as many active as features are on. The
published world has 256 features in R^768, 8 on, E||h||^2 = 80,652.6; for two cores it is a quarter of that (64 in
R^192, 2 on, the same energy a feature). Each feature is given to one group, the matching of largest total capture; the
learned rank is the fewest directions that carry 90 % of the energy the group contributes. A feature is found when its
group captures at least FOUND of its subspace.

Coefficients are the published ones, in raw units: lam sum_k ||M_k||_* (penalty "map") and lam mean_k ||D_k||_*
("decoder", the published code's). Training divides the data by the root of a feature's energy E_f, so both are divided
by E_f. That leaves the maps as they are and takes Adam's steps to the scale they are meant for.

C6's window for a feature of dimension d, on with rate p, is 2 p nu^2 <= lam / E_f < 2 p (1/d + nu^2). The world has no
noise; the energy of the s - 1 other features on the row stands in for it, nu^2 = (s - 1) / D a direction. Other groups
explain most of that, so the true lower edge is lower: below it the window says nothing. The mean over K groups makes
the published decoder penalty K times smaller a group; C6 makes no prediction for it (C8).

Training splits merged groups SPLITS times (training/split_groups.py; figure `recovery` is its ablation).

Is a feature that is not found the fault of the objective or of training? At the coefficients STARTED of the
penalty "map" the first seed is also trained without splits, from the random start ("plain") and from two planted ones:
every feature in its group ("truth"), and two features to a group wherever their dimensions add to 9 (r = 10 has room
for both, and half of the groups are spare; "merged"). The objective after training, on held-out rows, decides. With one
feature on in a row (the quick profile) C2 says that the merged start cannot be worse.
"""

import hashlib
import json
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from figures.rank_recovery_draw import draw, of_kind
from figures.registry import Context, Figure, figures, table
from sasa_theory import saelens
from sasa_theory.bounds_groups import Window, rank_window
from sasa_theory.evaluation import DeadShare, ExplainedVariance, Subspaces
from sasa_theory.evaluation import run as measure
from sasa_theory.evaluation.subspaces import mid_ranks, pearson
from sasa_theory.files import write_json
from sasa_theory.models import SASA
from sasa_theory.models.base import reconstruction_error
from sasa_theory.models.nuclear import map_nuclear_norm
from sasa_theory.training import Job, Run, Trainer, TrainSettings, fit_all
from sasa_theory.training.runs import describe
from sasa_theory.training.trainer import STATE
from synthetic import World

DIMS = tuple(range(1, 9))
RANK, FOUND = 10, 0.9
KINDS = ("map", "decoder")
COEFFICIENTS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
#: those trained from planted starts too; the last two lie in every window of the published world
STARTED = (0.0, 10.0, 30.0)
#: spec, width, features of each dimension, active, coefficients, steps, batch, rows evaluated
SIZES: dict[str, dict[str, Any]] = {
    "quick": {"spec": "rank-recovery-192", "width": 96, "count": 4, "active": 1, "steps": 400, "batch": 256},
    "standard": {"spec": "rank-recovery-192", "width": 192, "count": 8, "active": 2, "steps": 2500, "batch": 512},
    "paper": {"spec": "rank-recovery", "width": 768, "count": 32, "active": 8, "steps": 20_000, "batch": 4096},
}
RATE, SPLITS = 3e-3, 5
#: evaluated rows on which a feature is on; with 600 the sampled spectrum of d = 8 is uneven enough to have 90 % rank 7
ROWS = 2000
TARGET_ERROR, TARGET_SPEARMAN = 0.5, 0.9


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


class Planted(SASA):
    """A SASA whose first weights hold subspaces that are given: `places` has (first column, frame) of each."""

    places: "list[tuple[int, Tensor]]" = []  # noqa: RUF012 (replaced, never changed)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, rows: "Float[Tensor, 'n D'] | None" = None) -> None:
        """Random as ever, but small next to the frames."""
        super().initialise(generator, rows)
        if not self.places:
            return
        self.W_dec.mul_(1e-2)
        self.W_enc.mul_(1e-2)
        for column, frame in self.places:
            part = slice(column, column + len(frame))
            self.W_dec[part], self.W_enc[:, part] = frame, frame.T


def planted_places(world: World, merged: bool) -> "list[tuple[int, Tensor]]":
    """Each feature in a group of its own, or, merged, the features of dimensions d and 9 - d in one."""
    frames = world.frames()
    if not merged:
        return [(RANK * i, frame) for i, frame in enumerate(frames)]
    pools = {d: [frame for frame in frames if len(frame) == d] for d in DIMS}
    small = [d for d in DIMS if 2 * d <= max(DIMS)]
    pairs = [pair for d in small for pair in zip(pools[d], pools[max(DIMS) + 1 - d], strict=True)]
    return [place for k, (a, b) in enumerate(pairs) for place in ((RANK * k, a), (RANK * k + len(a), b))]


def train_from(places: "list[tuple[int, Tensor]]", start: str | bool, world: World, one: Job, context: Context) -> Run:
    """The job from a given start; `start` says which one."""
    model = Planted(world.width, **one.settings)
    model.places = places
    return train_model(model, start, world, one, context)


def train_model(model: SASA, start: str | bool, world: World, one: Job, context: Context) -> Run:
    """The job with a model of its own making, kept and resumed like any run; `start` says in its name which one."""
    text = json.dumps([describe(world, one), "planted", start], sort_keys=True)
    place = context.out / "runs" / hashlib.sha256(text.encode()).hexdigest()[:16]
    done = place / "planted.json"
    if not done.exists():
        source = world.batches(one.training.batch_size, context.device, stream=f"train:{one.training.seed}")
        place.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(model, source, one.training, out=place, device=context.device, deadline=context.deadline)
        trainer.fit(resume=(place / STATE).exists())
        write_json(done, {"start": start})
    return Run(place, saelens.load(place).to(context.device), [], 0.0)


@torch.no_grad()
def objective(trained: Run, world: World, lam: float, rows: int) -> float:
    """mean ||h - hhat||^2 + lam sum_k ||M_k||_* on held-out rows, every group charged."""
    model = trained.model
    x = next(world.batches(rows, model.blocks()[1].device, stream="eval"))
    return float(reconstruction_error(x, model(x)) + lam * map_nuclear_norm(*model.blocks()).sum())


def windows(size: dict[str, Any]) -> list[Window]:
    """C6's window of each dimension, in raw coefficients of the penalty "map"."""
    rate = size["active"] / (size["count"] * len(DIMS))
    noise = (size["active"] - 1) / size["width"]
    scale = feature_energy(size["spec"])
    found = [rank_window([1 / d + noise] * d, rate * noise, rate) for d in DIMS]
    return [Window(scale * window.low, scale * window.high) for window in found]


def run(context: Context) -> dict[str, Any]:
    """Train over both penalties and all coefficients; match groups to features (module docstring)."""
    size = SIZES[context.profile]
    world = make_world(size)
    kinds = [(kind, lam) for kind in KINDS for lam in COEFFICIENTS if lam > 0 or kind == "map"]
    cells = [(kind, lam, seed) for kind, lam in kinds for seed in context.seeds]
    jobs = [make_job(size, kind, lam, seed) for kind, lam, seed in cells]
    runs = fit_all(world, jobs, out=context.out, device=context.device, deadline=context.deadline)
    rows = ROWS * len(world.dims) // size["active"]
    trained = [
        {"penalty": kind, "coefficient": lam, "seed": seed, **recovery(one, world, rows)}
        for (kind, lam, seed), one in zip(cells, runs, strict=True)
    ]
    window = [list(one) for one in windows(size)]
    starts = []
    for lam in STARTED:
        plain = make_job(size, "map", lam, context.seeds[0], splits=0)
        made = {"random": runs[cells.index(("map", lam, context.seeds[0]))]}
        made["plain"] = fit_all(world, [plain], out=context.out, device=context.device, deadline=context.deadline)[0]
        for merged, name in ((False, "truth"), (True, "merged")):
            made[name] = train_from(planted_places(world, merged), merged, world, plain, context)
        for name, one in made.items():
            value = objective(one, world, plain.settings["nuclear"], rows)
            got = recovery(one, world, rows)
            starts.append({"start": name, "coefficient": lam, "objective": value, **got})
    return {
        "numbers": {"dims": list(DIMS), "rank": RANK, "windows": window, "trained": trained, "starts": starts},
        "tables": [_summary(trained, kinds), _by_dimension(trained, kinds), _start_table(starts)],
        "findings": [finding(trained, starts, window, decided=context.profile != "quick")],
        "settings": {
            "world": world.spec(),
            "size": size,
            "energy a feature": feature_energy(size["spec"]),
            "found": FOUND,
            "example job": {"model": dict(jobs[-1].settings), "training": jobs[-1].training.as_dict()},
            "runs": [one.directory.name for one in runs],
        },
    }


def recovery(trained: Run, world: World, rows: int) -> dict[str, Any]:
    """Capture and rank of the group matched to each feature, and how they agree with the truth."""
    decoder = trained.model.blocks()[1]
    got = measure(trained.model, world, rows, [ExplainedVariance(), DeadShare(), Subspaces(world.frames(), decoder)])
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


def _mean(cells: list[dict[str, Any]], name: str, digits: int) -> str | None:
    values = [one[name] for one in cells if one[name] is not None]
    if not values:
        return None
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _summary(trained: list[dict[str, Any]], kinds: list[tuple[str, float]]) -> dict[str, Any]:
    columns = {
        "explained": "explained variance",
        "dead_share": "dead share",
        "found": f"found (capture >= {FOUND})",
        "capture": "mean capture",
        "rank_error": "|rank error|",
        "spearman": "Spearman",
        "pearson": "Pearson",
        "rank_error_found": "|rank error|, found",
        "spearman_found": "Spearman, found",
        "most_features_a_group": "most features a group",
    }
    rows = []
    for kind, lam in kinds:
        cells = of_kind(trained, kind, lam)
        rows.append([kind if lam else "none", f"{lam:g}", *(_mean(cells, name, 2) for name in columns)])
    note = (
        "Mean ± standard deviation over seeds. Ranks: directions carrying 90 % of the energy a group contributes, of "
        "the group matched to each feature; all features, and those found. Coefficients in raw units, as published."
    )
    return table("Recovery against the coefficient", ["penalty", "coefficient", *columns.values()], rows, note)


def _by_dimension(trained: list[dict[str, Any]], kinds: list[tuple[str, float]]) -> dict[str, Any]:
    rows = []
    for kind, lam in kinds:
        cells = of_kind(trained, kind, lam)
        row: list[Any] = [kind if lam else "none", f"{lam:g}"]
        for i in range(len(DIMS)):
            ranks = [r for one in cells for r in one["ranks"][i]]
            captures = [c for one in cells for c in one["captures"][i]]
            row.append(f"{np.mean(ranks):.1f} ({np.mean(captures):.2f})")
        rows.append(row)
    columns = ["penalty", "coefficient", *(f"d = {d}" for d in DIMS)]
    return table("Learned rank (capture) by true dimension", columns, rows, "Mean over features and seeds.")


def _start_table(starts: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("explained", "found", "rank_error", "spearman", "dead_share", "most_features_a_group")
    rows = [
        [f"{one['coefficient']:g}", one["start"], f"{one['objective']:.4f}", *(_mean([one], name, 2) for name in names)]
        for one in starts
    ]
    note = (
        "Penalty map, first seed, equal training from each start. Objective: squared error and nuclear penalty on "
        "held-out rows, in units of a feature's energy. Random: with splits; the others without. Plain: random start; "
        "truth: a group each; merged: d and 9 - d in one group."
    )
    columns = ["explained variance", "found", "|rank error|", "Spearman", "dead share", "most features a group"]
    return table("Objective reached from four starts", ["coefficient", "start", "objective", *columns], rows, note)


def finding(
    trained: list[dict[str, Any]], starts: list[dict[str, Any]], window: list[list[float]], decided: bool
) -> dict[str, str]:
    """On target: inside every window, most features found, and error and correlation of ranks as asked.

    Supported when training without splits is on target too; if only training with splits is, the sentence needs them as
    an assumption (the paper trains without). Off target from a random start but on target from the truth, at a lower
    objective: the paper's sentence then needs the assumption that training finds the minimiser.
    """
    low, high = max(w[0] for w in window), min(w[1] for w in window)
    inside = [c for c in STARTED if low <= c < high]
    best: dict[str, Any] | None = None
    for lam in inside:
        cells = of_kind(trained, "map", lam)
        values = {
            name: float(np.mean([one[name] if one[name] is not None else math.nan for one in cells]))
            for name in ("found", "rank_error", "spearman", "rank_error_found")
        }
        if best is None or values["rank_error"] < best["rank_error"]:
            best = {"coefficient": lam, **values}
    if best is None:
        text = f"none of {STARTED} lies inside every window of C6, {low:.3g} to {high:.3g}"
        return {"sentence": "rank-recovery", "status": "undecided", "text": text}
    ranks = best["rank_error"] <= TARGET_ERROR and best["spearman"] >= TARGET_SPEARMAN
    text = (
        f"penalty map, coefficients {', '.join(f'{c:g}' for c in inside)} inside every window of C6 ({low:.3g} to "
        f"{high:.3g}); at {best['coefficient']:g}: {best['found']:.0%} of the features found, mean |rank error| "
        f"{best['rank_error']:.2f} ({best['rank_error_found']:.2f} for those found), Spearman {best['spearman']:.2f}"
    )
    here = {one["start"]: one for one in starts if one["coefficient"] == best["coefficient"]}
    truth, random, plain = here["truth"], here["random"], here["plain"]
    lower = truth["objective"] < random["objective"]
    kept = truth["rank_error"] <= TARGET_ERROR and (truth["spearman"] or 0) >= TARGET_SPEARMAN
    text += (
        f"; without splits {plain['found']:.0%} found; started at the truth {truth['found']:.0%} found, error "
        f"{truth['rank_error']:.2f}, objective "
        f"{truth['objective']:.4f} against {random['objective']:.4f}"
    )
    free = of_kind(trained, "none", 0.0)
    text += f"; at coefficient 0 with splits error {np.mean([one['rank_error'] for one in free]):.2f}"
    whole = ranks and best["found"] >= 0.95
    alone = plain["found"] >= 0.95 and plain["rank_error"] <= TARGET_ERROR
    status = "supported" if whole and alone else "needs an assumption" if whole or (lower and kept) else "undecided"
    return {"sentence": "rank-recovery", "status": status if decided else "undecided", "text": text}


figures.register("rank-recovery")(
    Figure(
        name="rank-recovery",
        title="E3: subspaces and dimensions of many planted features against the nuclear coefficient",
        run=run,
        draw=draw,
        budget={"quick": 60.0, "standard": 20 * 60.0, "paper": 6 * 3600.0},
    )
)
