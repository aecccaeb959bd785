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
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
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
from synthetic.errors import Interrupted, LabError
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
    with locked(place):
        if not is_finished(place):
            # rows in a fixed order per seed; the evaluation stream is another one
            source = dataset.batches(settings.batch_size, device, stream=f"train:{settings.seed}")
            model = build(architecture, width_in=dataset.width, **model_settings)
            trainer = Trainer(model, source, settings, out=place, device=device, deadline=deadline, progress=progress)
            record = begin_record(dataset, job, place)
            began, finished = time.perf_counter(), False
            try:
                trainer.fit(resume=(place / STATE).exists())
                finished = True
            finally:
                end_record(record, place, device, time.perf_counter() - began, finished)
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

    workers  processes (default: as many as joblib's backend has, 1 on a GPU). Inside joblib.parallel_config(
             backend="dask") the jobs go to the workers of a Dask cluster; `out`, and a store, must then be a directory
             that all its machines share.

    Raises what `fit` raises, with the run's directory, and LabError when a worker dies or its runs cannot be seen here;
    finished runs are kept.
    """
    # a job given twice is one run
    places = {directory(dataset, job, out): job for job in jobs}
    todo = {place: job for place, job in places.items() if not is_finished(place)}
    if not device.startswith("cuda") or (workers or 1) > 1:
        _share(dataset, todo, device, deadline, workers)
    return [
        fit(dataset, j.architecture, j.settings, j.training, out=out, device=device, deadline=deadline) for j in jobs
    ]


def _share(
    dataset: Dataset, todo: Mapping[Path, Job], device: str, deadline: float | None, workers: int | None
) -> None:
    """Train each directory's job in joblib's workers; nothing happens where there is only one of either."""
    if len(todo) <= 1 or workers == 1:
        return
    from joblib import Parallel, delayed, effective_n_jobs

    # another machine's monotonic clock began at another time
    until = None if deadline is None else time.time() + deadline - time.monotonic()
    plugins = loaded_plugins()
    tasks = (delayed(_train)(dataset, job, place.absolute(), device, until, plugins) for place, job in todo.items())
    runs = next(iter(todo)).parent
    try:
        workers = workers or min(effective_n_jobs(-1), len(todo))
        if workers == 1:
            return
        done = Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)(tasks)
        for _ in tqdm(done, total=len(todo), desc=f"train {len(todo)} models -> {runs}", disable=None):
            pass
    except LabError as error:
        raise error from None  # without the worker's traceback
    except Exception as error:
        # a pool whose process died, Dask's word for a worker that did, a cluster without any
        if isinstance(error, BrokenExecutor | TimeoutError) or type(error).__module__.startswith("distributed"):
            raise LabError(f"workers were lost: {error} Finished runs are kept; call again for the others") from error
        raise
    for place in todo:
        if not is_finished(place):
            raise LabError(f"a worker has trained {place}, but it is not there; give an out that all machines share")


def load(place: str | Path, device: str = "cpu") -> Run:
    """A finished run from its directory; raises LabError when its training has not ended."""
    place = Path(place)
    record = _record(place)
    if not record.get("finished"):
        raise LabError(f"{place} holds no finished run; train it first")
    log = [json.loads(line) for line in (place / LOG).read_text(encoding="utf-8").splitlines()]
    return Run(place, saelens.load(place).to(device), log, float(record["seconds"]))


def _train(dataset: Dataset, job: Job, place: Path, device: str, until: float | None, plugins: Sequence[str]) -> None:
    """One job in a worker process, up to the time `until` of the wall clock."""
    torch.set_num_threads(1)
    for plugin in plugins:
        load_plugin(plugin)
    deadline = None if until is None else time.monotonic() + until - time.time()
    out = place.parent.parent
    try:
        fit(
            dataset,
            job.architecture,
            job.settings,
            job.training,
            out=out,
            device=device,
            deadline=deadline,
            progress=False,
        )
    except Interrupted:  # names the directory itself
        raise
    except LabError as error:
        raise type(error)(f"{job.architecture} in {place}: {error}") from None


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


def is_finished(place: Path) -> bool:
    """Whether the run in this directory has ended."""
    return bool(_record(place).get("finished"))


def begin_record(dataset: Dataset, job: Job, place: Path) -> dict[str, Any]:
    """Write down what is trained in `place`, and return it with the seconds spent so far."""
    record = {**describe(dataset, job), "finished": False, "seconds": _record(place).get("seconds", 0.0)}
    write_json(place / RECORD, record)
    return record


def end_record(record: dict[str, Any], place: Path, device: str, seconds: float, finished: bool) -> None:
    """Write down how long it took, on which machine, and whether it has ended."""
    done = {**record, "finished": finished, "seconds": record["seconds"] + seconds, **_made_on(device)}
    write_json(place / RECORD, done)
    logger.info("trained %s in %s%s", record["architecture"], place, "" if finished else ", not to the end")


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """Make the run's directory and hold its lock, which goes with the process: a killed run leaves none behind.

    Raises LabError when another process holds it.
    """
    place.mkdir(parents=True, exist_ok=True)
    with open(place / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LabError(f"another process is training the run {place}; wait for it, or give another --out") from None
        yield
