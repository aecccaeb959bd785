"""`sasa-lab figure NAME`: one figure or table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from figures import figures, load_all
from figures.registry import Context
from sasa_lab.arguments import checked_device, deadline, pairs
from sasa_lab.profiles import SEEDS, Profile
from sasa_lab.report import write_report
from sasa_lab.running import run_figure, tell
from synthetic.errors import UsageError


@dataclass(frozen=True)
class Options:
    """Draw one figure or table of the paper by name; `sasa-lab figure list` names them with their options.

    Writes OUT/NAME/PROFILE/result.json with every number, the pictures beside it, and the report.

    Example: sasa-lab figure manifolds --profile quick
    """

    name: tyro.conf.Positional[str]
    """the figure's name, or list"""
    profile: Profile = "quick"
    """how much to run: quick (one seed, reduced), standard (three seeds) or paper (published settings, a GPU)"""
    option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """an option of this figure, as key=value (may be given more than once)"""
    seeds: tuple[int, ...] = ()
    """seeds instead of the profile's own"""
    out: Path = Path("results")
    """directory for results, trained models and the report"""
    device: str = "cpu"
    """torch device: cpu, cuda, cuda:1, ..."""
    max_minutes: Annotated[float | None, tyro.conf.arg(metavar="MINUTES")] = None
    """save and stop after this many minutes; the same command goes on from there"""
    force: bool = False
    """measure again what is already measured (trained models are kept)"""


def run(options: Options) -> int:
    load_all()
    if options.name == "list":
        _list()
        return 0
    figure = figures[options.name]
    if any(seed < 0 for seed in options.seeds) or len(set(options.seeds)) < len(options.seeds):
        raise UsageError(f"--seeds is {options.seeds}; expected different non-negative integers")
    context = Context(
        profile=options.profile,
        seeds=options.seeds or SEEDS[options.profile],
        out=options.out,
        device=checked_device(options.device),
        deadline=deadline(options.max_minutes),
        options=pairs(options.option, "--option"),
    )
    run_figure(figure, context, options.force)
    tell(f"report: {write_report(options.out)}")
    return 0


def _list() -> None:
    for name in figures.names():
        figure = figures[name]
        budget = ", ".join(f"{profile} {seconds:.0f} s" for profile, seconds in figure.budget.items())
        tell(f"{name}: {figure.title} ({budget})")
        if figure.needs:
            tell(f"    needs {figure.needs}")
        for key, text in figure.options.items():
            tell(f"    --option {key}=...  {text}")
