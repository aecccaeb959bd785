"""What a study will take, before it begins: tokens, disk, hours and memory, from a few seconds of measuring here.

The language model is timed on one batch of the text, every architecture on a few steps at its largest L0; runs that
are finished already are not counted. All dictionaries of one pass are in memory together (fit_together).
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from figures.language import ablation, token_budget
from figures.language.configuration import ARCHITECTURES
from figures.language.study import Study
from sasa_theory.models import build
from sasa_theory.training import Job, Trainer
from sasa_theory.training.runs import directory, is_finished

#: bytes a parameter takes in training (weight, gradient, two moments), float32
PER_PARAMETER = 16
#: a learning rate where none has been chosen yet
UNTUNED = 1e-3
#: steps timed after one that compiles
STEPS = 2
#: tokens on which the language model is timed
TIMED = 512


@dataclass(frozen=True)
class Estimate:
    """What is still to be done. Bytes, seconds and counts; `seconds_of` is architecture -> a step's seconds."""

    tokens_run: int
    """tokens that the language model runs, for the store or beside the training"""
    tokens_per_second: float
    dictionaries: int
    """still to be trained"""
    disk: int
    """of the store that is still to be written, and of the dictionaries' states"""
    memory: int
    """language model, and the dictionaries of the largest pass with their moments"""
    seconds: float
    seconds_of: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """As it is shown."""
        steps = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in self.seconds_of.items())
        pace = f"{self.tokens_run:,} at {self.tokens_per_second:,.0f} a second" if self.tokens_run else "none"
        return [
            f"tokens through the language model: {pace}",
            f"dictionaries to train: {self.dictionaries} ({steps} a step)" if steps else "dictionaries to train: none",
            f"disk: {self.disk / 1e9:.2f} GB; memory: about {self.memory / 1e9:.1f} GB",
            f"time: about {self.seconds / 3600:.1f} hours of training and gathering, figures not counted",
        ]


def estimate(study: Study) -> Estimate:
    """Measure for a few seconds and multiply (module docstring); trains and writes nothing."""
    made, model = study.configuration, study.language_model
    width = model.width
    passes = study_passes(study)
    jobs = [job for one in passes for job in one]
    if study.at_hand:  # finished runs are known by name
        data = study.data
        passes = [[job for job in one if not is_finished(directory(data, job, study.context.out))] for one in passes]
    todo = [job for one in passes for job in one]
    seconds_of = {name: _step_seconds(study, jobs, name, width) for name in ARCHITECTURES if _of(todo, name)}
    training = sum(job.training.steps * seconds_of[job.architecture] for job in todo)
    if study.is_stored:
        tokens = 0 if study.at_hand else max(0, made.tokens - study.stored_rows())
        disk = tokens * (2 * width + 24)
    else:
        tokens = sum(max(job.training.steps for job in one) * made.batch_size for one in passes if one)
        disk = 0
    rate = _tokens_per_second(study) if tokens else float("nan")
    of_model = sum(p.numel() * p.element_size() for p in model.model.parameters())
    largest = max((sum(_parameters(job, width) for job in one) for one in passes), default=0)
    return Estimate(
        tokens_run=tokens,
        tokens_per_second=rate,
        dictionaries=len(todo),
        disk=disk + sum(_parameters(job, width) for job in todo) * PER_PARAMETER,
        memory=of_model + largest * PER_PARAMETER,
        seconds=training + (tokens / rate if tokens else 0.0),
        seconds_of=seconds_of,
    )


def study_passes(study: Study) -> list[list[Job]]:
    """The jobs of all figures, those of one pass together; learning rates that are not chosen yet stand at UNTUNED."""
    made = study.configuration
    rates = study.rates if study.is_tuned() else dict.fromkeys(ARCHITECTURES, UNTUNED)
    parts = [made.train_tokens // part for part in token_budget.PARTS[:-1]]
    passes = [[job for *_, job in study.tuning_jobs()]]
    for seed in made.seeds:
        passes.append([study.job(name, l0, seed, lr=rates[name]) for l0 in made.l0 for name in ARCHITECTURES])
        passes.append(
            [
                ablation.job(study, part, name, seed, lr=rates.get(name, rates["sasa"]))
                for part, name in ablation.variants(study)
                if seed in ablation.seeds_of(study, part)
            ]
        )
        passes.append(
            [
                study.job(name, made.middle_l0, seed, lr=rates[name], tokens=n)
                for name in token_budget.NAMES
                for n in parts
            ]
        )
    return passes


def _of(jobs: list[Job], name: str) -> list[Job]:
    return [job for job in jobs if job.architecture == name]


def _parameters(job: Job, width: int) -> int:
    settings: Any = job.settings
    columns = settings.get("n_latents") or settings["n_groups"] * settings["group_rank"]
    return 2 * columns * width


def _step_seconds(study: Study, jobs: list[Job], name: str, width: int) -> float:
    """Median seconds of a step of the architecture at its largest L0, on random rows."""
    job = max(_of(jobs, name), key=lambda one: (_parameters(one, width), one.settings.get("active_latents", 0)))
    rows = torch.randn(job.training.batch_size, width, generator=torch.Generator().manual_seed(0))
    model = build(name, width_in=width, **job.settings)
    trainer = Trainer(model, iter([rows] * (2 * STEPS + 64)), job.training, device=study.context.device, progress=False)
    trainer.begin()
    taken = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        trainer.advance()
        if study.context.device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def _tokens_per_second(study: Study) -> float:
    """Tokens a second of the language model to the hook, on the first contexts of the text."""
    model = study.language_model
    contexts, seen = [], 0
    for item in model.contexts(study.texts):
        contexts.append(item)
        seen += len(item.ids)
        if seen >= TIMED:
            break
    model.run_contexts(contexts[:1], study.configuration.hook)
    began = time.perf_counter()
    model.run_contexts(contexts, study.configuration.hook)
    return seen / (time.perf_counter() - began)
