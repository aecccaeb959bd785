"""What a study will take, before it begins: tokens, disk, hours and memory, from a few seconds of measuring here.

The language model is timed on some contexts of the text, to the hook and from the hook to the loss, and every
architecture on a few steps and a batch of held-out rows at its largest L0. Runs that are finished already are not
counted. All dictionaries of one pass are in memory together (fit_together). What cannot be timed in seconds, prompts
and clusters, is scaled from its time on Gemma-3-270M and said to be.
"""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from figures.language import ablation, token_budget
from figures.language.configuration import ARCHITECTURES
from figures.language.study import Study
from sasa_theory.activations import LanguageModel
from sasa_theory.activations.continuation import Continuation
from sasa_theory.activations.gather import Pace, measure_pace
from sasa_theory.activations.live import BLOCK
from sasa_theory.activations.store import EVAL_EVERY
from sasa_theory.models import build
from sasa_theory.training import Job, Trainer, TrainSettings
from sasa_theory.training.runs import directory, is_finished

#: bytes a parameter takes in training (weight, gradient, two moments), float32
PER_PARAMETER = 16
#: bytes of a stored row beside its numbers (layout.COLUMNS and its norm)
PER_ROW = 24
#: arrays of batch x columns float32 that a step holds: pre-activations, codes, their gradient
DENSE = 3
#: a learning rate where none has been chosen yet
UNTUNED = 1e-3
#: steps timed after one that compiles
STEPS = 2
#: contexts from the hook to the loss that are timed, at most
TIMED = 4
#: figures that train dictionaries of their own; the others measure those of matched-budget at the middle L0
TRAINED = ("matched-budget", "token-budget", "ablation")
#: times that a figure reads the held-out rows with each dictionary
READINGS = {"tuning": 1, "matched-budget": 1, "token-budget": 1, "ablation": 1, "concepts": 1, "feature-clusters": 2}
#: figures of prompts: tokens of the language model that take as long, for each dictionary at the middle L0. On
#: Gemma-3-270M (docs/gemma3-270m-l11, 12 dictionaries) they took 370, 1,410 and 47 s at 660 tokens a second
PROMPTS = {"absorption": 20_000, "causal": 78_000, "temporal": 2600}
#: seconds of `feature-clusters` there for each of 12 dictionaries, whose directions it clusters on the CPU (columns
#: squared times width)
CLUSTERS, CLUSTERED = 50.0, 4096**2 * 640


@dataclass(frozen=True)
class Estimate:
    """What is still to be done. Bytes, seconds and counts; `seconds_of` is architecture -> a step's seconds."""

    tokens_run: int
    """tokens that the language model runs, for the store or beside the training"""
    tokens_per_second: float
    dictionaries: int
    """still to be trained"""
    together: int
    """of these, in memory at once"""
    disk: int
    """of the store that is still to be written, of the dictionaries' states, and of held-out rows of a running model"""
    host: int
    """bytes of main memory"""
    gpu: int
    """bytes on the dictionaries' device, where that is a GPU"""
    training: float
    """gathering included"""
    reading: float
    """held-out rows through the dictionaries, and spliced passes"""
    scaled: float
    """prompts and clusters, from their time on Gemma-3-270M"""
    seconds_of: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """As it is shown."""
        steps = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in self.seconds_of.items())
        pace = f"{self.tokens_run:,} at {self.tokens_per_second:,.0f} a second" if self.tokens_run else "none"
        trained = f"{self.dictionaries}, {self.together} at once ({steps} a step)" if self.dictionaries else "none"
        hours = self.training + self.reading + self.scaled
        return [
            f"tokens through the language model: {pace}",
            f"dictionaries to train: {trained}",
            f"disk: {self.disk / 1e9:.2f} GB; {memory_line(self.host, self.gpu)}",
            f"time: about {hours / 3600:.1f} hours: {self.training / 3600:.1f} of training and gathering and "
            f"{self.reading / 3600:.1f} of evaluation and splicing, both timed here, and {self.scaled / 3600:.1f} of "
            "prompts and clusters, scaled from their time on Gemma-3-270M",
        ]


def memory_line(host: int, gpu: int) -> str:
    """Memory of host and GPU as it is shown."""
    return f"memory: about {host / 1e9:.1f} GB" + (f" of the host and {gpu / 1e9:.1f} GB of the GPU" if gpu else "")


def estimate(study: Study, names: Sequence[str]) -> Estimate:
    """What the figures `names` of a study take: measured for a few seconds and multiplied; writes nothing."""
    made, model, width = study.configuration, study.language_model, study.language_model.width
    passes = study_passes(study, names)
    jobs = [job for of in passes.values() for one in of for job in one]
    unfinished = _once(study, [one for of in passes.values() for one in of])
    todo = [job for one in unfinished for job in one]
    device = study.context.device
    speeds = {
        name: _speed(max(of, key=lambda job: parameters(job, width)), width, device)
        for name in ARCHITECTURES
        if (of := [job for job in jobs if job.architecture == name])
    }
    training = sum(job.training.steps * speeds[job.architecture][0] for job in todo)
    disk = sum(parameters(job, width) for job in todo) * PER_PARAMETER
    if study.is_stored:
        tokens = 0 if study.at_hand else max(0, made.tokens - study.stored_rows())
        disk += tokens * (2 * width + PER_ROW)
    else:
        tokens = sum(max(job.training.steps for job in one) * made.batch_size for one in unfinished if one)
        disk += 4 * width * made.evaluation_tokens
    pace = measure_pace(model, made.hook, study.texts)
    largest = max(
        (one for one in unfinished if one), key=lambda one: sum(parameters(j, width) for j in one), default=[]
    )
    trained = sum(parameters(job, width) for job in largest)
    codes = made.batch_size * made.columns if largest else 0
    block = 0 if study.is_stored else BLOCK * made.context * width
    host, gpu = memory_of(trained, codes, block, weight_bytes(model), device)
    reading, scaled = _evaluation(study, names, passes, {name: row for name, (_, row) in speeds.items()}, pace)
    return Estimate(
        tokens_run=tokens,
        tokens_per_second=pace.run,
        dictionaries=len(todo),
        together=len(largest),
        disk=disk,
        host=host,
        gpu=gpu,
        training=training + tokens / pace.run,
        reading=reading,
        scaled=scaled,
        seconds_of={name: step for name, (step, _) in speeds.items() if any(job.architecture == name for job in todo)},
    )


def study_passes(study: Study, names: Sequence[str]) -> dict[str, list[list[Job]]]:
    """Figure, or "tuning" -> the jobs it needs, those of one pass together.

    Learning rates that are not chosen yet stand at UNTUNED.
    """
    made = study.configuration
    rates = study.rates if study.is_tuned() else dict.fromkeys(ARCHITECTURES, UNTUNED)
    tokens = [made.train_tokens // part for part in token_budget.PARTS]

    def jobs(figure: str, seed: int) -> list[Job]:
        if figure == "token-budget":
            wanted = [(name, made.middle_l0, n) for name in token_budget.NAMES for n in tokens]
            return [study.job(name, l0, seed, lr=rates[name], tokens=n) for name, l0, n in wanted]
        if figure == "ablation":
            return [
                ablation.job(study, part, name, seed, lr=rates.get(name, rates["sasa"]))
                for part, name in ablation.variants(study)
                if seed in ablation.seeds_of(study, part)
            ]
        l0s = made.l0 if figure in ("matched-budget", "absorption") else (made.middle_l0,)
        return [study.job(name, l0, seed, lr=rates[name]) for l0 in l0s for name in ARCHITECTURES]

    tuning = [job for *_, job in study.tuning_jobs()] if names else []
    return {"tuning": [tuning], **{name: [jobs(name, seed) for seed in made.seeds] for name in names}}


def memory_of(trained: int, codes: int, block: int, weights: int, device: str) -> tuple[int, int]:
    """Bytes of main memory and of the GPU (0 on a CPU) in training.

    trained  parameters in training at once, 16 bytes each.
    codes    batch x columns, DENSE float32 arrays of which a step holds.
    block    numbers in a block of rows of a model that runs beside the training, held twice (gathered and shuffled).
    weights  bytes of the language model, which are read into main memory first.
    """
    of_step = PER_PARAMETER * trained + 4 * DENSE * codes
    on_gpu = device.startswith("cuda")
    return weights + 2 * 4 * block + (0 if on_gpu else of_step), of_step + weights if on_gpu else 0


def parameters(job: Job, width: int) -> int:
    """Weights of the dictionary's encoder and decoder."""
    settings: Any = job.settings
    columns = settings.get("n_latents") or settings["n_groups"] * settings["group_rank"]
    return 2 * columns * width


def weight_bytes(model: LanguageModel) -> int:
    """Of the language model."""
    return sum(p.numel() * p.element_size() for p in model.model.parameters())


def step_seconds(job: Job, width: int, device: str) -> float:
    """Seconds of a training step of `job` on random rows."""
    return _speed(job, width, device)[0]


# ---- inside ------------------------------------------------------------------------------------------------------


def _once(study: Study, passes: list[list[Job]]) -> list[list[Job]]:
    """The passes without what is finished, and each job in the first pass that needs it."""
    seen: set[str] = set()
    out = []
    for one in passes:
        new = {repr(job): job for job in one if repr(job) not in seen}
        seen |= new.keys()
        out.append(list(new.values()))
    if study.at_hand:  # finished runs are known by name
        data, place = study.data, study.context.out
        out = [[job for job in one if not is_finished(directory(data, job, place))] for one in out]
    return out


def _evaluation(
    study: Study, names: Sequence[str], passes: dict[str, list[list[Job]]], row_of: dict[str, float], pace: Pace
) -> tuple[float, float]:
    """Seconds of reading held-out rows and splicing, and of prompts and clusters."""
    made, model = study.configuration, study.language_model
    rows = made.evaluation_tokens
    # without a store each reading runs the model on every 20th context, and the text is tokenised to find them
    gathered = 0.0 if study.is_stored else rows / pace.run + EVAL_EVERY * rows / pace.tokenised
    reading = scaled = 0.0
    for name, of in passes.items():
        jobs = [job for one in of for job in one]
        if name == "tuning" and study.is_tuned():
            continue
        times = READINGS.get(name, 0)
        reading += times * rows * sum(row_of[job.architecture] for job in jobs)
        reading += times * gathered * (1 if name in ("concepts", "feature-clusters") else len(jobs))
        if name == "matched-budget":
            for seed in of:
                reading += made.spliced_tokens * _spliced_seconds(study) * (len(seed) + 3)
        middle = len(ARCHITECTURES) * len(made.seeds)
        scaled += PROMPTS.get(name, 0) * middle / pace.run
        if name == "feature-clusters":
            scaled += CLUSTERS * middle * made.columns**2 * model.width / CLUSTERED
    return reading, scaled


def _speed(job: Job, width: int, device: str) -> tuple[float, float]:
    """Seconds of a training step of `job`, and of a held-out row, on random rows."""
    rows = torch.randn(job.training.batch_size, width, generator=torch.Generator().manual_seed(0))
    model = build(job.architecture, width_in=width, **job.settings)
    training: TrainSettings = dataclasses.replace(job.training, splits=0)  # these need many rows at the start
    trainer = Trainer(model, itertools.repeat(rows), training, device=device, progress=False)
    trainer.begin()
    step = min(_timed(trainer.advance, device) for _ in range(STEPS + 1))
    held = rows.to(device)
    with torch.no_grad():
        read = min(_timed(lambda: trainer.model.reconstruct(held), device) for _ in range(STEPS))
    return step, read / len(rows)


def _spliced_seconds(study: Study) -> float:
    """Seconds of a token from the hook to its loss."""
    model, hook = study.language_model, study.configuration.hook
    contexts = list(itertools.islice(model.contexts(study.texts), TIMED))
    longest = max(contexts, key=lambda item: len(item.ids))
    states = model.run_contexts([longest], hook)[0][None]
    rest = Continuation(model, hook)

    def finish() -> None:
        final = rest.finish(states)[0, :-1]
        rest.compare(final, [final], longest.ids[1:])

    return min(_timed(finish, study.context.device) for _ in range(STEPS)) / len(longest.ids)


def _timed(act: Any, device: str) -> float:
    began = time.perf_counter()
    act()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
