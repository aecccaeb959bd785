"""What training costs, before it begins: seconds of a step, measured on random rows, and bytes, counted from sizes."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from sasa_theory.models import build
from sasa_theory.training.runs import Job
from sasa_theory.training.trainer import Trainer

T = TypeVar("T")
#: bytes a parameter takes in training (weight, gradient, two moments), float32
PER_PARAMETER = 16
#: arrays of batch x columns float32 that a step holds: pre-activations, codes, their gradient
DENSE = 3
#: steps timed after one that compiles
STEPS = 2


def step_and_row_seconds(job: Job, width: int, device: str) -> tuple[float, float]:
    """Seconds of a training step of `job`, and of reconstructing one row, on random rows of `width` dimensions."""
    rows = torch.randn(job.training.batch_size, width, generator=torch.Generator().manual_seed(0))
    model = build(job.architecture, width_in=width, **job.settings)
    training = dataclasses.replace(job.training, splits=0)  # these need many rows at the start
    trainer = Trainer(model, itertools.repeat(rows), training, device=device, progress=False)
    trainer.begin()
    step = min(timed(trainer.advance, device) for _ in range(STEPS + 1))
    held = rows.to(device)
    with torch.no_grad():
        read = min(timed(lambda: trainer.model.reconstruct(held), device) for _ in range(STEPS))
    return step, read / len(rows)


def timed(act: Callable[[], object], device: str) -> float:
    """Seconds that `act` takes, the device's work included."""
    began = time.perf_counter()
    act()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def parameters(settings: Mapping[str, Any], width: int) -> int:
    """Weights of the encoder and decoder of a dictionary with these settings."""
    columns: int = settings.get("n_latents") or settings["n_groups"] * settings["group_rank"]
    return 2 * columns * width


def split_to_fit(items: Sequence[T], sizes: Sequence[float], room: float) -> list[list[T]]:
    """The items, in order, in stretches whose sizes add to at most `room`; one that is larger is alone."""
    out: list[list[T]] = []
    left = 0.0
    for item, size in zip(items, sizes, strict=True):
        if not out or size > left:
            out.append([])
            left = room
        out[-1].append(item)
        left -= size
    return out


def free_bytes(device: str) -> int:
    """Memory that can still be had on a device."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration):
        return 2**63


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def memory_of(trained: int, codes: int, block: int, weights: int, device: str) -> tuple[int, int]:
    """Bytes of main memory and of the GPU (0 on a CPU) in training.

    trained  parameters in training at once, PER_PARAMETER bytes each.
    codes    batch x columns, DENSE float32 arrays of which a step holds.
    block    numbers in a block of rows of a model that runs beside the training, held twice (gathered and shuffled).
    weights  bytes of the language model, which are read into main memory first.
    """
    of_step = PER_PARAMETER * trained + 4 * DENSE * codes
    on_gpu = device.startswith("cuda")
    return weights + 2 * 4 * block + (0 if on_gpu else of_step), of_step + weights if on_gpu else 0


def memory_line(host: int, gpu: int) -> str:
    """Memory of host and GPU as it is shown."""
    return f"memory: about {host / 1e9:.1f} GB" + (f" of the host and {gpu / 1e9:.1f} GB of the GPU" if gpu else "")
