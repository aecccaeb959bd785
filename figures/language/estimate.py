"""What a study will take, before it begins: tokens, disk, hours and memory, from a few seconds of measuring here.

The language model is timed on some contexts of the text, to the hook and from the hook to the loss, and every
architecture on a few steps and a batch of held-out rows at its largest L0. Runs that are finished already are not
counted. All dictionaries of one pass are in memory together (fit_together). What cannot be timed in seconds, prompts
and clusters, is scaled from its time on Gemma-3-270M and said to be.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from figures.language import ablation, token_budget
from figures.language.configuration import ARCHITECTURES
from figures.language.study import Study
from sasa_theory.activations.continuation import Continuation
from sasa_theory.activations.gather import Pace, measure_pace
from sasa_theory.activations.layout import ROW_BYTES
from sasa_theory.activations.live import BLOCK
from sasa_theory.activations.store import EVAL_EVERY
from sasa_theory.training import Job
from sasa_theory.training.cost import (
    PER_PARAMETER,
    STEPS,
    memory_line,
    memory_of,
    parameters,
    step_and_row_seconds,
    timed,
    weight_bytes,
)
from sasa_theory.training.runs import directory, is_finished

#: a learning rate where none has been chosen yet
UNTUNED = 1e-3
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


def estimate(study: Study, names: Sequence[str]) -> Estimate:
    """What the figures `names` of a study take: measured for a few seconds and multiplied; writes nothing."""
    made, model, width = study.configuration, study.language_model, study.language_model.width
    passes = study_passes(study, names)
    jobs = [job for of in passes.values() for one in of for job in one]
    unfinished = [
        part for one in _once(study, [one for of in passes.values() for one in of]) for part in study.passes(one)
    ]
    todo = [job for one in unfinished for job in one]
    device = study.context.device
    speeds = {
        name: step_and_row_seconds(max(of, key=lambda job: parameters(job.settings, width)), width, device)
        for name in ARCHITECTURES
        if (of := [job for job in jobs if job.architecture == name])
    }
    training = sum(job.training.steps * speeds[job.architecture][0] for job in todo)
    disk = sum(parameters(job.settings, width) for job in todo) * PER_PARAMETER
    if study.is_stored:
        tokens = 0 if study.at_hand else max(0, made.tokens - study.stored_rows())
        disk += tokens * (2 * width + ROW_BYTES)
    else:
        tokens = sum(max(job.training.steps for job in one) * made.batch_size for one in unfinished if one)
        disk += 4 * width * made.evaluation_tokens
    pace = measure_pace(model, made.hook, study.texts)
    largest = max(
        (one for one in unfinished if one), key=lambda one: sum(parameters(j.settings, width) for j in one), default=[]
    )
    trained = sum(parameters(job.settings, width) for job in largest)
    codes = made.batch_size * made.columns if largest else 0
    block = 0 if study.is_stored else BLOCK * made.context * width
    host, gpu = memory_of(trained, codes, block, weight_bytes(model.model), device)
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

    return min(timed(finish, study.context.device) for _ in range(STEPS)) / len(longest.ids)
