"""One pass over the weights: clipped gradient, Adam's moments, the step, and the gauge or unit rows, block by block."""

import numpy as np
from numpy import ndarray

from sasa_theory.models.compiled.compile import ZERO, compiled

#: what is fixed after a step: nothing; every decoder row at length 1; every decoder block at length sqrt(r); the same,
#: its encoder block and bias scaled back
FREE, UNIT_ROWS, UNIT_BLOCKS, GAUGE = 0, 1, 2, 3


@compiled
def square(start: int, stop: int, x: ndarray, y: ndarray, out: ndarray) -> None:
    """out[i] = ||x[i]||^2 + ||y[i]||^2 of rows, float64 sums of float32 ones."""
    for i in range(start, stop):
        a, b = x[i], y[i]
        first, second = ZERO, ZERO
        for d in range(len(a)):
            first += a[d] * a[d]
            second += b[d] * b[d]
        out[i] = float(first) + float(second)


@compiled
def adam(rate: ndarray, p: ndarray, g: ndarray, m: ndarray, v: ndarray) -> None:
    """One step of Adam(W) on a vector; rate = (factor of g, lr / bias correction of m, beta1, beta2,
    1 / sqrt(bias correction of v), eps, 1 - lr * weight decay), float32."""
    share, lr, beta1, beta2, correct, eps, shrink = rate[0], rate[1], rate[2], rate[3], rate[4], rate[5], rate[6]
    one = np.float32(1)
    for d in range(len(p)):
        step = g[d] * share
        mean = m[d] + (one - beta1) * (step - m[d])
        spread = beta2 * v[d] + (one - beta2) * step * step
        m[d], v[d] = mean, spread
        p[d] = p[d] * shrink - lr * mean / (np.sqrt(spread) * correct + eps)


@compiled
def update(
    start: int,
    stop: int,
    rate: ndarray,
    rank: int,
    fix: int,
    dec: ndarray,
    grad_dec: ndarray,
    mean_dec: ndarray,
    spread_dec: ndarray,
    enc: ndarray,
    grad_enc: ndarray,
    mean_enc: ndarray,
    spread_enc: ndarray,
    size: ndarray,
) -> None:
    """Step the blocks of the units [start, stop) and fix their lengths; size[k] gets what a block was divided by."""
    # whole blocks, which lie together: row by row took twice as long where rows are short
    to_dec, by_dec, m_dec, v_dec = dec.reshape(-1), grad_dec.reshape(-1), mean_dec.reshape(-1), spread_dec.reshape(-1)
    to_enc, by_enc, m_enc, v_enc = enc.reshape(-1), grad_enc.reshape(-1), mean_enc.reshape(-1), spread_enc.reshape(-1)
    length = rank * dec.shape[1]
    for k in range(start, stop):
        a, b = k * length, (k + 1) * length
        block, enc_block = to_dec[a:b], to_enc[a:b]
        adam(rate, enc_block, by_enc[a:b], m_enc[a:b], v_enc[a:b])
        adam(rate, block, by_dec[a:b], m_dec[a:b], v_dec[a:b])
        total = 0.0
        if fix != FREE:
            for i in range(k * rank, (k + 1) * rank):
                row = dec[i]
                square_length = ZERO
                for d in range(len(row)):
                    square_length += row[d] * row[d]
                total += float(square_length)
                if fix == UNIT_ROWS and square_length > 0:
                    row /= np.sqrt(square_length)
        root = np.sqrt(total / rank) if fix >= UNIT_BLOCKS and total > 0 else 1.0
        divided = np.float32(root)
        size[k] = divided
        if divided != 1:
            block /= divided
            if fix == GAUGE:
                enc_block *= divided
