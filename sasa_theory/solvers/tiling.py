"""Tiling: the expected l1 risk of a dictionary, well-spread dictionaries, and descent on the atoms (B3, B4, B6).

    R(D) = E psi_D(h),    psi_D(h) = min_a 1/2 ||h - D a||^2 + lam ||a||_1,    atoms of at most unit length

R falls as the atoms fill the sphere, and the question is how fast. Three tools: `risk` measures R with an error bar
(`circle_risk` without one, in the plane), `well_spread` places atoms far apart, `descend` moves them downhill. Codes
are optimal at every step, so by the envelope theorem the gradient needs no derivative of the codes:

    dR / dd_j = -E[a_j nu],    nu = h - D a.

R is not convex in the atoms; a descent ends in a local minimum, so the best of several starts is an upper bound on the
optimal risk and nothing more.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import optimize

from sasa_theory.arguments import require_count, require_real
from sasa_theory.bounds import tiled_limit
from sasa_theory.geometry import sphere
from sasa_theory.solvers import lasso
from synthetic.errors import UsageError

STARTS = ("basis", "random", "spread")


class Risk(NamedTuple):
    """A measured risk: the mean cost of the codes found, its standard error, and the mean duality gap.

    value - gap bounds the mean of psi over the same points from below: the codes cannot be better than that.
    """

    value: float
    error: float
    gap: float


class Descent(NamedTuple):
    """Where a descent ended: unit atoms (N, d), and the risk on the points it descended on, after every step.

    history[0] is the start's; it never increases. On these points the atoms look better than they are: measure them
    with `risk` on held-out ones.
    """

    atoms: "Float[ndarray, 'N d']"
    history: tuple[float, ...]


def risk(
    atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, 'n D']", lam: float, signed: bool = True, rtol: float = 1e-6
) -> Risk:
    """R(D) over independent rows `x` of any law: mean psi, standard error s / sqrt(n), mean duality gap.

    For a rotation-invariant law of fixed norm take `radius * sphere(n, d, rng)`: the norm adds no variance. Raises
    UsageError for fewer than two rows and what `lasso.solve` raises.
    """
    if len(x) < 2:
        raise UsageError(f"risk got {len(x)} rows; give at least 2, an error bar needs them")
    found = lasso.solve(atoms, x, lam, signed=signed, rtol=rtol)
    return _mean(found.primal, found.primal - found.dual)


def excess_risk(
    atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, 'n D']", lam: float, signed: bool = True, rtol: float = 1e-6
) -> Risk:
    """Mean of psi_D(h) - tiled_limit(||h||) over independent rows: what N atoms cost more than a tiling.

    The same as `risk` less the mean limit, but the error bar is free of the spread of the norms. Raises what `risk`
    raises.
    """
    if len(x) < 2:
        raise UsageError(f"excess_risk got {len(x)} rows; give at least 2, an error bar needs them")
    found = lasso.solve(atoms, x, lam, signed=signed, rtol=rtol)
    excess = found.primal - tiled_limit(np.linalg.norm(x, axis=1), lam)
    return _mean(excess, found.primal - found.dual)


def circle_risk(
    atoms: "Float[ndarray, 'N 2']", radius: float, lam: float, signed: bool = True, angles: int = 1024
) -> Risk:
    """R(D) for the uniform law on a circle, by quadrature instead of sampling.

    The trapezoid rule on `angles` equal angles (of half the circle for signed codes, whose psi is even); psi is once
    differentiable with kinks in its slope, so the error falls like angles^-2 at worst. `error` is the difference to the
    rule on every other angle. Raises UsageError unless d = 2.
    """
    if np.ndim(atoms) != 2 or np.shape(atoms)[1] != 2:
        raise UsageError(f"circle_risk got atoms of shape {np.shape(atoms)}; expected (N, 2)")
    require_count("angles", angles, 4)
    theta = (np.pi if signed else 2 * np.pi) * np.arange(angles) / angles
    x = radius * np.stack([np.cos(theta), np.sin(theta)], axis=1)
    found = lasso.solve(atoms, x, lam, signed=signed, rtol=1e-10)
    value = float(found.primal.mean())
    return Risk(value, abs(value - float(found.primal[::2].mean())), float((found.primal - found.dual).mean()))


def well_spread(
    n_atoms: int, d: int, rng: np.random.Generator, signed: bool = True, steps: int = 300
) -> "Float[ndarray, 'N d']":
    """Unit atoms far from each other: lines for signed codes, rays for non-negative ones.

    d = 2: equal angles. Above: a local minimum of sum over pairs (1 - c^2)^{-d/2} (lines) or (1 - c)^{-d/2} (rays), c
    the cosine of the pair, a repulsion steep enough that far pairs hardly count, by L-BFGS from a random start. d = 1:
    the line, or both rays in turn. Raises UsageError for n_atoms, d or steps below 1.
    """
    require_count("n_atoms", n_atoms)
    require_count("d", d)
    require_count("steps", steps)
    if d == 1:
        return np.where(np.arange(n_atoms)[:, None] % 2 == 0, 1.0, 1.0 if signed else -1.0)
    if d == 2:
        theta = (np.pi if signed else 2 * np.pi) * np.arange(n_atoms) / n_atoms
        return np.stack([np.cos(theta), np.sin(theta)], axis=1)
    if n_atoms == 1:
        return sphere(1, d, rng)
    p = d / 2

    def energy(flat: "Float[ndarray, ' m']") -> "tuple[float, Float[ndarray, ' m']]":
        points = flat.reshape(n_atoms, d)
        norms = np.linalg.norm(points, axis=1, keepdims=True)
        units = points / norms
        c = units @ units.T
        apart = np.maximum(1 - c**2 if signed else 1 - c, 1e-12)
        np.fill_diagonal(apart, np.inf)
        pairs = apart**-p
        # d/dc of apart^-p, over both orders of the pair
        slope = p * pairs / apart * (2 * c if signed else 1.0)
        gradient = _tangent(2 * slope @ units, units) / norms
        # the logarithm keeps the first steps, taken from close pairs, of a sensible size
        total = float(pairs.sum())
        return math.log(total), (gradient / total).ravel()

    start = sphere(n_atoms, d, rng).ravel()
    end = optimize.minimize(energy, start, jac=True, method="L-BFGS-B", options={"maxiter": steps}).x
    return _unit(end.reshape(n_atoms, d))


def start(
    kind: str, n_atoms: int, d: int, rng: np.random.Generator, signed: bool = True, tilt: float = 1e-3
) -> "Float[ndarray, 'N d']":
    """Atoms to descend from: "basis" with duplicates, "random" unit vectors, or "spread" (`well_spread`).

    The basis is e_1..e_d in turn (non-negative codes: e_1..e_d, -e_1..-e_d), each copy after the first turned by about
    `tilt` in a random direction, because exact duplicates share every code and stay together. Raises UsageError for
    another name.
    """
    if kind == "spread":
        return well_spread(n_atoms, d, rng, signed)
    if kind == "random":
        return sphere(n_atoms, d, rng)
    if kind != "basis":
        raise UsageError(f"start is {kind!r}; expected one of {', '.join(STARTS)}")
    require_count("n_atoms", n_atoms)
    require_real("tilt", tilt, 0)
    basis = np.eye(d) if signed else np.concatenate([np.eye(d), -np.eye(d)])
    atoms = basis[np.arange(n_atoms) % len(basis)]
    extra = max(0, n_atoms - len(basis))
    atoms[n_atoms - extra :] += tilt * sphere(extra, d, rng)
    return _unit(atoms)


def descend(
    atoms: "Float[ndarray, 'N d']",
    x: "Float[ndarray, 'n d']",
    lam: float,
    signed: bool = True,
    steps: int = 100,
    rtol: float = 1e-5,
    code_rtol: float = 1e-6,
) -> Descent:
    """Projected gradient descent on the atoms, the codes optimal at every step.

    d_j <- normalise(d_j - t G_j / (E[a_j^2] + floor)), G_j the part of -E[a_j nu] orthogonal to d_j, floor a
    hundredth of the largest E[a_j^2]. Dividing by an atom's own energy gives atoms of small cells steps as long as the
    others'; t grows after a step that lowered the risk enough (Armijo) and halves otherwise. Ends after `steps` steps,
    or when ten of them together lower the risk by less than `rtol` of it; every point is coded to a relative gap of
    `code_rtol`. Atoms that nothing activates stay. Raises UsageError for rows of different widths or steps < 0.
    """
    atoms, x = np.array(atoms, dtype=np.float64), np.asarray(x, dtype=np.float64)
    require_count("steps", steps, 0)
    if atoms.ndim != 2 or x.ndim != 2 or atoms.shape[1] != x.shape[1] or len(x) == 0:
        raise UsageError(f"descend got atoms {atoms.shape} and x {x.shape}; expected (N, d) and (n, d) with n >= 1")
    lengths = np.linalg.norm(atoms, axis=1)
    if not (lengths > 0).all() or not np.isfinite(lengths).all():
        raise UsageError("descend got an atom that is zero or not finite; give atoms with a direction")
    atoms /= lengths[:, None]
    value, gradient, energy = _slope(atoms, x, lam, signed, code_rtol)
    history, t = [value], 1.0
    for _ in range(steps):
        direction = gradient / (energy + 0.01 * energy.max() + np.finfo(float).tiny)[:, None]
        drop = float((gradient * direction).sum())
        while drop > 0 and t > 1e-6:
            tried = _unit(atoms - t * direction)
            new, new_gradient, new_energy = _slope(tried, x, lam, signed, code_rtol)
            if new <= value - 0.1 * t * drop:
                break
            t /= 2
        else:
            break  # no step lowers the risk at the precision of the codes
        atoms, value, gradient, energy = tried, new, new_gradient, new_energy
        history.append(value)
        t *= 1.5
        if len(history) > 10 and history[-11] - value <= rtol * value:
            break
    return Descent(atoms, tuple(history))


def candidates(
    n_atoms: int, x: "Float[ndarray, 'n d']", lam: float, rng: np.random.Generator, signed: bool = True, steps: int = 60
) -> "dict[str, Float[ndarray, 'N d']]":
    """Dictionaries to try a bound with: the well-spread one, and where a descent on `x` from each start ended.

    Keys: "well-spread" and "descent from <start>". Judge them on points other than `x`.
    """
    d = x.shape[1]
    spread = well_spread(n_atoms, d, rng, signed)
    starts = {kind: spread if kind == "spread" else start(kind, n_atoms, d, rng, signed) for kind in STARTS}
    ends = {f"descent from {kind}": descend(atoms, x, lam, signed, steps).atoms for kind, atoms in starts.items()}
    return {"well-spread": spread, **ends}


def _mean(values: "Float[ndarray, ' n']", gaps: "Float[ndarray, ' n']") -> Risk:
    return Risk(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), float(gaps.mean()))


def _slope(
    atoms: "Float[ndarray, 'N d']", x: "Float[ndarray, 'n d']", lam: float, signed: bool, rtol: float
) -> "tuple[float, Float[ndarray, 'N d'], Float[ndarray, ' N']]":
    """Risk on the rows, its gradient along the sphere, and E[a_j^2]."""
    found = lasso.solve(atoms, x, lam, signed=signed, rtol=rtol)
    codes = found.codes
    gradient = -(codes.T @ (x - codes @ atoms)) / len(x)
    return float(found.primal.mean()), _tangent(gradient, atoms), np.square(codes).mean(0)


def _tangent(gradient: "Float[ndarray, 'N d']", units: "Float[ndarray, 'N d']") -> "Float[ndarray, 'N d']":
    return gradient - (gradient * units).sum(1, keepdims=True) * units


def _unit(rows: "Float[ndarray, 'N d']") -> "Float[ndarray, 'N d']":
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
