"""The largest of a row's norms: a heap of keys, a few by looking again and again, all above a level.

A key is a non-negative float's bits above its unit's number, reversed: it orders as the float, ties to lower units.
"""

import numba
import numpy as np
from numpy import ndarray

from sasa_theory.models.compiled.compile import compiled

#: units compared together before any is on its own
BLOCK = 64
#: numbers of units up to which looking for the largest again and again beats a heap; the bits of no norm
FEW, TAKEN = 4, np.int32(-(2**31))
LAST, MASK = np.int64(2**31 - 1), np.int64(2**32 - 1)


@numba.njit(inline="always")
def key_of(bits: np.int32, unit: int) -> np.int64:
    """One number that orders as the bound with these bits, equal ones by lower unit first."""
    return (np.int64(bits) << 32) | (LAST - unit)


@numba.njit(inline="always")
def unit_of(key: np.int64) -> np.int64:
    """The unit of a key."""
    return LAST - (key & MASK)


@compiled
def above(bits: ndarray, floor: float, keys: ndarray) -> int:
    """Write the keys of all bounds above `floor` and return how many they are."""
    level = np.array([floor], np.float32).view(np.int32)[0]
    found, whole = 0, len(bits) // BLOCK * BLOCK
    for low in range(0, whole, BLOCK):
        some = np.int32(0)
        for i in range(BLOCK):
            some |= np.int32(bits[low + i] > level)
        if some:
            for k in range(low, low + BLOCK):
                keys[found] = key_of(bits[k], k)
                found += bits[k] > level
    for k in range(whole, len(bits)):
        keys[found] = key_of(bits[k], k)
        found += bits[k] > level
    return found


@compiled
def best_of_few(bits: ndarray, heap: ndarray) -> None:
    """`best` by looking for the largest as often as asked, without a branch that could be foretold wrongly.

    The heap of a few is in falling order, least last; `bits` are lost.
    """
    units = np.int32(len(bits))
    for i in range(len(heap)):
        most = TAKEN
        for k in range(units):
            most = max(most, bits[k])
        first = units
        for k in range(units):
            first = min(first, np.int32(k) if bits[k] == most else units)
        heap[i] = key_of(most, first)
        bits[first] = TAKEN


@compiled
def best(bits: ndarray, heap: ndarray) -> None:
    """Fill `heap` with the keys of the largest bounds (as bits), the least of them at its root; ties to lower units."""
    kept, units = len(heap), len(bits)
    for i in range(kept):
        heap[i] = key_of(bits[i], i)
    for i in range(kept // 2 - 1, -1, -1):
        sift(heap, i)
    worst = np.int32(heap[0] >> 32)
    for k in range(kept, units):
        if bits[k] > worst:
            heap[0] = key_of(bits[k], k)
            sift(heap, 0)
            worst = np.int32(heap[0] >> 32)


@numba.njit(inline="always")
def sift(heap: ndarray, i: int) -> None:
    """Restore the heap below slot i."""
    moved, end = heap[i], len(heap)
    while True:
        child = 2 * i + 1
        if child >= end:
            break
        if child + 1 < end and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= moved:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = moved
