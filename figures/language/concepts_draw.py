"""Tables and picture of the figure `concepts`."""

from typing import Any

from figures.registry import table
from figures.splitting_draw import COLOURS as SHARED
from figures.splitting_tables import LABELS
from sasa_theory.concepts.detectors import STRONGEST

COLOURS = {**SHARED, "sasa": "#0072b2"}
WHERE = {"text": "held-out text", "templates": "templates"}
NAMES = {
    "auc": "AUC",
    "f1": "F1",
    "precision": "precision at the 99th percentile",
}


def label(architecture: str, kind: str, rank: int) -> str:
    """What a detector is: "SASA, one group", "TopK, one latent", "TopK, 4 latents"."""
    if architecture == "sasa":
        return f"SASA, one group of {rank}"
    return f"{LABELS[architecture]}, " + ("one latent" if kind == "one" else f"{rank} latents")


def tables(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Concept x detector for each place, SASA's lead over each baseline, and the words."""
    rank, out = numbers["rank"], []
    for place, where in WHERE.items():
        rows = [
            [
                entry["concept"],
                label(entry["architecture"], entry["kind"], rank),
                *(cell for name in NAMES for cell in (entry[name]["value"], _range(entry[name]["interval"]))),
                _range([min(s for s in f1 if s is not None), max(s for s in f1 if s is not None)]) if any(f1) else None,
            ]
            for entry in numbers["results"]
            if entry["place"] == place
            for f1 in [entry["f1"]["seeds"]]
        ]
        rows.sort(key=lambda row: numbers["concepts"].index(row[0]))
        columns = ["concept", "detector"]
        for name in NAMES.values():
            columns += [f"{name} (higher better)", "95 %"]
        skipped = numbers["skipped"][place]
        note = (
            f"L0 {numbers['l0']}; {numbers['rows'][place]:,} tokens; units, thresholds chosen on one half, judged on "
            "the other; intervals over its documents (templates), means over seeds. AUC is that of the units chosen by "
            "AUC, F1 and precision those of the units chosen by F1; precision is the share of concept tokens among the "
            f"strongest 1 % of firings, at least {STRONGEST}."
            + ("" if not skipped else " Not judged: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()) + ".")
        )
        out.append(table(f"Detectors of concepts, {where}", [*columns, "F1 of the seeds"], rows, note))
    out.append(
        table(
            "SASA's group less the baselines' detectors, mean over concepts",
            ["where", "measure", "baseline", "SASA leads by (higher better)", "95 %", "concepts", "won", "lost"],
            [
                [
                    WHERE[row["place"]],
                    NAMES[row["metric"]],
                    label(row["baseline"], row["kind"], rank),
                    row["value"],
                    _range(row["interval"], "+.3f"),
                    row["concepts"],
                    row["won"],
                    row["lost"],
                ]
                for row in numbers["differences"]
            ],
            "A concept is won or lost when its own 95 % interval of the difference leaves out zero.",
        )
    )
    out.append(
        table(
            "Words",
            ["concept", "tokens found in text", "most frequent", "left out as ambiguous", "split by the tokenizer"],
            [
                [
                    row["concept"],
                    row["found"],
                    ", ".join(f"{word} {count}" for word, count in list(row["counts"].items())[:8]),
                    ", ".join(row["ambiguous"]) or "none",
                    ", ".join(row["split"]) or "none",
                ]
                for row in numbers["words"]
            ],
            "A split word counts at its last token. Text: "
            f"{numbers['rows']['plain']:,} tokens as they come, the rest in contexts chosen because they hold a word.",
        )
    )
    return out


def _range(bounds: Any, form: str = ".2f") -> str | None:
    return None if bounds is None else f"{bounds[0]:{form}} to {bounds[1]:{form}}"


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """A row per concept: F1, AUC and precision in held-out text, and AUC on templates."""
    from matplotlib.figure import Figure as Picture

    numbers = result["numbers"]
    panels = [("text", "f1"), ("text", "auc"), ("text", "precision"), ("templates", "auc")]
    picture = Picture(figsize=(16, 9.5), layout="constrained")
    axes = picture.subplots(1, len(panels), sharey=True)
    names = numbers["concepts"]
    detectors = [("sasa", "one")]
    detectors += [(a, k) for a in numbers["architectures"] if a != "sasa" for k in ("one", "several")]
    step = 0.8 / len(detectors)
    for ax, (place, metric) in zip(axes, panels, strict=True):
        for i in range(1, len(names), 2):
            ax.axhspan(i - 0.5, i + 0.5, color="0.95", lw=0)
        for j, (architecture, kind) in enumerate(detectors):
            found = [
                (names.index(entry["concept"]), entry[metric])
                for entry in numbers["results"]
                if (entry["place"], entry["architecture"], entry["kind"]) == (place, architecture, kind)
                and entry[metric]["value"] is not None
            ]
            colour = COLOURS[architecture]
            style: dict[str, Any] = {"color": colour, "mfc": colour, "marker": "o", "ls": "none", "ms": 5}
            if architecture == "sasa":
                style |= {"marker": "D", "ms": 7}
            elif kind == "one":
                style["mfc"] = "white"
            places = [i - 0.4 + (j + 0.5) * step for i, _ in found]
            for y, (_, cell) in zip(places, found, strict=True):
                if cell["interval"]:
                    ax.plot(cell["interval"], [y, y], color=colour, lw=1, alpha=0.55)
            ax.plot(
                [cell["value"] for _, cell in found], places, label=label(architecture, kind, numbers["rank"]), **style
            )
        ax.set(xlabel=f"{NAMES[metric]}, {WHERE[place]}", xlim=(0.45 if metric == "auc" else -0.02, 1.02))
        ax.grid(axis="x", color="0.9", lw=0.7)
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    picture.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return {"figure": picture}
