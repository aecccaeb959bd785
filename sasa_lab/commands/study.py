"""`sasa-lab study CONFIGURATION`: a language model from text to report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from figures import load_all
from figures.registry import Context
from sasa_lab.arguments import checked_device, deadline, require_transformers
from sasa_lab.profiles import Profile
from sasa_lab.report import write_report
from sasa_lab.results import kept_result
from sasa_lab.running import report_failures, run_figures, tell
from synthetic.errors import unknown

#: in the order they are run: what trains most comes first, so that the others find it
FIGURES = (
    "matched-budget",
    "token-budget",
    "ablation",
    "concepts",
    "temporal",
    "feature-clusters",
    "absorption",
    "causal",
)


@dataclass(frozen=True)
class Options:
    """Train dictionaries on a language model's activations and measure them, from text to report.

    CONFIGURATION names the model, the hook and every size: gemma3-270m-l11 (offline package, a few hours on two
    cores), gpt2-l7, gpt2-l7-no-bos, mistral-l19, mistral-l8 (published settings, a GPU), or a JSON file of your own
    with the same fields. An estimate of tokens, disk, hours and memory (host and GPU) of what is still to be
    done is printed first. A stopped study goes on with the same command. The package extra `lm` is needed.

    Example: sasa-lab study gemma3-270m-l11 --text text --estimate

    Example: sasa-lab study gpt2-l7 --device cuda --max-minutes 8
    """

    configuration: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIGURATION")]
    """name of a configuration, or a JSON file"""
    text: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...")] = ()
    """files, directories, patterns or Hugging Face datasets (default: the configuration's; docs/text.md)"""
    store: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """an existing store of the same model and hook (default: one is written under OUT/stores, or none is needed)"""
    model: Annotated[str | None, tyro.conf.arg(metavar="ID_OR_PATH")] = None
    """where the model's weights are, if not where the configuration says"""
    figure: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = FIGURES
    """which figures (default: all)"""
    profile: Profile = "standard"
    """standard: the configuration's sizes; quick: a few thousand tokens, to see that everything runs"""
    estimate: bool = False
    """print the estimate and stop"""
    out: Path | None = None
    """directory for store, dictionaries, results and report (default: results/CONFIGURATION)"""
    device: str = "cpu"
    """torch device: cpu, cuda, cuda:1, ..."""
    model_device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    """where the language model runs beside the training, where it keeps no store (default: as --device)"""
    max_minutes: Annotated[float | None, tyro.conf.arg(metavar="MINUTES")] = None
    """save and stop after this many minutes; the same command goes on from there"""
    force: bool = False
    """measure again what is already measured (dictionaries and store are kept)"""


def run(options: Options) -> int:
    require_transformers()
    from figures.language.estimate import estimate
    from figures.language.study import Study

    stop, device = deadline(options.max_minutes), checked_device(options.device)
    load_all()
    for name in options.figure:
        if name not in FIGURES:
            raise unknown("figure of a study", name, FIGURES)
    elsewhere = None if options.model_device is None else checked_device(options.model_device)
    given = {
        "text": ",".join(options.text),
        "store": options.store,
        "model": options.model,
        "model_device": elsewhere,
    }
    chosen = {"config": options.configuration, **{key: str(value) for key, value in given.items() if value}}
    out = options.out or Path("results") / Path(options.configuration).stem
    context = Context(options.profile, (0,), out, device, stop, chosen)
    study = Study.open(context)
    tell(f"{study.configuration.name}: {study.configuration.title} -> {out}")
    todo = [name for name in options.figure if options.force or kept_result(name, context) is None]
    for line in estimate(study, todo).lines():
        tell(f"  {line}")
    if options.estimate:
        return 0
    failed = run_figures(options.figure, context, options.force)
    tell(f"report: {write_report(out)}")
    return report_failures(failed)
