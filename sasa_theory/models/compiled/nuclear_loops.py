"""Nuclear norm of one unit's map or decoder block, and its gradient, from r x r Gram matrices (see models/nuclear.py).

With A (D, r), B (r, D), G_A = A^T A, G_B = B B^T, Q = G_B^{1/2} and Q G_A Q = V S^2 V^T: ||A B||_* = sum S and

    d/dA = A R,  R = Q V S^{-1} V^T Q        d/dB = L B,  L = Z S^{-3} Z^T,  Z = G_A Q V

(Z S^{-1} = P U with P = G_A^{1/2} and U the other singular vectors), over the singular values that are not rounding of
the largest. Blocks are given with their r rows contiguous: enc = A^T, dec = B.
"""

import numpy as np
from numpy import ndarray

from sasa_theory.models.compiled.compile import compiled

#: eigenvalues below this share of the largest, times r, are zeros
ROUNDING = 4 * np.finfo(np.float64).eps
#: ranks up to which rotations are faster than LAPACK, and the most rounds of them (four or five do)
JACOBI, SWEEPS = 8, 30


@compiled
def gram(rows: ndarray, out: ndarray) -> None:
    """out = rows rows^T, in float64: by float32 sums a block of lower rank than r would have spurious directions."""
    rank, width = rows.shape
    for i in range(rank):
        a = rows[i]
        for j in range(i + 1):
            b = rows[j]
            total = 0.0
            for d in range(width):
                total += np.float64(a[d]) * np.float64(b[d])
            out[i, j] = out[j, i] = total


@compiled
def add_product(left: ndarray, rows: ndarray, out: ndarray) -> None:
    """out += left @ rows, left (r, r) float64, rows (r, D) float32."""
    rank, width = rows.shape
    for i in range(rank):
        target = out[i]
        j = 0
        while j + 2 <= rank:
            u, v = np.float32(left[i, j]), np.float32(left[i, j + 1])
            a, b = rows[j], rows[j + 1]
            for d in range(width):
                target[d] += u * a[d] + v * b[d]
            j += 2
        if j < rank:
            u, a = np.float32(left[i, j]), rows[j]
            for d in range(width):
                target[d] += u * a[d]


@compiled
def outer_sum(columns: ndarray, weights: ndarray, out: ndarray) -> None:
    """out = columns diag(weights) columns^T."""
    rank = len(columns)
    for i in range(rank):
        for j in range(i + 1):
            total = 0.0
            for m in range(rank):
                total += columns[i, m] * weights[m] * columns[j, m]
            out[i, j] = out[j, i] = total


@compiled
def product(a: ndarray, b: ndarray, out: ndarray) -> None:
    """out = a @ b, all (r, r)."""
    rank = len(a)
    for i in range(rank):
        for j in range(rank):
            total = 0.0
            for m in range(rank):
                total += a[i, m] * b[m, j]
            out[i, j] = total


@compiled
def eigen(square: ndarray, values: ndarray, vectors: ndarray) -> None:
    """Eigenvalues, in no order, and vectors (columns) of a symmetric matrix (r, r), which is written over.

    Small ones by Jacobi's rotations, which calling LAPACK would cost as much as: until every entry off the diagonal is
    below 1e-10 of the geometric mean of its two on it, so that small eigenvalues are relatively as exact as large.
    """
    rank = len(square)
    if rank > JACOBI:
        found, columns = np.linalg.eigh(square)
        values[:], vectors[:] = found, columns
        return
    for i in range(rank):
        for j in range(rank):
            vectors[i, j] = 1.0 if i == j else 0.0
    for _ in range(SWEEPS):
        rotated = False
        for p in range(rank - 1):
            for q in range(p + 1, rank):
                off = square[p, q]
                if off * off <= 1e-20 * abs(square[p, p] * square[q, q]):
                    continue
                rotated = True
                ratio = 0.5 * (square[q, q] - square[p, p]) / off
                tangent = np.copysign(1.0, ratio) / (abs(ratio) + np.sqrt(ratio * ratio + 1.0))
                cosine = 1.0 / np.sqrt(tangent * tangent + 1.0)
                sine = tangent * cosine
                for i in range(rank):
                    x, y = square[i, p], square[i, q]
                    square[i, p], square[i, q] = cosine * x - sine * y, sine * x + cosine * y
                    x, y = vectors[i, p], vectors[i, q]
                    vectors[i, p], vectors[i, q] = cosine * x - sine * y, sine * x + cosine * y
                for i in range(rank):
                    x, y = square[p, i], square[q, i]
                    square[p, i], square[q, i] = cosine * x - sine * y, sine * x + cosine * y
        if not rotated:
            break
    for i in range(rank):
        values[i] = square[i, i]


@compiled
def charge_map(enc: ndarray, dec: ndarray, price: float, grad_enc: ndarray, grad_dec: ndarray) -> float:
    """||dec^T enc||_* of one unit; adds price times its gradient to both gradients."""
    rank = len(dec)
    gram_a, gram_b = np.empty((rank, rank)), np.empty((rank, rank))
    gram(enc, gram_a)
    gram(dec, gram_b)
    values, vectors = np.empty(rank), np.empty((rank, rank))
    eigen(gram_b, values, vectors)
    floor = max(values.max(), 0.0) * rank * ROUNDING
    for i in range(rank):
        values[i] = np.sqrt(values[i]) if values[i] > floor else 0.0
    root, half, whole = np.empty((rank, rank)), np.empty((rank, rank)), np.empty((rank, rank))
    outer_sum(vectors, values, root)
    product(gram_a, root, half)
    product(root, half, whole)
    eigen(whole, values, vectors)
    floor = max(values.max(), 0.0) * rank * ROUNDING
    inverse, cubed = np.zeros(rank), np.zeros(rank)
    norm = 0.0
    for i in range(rank):
        if values[i] > floor:
            s = np.sqrt(values[i])
            norm += s
            inverse[i], cubed[i] = price / s, price / (s * s * s)
    side = np.empty((rank, rank))
    product(root, vectors, side)
    outer_sum(side, inverse, whole)
    add_product(whole, enc, grad_enc)
    product(half, vectors, side)
    outer_sum(side, cubed, whole)
    add_product(whole, dec, grad_dec)
    return norm


@compiled
def charge_decoder(dec: ndarray, price: float, grad_dec: ndarray) -> float:
    """||dec||_* of one unit; adds price times its gradient."""
    rank = len(dec)
    square = np.empty((rank, rank))
    gram(dec, square)
    values, vectors = np.empty(rank), np.empty((rank, rank))
    eigen(square, values, vectors)
    floor = max(values.max(), 0.0) * rank * ROUNDING
    norm = 0.0
    for i in range(rank):
        kept = values[i] > floor
        s = np.sqrt(values[i]) if kept else 0.0
        norm += s
        values[i] = price / s if kept else 0.0
    outer_sum(vectors, values, square)
    add_product(square, dec, grad_dec)
    return norm
