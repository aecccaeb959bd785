"""Loops of the compiled step behind the gate: decode, then every gradient, unit by unit while its blocks are in cache.

Unit k owns rows k r .. (k+1) r of both weights; its (row, slot) pairs come from `by_unit`. A thread owns the units
[start, stop), so every row of a gradient is written by one thread.
"""

import numba
import numpy as np
from numpy import ndarray

from sasa_theory.models.compiled.compile import ZERO, compiled
from sasa_theory.models.compiled.nuclear_loops import charge_decoder, charge_map

#: what a group is charged for
NO_CHARGE, MAP, DECODER, L1 = 0, 1, 2, 3


@compiled
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


@compiled
def decode(
    start: int,
    stop: int,
    index: ndarray,
    values: ndarray,
    rows: ndarray,
    bias: ndarray,
    x: ndarray,
    xhat: ndarray,
    residual: ndarray,
    error: ndarray,
    total: ndarray,
) -> None:
    """xhat[t] = bias + sum over slots and columns of values times rows; residual = x - xhat, error[t] its square.

    An index of -1 is skipped; `xhat` is not kept where it is empty. The residuals are added to `total`, in float64.
    """
    _, slots, rank = values.shape
    at = np.empty(slots * rank + 3, np.int64)
    weight = np.empty(slots * rank + 3, np.float32)
    spare = np.empty(x.shape[1], np.float32)
    for t in range(start, stop):
        count = 0
        for i in range(slots):
            unit = index[t, i]
            if unit >= 0:
                for j in range(rank):
                    if values[t, i, j] != 0:
                        at[count], weight[count] = unit * rank + j, values[t, i, j]
                        count += 1
        while count % 4:
            at[count], weight[count] = at[count - 1], ZERO
            count += 1
        target = xhat[t] if len(xhat) > 0 else spare
        target[:] = bias
        for c in range(0, count, 4):
            w0, w1, w2, w3 = weight[c], weight[c + 1], weight[c + 2], weight[c + 3]
            r0, r1, r2, r3 = rows[at[c]], rows[at[c + 1]], rows[at[c + 2]], rows[at[c + 3]]
            for d in range(len(target)):
                target[d] += w0 * r0[d] + w1 * r1[d] + w2 * r2[d] + w3 * r3[d]
        here, out = x[t], residual[t]
        square = ZERO
        for d in range(len(target)):
            v = here[d] - target[d]
            square += v * v
            out[d] = v
        error[t] = square
        for d in range(len(target)):
            total[d] += out[d]


@compiled
def decode_nested(
    start: int,
    stop: int,
    index: ndarray,
    values: ndarray,
    rows: ndarray,
    bias: ndarray,
    x: ndarray,
    band: ndarray,
    xhat: ndarray,
    residual: ndarray,
    error: ndarray,
    nested: ndarray,
    total: ndarray,
) -> None:
    """The same for nested dictionaries of single columns: unit k is in those from number band[k] on.

    With e_m the residual of dictionary m, residual[b, t] = sum of e_m over m >= b: what reaches the units of band b.
    error[t] is the square of the last e_m, nested[t] the sum of the others' squares; `total` gets all e_m added.
    """
    slots = values.shape[1]
    bands = len(residual)
    for t in range(start, stop):
        target, here = xhat[t], x[t]
        target[:] = bias
        nested[t] = ZERO
        for m in range(bands):
            for i in range(slots):
                unit = index[t, i]
                if unit >= 0 and band[unit] == m and values[t, i, 0] != 0:
                    weight, row = values[t, i, 0], rows[unit]
                    for d in range(len(target)):
                        target[d] += weight * row[d]
            out = residual[m, t]
            square = ZERO
            for d in range(len(target)):
                v = here[d] - target[d]
                square += v * v
                out[d] = v
            if m + 1 < bands:
                nested[t] += square
            else:
                error[t] = square
        for m in range(bands - 1, 0, -1):
            later, out = residual[m, t], residual[m - 1, t]
            for d in range(len(target)):
                out[d] += later[d]
        out = residual[0, t]
        for d in range(len(target)):
            total[d] += out[d]


@numba.njit(inline="always")
def passed(rectify: bool, c: np.float32, value: np.float32, s: np.float32) -> np.float32:
    """c s, or 0 where a rectified coefficient is not positive."""
    return ZERO if rectify and value <= 0 else c * s


@compiled
def charge_l1(
    values: ndarray, pairs: ndarray, length: np.float32, batch: int, row: ndarray, price: float, to: ndarray
) -> float:
    """The mean over the batch of the values times the row's length; price times its gradient by the row is added."""
    total = 0.0
    for p in pairs:
        total += values[p, 0]
    total /= batch
    if length > 0:
        share = np.float32(price * total / length)
        for d in range(len(row)):
            to[d] += share * row[d]
    return float(total * length)


@compiled
def at_thresholds(
    start: int,
    stop: int,
    starts: ndarray,
    pairs: ndarray,
    near: ndarray,
    residual: ndarray,
    dec: ndarray,
    met: ndarray,
    count: ndarray,
) -> None:
    """Of the pairs of each unit k in its threshold's window: met[k], the sum of <residual, row k>; their number."""
    slots = near.shape[1]
    for k in range(start, stop):
        met[k], count[k] = 0.0, 0
        row = dec[k]
        for p in range(starts[k], starts[k + 1]):
            t, i = pairs[p] // slots, pairs[p] % slots
            if near[t, i]:
                here, inner = residual[t], ZERO
                for d in range(len(row)):
                    inner += here[d] * row[d]
                met[k] += inner
                count[k] += 1


@compiled
def backward(
    start: int,
    stop: int,
    starts: ndarray,
    pairs: ndarray,
    values: ndarray,
    band: ndarray,
    residuals: ndarray,
    x: ndarray,
    enc: ndarray,
    dec: ndarray,
    rectify: bool,
    touched: ndarray,
    charge: int,
    price: float,
    charged: ndarray,
    grad_enc: ndarray,
    grad_dec: ndarray,
    sums: ndarray,
    cost: ndarray,
    fired: ndarray,
    pulled: ndarray,
) -> None:
    """Gradients of mean ||residual||^2, the charge included, by the encoder's columns and the decoder's rows.

    The residual of unit k is residuals[band[k]] (see decode_nested; elsewhere one for all units). With c = -2 / B:
    d/d values = c <residual, decoder row>; grad_dec = sum of c values residual; grad_enc = sum of (d/d values) x;
    sums = the same without x, the bias's gradient. Where touched[k] the sums go on from what is there, otherwise from
    zero. `charge` adds price times the nuclear norm of D_k E_k (MAP) or D_k (DECODER), of the units that are on or have
    charged[k], or times the mean of values ||d_k|| (L1, r = 1); cost[k] gets what is charged, fired[k] the rows on
    which unit k is on. `pulled` gets sums times the encoder's columns added, unless it is empty: what reaches the
    decoder's bias through the encoder, with its sign turned.
    """
    _, slots, rank = values.shape
    c = np.float32(-2.0 / len(x))
    flat = values.reshape(-1, rank)
    for k in range(start, stop):
        a, b = k * rank, (k + 1) * rank
        residual = residuals[band[k]]
        if not touched[k]:
            grad_dec[a:b] = ZERO
            grad_enc[a:b] = ZERO
        sums[a:b] = ZERO
        length, pull = ZERO, ZERO
        if charge == L1:
            length = np.sqrt(np.sum(dec[a] * dec[a]))
            pull = np.float32(-0.5 * price) * length  # c times this is what l1 adds to a value's gradient
        end = starts[k + 1]
        fired[k] = 0
        for p in range(starts[k], end):
            on = False
            for j in range(rank):
                on |= flat[pairs[p], j] != 0
            fired[k] += on
        for p in range(starts[k], end, 4):
            # four pairs against two columns at a time, so that what is loaded is used often; the last ones repeat, at 0
            p1, p2, p3 = min(p + 1, end - 1), min(p + 2, end - 1), min(p + 3, end - 1)
            q0, q1, q2, q3 = pairs[p], pairs[p1], pairs[p2], pairs[p3]
            t0, t1, t2, t3 = q0 // slots, q1 // slots, q2 // slots, q3 // slots
            c1, c2, c3 = c if p + 1 < end else ZERO, c if p + 2 < end else ZERO, c if p + 3 < end else ZERO
            e0, e1, e2, e3 = residual[t0], residual[t1], residual[t2], residual[t3]
            x0, x1, x2, x3 = x[t0], x[t1], x[t2], x[t3]
            for j in range(0, rank, 2):
                row, to_dec, to_enc = dec[a + j], grad_dec[a + j], grad_enc[a + j]
                v0, v1, v2, v3 = flat[q0, j], flat[q1, j], flat[q2, j], flat[q3, j]
                s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
                if j + 1 == rank:
                    if charge == L1:
                        s0, s1, s2, s3 = pull, pull, pull, pull
                    for d in range(len(row)):
                        w = row[d]
                        s0 += e0[d] * w
                        s1 += e1[d] * w
                        s2 += e2[d] * w
                        s3 += e3[d] * w
                    s0, s1 = passed(rectify, c, v0, s0), passed(rectify, c1, v1, s1)
                    s2, s3 = passed(rectify, c2, v2, s2), passed(rectify, c3, v3, s3)
                    sums[a + j] += s0 + s1 + s2 + s3
                    v0, v1, v2, v3 = c * v0, c1 * v1, c2 * v2, c3 * v3
                    for d in range(len(row)):
                        to_dec[d] += v0 * e0[d] + v1 * e1[d] + v2 * e2[d] + v3 * e3[d]
                    for d in range(len(row)):
                        to_enc[d] += s0 * x0[d] + s1 * x1[d] + s2 * x2[d] + s3 * x3[d]
                    continue
                next_row, next_dec, next_enc = dec[a + j + 1], grad_dec[a + j + 1], grad_enc[a + j + 1]
                u0, u1, u2, u3 = flat[q0, j + 1], flat[q1, j + 1], flat[q2, j + 1], flat[q3, j + 1]
                r0, r1, r2, r3 = ZERO, ZERO, ZERO, ZERO
                for d in range(len(row)):
                    w, z = row[d], next_row[d]
                    s0 += e0[d] * w
                    s1 += e1[d] * w
                    s2 += e2[d] * w
                    s3 += e3[d] * w
                    r0 += e0[d] * z
                    r1 += e1[d] * z
                    r2 += e2[d] * z
                    r3 += e3[d] * z
                s0, s1 = passed(rectify, c, v0, s0), passed(rectify, c1, v1, s1)
                s2, s3 = passed(rectify, c2, v2, s2), passed(rectify, c3, v3, s3)
                r0, r1 = passed(rectify, c, u0, r0), passed(rectify, c1, u1, r1)
                r2, r3 = passed(rectify, c2, u2, r2), passed(rectify, c3, u3, r3)
                sums[a + j] += s0 + s1 + s2 + s3
                sums[a + j + 1] += r0 + r1 + r2 + r3
                v0, v1, v2, v3 = c * v0, c1 * v1, c2 * v2, c3 * v3
                u0, u1, u2, u3 = c * u0, c1 * u1, c2 * u2, c3 * u3
                for d in range(len(row)):
                    f0, f1, f2, f3 = e0[d], e1[d], e2[d], e3[d]
                    to_dec[d] += v0 * f0 + v1 * f1 + v2 * f2 + v3 * f3
                    next_dec[d] += u0 * f0 + u1 * f1 + u2 * f2 + u3 * f3
                for d in range(len(row)):
                    f0, f1, f2, f3 = x0[d], x1[d], x2[d], x3[d]
                    to_enc[d] += s0 * f0 + s1 * f1 + s2 * f2 + s3 * f3
                    next_enc[d] += r0 * f0 + r1 * f1 + r2 * f2 + r3 * f3
        for i in range(a, b):
            if sums[i] != 0:
                row = enc[i]
                for d in range(len(pulled)):
                    pulled[d] += sums[i] * row[d]
        cost[k] = 0.0
        if charge == L1:
            cost[k] = charge_l1(flat, pairs[starts[k] : end], length, len(x), dec[a], price, grad_dec[a])
        elif charge != NO_CHARGE and (fired[k] > 0 or charged[k]):
            if charge == MAP:
                cost[k] = charge_map(enc[a:b], dec[a:b], price, grad_enc[a:b], grad_dec[a:b])
            else:
                cost[k] = charge_decoder(dec[a:b], price, grad_dec[a:b])
