"""Searches for learning rates and coefficients: what they have in common, and the tracked files that figures read.

    recipe = Recipe("splitting")      # figures/splitting_recipe.json, made by python -m figures.splitting_recipe
    recipe.is_made(), recipe()        # whether it is there; what it holds
    recipe.run_grid(world, cells, jobs, out, rows)      # held-out unexplained variance and L0 of every run
    best(cells, target), harmless(cells, key, target)
    late_change(run)                             # whether a run was at its plateau

Planted truth plays no part in a choice, and a search's seed is none of its figure's.
"""

import argparse
import functools
import importlib.resources
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sasa_theory.evaluation import ExplainedVariance, Sparsity
from sasa_theory.evaluation import run as measure
from sasa_theory.files import write_json
from sasa_theory.training import Job, Run, fit_all
from sasa_theory.training.runs import directory
from synthetic import World
from synthetic.errors import LabError

Cell = Mapping[str, Any]
#: a penalty is harmless where it leaves at most this many times what the best one leaves unexplained
PRICE = 1.05


class Recipe:
    """The tracked result of the search `python -m figures.NAME_recipe`; raises LabError when called before that ran."""

    def __init__(self, name: str) -> None:
        #: cells that are not run again, by the name of their run
        self.known: dict[str, Cell] = {}
        self.module = f"figures.{name}_recipe"
        self.file = importlib.resources.files("figures") / f"{name}_recipe.json"

    def is_made(self) -> bool:
        """Whether the search has been run and its result stands beside this file."""
        return self.file.is_file()

    def __call__(self) -> dict[str, Any]:
        return self._read

    @functools.cached_property
    def _read(self) -> dict[str, Any]:
        if not self.is_made():
            raise LabError(f"{self.file} is missing; make it with: python -m {self.module}")
        found: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        return found

    def make(self, search: Callable[[Path], dict[str, Any]], description: str | None) -> None:
        """The command line of a search: --out says where its runs are kept, --afresh runs all cells again.

        Without it the tracked cells stay whose runs have the name they would have now, that is, the same world, model
        and training: an architecture that changes its settings is searched again, alone. One that trains otherwise
        under the same settings needs --afresh. Errors of the lab are one line, and leave the tracked file as it is.
        """
        parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
        parser.add_argument("--out", type=Path, default=Path("results"))
        parser.add_argument("--afresh", action="store_true", help="run the cells again that the tracked file holds")
        given = parser.parse_args()
        if given.out.exists() and not given.out.is_dir():
            parser.error(f"--out is {given.out}, a file; expected a directory")
        self.known = {} if given.afresh or not self.is_made() else {cell["run"]: cell for cell in _cells(self())}
        try:
            found = search(given.out)
        except LabError as error:
            parser.exit(1, f"{parser.prog}: error: {error}\n")
        write_json(Path(str(self.file)), found)
        self.__dict__.pop("_read", None)

    def run_grid(
        self, world: World, cells: Sequence[Cell], jobs: Sequence[Job], out: Path, rows: int
    ) -> list[dict[str, Any]]:
        """Train the jobs and put unexplained variance on held-out rows, L0 and the run's name beside each cell."""
        names = [directory(world, job, out).name for job in jobs]
        fresh = {name: job for name, job in zip(names, jobs, strict=True) if name not in self.known}
        got = dict(self.known)
        for name, run in zip(fresh, fit_all(world, list(fresh.values()), out=out), strict=True):
            measured = measure(run.model, world, rows, [ExplainedVariance(), Sparsity()])
            left = 1 - measured["explained_variance"].explained_variance
            got[name] = {"unexplained": left, "l0": measured["l0"].l0}
        return [
            {**cell, "unexplained": got[name]["unexplained"], "l0": got[name]["l0"], "run": name}
            for cell, name in zip(cells, names, strict=True)
        ]


def _cells(found: Any) -> list[Cell]:
    """Every cell of a recipe's grids, wherever they lie in it."""
    if isinstance(found, Mapping):
        return [found] if "run" in found else [cell for value in found.values() for cell in _cells(value)]
    return [cell for value in found for cell in _cells(value)] if isinstance(found, list) else []


def best(cells: Sequence[Cell], target: float) -> Cell:
    """The least unexplained cell with at most 15 % more than the target L0 (fewer columns are no advantage; runs that
    are steered have not all settled), else the one nearest to it."""
    allowed = [cell for cell in cells if cell["l0"] <= 1.15 * target]
    if allowed:
        return min(allowed, key=unexplained)
    return min(cells, key=lambda cell: float(cell["l0"]))


def harmless(cells: Sequence[Cell], key: str, target: float) -> Cell:
    """Of the best cells at each value of the penalty `key`, that of the largest harmless one (`PRICE`)."""
    found = [best([cell for cell in cells if cell[key] == value], target) for value in {cell[key] for cell in cells}]
    most = PRICE * min(map(unexplained, found))
    return max((cell for cell in found if unexplained(cell) <= most), key=lambda cell: float(cell[key]))


def late_change(run: Run) -> float:
    """Unexplained variance at the end over that where the learning rate began to fall, at .7 of the steps.

    Near 1 at a plateau; both are means over a few lines of the log. 1 where the log is too short.
    """
    left = [1 - line["explained_variance_raw"] for line in run.log if "explained_variance_raw" in line]
    fell = int(0.7 * len(left))
    before = left[max(0, fell - 4) : fell + 1]
    return sum(left[-3:]) / len(left[-3:]) / max(1e-12, sum(before) / len(before)) if before else 1.0


def unexplained(cell: Cell) -> float:
    """What a cell's run left unexplained."""
    return float(cell["unexplained"])
