"""Does data keep up with training? Rows a second of planted worlds and of an activation store, beside our SASA step.

    python -m benchmarks.data                # sasa-lab bench data

Each source gives batches in turn with the step that is trained on it, in one process and one thread of Python: a ratio
of 3 means that making a batch adds a third to a step. That step is the one `sasa-lab train` takes by default (a world's
columns follow from its planted dimensions), and from D = 256 on the published sizes. The store holds random rows on the
local disk and is read from the page cache once it has been read; a shard's checksum, which is checked once, is not
timed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Bench, Setting, ours, rows
from benchmarks.harness import RESULTS, Contender, race, save
from benchmarks.step import MAIN, SMALL
from sasa_lab.sizes import default_settings
from sasa_theory.activations import ActivationStore, StoreWriter
from synthetic.errors import LabError
from synthetic.source import Dataset
from synthetic.spec import read_spec, world_names
from synthetic.world import World

NAME, GOAL = "data", 3.0
STEP = "step"
#: stored dtypes
DTYPES = ("bfloat16", "float32")


def setting_of(data: Dataset) -> Setting:
    """The step that a dataset is compared with (module docstring)."""
    if data.width >= 256:
        return replace(MAIN, width=data.width)
    sizes = default_settings("sasa", data, {})
    return Setting(data.width, sizes["n_groups"], sizes["group_rank"], sizes["active_groups"], SMALL.batch)


def run(
    worlds: Sequence[str] | None = None,
    store_rows: int = 65_536,
    rounds: int = 5,
    device: str = "cpu",
    out: Path = RESULTS,
    tell: Callable[[str], object] = lambda line: None,
    setting_of: Callable[[Dataset], Setting] = setting_of,
) -> Path:
    """Measure every world (None: all that ship) and a store of each width they have; returns OUT/data.json.

    Each source is made when its turn comes, small ones first, as a training run has one: in a process that holds large
    ones the allocator hands the small batches' memory back to the system every time, which takes as long again.
    """
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sasa-lab-bench-") as folder:
        for name, make in _sources(world_names() if worlds is None else worlds, Path(folder), store_rows):
            data = make()
            setting = setting_of(data)
            stream = data.batches(setting.batch, device)
            step = ours("sasa", Bench(setting, rows(setting, device), device, device.startswith("cuda")))
            step()  # compiles
            sides = [Contender(STEP, step, setting.batch), Contender(name, stream.__next__, setting.batch)]
            times = race(sides, rounds, f"{name}, D={data.width}", device, least=0.2)
            median = times[STEP].median
            found.append(
                {
                    "width": data.width,
                    "batch": setting.batch,
                    "columns": setting.columns,
                    "l0": setting.l0,
                    "device": device,
                    "threads": torch.get_num_threads(),
                    "rows": {
                        side: {
                            "seconds_per_row": timing.to_json(),
                            "rows_per_second": 1 / timing.median,
                            "over_step": median / timing.median,
                        }
                        for side, timing in times.items()
                    },
                }
            )
            save(NAME, {"goal": GOAL, "store_rows": store_rows, "runs": found}, out)
            ratio = found[-1]["rows"][name]["over_step"]
            tell(f"{name}, D={data.width}: {ratio:.1f} times the step of {setting.columns} columns, L0 {setting.l0}")
    return out / f"{NAME}.json"


def _sources(worlds: Sequence[str], folder: Path, store_rows: int) -> Iterator[tuple[str, Callable[[], Dataset]]]:
    """Name of each source and what makes it, by width: its worlds, then the stores."""
    width_of = {name: int(read_spec(name)["width"]) for name in worlds}
    for width in sorted(set(width_of.values())):
        for name in (name for name in worlds if width_of[name] == width):
            yield f"world {name}", partial(World.from_spec, name)
        for dtype in DTYPES:
            yield f"store {dtype}", partial(_store, folder / f"{dtype}-{width}", dtype, width, store_rows)


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
