"""Tables and picture of the figure `matched-budget`."""

from typing import Any

import numpy as np

from figures.language.concepts_draw import COLOURS, LABELS
from figures.registry import spread, table

PANELS = (
    ("measured_l0", "explained_variance", "L0 (columns)", "explained variance (higher better)"),
    ("bits", "explained_variance", "bits a token", "explained variance (higher better)"),
    ("measured_l0", "ce", "L0 (columns)", "CE score (higher better)"),
    ("bits", "kl", "bits a token", "KL score (higher better)"),
    ("measured_l0", "dead", "L0 (columns)", "silent units (lower better)"),
    ("measured_l0", "decoder_cosine", "L0 (columns)", "mean largest |cosine| of decoder rows"),
)
#: GPT-2 small at L0 60, an independent run of the published checkpoint (THEORY.md E4): SASA / an SAE of twice the width
PUBLISHED = {"CE": ".966 / .979", "KL": ".967 / .978", "explained variance": ".988 / .991", "cosine": ".258 / .557"}


def of(numbers: dict[str, Any], architecture: str, l0: int) -> list[dict[str, Any]]:
    """The runs of an architecture at an L0, one a seed."""
    return [one for one in numbers["results"] if one["architecture"] == architecture and one["l0"] == l0]


def names(numbers: dict[str, Any]) -> list[str]:
    """The architectures, in the order they were measured."""
    return list(dict.fromkeys(one["architecture"] for one in numbers["results"]))


def tables(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Every measure by L0 and architecture; SASA's gap; the learning rates tried."""
    rows = []
    for l0 in numbers["l0"]:
        for name in names(numbers):
            runs = of(numbers, name, l0)
            low = min(one["ce_interval"][0] for one in runs)
            high = max(one["ce_interval"][1] for one in runs)
            rows.append(
                [
                    l0,
                    LABELS[name],
                    spread([one["explained_variance"] for one in runs], 4),
                    spread([one["cosine"] for one in runs], 4),
                    spread([one["measured_l0"] for one in runs], 1),
                    spread([one["bits"] for one in runs], 0),
                    spread([one["ce"] for one in runs], 4),
                    f"{low:.4f} to {high:.4f}",
                    spread([one["kl"] for one in runs], 4),
                    spread([one["loss"] for one in runs], 3),
                    spread([one["dead"] for one in runs], 3),
                    spread([one["rank90"] for one in runs], 2),
                    spread([one["decoder_cosine"] for one in runs], 3),
                    spread([one["seconds"] for one in runs], 0),
                ]
            )
    columns = ["L0", "dictionary", "explained variance (higher better)", "cosine", "measured L0", "bits a token"]
    columns += ["CE score (higher better)", "CE 95 %", "KL score (higher better)", "spliced loss", "silent share"]
    columns += ["mean rank", "mean largest |cosine| of decoder rows", "seconds"]
    left = ", ".join(f"{count} {why}" for why, count in numbers["left"].items()) or "none"
    note = (
        f"Mean ± standard deviation over seeds. {numbers['predictions']} spliced predictions; loss "
        f"{numbers['clean']:.3f} clean, {numbers['zero']:.3f} with the states at zero, {numbers['mean']:.3f} at their "
        f"mean. Left as they are: {left}. The CE interval is over contexts, widest of the seeds. Published, GPT-2 "
        "small at L0 60, SASA / a standard SAE of twice the width: "
        + ", ".join(f"{key} {value}" for key, value in PUBLISHED.items())
    )
    gaps = [
        [
            g["l0"],
            LABELS[g["best"]],
            *_with(g["at_l0"]),
            g["bits"],
            _label(g["best_at_bits"]),
            *_with(g["at_bits"]),
            LABELS[g["best_ce"]],
            *_with(g["ce_at_l0"]),
        ]
        for g in numbers["gaps"]
    ]
    return [
        table("Dictionaries at matched L0", columns, rows, note),
        table(
            "SASA less the best of TopK, BatchTopK and Matryoshka: explained variance, and CE score",
            [
                *("L0", "best", "at equal L0", "95 %", "SASA's bits", "best at these bits", "at equal bits", "95 %"),
                *("best CE", "CE score", "CE 95 %"),
            ],
            gaps,
            "Blocks of 512 held-out rows (CE: contexts) drawn again, seeds averaged. At equal bits a dictionary is "
            "left out whose fewest bits are more than SASA's.",
        ),
        table(
            "Learning rates tried on half of the tokens",
            ["dictionary", "rate", "held-out explained variance", "L0", "used"],
            [
                [LABELS[name], float(rate), got["explained_variance"], got["l0"], "yes" if used else None]
                for name, tried in numbers["tuning"].items()
                for rate, got in tried.items()
                for used in [float(rate) == numbers["rates"][name]]
            ],
            "At the middle L0, on a seed of their own. Used is the largest explained variance of those whose L0 is "
            "within a quarter of the one asked for; where none is, the nearest L0.",
        ),
    ]


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Six panels, a line for each architecture, a point for each seed where it was measured."""
    from matplotlib.figure import Figure as Picture

    numbers = result["numbers"]
    picture = Picture(figsize=(14, 8.2), layout="constrained")
    for ax, (x, y, xlabel, ylabel) in zip(picture.subplots(2, 3).T.flat, PANELS, strict=True):
        for name in names(numbers):
            runs = [of(numbers, name, l0) for l0 in numbers["l0"]]
            points = [(float(np.mean([r[x] for r in seeds])), float(np.mean([r[y] for r in seeds]))) for seeds in runs]
            colour, wide = COLOURS[name], name == "sasa"
            ax.plot(*zip(*points, strict=True), "-", color=colour, lw=2.4 if wide else 1.4, label=LABELS[name])
            for seeds in runs:
                ax.plot([r[x] for r in seeds], [r[y] for r in seeds], "s" if wide else "o", color=colour, ms=4)
        ax.set(xlabel=xlabel, ylabel=ylabel, xscale="linear" if x == "bits" else "log")
        if x != "bits":
            ax.set_xticks(numbers["l0"], [str(l0) for l0 in numbers["l0"]])
            ax.minorticks_off()
        ax.grid(alpha=0.2)
    handles, labels = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    picture.suptitle(f"{numbers['model']}, {numbers['hook']}: dictionaries of one width")
    return {"figure": picture}


def _with(gap: "dict[str, Any] | None") -> tuple[float | None, str | None]:
    return (None, None) if gap is None else (gap["value"], f"{gap['interval'][0]:+.4f} to {gap['interval'][1]:+.4f}")


def _label(name: str | None) -> str | None:
    return None if name is None else LABELS[name]
