"""What the benchmarks measured, as a picture and as tables: everything here is read from results/*.json.

`figure` shows seconds a step against K, r, L0 and batch, everything else as in the main comparison, beside the floor
that the encoder's product sets, and below them every architecture at the main sizes. `tables` is the Markdown between
the two marks of the README.
"""

import io
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import ARCHITECTURES, OURS
from benchmarks.step import FLOOR, PRECISIONS, SWEEPS
from sasa_theory.files import read_json, write_bytes, write_text
from synthetic.errors import DataError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
#: where an architecture comes from -> colour and marker
SOURCES = {
    "sasa-lab": ("#b2182b", "o"),
    "published": ("#000000", "X"),
    "sae-lens": ("#2166ac", "s"),
    "dictionary_learning": ("#1b7837", "^"),
    "sparsify": ("#762a83", "D"),
}
LABELS = {name: f"sasa-lab {name}" for name in OURS} | {
    "published": "published SASA",
    "restated": "published SASA, restated",
}
#: "module.function: source" of the compiled step's parts -> what they are
PARTS = {
    "screen.visit: pre = torch._int_mm": "int8 product that screens",
    "screen.visit: return visitor": "encoder's product",
    "screen._in_chunks: spread": "waiting for the other thread",
    "gate.before": "rows less the bias",
    "gate.visitor": "shortlist of units",
    "gate._exact": "float32 scores of the shortlist",
    "gate.select": "choice",
    "step.decode": "decode",
    "step.gradients": "gradients of both weights",
    "step._auxiliary": "auxiliary loss",
    "step._moments": "Adam and gauge",
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
        and bool(run.get("architecture")) == (name == "architectures")
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
    compared = sweep(result, "architectures", device, ("fp32", "tf32"))
    compared = [
        run
        for run in compared
        if run["setting"]["width"] == SWEEPS["architectures"][0].width and run["architecture"] in run["rows"]
    ]
    names = [*drawn, *["."] * (len(drawn) % 2)]
    mosaic = [names[first : first + 2] for first in range(0, len(names), 2)] + [["architectures"] * 2] * bool(compared)
    picture = Figure(figsize=(8.4, 3.4 * len(mosaic) + 0.8), layout="constrained")
    axes: dict[str, Axes] = picture.subplot_mosaic(mosaic, sharey=True)
    panels = [axes[name] for name in drawn]
    for panel, (name, runs) in zip(panels, drawn.items(), strict=True):
        key, label = AXES[name]
        floor = [(run["setting"][key], run["floor"]["seconds"]["median"]) for run in runs]
        places, floors = [at for at, _ in floor], [second for _, second in floor]
        panel.fill_between(places, floors, 1e-9, color="0.88", lw=0, label=FLOOR)
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
        panel.set(xscale="log", yscale="log", xlabel=label)
        panel.set_xticks(places, [str(at) for at in places], minor=False)
        panel.set_xticks([], minor=True)
        panel.set_ylim(bottom=0.7 * min(floors))
    for first, *_ in mosaic:
        axes[first].set_ylabel("seconds a step")
    if compared:
        _draw_architectures(axes["architectures"], compared)
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    picture.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return picture


def _draw_architectures(panel: "Axes", runs: list[dict[str, Any]]) -> None:
    """One column an architecture: everyone's seconds a step, and the fastest peer's as a multiple of ours."""
    order = sorted(runs, key=lambda run: list(ARCHITECTURES).index(run["architecture"]))
    shown = []
    for at, run in enumerate(order):
        for name in (run["architecture"], *(peers := _peers(run))):
            colour, marker = SOURCES[_source(name)]
            panel.plot(at, run["rows"][name]["seconds"]["median"], marker, color=colour, ms=6)
        times = f"{_times(run['ratios'][run['architecture']][peers[0]])}x" if peers else "no peer"
        shown.append(f"{run['architecture']}\n{times}")
    for source, (colour, marker) in SOURCES.items():
        panel.plot([], [], marker, color=colour, ms=6, label=source)
    panel.set_xticks(range(len(order)), shown, fontsize=7)
    panel.set_xlabel("architecture, and the fastest peer's step over ours")
    panel.set_xlim(-0.6, len(order) - 0.4)
    panel.legend(fontsize=8, frameon=False, ncols=5, loc="upper center")


def _source(name: str) -> str:
    """Whose a contender is: a library, "published", or "sasa-lab"."""
    return "sasa-lab" if name in OURS else "published" if name == "restated" else name.partition(" ")[0]


def _peers(run: dict[str, Any]) -> list[str]:
    """Contenders of a comparison that are not ours, the fastest first; the restated step only without the published."""
    seconds = {name: row["seconds"]["median"] for name, row in run["rows"].items() if name not in OURS}
    if "published" in seconds:
        seconds.pop("restated", None)
    return sorted(seconds, key=lambda name: seconds[name])


def save_figure(picture: "Figure", path: Path) -> Path:
    """Write a picture as PNG, whole or not at all."""
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=150)
    return write_bytes(path, buffer.getvalue())


def tables(folder: Path) -> str:
    """Markdown of what folder/step.json and folder/data.json hold; raises UsageError without the first."""
    result = load(folder / "step.json", "runs")
    parts = (_step_table, _architecture_table, _share_table)
    text = [part(result, device) for device in ("cpu", "cuda") for part in parts]
    text.insert(1, _rates(result))
    if not any(run["device"].startswith("cuda") for run in result["runs"]):
        text.append("On a GPU the step is unmeasured so far: `sasa-lab bench step --profile gpu --device cuda`.\n")
    if (folder / "published.json").is_file():
        text.append(_published(load(folder / "published.json", "runs")))
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
    text = f"{_markdown(lines)}\n{place}; {peers}; {here['date'][:10]}."
    others = {run["code"] for run in result["runs"] if run["device"].startswith(device)} - {runs[0]["code"]}
    return text + (" The picture also holds comparisons of an earlier version of the step.\n" if others else "\n")


def _rates(result: dict[str, Any]) -> str:
    """What MKL and oneDNN make of the encoder's product on the CPU, and what of the ratios comes from that."""
    measured = result.get("products")
    if not measured or not {"MKL", "oneDNN"} <= set(rates := measured["gflop_per_second"]):
        return ""
    (batch, width, columns), times = measured["size"], rates["oneDNN"] / rates["MKL"]
    said = (
        f"so up to {times:.2g} times of a ratio comes from MKL's rate on this CPU"
        if times > 1.25
        else "so no part of the ratios comes from a slow MKL here"
    )
    ours = "; our compiled step screens in int8" if measured["int8_is_faster"] else ""
    return (
        f"Encoder's product in fp32, {batch:,} x {width:,} by {width:,} x {columns:,}, {measured['threads']} threads: "
        f"MKL, which multiplies for the published code and the peers, {rates['MKL']:.0f} GFLOP/s, oneDNN "
        f"{rates['oneDNN']:.0f}, {said}{ours}.\n"
    )


def _published(result: dict[str, Any]) -> str:
    """How near the restated step is to the published one, in loss, gradients and time."""
    runs, here, at = result["runs"], result["machine"], result["runs"][0]["setting"]
    loss = max(run["loss"] for run in runs)
    gradient = max(difference for run in runs for difference in run["gradients"].values())
    times = ", ".join(f"{run['time_ratio']:.2f} at {run['setting']['dead']:.0%} dead" for run in runs)
    return (
        f"The restated step beside the published one at D={at['width']}, K={at['n_groups']}, r={at['rank']}, batch "
        f"{at['batch']}: loss differs by {loss:.1g}, gradients by {gradient:.1g} at most (relative); time {times} of "
        f"the published one's ({here['cpu']}, {runs[0]['threads']} threads, {here['date'][:10]}).\n"
    )


def _share_table(result: dict[str, Any], device: str, largest: int = 5) -> str:
    """The parts of our SASA step that take the most time, by source line on a CPU and by kernel on a GPU."""
    runs = [run for name in ("main", "small") for run in sweep(result, name, device) if "sasa" in run["shares"]]
    runs = [run for run in runs if run["setting"]["width"] == SWEEPS["main"][0].width or not run["setting"]["dead"]]
    if not runs:
        return ""
    lines = [["share of our SASA step", *(_title(run) for run in runs)], ["---", *("---" for _ in runs)]]
    columns = []
    for run in runs:
        named = [(name, share) for name, share in run["shares"]["sasa"].items() if name != "elsewhere"]
        named = sorted(named, key=lambda one: -one[1])[:largest]
        columns.append([f"{share:.0%} {_part(name)}" for name, share in named])
        columns[-1] += [""] * (largest - len(named))
    lines += [[str(place + 1), *cells] for place, cells in enumerate(zip(*columns, strict=True))]
    return _markdown(lines)


def _part(name: str) -> str:
    """A part in plain words, with its place; the source line or kernel itself where it has none."""
    words = next((words for start, words in PARTS.items() if name.startswith(start)), None)
    return f"`{name[:60].replace('|', '/')}`" if words is None else f"{words} (`{name.split(':')[0]}`)"


def _architecture_table(result: dict[str, Any], device: str) -> str:
    """One line an architecture: milliseconds of ours and of the fastest peer that has it, for each size."""
    runs = [run for run in sweep(result, "architectures", device) if run["architecture"] in run["rows"]]
    if not runs:
        return ""
    runs = sorted(runs, key=lambda run: -run["setting"]["columns"])
    titles = list(dict.fromkeys(_sizes(run) for run in runs))
    lines = [["ms a step", *(f"{who}, {title}" for title in titles for who in ("ours", "fastest peer (times ours)"))]]
    lines.append(["---", *("---:" for _ in lines[0][1:])])
    found = {(run["architecture"], _sizes(run)): run for run in runs}
    for name in ARCHITECTURES:
        line = [name]
        for title in titles:
            run, cells = found.get((name, title)), ["", ""]
            if run:
                cells[0] = _number(1e3 * run["rows"][name]["seconds"]["median"])
            if run and (peers := _peers(run)):
                cells[1] = f"{_cell(run, run['rows'][peers[0]]['seconds']['median'], of=name)}, {_source(peers[0])}"
            line += cells
        if any(line[1:]):
            lines.append(line)
    return _markdown(lines)


def _sizes(run: dict[str, Any]) -> str:
    precision = "" if run["precision"] == "fp32" else f", {run['precision']}"
    return f"D={run['setting']['width']}, {run['setting']['columns']:,} columns{precision}"


def _markdown(lines: Iterable[Iterable[str]]) -> str:
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _title(run: dict[str, Any]) -> str:
    at = run["setting"]
    dead = f", {at['dead']:.0%} dead" if at["dead"] else ""
    precision = "" if run["precision"] == "fp32" else f", {run['precision']}"
    return (
        f"D={at['width']}, K={at['n_groups']}, r={at['rank']}, s={at['active']}, batch {at['batch']}{precision}{dead}"
    )


def _cell(run: dict[str, Any], seconds: float, peak: int | None = None, of: str = "sasa") -> str:
    """Milliseconds, times the contender `of`, and GPU memory."""
    ours = run["rows"].get(of)
    times = f" ({_times(seconds / ours['seconds']['median'])})" if ours else ""
    held = f", {peak / 2**30:.2g} GiB" if peak and run["device"] != "cpu" else ""
    return f"{_number(1e3 * seconds)}{times}{held}"


def _times(ratio: float) -> str:
    """Two digits: 0.12, 1.2, 12, 123."""
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"


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
    return _markdown(lines)
