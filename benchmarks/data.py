"""Does data keep up with training? Rows a second of planted worlds and of an activation store, beside our SASA step.

    python -m benchmarks.data                # sasa-lab bench data

Each source gives batches of the step's size and width, all in turn with the step, in one process and one thread of
Python: a ratio of 3 means that making a batch adds a third to a step. The store holds random rows on the local disk and
is read from the page cache once it has been read; a shard's checksum, which is checked once, is not timed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Bench, Setting, ours, rows
from benchmarks.harness import RESULTS, Contender, race, save
from benchmarks.step import MAIN, SMALL
from sasa_theory.activations import ActivationStore, StoreWriter
from synthetic.errors import LabError
from synthetic.source import Dataset
from synthetic.world import World, world_names

NAME, GOAL = "data", 3.0
STEP = "step"
#: stored dtypes
DTYPES = ("bfloat16", "float32")


def setting_of(width: int) -> Setting:
    """The step that data of a width is compared with: the main sizes from D = 256, the small ones below."""
    return replace(MAIN if width >= 256 else SMALL, width=width)


def run(
    worlds: Sequence[str] | None = None,
    store_rows: int = 65_536,
    rounds: int = 5,
    device: str = "cpu",
    out: Path = RESULTS,
    tell: Callable[[str], object] = lambda line: None,
    setting_of: Callable[[int], Setting] = setting_of,
) -> Path:
    """Measure every world (None: all that ship) and a store of each width they have; returns OUT/data.json."""
    made = {name: World.from_spec(name) for name in (world_names() if worlds is None else worlds)}
    found: list[dict[str, Any]] = []
    for width in sorted({world.width for world in made.values()}):
        setting = setting_of(width)
        with tempfile.TemporaryDirectory(prefix="sasa-lab-bench-") as folder:
            sources: dict[str, Dataset] = {
                f"world {name}": world for name, world in made.items() if world.width == width
            }
            sources |= {f"store {dtype}": _store(Path(folder) / dtype, dtype, width, store_rows) for dtype in DTYPES}
            streams = {name: data.batches(setting.batch, device) for name, data in sources.items()}
            step = ours("sasa", Bench(setting, rows(setting, device), device, device.startswith("cuda")))
            step()  # compiles
            sides = [Contender(STEP, step, setting.batch)]
            sides += [Contender(name, stream.__next__, setting.batch) for name, stream in streams.items()]
            times = race(sides, rounds, f"data, D={width}", device, least=0.2)
        median = times[STEP].median
        found.append(
            {
                "width": width,
                "batch": setting.batch,
                "columns": setting.columns,
                "device": device,
                "threads": torch.get_num_threads(),
                "rows": {
                    name: {
                        "seconds_per_row": timing.to_json(),
                        "rows_per_second": 1 / timing.median,
                        "over_step": median / timing.median,
                    }
                    for name, timing in times.items()
                },
            }
        )
        save(NAME, {"goal": GOAL, "store_rows": store_rows, "runs": found}, out)
        said = [
            f"{name} {row['over_step']:.1f} times the step" for name, row in found[-1]["rows"].items() if name != STEP
        ]
        tell(f"D={width}: step {1 / median:.0f} rows/s; {', '.join(said)}")
    return out / f"{NAME}.json"


def _store(path: Path, dtype: str, width: int, n: int) -> ActivationStore:
    generator = torch.Generator().manual_seed(0)
    with StoreWriter(path, width, meta={"what": "random rows"}, dtype=dtype) as writer:
        for start in range(0, n, 4096):
            count = min(4096, n - start)
            contexts = torch.arange(start, start + count) // 128
            writer.append(torch.randn(count, width, generator=generator), mark=start + count, contexts=contexts)
        writer.finish()
    store = ActivationStore(path)
    store.rows(range(n))  # checksums and pages
    return store


def main() -> None:
    """Measure all worlds and write results/data.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", nargs="+", help="worlds by name or file (all that ship)")
    parser.add_argument("--store-rows", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    try:
        run(
            options.world,
            options.store_rows,
            options.rounds,
            options.device,
            options.out,
            lambda line: sys.stdout.write(line + "\n"),
        )
    except LabError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
