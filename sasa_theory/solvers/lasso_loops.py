"""Compiled loops of the LASSO: certify each sample, take in the worst violators, solve on the working set.

A sample's working set is a short list of atoms with its own Gram matrix. On it, a few sweeps of coordinate descent
find the signs and one Cholesky solve on the support finds the values; where a sign would flip, the step ends at the
first zero. Everything is per sample, so threads share nothing. `still` lists the samples that are open; prices have a
row for each of these, all else a row for every sample.
"""

import numba
import numpy as np
from numpy import ndarray

#: sums may be reordered and fused, as a BLAS does; NaN and Inf keep their meaning
SUMS = {"contract", "reassoc", "nsz", "arcp"}


@numba.njit(nogil=True, cache=True, fastmath=SUMS)
def certify(
    start: int,
    stop: int,
    still: ndarray,
    x: ndarray,
    nu: ndarray,
    prices: ndarray,
    lam: ndarray,
    l1: ndarray,
    signed: bool,
    out: ndarray,
) -> None:
    """out[i] = (primal, dual, largest price) of sample i from its residual nu and prices <d_j, nu>.

    The dual point is t nu with the best t that keeps t * largest price <= lam.
    """
    for p in range(start, stop):
        i = still[p]
        top = 0.0
        for j in range(prices.shape[1]):
            price = abs(prices[p, j]) if signed else prices[p, j]
            top = max(top, price)
        left = cross = 0.0
        for d in range(x.shape[1]):
            left += nu[i, d] * nu[i, d]
            cross += nu[i, d] * x[i, d]
        t = cross / left if left > 0 else 0.0
        if top > 0:
            t = min(t, lam[i] / top)
        t = max(t, 0.0)
        out[i, 0] = left / 2 + lam[i] * l1[i]
        out[i, 1] = t * cross - t * t * left / 2
        out[i, 2] = top


@numba.njit(nogil=True, cache=True, fastmath=SUMS)
def take_in(
    start: int,
    stop: int,
    still: ndarray,
    prices: ndarray,
    lam: ndarray,
    signed: bool,
    atoms: ndarray,
    x: ndarray,
    most: int,
    work: ndarray,
    size: ndarray,
    gram: ndarray,
    target: ndarray,
    codes: ndarray,
) -> None:
    """Add the `most` atoms of largest price above lam to each working set, with Gram rows; drop unused ones if full.

    work (n, m) atoms, size (n,) how many, gram (n, m, m), target (n, m) = <d_j, x>, codes (n, m).
    """
    room = work.shape[1]
    found = np.empty(most, np.int64)
    worth = np.empty(most)
    for p in range(start, stop):
        i = still[p]
        if size[i] + most > room:
            _drop_unused(work[i], gram[i], target[i], codes[i], size, i)
        count = 0
        low = 0
        for j in range(prices.shape[1]):
            price = abs(prices[p, j]) if signed else prices[p, j]
            if price <= lam[i] * (1 + 1e-9) or (count == most and price <= worth[low]):
                continue
            held = False
            for a in range(size[i]):
                if work[i, a] == j:
                    held = True
                    break
            if held:
                continue
            place = low
            if count < most:
                place = count
                count += 1
            found[place], worth[place] = j, price
            low = 0
            for a in range(1, count):
                if worth[a] < worth[low]:
                    low = a
        for c in range(min(count, room - size[i])):
            j, a = found[c], size[i]
            work[i, a], codes[i, a] = j, 0.0
            total = 0.0
            for d in range(atoms.shape[1]):
                total += atoms[j, d] * x[i, d]
            target[i, a] = total
            for b in range(a + 1):
                other, total = work[i, b], 0.0
                for d in range(atoms.shape[1]):
                    total += atoms[j, d] * atoms[other, d]
                gram[i, a, b] = gram[i, b, a] = total
            size[i] += 1


@numba.njit(nogil=True, cache=True, fastmath=SUMS)
def _drop_unused(work: ndarray, gram: ndarray, target: ndarray, codes: ndarray, size: ndarray, i: int) -> None:
    kept = 0
    for a in range(size[i]):
        if codes[a] != 0:
            if kept != a:
                work[kept], target[kept], codes[kept] = work[a], target[a], codes[a]
                for b in range(size[i]):
                    gram[kept, b] = gram[a, b]
                for b in range(size[i]):
                    gram[b, kept] = gram[b, a]
            kept += 1
    size[i] = kept


@numba.njit(nogil=True, cache=True, fastmath=SUMS)
def solve_small(
    start: int,
    stop: int,
    still: ndarray,
    lam: ndarray,
    signed: bool,
    size: ndarray,
    gram: ndarray,
    target: ndarray,
    codes: ndarray,
    rounds: int,
    sweeps: int,
) -> None:
    """Solve each problem on its working set from the codes at hand: sweeps, then up to `rounds` Cholesky solves."""
    room = codes.shape[1]
    slope, chol, row, step = np.empty(room), np.empty((room, room)), np.empty(room), np.empty(room)
    support = np.empty(room, np.int64)
    for p in range(start, stop):
        i = still[p]
        m = size[i]
        a, g, penalty = codes[i], gram[i], lam[i]
        for j in range(m):
            slope[j] = target[i, j]
        for j in range(m):
            if a[j] != 0:
                for k in range(m):
                    slope[k] -= g[j, k] * a[j]
        _sweeps(m, a, g, slope, penalty, signed, sweeps)
        for _ in range(rounds):
            if _newton(m, a, g, slope, penalty, support, chol, row, step) and _optimal(m, a, slope, penalty, signed):
                break
            if _sweeps(m, a, g, slope, penalty, signed, sweeps) == 0:
                break


@numba.njit(nogil=True, cache=True, fastmath=SUMS)
def _sweeps(m: int, a: ndarray, g: ndarray, slope: ndarray, penalty: float, signed: bool, times: int) -> float:
    """Cyclic coordinate descent; returns the largest change of the last sweep."""
    moved = 0.0
    for _ in range(times):
        moved = 0.0
        for j in range(m):
            if g[j, j] <= 0:
                continue
            whole = slope[j] + g[j, j] * a[j]
            new = 0.0
            if whole > penalty:
                new = (whole - penalty) / g[j, j]
            elif signed and whole < -penalty:
                new = (whole + penalty) / g[j, j]
            change = new - a[j]
            if change != 0:
                a[j] = new
                for k in range(m):
                    slope[k] -= g[j, k] * change
                moved = max(moved, abs(change) * g[j, j] ** 0.5)
        if moved == 0:
            break
    return moved


@numba.njit(nogil=True, cache=True, fastmath=SUMS)
def _newton(
    m: int,
    a: ndarray,
    g: ndarray,
    slope: ndarray,
    penalty: float,
    support: ndarray,
    chol: ndarray,
    row: ndarray,
    step: ndarray,
) -> bool:
    """Move the support to its exact solution for the signs at hand, or up to the first zero; whether it got there.

    Where an atom of the support is a combination of those before it, the step goes along that combination, which
    leaves the fit as it is, in the direction in which ||a||_1 does not rise, and ends at the first zero too.
    """
    k = 0
    for j in range(m):
        if a[j] != 0:
            support[k] = j
            k += 1
    dependent = -1
    for p in range(k):  # row p of the factor, by forward substitution along contiguous rows of its transpose
        j = support[p]
        left, move = g[j, j], slope[j] - (penalty if a[j] > 0 else -penalty)
        for q in range(p):
            row[q] = g[j, support[q]]
        for q in range(p):
            entry = row[q] / chol[q, q]
            row[q] = entry
            for r in range(q + 1, p):
                row[r] -= entry * chol[q, r]
        for q in range(p):
            left -= row[q] * row[q]
            move -= row[q] * step[q]
        if left <= 1e-10 * g[j, j]:
            dependent = p
            break
        for q in range(p):
            chol[q, p] = row[q]
        chol[p, p] = left**0.5
        step[p] = move / chol[p, p]
    share, first = 1.0, -1
    if dependent >= 0:
        k = dependent + 1
        for p in range(dependent):
            step[p] = -row[p]
        step[dependent] = 0.0
    last = k if dependent < 0 else dependent
    for p in range(last - 1, -1, -1):
        total = step[p]
        for r in range(p + 1, last):
            total -= chol[p, r] * step[r]
        step[p] = total / chol[p, p]
    if dependent >= 0:
        step[dependent] = 1.0
        rise = 0.0
        for p in range(k):
            rise += step[p] if a[support[p]] > 0 else -step[p]
        if rise > 0:
            for p in range(k):
                step[p] = -step[p]
        share = np.inf
    for p in range(k):
        j = support[p]
        if a[j] * step[p] < 0 and -a[j] / step[p] < share:
            share, first = -a[j] / step[p], p
    if first < 0 and dependent >= 0:
        return False
    for p in range(k):
        j = support[p]
        change = share * step[p] if p != first else -a[j]
        a[j] = a[j] + change if p != first else 0.0
        for q in range(m):
            slope[q] -= g[j, q] * change
    return first < 0


@numba.njit(nogil=True, cache=True, fastmath=SUMS)
def _optimal(m: int, a: ndarray, slope: ndarray, penalty: float, signed: bool) -> bool:
    """Whether no atom of the working set wants to come in."""
    for j in range(m):
        if a[j] == 0 and (slope[j] > penalty * (1 + 1e-10) or (signed and slope[j] < -penalty * (1 + 1e-10))):
            return False
    return True


@numba.njit(nogil=True, cache=True, fastmath=SUMS)
def residuals(
    start: int,
    stop: int,
    still: ndarray,
    x: ndarray,
    atoms: ndarray,
    size: ndarray,
    work: ndarray,
    codes: ndarray,
    nu: ndarray,
    l1: ndarray,
) -> None:
    """nu[i] = x[i] - sum_j a_j d_j and l1[i] = sum |a_j| over the working set."""
    for p in range(start, stop):
        i = still[p]
        nu[i] = x[i]
        l1[i] = 0.0
        for a in range(size[i]):
            weight = codes[i, a]
            if weight != 0:
                l1[i] += abs(weight)
                row = atoms[work[i, a]]
                for d in range(x.shape[1]):
                    nu[i, d] -= weight * row[d]
