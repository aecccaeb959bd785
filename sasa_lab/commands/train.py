"""`sasa-lab train`: a sparse dictionary on planted or stored data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sasa_lab.arguments import checked_device, dataset, deadline, live, settings
from sasa_lab.forecast import of_training
from sasa_lab.running import tell
from sasa_lab.sizes import default_settings
from sasa_theory.models import architectures
from sasa_theory.training import Job, TrainSettings, fit
from sasa_theory.training.runs import directory, is_finished
from sasa_theory.training.trainer import STATE
from synthetic.errors import UsageError, unknown
from synthetic.source import Dataset

#: times that SASA's merged groups are split on planted data
SPLITS = 5


@dataclass(frozen=True)
class Options:
    """Train a sparse dictionary on a planted world, on stored activations or on a language model that runs beside it.

    The checkpoint (a SAELens directory with log.jsonl beside it) is written under OUT/runs, in a directory named
    after what was trained; its path is the last line printed. The same command returns a finished run at once and
    goes on with a stopped one. Without --set, every architecture gets the same width and L0. Stored activations are
    brought to mean zero and unit scale (--normalise mean_scalar) unless you say otherwise.

    Example: sasa-lab train --world three-manifolds --arch sasa --steps 2000

    Example: sasa-lab train --store store --arch topk --set n_latents=4096 active_latents=32
    """

    arch: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """architecture: sasa, bsf, grassmannian, grouplasso, topk, abstopk, batchtopk, matryoshka, relu, jumprelu, gated,
    or one of a plugin"""
    world: Annotated[str | None, tyro.conf.arg(metavar="SPEC")] = None
    """planted data: the name of a world that comes with the program, or a JSON file"""
    store: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """activations that `sasa-lab activations` stored"""
    model: Annotated[str | None, tyro.conf.arg(metavar="ID_OR_PATH")] = None
    """a language model that runs beside the training, without a store: Hugging Face id, directory, or gemma3-270m"""
    hook: str | None = None
    """what is read of it, such as blocks.11.hook_resid_pre"""
    text: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...")] = ()
    """what it reads: files, directories, patterns or Hugging Face datasets"""
    context: int = 128
    """tokens in each of its contexts"""
    keep_special: bool = False
    """keep its BOS and other special tokens (they are left out otherwise)"""
    norm_limit: Annotated[float, tyro.conf.arg(metavar="MEDIANS")] = 3.0
    """leave out its tokens whose norm is beyond this multiple of the median; inf keeps all"""
    prepend_bos: bool = False
    """begin its contexts with BOS although the tokenizer puts none there, as GPT-2's does not"""
    model_device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    """where it runs, cuda:1 say (default: as --device)"""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """settings of the architecture, such as n_groups=64 group_rank=4 active_groups=1 nuclear=0.01"""
    training: TrainSettings = field(default_factory=lambda: TrainSettings(initialise="data"))
    out: Path = Path("results")
    """directory for trained models"""
    device: str = "cpu"
    """torch device: cpu, cuda, cuda:1, ..."""
    max_minutes: Annotated[float | None, tyro.conf.arg(metavar="MINUTES")] = None
    """save and stop after this many minutes; the same command goes on from there"""
    resume: bool = False
    """insist on going on with a stopped run: an error if there is none with these settings"""


def run(options: Options) -> int:
    if options.arch not in architectures:
        raise unknown("architecture", options.arch, architectures)
    stop, device = deadline(options.max_minutes), checked_device(options.device)
    data = _data(options, device)
    chosen = _checked(options.arch, settings(options.set))
    sizes = default_settings(options.arch, data, chosen)
    job = Job(options.arch, sizes, options.training)
    place = directory(data, job, options.out)
    if options.resume and not (place / STATE).exists():
        raise UsageError(
            f"nothing to resume: {place} holds no checkpoint of these settings; repeat the stopped run's options, or "
            "leave --resume out to begin"
        )
    tell(f"{options.arch}: {', '.join(f'{key}={value}' for key, value in sizes.items())}")
    if options.world is None and not is_finished(place):
        tell(of_training(data, job, device))
    done = fit(data, options.arch, sizes, options.training, out=options.out, device=device, deadline=stop)
    tell(_summary(done.log[-1]))
    tell(f"trained in {done.seconds:.0f} s: {done.directory}")
    return 0


def _data(options: Options, device: str) -> Dataset:
    """What was asked for; raises UsageError unless it is exactly one of a world, a store and a language model."""
    if options.model is None:
        return dataset(options.world, options.store)
    if options.world is not None or options.store is not None:
        raise UsageError("expected one of --world SPEC, --store DIR and --model ID_OR_PATH, got several")
    elsewhere = device if options.model_device is None else checked_device(options.model_device)
    return live(
        options.model,
        options.hook,
        options.text,
        options.context,
        elsewhere,
        keep_special=options.keep_special,
        norm_limit=options.norm_limit,
        prepend_bos=options.prepend_bos,
    )


def defaults(words: Sequence[str]) -> "Options | None":
    """A language model's activations are normalised and started at random directions unless the user says otherwise.

    They are far from unit scale, and from data points, which share a direction there, the first codes overshoot many
    times over: on Gemma-3-270M TopK needs some hundred steps to come back. (On planted data it is the other way round:
    from random directions SASA merges features.)
    """
    if any(word.split("=")[0] in ("--store", "--model") for word in words):
        return Options(arch=tyro.MISSING, training=TrainSettings(normalise="mean_scalar"))
    if _given(words, "--arch") != "sasa" or "group_rank=1" in words:  # a single column has nothing to split
        return None
    # the recipe that finds every planted subspace (figure `recovery`)
    steps = _given(words, "--steps") or ""
    planned = int(steps) if steps.isdecimal() else TrainSettings.steps
    training = TrainSettings(initialise="data", splits=SPLITS, penalty_warmup_steps=planned // 2)
    return Options(arch=tyro.MISSING, training=training)


def _given(words: Sequence[str], option: str) -> str | None:
    """The word that follows an option on the command line, None where it is not there."""
    for i, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and i + 1 < len(words):
            return words[i + 1]
    return None


def _checked(architecture: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """`chosen` as it is; a SASA user may say l0 (columns), which must be a multiple of the group's rank."""
    if architecture != "sasa" or "l0" not in chosen:
        return chosen
    rest = {key: value for key, value in chosen.items() if key != "l0"}
    rank, l0 = rest.get("group_rank"), chosen["l0"]
    if not isinstance(rank, int) or rank < 1:
        raise UsageError("--set l0=... of sasa needs group_rank=... beside it, as L0 counts columns, not groups")
    if "active_groups" in rest:
        raise UsageError("--set gives both l0 and active_groups; give one of them")
    if not isinstance(l0, int) or l0 < 1 or l0 % rank:
        near = max(rank, round(l0 / rank) * rank) if isinstance(l0, int | float) else rank
        raise UsageError(
            f"l0 is {l0!r}; with group_rank {rank} it must be a positive multiple of {rank}, such as {near}"
        )
    return {**rest, "active_groups": l0 // rank}


def _summary(line: dict[str, Any]) -> str:
    dead = "not known" if line["dead_share"] is None else f"{line['dead_share']:.1%}"
    return (
        f"step {line['step']}: loss {line['loss']:.4g}, explained variance "
        f"{line['explained_variance_raw']:.4f} (on the last training batch), L0 {line['l0']:.1f}, dead {dead}"
    )
