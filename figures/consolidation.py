"""Consolidation: what a slice costs against how it is shared between groups, with hard and with soft routing.

Hard routing, two exact surfaces. Left: a slice of two directions of energy 1, at an angle; group 1 has the first and a
share of the second, group 2 the rest. Share 1 is one group, share 0 a group for each direction. Middle: an isotropic
slice of any dimension whose tokens go to group 2 at random with some probability. Right: splits found by gates, random
labels, enumeration and local search on random slices; C2 says that none lies below the line.

Soft routing, C4. Left: the best maps of its two tokens, routed to {0, 1} and {0, 2}, against one group, with the edge
beyond which the explicit maps of C4 lose. Middle: its family, against the limit 1/d. Right, C8: the singular values of
the best map of one slice under the paper's penalty on maps, and under the published code's on decoder blocks with unit
rows, found by descent from random starts, with encoder rows of unit length or free.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from figures.registry import Context, Figure, figures, table
from proofs_checks.consolidation_measures import (
    ROUTINGS,
    draw_slice,
    every_assignment,
    local_search,
    split,
    split_cost,
)
from proofs_checks.core import Bench
from proofs_checks.gauge import read_off, same_factors, same_maps
from proofs_checks.gauge_measures import released_search
from proofs_checks.soft_routing_measures import simplex_slice
from sasa_theory.bounds import simplex_costs, slice_map, slice_value, spectral_cost

#: penalty of the left surface; the directions have energy 1
LAM = 0.4
GRID = {"quick": 41, "standard": 81, "paper": 161}
SOFT_GRID = {"quick": 25, "standard": 40, "paper": 80}
SPLIT_ROUNDS = {"quick": 60, "standard": 600, "paper": 3000}
DIMS = (2, 3, 4, 6, 8, 12, 16)
#: angle and penalty of the family's curves, from mild to nearly its limit
FAMILY = ((0.3, 0.05), (0.1, 1e-3), (0.01, 1e-7))
#: eigenvalues of the slice whose best maps are compared under both penalties
SPECTRUM = (1.0, 0.5, 0.2)
RELEASED_LAMS = {"quick": 13, "standard": 25, "paper": 49}
EXAMPLE = (0.3, 0.4)


def run(context: Context) -> dict[str, Any]:
    """Compute the surfaces, the splits, the family, both penalties' maps, and the numbers on uniqueness (docstring)."""
    profile, seed = context.profile, context.seeds[0]
    bench = Bench(profile, seed)  # type: ignore[arg-type]
    splits = _splits(SPLIT_ROUNDS[profile], bench.rng("figure splits"))
    soft = _soft(SOFT_GRID[profile])
    family = [
        {"angle": angle, "lam": lam, "ratios": [float(np.divide(*simplex_costs(d, angle, lam))) for d in DIMS]}
        for angle, lam in FAMILY
    ]
    released = _released(RELEASED_LAMS[profile], bench.rng("figure released"))
    unique = {"maps": same_maps(bench), "factors": same_factors(bench), "read off": read_off(bench),
              "read off D": read_off(bench, "decoder")}  # fmt: skip
    return {
        "numbers": {"shared": _shared(GRID[profile]), "random": _random(GRID[profile]), "splits": splits, "soft": soft,
                    "family": family, "released": released, "unique": unique},
        "tables": _tables(splits, family, released),
        "findings": _findings(splits, soft, family, released, unique),
        "settings": {"profile": profile, "seed": seed, "penalty of the left surface": LAM, "spectrum": SPECTRUM,
                     "rounds of splits": SPLIT_ROUNDS[profile]},
    }  # fmt: skip


def _shared(points: int) -> dict[str, Any]:
    """Extra cost of two groups over one, in %, by angle (rows) and by the share of direction 2 that group 1 has."""
    angles, shares = np.linspace(0, 90, points), np.linspace(0, 1, points)
    extra = np.empty((points, points))
    first = np.outer([1, 0], [1, 0])
    for i, angle in enumerate(np.radians(angles)):
        v = np.array([np.cos(angle), np.sin(angle)])
        second = np.outer(v, v)
        one = slice_value(first + second, LAM)
        extra[i] = [slice_value(first + q * second, LAM) + slice_value((1 - q) * second, LAM) - one for q in shares]
        extra[i] *= 100 / one
    return {"angles": angles.tolist(), "shares": shares.tolist(), "extra": extra.round(9).tolist()}


def _random(points: int) -> dict[str, Any]:
    """Extra cost in % of sending a token of an isotropic slice (eigenvalue 1) to group 2 with probability q."""
    q, lams = np.linspace(0, 1, points), np.geomspace(0.02, 4, points)
    extra = [
        100 * (spectral_cost(q, lam) + spectral_cost(1 - q, lam) - spectral_cost(1.0, lam)) / spectral_cost(1.0, lam)
        for lam in lams
    ]
    return {"q": q.tolist(), "lams": lams.tolist(), "extra": np.round(extra, 9).tolist()}


def _splits(rounds: int, rng: np.random.Generator) -> dict[str, dict[str, list[float]]]:
    """By way of splitting: the share of energy outside the largest group, and cost over that of one group."""
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        slice_, few = draw_slice(rng, 3, 40), draw_slice(rng, 3, 8)
        ways = {name: (slice_, split(slice_, route(slice_.tokens, 2, rng))) for name, route in ROUTINGS.items()}
        ways["best of all assignments"] = (few, every_assignment(few))
        ways["local search"] = (slice_, local_search(slice_, 2, rng))
        for name, (one, parts) in ways.items():
            cell = found.setdefault(name, {"outside": [], "ratio": []})
            energies = np.einsum("kii->k", parts)
            cell["outside"].append(float(1 - energies.max() / energies.sum()))
            cell["ratio"].append(split_cost(parts, one.lam) / slice_value(one.sigma, one.lam))
    return found


def _soft(points: int) -> dict[str, Any]:
    """Best maps of C4's two tokens over one group, by lam (rows) and angle; where the explicit maps break even."""
    angles, lams = np.linspace(0.04, 1.53, points), np.linspace(0.02, 1.2, points)
    slices = [simplex_slice(2, p) for p in angles]
    ratio = [[one.best(lam, 1e-6).primal / slice_value(one.sigma, lam) for one in slices] for lam in lams]
    fine, edge = np.linspace(0.01, 1.55, 150), []
    for p in fine:
        tried = np.linspace(1e-4, np.sin(2 * p) * 0.9999, 100)
        wins = [lam for lam in tried if np.less(*simplex_costs(2, p, lam))]
        edge.append(float(max(wins, default=0.0)))
    example = simplex_slice(2, EXAMPLE[0])
    return {
        "angles": angles.tolist(),
        "lams": lams.tolist(),
        "ratio": ratio,
        "edge angles": fine.tolist(),
        "edge": edge,
        "example": {
            "best": example.best(EXAMPLE[1]).primal,
            "shared": simplex_costs(2, *EXAMPLE).shared,
            "single": example.single_floor(EXAMPLE[1]),
        },
    }


def _released(points: int, rng: np.random.Generator) -> dict[str, Any]:
    """Singular values of the best map of a slice by penalty; the published one with unit and free encoder rows."""
    sigma, rank = np.diag(SPECTRUM), len(SPECTRUM)
    lams = np.linspace(0.05, 2.2, points)
    found: dict[str, Any] = {"lams": lams.tolist(), "map": [np.diag(slice_map(sigma, lam)).tolist() for lam in lams]}
    for name, unit in (("unit encoder", True), ("free encoder", False)):
        best = [released_search(sigma, lam, rank, rng, unit_encoder=unit).map for lam in lams.tolist()]
        found[name] = [np.linalg.svd(map_, compute_uv=False).tolist() for map_ in best]
    return found


def _tables(splits: dict, family: list[dict], released: dict) -> list[dict[str, Any]]:
    rows = [
        [name, len(cell["ratio"]), f"{min(cell['ratio']):.4f}", f"{np.median(cell['ratio']):.4f}"]
        for name, cell in splits.items()
    ]
    kinds = ("map", "unit encoder", "free encoder")
    gains = [
        [f"{lam:.2f}", *(" / ".join(f"{g:.2f}" for g in released[kind][i]) for kind in kinds)]
        for i, lam in enumerate(released["lams"])
    ]
    curves = [f"p={one['angle']}, lam={one['lam']:g}" for one in family]
    return [
        table(
            "Hard splits of random slices (d = 3, two groups)",
            ["split", "tried", "least cost / one group", "median"],
            rows,
            "Local search keeps at least 10 % of the energy in each group, or it would end in one group.",
        ),
        table(
            "Soft routing: C4's family over one group",
            ["d", *curves, "1/d"],
            [[d, *(f"{one['ratios'][i]:.4f}" for one in family), f"{1 / d:.4f}"] for i, d in enumerate(DIMS)],
        ),
        table(
            "Singular values of the best map, Sigma = diag(1, 0.5, 0.2), r = 3",
            ["lam", "penalty on maps (C1)", "on decoder rows, unit encoder rows", "on decoder rows, free encoder"],
            gains,
            "The first is exact, the others the best of three descents over unit decoder rows (C8). With a free "
            "encoder the rows grow parallel and the encoder large: no limit is reached, and no direction is lost.",
        ),
    ]


def _findings(splits: dict, soft: dict, family: list[dict], released: dict, unique: dict) -> list[dict[str, str]]:
    ratios = [ratio for cell in splits.values() for ratio in cell["ratio"]]
    hard = min(ratios) >= 1 - 1e-9
    example, deepest = soft["example"], min(family[-1]["ratios"])
    gains = float(np.sum(soft["ratio"] < np.array(1 - 1e-4)))
    identified = unique["maps"] < 1e-3 and unique["read off"] < 1e-6
    middle = len(released["lams"]) // 2
    exact, found, free = (released[kind][middle] for kind in ("map", "unit encoder", "free encoder"))
    differs = float(np.abs(np.subtract(found, exact)).max()) > 0.1
    return [
        {
            "sentence": "consolidation",
            "status": "needs an assumption" if hard else "refuted",
            "text": f"hard routing: the cheapest of {len(ratios):,} splits costs {min(ratios):.4f} times one group; "
            "orthogonal directions split at no cost, and soft routing can cost less",
        },
        {
            "sentence": "soft-routing",
            "status": "needs an assumption" if example["best"] < example["single"] else "undecided",
            "text": f"two tokens on {{0,1}} and {{0,2}} at p = 0.3, lam = 0.4: {example['best']:.4f} against "
            f"{example['single']:.4f} of one group; less in {gains:.0f} of {np.size(soft['ratio'])} cells of the grid; "
            f"{deepest:.3f} of one group at d = {DIMS[-1]}",
        },
        {
            "sentence": "uniqueness",
            "status": "supported" if identified else "refuted",
            "text": f"hard routing: maps of two descents within {unique['maps']:.1g} of the closed form; rank and "
            f"angle off D_k E_k within {unique['read off']:.1g}, off D_k alone wrong by {unique['read off D']:.2g}",
        },
        {
            "sentence": "released-variant",
            "status": "refuted" if differs else "undecided",
            "text": f"spectrum {_listed(SPECTRUM)}, lam = {released['lams'][middle]:.2f}: gains {_listed(exact)} under "
            f"the map penalty; under the decoder penalty {_listed(found)} with unit encoder rows, {_listed(free)} free",
        },
    ]


def _listed(values: Sequence[float]) -> str:
    return "/".join(f"{v:.2f}" for v in values)


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Two rows of three panels: hard routing above, soft routing and the released penalty below."""
    from matplotlib.figure import Figure as Picture

    numbers = result["numbers"]
    picture = Picture(figsize=(15, 9), layout="constrained")
    axes = picture.subplots(2, 3)
    _draw_shared(picture, axes[0, 0], numbers["shared"])
    _draw_random(picture, axes[0, 1], numbers["random"])
    _draw_splits(axes[0, 2], numbers["splits"])
    _draw_soft(picture, axes[1, 0], numbers["soft"])
    _draw_family(axes[1, 1], numbers["family"])
    _draw_released(axes[1, 2], numbers["released"])
    for ax in axes.flat:
        ax.title.set_fontsize(11)
    return {"figure": picture}


def _surface(picture: Any, ax: Any, x: list, y: list, extra: list, levels: list[float]) -> None:
    """Extra cost in % as a surface with labelled contours."""
    most = float(np.max(extra))
    # the darkest blues are left out: contour labels must stay readable
    filled = ax.pcolormesh(x, y, extra, cmap="Blues", shading="nearest", vmin=0, vmax=1.7 * most, rasterized=True)
    lines = ax.contour(x, y, extra, levels=levels, colors="0.25", linewidths=0.7)
    ax.clabel(lines, fmt="%g %%", fontsize=8)
    picture.colorbar(filled, ax=ax, label="extra cost over one group (%)").ax.set_ylim(0, most)


def _draw_shared(picture: Any, ax: Any, shared: dict) -> None:
    _surface(picture, ax, shared["shares"], shared["angles"], shared["extra"], [5, 20, 40, 60, 80])
    ax.plot([1, 1], [0, 90], color="#d62728", lw=4, clip_on=False, label="one group: no extra cost")
    ax.plot([0], [90], "o", color="#ff7f0e", ms=9, clip_on=False, label="orthogonal parts: none either")
    ax.set(xlabel="share of direction 2 in the group of direction 1", ylabel="angle between the directions (degrees)",
           title=f"Hard: two directions shared between two groups (lam = {LAM})", yticks=range(0, 91, 15))  # fmt: skip
    ax.legend(loc="upper center", fontsize=9)


def _draw_random(picture: Any, ax: Any, random: dict) -> None:
    _surface(picture, ax, random["q"], random["lams"], random["extra"], [10, 50, 90])
    ax.axhline(2, color="0.4", lw=1, ls=":")
    ax.annotate("beyond lam = 2 sigma nothing is kept", (0.5, 2.25), ha="center", fontsize=9)
    ax.set(xlabel="probability of group 2", ylabel="lam / sigma", yscale="log",
           title="Hard: isotropic slice, tokens routed at random")  # fmt: skip


def _draw_splits(ax: Any, splits: dict) -> None:
    for (name, cell), colour in zip(splits.items(), PALETTE, strict=True):
        ax.scatter(cell["outside"], cell["ratio"], s=11, color=colour, alpha=0.6, lw=0, label=name)
    ax.axhline(1, color="0.2", lw=1)
    ax.set(
        xlabel="energy outside the larger group",
        ylabel="cost over one group",
        title="Hard: splits of random slices, d = 3",
    )
    ax.legend(fontsize=8.5, loc="upper left", markerscale=2)


PALETTE = ("#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#ff7f0e", "#d62728")


def _draw_soft(picture: Any, ax: Any, soft: dict) -> None:
    filled = ax.pcolormesh(soft["angles"], soft["lams"], soft["ratio"], cmap="YlOrRd_r", shading="nearest",
                           vmin=0.5, vmax=1, rasterized=True)  # fmt: skip
    ax.plot(soft["edge angles"], soft["edge"], color="0.15", lw=1.2, ls="--", label="explicit maps of C4 win below")
    ax.plot(*EXAMPLE, "o", color="#1f77b4", ms=8, label="the example, p = 0.3, lam = 0.4")
    ax.set(xlabel="angle p (radians)", ylabel="lam", title="Soft: tokens on groups {0, 1} and {0, 2}, best maps",
           xlim=(soft["angles"][0], soft["angles"][-1]), ylim=(soft["lams"][0], soft["lams"][-1]))  # fmt: skip
    ax.legend(fontsize=9, loc="upper right")
    picture.colorbar(filled, ax=ax, label="cost over one group")


def _draw_family(ax: Any, family: list[dict]) -> None:
    for one, colour in zip(family, PALETTE, strict=False):
        ax.plot(DIMS, one["ratios"], "o-", color=colour, label=f"p = {one['angle']:g}, lam = {one['lam']:g}")
    ax.plot(DIMS, [1 / d for d in DIMS], color="0.2", ls="--", label="1/d, never reached")
    ax.set(xlabel="dimension d", ylabel="cost over one group", title="Soft: the family that gains most (s = 2)",
           xscale="log", yscale="log", xticks=DIMS, xticklabels=DIMS)  # fmt: skip
    ax.minorticks_off()
    ax.set_yticks([0.05, 0.1, 0.2, 0.5, 1], ["0.05", "0.1", "0.2", "0.5", "1"])
    ax.legend(fontsize=9)


def _draw_released(ax: Any, released: dict) -> None:
    for j, (energy, colour) in enumerate(zip(SPECTRUM, PALETTE, strict=False)):
        ax.plot(released["lams"], [v[j] for v in released["map"]], color=colour, label=f"on maps, sigma = {energy:g}")
    lines = ax.plot(released["lams"], released["unit encoder"], "s--", color="#d62728", ms=4, lw=1)
    lines[0].set_label("on decoder rows, unit encoder rows")
    ax.axhline(1, color="0.3", ls=":", label="on decoder rows, free encoder: all at 1 in the limit")
    ax.set(
        xlabel="lam", ylabel="singular values of the best map", title="One slice under both nuclear penalties (r = 3)"
    )
    ax.set(ylim=(-0.03, 1.6), yticks=np.linspace(0, 1, 6))  # room for the legend
    ax.legend(fontsize=8.5, loc="upper right")


figures.register("consolidation")(
    Figure(
        name="consolidation",
        title="C: what a slice costs when groups share it",
        run=run,
        draw=draw,
        budget={"quick": 60.0, "standard": 20 * 60.0, "paper": 60 * 60.0},
    )
)
