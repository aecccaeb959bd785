"""Compiled loops of the LASSO: certify each sample, take in the worst violators, follow the path of optima.

A sample's working set is a short list of atoms with its own Gram matrix. Codes are the optimum for penalties that may
differ from atom to atom: on the support the price an atom has now, elsewhere any number that no price exceeds. As all
penalties move in a straight line to the one that is wanted, the codes move along a piecewise linear path (homotopy;
Osborne, Presnell and Turlach 2000, Efron et al. 2004), and at each kink one atom joins or leaves. Since the start is
read off the current prices, whatever rounding did is undone by the next round, and a path may stop anywhere.

Everything is per sample, so threads share nothing. Atoms are named by their slot in the working set, except in `work`.
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy import ndarray

#: sums may be reordered and fused, as a BLAS does; NaN and Inf keep their meaning
compiled = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"})

#: an atom whose squared distance from the span of the support is below this share of its square depends on it
DEPENDENT = 1e-8
#: the prices of a support are equal; once they differ by this share of the largest price its inverse is computed anew
DRIFT = 1e-8


class Sets(NamedTuple):
    """State of n samples: working sets of up to m atoms, supports of up to k = min(N, D), residuals and values.

    size (n,) atoms held, work (n, m) which, gram (n, m, m), codes (n, m); count (n,) atoms in the support,
    support (n, k) their slots, inverse (n, k, k) of their Gram matrix; nu (n, D), l1 (n,), primal (n,), dual (n,).
    """

    size: ndarray
    work: ndarray
    gram: ndarray
    codes: ndarray
    count: ndarray  # type: ignore[assignment]  # of the support, not tuple's method
    support: ndarray
    inverse: ndarray
    nu: ndarray
    l1: ndarray
    primal: ndarray
    dual: ndarray

    @classmethod
    def empty(cls, x: ndarray, room: int, rank: int) -> "Sets":
        """Empty working sets with space for `room` atoms, of which `rank` can be independent."""
        n = len(x)
        return cls(
            size=np.zeros(n, np.int64),
            work=np.zeros((n, room), np.int64),
            gram=np.zeros((n, room, room)),
            codes=np.zeros((n, room)),
            count=np.zeros(n, np.int64),
            support=np.zeros((n, rank), np.int64),
            inverse=np.zeros((n, rank, rank)),
            nu=x.copy(),
            l1=np.zeros(n),
            primal=np.zeros(n),
            dual=np.zeros(n),
        )


@compiled
def visit(
    start: int,
    stop: int,
    still: ndarray,
    prices: ndarray,
    x: ndarray,
    atoms: ndarray,
    lam: ndarray,
    signed: bool,
    rtol: float,
    most: int,
    share: float,
    renew: bool,
    last: bool,
    sets: Sets,
    done: ndarray,
) -> None:
    """Certify the samples still[start:stop] from their prices <d_j, nu>; those not done take in atoms and move on.

    The penalty aimed at is lam, or `share` of the largest price where that is more, but never above the one at hand:
    while many atoms are missing, the way to lam would be lost labour. `renew` computes the inverse afresh; `last` only
    certifies. Writes done[p].
    """
    room = sets.work.shape[1]
    scratch = (np.empty(room), np.empty(room), np.empty(room), np.empty(room), np.empty(room), np.empty(room, np.bool_))
    c, place = np.empty(room), np.empty(room, np.int64)
    for p in range(start, stop):
        i = still[p]
        top = certify(x[i], sets.nu[i], prices[p], lam[i], sets.l1[i], signed, sets.primal[i:], sets.dual[i:])
        half = _dot(x[i], x[i]) / 2
        done[p] = sets.primal[i] - sets.dual[i] <= rtol * half
        done[p] |= sets.count[i] == 0 and top <= lam[i]  # zero is the answer, exactly
        if done[p] or last:
            continue
        if not sets.primal[i] <= half * (1 + 1e-9):  # no path does worse than zero: the inverse was lost, begin anew
            sets.size[i] = sets.count[i] = 0
            sets.codes[i], sets.nu[i], sets.l1[i] = 0.0, x[i], 0.0
            continue
        m, k, g, a, support, inverse = (
            sets.size[i],
            sets.count[i],
            sets.gram[i],
            sets.codes[i],
            sets.support[i],
            sets.inverse[i],
        )
        if m + most > room:
            m = drop_unused(m, k, sets.work[i], g, a, support, place)
        m = take_in(m, prices[p], lam[i], signed, atoms, most, sets.work[i], g, a)
        for j in range(m):
            c[j] = prices[p, sets.work[i, j]]
        low, high = np.inf, 0.0 if k > 0 else top
        for q in range(k):
            price = abs(c[support[q]])
            low, high = min(low, price), max(high, price)
        k = follow(m, k, g, c, a, support, inverse, max(lam[i], min(share * top, high)), signed, scratch)
        if renew or high > low + DRIFT * top:
            k = invert(k, g, a, support, inverse, scratch[0])
        sets.size[i], sets.count[i] = m, k
        sets.nu[i] = x[i]
        sets.l1[i] = 0.0
        for q in range(k):
            j = support[q]
            sets.l1[i] += abs(a[j])
            row = atoms[sets.work[i, j]]
            for d in range(x.shape[1]):
                sets.nu[i, d] -= a[j] * row[d]


@compiled
def certify(
    x: ndarray, nu: ndarray, prices: ndarray, lam: float, l1: float, signed: bool, primal: ndarray, dual: ndarray
) -> float:
    """Write the values of one sample to primal[0] and dual[0]; returns its largest price.

    The dual point is t nu with the best t that keeps t * largest price <= lam.
    """
    top = 0.0
    for j in range(len(prices)):
        top = max(top, abs(prices[j]) if signed else prices[j])
    left, cross = _dot(nu, nu), _dot(nu, x)
    t = cross / left if left > 0 else 0.0
    if top > 0:
        t = min(t, lam / top)
    t = max(t, 0.0)
    primal[0] = left / 2 + lam * l1
    dual[0] = t * cross - t * t * left / 2
    return top


@compiled
def _dot(a: ndarray, b: ndarray) -> float:
    total = 0.0
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@compiled
def drop_unused(m: int, k: int, work: ndarray, g: ndarray, a: ndarray, support: ndarray, place: ndarray) -> int:
    """Keep only the support in the working set, in its order there; returns how many that are."""
    place[:m] = -1
    for q in range(k):
        place[support[q]] = 0
    kept = 0
    for j in range(m):
        if place[j] < 0:
            continue
        place[j] = kept
        if kept != j:
            work[kept], a[kept] = work[j], a[j]
            for b in range(m):
                g[kept, b] = g[j, b]
            for b in range(m):
                g[b, kept] = g[b, j]
        kept += 1
    for q in range(k):
        support[q] = place[support[q]]
    a[kept:m] = 0.0
    return kept


@compiled
def take_in(
    m: int,
    prices: ndarray,
    lam: float,
    signed: bool,
    atoms: ndarray,
    most: int,
    work: ndarray,
    g: ndarray,
    a: ndarray,
) -> int:
    """Add the `most` atoms of largest price above lam to the working set, with their Gram rows; returns its size."""
    found, worth = np.empty(most, np.int64), np.empty(most)
    count = low = 0
    for j in range(len(prices)):
        price = abs(prices[j]) if signed else prices[j]
        if price <= lam * (1 + 1e-9) or (count == most and price <= worth[low]):
            continue
        held = False
        for b in range(m):
            if work[b] == j:
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
        for b in range(1, count):
            if worth[b] < worth[low]:
                low = b
    for c in range(min(count, len(work) - m)):
        work[m], a[m] = found[c], 0.0
        for b in range(m + 1):
            other, total = work[b], 0.0
            for d in range(atoms.shape[1]):
                total += atoms[found[c], d] * atoms[other, d]
            g[m, b] = g[b, m] = total
        m += 1
    return m


@compiled
def follow(
    m: int,
    k: int,
    g: ndarray,
    c: ndarray,
    a: ndarray,
    support: ndarray,
    inverse: ndarray,
    goal: float,
    signed: bool,
    scratch: tuple[ndarray, ndarray, ndarray, ndarray, ndarray, ndarray],
) -> int:
    """Move the codes `a` to the optimum for the penalty `goal` on the working set; returns the size of the support.

    c_j = <d_j, nu> at the start. With penalties w_j moving towards goal at the rate goal - w_j, the support S has
    c_S = sign w_S, so its codes move by -G_SS^-1 sign (goal - w_S) per unit of the way left.
    """
    w, sign, move, drift, mix, on = scratch
    on[:m] = False
    move[:m] = 0.0
    for p in range(k):
        on[support[p]] = True
    outside = goal
    for j in range(m):
        sign[j] = 1.0 if a[j] > 0 or (a[j] == 0 and c[j] > 0) else -1.0
        w[j] = sign[j] * c[j]
        if not on[j] and (signed or c[j] > 0):
            outside = max(outside, w[j])
    largest = outside - goal
    for j in range(m):
        if on[j]:
            largest = max(largest, abs(w[j] - goal))
        else:
            w[j] = outside
    for _ in range(20 * m):
        if largest <= 0:
            break
        for p in range(k):
            mix[p] = 0.0
        for q in range(k):
            j = support[q]
            pull = sign[j] * (w[j] - goal)
            if pull != 0:
                for p in range(k):
                    mix[p] += inverse[q, p] * pull
        step, gone, come = 1.0, -1, -1
        for p in range(k):
            j = support[p]
            move[j] = mix[p]
            if sign[j] * mix[p] < 0 and -a[j] / mix[p] < step:
                step, gone = -a[j] / mix[p], p
        for j in range(m):
            if on[j]:
                continue
            total = 0.0
            for b in range(m):
                total -= g[j, b] * move[b]
            drift[j] = total
            # a rise within rounding is none: an atom and its double would take turns for ever
            rise = total - goal + w[j]
            if rise > 1e-10 * largest and w[j] - c[j] < step * rise:
                step, gone, come, sign[j] = max((w[j] - c[j]) / rise, 0.0), -1, j, 1.0
            rise = -total - goal + w[j]
            if signed and rise > 1e-10 * largest and w[j] + c[j] < step * rise:
                step, gone, come, sign[j] = max((w[j] + c[j]) / rise, 0.0), -1, j, -1.0
        for j in range(m):
            w[j] += step * (goal - w[j])
            if on[j]:
                a[j] += step * move[j]
                c[j] = sign[j] * w[j]
            else:
                c[j] += step * drift[j]
        largest -= step * largest
        if come >= 0 and not enter(come, k, g, support, inverse, mix):
            # the newcomer is the combination `mix` of the support: it replaces the atom it first drives to zero
            share = np.inf
            for p in range(k):
                j = support[p]
                towards = sign[come] * mix[p]
                # prices are equal, so the largest of these is at least 1/k; a smaller one may be rounding
                if towards * sign[j] > 1e-6 and a[j] / towards < share:
                    share, gone = a[j] / towards, p
            if gone < 0:
                break
            for p in range(k):
                a[support[p]] -= share * sign[come] * mix[p]
            a[come] = share * sign[come]
        if gone >= 0:
            j = support[gone]
            a[j], move[j], on[j] = 0.0, 0.0, False
            k = leave(gone, k, support, inverse)
            if come < 0:
                continue
            if not enter(come, k, g, support, inverse, mix):
                a[come] = 0.0
                break
        if come < 0:
            break
        on[come] = True
        k += 1
    return k


@compiled
def enter(j: int, k: int, g: ndarray, support: ndarray, inverse: ndarray, mix: ndarray) -> bool:
    """Border the inverse of the support's Gram matrix by atom j; False if j depends on the support.

    Either way mix[:k] holds the combination of the support nearest to d_j.
    """
    mix[:k] = 0.0
    for q in range(k):
        for p in range(k):
            mix[p] += inverse[q, p] * g[j, support[q]]
    apart = g[j, j]
    for p in range(k):
        apart -= mix[p] * g[j, support[p]]
    if k == len(support) or apart <= DEPENDENT * g[j, j]:
        return False
    for p in range(k):
        ratio = mix[p] / apart
        for q in range(k):
            inverse[p, q] += ratio * mix[q]
        inverse[p, k] = inverse[k, p] = -ratio
    inverse[k, k] = 1 / apart
    support[k] = j
    return True


@compiled
def leave(p: int, k: int, support: ndarray, inverse: ndarray) -> int:
    """Take entry p out of the support and its inverse, the last one takes its place; returns the new size."""
    last = k - 1
    support[p] = support[last]
    for q in range(k):
        inverse[p, q], inverse[last, q] = inverse[last, q], inverse[p, q]
    for q in range(k):
        inverse[q, p], inverse[q, last] = inverse[q, last], inverse[q, p]
    for q in range(last):
        ratio = inverse[q, last] / inverse[last, last]
        for r in range(last):
            inverse[q, r] -= ratio * inverse[last, r]
    return last


@compiled
def invert(k: int, g: ndarray, a: ndarray, support: ndarray, inverse: ndarray, mix: ndarray) -> int:
    """The inverse anew, atom by atom; one that depends on those before it loses its code. Returns the new size."""
    kept = 0
    for p in range(k):
        j = support[p]
        if enter(j, kept, g, support, inverse, mix):
            kept += 1
        else:
            a[j] = 0.0
    return kept
