"""Several dictionaries trained over one pass of the same rows: each batch is read once, by all of them.

Where a language model runs beside the training, a batch costs far more than a step, and this is what makes a sweep
affordable. Every run is the one that `fit` makes, bit for bit, in the same directory; a stopped sweep goes on from the
dictionary that is least far, and the others wait until it has caught up.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from sasa_theory.models import build
from sasa_theory.training.cost import PER_PARAMETER, parameters, split_to_fit
from sasa_theory.training.runs import Job, Run, begin_record, directory, end_record, is_finished, load, locked
from sasa_theory.training.signals import signals
from sasa_theory.training.trainer import STATE, Trainer
from synthetic.errors import Interrupted, LabError
from synthetic.source import Dataset, Source, State


class Tap:
    """One dictionary's view of a stream that several read: the batch handed to it, then the stream's own."""

    def __init__(self, stream: Source) -> None:
        self.stream, self.width = stream, stream.width
        self.batch: Tensor | None = None
        #: where the checkpoint of this dictionary left the stream
        self.restored: State | None = None

    def __iter__(self) -> "Tap":
        return self

    def __next__(self) -> "Float[Tensor, 'batch D']":
        if self.batch is not None:
            batch, self.batch = self.batch, None
            return batch
        return next(self.stream)  # rows that are looked at ahead; the reader takes the stream back after it

    def state_dict(self) -> State:
        return self.stream.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.restored = state
        self.stream.load_state_dict(state)


def fit_together(
    dataset: Dataset,
    jobs: Sequence[Job],
    *,
    out: str | Path,
    device: str = "cpu",
    deadline: float | None = None,
    progress: bool | None = None,
    room: float = math.inf,
) -> list[Run]:
    """Every job's run, in order; those of one batch size and seed read the same batches, each once.

    All unfinished dictionaries of a pass are in memory at once: weights, gradients and two moments, 16 bytes a
    parameter. Where that is more than `room` bytes, there are several passes (for architectures whose sizes are
    n_latents, or n_groups and group_rank; without `room` any will do). Raises what `fit` raises; when stopped,
    all of the pass have saved their state.
    """
    passes: dict[tuple[int, int], dict[Path, Job]] = {}
    places = [directory(dataset, job, out) for job in jobs]
    for place, job in zip(places, jobs, strict=True):
        passes.setdefault((job.training.batch_size, job.training.seed), {})[place] = job
    for (size, seed), of in passes.items():
        parts = [list(of)]
        if room < math.inf:
            left = [place for place in of if not is_finished(place)]
            sizes = [PER_PARAMETER * parameters(of[place].settings, dataset.width) for place in left]
            parts = split_to_fit(left, sizes, room)
        for part in parts:
            _one_pass(dataset, {place: of[place] for place in part}, size, seed, device, deadline, progress)
    return [load(place, device) for place in places]


def _one_pass(
    dataset: Dataset,
    jobs: dict[Path, Job],
    size: int,
    seed: int,
    device: str,
    deadline: float | None,
    progress: bool | None,
) -> None:
    with contextlib.ExitStack() as stack:
        for place in jobs:
            if not is_finished(place):  # others may read what is finished
                stack.enter_context(locked(place))
        todo = {place: job for place, job in jobs.items() if not is_finished(place)}
        if not todo:
            return
        stream = dataset.batches(size, device, stream=f"train:{seed}")
        start = stream.state_dict()
        members = []
        for place, job in todo.items():
            stream.load_state_dict(start)  # a fresh one looks at the first rows
            members.append(_Member(dataset, job, place, Tap(stream), device))
        first = min(members, key=lambda member: member.trainer.step)
        stream.load_state_dict(first.tap.restored or start)
        try:
            _walk(stream, members, first.trainer.step, deadline, progress)
        finally:
            for member in members:
                member.close(device)


def _walk(stream: Source, members: "list[_Member]", first: int, deadline: float | None, progress: bool | None) -> None:
    """All steps from `first` on, the stream standing there."""
    steps = max(member.trainer.settings.steps for member in members)
    runs = members[0].place.parent
    bar = tqdm(
        total=steps,
        initial=first,
        desc=f"train {len(members)} models -> {runs}",
        disable=None if progress is None else not progress,
        unit="step",
        leave=False,
    )
    with signals() as stopped, bar:
        for step in range(first, steps):
            batch = next(stream)
            for member in members:
                member.take(batch, step)
            bar.update()
            late = deadline is not None and time.monotonic() > deadline and step + 1 < steps
            if stopped or late:
                for member in members:
                    member.save()
                why = f"signal {stopped[0]}" if stopped else "time limit"
                raise Interrupted(
                    f"stopped by {why} at step {step + 1} of {steps}; {len(members)} runs are saved in {runs}"
                )


class _Member:
    """One dictionary of a pass, with its trainer, its record and the seconds spent on it."""

    def __init__(self, dataset: Dataset, job: Job, place: Path, tap: Tap, device: str) -> None:
        self.place, self.tap, self.seconds = place, tap, 0.0
        self.record = begin_record(dataset, job, place)
        model = build(job.architecture, width_in=dataset.width, **job.settings)
        self.trainer = Trainer(model, tap, job.training, out=place, device=device, progress=False)
        self.trainer.begin(resume=(place / STATE).exists())
        #: the step that the checkpoint on disk holds
        self.saved = self.trainer.step

    def take(self, batch: "Float[Tensor, 'batch D']", step: int) -> None:
        """One step on the batch, if this dictionary is at `step`; one that is ahead or done leaves it."""
        if self.trainer.step != step or step >= self.trainer.settings.steps:
            return
        self.tap.batch = batch
        began = time.perf_counter()
        try:
            if self.trainer.advance():
                self.saved = self.trainer.step
        except LabError as error:
            raise type(error)(f"{self.record['architecture']} in {self.place}: {error}") from None
        self.seconds += time.perf_counter() - began

    def save(self) -> None:
        """Write the state unless the last step did."""
        if self.saved != self.trainer.step:
            self.trainer.save()
            self.saved = self.trainer.step

    def close(self, device: str) -> None:
        """Write the record."""
        end_record(self.record, self.place, device, self.seconds, self.saved == self.trainer.settings.steps)
