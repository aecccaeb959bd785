"""Compiled loops over the activations of a batch: bringing them in order, families, and laying them out by row.

A batch is a few thousand to a few hundred thousand activations. As torch operations each of these steps is a sort or a
chain of gathers; as a loop it reads every activation once. No sum is reordered and nothing is fused, so the numbers are
those of the operations that are replaced.
"""

import numba
import numpy as np
from numpy import ndarray

exact = numba.njit(nogil=True, error_model="numpy", cache=True)
ONE = np.uint64(1)


@exact
def grouped(key: ndarray, groups: int) -> tuple[ndarray, ndarray]:
    """Counting sort of keys in [0, groups): the stable order (m,), and where each group starts in it (groups + 1,)."""
    starts = np.zeros(groups + 1, np.int64)
    for k in key:
        starts[k + 1] += 1
    for g in range(groups):
        starts[g + 1] += starts[g]
    free = starts[:groups].copy()
    order = np.empty(len(key), np.int64)
    for i in range(len(key)):
        order[free[key[i]]] = i
        free[key[i]] += 1
    return order, starts


@exact
def by_row(row: ndarray, feature: ndarray, rows: int, features: int) -> tuple[ndarray, ndarray]:
    """(row, feature) pairs sorted by row and then by feature."""
    first, _ = grouped(feature, features)
    order, _ = grouped(row[first], rows)
    order = first[order]
    return row[order], feature[order]


@exact
def floyd(draw: ndarray, roots: ndarray, ascending: bool) -> tuple[ndarray, ndarray]:
    """(row, root) of Floyd's subsets: number k of row t is draw (s, rows) [k, t], or R - s + k where it has that.

    In the order in which they are drawn, or `ascending` in each row.
    """
    s, rows = draw.shape
    row, feature = np.empty(rows * s, np.int64), np.empty(rows * s, np.int64)
    chosen = np.empty(s, np.int64)
    for t in range(rows):
        for k in range(s):
            value = draw[k, t]
            for j in range(k):
                if chosen[j] == value:
                    value = len(roots) - s + k
                    break
            at = k
            while ascending and at and chosen[at - 1] > value:
                chosen[at] = chosen[at - 1]
                at -= 1
            chosen[at] = value
        for k in range(s):
            row[t * s + k], feature[t * s + k] = t, roots[chosen[k]]
    return row, feature


@exact
def cells(row: ndarray, hits: ndarray, rows: int) -> tuple[ndarray, ndarray]:
    """Distinct (row, column) cells, int32, sorted by row and then by column; `row` lists hits[0] of column 0, etc."""
    starts = np.zeros(rows + 1, np.int64)
    for r in row:
        starts[np.uint64(r) + ONE] += 1  # unsigned: an index that may be negative is looked at first, in half the time
    for r in range(rows):
        starts[r + 1] += starts[r]
    free = starts[:rows].copy()
    columns = np.empty(len(row), np.int32)
    i = 0
    for column in range(len(hits)):
        for _ in range(hits[column]):
            r = np.uint64(row[i])
            columns[np.uint64(free[r])] = column
            free[r] += 1
            i += 1
    to_row, to_column = np.empty(len(row), np.int32), np.empty(len(row), np.int32)
    n = 0
    for r in range(rows):
        before = -1
        for k in range(starts[r], free[r]):
            to_row[n], to_column[n] = r, columns[k]
            n += columns[k] != before
            before = columns[k]
    return to_row[:n], to_column[:n]


@exact
def hopeful(
    row: ndarray, column: ndarray, u: ndarray, threshold: ndarray, shift: ndarray, highest: ndarray, bound: ndarray
) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """(row, column, u, score) of the cells with u highest[column] < bound; score = threshold[column] + shift[cell].

    `bound` is at least Phi on each of its cells [k, k + 1) / 64 - 8, the first and the last without end: most cells
    are turned away without a Phi of their own.
    """
    to_row, to_column = np.empty(len(row), np.int32), np.empty(len(row), np.int32)
    to_u, score = np.empty(len(row), np.float32), np.empty(len(row), np.float32)
    n, last = 0, np.float32(len(bound) - 1)
    for i in range(len(row)):
        r, c = np.uint64(row[i]), np.uint64(column[i])
        value = threshold[c] + shift[r, c]
        cell = np.int64(min(max((value + np.float32(8)) * np.float32(64), np.float32(0)), last))  # value may be Inf
        to_row[n], to_column[n], to_u[n], score[n] = row[i], column[i], u[i], value
        n += u[i] * highest[c] < bound[cell]
    return to_row[:n], to_column[:n], to_u[:n], score[:n]


@exact
def kept(row: ndarray, column: ndarray, u: ndarray, rate: ndarray, highest: ndarray) -> tuple[ndarray, ndarray]:
    """The cells with u < rate / highest[column]."""
    to_row, to_column = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
    n = 0
    for i in range(len(row)):
        to_row[n], to_column[n] = row[i], column[i]
        n += u[i] < rate[i] / highest[column[i]]
    return to_row[:n], to_column[:n]


@exact
def with_children(node: ndarray, child: ndarray) -> ndarray:
    """Positions of the nodes that have children."""
    found, n = np.empty(len(node), np.int64), 0
    for i in range(len(node)):
        found[n] = i
        n += child[node[i], 0] >= 0
    return found[:n]


@exact
def born(
    row: ndarray,
    node: ndarray,
    able: ndarray,
    u: ndarray,
    child: ndarray,
    low: ndarray,
    high: ndarray,
    exclusive: ndarray,
) -> tuple[ndarray, ndarray]:
    """(row, child) of every child whose interval [low, high) holds its uniform number; families share the first."""
    to_row, to_child = np.empty(u.size, np.int64), np.empty(u.size, np.int64)
    n = 0
    for i in range(len(able)):
        parent = node[able[i]]
        for k in range(child.shape[1]):
            number = u[i, 0] if exclusive[parent] else u[i, k]
            if low[parent, k] <= number < high[parent, k]:
                to_row[n], to_child[n] = row[able[i]], child[parent, k]
                n += 1
    return to_row[:n], to_child[:n]


@exact
def parents(row: ndarray, feature: ndarray, parent: ndarray) -> ndarray:
    """Position of each activation's parent in its row, -1 where it has none there; pairs are sorted by row."""
    at, m = np.full(len(row), -1), len(row)
    here, seen = np.zeros(len(parent), np.int64), np.full(len(parent), -1)
    start = 0
    while start < m:
        r, stop = row[start], start
        while stop < m and row[stop] == r:
            here[feature[stop]], seen[feature[stop]] = stop, r
            stop += 1
        for i in range(start, stop):
            above = parent[feature[i]]
            if above >= 0 and seen[above] == r:
                at[i] = here[above]
        start = stop
    return at


@exact
def spread(z: ndarray, where: ndarray, out: ndarray) -> None:
    """out[where[i]] = z[i], in the first columns."""
    for i in range(len(z)):
        for k in range(z.shape[1]):
            out[where[i], k] = z[i, k]


@exact
def magnitudes(laws: ndarray, feature: ndarray, normal: ndarray, flat: ndarray) -> None:
    """flat[i] *= max(0, mean + std normal[i]) / RMS, with (mean, std, RMS) in the rows of `laws`."""
    for i in range(len(feature)):
        mean, std, rms = laws[feature[i]]
        factor = max(mean + std * normal[i], np.float32(0)) / rms
        for k in range(flat.shape[1]):
            flat[i, k] *= factor


@exact
def scale(feature: ndarray, scales: ndarray, flat: ndarray) -> None:
    """flat[i] *= scales[feature[i]], rounded to float32 first."""
    for i in range(len(feature)):
        factor = np.float32(scales[feature[i]])
        for k in range(flat.shape[1]):
            flat[i, k] *= factor


@exact
def terms(
    row: ndarray, feature: ndarray, flat: ndarray, dims: ndarray, starts: ndarray, rows: int
) -> tuple[ndarray, ndarray, ndarray]:
    """Frame row and weight of every coordinate of every activation, and where each row's begin (rows,), in 32 bits."""
    used, weight = np.empty(flat.size, np.int32), np.empty(flat.size, np.float32)
    offsets = np.empty(rows, np.int32)
    i, n = 0, 0
    for t in range(rows):
        offsets[t] = n
        while i < len(row) and row[i] == t:
            f = feature[i]
            for k in range(dims[f]):
                used[n], weight[n] = starts[f] + k, flat[i, k]
                n += 1
            i += 1
    return used[:n], weight[:n], offsets


@exact
def padded(
    row: ndarray, feature: ndarray, flat: ndarray, theta: ndarray, rows: int
) -> tuple[ndarray, ndarray, ndarray]:
    """Index, coordinates and parameters in the slots of their rows; empty slots hold -1, 0 and 0."""
    slots = 1
    count = np.zeros(rows, np.int64)
    for r in row:
        count[r] += 1
        slots = max(slots, count[r])
    index = np.empty((rows, slots), np.int64)
    coords, parameters = (
        np.empty((rows, slots, flat.shape[1]), np.float32),
        np.empty((rows, slots, theta.shape[1]), np.float32),
    )
    i = 0
    for t in range(rows):
        for slot in range(slots):
            if slot < count[t]:
                index[t, slot] = feature[i]
                coords[t, slot], parameters[t, slot] = flat[i], theta[i]
                i += 1
            else:
                index[t, slot] = -1
                coords[t, slot], parameters[t, slot] = 0, 0
    return index, coords, parameters
