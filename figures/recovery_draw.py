"""Pictures and tables of joint recovery, from the result alone."""

from typing import Any

import numpy as np

from figures.registry import table

WITH, WITHOUT = "#33658a", "#c8553d"


def shares(ablation: list[dict[str, Any]], name: str, splits: bool) -> list[float]:
    """The share found of every seed of a variant."""
    return [one["found"] for one in ablation if one["variant"] == name and one["splits"] == splits]


def mean_found(ablation: list[dict[str, Any]], name: str, splits: bool) -> float:
    """Its mean over seeds."""
    return float(np.mean(shares(ablation, name, splits)))


def tables(
    ablation: list[dict[str, Any]], yardsticks: list[dict[str, Any]], fresh: list[dict[str, Any]], found: float
) -> dict[str, Any]:
    """Each variant with and without splits, the recipe on seeds that splitting was not made on, the yardsticks."""
    columns = {
        "found": f"found (capture >= {found})",
        "capture": "mean capture",
        "rank_error": "|rank error|",
        "spearman": "Spearman",
        "dead_share": "dead share",
        "most_features_a_group": "most features a group",
    }
    rows = []
    for name in dict.fromkeys(one["variant"] for one in ablation):
        for splits in (True, False):
            cells = [one for one in ablation if one["variant"] == name and one["splits"] == splits]
            if cells:
                values = ([one[key] for one in cells if one[key] is not None] for key in columns)
                rows.append([name, "yes" if splits else "no", *(_spread(held) for held in values)])
    for world in dict.fromkeys(one["world"] for one in fresh):
        cells = [one for one in fresh if one["world"] == world]
        seeds = [one["seed"] for one in cells]
        values = ([one[key] for one in cells if one[key] is not None] for key in columns)
        rows.append([f"recipe, {world} world, fresh seeds {min(seeds)} to {max(seeds)}", "yes", *map(_spread, values)])
    for name in dict.fromkeys(one["name"] for one in yardsticks):
        cells = [one for one in yardsticks if one["name"] == name]
        values = ([one[key] for one in cells if one[key] is not None] for key in columns)
        rows.append([name, None, *map(_spread, values)])
    note = (
        "Mean (smallest to largest of the seeds). One part of the recipe changed at a time; K groups for K features. "
        "K-lines and K-subspaces on rows with one feature each; PCA and K-lines have units of one direction. No "
        "published values known; the project's first trial: captures .37 to .68 (8 features of 3 dimensions in R^32)."
    )
    return table("Joint recovery: the recipe and its parts", ["variant", "splits", *columns.values()], rows, note)


def check_table(check: list[dict[str, Any]], at: tuple[float, float], found: float) -> dict[str, Any]:
    """What training reaches at one place of the second diagram, and from where."""
    names = ("objective", "found", "capture", "rank_error", "dead_share", "most_features_a_group")
    rows = [[one["start"], f"{one['objective']:.4f}", *(_spread([one[name]]) for name in names[1:])] for one in check]
    note = (
        f"r / d = {at[0]:g}, lam / sigma_d = {at[1]:g}, first seed. Objective: squared error and nuclear penalty on "
        "held-out rows, in units of a feature's energy. Long: four times the steps, the penalty warmed up over all of "
        "them; truth: started at the planted subspaces, without splits. No published values known."
    )
    columns = ["training", "objective", f"found (capture >= {found})", "mean capture", "|rank error|", "dead share"]
    return table("Is it C6 or training?", [*columns, "most features a group"], rows, note)


def _spread(values: list[float]) -> str | None:
    if not values:
        return None
    return f"{np.mean(values):.2f}" + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Bars of the ablation and the yardsticks, one point a seed; below both phase diagrams, without and with splits."""
    from matplotlib.figure import Figure as Picture

    numbers = result["numbers"]
    ablation = numbers["ablation"]
    names = list(dict.fromkeys(one["variant"] for one in ablation))
    yardsticks = list(dict.fromkeys(one["name"] for one in numbers["yardsticks"]))
    lines = 0.36 * (len(names) + len(yardsticks))
    picture = Picture(figsize=(15, 4.5 + lines), layout="constrained")
    above, below = picture.subfigures(2, 1, squeeze=False, height_ratios=(lines + 0.8, 3.7)).flat
    ax = above.subplots()
    for offset, splits, colour, text in ((-0.2, True, WITH, "with splits"), (0.2, False, WITHOUT, "without")):
        for i, name in enumerate(names):
            held = shares(ablation, name, splits)
            if held:
                ax.barh(i + offset, np.mean(held), 0.36, color=colour, alpha=0.55, label=text if i == 0 else None)
                ax.plot(held, [i + offset] * len(held), "o", color=colour, ms=4)
    for i, name in enumerate(yardsticks, start=len(names)):
        held = [one["found"] for one in numbers["yardsticks"] if one["name"] == name]
        ax.barh(i, np.mean(held), 0.36, color="0.6", label="no training" if i == len(names) else None)
        ax.plot(held, [i] * len(held), "o", color="0.35", ms=4)
    ax.axvline(numbers["goal"], color="0.3", lw=1, ls=":", label="goal")
    ax.set_yticks(range(len(names) + len(yardsticks)), names + yardsticks)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.01), xlabel=f"share of features found (capture >= {numbers['found']})")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    panels = below.subplots(1, 4)
    phases = (("by_load", "active", "load", "features on in a row, s", "load, sum d / D"), _RANK)
    image = None
    for axes, (key, x, y, xlabel, ylabel) in zip((panels[:2], panels[2:]), phases, strict=True):
        for ax, kind, text in zip(axes, ("without", "with"), ("without splits", "with splits"), strict=True):
            image = _grid(ax, numbers[key], x, y, kind)
            ax.set(xlabel=xlabel, ylabel=ylabel, title=text)
    below.colorbar(image, ax=panels, label="share found", shrink=0.9)
    return {"figure": picture}


def _grid(ax: Any, cells: list[dict[str, Any]], x: str, y: str, kind: str) -> Any:
    columns, rows = (sorted({cell[name] for cell in cells}) for name in (x, y))
    share = np.full((len(rows), len(columns)), np.nan)
    for cell in cells:
        share[rows.index(cell[y]), columns.index(cell[x])] = np.mean(cell[kind])
    image = ax.imshow(share, origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(share):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="w" if value < 0.6 else "k", fontsize=9)
    ax.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    ax.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    return image


_RANK = ("by_rank", "share", "ratio", "lam / sigma_d", "r / d")
