"""Timing two sides fairly: in one process, in turn, several rounds; what is reported is a ratio.

Machines are noisy and neighbours come and go, so contenders alternate within a round and each round is kept. The
result names the machine, the thread counts and the load. Work on a GPU is waited for before a clock is read.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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


def race(
    contenders: Iterable[Contender], rounds: int = 5, what: str = "race", device: str = "cpu", least: float = 0.0
) -> dict[str, Timing]:
    """Time every contender once per round, after untimed calls; the order turns from round to round.

    A contender faster than `least` seconds is called as often within a round as fills them.
    """
    sides, wait = list(contenders), waiter(device)
    calls = {}
    for side in sides:
        short = _seconds(side, 1, wait) < least
        calls[side.name] = max(1, round(least / _seconds(side, 1, wait))) if short else 1
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in tqdm(range(rounds), desc=what, disable=None, leave=False):
        turn = number % len(sides)
        for side in sides[turn:] + sides[:turn]:
            often = calls[side.name]
            seconds[side.name].append(_seconds(side, often, wait) / (often * side.units))
    return {name: Timing(statistics.median(t), min(t), max(t), tuple(t)) for name, t in seconds.items()}


def _seconds(side: Contender, calls: int, wait: Callable[[], None]) -> float:
    wait()
    began = time.perf_counter()
    for _ in range(calls):
        side.run()
    wait()
    return time.perf_counter() - began


def waiter(device: str) -> Callable[[], None]:
    """What to call before reading a clock: waits for a CUDA device, does nothing elsewhere."""
    import torch

    return (lambda: torch.cuda.synchronize(device)) if device.startswith("cuda") else (lambda: None)


@dataclass
class Memory:
    """Most bytes held above what was held at the beginning; None where the system does not say."""

    peak: int | None = None


@contextlib.contextmanager
def memory(device: str = "cpu") -> Iterator[Memory]:
    """Peak memory of what runs inside: torch's allocations on a CUDA device, resident pages of the process elsewhere.

    Resident pages count what libraries map on first use, so run once before.
    """
    import torch

    found = Memory()
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.peak = torch.cuda.max_memory_allocated(device) - before
        return
    with contextlib.suppress(AttributeError, OSError):  # glibc keeps what was freed; that would be reused unseen
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the peak begins again from here
    except OSError:
        yield found
        return
    resident = _status("VmRSS")
    yield found
    peak = _status("VmHWM")
    found.peak = max(0, peak - resident) if peak is not None and resident is not None else None


def sources(*places: str) -> str:
    """A hash of Python files and of those in folders, given from the checkout's root: other code, other results."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for place in places:
        path = root / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def machine() -> dict[str, Any]:
    """Processor, cores, load and versions: what a reader needs beside a number of seconds."""
    import importlib.metadata

    import torch

    names = ["numpy", "scipy", "torch", "numba", "triton", "scikit-learn", "celer", "skglm"]
    names += ["sasa-lab", "sae-lens", "dictionary-learning", "eai-sparsify"]
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


def product_rates(batch: int, width: int, columns: int, rounds: int = 3) -> dict[str, Any]:
    """GFLOP/s in fp32 of (batch, width) x (width, columns) on this CPU, with MKL and with oneDNN, in turn.

    MKL is known to run at half rate on some CPUs that are not Intel's. oneDNN is called by its own tensor layout: the
    switch torch.backends.mkldnn.matmul.fp32_precision = "bf16" also reaches it, but rounds where bf16 is native (AMX).
    """
    import torch

    x, weight = torch.randn(batch, width), torch.randn(columns, width)
    sides = [Contender("MKL", lambda: torch.mm(x, weight.T))] if torch.backends.mkl.is_available() else []
    if torch.backends.mkldnn.is_available():
        theirs, packed = x.to_mkldnn(), weight.to_mkldnn()
        sides.append(Contender("oneDNN", lambda: torch.nn.functional.linear(theirs, packed)))
    with torch.no_grad():
        times = race(sides, rounds, "products")
    flop = 2 * batch * width * columns
    return {
        "size": [batch, width, columns],
        "threads": torch.get_num_threads(),
        "gflop_per_second": {name: flop / timing.median / 1e9 for name, timing in times.items()},
    }


def save(name: str, result: Mapping[str, Any], out: Path = RESULTS) -> Path:
    """Write OUT/NAME.json with the machine; returns the path."""
    return write_json(out / f"{name}.json", {"benchmark": name, "machine": machine(), **result})


def _status(field: str) -> int | None:
    """Bytes of one field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    value = next((line.split() for line in lines if line.startswith(f"{field}:")), None)
    return 1024 * int(value[1]) if value else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
