"""`sasa-lab evaluate CHECKPOINT`: the numbers of a trained dictionary."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sasa_lab.arguments import checked_device, dataset
from sasa_lab.report import ARROW_NOTE, metrics_table, show, write_report
from sasa_lab.results import named_file, provenance
from sasa_lab.running import tell
from sasa_theory import saelens
from sasa_theory.evaluation import evaluate
from sasa_theory.files import write_json


@dataclass(frozen=True)
class Options:
    """Measure a trained dictionary on rows that training never saw.

    CHECKPOINT is a directory that `sasa-lab train` printed, or any SAELens directory (cfg.json and
    sae_weights.safetensors). On a planted world the numbers include how the features are split and recovered. Prints
    a table, writes OUT/evaluate/NAME/result.json and adds it to the report.

    Example: sasa-lab evaluate results/runs/0123456789abcdef --world three-manifolds
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """directory of the trained dictionary"""
    world: Annotated[str | None, tyro.conf.arg(metavar="SPEC")] = None
    """planted data: the name of a world that comes with the program, or a JSON file"""
    store: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """activations that `sasa-lab activations` stored"""
    rows: int = 50_000
    """how many rows to measure on"""
    name: str | None = None
    """name of the result (default: the checkpoint's directory and the data)"""
    out: Path = Path("results")
    """directory for the result and the report"""
    device: str = "cpu"
    """torch device: cpu, cuda, cuda:1, ..."""


def run(options: Options) -> int:
    device = checked_device(options.device)
    model = saelens.load(options.checkpoint).to(device)
    data = dataset(options.world, options.store)
    source = options.world if options.world is not None else options.store
    name = options.name or f"{options.checkpoint.resolve().name}-{Path(str(source)).stem}"
    file = named_file(options.out / "evaluate", name, options.checkpoint)
    began = time.perf_counter()
    measured = evaluate(model, data, options.rows)
    inner: Any = getattr(model, "model", model)  # a normalised model wraps the one with settings
    result: dict[str, Any] = {
        "kind": "evaluation",
        "name": f"evaluate {name}",
        "title": f"{model.architecture} {options.checkpoint} on {source}",
        "seconds": round(time.perf_counter() - began, 2),
        **provenance(device),
        "settings": {
            "checkpoint": str(options.checkpoint.resolve()),
            "architecture": model.architecture,
            "model": inner.settings(),
            "data": str(source),
            "fingerprint": data.fingerprint(),
        },
        **measured,
    }
    write_json(file, result)
    _print(*metrics_table(measured["metrics"]))
    tell(f"{ARROW_NOTE}\n{measured['rows']} rows, {result['seconds']:.0f} s; {file}")
    tell(f"report: {write_report(options.out)}")
    return 0


def _print(columns: list[str], rows: list[list[Any]]) -> None:
    """The first three columns, aligned; the meanings stand in the report."""
    cells = [columns[:3], *([show(cell) for cell in row[:3]] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    for row in cells:
        tell("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
