"""Tables and pictures of the figure `published-benchmarks`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from figures.published_recipe import LOOSE, MANIFOLD, SASAS, SYNTH, VECTORS
from figures.registry import table
from figures.splitting_draw import COLOURS as SHARED

#: R^2 of arXiv:2606.25234: a range for the featurizers (which of the three is where is not known to us)
PUBLISHED_R2 = {
    "bsf": (0.93, 0.97),
    "grassmannian": (0.93, 0.97),
    "grouplasso": (0.93, 0.97),
    "topk": (0.53, 0.53),
    "oracle": (0.99, 0.99),
}
#: F1, MCC and explained variance of arXiv:2602.14687 at L0 25, after 200 million rows
PUBLISHED_DETECTION = {"batchtopk": (0.73, 0.76, 0.79), "matryoshka": (0.88, 0.79, 0.78)}
PUBLISHED_ROWS = 200e6
LABELS = {
    "sasa": "SASA",
    "bsf": "BSF",
    "grassmannian": "Grassmannian",
    "grouplasso": "group lasso, L0 16",
    LOOSE: "group lasso, loose",
    "topk": "TopK",
    "abstopk": "AbsTopK",
    "batchtopk": "BatchTopK",
    "matryoshka": "Matryoshka",
    "relu": "ReLU",
    "jumprelu": "JumpReLU",
    "gated": "Gated",
    **{model: model.replace("sasa", "SASA") for model in SASAS},
}
COLOURS = {
    **{name: SHARED[name] for name in (*VECTORS, "sasa", "bsf", "grassmannian", "grouplasso")},
    LOOSE: "#5a8f3c",
    **dict(zip(SASAS, ("#56b4e9", "#0072b2"), strict=True)),
}
QUANTITIES = (("f1", "F1"), ("mcc", "MCC"), ("explained", "explained variance"))


def longest(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells trained on the most rows."""
    most = max(cell["rows"] for cell in cells)
    return [cell for cell in cells if cell["rows"] == most]


def models(factors: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Label -> its seeds at full length, dictionaries first, then the yardsticks."""
    cells = longest(factors["cells"])
    out = {}
    for budget, names in MANIFOLD.items():
        for name in names:
            if seeds := [cell for cell in cells if (cell["model"], cell["budget"]) == (name, budget)]:
                out[_label(name, budget)] = seeds
    return out | factors["yardsticks"]


def _label(model: str, budget: str) -> str:
    return LABELS[model] + (", bits" if budget == "bits" else "")


def published(model: str, budget: str) -> str | None:
    """The published R^2 of a model as text; None where there is none, or it is of another budget than this."""
    if model not in PUBLISHED_R2 or budget == "bits":
        return None
    low, high = PUBLISHED_R2[model]
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean


def tables(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Both benchmarks at full length, and what was reached with fewer rows."""
    factors, detections = numbers["factors"], numbers["detections"]
    kinds = list(factors["oracle"])
    named = {_label(m, b): (m, b) for b, names in MANIFOLD.items() for m in names}
    rows: list[list[Any]] = []
    for name, seeds in models(factors).items():
        theirs = published(*named[name]) if name in named else None
        ours = [spread([one["r2"][kind] for one in seeds]) for kind in kinds]
        costs = [float(np.mean([one[key] for one in seeds])) for key in ("explained", "l0", "bits", "presence", "dead")]
        rows.append([name, ours[0], theirs, *ours[1:], *(round(c, 3) for c in costs)])
    rows.append(["oracle", spread([factors["oracle"]["all"]]), published("oracle", "columns")])
    rows[-1] += [spread([factors["oracle"][kind]]) for kind in kinds[1:]] + [None] * 5
    most = max(cell["rows"] for cell in factors["cells"])
    costs_of = ["explained variance", "L0", "bits", "presence F1", "dead share"]
    result = [
        table(
            f"manifold-superposition: R^2 per factor after {most:,} rows",
            ["model", "R^2, all factors", "published", *kinds[1:], *costs_of],
            rows,
            "R^2 of one block, or of the d_i best columns; mean over factors, ± standard deviation over seeds. K-lines "
            "and K-subspaces are measured on rows with one factor each, unless four are on. Oracle: least squares on "
            "the frames that are truly on. Bits: log2 C(n, active) and 3.3 a coefficient. Published runs saw a few "
            "hundred epochs over 300,000 rows.",
        ),
        _synth_table(detections),
        _search_table(detections["search"]),
    ]
    lengths = sorted({cell["rows"] for cell in factors["cells"]})
    if len(lengths) > 1:
        first = min(cell["seed"] for cell in factors["cells"])
        of = {(c["model"], c["budget"], c["rows"]): c for c in factors["cells"] if c["seed"] == first}
        pairs = dict.fromkeys((model, budget) for model, budget, _ in of)
        shorter = [[_label(m, b), *(round(of[m, b, n]["r2"]["all"], 3) for n in lengths)] for m, b in pairs]
        note = f"Seed {first}; each column is a run of its own, with its learning rate brought to zero."
        columns = ["model", *(f"{n:,} rows" for n in lengths)]
        result.append(table("manifold-superposition: R^2 against rows trained", columns, shorter, note))
    return result


def _synth_table(detections: dict[str, Any]) -> dict[str, Any]:
    rows: list[list[Any]] = []
    keys = ("precision", "recall", "uniqueness", "l0", "bits", "dead")
    for name in SYNTH:
        lengths = sorted({cell["rows"] for cell in detections["cells"] if cell["model"] == name})
        for n in lengths:
            seeds = [cell for cell in detections["cells"] if cell["model"] == name and cell["rows"] == n]
            ours = [spread([one[key] for one in seeds]) for key, _ in QUANTITIES]
            theirs = PUBLISHED_DETECTION.get(name, (None,) * 3)
            more = [round(float(np.mean([one[key] for one in seeds])), 3) for key in keys]
            row = [LABELS[name], f"{n:,}", f"{n / PUBLISHED_ROWS:.2%}"]
            rows.append([*row, *(v for pair in zip(ours, theirs, strict=True) for v in pair), *more])
    for name, one in detections["yardsticks"].items():
        ours = [spread([one[key]]) for key, _ in QUANTITIES]
        rows.append(
            [name, None, None, *(v for value in ours for v in (value, None)), *(round(one[key], 3) for key in keys)]
        )
    columns = [
        "model",
        "rows trained",
        "share of the published rows",
        *(v for _, text in QUANTITIES for v in (text, "published")),
    ]
    return table(
        f"synthsaebench-16k, {detections['width']:,} columns, L0 25",
        [*columns, "precision", "recall", "uniqueness", "L0", "bits", "dead share"],
        rows,
        "Published after 200 million rows with 4,096 columns. Planted truth: the most frequent directions, the 25 of "
        "largest product on. PCA: 25 directions. K-lines: fitted with one line a row, coded by 25 steps of matching "
        "pursuit; K-subspaces has no place here, for features are single directions. Random: directions or blocks that "
        "were not trained. A block's similarity to a feature is the cosine with its span.",
    )


def _search_table(search: dict[str, Any]) -> dict[str, Any]:
    grid, rates = search["grid"], sorted({cell["lr"] for cell in search["grid"]})
    found = {(cell["model"], cell["lr"]): cell for cell in grid}
    rows = [
        [
            LABELS[name],
            *(f"{1 - cell['unexplained']:.3f} ({cell['l0']:.1f})" for lr in rates if (cell := found[name, lr])),
            f"{search['chosen'][name]:g}",
        ]
        for name in dict.fromkeys(cell["model"] for cell in grid)
    ]
    note = (
        f"Held-out explained variance (L0) after {search['steps']:,} steps of {search['batch']} rows, one seed that is "
        "none of the figure's. Taken: the best of those with at most 15 % more than L0 25."
    )
    columns = ["model", *(f"rate {lr:g}" for lr in rates), "taken"]
    return table("synthsaebench-16k: the search for learning rates", columns, rows, note)


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Per-factor recovery as "figure", SynthSAEBench against rows trained as "synthsaebench"."""
    numbers = result["numbers"]
    return {"figure": _factors(numbers["factors"]), "synthsaebench": _synth(numbers["detections"])}


def _factors(factors: dict[str, Any]) -> Any:
    """Left: mean R^2 of every seed beside the published; right: by kind of manifold; below: against rows trained."""
    from matplotlib.figure import Figure as Picture

    shown = models(factors)
    names = [*shown, "oracle"]
    kinds = list(factors["oracle"])
    lengths = sorted({cell["rows"] for cell in factors["cells"]})
    picture = Picture(figsize=(15, 8.6 + 3.6 * (len(lengths) > 1)), layout="constrained")
    mosaic = [["means", "kinds"], ["curves", "curves"]][: 1 + (len(lengths) > 1)]
    axes: dict[str, Any] = picture.subplot_mosaic(mosaic, width_ratios=[1, 1.25], height_ratios=[2.4, 1][: len(mosaic)])
    ax = axes["means"]
    named = {_label(m, b): (m, b) for b, of in MANIFOLD.items() for m in of}
    for y, name in enumerate(names):
        model, budget = named.get(name, (name, "columns"))
        values = [one["r2"]["all"] for one in shown[name]] if name in shown else [factors["oracle"]["all"]]
        ax.plot(values, [y] * len(values), "o", ms=6, color=COLOURS.get(model, "0.35"), alpha=0.75)
        if published(model, budget):
            low, high = PUBLISHED_R2[model]
            ax.plot([low, high], [y, y], "-D", color="k", mfc="none", ms=8, lw=1)
    ax.plot([], [], "o", color="0.35", label="ours, a dot a seed")
    ax.plot([], [], "-D", color="k", mfc="none", label="published (range)")
    ax.set_yticks(range(len(names)), names)
    low = min(0.0, *(one["r2"]["all"] for seeds in shown.values() for one in seeds))
    edges = {"ylim": (len(names) - 0.5, -0.5), "xlim": (max(low, -0.5) - 0.03, 1.03)}
    ax.set(**edges, xlabel="$R^2$ per factor, mean over factors")
    ax.grid(alpha=0.25)
    ax.legend(loc="upper left", fontsize=9)
    grid = [[np.mean([one["r2"][kind] for one in shown[name]]) for kind in kinds] for name in shown]
    grid.append([factors["oracle"][kind] for kind in kinds])
    ax = axes["kinds"]
    ax.imshow(np.clip(grid, 0, 1), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color="k" if value > 0.6 else "w")
    ax.set_xticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds], rotation=30, ha="right")
    ax.set_yticks([])
    ax.set_title("by kind of manifold", fontsize=11)
    if len(lengths) > 1:
        _curves(axes["curves"], factors["cells"])
    picture.suptitle(f"manifold-superposition after {lengths[-1]:,} rows: one block, or the $d_i$ best columns")
    return picture


def _curves(ax: Any, cells: Sequence[dict[str, Any]]) -> None:
    """R^2 of the first seed against rows trained."""
    first = min(cell["seed"] for cell in cells)
    for name in MANIFOLD["columns"]:
        mine = [c for c in cells if (c["model"], c["budget"], c["seed"]) == (name, "columns", first)]
        if mine := sorted(mine, key=lambda cell: cell["rows"]):
            style = {"ls": "--" if name in VECTORS else "-", "color": COLOURS[name], "label": LABELS[name]}
            ax.plot([c["rows"] for c in mine], [c["r2"]["all"] for c in mine], marker="o", ms=4, **style)
    ax.set(xscale="log", xlabel="rows trained (a run each)", ylabel="$R^2$, mean over factors")
    ax.grid(alpha=0.25)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)


def _synth(detections: dict[str, Any]) -> Any:
    """F1, MCC and explained variance against rows trained; stars: published; lines: the yardsticks."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(15, 5.8), layout="constrained")
    named: dict[str, Any] = {}
    dashes: tuple[Any, ...] = ("-", ":", "--", "-.", (0, (1, 4)), (0, (6, 2, 1, 2, 1, 2)))
    for which, (ax, (key, text)) in enumerate(zip(picture.subplots(1, 3), QUANTITIES, strict=True)):
        for name in SYNTH:
            cells = sorted((c for c in detections["cells"] if c["model"] == name), key=lambda cell: cell["rows"])
            if cells:
                rows = sorted({cell["rows"] for cell in cells})
                means = [np.mean([c[key] for c in cells if c["rows"] == n]) for n in rows]
                ax.plot(rows, means, "o-", ms=4, color=COLOURS[name], label=LABELS[name])
        for name, values in PUBLISHED_DETECTION.items():
            star = {"marker": "*", "ms": 14, "ls": "none", "mec": "k", "color": COLOURS[name]}
            ax.plot(PUBLISHED_ROWS, values[which], **star, label=f"{LABELS[name]}, published")
        for dash, (name, one) in zip(dashes, detections["yardsticks"].items(), strict=False):
            ax.axhline(one[key], color="0.4", lw=1.2, ls=dash, label=name)
        ax.set(xscale="log", xlabel="rows trained (a run each)", title=text, ylim=(min(0.0, *ax.get_ylim()), 1.02))
        ax.grid(alpha=0.25)
        named |= {label: line for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    picture.legend(named.values(), named.keys(), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    picture.suptitle(f"synthsaebench-16k, {detections['width']:,} columns, L0 25")
    return picture
