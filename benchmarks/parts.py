"""Where the time of a step goes, however the step is made: on a CPU by sampling, on a GPU by kernel.

On a CPU a thread looks every millisecond at the innermost line of the library that the stepping thread is in, compiled
loops, torch and waiting for helpers included: shares of wall time by source line, with nothing slowed by instruments.
"""

import linecache
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

OURS = Path(__file__).resolve().parent.parent / "sasa_theory"
#: runs loops of others: the line that calls it tells more
HELPERS = OURS / "threads.py"
INTERVAL, LEAST = 1e-3, 1.0


def parts(step: Callable[[], object], device: str, largest: int = 14) -> dict[str, float]:
    """Shares of a step's time, the largest by name and "elsewhere" for the rest; they sum to 1."""
    own = _kernels(step, device) if device.startswith("cuda") else _lines(step)
    whole = sum(own.values()) or 1.0
    shares = {name: value / whole for name, value in own.most_common(largest)}
    return {**shares, "elsewhere": 1 - sum(shares.values())}


def _lines(step: Callable[[], object]) -> Counter[str]:
    watched, done, seen = threading.get_ident(), threading.Event(), Counter[str]()

    def sample() -> None:
        while not done.wait(INTERVAL):
            seen[_line(sys._current_frames()[watched])] += 1

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    began = time.perf_counter()
    while time.perf_counter() - began < LEAST:
        step()
    done.set()
    sampler.join()
    return seen


def _line(frame: FrameType | None) -> str:
    """The innermost line of the library, as "module.function: source"."""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(OURS) and file != HELPERS:
            source = linecache.getline(str(file), frame.f_lineno) + linecache.getline(str(file), frame.f_lineno + 1)
            return f"{file.stem}.{frame.f_code.co_name}: {' '.join(source.split())[:60]}"
        frame = frame.f_back
    return "outside the library"


def _kernels(step: Callable[[], object], device: str) -> Counter[str]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize(device)
    return Counter({event.key: event.self_device_time_total for event in profiler.key_averages()})
