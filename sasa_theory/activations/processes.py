"""Several processes of one thread each: on a busy CPU faster than one process of several threads.

Groups of contexts go to the processes in turn and come back in order, and every process computes with one thread, so
results do not depend on how many there are.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from sasa_theory.activations.language_model import Context, LanguageModel
from synthetic.errors import LabError

Group = list[Context]

_DIED = "a worker process died (out of memory?); try fewer workers"


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute with one thread inside, on the CPU (sums depend on the number of threads in the last bit)."""
    before = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def parallel_hidden(
    model: LanguageModel, hook: str, groups: Iterator[Group], workers: int
) -> Iterator[tuple[Group, list[Tensor]]]:
    """`(group, model.run_contexts(group, hook))` for each group in order, computed by `workers` processes.

    The processes load the model themselves. Raises LabError when one dies or fails.
    """
    context = multiprocessing.get_context("spawn")
    settings = {"dtype": model.dtype, "context": model.context, "autocast": model.autocast}
    pipes: list[Connection] = []
    processes = []
    waiting: deque[tuple[Connection, Group]] = deque()
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, model.place, settings, hook), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        # a process gets its next group only after its last result was taken, so no two sends can block each other
        for pipe in cycle(pipes):
            result = _receive(waiting) if len(waiting) == workers else None
            if (group := next(groups, None)) is not None:
                _send(pipe, group)
                waiting.append((pipe, group))
            if result is not None:
                yield result
            if group is None:
                break
        while waiting:
            yield _receive(waiting)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:  # an idle one ends by itself once its pipe is closed
            process.join(timeout=2)
            process.terminate()
            process.join()


def _send(pipe: Connection, group: Group) -> None:
    try:
        pipe.send([(c.number, c.document, c.ids.numpy()) for c in group])
    except OSError:
        raise LabError(_DIED) from None


def _receive(waiting: "deque[tuple[Connection, Group]]") -> tuple[Group, list[Tensor]]:
    pipe, group = waiting.popleft()
    try:
        answer = pipe.recv()
    except (EOFError, OSError):
        raise LabError(_DIED) from None
    if isinstance(answer, str):
        raise LabError(f"a worker process failed: {answer}")
    return group, [torch.from_numpy(rows) for rows in answer]


def _work(pipe: Connection, name: str, settings: dict[str, Any], hook: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    torch.set_num_threads(1)
    try:
        model = LanguageModel(name, **settings)
        while True:
            group = [Context(number, document, torch.from_numpy(ids)) for number, document, ids in pipe.recv()]
            pipe.send([rows.numpy() for rows in model.run_contexts(group, hook)])
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is done, or gone
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
