"""Loops for what exceeds a level: list it, or what may by an int8 product; and what a threshold leaves of that."""

import numpy as np
from numpy import ndarray

from sasa_theory.models.compiled.compile import ZERO, compiled
from sasa_theory.models.compiled.gate_loops import SIGMAS, per_unit


@compiled
def list_candidates(
    start: int,
    stop: int,
    first: int,
    pre: ndarray,
    row_scale: ndarray,
    row_noise: ndarray,
    scale: ndarray,
    noise: ndarray,
    bias: ndarray,
    index: ndarray,
    counts: ndarray,
) -> None:
    """The units (r = 1) of rows first + [start, stop) whose coefficient may be positive.

    As in `shortlist`; counts[row] is how many there are, also where index[row] has too few places for them.
    """
    units, slots = pre.shape[1], index.shape[1]
    noise_w, length_w = per_unit(noise, 1, units)
    upper = np.empty(units, np.float32)
    place = np.empty(units + 1, np.int64)
    for p in range(start, stop):
        t = first + p
        row, here = pre[p], row_scale[t]
        noise_x, length_x = row_noise[t, 0], row_noise[t, 1]
        for k in range(units):
            margin = SIGMAS * np.sqrt(noise_x * length_w[k] + noise_w[k] * length_x)
            upper[k] = np.float32(row[k]) * (here * scale[k]) + bias[k] + margin
        found = 0
        for k in range(units):
            place[found] = k
            found += not upper[k] < ZERO  # NaN is listed
        index[t, : min(found, slots)] = place[: min(found, slots)]
        index[t, min(found, slots) :] = -1
        counts[t] = found


@compiled
def list_exceeding(
    start: int,
    stop: int,
    first: int,
    pre: ndarray,
    bias: ndarray,
    level: ndarray,
    rank: int,
    by_norm: bool,
    index: ndarray,
    values: ndarray,
    counts: ndarray,
) -> None:
    """The units of rows first + [start, stop) whose pre + bias exceeds level[k], by norm, or a column by its value.

    pre (rows, K r), unit after unit. counts[row] is how many there are, also where index[row] has too few places; what
    is left of index[row] is -1, of values[row] 0.
    """
    units, slots = len(level), index.shape[1]
    size = np.empty(units, np.float32)
    place = np.empty(units + 1, np.int64)
    for p in range(start, stop):
        row, t = pre[p], first + p
        if not by_norm:
            for k in range(units):
                size[k] = row[k] + bias[k]
        else:
            for k in range(units):
                total = ZERO
                for j in range(k * rank, (k + 1) * rank):
                    v = row[j] + bias[j]
                    total += v * v
                size[k] = np.sqrt(total)
        found = 0
        for k in range(units):
            place[found] = k
            found += not size[k] <= level[k]  # NaN is listed
        counts[t] = found
        for i in range(min(found, slots)):
            index[t, i] = place[i]
            for j in range(rank):
                values[t, i, j] = row[place[i] * rank + j] + bias[place[i] * rank + j]
        index[t, min(found, slots) :] = -1
        values[t, min(found, slots) :] = ZERO


@compiled
def jump(
    start: int, stop: int, index: ndarray, values: ndarray, theta: ndarray, bandwidth: float, near: ndarray
) -> None:
    """near: which values (B, m, 1) lie within half a bandwidth of their unit's theta; those not above it become 0.

    Where theta is NaN they become NaN, for the loss to see.
    """
    half = np.float32(bandwidth / 2)
    for t in range(start, stop):
        for i in range(index.shape[1]):
            unit = index[t, i]
            near[t, i] = unit >= 0 and abs(values[t, i, 0] - theta[unit]) < half
            if unit >= 0 and not values[t, i, 0] > theta[unit]:
                values[t, i, 0] = values[t, i, 0] * ZERO + theta[unit] * ZERO  # 0 but for NaN
