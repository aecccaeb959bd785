"""The pictures of figure E6: circles in the raw states and in a group, and the group that holds all dates."""

import math
from typing import Any

import numpy as np

COLOURS = {"weekday": "#0072b2", "month": "#d55e00", "year": "#009e73"}


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """The circles as "figure", the group for all dates as "group"."""
    return {"figure": _circles(result["numbers"]), "group": _group(result["numbers"])}


def _circles(numbers: dict[str, Any]) -> Any:
    """Two rows (weekdays, months): the raw plane, the plane of SASA's group, and R2 over the blocks."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(13, 8.4), layout="constrained")
    axes = picture.subplots(2, 3)
    for row, name in enumerate(numbers["layers"]):
        here, hook = numbers["here"], numbers["hook"]
        raw = numbers["layers"][name][here]
        _draw_plane(axes[row, 0], raw, f"{name}s, raw states at {hook}")
        best = numbers["dictionaries"]["sasa"][name]
        title = f"{name}s, SASA group {best['unit']} (F1 {best['f1']:.2f})"
        if best["ring"]:
            _draw_plane(axes[row, 1], best["ring"], title)
        else:
            axes[row, 1].set_title(title + ": silent on the words")
            axes[row, 1].set_axis_off()
        r2 = [fit["r2"] for fit in numbers["layers"][name]]
        axes[row, 2].plot(range(len(r2)), r2, "o-", color="#33658a", ms=4)
        axes[row, 2].axvline(here, color="0.6", lw=1, ls=":")
        axes[row, 2].set(xlabel="input of block", ylabel="circular R2 of the raw class means", ylim=(0, 1.02))
    return picture


def _draw_plane(ax: Any, fit: dict[str, Any], title: str) -> None:
    from matplotlib import colormaps

    plane, cloud = np.array(fit["plane"]), np.array(fit["cloud"])
    n = len(plane)
    colours = colormaps["twilight_shifted"](0.08 + 0.84 * np.arange(n) / n)
    for w in range(n):
        ax.scatter(cloud[:, w, 0], cloud[:, w, 1], s=7, color=colours[w], alpha=0.35, lw=0)
    ring = np.vstack([plane, plane[:1]])
    ax.plot(ring[:, 0], ring[:, 1], color="0.45", lw=1)
    radius = float(np.hypot(*plane.T).mean())
    turn = np.linspace(0, 2 * math.pi, 200)
    ax.plot(radius * np.cos(turn), radius * np.sin(turn), color="0.75", lw=1, ls="--")
    for w, word in enumerate(fit["words"]):
        ax.scatter(*plane[w], s=46, color=colours[w], edgecolor="black", lw=0.6, zorder=3)
        ax.annotate(word[:3], plane[w], xytext=(5, 4), textcoords="offset points", fontsize=9)
    ax.set_aspect("equal", "datalim")
    ax.set_title(f"{title}\nR2 {fit['r2']:.2f}, p {fit['p_value']:.2g}", fontsize=10)
    ax.tick_params(labelsize=8)


def _group(numbers: dict[str, Any]) -> Any:
    """Principal components of the group's coordinates by category, its two rings, and profiles along sentences."""
    from matplotlib.figure import Figure as Picture

    group = numbers["group"]
    picture: Any = Picture(figsize=(15, 10.5), layout="constrained")
    above, below = picture.subfigures(2, 1, height_ratios=(1.15, 1))
    first, *rings = above.subplots(1, 3)
    _components(first, group)
    for ax, (name, ring) in zip(rings, group["rings"].items(), strict=True):
        title = f"{name}s in group {group['unit']} (AUC {group['auc'][name]:.2f})"
        if ring is None:
            ax.set_title(f"{title}: silent on the words", fontsize=10)
            ax.set_axis_off()
        else:
            _draw_plane(ax, ring, title)
    for ax, profile in zip(below.subplots(len(numbers["profiles"]), 1), numbers["profiles"], strict=True):
        _profile(ax, profile)
    ax.legend(frameon=False, fontsize=9, ncols=len(profile["norms"]), loc="upper left", bbox_to_anchor=(0, -0.35))
    below.supylabel("norm of the group's code", fontsize=10)
    return picture


def _components(ax: Any, group: dict[str, Any]) -> None:
    found = group["components"]
    ax.set_title(f"group {group['unit']}, AUC for dates {group['auc']['all']:.2f}", fontsize=10)
    if found is None:
        ax.set_axis_off()
        return
    for name, points in found["points"].items():
        cloud, means = np.array(points["cloud"]).reshape(-1, 2), np.array(points["means"]).reshape(-1, 2)
        ax.scatter(*cloud.T, s=6, color=COLOURS[name], alpha=0.25, lw=0)
        share = group["firing_share"][name]
        ax.scatter(*means.T, s=34, color=COLOURS[name], edgecolor="black", lw=0.5, label=f"{name} (on for {share:.0%})")
        for word, place in zip(points["words"], means, strict=True):
            ax.annotate(
                word if name == "year" else word[:3], place, xytext=(4, 3), textcoords="offset points", fontsize=7
            )
    first, second = found["shares"]
    ax.set(xlabel=f"component 1 ({first:.0%} of the variance)", ylabel=f"component 2 ({second:.0%})")
    ax.legend(frameon=False, fontsize=8)
    ax.tick_params(labelsize=8)


def _profile(ax: Any, profile: dict[str, Any]) -> None:
    places = np.arange(len(profile["tokens"]))
    width = 0.8 / len(profile["norms"])
    for i, (label, values) in enumerate(profile["norms"].items()):
        ax.bar(places - 0.4 + (i + 0.5) * width, values, width, label=label, color=("0.3", *COLOURS.values())[i % 4])
    # mathtext and line breaks of a token would be taken for markup
    ax.set_xticks(places, [repr(token)[1:-1].replace("$", r"\$") for token in profile["tokens"]], fontsize=8)
    ax.tick_params(axis="x", rotation=30)
    ax.margins(x=0.01)
