"""The way down from the true basis: what the l1 risk does while duplicates turn into the widest gaps (B5, B5', B6).

A feature of d dimensions, its tokens uniform on the unit sphere, coded exactly (signed codes) by an orthonormal basis
with duplicates. The copies turn one after another along great circles to the centre of the widest gap. A quarter turn
of the first copy is also shown for five laws of the feature's coordinates, and gradient descent on all atoms at once
from copies tilted by 1e-3. Risks are certified (codes with a duality gap); nothing is trained except the ReLU
autoencoders whose decoders the last table splits.
"""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from figures.registry import Context, Figure, figures, table
from proofs_checks.l1_descent_measures import (
    LAM,
    LAWS,
    basis_slope_by_costs,
    normal_mean,
    normal_slope,
    splits,
    trained_dictionary,
)
from sasa_theory import bounds
from sasa_theory.geometry import sphere
from sasa_theory.solvers import tiling
from sasa_theory.solvers.descent import gap_path, turned_cost, widest_gap

#: lam of the paths on the unit sphere; B5's laws use the lam of THEORY.md's numbers, LAM
PENALTY = 0.3
#: d -> atoms at the end of the path, by profile
ENDS = {"quick": {2: 12, 3: 24}, "standard": {2: 32, 3: 64, 4: 96}, "paper": {2: 64, 3: 128, 4: 160}}
#: atoms of the descents in R^3
DESCENTS = {"quick": (6, 12, 24), "standard": (6, 12, 24, 48), "paper": (6, 12, 24, 48, 96)}
TRAINED = {"quick": ((2, 12),), "standard": ((2, 12), (3, 16)), "paper": ((2, 12), (3, 16))}
POINTS = {"quick": 1000, "standard": 4000, "paper": 20_000}
PARTS, FACTOR, TILT = 10, 4.0, 1e-3
COLOURS = {2: "#1b6ca8", 3: "#c8553d", 4: "#4c956c"}


def run(context: Context) -> dict[str, Any]:
    """Walk the paths, turn one copy under five laws, descend from tilted copies, split trained dictionaries."""
    rng = np.random.default_rng([context.seeds[0], 5])
    n = POINTS[context.profile]
    paths = [_path(d, n_atoms, n, rng) for d, n_atoms in ENDS[context.profile].items()]
    turns = [_turn(name, 20 * n, rng) for name in LAWS]
    descents = [_descent(n_atoms, n, seed) for n_atoms in DESCENTS[context.profile] for seed in context.seeds]
    dictionaries = [_splits(d, n, seed, context) for d, n in TRAINED[context.profile] for seed in context.seeds]
    normal = _normal()
    return {
        "numbers": {"paths": paths, "turns": turns, "descents": descents, "limit": _limit()},
        "tables": [*_path_tables(paths, descents), *_slope_tables(turns, normal, dictionaries)],
        "findings": [_finding(paths, turns, descents, dictionaries)],
        "settings": {
            "lam of the paths": PENALTY,
            "lam of the slopes": LAM,
            "points": n,
            "tilt": TILT,
            "seeds": list(context.seeds),
            "path ends": {str(d): n_atoms for d, n_atoms in ENDS[context.profile].items()},
            "trained": "ReLU, one Gaussian feature, coefficient 2 lam, 2,000 steps of 512 at 3e-3",
        },
    }


def _limit() -> float:
    return float(bounds.tiled_limit(1.0, PENALTY))


def _floor(n_atoms: int, d: int) -> float:
    return bounds.tiling_floor(n_atoms, d, 1.0, PENALTY)


def _risk(atoms: "Float[ndarray, 'N d']", x: "Float[ndarray, 'n d']") -> tiling.Risk:
    return tiling.risk(atoms, x, PENALTY, rtol=1e-7)


def _path(d: int, n_atoms: int, n: int, rng: np.random.Generator) -> dict[str, Any]:
    """Risk, and its standard error at whole moves, along the path in R^d; in the plane on equal angles."""
    path = gap_path(d, n_atoms)
    if d == 2:
        theta = 2 * np.pi * (np.arange(n) + 0.5) / n
        x = np.stack([np.cos(theta), np.sin(theta)], axis=1)
    else:
        x = sphere(n, d, rng)
    times = np.arange(path.moves * PARTS + 1) / PARTS
    seen = [_risk(path.distinct(float(time)), x) for time in times]
    return {
        "d": d,
        "atoms": [d + float(time) for time in times],
        "risk": [r.value for r in seen],
        # equal angles are a quadrature: their spread is no error
        "error": [0.0 if d == 2 else r.error for r in seen],
        "gaps": [math.degrees(gap) for gap in path.gaps],
        "floor": [_floor(d + added, d) for added in range(path.moves + 1)],
        "covering": [math.degrees(_least_gap(d + added, d)) for added in range(path.moves + 1)],
    }


def _least_gap(n_atoms: int, d: int) -> float:
    """No N lines have a smaller widest gap: the angle of N pairs of caps that together have the sphere's measure."""
    from scipy.stats import beta

    return math.acos(math.sqrt(beta.isf(1 / n_atoms, 0.5, (d - 1) / 2)))


def _turn(name: str, n: int, rng: np.random.Generator) -> dict[str, Any]:
    """One copy of e_1 turning to e_2 under one law of R^3."""
    h = LAWS[name](n, 3, rng)
    angles = np.linspace(0, np.pi / 2, 31)
    risks = [float(turned_cost(h, angle, LAM).mean()) for angle in angles]
    return {
        "law": name,
        "angles": np.degrees(angles).tolist(),
        "relative": [risk / risks[0] for risk in risks],
        "slope": bounds.basis_slope(h, LAM),
        "measured": basis_slope_by_costs(h, LAM),
        "slope, a >= 0": bounds.basis_slope(h, LAM, signed=False),
    }


def _normal() -> dict[str, float]:
    """The standard normal: slope in closed form, secants by quadrature."""
    risk = {angle: normal_mean(partial(turned_cost, theta=angle, lam=LAM)) for angle in (0.0, 0.02, math.pi / 4)}
    secants = {f"{angle:.3g}": (risk[angle] - risk[0.0]) / angle for angle in risk if angle > 0}
    return {"slope": normal_slope(LAM), **secants}


def _descent(n_atoms: int, n: int, seed: int) -> dict[str, Any]:
    """Gradient descent on all atoms in R^3 from the basis and copies tilted by 1e-3; its end on held-out points."""
    rng = np.random.default_rng([seed, n_atoms])
    x, held_out = sphere(n, 3, rng), sphere(2 * n, 3, rng)
    start = tiling.start("basis", n_atoms, 3, rng, tilt=TILT)
    found = tiling.descend(start, x, PENALTY, steps=200)
    end = _risk(found.atoms, held_out)
    return {
        "atoms": n_atoms,
        "seed": seed,
        "history": list(found.history),
        "end": end.value,
        "error": end.error,
        "gap": math.degrees(widest_gap(found.atoms).angle),
        "floor": _floor(n_atoms, 3),
    }


def _splits(d: int, n_latents: int, seed: int, context: Context) -> dict[str, Any]:
    """Slopes of the splits of a trained decoder's used atoms: two directions each, and both ways along each."""
    atoms, x = trained_dictionary(d, n_latents, seed, context.out, context.deadline)
    found = splits(atoms, x, LAM, np.random.default_rng(seed), signed=False)
    used = [s for s in found if (s.codes > 0).any()]
    ways = [sorted(bounds.split_slope(s.codes, s.residuals, way) for way in (s.direction, -s.direction)) for s in used]
    return {
        "d": d,
        "atoms": n_latents,
        "seed": seed,
        "used": len({s.atom for s in used}),
        "splits": len(used),
        "one way": sum(steep < 0 for steep, _ in ways),
        "both ways": sum(flat < 0 for _, flat in ways),
        "steepest": min(steep for steep, _ in ways),
        # the difference of the two ways is what the atom gains by turning itself
        "own": float(np.median([(flat - steep) / -(flat + steep) for steep, flat in ways])),
    }


def _factors(path: dict[str, Any]) -> list[float]:
    """Excess over the tiled limit divided by that of B4's floor, at the start and after every move."""
    ends = path["risk"][::PARTS]
    return [(risk - _limit()) / (floor - _limit()) for risk, floor in zip(ends, path["floor"], strict=True)]


def _moves(path: dict[str, Any]) -> dict[str, Any]:
    """Moves that ended lower, moves that rose on their way, and the largest rise relative to the move's gain."""
    moves = [path["risk"][i : i + PARTS + 1] for i in range(0, len(path["risk"]) - 1, PARTS)]
    rises = [max(0.0, *(b - a for a, b in pairwise(move))) for move in moves]
    return {
        "moves": len(moves),
        "lower": sum(move[-1] < move[0] for move in moves),
        # costs are certified to 1e-7 of the squared norm
        "bumps": sum(rise > 1e-6 for rise in rises),
        "above start": max(0.0, *(max(move) - move[0] for move in moves)),
    }


def _path_tables(paths: list[dict], descents: list[dict]) -> list[dict[str, Any]]:
    rows = []
    for path in paths:
        ends, factors = path["risk"][::PARTS], _factors(path)
        shown = sorted({0, 1, 2, *(2**i for i in range(2, 12)), len(ends) - 1} & set(range(len(ends))))
        rows += [
            [path["d"], path["d"] + i, ends[i], ends[i] - _limit(), path["floor"][i] - _limit(), round(factors[i], 2),
             round(path["gaps"][i], 1), round(path["covering"][i], 1)]
            for i in shown
        ]  # fmt: skip
    return [
        table(
            "The path into the widest gaps",
            ["d", "atoms", "risk", "excess over the tiled limit", "excess of B4's floor", "quotient",
             "widest gap (degrees)", "least possible gap"],
            rows,
            f"Unit sphere, lam = {PENALTY}, signed codes; tiled limit {_limit():.4g}. At the end of moves. Least "
            "possible: N pairs of caps must cover the sphere.",
        ),
        table(
            "Moves",
            ["d", "moves", "ended lower", "rose on their way", "farthest above their start"],
            [[path["d"], *_moves(path).values()] for path in paths],
        ),
        table(
            "Gradient descent on the atoms, d = 3",
            ["atoms", "seed", "steps", "risk at the start", "risk at the end (held out)", "± standard error",
             "excess / B4's", "widest gap (degrees)"],
            [
                [e["atoms"], e["seed"], len(e["history"]) - 1, e["history"][0], e["end"], e["error"],
                 round((e["end"] - _limit()) / (e["floor"] - _limit()), 2), round(e["gap"], 1)]
                for e in descents
            ],
            f"From the basis and copies of it tilted by {TILT}.",
        ),
    ]  # fmt: skip


def _slope_tables(turns: list[dict], normal: dict[str, float], dictionaries: list[dict]) -> list[dict[str, Any]]:
    return [
        table(
            "Slope of the risk when a duplicate leaves the basis",
            ["law (d = 3)", "formula", "finite differences", "formula, non-negative codes"],
            [[t["law"], t["slope"], t["measured"], t["slope, a >= 0"]] for t in turns],
            f"lam = {LAM}. Standard normal in closed form: {normal['slope']:.5f}; secants by quadrature "
            + ", ".join(f"{v:.5f} to {k}" for k, v in normal.items() if k != "slope")
            + ".",
        ),
        table(
            "Splitting the atoms of trained ReLU autoencoders",
            ["d", "atoms", "seed", "used atoms", "directions tried", "falls one way", "falls both ways",
             "steepest slope", "own slope / size"],
            [list(one.values()) for one in dictionaries],
            f"Optimal non-negative codes of the trained decoder at lam = {LAM}, 300 held-out rows, two directions per "
            "used atom, both ways along each. Own slope / size: median of |E a nu.w| / E|a nu.w|, 0 at a stationary "
            "dictionary, where both ways fall alike; 1 where only one way falls.",
        ),
    ]  # fmt: skip


def _finding(paths: list[dict], turns: list[dict], descents: list[dict], dictionaries: list[dict]) -> dict[str, str]:
    moves = [_moves(path) for path in paths]
    total, lower = sum(m["moves"] for m in moves), sum(m["lower"] for m in moves)
    slopes = [t["slope"] for t in turns]
    tried, one, both = (sum(v[key] for v in dictionaries) for key in ("splits", "one way", "both ways"))
    factors = [f for path in paths for f in _factors(path)]
    ends = [(e["end"] - _limit()) / (e["floor"] - _limit()) for e in descents]
    stands = max(slopes) < 0 and lower == total and one == tried and max(*factors, *ends) <= FACTOR
    stands = stands and all(m["above start"] <= 1e-6 for m in moves)
    return {
        "sentence": "descent",
        "status": "supported" if stands else "refuted",
        "text": f"slope at the basis {min(slopes):.3f} to {max(slopes):.3f} under {len(turns)} laws; {lower} of "
        f"{total} moves into the widest gap end lower, {sum(m['bumps'] for m in moves)} of them not monotonically; "
        f"excess risk at most {max(factors):.2f} (path) and {max(ends):.2f} (descent) times that of B4's floor; of "
        f"{tried} directions in which trained atoms were split, {one} lower the risk one way or the other, "
        f"{both} both ways",
    }


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Risk along the path (plane and space), a quarter turn under five laws, gaps, factors, and descents."""
    from matplotlib.figure import Figure as Picture

    numbers = result["numbers"]
    limit, paths = numbers["limit"], numbers["paths"]
    picture = Picture(figsize=(15, 8.4), layout="constrained")
    axes = picture.subplots(2, 3)
    for ax, path in zip(axes[0], paths[:2], strict=False):
        _draw_path(ax, path, limit)
    _draw_descents(axes[0][2], numbers["descents"], limit)
    _draw_turns(axes[1][0], numbers["turns"])
    gaps, factors = axes[1][1:]
    for path in paths:
        counts = np.arange(len(path["gaps"])) + path["d"]
        colour = COLOURS[path["d"]]
        gaps.plot(counts, path["gaps"], color=colour, drawstyle="steps-post", label=f"d = {path['d']}")
        gaps.plot(counts, path["covering"], color=colour, ls=":", lw=1.2)
        excess = [(r - limit) / (f - limit) for r, f in zip(path["risk"][::PARTS], path["floor"], strict=True)]
        factors.plot(counts, excess, color=colour, marker="o", ms=2, label=f"path, d = {path['d']}")
    gaps.set(title="Widest gap", xlabel="atoms", ylabel="degrees", xscale="log", yscale="log")
    gaps.plot([], [], color="0.4", ls=":", label="least possible with as many")
    ends = [(e["atoms"], (e["end"] - limit) / (e["floor"] - limit)) for e in numbers["descents"]]
    factors.scatter(*zip(*ends, strict=True), marker="D", s=26, fc="none", ec=COLOURS[3], label="descent, d = 3")
    factors.axhline(1, color="0.25", ls="--", lw=1.2, label="B4's floor")
    factors.set(title="Excess risk / that of B4's floor", xlabel="atoms", xscale="log", ylim=(0.9, 3.2))
    for ax in (gaps, factors):
        ticks = [n for n in (2, 4, 8, 16, 32, 64, 128) if n <= max(p["atoms"][-1] for p in paths)]
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
    degrees = [v for v in (2.5, 5, 10, 20, 40, 60) if min(min(p["covering"]) for p in paths) <= v]
    gaps.set_yticks(degrees, [f"{v:g}" for v in degrees])
    gaps.legend(fontsize=9, frameon=False, loc="lower left")
    factors.legend(fontsize=9, frameon=False, loc="upper right", ncols=2)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return {"figure": picture}


def _draw_path(ax: Any, path: dict[str, Any], limit: float) -> None:
    colour = COLOURS[path["d"]]
    atoms, risk = np.array(path["atoms"]), np.array(path["risk"])
    counts = np.arange(len(path["floor"])) + path["d"]
    ax.plot(atoms, risk, color=colour, lw=1.6, label="risk along the path")
    ax.plot(counts, risk[::PARTS], ls="", marker="o", ms=3.5, color=colour, label="end of a move")
    ax.plot(counts, path["floor"], color="0.25", ls="--", lw=1.2, label="B4's floor")
    ax.axhline(limit, color="0.6", lw=1.2, label="tiled limit (one group)")
    ax.set(title=f"Copies turn into the widest gap, d = {path['d']}", xlabel="atoms in place", ylabel="risk R(D)")
    ax.legend(fontsize=9, frameon=False, loc="upper right")
    if path["d"] == 2:  # where gaps are narrow a copy crosses other atoms on its way
        first = 2 ** int(math.log2(counts[-1] - 4))
        near = (atoms >= first) & (atoms <= first + 4)
        inset = ax.inset_axes((0.5, 0.24, 0.48, 0.34))
        inset.plot(atoms[near], 1e3 * (risk[near] - limit), color=colour, lw=1.4)
        whole = near[::PARTS]
        inset.plot(counts[whole], 1e3 * (risk[::PARTS][whole] - limit), ls="", marker="o", ms=3.5, color=colour)
        inset.set_title("four moves: $10^3$ (R - tiled limit)", fontsize=9)
        inset.tick_params(labelsize=8)
        inset.spines[["top", "right"]].set_visible(False)


def _draw_descents(ax: Any, descents: list[dict[str, Any]], limit: float) -> None:
    import matplotlib

    counts = sorted({e["atoms"] for e in descents})
    shades = matplotlib.colormaps["Oranges"](np.linspace(0.45, 0.95, len(counts)))
    for count, shade in zip(counts, shades, strict=True):
        same = [e for e in descents if e["atoms"] == count]
        for i, one in enumerate(same):
            label = f"{count} atoms" if i == 0 else None
            excess = np.array(one["history"]) - limit
            ax.plot(np.arange(len(excess)) + 1, excess, color=shade, lw=1.5, label=label)
        ax.axhline(same[0]["floor"] - limit, color=shade, ls="--", lw=1)
    ax.plot([], [], color="0.4", ls="--", lw=1, label="B4's floor")
    ax.set(title="Gradient descent on the atoms, d = 3", xlabel="step + 1", ylabel="R(D) - tiled limit", xscale="log")
    ax.set(yscale="log", ylim=(None, 5 * (descents[0]["history"][0] - limit)))  # room for the legend
    title = f"start: basis and copies tilted by {TILT}"
    ax.legend(fontsize=9, frameon=False, title=title, title_fontsize=9, loc="upper right", ncols=2)


def _draw_turns(ax: Any, turns: list[dict[str, Any]]) -> None:
    import matplotlib

    for i, one in enumerate(turns):
        ax.plot(
            one["angles"],
            one["relative"],
            color=matplotlib.colormaps["Dark2"](i),
            lw=1.6,
            label=f"{one['law']}: {one['slope']:.4f}",
        )
    ax.axhline(1, color="0.6", lw=1)
    ax.set(title="A copy of $e_1$ turns to $e_2$", xlabel="angle (degrees)", ylabel="R(angle) / R(0)")
    ax.set_xticks([0, 15, 30, 45, 60, 75, 90])
    deepest = 1 - min(min(one["relative"]) for one in turns)
    ax.set_ylim(1 - 1.08 * deepest, 1 + 0.5 * deepest)
    ax.legend(fontsize=9, frameon=False, title="law: slope at the basis", title_fontsize=9, loc="upper center", ncols=2)


figures.register("descent")(
    Figure(
        name="descent",
        title="The l1 objective leads from the true basis to split atoms",
        run=run,
        draw=draw,
        budget={"quick": 60.0, "standard": 20 * 60.0, "paper": 60 * 60.0},
    )
)
