"""`sasa-lab bench`: our code and the peers', timed in turn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sasa_lab.arguments import checked_device
from sasa_lab.running import tell
from sasa_theory.files import write_bytes
from synthetic.errors import UsageError

#: profile -> sweeps and rounds of `bench step`
STEP: dict[str, tuple[tuple[str, ...], int]] = {
    "quick": (("main", "small"), 3),
    "standard": (("main", "small", "architectures", "K", "r", "L0", "batch", "dead"), 5),
    "gpu": (("main", "small", "gpu", "K", "r", "L0", "batch"), 10),
}


@dataclass(frozen=True)
class Options:
    """Time our code and the peers' in turn on this machine, and save medians, spread, ratios and versions.

    step: whole training steps, beside the time of the encoder's product. data: worlds and stores in rows a second.
    lasso: l1 coding. show: draw the figure and the tables again from what was saved. Comparisons that are at hand are
    kept, so the same command goes on with a stopped run. Peers that are not installed are left out, and said so; the
    extra peers installs those of step, the extra bench those of lasso.

    Example: sasa-lab bench step --profile quick
    """

    what: tyro.conf.Positional[Literal["step", "data", "lasso", "show"]]
    """step, data, lasso or show"""
    profile: Literal["quick", "standard", "gpu"] = "quick"
    """quick (main sizes, few rounds), standard (all sweeps) or gpu (all and larger ones, with --device cuda)"""
    sweep: tuple[str, ...] = ()
    """of step: sweeps instead of the profile's (main, small, architectures, K, r, L0, batch, dead, gpu)"""
    contender: tuple[str, ...] = ()
    """of step: these contenders only"""
    rounds: int | None = None
    """rounds instead of the profile's"""
    precision: tuple[str, ...] = ()
    """of step on a GPU: tf32, bf16 (autocast), fp32 (default: the first two)"""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads of both sides (torch's own choice)"""
    sasa_path: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """of step: a checkout of the published SASA code, which then runs too"""
    device: str = "cpu"
    """torch device: cpu, cuda, cuda:1, ..."""
    out: Path = Path("benchmarks/results")
    """directory for the results"""
    force: bool = False
    """of step: measure again what is at hand"""
    readme: bool = False
    """of show: also put the tables into README.md and the figure into docs/ (for maintainers)"""


def run(options: Options) -> int:
    try:
        import benchmarks  # noqa: F401
    except ImportError:
        raise UsageError(
            "the package benchmarks is not installed; run sasa-lab from a checkout: pip install -e ."
        ) from None
    if options.rounds is not None and options.rounds < 1:
        raise UsageError(f"--rounds is {options.rounds}; expected a positive integer")
    {"step": _step, "data": _data, "lasso": _lasso, "show": _show}[options.what](options)
    return 0


def _step(options: Options) -> None:
    from benchmarks.step import Plan, run

    sweeps, rounds = STEP[options.profile]
    device = checked_device(options.device)
    if options.profile == "gpu" and not device.startswith("cuda"):
        raise UsageError(f"--profile gpu is for a GPU, the device is {device}; add --device cuda")
    plan = Plan(
        sweeps=options.sweep or sweeps,
        contenders=options.contender,
        rounds=options.rounds or rounds,
        device=device,
        precisions=options.precision,
        threads=options.threads,
        sasa_path=options.sasa_path,
    )
    tell(f"measured: {run(plan, options.out, options.force, tell)}")
    _draw(options)


def _data(options: Options) -> None:
    from benchmarks.data import run

    rounds = options.rounds or (3 if options.profile == "quick" else 7)
    tell(f"measured: {run(rounds=rounds, device=checked_device(options.device), out=options.out, tell=tell)}")


def _lasso(options: Options) -> None:
    from benchmarks.lasso import SIZES, run

    quick = options.profile == "quick"
    threads = () if options.threads is None else (options.threads,)
    sizes = range(1 if quick else len(SIZES))
    rounds = options.rounds or 3
    tell(f"measured: {run(sizes, 1000 if quick else 10_000, 10, rounds, threads, options.out)}")


def _show(options: Options) -> None:
    from benchmarks.show import tables, write_readme

    tell(tables(options.out))
    picture = _draw(options)
    if options.readme:
        shown = write_bytes(Path("docs/step.png"), picture.read_bytes()) if picture else None
        tell(f"written: {write_readme(Path('README.md'), options.out, shown.as_posix() if shown else None)}")


def _draw(options: Options) -> Path | None:
    """OUT/step.png, or None (and a line that says so) where no sweep was measured."""
    from benchmarks.show import figure, load, save_figure

    device = options.device.partition(":")[0]
    try:
        picture = save_figure(figure(load(options.out / "step.json", "runs"), device), options.out / "step.png")
    except UsageError as error:
        tell(f"no figure: {error}")
        return None
    tell(f"  {picture}")
    return picture
