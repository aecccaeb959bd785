"""`sasa-lab certify CHECKPOINT`: how far a trained dictionary is from the optimum of its own objective."""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sasa_lab.arguments import dataset
from sasa_lab.report import show, write_report
from sasa_lab.results import named_file, provenance
from sasa_lab.running import tell
from sasa_theory.files import write_json
from synthetic.errors import UsageError

if TYPE_CHECKING:
    from sasa_theory.certificates import Trained
    from synthetic.source import Dataset


@dataclass(frozen=True)
class Options:
    """Measure how far a trained dictionary is from the optimum of its own objective, with a certificate.

    Vector dictionaries: the decoder is kept, every row gets its best l1 codes, and what the encoder loses against them
    is shown; on a planted world also the distance of the decoder to the floor of claim B4. SASA: the gate is kept, the
    maps are improved for --minutes, and a dual bound says how much could be left. Costs are in the model's normalised
    units. Prints a table, writes OUT/certify/NAME/result.json and adds it to the report.

    Example: sasa-lab certify results/runs/0123456789abcdef --world three-manifolds
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """directory of the trained dictionary"""
    world: Annotated[str | None, tyro.conf.arg(metavar="SPEC")] = None
    """planted data: the name of a world that comes with the program, or a JSON file"""
    store: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """activations that `sasa-lab activations` stored"""
    samples: int | None = None
    """rows to certify on (default 5,000; for SASA 50,000, and as many held-out ones, where the data has them)"""
    minutes: float = 2.0
    """SASA: time for improving the maps; the dual bound comes on top"""
    lam: float | None = None
    """weight of the l1 norm beside 1/2 ||.||^2 (half the training coefficient), or of the nuclear norm beside ||.||^2;
    needed where the checkpoint does not say"""
    name: str | None = None
    """name of the result (default: the checkpoint's directory and the data)"""
    out: Path = Path("results")
    """directory for the result and the report"""


def run(options: Options) -> int:
    from sasa_theory import certificates

    if options.samples is not None and options.samples < 2:
        raise UsageError(f"--samples is {options.samples}; expected at least 2 rows")
    if not (options.minutes > 0 and math.isfinite(options.minutes)):
        raise UsageError(f"--minutes is {options.minutes}; expected a positive number")
    trained = certificates.load(options.checkpoint)
    data = dataset(options.world, options.store)
    if data.width != trained.model.width_in:
        raise UsageError(f"the data has width {data.width}, the model {trained.model.width_in}; give the model's data")
    source = str(options.world if options.world is not None else options.store)
    name = options.name or f"{options.checkpoint.resolve().name}-{Path(source).stem}"
    file = named_file(options.out / "certify", name, options.checkpoint)
    lam = _lam(options, trained)
    began = time.perf_counter()
    measured = (_maps if trained.grouped else _codes)(options, trained, data, lam)
    result: dict[str, Any] = {
        "kind": "certificate",
        "name": f"certify {name}",
        "title": f"{trained.model.architecture} {options.checkpoint} on {source}: distance to its own optimum",
        "seconds": round(time.perf_counter() - began, 2),
        **provenance("cpu"),
        "settings": {
            "checkpoint": str(options.checkpoint.resolve()),
            "architecture": trained.model.architecture,
            "model": trained.model.settings(),
            "data": source,
            "fingerprint": data.fingerprint(),
            "lam": lam,
            "normaliser": trained.normaliser.kind,
        },
        **measured,
    }
    write_json(file, result)
    for table in measured["tables"]:
        _print(table)
    tell(f"{result['seconds']:.0f} s; {file}")
    tell(f"report: {write_report(options.out)}")
    return 0


def _lam(options: Options, trained: "Trained") -> float:
    """--lam, or the trained coefficient: the nuclear norm's as it is, half of the l1 norm's."""
    if options.lam is not None:
        lam = options.lam
    elif trained.coefficient is None:
        raise UsageError(
            f"this {trained.model.architecture} checkpoint names no l1 or nuclear-norm coefficient; give one with --lam"
        )
    else:
        lam = trained.coefficient if trained.grouped else trained.coefficient / 2
    if not (lam > 0 and math.isfinite(lam)):
        raise UsageError(f"the penalty's weight is {lam}, where there is nothing to certify; give one with --lam")
    return lam


def _codes(options: Options, trained: "Trained", data: "Dataset", lam: float) -> dict[str, Any]:
    from sasa_theory.certificates import certify_codes, floors
    from synthetic.world import World

    rows = _rows(data, "eval", options.samples or 5_000)
    report, _ = certify_codes(trained, rows, lam)
    path = "relu(gate), which its l1 term was trained on" if trained.model.architecture == "gated" else "its encoder's"
    table = {
        "title": "Codes of the encoder against the best ones",
        "note": f"{report.rows} held-out rows, lam {lam:.4g} beside 1/2 ||.||^2 (training: ||.||^2 and twice that); "
        "means over rows, normalised units.",
        "columns": ["number", "value", "meaning"],
        "rows": [
            ["cost", report.cost, f"1/2 ||z - b - D a||^2 + lam sum a_j ||d_j||, the model's codes a: {path}"],
            ["cost, standard error", report.cost_error, "over rows"],
            ["psi", report.psi, "the same with the best codes for this decoder"],
            ["amortisation gap", report.gap, "cost - psi: what the encoder loses"],
            ["amortisation gap, standard error", report.gap_error, "over rows"],
            ["amortisation gap, at most", report.gap_at_most, "cost - dual value: certified"],
            ["share of cost", report.gap / report.cost if report.cost else 0.0, "amortisation gap / cost"],
            ["largest duality gap", report.largest_duality_gap, "worst row, relative to its 1/2 ||z - b||^2"],
            ["cost of no code", report.zero, "1/2 ||z - b||^2"],
            ["L0", report.l0, "non-zero codes of the model"],
            ["L0 of the best codes", report.best_l0, "non-zero codes"],
        ],
    }
    tables, found = [table], []
    if isinstance(data, World):
        found = floors(trained, data, lam, max(2, min(2000, report.rows)))
    if found:
        tables.append(
            {
                "title": "The decoder against the floor of B4",
                "note": "Rotation-invariant features, each alone and without noise; psi - floor is what no codes can "
                "recover. The floor is for signed codes and counts all atoms, so it holds with any bias.",
                "columns": [
                    "feature",
                    "d",
                    "radius",
                    "psi",
                    "standard error",
                    "B4 floor",
                    "psi - floor",
                    "fully tiled",
                ],
                "rows": [[f.feature, f.d, f.radius, f.psi, f.error, f.floor, f.over, f.tiled] for f in found],
            }
        )
    return {
        "certificate": dataclasses.asdict(report),
        "floors": [dataclasses.asdict(f) for f in found],
        "tables": tables,
    }


def _maps(options: Options, trained: "Trained", data: "Dataset", lam: float) -> dict[str, Any]:
    from sasa_theory.certificates import certify_maps

    rows, held_out = (_rows(data, stream, options.samples or 50_000) for stream in ("train", "eval"))
    report = certify_maps(trained, rows, held_out, lam, 60 * options.minutes)
    least, most = report.suboptimality
    share = report.trained or 1.0
    penalty = getattr(trained.model, "penalty", "map")
    other = "" if penalty == "map" else f" The model was trained with the {penalty!r} penalty, another objective (C8)."
    cost = {
        "title": "Maps against the optimum at the frozen gate",
        "note": f"{report.rows} rows of the training stream, {report.used_groups} of {report.groups} groups on, "
        f"lam {lam:.4g} beside ||.||^2; means over rows, normalised units; gate and bias as trained. Mean rank of a "
        f"map in use: trained {report.rank_trained:.1f}, best found {report.rank_best:.1f}.{other}",
        "columns": ["number", "value", "share of trained", "meaning"],
        "rows": [
            [label, value, value / share, meaning]
            for label, value, meaning in [
                ("trained", report.trained, "mean ||residual||^2 + lam sum_k ||M_k||_* over the groups in use"),
                ("best found, rank r", report.same_rank, "maps of the model's own rank"),
                ("best found, any rank", report.best, "maps of any rank"),
                ("dual bound", report.bound, "no maps cost less at this routing: certified"),
                ("suboptimality, at least", least, "trained - best found"),
                ("suboptimality, at most", most, "trained - dual bound"),
                ("unused groups", report.unused, "lam sum ||M_k||_* of groups off on all these rows; beside the above"),
                ("cost of no map", report.energy, "mean ||z - b||^2"),
            ]
        ],
    }
    errors = {
        "title": "What these maps do on other rows",
        "note": "mean ||residual||^2, the penalty left out; the optimum over some rows may only fit those rows.",
        "columns": ["maps", "these rows", "held-out rows"],
        "rows": [
            ["none", report.energy, report.held_out_energy],
            ["trained", report.trained_error, report.held_out_trained_error],
            ["best found, rank r", report.same_rank_error, report.held_out_same_rank_error],
            ["best found, any rank", report.best_error, report.held_out_best_error],
        ],
    }
    return {"certificate": dataclasses.asdict(report), "tables": [cost, errors]}


def _rows(data: "Dataset", stream: str, n: int) -> Any:
    """The first n rows of a stream, or as many as a store has in it."""
    from sasa_theory.activations import ActivationStore

    if isinstance(data, ActivationStore):
        n = min(n, len(data.split(stream)))
    return next(data.batches(n, stream=stream))


def _print(table: dict[str, Any]) -> None:
    """A table, columns aligned, and its note; the meanings stand in the report."""
    shown = [i for i, column in enumerate(table["columns"]) if column != "meaning"]
    cells = [[show(row[i]) for i in shown] for row in [table["columns"], *table["rows"]]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(shown))]
    for row in cells:
        tell("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    tell(f"{table['note']}\n")
