"""Tables and the picture of figure `absorption`."""

from typing import Any

import numpy as np

from figures.registry import table
from figures.splitting_draw import COLOURS
from figures.splitting_tables import label

#: mean absorption fraction on GPT-2 small by L0 (THEORY.md E4; +-.03 from run to run)
PUBLISHED = {
    "sasa": {30: 0.046, 60: 0.068, 120: 0.022, 240: 0.096},
    "topk": {30: 0.092, 60: 0.097, 120: 0.131, 240: 0.178},
    "batchtopk": {30: 0.093, 60: 0.191, 120: 0.339, 240: 0.262},
    "matryoshka": {30: 0.130, 60: 0.140, 120: 0.403, 240: 0.394},
}


def name_of(cell: dict[str, Any]) -> str:
    """What a cell is of: "TopK", "SASA, groups"."""
    name = label(cell["architecture"])
    return f"{name}, {cell['units']}" if cell["architecture"] == "sasa" else name


def tables(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Absorption of every architecture at every L0, SASA against its rivals, and the published numbers."""
    rows = [
        [
            name_of(cell),
            cell["l0"],
            _shown(cell, "fraction"),
            _shown(cell, "full"),
            _mean(cell["main_f1"]),
            _mean(cell["main_units"], 1),
            PUBLISHED.get(cell["architecture"], {}).get(cell["l0"]) if numbers["gpt2"] else None,
        ]
        for cell in numbers["cells"]
    ]
    left_out = "; ".join(f"{count} {reason}" for reason, count in numbers["left_out"].items())
    note = (
        f"{numbers['words']['train']} words for training, {numbers['words']['test']} held out, of which "
        f"{numbers['judged']} are found by their letter's probe and judged; {len(numbers['letters'])} letters count "
        f"({numbers['letters']}). {numbers['against']:.0%} of the words found have a state that, mean included, points "
        "away from the probe's direction, which the published rule counts as not absorbed. In brackets: 95 % interval "
        "over letters and words; after it the range over seeds. A letter that no unit tells (low F1 of main units) is "
        f"not absorbed but absent. Left out of the vocabulary: {left_out}."
    )
    columns = ["dictionary", "L0", "absorption fraction", "full absorption", "F1 of main units", "main units"]
    made = [table("First-letter absorption", [*columns, "published fraction"], rows, note)]
    rivals = [
        [
            f"SASA, {entry['units']}",
            entry["l0"],
            label(entry["rival"]),
            *(_difference(entry, name) for name in ("fraction", "full")),
        ]
        for entry in numbers["comparisons"]
    ]
    if rivals:
        made.append(
            table(
                "SASA less its rival, word by word",
                ["units", "L0", "rival", "absorption fraction", "full absorption"],
                rivals,
                "negative: SASA absorbs less; seeds averaged first. In brackets where the main units of either "
                "hardly tell the letters, so that the difference says nothing",
            )
        )
    if not numbers["gpt2"]:
        budgets = list(PUBLISHED["sasa"])
        published = [[label(name), *(values[l0] for l0 in budgets)] for name, values in PUBLISHED.items()]
        made.append(
            table(
                "Published mean absorption fraction: another model, GPT-2 small before block 7",
                ["dictionary", *(f"L0 {l0}" for l0 in budgets)],
                published,
                f"not comparable number by number: this study is of {numbers['model']}",
            )
        )
    return made


def _difference(entry: dict[str, Any], name: str) -> str:
    low, high = entry[f"{name}_interval"]
    text = f"{entry[name]:+.3f} [{low:+.3f}, {high:+.3f}]"
    return text if entry["readable"] else f"({text})"


def _mean(values: list[float | None], digits: int = 2) -> str | None:
    held = [value for value in values if value is not None]
    return f"{np.mean(held):.{digits}f}" if held else None


def _shown(cell: dict[str, Any], name: str) -> str | None:
    held = [value for value in cell[name] if value is not None]
    if not held:
        return None
    low, high = cell[f"{name}_interval"] or (float("nan"), float("nan"))
    spread = f"; {min(held):.3f} - {max(held):.3f}" if len(held) > 1 else ""
    return f"{np.mean(held):.3f} [{low:.3f}, {high:.3f}]{spread}"


QUANTITIES = (
    ("fraction", "absorption fraction"),
    ("full", "full absorption"),
    ("main_f1", "F1 of main units"),
)


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Both numbers, and how well the main units tell the letter, against L0; dots are seeds, bars 95 % intervals."""
    from matplotlib.figure import Figure as Picture

    numbers = result["numbers"]
    picture = Picture(figsize=(14, 5.4), layout="constrained")
    axes = picture.subplots(1, len(QUANTITIES))
    names = list(dict.fromkeys((cell["architecture"], cell["units"]) for cell in numbers["cells"]))
    for ax, (key, title) in zip(axes, QUANTITIES, strict=True):
        for number, (architecture, units) in enumerate(names):
            cells = [c for c in numbers["cells"] if (c["architecture"], c["units"]) == (architecture, units)]
            _line(ax, cells, key, 1.012 ** (number - len(names) / 2))
        if key == "fraction":
            for architecture, values in PUBLISHED.items():
                ax.plot(
                    list(values),
                    list(values.values()),
                    ls=(0, (1, 2)),
                    marker="x",
                    ms=5,
                    lw=1,
                    alpha=0.6,
                    color=COLOURS[architecture],
                )
            where = "published" if numbers["gpt2"] else "published, another model: GPT-2 small"
            ax.plot([], [], ls=(0, (1, 2)), marker="x", ms=5, lw=1, color="0.4", label=where)
        own = {cell["l0"] for cell in numbers["cells"]}
        # published ones where they do not lie on top of ours
        apart = {l0 for l0 in PUBLISHED["sasa"] if all(abs(l0 / other - 1) > 0.2 for other in own)}
        ticks = sorted(own | (apart if key == "fraction" else set()))
        ax.set(xscale="log", xlabel="L0 (columns)", title=title, ylim=(-0.02, None))
        ax.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        ax.minorticks_off()
        ax.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    picture.suptitle(f"First-letter absorption, {numbers['model']}, {numbers['hook']}")
    return {"figure": picture}


def _line(ax: Any, cells: list[dict[str, Any]], key: str, shift: float) -> None:
    """One architecture's means over seeds with intervals where there are, and a dot for each seed."""
    held = [(cell, values) for cell in cells if (values := [v for v in cell[key] if v is not None])]
    if not held:
        return
    first = held[0][0]
    colour = COLOURS[first["architecture"]]
    style: dict[str, Any] = {"color": colour, "marker": "o", "ms": 4, "lw": 1.4}
    if first["architecture"] == "sasa":
        style |= {"lw": 2.2, "marker": "s", "ls": "-" if first["units"] == "columns" else "--"}
        style |= {"mfc": colour if first["units"] == "columns" else "white"}
    x = [cell["l0"] * shift for cell, _ in held]
    means = np.array([np.mean(values) for _, values in held])
    bars = None
    if all(cell.get(f"{key}_interval") for cell, _ in held):
        ends = np.array([cell[f"{key}_interval"] for cell, _ in held])
        bars = np.maximum([means - ends[:, 0], ends[:, 1] - means], 0)
    ax.errorbar(x, means, bars, elinewidth=0.7, capsize=2, label=name_of(first), **style)
    for place, (_, values) in zip(x, held, strict=True):
        ax.plot([place] * len(values), values, ".", ms=3, color=colour, alpha=0.7)
