"""What a figure is: a function that measures, a function that draws, and the time it may take.

`run(context)` returns a JSON-able result; `draw(result)` makes pictures from that result alone. The result's keys:

    numbers   anything `draw` needs (finite numbers, strings, lists, dicts)
    tables    list of {"title", "columns": [str], "rows": [[...]], "note": str}; published values stand in their own
              column beside ours
    findings  list of {"sentence": id of sasa_lab/sentences.json, "status": "supported" | "needs an assumption" |
              "refuted" | "undecided", "text": one sentence with the numbers}
    settings  what was run (spec, model and training settings, checkpoints), so that a reader can repeat it

Every training goes through `training.runs.fit`, so a stopped figure picks up where it was.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from synthetic.registry import Registry

PROFILES = ("quick", "standard", "paper")


@dataclass(frozen=True)
class Context:
    """How a figure is run.

    profile   "quick" (one seed, reduced), "standard" (three seeds) or "paper" (published settings).
    seeds     seeds of this run.
    out       the results directory; trained models are kept under out/"runs".
    device    torch device name.
    deadline  time.monotonic() value after which training saves its state and raises Interrupted; None: no limit.
    options   figure-specific options from the command line (paths of a store, a checkpoint, ...).
    """

    profile: str
    seeds: tuple[int, ...]
    out: Path
    device: str = "cpu"
    deadline: float | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A figure or table of the paper.

    budget    seconds each profile may take on 2 CPU cores (for "paper": a GPU); a profile that is absent cannot run.
    options   name -> help of the options it understands.
    draw      result -> {stem: matplotlib figure}; the stem "figure" is the main one.
    needs     what must be given by the user before it can run ("a language model's activations"), "" for nothing:
              `reproduce` runs the figures that need nothing.
    """

    name: str
    title: str
    run: Callable[[Context], dict[str, Any]]
    draw: Callable[[dict[str, Any]], Mapping[str, Any]]
    budget: Mapping[str, float]
    options: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""


figures: Registry[Figure] = Registry("figure")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> dict[str, Any]:
    """A table of a result; cells are strings or numbers, None shows as a dash."""
    return {"title": title, "columns": list(columns), "rows": [list(row) for row in rows], "note": note}


def spread(values: Sequence[float | None], digits: int) -> str | None:
    """Mean and standard deviation over seeds, for a table's cell; None where no seed has a value."""
    held = [value for value in values if value is not None]
    if not held:
        return None
    return f"{mean(held):.{digits}f}" + (f" ± {stdev(held):.{digits}f}" if len(held) > 1 else "")
