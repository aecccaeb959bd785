"""Loops of the screened gate: round to int8, list the candidates, compute those exactly, keep the best.

Every loop runs over rows or units [start, stop), one range per thread (`sasa_theory.threads`).
"""

import numpy as np
from numpy import ndarray

from sasa_theory.models import rounding
from sasa_theory.models.compiled.best_loops import FEW, above, best, best_of_few, key_of, unit_of
from sasa_theory.models.compiled.compile import ZERO, compiled

SIGMAS = np.float32(rounding.SIGMAS)
TOP = np.float32(127.0)


@compiled
def subtract(start: int, stop: int, x: ndarray, shift: ndarray, out: ndarray) -> None:
    """out = x - shift."""
    for t in range(start, stop):
        row, target = x[t], out[t]
        for d in range(len(row)):
            target[d] = row[d] - shift[d]


@compiled
def quantise(
    start: int, stop: int, x: ndarray, balance: ndarray, rank: int, out: ndarray, scale: ndarray, noise: ndarray
) -> None:
    """Rows of x, times balance, in int8: out = round(that / scale), scale = max|that| / 127 (0 for a zero row).

    noise = (scale^2 / 12, ||that||^2): the variance of an entry's rounding error, and what the other side's errors
    meet. Row k rank + j goes to place j K + k: the columns of one number of all units side by side. `out` may be wider
    than x; zeros follow.
    """
    units = len(x) // rank
    width = x.shape[1]
    scaled = np.empty(width, np.float32)
    for t in range(start, stop):
        row = x[t]
        place = (t % rank) * units + t // rank
        top, total = ZERO, ZERO
        for d in range(width):
            v = row[d] * balance[d]
            scaled[d] = v
            top = max(top, abs(v))
            total += v * v
        scale[place] = top / TOP
        noise[place, 0], noise[place, 1] = scale[place] * scale[place] / np.float32(12), total
        inverse = TOP / top if top > 0 else ZERO
        target = out[place]
        for d in range(width):
            target[d] = np.int8(np.rint(scaled[d] * inverse))
        target[width:] = 0


@compiled
def shortlist(
    start: int,
    stop: int,
    first: int,
    pre: ndarray,
    row_scale: ndarray,
    row_noise: ndarray,
    scale: ndarray,
    noise: ndarray,
    bias: ndarray,
    rank: int,
    rectify: bool,
    n_best: int,
    index: ndarray,
    bound: ndarray,
) -> None:
    """The units of rows first + [start, stop) that may be among the n_best of largest norm, from the products `pre`.

    pre (rows, r K) times row_scale and scale, plus bias, are the coefficients up to errors of standard deviation
    sqrt(row_noise_0 noise_1 + noise_0 row_noise_1), so a norm lies within SIGMAS of them. index[row] gets at most
    index.shape[1] units, -1 in the rest; bound[row] what the norm of no other unit exceeds.
    """
    units, slots = pre.shape[1] // rank, index.shape[1]
    kept = min(slots + 1, units)
    noise_w, length_w = per_unit(noise, rank, units)
    margin = np.empty(units, np.float32)
    upper = np.empty(units, np.float32)
    # non-negative floats order as their bits do, so that one integer holds a bound and, for ties, its unit
    bits = upper.view(np.int32)
    keys = np.empty(units + 1, np.int64)
    lower = np.empty(units, np.float32)
    share = np.float32(-1)  # the last row's least candidate, over the row's own length
    for p in range(start, stop):
        t = first + p
        here = row_scale[t]
        upper[:] = ZERO
        for j in range(rank):
            span = slice(j * units, (j + 1) * units)
            part, size, shift = pre[p, span], scale[span], bias[span]
            if rectify:
                for k in range(units):
                    v = max(np.float32(part[k]) * (here * size[k]) + shift[k], ZERO)
                    upper[k] += v * v
            else:
                for k in range(units):
                    v = np.float32(part[k]) * (here * size[k]) + shift[k]
                    upper[k] += v * v
        noise_x, length_x = row_noise[t, 0], row_noise[t, 1]
        for k in range(units):
            margin[k] = SIGMAS * np.sqrt(noise_x * length_w[k] + noise_w[k] * length_x)
            upper[k] = np.sqrt(upper[k]) + margin[k]
        # rows resemble each other: list what exceeds the last row's level, and only if that is too little, the best
        length = np.sqrt(length_x)
        found, floor = 0, max(share, ZERO) * length * np.float32(0.95)
        if share >= 0:
            found = above(bits, floor, keys)
        least = least_of(keys[:found], upper, margin, lower, n_best)
        if not floor < least:
            best(bits, keys[:kept])
            found, floor = kept, ZERO
            least = least_of(keys[:found], upper, margin, lower, n_best)
        if found > slots:
            keys[:found].sort()  # the largest last
        count, rest = 0, floor
        for i in range(found - 1, -1, -1):
            unit = unit_of(keys[i])
            if count < slots and upper[unit] >= least:
                index[t, count] = unit
                count += 1
            else:
                rest = max(rest, upper[unit])
        index[t, count:] = -1
        bound[t] = rest if count < units else ZERO  # nothing is left out of all units
        share = least / length if length > 0 else np.float32(-1)


@compiled
def select(
    start: int,
    stop: int,
    first: int,
    pre: ndarray,
    bias: ndarray,
    rank: int,
    rectify: bool,
    index: ndarray,
    values: ndarray,
) -> None:
    """The s = index.shape[1] units of largest norm of pre + bias, for rows first + [start, stop); ties to lower units.

    pre (rows, K r), unit after unit.
    """
    units = pre.shape[1] // rank
    norms = np.empty(units, np.float32)
    bits = norms.view(np.int32)
    heap = np.empty(index.shape[1], np.int64)
    square = np.empty(pre.shape[1], np.float32)
    for p in range(start, stop):
        row = pre[p]
        for j in range(len(row)):
            v = row[j] + bias[j]
            v = max(v, ZERO) if rectify else v
            square[j] = v * v
        norms[:] = ZERO
        for j in range(rank):
            for k in range(units):
                norms[k] += square[k * rank + j]
        if len(heap) <= FEW:
            best_of_few(bits, heap)
        else:
            best(bits, heap)
        for i in range(len(heap)):
            unit = unit_of(heap[i])
            index[first + p, i] = unit
            for j in range(rank):
                v = row[unit * rank + j] + bias[unit * rank + j]
                values[first + p, i, j] = ZERO if rectify and v < 0 else v


@compiled
def per_unit(noise: ndarray, rank: int, units: int) -> tuple[ndarray, ndarray]:
    """The largest noise[:, 0] and noise[:, 1] among the columns of each unit."""
    first, second = np.zeros(units, np.float32), np.zeros(units, np.float32)
    for j in range(rank):
        for k in range(units):
            first[k] = max(first[k], noise[j * units + k, 0])
            second[k] = max(second[k], noise[j * units + k, 1])
    return first, second


@compiled
def least_of(keys: ndarray, upper: ndarray, margin: ndarray, lower: ndarray, n_best: int) -> np.float32:
    """The n_best-th largest lower bound of the units named: at least so large is the n_best-th largest norm."""
    found = len(keys)
    if found < n_best:
        return np.float32(-1)
    for i in range(found):
        unit = unit_of(keys[i])
        lower[i] = upper[unit] - 2 * margin[unit]
    least: np.float32 = np.partition(lower[:found], found - n_best)[found - n_best]
    return least


@compiled
def exact(
    start: int,
    stop: int,
    starts: ndarray,
    pairs: ndarray,
    x: ndarray,
    rows: ndarray,
    bias: ndarray,
    rectify: bool,
    out: ndarray,
) -> None:
    """out[t, i, j] = <x[t], rows[k r + j]> + bias[k r + j] for the pairs (t, i) of the units k, rectified if asked."""
    _, slots, rank = out.shape
    product = np.empty((rank, 4), np.float32)
    for k in range(start, stop):
        end = starts[k + 1]
        for p in range(starts[k], end, 4):
            # four rows of x against each weight row, so that it is read once for them; the last ones repeat, so that a
            # coefficient does not depend, not in its last bit, on what else is listed
            a, b, c = min(p + 1, end - 1), min(p + 2, end - 1), min(p + 3, end - 1)
            t0, t1, t2, t3 = pairs[p] // slots, pairs[a] // slots, pairs[b] // slots, pairs[c] // slots
            inner(rows[k * rank : (k + 1) * rank], x[t0], x[t1], x[t2], x[t3], product)
            for j in range(rank):
                shift = bias[k * rank + j]
                s0, s1, s2, s3 = (
                    product[j, 0] + shift,
                    product[j, 1] + shift,
                    product[j, 2] + shift,
                    product[j, 3] + shift,
                )
                if rectify:
                    s0, s1, s2, s3 = max(s0, ZERO), max(s1, ZERO), max(s2, ZERO), max(s3, ZERO)
                out[t0, pairs[p] % slots, j] = s0
                out[t1, pairs[a] % slots, j] = s1
                out[t2, pairs[b] % slots, j] = s2
                out[t3, pairs[c] % slots, j] = s3


@compiled
def inner(block: ndarray, y0: ndarray, y1: ndarray, y2: ndarray, y3: ndarray, out: ndarray) -> None:
    """out[j, i] = <block[j], y_i>, block (r, D), out (r, 4); two rows at a time, so that a load is used often."""
    rank, width = block.shape
    for j in range(0, rank - 1, 2):
        u, v = block[j], block[j + 1]
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        r0, r1, r2, r3 = ZERO, ZERO, ZERO, ZERO
        for d in range(width):
            s0 += y0[d] * u[d]
            s1 += y1[d] * u[d]
            s2 += y2[d] * u[d]
            s3 += y3[d] * u[d]
            r0 += y0[d] * v[d]
            r1 += y1[d] * v[d]
            r2 += y2[d] * v[d]
            r3 += y3[d] * v[d]
        out[j, 0], out[j, 1], out[j, 2], out[j, 3] = s0, s1, s2, s3
        out[j + 1, 0], out[j + 1, 1], out[j + 1, 2], out[j + 1, 3] = r0, r1, r2, r3
    if rank % 2:
        u = block[rank - 1]
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        for d in range(width):
            s0 += y0[d] * u[d]
            s1 += y1[d] * u[d]
            s2 += y2[d] * u[d]
            s3 += y3[d] * u[d]
        out[rank - 1, 0], out[rank - 1, 1], out[rank - 1, 2], out[rank - 1, 3] = s0, s1, s2, s3


@compiled
def keep(
    start: int, stop: int, index: ndarray, values: ndarray, bound: ndarray, out: ndarray, kept: ndarray, sure: ndarray
) -> None:
    """The s = out.shape[1] listed units of largest norm, in the order listed, with coefficients; ties to lower units.

    sure[t]: the least of them is no smaller than anything that was not listed. A row with NaN gets NaN.
    """
    _, slots, rank = values.shape
    n_best = out.shape[1]
    norms = np.empty(slots, np.float32)
    bits = norms.view(np.int32)
    keys = np.empty(slots, np.int64)
    for t in range(start, stop):
        count = 0
        while count < slots and index[t, count] >= 0:
            total = ZERO
            for j in range(rank):
                total += values[t, count, j] * values[t, count, j]
            norms[count] = total
            keys[count] = key_of(bits[count], index[t, count])
            count += 1
        if count < n_best:  # NaN compares as nothing does: let the loss see it
            for i in range(n_best):
                out[t, i] = i
            kept[t] = np.nan
            sure[t] = True
            continue
        least = np.partition(keys[:count], count - n_best)[count - n_best]
        place, smallest = 0, ZERO
        for i in range(count):
            if keys[i] >= least:
                out[t, place] = index[t, i]
                for j in range(rank):
                    kept[t, place, j] = values[t, i, j]
                place += 1
            if keys[i] == least:
                smallest = np.sqrt(norms[i])
        sure[t] = smallest >= bound[t]
