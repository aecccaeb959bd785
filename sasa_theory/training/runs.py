"""Trained models that figures, claims and the command line share: each is trained once and found by what it is.

A run's directory is named by a hash of the data's fingerprint, the architecture, its settings and the training
settings (seed included). Asking for it again returns it at once; asking for one that was stopped goes on with it.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from tqdm import tqdm

from sasa_theory import saelens
from sasa_theory.files import read_json, write_json
from sasa_theory.models import build
from sasa_theory.models.base import SparseModel
from sasa_theory.models.normaliser import NormalisedModel
from sasa_theory.training.settings import TrainSettings
from sasa_theory.training.trainer import LOG, STATE, Trainer
from synthetic.errors import LabError
from synthetic.registry import load_plugin, loaded_plugins
from synthetic.source import Dataset

logger = logging.getLogger(__name__)
RECORD = "run.json"


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, the model in raw units, its log lines, and the seconds its training took."""

    directory: Path
    model: "SparseModel | NormalisedModel"
    log: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class Job:
    """What to train: an architecture, its settings (width_in excepted), and how."""

    architecture: str
    settings: Mapping[str, Any]
    training: TrainSettings


def describe(dataset: Dataset, job: Job) -> dict[str, Any]:
    """Everything that decides a run's outcome, as JSON."""
    model = build(job.architecture, width_in=dataset.width, **job.settings)
    return {
        "data": dataset.fingerprint(),
        "architecture": job.architecture,
        "model": model.settings(),
        "training": job.training.as_dict(),
    }


def directory(dataset: Dataset, job: Job, out: str | Path) -> Path:
    """Where the run is kept: out/runs/<hash>."""
    text = json.dumps(describe(dataset, job), sort_keys=True)
    return Path(out) / "runs" / hashlib.sha256(text.encode()).hexdigest()[:16]


def fit(
    dataset: Dataset,
    architecture: str,
    model_settings: Mapping[str, Any],
    settings: TrainSettings,
    *,
    out: str | Path,
    device: str = "cpu",
    deadline: float | None = None,
    progress: bool | None = None,
) -> Run:
    """The run of these four things: trained now, continued, or found finished.

    Raises what `Trainer.fit` raises, and LabError when another process is training it.
    """
    job = Job(architecture, dict(model_settings), settings)
    place = directory(dataset, job, out)
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place):
        record = _record(place)
        if not record.get("finished"):
            record = {**describe(dataset, job), "finished": False, "seconds": record.get("seconds", 0.0)}
            write_json(place / RECORD, record)
            # rows in a fixed order per seed; the evaluation stream is another one
            source = dataset.batches(settings.batch_size, device, stream=f"train:{settings.seed}")
            model = build(architecture, width_in=dataset.width, **model_settings)
            trainer = Trainer(model, source, settings, out=place, device=device, deadline=deadline, progress=progress)
            began = time.perf_counter()
            try:
                trainer.fit(resume=(place / STATE).exists())
                record["finished"] = True
            finally:
                record["seconds"] += time.perf_counter() - began
                record |= _made_on(device)
                write_json(place / RECORD, record)
            logger.info("trained %s in %s", architecture, place)
    return load(place, device)


def fit_all(
    dataset: Dataset,
    jobs: Sequence[Job],
    *,
    out: str | Path,
    device: str = "cpu",
    deadline: float | None = None,
    workers: int | None = None,
) -> list[Run]:
    """Every job's run, in order; on a CPU several at a time, one thread each (small models gain little from more).

    workers  processes (default: the CPU's cores, 1 on a GPU). Raises what `fit` raises; finished runs are kept.
    """
    # a job given twice is one run
    places = {directory(dataset, job, out): job for job in jobs}
    todo = [job for place, job in places.items() if not _record(place).get("finished")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or (1 if device.startswith("cuda") else min(cores, len(todo)))
    if workers > 1:
        from joblib import Parallel, delayed

        plugins = loaded_plugins()
        tasks = (delayed(_train)(dataset, job, str(out), device, deadline, plugins) for job in todo)
        done = Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)(tasks)
        for _ in tqdm(done, total=len(todo), desc=f"train {len(todo)} models -> {Path(out) / 'runs'}", disable=None):
            pass
    return [
        fit(dataset, j.architecture, j.settings, j.training, out=out, device=device, deadline=deadline) for j in jobs
    ]


def load(place: str | Path, device: str = "cpu") -> Run:
    """A finished run from its directory; raises LabError when its training has not ended."""
    place = Path(place)
    record = _record(place)
    if not record.get("finished"):
        raise LabError(f"{place} holds no finished run; train it first")
    log = [json.loads(line) for line in (place / LOG).read_text(encoding="utf-8").splitlines()]
    return Run(place, saelens.load(place).to(device), log, float(record["seconds"]))


def _train(dataset: Dataset, job: Job, out: str, device: str, deadline: float | None, plugins: Sequence[str]) -> None:
    """One job in a worker process."""
    torch.set_num_threads(1)
    for plugin in plugins:
        load_plugin(plugin)
    fit(
        dataset, job.architecture, job.settings, job.training, out=out, device=device, deadline=deadline, progress=False
    )


def _made_on(device: str) -> dict[str, Any]:
    """What a reader needs to judge whether a run can be repeated bit for bit."""
    return {
        "versions": {
            "sasa-lab": importlib.metadata.version("sasa-lab"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        "device": device,
        "machine": torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _record(place: Path) -> dict[str, Any]:
    return read_json(place / RECORD) if (place / RECORD).exists() else {}


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold the run's lock; it goes with the process, so a killed run leaves none behind."""
    with open(place / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LabError(f"another process is training the run {place}; wait for it, or give another --out") from None
        yield
