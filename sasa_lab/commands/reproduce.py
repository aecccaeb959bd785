"""`sasa-lab reproduce`: the main job."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from figures import figures, load_all
from figures.registry import Context
from sasa_lab.arguments import checked_device, deadline
from sasa_lab.profiles import SEEDS, Profile, plan
from sasa_lab.report import write_report
from sasa_lab.running import command_for, report_failures, run_figures, tell


@dataclass(frozen=True)
class Options:
    """Draw every figure that needs nothing but this program, cheapest first, then write the report.

    quick is one seed, reduced, under 10 minutes on 2 CPU cores; standard three seeds, under 2 hours; paper the
    published settings, for a GPU. Figures that do not fit or that need input of yours are listed with the command
    that runs them. Finished results are kept, and a stopped run goes on where it was.

    Example: sasa-lab reproduce --profile quick
    """

    profile: Profile = "quick"
    """how much to run: quick, standard or paper"""
    out: Path = Path("results")
    """directory for results, trained models and the report"""
    device: str = "cpu"
    """torch device: cpu, cuda, cuda:1, ..."""
    max_minutes: Annotated[float | None, tyro.conf.arg(metavar="MINUTES")] = None
    """save and stop after this many minutes; the same command goes on from there"""
    force: bool = False
    """measure again what is already measured (trained models are kept)"""


def run(options: Options) -> int:
    stop = deadline(options.max_minutes)
    device = checked_device(options.device)
    load_all()
    chosen = plan([figures[name] for name in figures.names()], options.profile)
    context = Context(options.profile, SEEDS[options.profile], options.out, device, stop)
    failed = run_figures([figure.name for figure in chosen.run], context, options.force)
    if chosen.left:
        tell("not run here:")
    for figure, why in chosen.left:
        tell(f"  {figure.name} {why}: {command_for(figure, options.profile)}")
    tell(f"report: {write_report(options.out)}")
    return report_failures(failed)
