"""Subspaces and spheres: bases, principal angles, capture, effective ranks, covering numbers.

A subspace is given by a basis in rows, (d, D) ("samples are rows"); P_V = V^T V is its projector when the rows are
orthonormal. Everything here is a pure function of numpy arrays in float64.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from synthetic.errors import UsageError

#: Directions whose singular value is below this share of the largest are rounding, not part of a subspace.
RANK_TOLERANCE = 1e-5


def orthonormal_basis(rows: "Float[ndarray, 'n D']", tolerance: float = RANK_TOLERANCE) -> "Float[ndarray, 'd D']":
    """Orthonormal rows spanning the rows given, strongest direction first.

    Right singular vectors with sigma_j > tolerance * sigma_1; shape (0, D) when every row is zero. Raises UsageError
    when `rows` is not a matrix.
    """
    matrix = as_matrix(rows, "rows")
    if min(matrix.shape) == 0:
        return np.zeros((0, matrix.shape[1]))
    _, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    return right[: int((sigma > tolerance * sigma[0]).sum())] if sigma[0] > 0 else right[:0]


def principal_angles(a: "Float[ndarray, 'p D']", b: "Float[ndarray, 'q D']") -> "Float[ndarray, ' m']":
    """Principal angles between the row spaces of `a` and `b`, radians, ascending; m = min(dim a, dim b).

    Cosines are the singular values of Qa Qb^T. Below 45 degrees the sine, the singular values of Qb - Qb Qa^T Qa, is
    used instead, because arccos loses half the digits near 1 (Bjorck & Golub 1973).
    """
    qa, qb = orthonormal_basis(a), orthonormal_basis(b)
    require_same_width(qa, qb)
    if len(qa) < len(qb):
        qa, qb = qb, qa
    if len(qb) == 0:
        return np.zeros(0)
    inner = qb @ qa.T
    cosines = np.clip(np.linalg.svd(inner, compute_uv=False), 0, 1)
    sines = np.clip(np.linalg.svd(qb - inner @ qa, compute_uv=False)[::-1], 0, 1)
    return np.where(cosines > math.sqrt(0.5), np.arcsin(sines[: len(cosines)]), np.arccos(cosines))


def capture(subspace: "Float[ndarray, 'd D']", other: "Float[ndarray, 'q D']") -> float:
    """Share of `subspace` inside `other`: tr(P_V P_U) / d = mean over directions of V of ||P_U v||^2, in [0, 1].

    Not symmetric: 1 whenever `other` contains `subspace`, however large it is. UsageError for a zero `subspace`.
    """
    v, u = orthonormal_basis(subspace), orthonormal_basis(other)
    require_same_width(v, u)
    if len(v) == 0:
        raise UsageError("capture of a zero subspace is undefined; give at least one nonzero row")
    return float(np.square(v @ u.T).sum() / len(v))


def sphere(n: int, d: int, rng: np.random.Generator) -> "Float[ndarray, 'n d']":
    """`n` independent points uniform on the unit sphere of R^d."""
    if n < 0 or d < 1:
        raise UsageError(f"sphere wants n >= 0 points in d >= 1 dimensions; got n={n}, d={d}")
    points = rng.standard_normal((n, d))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


# ---- effective ranks of a spectrum of energies (eigenvalues of a covariance, squared singular values) -------------


def energy_rank(energies: "Float[ndarray, '... r']", share: float = 0.9) -> "Int[ndarray, '...']":
    """Fewest directions carrying `share` of the energy; 0 for a zero spectrum (E3; flat 12 gives 11 at .9)."""
    if not 0 < share <= 1:
        raise UsageError(f"share is {share!r}; expected a number in (0, 1]")
    ordered = np.sort(as_energies(energies), axis=-1)[..., ::-1]
    total = ordered.sum(axis=-1, keepdims=True)
    # the slack keeps a share met exactly (9 of 10 equal directions at .9) from being missed by rounding
    missing = np.cumsum(ordered, axis=-1) < (share - 1e-12) * total
    return np.where(total[..., 0] > 0, missing.sum(axis=-1) + 1, 0)


def stable_rank(energies: "Float[ndarray, '... r']") -> "Float[ndarray, '...']":
    """sum e_j / max e_j, in [1, r]; 0 for a zero spectrum."""
    e = as_energies(energies)
    return _ratio(e.sum(axis=-1), e.max(axis=-1))


def participation_ratio(energies: "Float[ndarray, '... r']") -> "Float[ndarray, '...']":
    """(sum e_j)^2 / sum e_j^2, in [1, r]; 0 for a zero spectrum."""
    p = _shares(energies)
    return _ratio(np.square(p.sum(axis=-1)), np.square(p).sum(axis=-1))


def entropy_rank(energies: "Float[ndarray, '... r']") -> "Float[ndarray, '...']":
    """exp(-sum p_j log p_j) with p = e / sum e (Roy & Vetterli 2007, on energies); 0 for a zero spectrum."""
    p = _shares(energies)
    entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)
    return np.where(p.sum(axis=-1) > 0, np.exp(entropy), 0.0)


# ---- covering numbers (A4) ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Covering:
    """A covering of sampled unit vectors by spans of at most k atoms out of a chosen set.

    chosen     indices of the chosen atoms, in the order they were taken.
    covered    (n,) whether each point lies within eps of the span of at most k chosen atoms.
    exact      whether no smaller set covers the same points (enumeration), or it is a greedy upper bound.
    """

    chosen: "Int[ndarray, ' L']"
    covered: "Bool[ndarray, ' n']"
    exact: bool

    @property
    def atoms(self) -> float:
        """L^(k)(eps): the number of chosen atoms, infinite when some point stays uncovered."""
        return float(len(self.chosen)) if bool(self.covered.all()) else math.inf

    @property
    def covered_fraction(self) -> float:
        """Share of the points covered."""
        return float(self.covered.mean())


def covering_number(points: "Float[ndarray, 'n D']", atoms: "Float[ndarray, 'N D']", k: int, eps: float) -> Covering:
    """Few atoms such that every point lies within `eps` of the span of at most `k` of them (A4), by greedy choice.

    Outer loop: take the atom that newly covers most points, ties broken by the largest drop of the summed excess
    (dist^2 - eps^2)_+. Inner: k - 1 steps of orthogonal matching pursuit over the atoms chosen so far, then the
    exactly best last atom. Points that pursuit over ALL atoms cannot cover are left uncovered and the
    number is then infinite; the atoms chosen cover the rest. Over-estimates the number of the sample, which
    under-estimates that of the sphere. Cost per chosen atom: n N k^2. Raises UsageError for k < 1, eps outside (0, 1),
    or an empty set of points.
    """
    points, atoms = _covering_input(points, atoms, k, eps)
    gram, start = atoms @ atoms.T, points @ atoms.T
    squares = np.square(points).sum(axis=1)
    level = eps * eps + 1e-12
    reachable = _pursuit(start, squares, gram, np.ones(len(atoms), bool), k)[0] <= level
    covered = squares <= level
    chosen: list[int] = []
    available = np.zeros(len(atoms), bool)
    while not available.all():
        todo = np.flatnonzero(reachable & ~covered)
        distance, drops = _pursuit(start[todo], squares[todo], gram, available, k)
        within = distance <= level
        covered[todo[within]] = True
        todo, distance, drops = todo[~within], distance[~within], drops[~within]
        if len(todo) == 0:
            break
        excess = np.maximum(drops - level, 0)
        newly, left = (excess == 0).sum(axis=0), excess.sum(axis=0)
        newly[available], left[available] = -1, math.inf
        best = int(np.lexsort((left, -newly))[0])
        available[best] = True
        chosen.append(best)
        covered[todo[excess[:, best] == 0]] = True
    covered |= _pursuit(start, squares, gram, available, k)[0] <= level
    return Covering(np.array(chosen, dtype=int), covered, exact=False)


def covering_number_exact(
    points: "Float[ndarray, 'n D']", atoms: "Float[ndarray, 'N D']", k: int, eps: float, limit: int = 200_000
) -> Covering:
    """The smallest such set of atoms, by enumeration: every k-subset's span, then every L-subset, L = 1, 2, ...

    Points that no k-subset covers are left uncovered; the smallest set covering all others is returned. Raises
    UsageError when there are more than `limit` subsets to try (about N > 17), as for `covering_number`.
    """
    points, atoms = _covering_input(points, atoms, k, eps)
    count, level = len(atoms), eps * eps + 1e-12
    if 2**count > limit:
        raise UsageError(
            f"exact covering of {count} atoms means {2**count} subsets (limit {limit}); use covering_number"
        )
    near: dict[frozenset[int], Bool[ndarray, " n"]] = {}
    for subset in itertools.combinations(range(count), min(k, count)):
        basis = orthonormal_basis(atoms[list(subset)])
        residual = points - points @ basis.T @ basis
        near[frozenset(subset)] = np.square(residual).sum(axis=1) <= level
    nothing = np.square(points).sum(axis=1) <= level
    target = nothing | np.any(list(near.values()), axis=0)
    if bool((target == nothing).all()):
        return Covering(np.zeros(0, int), target, exact=True)
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            if size <= k:
                basis = orthonormal_basis(atoms[list(chosen)])
                covered = np.square(points - points @ basis.T @ basis).sum(axis=1) <= level
            else:
                subsets = itertools.combinations(chosen, k)
                covered = nothing | np.any([near[frozenset(subset)] for subset in subsets], axis=0)
            if bool(covered[target].all()):
                return Covering(np.array(chosen), target, exact=True)
    return Covering(np.arange(count), target, exact=True)


def _pursuit(
    correlations: "Float[ndarray, 'n N']",
    squares: "Float[ndarray, ' n']",
    gram: "Float[ndarray, 'N N']",
    available: "Bool[ndarray, ' N']",
    k: int,
) -> "tuple[Float[ndarray, ' n'], Float[ndarray, 'n N']]":
    """Orthogonal matching pursuit of every point over the available atoms, in correlation space.

    Returns dist^2 after k steps, and the dist^2 each atom (available or not) would leave as the last step in place of
    the one taken: ||res||^2 - <res, a>^2 / ||a - P a||^2 after k - 1 steps. After a step along the orthonormal q,
    <res, a_l> falls by <u, q><q, a_l> and ||a_l - P a_l||^2 by <q, a_l>^2, so only (n, N) arrays are kept.
    """
    n, count = correlations.shape
    rows = np.arange(n)
    inner, left = correlations.copy(), squares.copy()
    free = np.repeat(np.diag(gram)[None, :], n, axis=0)
    scale = np.maximum(np.diag(gram), 1e-300)
    directions: list[ndarray] = []
    for _ in range(k - 1):
        usable = available & (free > 1e-10 * scale)
        pick = np.where(usable, np.square(inner) / scale, -1.0).argmax(axis=1)
        stuck = ~usable[rows, pick] | (inner[rows, pick] == 0)
        q = gram[pick] - sum((d[rows, pick][:, None] * d for d in directions), np.zeros((n, count)))
        norm = np.sqrt(np.where(stuck, 1.0, free[rows, pick]))
        q = np.where(stuck[:, None], 0.0, q / norm[:, None])
        along = np.where(stuck, 0.0, inner[rows, pick] / norm)
        inner, left = inner - along[:, None] * q, np.maximum(left - np.square(along), 0)
        free = np.maximum(free - np.square(q), 0)
        directions.append(q)
    gain = np.where(free > 1e-10 * scale, np.square(inner) / np.maximum(free, 1e-300), 0.0)
    after = np.maximum(left[:, None] - gain, 0)
    return np.where(available, after, left[:, None]).min(axis=1), after


# ---- small helpers --------------------------------------------------------------------------------------------------


def as_matrix(value: "Float[ndarray, 'n D']", name: str) -> "Float[ndarray, 'n D']":
    """`value` as a float64 matrix; UsageError when it is not two-dimensional, not finite."""
    matrix = np.asarray(value, dtype=np.float64)
    if matrix.ndim != 2:
        raise UsageError(f"{name} has shape {matrix.shape}; expected a matrix with one vector a row")
    if not np.isfinite(matrix).all():
        raise UsageError(f"{name} holds NaN or Inf; expected finite numbers")
    return matrix


def as_energies(energies: "Float[ndarray, '... r']") -> "Float[ndarray, '... r']":
    """`energies` in float64; UsageError when one is negative or there is none."""
    e = np.asarray(energies, dtype=np.float64)
    if e.ndim == 0 or e.shape[-1] == 0 or bool((e < 0).any()):
        raise UsageError("a spectrum of energies is a non-empty array of numbers >= 0 (eigenvalues, squared sigmas)")
    return e


def require_same_width(a: ndarray, b: ndarray) -> None:
    """Raise UsageError unless both subspaces live in the same R^D."""
    if a.shape[1] != b.shape[1]:
        raise UsageError(f"subspaces of R^{a.shape[1]} and R^{b.shape[1]} cannot be compared; give both the same width")


def _shares(energies: "Float[ndarray, '... r']") -> "Float[ndarray, '... r']":
    e = as_energies(energies)
    total = e.sum(axis=-1, keepdims=True)
    return np.divide(e, total, out=np.zeros_like(e), where=total > 0)


def _ratio(top: ndarray, bottom: ndarray) -> ndarray:
    return np.divide(top, bottom, out=np.zeros_like(np.asarray(top, dtype=float)), where=np.asarray(bottom) > 0)


def _covering_input(
    points: "Float[ndarray, 'n D']", atoms: "Float[ndarray, 'N D']", k: int, eps: float
) -> "tuple[Float[ndarray, 'n D'], Float[ndarray, 'N D']]":
    points, atoms = as_matrix(points, "points"), as_matrix(atoms, "atoms")
    require_same_width(points, atoms)
    if len(points) == 0 or len(atoms) == 0:
        raise UsageError(f"covering needs points and atoms; got {len(points)} points and {len(atoms)} atoms")
    if k < 1 or not 0 < eps < 1:
        raise UsageError(f"covering needs k >= 1 atoms at once and 0 < eps < 1; got k={k}, eps={eps}")
    return points, atoms
