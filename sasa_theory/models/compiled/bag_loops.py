"""Loops of the bags (models/bags.py): pairs (row, unit, coefficients), row by row, and weights of r columns a unit."""

import numpy as np
from numpy import ndarray

from sasa_theory.models.compiled.compile import ZERO, compiled


@compiled
def add_up(
    start: int, stop: int, starts: ndarray, index: ndarray, values: ndarray, rows: ndarray, out: ndarray
) -> None:
    """out[t] = sum over the pairs p of row t, starts[t] <= p < starts[t + 1], of values[p] times the unit's rows.

    A unit of -1 is skipped.
    """
    rank = values.shape[1]
    most = 0
    for t in range(start, stop):
        most = max(most, starts[t + 1] - starts[t])
    at = np.empty(most * rank + 3, np.int64)
    weight = np.empty(most * rank + 3, np.float32)
    for t in range(start, stop):
        count = 0
        for p in range(starts[t], starts[t + 1]):
            if index[p] >= 0:
                for j in range(rank):
                    at[count], weight[count] = index[p] * rank + j, values[p, j]
                    count += 1
        while count % 4:
            at[count], weight[count] = at[count - 1], ZERO
            count += 1
        target = out[t]
        target[:] = ZERO
        for c in range(0, count, 4):
            w0, w1, w2, w3 = weight[c], weight[c + 1], weight[c + 2], weight[c + 3]
            r0, r1, r2, r3 = rows[at[c]], rows[at[c + 1]], rows[at[c + 2]], rows[at[c + 3]]
            for d in range(len(target)):
                target[d] += w0 * r0[d] + w1 * r1[d] + w2 * r2[d] + w3 * r3[d]


@compiled
def multiply(start: int, stop: int, starts: ndarray, index: ndarray, x: ndarray, rows: ndarray, out: ndarray) -> None:
    """out[p, j] = <x[t], rows[index[p] r + j]> for the pairs p of row t; 0 for a unit of -1."""
    rank = out.shape[1]
    flat = out.reshape(-1)
    for t in range(start, stop):
        here = x[t]
        first, end = starts[t] * rank, starts[t + 1] * rank
        for c in range(first, end, 4):
            # four rows at a time, so that x[t] is read once for them; the last ones repeat
            c1, c2, c3 = min(c + 1, end - 1), min(c + 2, end - 1), min(c + 3, end - 1)
            k0, k1, k2, k3 = index[c // rank], index[c1 // rank], index[c2 // rank], index[c3 // rank]
            r0, r1 = rows[max(k0, 0) * rank + c % rank], rows[max(k1, 0) * rank + c1 % rank]
            r2, r3 = rows[max(k2, 0) * rank + c2 % rank], rows[max(k3, 0) * rank + c3 % rank]
            s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
            for d in range(len(here)):
                v = here[d]
                s0 += v * r0[d]
                s1 += v * r1[d]
                s2 += v * r2[d]
                s3 += v * r3[d]
            flat[c3], flat[c2] = s3 if k3 >= 0 else ZERO, s2 if k2 >= 0 else ZERO
            flat[c1], flat[c] = s1 if k1 >= 0 else ZERO, s0 if k0 >= 0 else ZERO


@compiled
def add_by_unit(
    start: int,
    stop: int,
    starts: ndarray,
    pairs: ndarray,
    of: ndarray,
    values: ndarray,
    x: ndarray,
    out: ndarray,
    sums: ndarray,
) -> None:
    """out[k r + j] = sum over the pairs p of unit k of values[p, j] x[of[p]]; sums the same without x."""
    rank = values.shape[1]
    for k in range(start, stop):
        end = starts[k + 1]
        for j in range(rank):
            target, total = out[k * rank + j], ZERO
            target[:] = ZERO
            for i in range(starts[k], end, 4):
                i1, i2, i3 = min(i + 1, end - 1), min(i + 2, end - 1), min(i + 3, end - 1)
                p0, p1, p2, p3 = pairs[i], pairs[i1], pairs[i2], pairs[i3]
                w0 = values[p0, j]
                w1 = values[p1, j] if i + 1 < end else ZERO
                w2 = values[p2, j] if i + 2 < end else ZERO
                w3 = values[p3, j] if i + 3 < end else ZERO
                total += w0 + w1 + w2 + w3
                x0, x1, x2, x3 = x[of[p0]], x[of[p1]], x[of[p2]], x[of[p3]]
                for d in range(len(target)):
                    target[d] += w0 * x0[d] + w1 * x1[d] + w2 * x2[d] + w3 * x3[d]
            sums[k * rank + j] = total
