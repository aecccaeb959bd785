"""Opponents for part A: dictionaries that spread over a sphere as well as we can make them, and exact distances.

Lines in the plane are equally spaced, which is optimal. In more dimensions K-lines and the method of optimal directions
(exact choice of the k atoms, then least squares for all atoms) fit a sample, and descent on the largest |cosine| pushes
lines apart. `log_tube_by_angle` is the tube measure by quadrature, independent of `sasa_theory.bounds`.
"""

import math
from itertools import combinations

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import integrate

from sasa_theory.geometry import orthonormal_basis, sphere
from sasa_theory.solvers import klines


def log_tube_by_angle(t: float, d: int, k: int) -> float:
    """log P(dist^2 <= t) from the density sin^{d-k-1} cos^{k-1} of the angle, by quadrature scaled to its peak (A1)."""

    def log_density(angle: "float | ndarray") -> "float | ndarray":
        return (d - k - 1) * np.log(np.sin(angle)) + (k - 1) * np.log(np.cos(angle))

    def log_integral(low: float, high: float) -> float:
        grid = np.linspace(low, high, 1001)[1:-1]
        logs = log_density(grid)
        peak = float(np.max(logs))
        value, _ = integrate.quad(
            lambda angle: math.exp(float(log_density(angle)) - peak),
            low,
            high,
            points=[float(grid[int(np.argmax(logs))])],
            epsrel=1e-11,
            epsabs=0,
            limit=400,
        )
        return peak + math.log(value)

    return log_integral(0.0, math.asin(math.sqrt(t))) - log_integral(0.0, math.pi / 2)


def circle(n: int) -> "Float[ndarray, 'n 2']":
    """n equally spaced points of the unit circle, between the equally spaced lines' own angles: exact averages."""
    angles = (np.arange(n) + 0.5) * 2 * math.pi / n
    return np.column_stack([np.cos(angles), np.sin(angles)])


def squared_distances_each(points: ndarray, atoms: ndarray) -> "Float[ndarray, 'n N']":
    """Squared distance of every unit point to the line of every unit atom."""
    return 1 - np.square(points @ atoms.T)


def squared_distances(
    points: "Float[ndarray, 'n D']", atoms: "Float[ndarray, 'N D']", k: int, signed: bool = True
) -> "Float[ndarray, ' n']":
    """Squared distance of every point to the nearest span of k atoms (ray, for k = 1 and `signed` false), exactly.

    Every k-subset is tried, so N is small for k >= 2.
    """
    squares = np.square(points).sum(1)
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    if k == 1:
        scores = points @ unit.T
        best = np.abs(scores).max(1) if signed else np.maximum(scores, 0).max(1)
        return np.maximum(squares - best**2, 0)
    caught = np.zeros(len(points))
    for subset in combinations(range(len(atoms)), min(k, len(atoms))):
        caught = np.maximum(caught, np.square(points @ orthonormal_basis(unit[list(subset)]).T).sum(1))
    return np.maximum(squares - caught, 0)


def equal_lines(n_atoms: int, signed: bool = True) -> "Float[ndarray, 'N 2']":
    """N equally spaced lines (rays when not `signed`) in the plane."""
    angles = np.arange(n_atoms) * (math.pi if signed else 2 * math.pi) / n_atoms
    return np.column_stack([np.cos(angles), np.sin(angles)])


def fitted_lines(n_atoms: int, d: int, signed: bool, rng: np.random.Generator, rows: int) -> "Float[ndarray, 'N d']":
    """The best dictionary found for k = 1 on a uniform sphere: K-lines, or equal spacing in the plane."""
    if d == 2:
        return equal_lines(n_atoms, signed)
    found = klines.fit(sphere(rows, d, rng), n_atoms, rng, signed=signed, centre=False, dtype=np.float64, restarts=2)
    return found.atoms


def fitted_pairs(n_atoms: int, d: int, k: int, rng: np.random.Generator, rows: int) -> "Float[ndarray, 'N d']":
    """A good dictionary for k >= 2: exact choice of the k-subset, then least squares for all atoms; repeated."""
    points = sphere(rows, d, rng)
    atoms = sphere(n_atoms, d, rng)
    best, kept = math.inf, atoms
    subsets = [list(subset) for subset in combinations(range(n_atoms), k)]
    for _ in range(25):
        caught = np.stack([np.square(points @ orthonormal_basis(atoms[s]).T).sum(1) for s in subsets])
        choice = caught.argmax(0)
        error = 1 - float(caught.max(0).mean())
        if error < best:
            best, kept = error, atoms
        codes = np.zeros((rows, n_atoms))
        for number in np.unique(choice):
            here, subset = choice == number, subsets[number]
            codes[np.ix_(here, subset)] = np.linalg.lstsq(atoms[subset].T, points[here].T, rcond=None)[0].T
        moved = np.linalg.lstsq(codes, points, rcond=None)[0]
        norms = np.linalg.norm(moved, axis=1, keepdims=True)
        atoms = np.where(norms > 1e-12, moved / np.maximum(norms, 1e-12), atoms)
    return kept


def repelled_lines(n_atoms: int, d: int, rng: np.random.Generator, steps: int = 1500) -> "Float[ndarray, 'N d']":
    """N lines spread so that the largest |cosine| is small: descent on a soft maximum that sharpens."""
    if d == 2:
        return equal_lines(n_atoms)
    atoms = sphere(n_atoms, d, rng)
    for step in range(steps):
        sharpness = 10 * 100 ** (step / steps)
        inner = atoms @ atoms.T
        np.fill_diagonal(inner, 0)
        size = np.abs(inner)
        weights = np.exp(sharpness * (size - size.max()))
        np.fill_diagonal(weights, 0)
        pull = (weights * np.sign(inner)) @ atoms / weights.sum()
        pull -= (pull * atoms).sum(1, keepdims=True) * atoms
        atoms = atoms - 0.5 / math.sqrt(sharpness) * pull / max(float(np.linalg.norm(pull, axis=1).max()), 1e-12) * 0.2
        atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    return atoms


def coherence(atoms: "Float[ndarray, 'N d']", signed: bool = True) -> float:
    """Largest |cosine| (cosine, when not `signed`) between two of the atoms."""
    inner = atoms @ atoms.T
    np.fill_diagonal(inner, -1 if not signed else 0)
    return float((np.abs(inner) if signed else inner).max())
