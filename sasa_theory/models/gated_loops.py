"""Compiled loops of the gated step on a CPU: choose the units, combine their rows, and both weight gradients.

Each is a few lines of the obvious loop; the plain twins in torch stand in `tests/sasa_theory/models`. Rows of weights
are contiguous (unit k owns rows k r .. (k+1) r), pairs are visited unit by unit where a gradient is formed, so every
row of it is written once and by one thread. Each runs over a range [start, stop), one per thread
(`sasa_theory.threads`). Compilation is cached beside this file.
"""

import numba
import numpy as np
from numpy import ndarray

#: sums may be reordered and fused, as a BLAS does; NaN and Inf keep their meaning
SUMS = {"contract", "reassoc", "nsz", "arcp"}


@numba.njit(nogil=True, fastmath=SUMS, cache=True)
def select(start: int, stop: int, pre: ndarray, rank: int, rectify: bool, index: ndarray, values: ndarray) -> None:
    """Top-s gate of a chunk: the s = index.shape[1] units of largest norm of each row; ties go to the lower unit.

    pre (B, K r); writes index (B, s) and values (B, s, r). `rectify`: negative entries count, and are kept, as 0.
    """
    units, slots = pre.shape[1] // rank, index.shape[1]
    for t in range(start, stop):
        row = pre[t]
        norms = np.empty(units, pre.dtype)
        for k in range(units):
            total = pre.dtype.type(0)
            for j in range(k * rank, (k + 1) * rank):
                v = row[j]
                if rectify and v < 0:
                    v = pre.dtype.type(0)
                total += v * v
            norms[k] = total
        # a heap of the best so far, the worst of them (smallest norm, then highest unit) at its root
        heap = np.arange(slots)
        for i in range(slots // 2 - 1, -1, -1):
            _sift(heap, norms, i)
        for k in range(slots, units):
            if norms[k] > norms[heap[0]]:
                heap[0] = k
                _sift(heap, norms, 0)
        for i in range(slots):
            unit = heap[i]
            index[t, i] = unit
            for j in range(rank):
                v = row[unit * rank + j]
                values[t, i, j] = pre.dtype.type(0) if rectify and v < 0 else v


@numba.njit(inline="always")
def _worse(norms: ndarray, a: int, b: int) -> bool:
    return norms[a] < norms[b] or (norms[a] == norms[b] and a > b)


@numba.njit
def _sift(heap: ndarray, norms: ndarray, i: int) -> None:
    while True:
        child = 2 * i + 1
        if child >= len(heap):
            return
        if child + 1 < len(heap) and _worse(norms, heap[child + 1], heap[child]):
            child += 1
        if not _worse(norms, heap[child], heap[i]):
            return
        heap[i], heap[child] = heap[child], heap[i]
        i = child


@numba.njit(nogil=True, fastmath=SUMS, cache=True)
def combine(start: int, stop: int, index: ndarray, values: ndarray, rows: ndarray, out: ndarray) -> None:
    """out[t] = sum over slots i and columns j of values[t, i, j] rows[index[t, i] r + j]; index -1 is skipped."""
    _, slots, rank = values.shape
    for t in range(start, stop):
        target = out[t]
        target[:] = 0
        for i in range(slots):
            unit = index[t, i]
            if unit < 0:
                continue
            for j in range(rank):
                weight = values[t, i, j]
                if weight != 0:
                    row = rows[unit * rank + j]
                    for d in range(len(target)):
                        target[d] += weight * row[d]


@numba.njit(nogil=True, fastmath=SUMS, cache=True)
def project(start: int, stop: int, index: ndarray, x: ndarray, rows: ndarray, out: ndarray) -> None:
    """out[t, i, j] = <x[t], rows[index[t, i] r + j]>; 0 where index is -1: the gradient of `combine` by its values."""
    _, slots, rank = out.shape
    for t in range(start, stop):
        here = x[t]
        for i in range(slots):
            unit = index[t, i]
            for j in range(rank):
                total = x.dtype.type(0)
                if unit >= 0:
                    row = rows[unit * rank + j]
                    for d in range(len(here)):
                        total += here[d] * row[d]
                out[t, i, j] = total


@numba.njit(cache=True)
def by_unit(index: ndarray, n_units: int) -> tuple[ndarray, ndarray]:
    """The (row, slot) pairs sorted by unit: (starts (K + 1,), pairs) with pair = row * s + slot; index -1 left out."""
    flat = index.ravel()
    starts = np.zeros(n_units + 1, np.int64)
    for unit in flat:
        if unit >= 0:
            starts[unit + 1] += 1
    for k in range(n_units):
        starts[k + 1] += starts[k]
    place = starts[:-1].copy()
    pairs = np.empty(starts[-1], np.int64)
    for pair in range(len(flat)):
        unit = flat[pair]
        if unit >= 0:
            pairs[place[unit]] = pair
            place[unit] += 1
    return starts, pairs


@numba.njit(nogil=True, fastmath=SUMS, cache=True)
def outer(
    start: int, stop: int, starts: ndarray, pairs: ndarray, values: ndarray, x: ndarray, out: ndarray, sums: ndarray
) -> None:
    """out[k r + j] = sum over the pairs (t, i) of unit k of values[t, i, j] x[t]; sums: the same without x.

    The gradient of `combine` by its rows, and of the encoder by its columns.
    """
    _, slots, rank = values.shape
    for k in range(start, stop):
        block = out[k * rank : (k + 1) * rank]
        block[:] = 0
        sums[k * rank : (k + 1) * rank] = 0
        for p in range(starts[k], starts[k + 1]):
            t, i = pairs[p] // slots, pairs[p] % slots
            here = x[t]
            for j in range(rank):
                weight = values[t, i, j]
                if weight != 0:
                    sums[k * rank + j] += weight
                    row = block[j]
                    for d in range(len(here)):
                        row[d] += weight * here[d]
