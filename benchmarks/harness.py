"""Timing two sides fairly: in one process, in turn, several rounds; what is reported is a ratio.

Machines are noisy and neighbours come and go, so contenders alternate within a round and each round is kept. The
result names the machine, the thread counts and the load.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sasa_theory.files import write_json

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Contender:
    """One side: its name, what to time, and how many units of work (samples, tokens) one call does."""

    name: str
    run: Callable[[], object]
    units: int = 1


@dataclass(frozen=True)
class Timing:
    """Seconds per unit of work of one side: median, smallest and largest round, and all of them."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON, in seconds per unit."""
        return {"median": self.median, "low": self.low, "high": self.high, "rounds": list(self.rounds)}


def race(contenders: Iterable[Contender], rounds: int = 5, what: str = "race") -> dict[str, Timing]:
    """Time every contender once per round, after one untimed call each; the order turns from round to round."""
    sides = list(contenders)
    for side in sides:
        side.run()
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in tqdm(range(rounds), desc=what, disable=None, leave=False):
        turn = number % len(sides)
        for side in sides[turn:] + sides[:turn]:
            began = time.perf_counter()
            side.run()
            seconds[side.name].append((time.perf_counter() - began) / side.units)
    return {name: Timing(statistics.median(t), min(t), max(t), tuple(t)) for name, t in seconds.items()}


def machine() -> dict[str, Any]:
    """Processor, cores, load and versions: what a reader needs beside a number of seconds."""
    import importlib.metadata

    import torch

    names = ("numpy", "scipy", "torch", "numba", "scikit-learn", "celer", "skglm", "sae-lens")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": [round(v, 2) for v in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def save(name: str, result: Mapping[str, Any], out: Path = RESULTS) -> Path:
    """Write OUT/NAME.json with the machine; returns the path."""
    return write_json(out / f"{name}.json", {"benchmark": name, "machine": machine(), **result})


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
