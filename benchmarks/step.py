"""The training step: ours against the published one and the peers', at equal width, columns, L0, batch and dead share.

    python -m benchmarks.step --sweep main small        # sasa-lab bench step does the same, then draws the figure

Each comparison builds every contender, measures its memory alone, then times all in turn beside the floor: the
encoder's product (B, D) x (D, K r) by torch.mm in the comparison's precision. Comparisons are saved one by one, and a
run that was stopped goes on with the ones that are missing. On a GPU (`--device cuda --sweep gpu`) each is made twice,
in TF32 and in bf16 autocast. The sweep "architectures" makes one comparison an architecture: ours and the peers' of it.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.contenders import ARCHITECTURES, COMMON, CONTENDERS, OURS, SPARSE, Bench, Setting, Step, rows
from benchmarks.harness import RESULTS, Contender, machine, memory, product_rates, race, save, sources
from benchmarks.parts import parts
from sasa_theory.files import read_json
from sasa_theory.models.rounding import int8_is_faster
from sasa_theory.training.cost import free_bytes
from synthetic.errors import LabError, UsageError, unknown

NAME, FLOOR = "step", "encoder product"
MAIN = Setting(768, 2048, 6, 10, 4096)
SMALL = Setting(64, 64, 4, 2, 1024)
DEAD = 0.2
#: more than this share of the memory that is free is not asked for
MEMORY_SHARE = 0.7
#: what a measured step depends on
CODE = ("sasa_theory/models", "sasa_theory/training", "benchmarks/contenders.py", "benchmarks/published_sasa.py")
#: seconds that steps shorter than this are repeated for within a round
LEAST = 0.2
PRECISIONS = ("fp32", "tf32", "bf16")


def _sweeps() -> dict[str, list[Setting]]:
    large = Setting(4096, 8192, 4, 15, 4096)
    sweeps = {
        "main": [MAIN, replace(MAIN, dead=DEAD)],
        "small": [SMALL, replace(SMALL, dead=DEAD)],
        "K": [replace(MAIN, n_groups=2**n) for n in range(9, 16)],
        "r": [
            replace(MAIN, n_groups=MAIN.columns // r, rank=r, active=max(1, 60 // r)) for r in (1, 2, 4, 6, 8, 16, 32)
        ],
        "L0": [replace(MAIN, n_groups=3072, rank=4, active=l0 // 4) for l0 in (32, 60, 120, 240)],
        "batch": [replace(MAIN, batch=b) for b in (256, 1024, 4096, 16384)],
        "gpu": [replace(size, batch=b) for size in (MAIN, large) for b in (4096, 16384)],
        "architectures": [MAIN, SMALL],
    }
    ends = [*sweeps["K"][::4], *sweeps["r"][::6], *sweeps["L0"][::3]]
    sweeps["dead"] = [replace(at, dead=DEAD) for at in ends]
    return sweeps


#: name -> settings; K, r, L0 and batch are what the figure shows, "dead" is the ends of K, r and L0 with dead units
SWEEPS = _sweeps()
#: contenders of a sweep where not all common ones run; the restated step only stands in for the published code
ONLY = {"K": ("sasa", "published", "restated")}


class Comparison(NamedTuple):
    """Who runs together at which sizes; `architecture` is that of the sweep "architectures", else empty."""

    setting: Setting
    precision: str
    names: tuple[str, ...]
    architecture: str = ""


@dataclass(frozen=True)
class Plan:
    """What to run: sweeps, contenders (none: all), rounds, device, precisions, threads and the published checkout."""

    sweeps: tuple[str, ...] = ("main", "small")
    contenders: tuple[str, ...] = ()
    rounds: int = 5
    device: str = "cpu"
    precisions: tuple[str, ...] = ()
    threads: int | None = None
    sasa_path: Path | None = None

    def __post_init__(self) -> None:
        for kind, names, known in (
            ("sweep", self.sweeps, SWEEPS),
            ("contender", self.contenders, CONTENDERS),
            ("precision", self.precisions, PRECISIONS),
        ):
            for name in names:
                if name not in known:
                    raise unknown(kind, name, known)
        if self.rounds < 1 or (self.threads is not None and self.threads < 1):
            raise UsageError(f"rounds is {self.rounds}, threads {self.threads}; expected positive integers")
        if self.device == "cpu" and set(self.precisions) - {"fp32"}:
            raise UsageError(f"precision is {self.precisions}; on the CPU all contenders compute in fp32")

    def comparisons(self) -> list[Comparison]:
        """Settings with precision and contenders, each once whatever number of sweeps it is in."""
        wanted: dict[tuple[Setting, str], set[str]] = {}
        for sweep in self.sweeps:
            for setting in SWEEPS[sweep]:
                for architecture, names in _names(sweep, setting).items():
                    left = {*names} & {*(self.contenders or CONTENDERS)} - (set() if self.sasa_path else {"published"})
                    if sweep not in ("main", "small"):
                        left -= {"sasa torch", *(("restated",) if self.sasa_path else ())} - {*self.contenders}
                    if left:
                        wanted.setdefault((setting, architecture), set()).update(left)
        precisions = self.precisions or (("tf32", "bf16") if self.device.startswith("cuda") else ("fp32",))
        return [
            Comparison(setting, precision, tuple(name for name in CONTENDERS if name in names), architecture)
            for (setting, architecture), names in wanted.items()
            for precision in precisions
        ]


def _names(sweep: str, setting: Setting) -> dict[str, tuple[str, ...]]:
    """Contenders of a sweep at a setting, by architecture where each is a comparison of its own."""
    if sweep == "architectures":
        return ARCHITECTURES
    if sweep == "dead":
        sweep = next(name for name in ("K", "r", "L0") if replace(setting, dead=0.0) in SWEEPS[name])
    return {"": ONLY.get(sweep, tuple(COMMON))}


def run(
    plan: Plan, out: Path = RESULTS, force: bool = False, tell: Callable[[str], object] = lambda line: None
) -> Path:
    """Measure what is missing of a plan and save OUT/step.json after every comparison; returns its path.

    Results of the same code and place (GPU, or CPU and threads) are kept unless `force`; those of another CPU make way
    for a CPU's, those of another GPU for a GPU's. Raises UsageError for a --sasa-path that is no checkout.
    """
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    if plan.sasa_path is not None and not (plan.sasa_path / "sasa" / "model.py").is_file():
        raise UsageError(f"--sasa-path is {plan.sasa_path}; expected a checkout that has sasa/model.py")
    file = out / f"{NAME}.json"
    place, now = _place(plan.device), sources(*CODE)
    saved = read_json(file) if file.is_file() else {"runs": []}
    products = saved.get("products")
    to_measure = plan.device == "cpu" and (force or products is None or products["place"] != place)
    done: list[dict[str, Any]] = saved["runs"]
    done = [found for found in done if found["place"] == place or _kind(found["device"]) != _kind(plan.device)]
    for setting, precision, names, architecture in plan.comparisons():
        shown = describe(setting, precision) + (f", {architecture}" if architecture else "")
        key = f"{shown} on {place}"
        at_hand = next((found for found in done if found["key"] == key), None)
        tried = {*at_hand["rows"], *at_hand["left_out"]} if at_hand and at_hand["code"] == now else set()
        if not force and set(names) <= tried:
            tell(f"{shown}: kept (same code and machine; --force measures again)")
            continue
        bench = Bench(setting, rows(setting, plan.device), plan.device, precision == "bf16", plan.sasa_path)
        found = {"key": key, "place": place, "code": now, "architecture": architecture}
        found |= compare(bench, names, plan.rounds, precision)
        done = [*(entry for entry in done if entry["key"] != key), found]
        if to_measure:
            size = SWEEPS["main"][0]
            products = {"place": place, "int8_is_faster": int8_is_faster()}
            products |= product_rates(size.batch, size.width, size.columns)
            to_measure = False
        save(NAME, {"runs": done, **({"products": products} if products else {})}, out)
        tell(f"{shown}: {summary(found)}")
    return file


def compare(bench: Bench, names: Iterable[str], rounds: int, precision: str) -> dict[str, Any]:
    """One comparison: per contender the seconds, tokens/s, peak bytes and time over the floor; who was left out."""
    setting, device = bench.setting, bench.device
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    steps: dict[str, Step] = {}
    peaks: dict[str, int | None] = {}
    left_out: dict[str, str] = {}
    for name in names:
        needed = needed_bytes(setting, name)
        if needed > MEMORY_SHARE * free_bytes(device):
            left_out[name] = f"needs about {needed / 2**30:.0f} GiB, more than {MEMORY_SHARE:.0%} of what is free"
            continue
        try:
            with memory(device) as held:
                steps[name] = CONTENDERS[name](bench)
                steps[name]()
            peaks[name] = held.peak
        except UsageError as error:
            left_out[name] = str(error)
    dtype = torch.bfloat16 if bench.autocast else torch.float32
    x, columns = bench.rows[0].to(dtype), torch.randn(setting.width, setting.columns, device=device, dtype=dtype)
    product = torch.empty(setting.batch, setting.columns, device=device, dtype=dtype)
    sides = [Contender(FLOOR, lambda: torch.mm(x, columns, out=product))]
    sides += [Contender(name, step) for name, step in steps.items()]
    times = race(sides, rounds, describe(setting, precision), device, LEAST)
    shares = {name: parts(steps[name], device) for name in OURS if name in steps}
    steps.clear()
    gc.collect()
    floor = times.pop(FLOOR)
    measured: dict[str, dict[str, Any]] = {
        name: {
            "seconds": timing.to_json(),
            "tokens_per_second": setting.batch / timing.median,
            "peak_bytes": peaks[name],
            "over_floor": timing.median / floor.median,
        }
        for name, timing in times.items()
    }
    ratios = {
        name: {other: row["seconds"]["median"] / measured[name]["seconds"]["median"] for other, row in measured.items()}
        for name in OURS
        if name in measured
    }
    flop = 2 * setting.batch * setting.width * setting.columns
    return {
        "setting": asdict(setting) | {"columns": setting.columns, "l0": setting.l0, "aux_columns": setting.aux_columns},
        "precision": precision,
        "device": device,
        "threads": torch.get_num_threads(),
        "floor": {"seconds": floor.to_json(), "flop": flop, "flop_per_second": flop / floor.median},
        "rows": measured,
        "left_out": left_out,
        "ratios": ratios,
        "shares": shares,
        "machine": machine(),
    }


def needed_bytes(setting: Setting, name: str) -> int:
    """About what a contender holds at most: weights, gradients, moments, and seven (B, K r) tensors if it is dense."""
    tensors = 1 if name in SPARSE else 7
    return 4 * setting.columns * (8 * setting.width + tensors * setting.batch)


def describe(setting: Setting, precision: str = "fp32") -> str:
    """One line naming a comparison."""
    dead = f", {setting.dead:.0%} dead" if setting.dead else ""
    sizes = f"D={setting.width} K={setting.n_groups} r={setting.rank} s={setting.active} B={setting.batch}"
    return f"{sizes} {precision}{dead}"


def summary(found: dict[str, Any]) -> str:
    """Milliseconds a step of everyone in a comparison, and who was left out."""
    shown = [f"{FLOOR} {1e3 * found['floor']['seconds']['median']:.3g} ms"]
    shown += [f"{name} {1e3 * row['seconds']['median']:.3g} ms" for name, row in found["rows"].items()]
    shown += [f"{name} left out ({reason})" for name, reason in found["left_out"].items()]
    return ", ".join(shown)


def _place(device: str) -> str:
    """What a time belongs to: the GPU, or the CPU and the number of threads."""
    here = machine()
    return str(here["gpu"]) if _kind(device) == "cuda" else f"{here['cpu']}, {torch.get_num_threads()} threads"


def _kind(device: str) -> str:
    return device.partition(":")[0]


def main() -> None:
    """Run a plan given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs="+", choices=list(SWEEPS), default=["main", "small"])
    parser.add_argument("--contender", nargs="+", choices=list(CONTENDERS), default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=[])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sasa-path", type=Path, help="a checkout of the published code")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--force", action="store_true", help="measure again what is at hand")
    options = parser.parse_args()
    try:
        plan = Plan(
            tuple(options.sweep),
            tuple(options.contender),
            options.rounds,
            options.device,
            tuple(options.precision),
            options.threads,
            options.sasa_path,
        )
        run(plan, options.out, options.force, lambda line: sys.stdout.write(line + "\n"))
    except LabError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
