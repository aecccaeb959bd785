"""What the claims about the l1 risk (B1 to B4) measure: exact codes, projections, floors by quadrature, opponents.

The references owe nothing to the solvers. psi by enumeration: an optimal code exists with linearly independent atoms,
so the best of the sign-consistent stationary points over all small supports is the optimum. The projection onto lam P*
is a least-distance problem, solved by non-negative least squares (Lawson & Hanson 1974, ch. 23). The floor of B4 is
integrated in the angle from the nearest atom, without a Beta function. Opponents of B4 are dictionaries descended on
one sample and judged on another; they are found once per process, so that twins meet the same ones.
"""

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import integrate, optimize

from proofs_checks.core import Bench
from sasa_theory import bounds
from sasa_theory.geometry import sphere
from sasa_theory.solvers import tiling

# B1, B2: psi of few atoms, exactly


def exact_codes(
    atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, 'n D']", lam: float, signed: bool = True
) -> "Float[ndarray, 'n N']":
    """Optimal codes by enumeration of supports and signs: C(N, <= D) 2^D linear systems, so N and D of a few.

    Each system is the stationarity of one support, D_S^T (x - D_S^T a_S) = lam s; a solution with the signs s is a
    feasible point, and one of them is optimal. Supports of dependent atoms are skipped (another one does as well).
    """
    n_atoms, width = atoms.shape
    best = np.square(x).sum(1) / 2
    codes = np.zeros((len(x), n_atoms))
    for size in range(1, min(n_atoms, width) + 1):
        for support in itertools.combinations(range(n_atoms), size):
            part = atoms[list(support)]
            gram = part @ part.T
            if np.linalg.cond(gram) > 1e12:
                continue
            for signs in itertools.product((1.0, -1.0) if signed else (1.0,), repeat=size):
                a = np.linalg.solve(gram, (x @ part.T - lam * np.array(signs)).T).T
                cost = np.square(x - a @ part).sum(1) / 2 + lam * np.abs(a).sum(1)
                better = (a * signs >= 0).all(1) & (cost < best)
                best = np.where(better, cost, best)
                row = np.zeros((len(x), n_atoms))
                row[:, support] = a
                codes[better] = row[better]
    return codes


def exact_psi(
    atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, 'n D']", lam: float, signed: bool = True
) -> "Float[ndarray, ' n']":
    """psi_D of each row at `exact_codes`."""
    codes = exact_codes(atoms, x, lam, signed)
    return np.square(x - codes @ atoms).sum(1) / 2 + lam * np.abs(codes).sum(1)


def project(
    atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, 'n D']", lam: float, signed: bool = True
) -> "Float[ndarray, 'n D']":
    """Projection of each row onto lam P* = {u : |<d_j, u>| <= lam}, one-sided for non-negative codes (B1).

    The nearest u with G u <= g is x + r_{1:D} / -r_{D+1}..., r the residual of a non-negative least-squares problem.
    At lam = 0 with signed codes lam P* is the orthogonal complement of the atoms.
    """
    if lam == 0 and signed:
        return x - x @ np.linalg.pinv(atoms) @ atoms
    sides = np.concatenate([atoms, -atoms]) if signed else atoms
    out = np.empty_like(x)
    for i, row in enumerate(x):
        # least distance: min ||y|| with -sides y >= sides x - lam, u = x + y
        f = sides @ row - lam
        if (f <= 0).all():
            out[i] = row
            continue
        system = np.vstack([-sides.T, f])
        target = np.zeros(len(system))
        target[-1] = 1
        weights, _ = optimize.nnls(system, target)
        residual = system @ weights - target
        out[i] = row - residual[:-1] / residual[-1]
    return out


def problems(rng: np.random.Generator, times: int = 1) -> "list[tuple[ndarray, ndarray, float, bool]]":
    """Coding problems (atoms, x, lam, signed) small enough for exact answers; atoms of any length, lam = 0 included."""
    return [
        (rng.standard_normal((n, d)), rng.standard_normal((6, d)), lam, signed)
        for d, n in ((2, 1), (2, 4), (3, 5), (4, 3), (4, 5)) * times
        for lam in (0.0, 0.1, 0.6)
        for signed in (True, False)
    ]


class NewAtom(NamedTuple):
    """A new atom v met by one token: <v, nu>, whether psi fell, and the lam and code sign of the problem."""

    reach: float
    lowered: bool
    lam: float
    signed: bool


@lru_cache(maxsize=8)
def new_atoms(times: int, seed: int) -> tuple[NewAtom, ...]:
    """New atoms scaled to |<v, nu>| = .5, .98, 1.02 and 2 lam, in `problems` with lam > 0 (B2).

    A step along v alone gains (|<v, nu>| - lam)^2 / (2 ||v||^2), so at 1.02 lam a fall of psi is far above rounding
    unless v is long; directions nearly orthogonal to nu, which would have to be, are left out.
    """
    rng = np.random.default_rng([seed, 2])
    cases = []
    for atoms, x, lam, signed in problems(rng, times):
        if lam == 0:
            continue
        rows = x[:2]
        nu = rows - exact_codes(atoms, rows, lam, signed) @ atoms
        for row, residual, before in zip(rows, nu, exact_psi(atoms, rows, lam, signed), strict=True):
            v = rng.standard_normal(len(row))
            reach = float(v @ residual)
            if abs(reach) < 0.05 * np.linalg.norm(v) * np.linalg.norm(residual):
                continue
            for share in (0.5, 0.98, 1.02, 2.0):
                new = v * (share * lam / abs(reach))
                after = float(exact_psi(np.vstack([atoms, new]), row[None], lam, signed)[0])
                cases.append(NewAtom(float(new @ residual), before - after > 1e-10, lam, signed))
    return tuple(cases)


# B3


@lru_cache(maxsize=8)
def dense_risks(
    lam: float, radii: tuple[float, ...], n_atoms: int, n: int, seed: int
) -> "tuple[tuple[float, ...], ...]":
    """Mean psi at each radius of well-spread dictionaries of `n_atoms`, d = 2 and 3, signed and non-negative codes."""
    rng = np.random.default_rng([seed, 3])
    rows = []
    for d in (2, 3):
        directions = sphere(n, d, rng)
        for signed in (True, False):
            atoms = tiling.well_spread(n_atoms, d, rng, signed, steps=50)
            rows.append(tuple(tiling.risk(atoms, radius * directions, lam, signed).value for radius in radii))
    return tuple(rows)


# B4: floors without a Beta function


def floor_by_angle(n_atoms: int, d: int, radius: float, lam: float, signed: bool = True) -> float:
    """B4's floor as an integral over the angle theta from the nearest atom.

    int_0^edge g(cos theta) w(theta) dtheta, w(theta) = N 2 sin^{d-2} theta / int_0^pi sin^{d-2} (non-negative codes:
    half), edge <= pi/2 where the caps have used up the sphere; what they leave costs radius^2 / 2.
    """
    zero_code = radius**2 / 2

    def cost(theta: float) -> float:
        c = math.cos(theta)
        t = 1.0 if c * radius <= lam else lam / (c * radius)
        return t * radius**2 - t**2 * radius**2 / 2

    reach = n_atoms if signed else n_atoms / 2
    if d == 1:
        share = min(1.0, reach)
        return share * cost(0.0) + (1 - share) * zero_code
    whole, _ = integrate.quad(lambda theta: math.sin(theta) ** (d - 2), 0, math.pi / 2, epsrel=1e-12)

    def covered(edge: float) -> float:
        return reach * integrate.quad(lambda theta: math.sin(theta) ** (d - 2), 0, edge, epsrel=1e-12)[0] / whole

    edge = math.pi / 2
    if reach > 1:
        edge = optimize.brentq(lambda angle: covered(angle) - 1, 0, math.pi / 2, xtol=1e-15, rtol=1e-14)
    kink = math.acos(min(1.0, lam / radius)) if radius > 0 else 0.0
    pieces = sorted({0.0, min(kink, edge), edge})
    inside = sum(
        integrate.quad(lambda theta: cost(theta) * math.sin(theta) ** (d - 2), low, high, epsrel=1e-12)[0]
        for low, high in itertools.pairwise(pieces)
    )
    return reach * inside / whole + max(0.0, 1 - min(1.0, reach)) * zero_code


def excess_at_large_n(n_atoms: int, d: int, radius: float, lam: float, signed: bool = True) -> float:
    """Leading order of B4's floor over the tiled limit as N grows, where the exponent -2/(d-1) can be read off.

    lam (radius - lam) / 2 * (b B(1/2, b))^{1/b} b / (b + 1) * N^{-1/b}, b = (d-1)/2; N/2 for non-negative codes. From
    1 - c^2 ~ (b B(1/2, b) v / N)^{1/b} and g(c) - g(1) ~ lam (radius - lam) (1 - c^2) / 2.
    """
    b = (d - 1) / 2
    beta = math.exp(math.lgamma(0.5) + math.lgamma(b) - math.lgamma(0.5 + b))
    reach = n_atoms if signed else n_atoms / 2
    return lam * (radius - lam) / 2 * (b * beta / reach) ** (1 / b) * b / (b + 1)


# B4: opponents


@lru_cache(maxsize=256)
def best_excess(
    n_atoms: int, d: int, radii: tuple[float, ...], lam: float, signed: bool, n: int, steps: int, seed: int
) -> tuple[float, float]:
    """Excess over the tiled limit of the best dictionary found, and its standard error on `n` held-out points.

    The law: uniform directions, each radius equally likely. Found: well-spread atoms and descents from all three
    starts, on `n` points of their own. In the plane with one radius the risk is a quadrature and the error its own.
    """
    rng = np.random.default_rng([seed, n_atoms, d, signed])
    scale = np.resize(radii, n)[:, None]
    train, test = scale * sphere(n, d, rng), scale * sphere(n, d, rng)
    found = []
    for atoms in tiling.candidates(n_atoms, train, lam, rng, signed, steps).values():
        if d == 2 and len(radii) == 1:
            seen = tiling.circle_risk(atoms, radii[0], lam, signed)
            found.append((seen.value - float(bounds.tiled_limit(radii[0], lam)), seen.error))
        else:
            found.append(tiling.excess_risk(atoms, test, lam, signed)[:2])
    return min(found)


def opponents(bench: Bench, cases: "tuple[tuple[int, int, bool], ...]", lam: float) -> "Float[ndarray, 'm 2']":
    """`best_excess` at radius 1 for each (d, N, signed)."""
    n, steps = bench.pick(1000, 4000, 20_000), bench.pick(10, 40, 100)
    return np.array(
        [best_excess(n_atoms, d, (1.0,), lam, signed, n, steps, bench.seed) for d, n_atoms, signed in cases]
    )


def gathered_excess(n_atoms: int, lam: float, squeeze: float) -> float:
    """Least excess risk found for unit vectors of the plane gathered around the first axis (`squeeze` 1: not at all).

    Directions (cos, squeeze sin) of equal angles; the descent is judged on angles between those it saw.
    """

    def points(shift: float) -> "Float[ndarray, 'n 2']":
        theta = 2 * np.pi * (np.arange(1000) + shift) / 1000
        x = np.stack([np.cos(theta), squeeze * np.sin(theta)], axis=1)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    begin = tiling.well_spread(n_atoms, 2, np.random.default_rng(0)) * (1.0, squeeze)
    ends = tiling.descend(begin, points(0.25), lam).atoms
    return tiling.excess_risk(ends, points(0.75), lam).value


@lru_cache(maxsize=16)
def best_with_bias(n_atoms: int, lam: float, restarts: int, seed: int) -> float:
    """Least risk found for non-negative codes with a decoder bias on the unit circle, over angles and bias.

    Nelder-Mead from random starts on 180 equal angles, judged on 1,000 others.
    """

    def points(count: int) -> "Float[ndarray, 'n 2']":
        theta = 2 * np.pi * (np.arange(count) + 0.5) / count
        return np.stack([np.cos(theta), np.sin(theta)], axis=1)

    def value(v: "Float[ndarray, ' m']", x: "Float[ndarray, 'n 2']") -> float:
        atoms = np.stack([np.cos(v[:n_atoms]), np.sin(v[:n_atoms])], axis=1)
        return float(exact_psi(atoms, x - v[n_atoms:], lam, signed=False).mean())

    rng = np.random.default_rng(seed)
    train, test = points(180), points(1000)
    ends = [
        optimize.minimize(
            value,
            np.concatenate([rng.uniform(0, 2 * np.pi, n_atoms), 0.5 * rng.standard_normal(2)]),
            args=(train,),
            method="Nelder-Mead",
            options={"maxiter": 300},
        ).x
        for _ in range(restarts)
    ]
    return min(value(v, test) for v in ends)
