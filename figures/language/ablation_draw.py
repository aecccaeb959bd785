"""Tables and picture of the figure `ablation`."""

from typing import Any

import numpy as np

from figures.registry import spread, table

TITLES = {
    "dictionary": "vector dictionaries",
    "rank": "rank of the groups, no penalty, tuned rate and half of it",
    "decoder": "coefficient of the decoder penalty",
    "map": "share of the map penalty",
    "recipe": "recipe at the study's rank, no penalty",
}


GAP = {
    "all": "SASA, tuned rate, no penalty, less TopK",
    "signs": "AbsTopK less TopK (codes of either sign)",
    "blocks": "SASA, best recipe, less AbsTopK (choice by blocks)",
    "recipe": "SASA less SASA, best recipe",
    "best": "SASA, best recipe, less TopK",
}


def tables(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each variant."""
    rows = [
        [
            TITLES[one["part"]],
            one["name"],
            *(spread(one[key], digits) for key, digits in COLUMNS.values()),
            _against(numbers, one),
        ]
        for one in numbers["results"]
    ]
    gap = numbers["gap"]
    return [
        table(
            "From TopK to SASA",
            ["step", "explained variance", "95 %"],
            [
                [label, gap[key]["value"], "{:+.4f} to {:+.4f}".format(*gap[key]["interval"])]
                for key, label in GAP.items()
            ],
            f"Best recipe of those tried at the rank: {gap['best_recipe']}. Blocks of held-out rows drawn again, "
            "seeds averaged (one seed for coefficients).",
        ),
        table(
            "One thing moved at a time",
            ["part", "variant", *COLUMNS, "explained variance less TopK's, same seeds"],
            rows,
            f"L0 {numbers['l0']}, about {numbers['columns']} columns, {numbers['tokens']} tokens; mean ± standard "
            "deviation over seeds. A share of the map penalty is of D / columns = "
            f"{numbers['unit']:.3g}, the energy a column carries on average.",
        ),
    ]


COLUMNS = {
    "explained variance (higher better)": ("explained_variance", 4),
    "silent share": ("dead", 3),
    "mean 90 % rank": ("rank90", 2),
    "mean stable rank": ("stable_rank", 2),
    "mean largest |cosine| of decoder rows": ("decoder_cosine", 3),
}


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Explained variance of every variant, seeds as points; ranks against the coefficient on the right."""
    from matplotlib.figure import Figure as Picture

    numbers = result["numbers"]
    results = numbers["results"]
    picture = Picture(figsize=(14, 7.5), layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=(2, 1))
    colours = dict(zip(TITLES, ("#d55e00", "#0072b2", "#c8553d", "#33658a", "#009e73"), strict=True))
    for y, one in enumerate(results):
        values = one["explained_variance"]
        left.plot(values, [y] * len(values), "o", ms=4, color=colours[one["part"]])
        left.plot([np.mean(values)], [y], "|", ms=14, color=colours[one["part"]])
    left.set_yticks(range(len(results)), [f"{one['part']}: {one['name']}" for one in results], fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="explained variance (higher better)", title=f"L0 {numbers['l0']}")
    left.grid(alpha=0.2)
    for part in ("decoder", "map"):
        ranks = {one["name"].split(",")[0] for one in results if one["part"] == part}
        for rank, mark in zip(sorted(ranks, key=lambda name: int(name.removeprefix("r="))), "osD^v", strict=False):
            runs = [one for one in results if one["part"] == part and one["name"].split(",")[0] == rank]
            none = next(one for one in results if one["part"] == "rank" and f"r={one['name']}" == rank)  # tuned rate
            points = [(np.mean(one["rank90"]), np.mean(one["explained_variance"])) for one in (none, *runs)]
            right.plot(
                *zip(*points, strict=True), f"{mark}-", ms=5, color=colours[part], label=f"penalty {part}, {rank}"
            )
    right.set(xlabel="mean 90 % rank of the groups that fire", ylabel="explained variance", title="what rank costs")
    right.grid(alpha=0.2)
    right.legend(fontsize=8)
    picture.suptitle(f"{numbers['model']}, {numbers['hook']}")
    return {"figure": picture}


def _against(numbers: dict[str, Any], one: dict[str, Any]) -> str | None:
    topk = next(other for other in numbers["results"] if other["name"] == "topk")["explained_variance"]
    return spread([a - b for a, b in zip(one["explained_variance"], topk, strict=False)], 4)
