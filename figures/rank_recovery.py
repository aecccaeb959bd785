"""E3: do trained groups find the subspaces and the dimensions of many planted features? Ranks against the penalty.

The world and its training are those of rank_recovery_world.py. Each feature is given to one group, the matching of
largest total capture; the learned rank is the fewest directions that carry 90 % of the energy the group contributes. A
feature is found when its group captures at least FOUND of its subspace. Training splits merged groups
(training/split_groups.py; figure `recovery` is its ablation).

C6's window for a feature of dimension d, on with rate p, is 2 p nu^2 <= lam / E_f < 2 p (1/d + nu^2). The world has no
noise; the energy of the s - 1 other features on the row stands in for it, nu^2 = (s - 1) / D a direction. Other groups
explain most of that, so the true lower edge is lower: below it the window says nothing. The mean over K groups makes
the published decoder penalty K times smaller a group; C6 makes no prediction for it (C8).

At the coefficients STARTED of the penalty "map" the first seed is trained from other starts and without the gauge, and
C6's maps are followed through the gate (rank_recovery_starts.py): is it the objective or training that loses features?
"""

import math
from typing import Any

import numpy as np

from figures.rank_recovery_draw import draw, of_kind
from figures.rank_recovery_starts import from_starts, gated_window
from figures.rank_recovery_tables import by_dimension, gate_table, start_table, summary
from figures.rank_recovery_world import (
    DIMS,
    FOUND,
    RANK,
    ROWS,
    SIZES,
    feature_energy,
    make_job,
    make_world,
    recovery,
    windows,
)
from figures.registry import Context, Figure, figures
from figures.yardsticks import references
from sasa_theory.training import fit_all

KINDS = ("map", "decoder")
COEFFICIENTS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
#: those trained from other starts; 10 and 30 lie in every window of the published world, 100 in those of d <= 6
STARTED = (0.0, 10.0, 30.0, 100.0)
#: rows that the yardsticks are fitted to, for each feature
FIT_ROWS = 200
TARGET_ERROR, TARGET_SPEARMAN = 0.5, 0.9


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
        {"penalty": kind, "coefficient": lam, "seed": seed, **recovery(one.model, world, rows)}
        for (kind, lam, seed), one in zip(cells, runs, strict=True)
    ]
    window = [list(one) for one in windows(size)]
    starts = [one for lam in STARTED for one in from_starts(size, world, lam, rows, context)]
    energy = feature_energy(size["spec"])
    gates = [
        {"coefficient": lam, "gauge": gauge, **gated_window(world, lam / energy, gauge)}
        for lam in STARTED
        for gauge in (True, False)
        if lam
    ]
    measured = [
        {"name": name, "seed": seed, **recovery(model.to(context.device), own, rows)}
        for seed in context.seeds
        for name, (model, own) in references(
            world, RANK, RANK * len(world.dims), FIT_ROWS * len(world.dims), seed
        ).items()
    ]
    return {
        "numbers": {
            "dims": list(DIMS),
            "rank": RANK,
            "windows": window,
            "trained": trained,
            "starts": starts,
            "gates": gates,
            "yardsticks": measured,
        },
        "tables": [
            summary(trained, kinds, measured),
            by_dimension(trained, kinds),
            start_table(starts),
            gate_table(gates, starts),
        ],
        "findings": [finding(trained, starts, window, decided=context.profile != "quick")],
        "settings": {
            "world": world.spec(),
            "size": size,
            "energy a feature": energy,
            "found": FOUND,
            "example job": {"model": dict(jobs[-1].settings), "training": jobs[-1].training.as_dict()},
            "runs": [one.directory.name for one in runs],
        },
    }


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
        f"; without splits {plain['found']:.0%} found; started at the truth {truth['found']:.0%} found (at a tenth of "
        f"the rate {here['truth, slow']['found']:.0%}, without the gauge, which weighs groups in the gate, "
        f"{here['truth, no gauge']['found']:.0%}), error {truth['rank_error']:.2f}, objective "
        f"{truth['objective']:.4f} against {random['objective']:.4f}"
    )
    free = of_kind(trained, "none", 0.0)
    text += f"; at coefficient 0 with splits error {np.mean([one['rank_error'] for one in free]):.2f}"
    text += _beyond(starts, window)
    whole = ranks and best["found"] >= 0.95
    alone = plain["found"] >= 0.95 and plain["rank_error"] <= TARGET_ERROR
    status = "supported" if whole and alone else "needs an assumption" if whole or (lower and kept) else "undecided"
    return {"sentence": "rank-recovery", "status": status if decided else "undecided", "text": text}


def _beyond(starts: list[dict[str, Any]], window: list[list[float]]) -> str:
    """What becomes of the largest coefficient, where it lies in the windows of some dimensions and not of others."""
    lam = max(one["coefficient"] for one in starts)
    allowed = sum(w[0] <= lam < w[1] for w in window)
    here = {one["start"]: one for one in starts if one["coefficient"] == lam}
    if allowed == len(window) or "random, long" not in here:
        return ""
    ends = ", ".join(
        f"{name} {here[name]['found']:.0%} ({here[name]['objective']:.4f})"
        for name in ("random", "random, no gauge", "random, long", "truth", "truth, no gauge")
    )
    return (
        f"; coefficient {lam:g} is in the windows of {allowed} of {len(window)} dimensions, found (objective): {ends}"
    )


figures.register("rank-recovery")(
    Figure(
        name="rank-recovery",
        title="E3: subspaces and dimensions of many planted features against the nuclear coefficient",
        run=run,
        draw=draw,
        budget={"quick": 60.0, "standard": 30 * 60.0, "paper": 6 * 3600.0},
    )
)
