"""What the gated step costs on a GPU, part by part: kernels beside torch's, ceilings, profile, recorded small steps.

    python -m benchmarks.gpu_session --out DIR [--minutes 9] [--device cuda]

Units of work run one after another, each saved as DIR/NAME.json; what is there is not measured again, and no unit is
begun after `--minutes`, so the same command goes on until it says that nothing is left (exit status 0; 75 before). The
first unit runs the tests marked `gpu`. Whole steps beside the peers' are `sasa-lab bench step --profile gpu`.

A part's `bytes` are what it must at least read and write once, `flops` what it must multiply and add; `of_ceiling` is
the time these would take at the measured copy bandwidth and product rate (whichever is longer) over the time it took.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from sasa_theory.files import read_json
from sasa_theory.models import bags, build, gate_chunks, gated_torch
from sasa_theory.models.nuclear import map_nuclear_norm
from sasa_theory.training.device import capture

#: exit status while units are left
UNFINISHED = 75


@dataclass(frozen=True)
class Shape:
    """D, K r, r, s and batch of one measurement."""

    width: int
    columns: int
    rank: int
    active: int
    batch: int

    @property
    def name(self) -> str:
        """As used in file names."""
        return f"D{self.width}-Kr{self.columns}-r{self.rank}-s{self.active}-B{self.batch}"


SHAPES = [
    Shape(width, columns // rank * rank, rank, active, batch)
    for width, columns in ((768, 12_288), (4096, 32_768))
    for rank, active in ((6, 10), (1, 60))
    for batch in (4096, 16_384)
]
TINY = [Shape(16, 60, 6, 3, 32), Shape(16, 64, 1, 4, 32)]


def milliseconds(run: Callable[[], object], device: str, repeats: int = 20) -> float:
    """Median time of one call after three untimed ones; on a GPU between two events on its stream."""
    for _ in range(3):
        run()
    found = []
    for _ in range(repeats):
        if device.startswith("cuda"):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end))
        else:
            began = time.perf_counter()
            run()
            found.append(1e3 * (time.perf_counter() - began))
    return statistics.median(found)


def ceilings(device: str, side: int = 8192) -> dict[str, Any]:
    """Copy bandwidth (bytes read and written) and product rates of this device."""
    source = torch.empty(side * side * 4, device=device)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), device)
    rates = {}
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    for precision, dtype in (("tf32", torch.float32), ("bf16", torch.bfloat16)):
        with tf32(precision == "tf32"):
            x, y = a.to(dtype), b.to(dtype)
            rates[precision] = 2 * side**3 / milliseconds(partial(torch.mm, x, y), device) * 1e3
    return {"bytes_per_second": 2 * source.nbytes / copy * 1e3, "flops_per_second": rates}


class tf32:
    """Float32 products in TF32 or not, put back afterwards."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def __enter__(self) -> None:
        self.before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.on

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self.before


def parts(shape: Shape, precision: str, device: str, ceiling: dict[str, Any]) -> dict[str, Any]:
    """Each part of the step alone, Triton's kernel beside torch's operations, and the whole, in milliseconds."""
    g = torch.Generator(device=device).manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=g, device=device)  # noqa: E731
    width, columns, rank, active, batch = shape.width, shape.columns, shape.rank, shape.active, shape.batch
    x, grad = draw(batch, width), draw(batch, width)
    w_enc, w_dec = draw(columns, width).T / width**0.5, draw(columns, width) / width**0.5
    b_enc, b_dec = torch.zeros(columns, device=device), torch.zeros(width, device=device)
    low = torch.bfloat16 if precision == "bf16" else None
    chunk = draw(min(batch, gate_chunks.CHUNK // (4 * columns)), columns)
    index, values = gate_chunks.gate_full(x, w_enc, b_enc, rank, active, False, low)
    w_low, x_low = w_enc.to(low or torch.float32), x.to(low or torch.float32)
    product_flops, sparse_flops = 2 * batch * width * columns, 2 * batch * active * rank * width
    table, rows, codes = 4 * columns * width, 4 * batch * width, values.nbytes + index.nbytes
    spare, chosen = torch.empty_like(chunk), slice(0, len(chunk))
    many = batch / len(chunk)
    blocks = w_enc.T.view(-1, rank, width).mT, w_dec.view(-1, rank, width)

    def penalty() -> None:
        enc, dec = (block.detach().requires_grad_() for block in blocks)
        map_nuclear_norm(enc, dec).sum().backward()

    weights = [t.detach().requires_grad_() for t in (w_enc, w_dec)]

    def whole() -> None:
        with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=low is not None):
            codes = gated_torch.encode(x, weights[0], b_enc, b_dec, rank, active, False)
            loss = (gated_torch.combine(*codes, weights[1]) + b_dec - x).square().sum(-1).mean()
        for weight in weights:
            weight.grad = None
        loss.backward()

    def select(module: Any) -> Callable[[], object]:
        # torch's version writes over its input, which changes no shape
        return lambda: module.select(chunk, b_enc, index[chosen].clone(), values[chosen].clone(), False, spare)

    found: dict[str, Any] = {}

    def measure(
        name: str, run: Callable[[], object], bytes_: float, flops: float, times: float = 1, low_: bool = False
    ) -> None:
        took = milliseconds(run, device) * times
        rate = ceiling["flops_per_second"]["bf16" if low_ else "tf32"]
        least = max(bytes_ / ceiling["bytes_per_second"], flops / rate) * 1e3
        found[name] = {"ms": took, "bytes": bytes_, "flops": flops, "of_ceiling": least / took}

    fast = bags.fastest(x)
    with tf32(precision == "tf32"):
        size = w_low.element_size()
        measure("product", lambda: x_low @ w_low, size * (x.numel() + w_low.numel() + batch * columns),
                product_flops, low_=low is not None)  # fmt: skip
        measure("gate", lambda: gate_chunks.gate_full(x, w_enc, b_enc, rank, active, False, low),
                rows + table + codes, product_flops, low_=low is not None)  # fmt: skip
        for label, module in (("", fast), ("torch ", bags)):
            measure(f"{label}select", select(module), 4 * batch * columns + codes, 0, many)
            measure(f"{label}bags", partial(module.bags, index, values, w_dec), table + rows + codes, sparse_flops)
            measure(f"{label}project", partial(module.project, index, grad, w_dec, rank), table + rows + codes,
                    sparse_flops)  # fmt: skip
            measure(f"{label}outer", partial(module.outer, index, values, grad, columns, True),
                    table + rows + codes, sparse_flops)  # fmt: skip
            if module is fast is bags:
                break
        measure("sort", lambda: index.flatten().int().sort(stable=True), 0, 0)
        measure("nuclear", penalty, 4 * table, 8 * columns * rank * width)
        whole()
        with harness.memory(device) as memory:
            whole()
        measure("whole", whole, 0, product_flops, low_=low is not None)
    step = found["whole"]["ms"]
    return {
        "shape": asdict(shape),
        "precision": precision,
        "triton": fast is not bags,
        "parts": found,
        "whole_over_product": step / found["product"]["ms"],
        "tokens_per_second": batch / step * 1e3,
        "peak_bytes": memory.peak,
    }


def profile(shape: Shape, device: str) -> dict[str, Any]:
    """Kernels of five whole training steps of SASA (loss, gradients, clipping, Adam, gauge) by their share of time."""
    model = build("sasa", width_in=shape.width, n_groups=shape.columns // shape.rank, group_rank=shape.rank,
                  active_groups=shape.active, nuclear=0.01, penalise="all").to(device)  # fmt: skip
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)
    x = torch.randn(shape.batch, shape.width, device=device)

    def step() -> None:
        loss = model.loss(x)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        model.post_step(loss)

    took = milliseconds(step, device, 10)
    on_gpu = device.startswith("cuda")
    with torch.profiler.profile() as recorded:
        for _ in range(5):
            step()
    rows = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.key, event.count)
        for event in recorded.key_averages()
    ]
    rows = sorted((row for row in rows if row[0] > 0), reverse=True)
    total = sum(time_ for time_, _, _ in rows)
    kernels = [{"name": name, "share": t / total, "calls_per_step": n / 5} for t, name, n in rows[:25]]
    return {"shape": asdict(shape), "ms": took, "device_ms": total / 5e3, "kernels": kernels}


def recorded(device: str) -> dict[str, Any]:
    """A step of the small setting (D 64, K r 256, batch 1024), launched kernel by kernel and as one CUDA graph."""
    model = build("sasa", width_in=64, n_groups=64, group_rank=4, active_groups=4, nuclear=0.01, penalise="all")
    model = model.to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-3, fused=True, capturable=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def step(x: Tensor) -> tuple[Tensor, ...]:
        optimizer.zero_grad(set_to_none=False)
        loss = model.loss(x)
        loss.total.backward()
        optimizer.step()
        model.post_step(loss)
        return (loss.total.detach(),)

    x = torch.randn(1024, 64, device=device)
    eager = milliseconds(lambda: step(x), device, 50)
    graph = capture(step, x)
    return {"eager_ms": eager, "graph_ms": milliseconds(lambda: graph(x), device, 50)}


def tests() -> dict[str, Any]:
    """The tests marked `gpu`, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/sasa_theory"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"status": done.returncode, "output": done.stdout[-8000:], "errors": done.stderr[-4000:]}


def _parts(shape: Shape, precision: str, device: str, out: Path) -> dict[str, Any]:
    return parts(shape, precision, device, read_json(out / "ceilings.json"))


def units(device: str, tiny: bool) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Name of every unit, in order, with what measures it."""
    on_gpu = device.startswith("cuda")
    shapes = TINY if tiny else SHAPES
    found: dict[str, Callable[[Path], dict[str, Any]]] = {}
    if on_gpu:
        found["tests"] = lambda out: tests()
    found["ceilings"] = lambda out: ceilings(device, 256 if tiny else 8192)
    for shape in shapes:
        for precision in ("tf32", "bf16"):
            found[f"parts-{shape.name}-{precision}"] = partial(_parts, shape, precision, device)
    found["profile"] = lambda out: profile(shapes[0], device)
    if on_gpu:
        found["recorded"] = lambda out: recorded(device)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing in the folder; 0 when nothing is left, 75 before."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no unit after this long")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script itself")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    todo = units(options.device, options.tiny)
    for name in [name for name in todo if not (options.out / f"{name}.json").exists()]:
        if time.monotonic() - began > 60 * options.minutes:
            return UNFINISHED
        harness.save(name, todo[name](options.out), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
