"""What the benchmarks measured, as a picture and as tables: everything here is read from results/*.json.

`figure` shows seconds a step against K, r, L0 and batch, everything else as in the main comparison, beside the floor
that the encoder's product sets. `tables` is the Markdown between the two marks of the README.
"""

import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import OURS
from benchmarks.step import FLOOR, PRECISIONS, SWEEPS
from sasa_theory.files import read_json, write_bytes, write_text
from synthetic.errors import DataError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- benchmarks: written by `sasa-lab bench show --readme` -->", "<!-- end of benchmarks -->"
#: sweep -> key of a setting on the horizontal axis, and its label
AXES = {
    "K": ("n_groups", "groups K"),
    "r": ("rank", "rank r (12,288 columns, L0 about 60)"),
    "L0": ("l0", "active columns L0"),
    "batch": ("batch", "batch"),
}
#: what the picture draws, in this order, with colour, style and width
STYLES = {
    "sasa": ("#b2182b", "-", 2.0),
    "topk": ("#e08214", "-", 1.4),
    "batchtopk": ("#fdb863", "-", 1.4),
    "published": ("#000000", "-", 1.4),
    "restated": ("#000000", ":", 1.2),
    "sae-lens topk": ("#2166ac", "--", 1.2),
    "sae-lens batchtopk": ("#67a9cf", "--", 1.2),
    "dictionary_learning topk": ("#1b7837", "--", 1.2),
    "sparsify topk": ("#762a83", "--", 1.2),
}
LABELS = {name: f"sasa-lab {name}" for name in OURS} | {
    "published": "published SASA",
    "restated": "published SASA, restated",
}


def load(file: Path, *keys: str) -> dict[str, Any]:
    """A result file of the benchmarks; UsageError when there is none, DataError when `keys` are missing."""
    if not file.is_file():
        raise UsageError(f"{file} does not exist; measure first: sasa-lab bench {file.stem}")
    result = read_json(file)
    if not isinstance(result, dict) or any(key not in result for key in keys):
        raise DataError(f"{file} is not a result of sasa-lab bench (it lacks one of: {', '.join(keys)}); measure again")
    return result


def sweep(
    result: dict[str, Any], name: str, device: str = "cpu", precisions: tuple[str, ...] = PRECISIONS
) -> list[dict[str, Any]]:
    """The comparisons of one sweep that a result holds, in the order of its axis."""
    wanted = [asdict(setting) for setting in SWEEPS[name]]
    found = [
        run
        for run in result["runs"]
        if {key: run["setting"][key] for key in wanted[0]} in wanted
        and run["device"].startswith(device)
        and run["precision"] in precisions
    ]
    return sorted(found, key=lambda run: run["setting"][AXES[name][0]] if name in AXES else run["setting"]["dead"])


def figure(result: dict[str, Any], device: str = "cpu") -> "Figure":
    """Seconds a step against K, r, L0 and batch, one line a contender, over the grey area below the encoder's product.

    Raises UsageError when no sweep of the result has two points.
    """
    from matplotlib.figure import Figure

    drawn = {name: runs for name in AXES if len(runs := sweep(result, name, device, ("fp32", "tf32"))) > 1}
    if not drawn:
        raise UsageError(f"no sweep is measured on {device}; run sasa-lab bench step --profile standard first")
    height = -(-len(drawn) // 2)
    picture = Figure(figsize=(8.4, 3.4 * height + 0.8), layout="constrained")
    grid = picture.subplots(height, 2, squeeze=False, sharey=True)
    panels = grid.flat[: len(drawn)]
    for spare in grid.flat[len(drawn) :]:
        spare.remove()
    for panel, (name, runs) in zip(panels, drawn.items(), strict=True):
        key, label = AXES[name]
        floor = [(run["setting"][key], run["floor"]["seconds"]["median"]) for run in runs]
        panel.fill_between(*zip(*floor, strict=True), 1e-9, color="0.88", lw=0, label=FLOOR)
        for contender, (colour, style, width) in STYLES.items():
            points = [
                (run["setting"][key], run["rows"][contender]["seconds"]) for run in runs if contender in run["rows"]
            ]
            if points:
                x, seconds = [at for at, _ in points], [second for _, second in points]
                median = [second["median"] for second in seconds]
                panel.plot(
                    x, median, style, color=colour, lw=width, marker="o", ms=3, label=LABELS.get(contender, contender)
                )
                panel.fill_between(
                    x, [s["low"] for s in seconds], [s["high"] for s in seconds], color=colour, alpha=0.15, lw=0
                )
        lowest = min(second for _, second in floor)
        panel.set(xscale="log", yscale="log", xlabel=label)
        panel.set_xticks([at for at, _ in floor], [str(at) for at, _ in floor], minor=False)
        panel.set_xticks([], minor=True)
        panel.set_ylim(bottom=0.7 * lowest)
    for first in grid[:, 0]:
        first.set_ylabel("seconds a step")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    picture.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return picture


def save_figure(picture: "Figure", path: Path) -> Path:
    """Write a picture as PNG, whole or not at all."""
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=150)
    return write_bytes(path, buffer.getvalue())


def tables(folder: Path) -> str:
    """Markdown of what folder/step.json and folder/data.json hold; raises UsageError without the first."""
    result = load(folder / "step.json", "runs")
    text = [_step_table(result, device) for device in ("cpu", "cuda")]
    if not any(run["device"].startswith("cuda") for run in result["runs"]):
        text.append("On a GPU the step is unmeasured so far: `sasa-lab bench step --profile gpu --device cuda`.\n")
    if (folder / "data.json").is_file():
        text.append(_data_table(load(folder / "data.json", "runs")))
    return "\n".join(part for part in text if part)


def write_readme(readme: Path, folder: Path, picture: str | None = None) -> Path:
    """Put the tables, and a link to the picture, between the marks of a README; UsageError when they are not there."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{readme} has no lines {BEGIN!r} and {END!r}; the tables go between them")
    drawn = f"![Seconds a step against K, r, L0 and batch]({picture})\n\n" if picture else ""
    return write_text(readme, f"{before}{begin}\n\n{drawn}{tables(folder)}\n{end}{after}")


def _step_table(result: dict[str, Any], device: str) -> str:
    """Columns are the main and small comparisons, rows the contenders: milliseconds, times our SASA, GPU memory."""
    names = ("main", "small") if device == "cpu" else ("gpu",)
    runs = [run for name in names for run in sweep(result, name, device)]
    if not runs:
        return ""
    shown = [name for name in (*LABELS, *STYLES) if any(name in run["rows"] for run in runs)]
    shown = list(dict.fromkeys(shown))
    header = ["ms a step (times our SASA)", *(_title(run) for run in runs)]
    lines = [header, ["---", *("---:" for _ in runs)]]
    lines.append([FLOOR, *(_cell(run, run["floor"]["seconds"]["median"]) for run in runs)])
    for name in shown:
        cells = [
            _cell(run, run["rows"][name]["seconds"]["median"], run["rows"][name]["peak_bytes"])
            if name in run["rows"]
            else ""
            for run in runs
        ]
        lines.append([LABELS.get(name, name), *cells])
    here = runs[0]["machine"]
    place = here["gpu"] if device == "cuda" else f"{here['cpu']}, {runs[0]['threads']} threads"
    versions = here["versions"]
    peers = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "sae-lens", "dictionary-learning", "eai-sparsify")
        if name in versions
    )
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{place}; {peers}; {here['date'][:10]}."
    others = {run["code"] for run in result["runs"] if run["device"].startswith(device)} - {runs[0]["code"]}
    return text + (" The picture also holds comparisons of an earlier version of the step.\n" if others else "\n")


def _title(run: dict[str, Any]) -> str:
    at = run["setting"]
    dead = f", {at['dead']:.0%} dead" if at["dead"] else ""
    precision = "" if run["precision"] == "fp32" else f", {run['precision']}"
    return (
        f"D={at['width']}, K={at['n_groups']}, r={at['rank']}, s={at['active']}, batch {at['batch']}{precision}{dead}"
    )


def _cell(run: dict[str, Any], seconds: float, peak: int | None = None) -> str:
    ours = run["rows"].get("sasa")
    times = f" ({seconds / ours['seconds']['median']:.2g})" if ours else ""
    held = f", {peak / 2**30:.2g} GiB" if peak and run["device"] != "cpu" else ""
    return f"{_number(1e3 * seconds)}{times}{held}"


def _number(value: float) -> str:
    """Three digits or whole thousands: 0.123, 12.3, 1,230."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _data_table(result: dict[str, Any]) -> str:
    lines = [["rows a second (times the SASA step)", "D", "columns, L0 of the step", "step", "data"]]
    lines.append(["---", "---:", "---:", "---:", "---:"])
    for run in result["runs"]:
        step = run["rows"]["step"]["rows_per_second"]
        for name, row in run["rows"].items():
            if name != "step":
                times = f"{row['rows_per_second']:,.0f} ({row['over_step']:.2g})"
                lines.append([name, str(run["width"]), f"{run['columns']:,}, {run['l0']}", f"{step:,.0f}", times])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
