"""Compiled loops over a range, cut into one piece per thread.

Loops compiled with nogil=True run side by side in Python's own threads. That spares the second pool that a compiler's
parallel loops would bring, which fights with the pool of the matrix products for the cores.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from numpy import ndarray

#: multiply-adds below which a loop is not worth a second thread: waking one costs what half a million take
WORTH = 1 << 20


def split(
    loop: Callable[..., None],
    length: int,
    *arguments: object,
    cuts: "Sequence[int] | None" = None,
    work: int = WORTH,
    own: "ndarray | None" = None,
) -> None:
    """Run loop(start, stop, *arguments) over [0, length) in as many pieces as torch has threads.

    `cuts` are the inner bounds of the pieces, where equal lengths would not be equal work; `work` is about how many
    multiply-adds there are: one thread does what is too little to share. One thread in worker processes, where torch is
    given one. `own` has a row for every thread, which piece i gets as its last argument.
    """
    threads = min(torch.get_num_threads(), length)
    if threads <= 1 or work < WORTH:
        loop(0, length, *arguments, *(() if own is None else own[:1]))
        return
    inner = [length * i // threads for i in range(1, threads)] if cuts is None else list(cuts)
    bounds = [0, *(min(cut, length) for cut in inner), length]
    pieces = [(a, b) for a, b in itertools.pairwise(bounds) if b > a]
    calls = [(*piece, *arguments, *(() if own is None else own[i : i + 1])) for i, piece in enumerate(pieces)]
    waiting = [_pool(threads).submit(loop, *call) for call in calls[1:]]
    loop(*calls[0])
    for piece in waiting:
        piece.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sasa-loops")


def spread(work: Callable[[int], None]) -> None:
    """Run work(0), work(1), ... side by side, as many as torch has threads, each with torch's own pool switched off.

    For work that multiplies matrices and runs compiled loops by turns: torch's threads would wait for the next product
    at full speed, and take the cores from the loops.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        work(0)
        return
    waiting = [_workers(threads).submit(work, i) for i in range(1, threads)]
    torch.set_num_threads(1)  # this thread's own number; it costs less than waking another thread for its share
    try:
        work(0)
    finally:
        torch.set_num_threads(threads)
        for piece in waiting:
            piece.result()


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "sasa-products", torch.set_num_threads, (1,))
    # all are born now, so that the number they set for themselves is not the one later threads begin with
    barrier = threading.Barrier(threads)
    for piece in [pool.submit(barrier.wait) for _ in range(threads)]:
        piece.result()
    torch.set_num_threads(threads)
    return pool
