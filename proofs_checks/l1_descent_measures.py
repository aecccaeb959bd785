"""What the claims about descent (B5, B5', B6) measure: laws, slopes from costs, stationary dictionaries, paths.

Slopes come from costs alone: psi before and after a small turn, computed exactly, on the same rows, extrapolated to no
turn. They share nothing with the formulas, which read codes and residuals.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import optimize, stats

from proofs_checks.l1_measures import exact_codes, exact_psi
from sasa_theory.geometry import sphere
from sasa_theory.solvers import lasso, tiling
from sasa_theory.solvers.descent import GapPath, gap_path, turned_cost
from sasa_theory.training import TrainSettings, fit
from synthetic import World

#: lam of B5' (the rows have unit variance)
LAM = 0.2

Law = Callable[[int, int, np.random.Generator], "Float[ndarray, 'n d']"]

# B5: laws of a feature's coordinates


def _gaussian(n: int, d: int, rng: np.random.Generator) -> "Float[ndarray, 'n d']":
    return rng.standard_normal((n, d))


def _laplace(n: int, d: int, rng: np.random.Generator) -> "Float[ndarray, 'n d']":
    return rng.laplace(scale=math.sqrt(0.5), size=(n, d))


def _ball(n: int, d: int, rng: np.random.Generator) -> "Float[ndarray, 'n d']":
    return math.sqrt(d + 2) * sphere(n, d, rng) * rng.uniform(size=(n, 1)) ** (1 / d)


def _anisotropic(n: int, d: int, rng: np.random.Generator) -> "Float[ndarray, 'n d']":
    """Gaussian, standard deviations from 1 down to 1/4, neighbouring coordinates correlated by -.5."""
    scale = np.geomspace(1, 0.25, d)
    correlation = (-0.5) ** np.abs(np.subtract.outer(np.arange(d), np.arange(d)))
    return rng.standard_normal((n, d)) @ np.linalg.cholesky(correlation).T * scale


def _discrete(n: int, d: int, rng: np.random.Generator) -> "Float[ndarray, 'n d']":
    """Coordinates -1, 0, .1 or 1.5, independent."""
    return rng.choice([-1.0, 0.0, 0.1, 1.5], size=(n, d))


#: unit variance in every coordinate, except the anisotropic and the discrete one
LAWS: dict[str, Law] = {
    "Gaussian": _gaussian,
    "Laplace": _laplace,
    "uniform ball": _ball,
    "anisotropic": _anisotropic,
    "discrete": _discrete,
}


def quiet_laws(n: int, d: int, lam: float, rng: np.random.Generator) -> "dict[str, Float[ndarray, 'n d']]":
    """Rows with P(|h_1| > lam, h_1 h_2 > 0) = 0 for one reason each: the first two coordinates disagree in sign, one of
    them is 0, or the first stays below lam."""
    rows = rng.standard_normal((n, d))
    against, axes, small = rows.copy(), rows.copy(), rows.copy()
    against[:, 1] = -np.sign(rows[:, 0]) * np.abs(rows[:, 1])
    axes[np.arange(n), rng.integers(0, 2, n)] = 0
    small[:, 0] = 0.9 * lam * np.tanh(rows[:, 0])
    return {"opposite signs": against, "on the axes": axes, "first below lam": small}


def normal_rows(points: int) -> "Float[ndarray, 'n 2']":
    """The standard normal of the plane as points^2 rows of equal weight: midpoint quantiles, each with each."""
    quantiles = stats.norm.ppf((np.arange(points) + 0.5) / points)
    return np.stack([np.repeat(quantiles, points), np.tile(quantiles, points)], axis=1)


def normal_mean(cost: Callable[["Float[ndarray, 'n 2']"], "Float[ndarray, ' n']"]) -> float:
    """E cost(h) for the standard normal of the plane, by quadrature.

    Gauss-Legendre, 20 nodes to a panel; panels of .1 between -1 and 1, because costs have kinks there.
    """
    edges = np.concatenate([[-9, -4, -2], np.linspace(-1, 1, 21), [2, 4, 9]])
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half = np.diff(edges)[:, None] / 2
    points = (edges[:-1, None] + half * (nodes + 1)).ravel()
    shares = (half * weights).ravel() * stats.norm.pdf(points)
    rows = np.stack([np.repeat(points, len(points)), np.tile(points, len(points))], axis=1)
    return float(np.outer(shares, shares).ravel() @ cost(rows))


def normal_slope(lam: float, signed: bool = True) -> float:
    """B5's slope for independent standard normals: -1/2 E(|h_1| - lam)_+ E min(lam, |h_2|), half of it for h, a >= 0.

    E(|z| - lam)_+ = 2 (phi(lam) - lam Q), E min(lam, |z|) = 2 (phi(0) - phi(lam)) + 2 lam Q, Q = P(z > lam).
    """
    density, tail = math.exp(-(lam**2) / 2) / math.sqrt(2 * math.pi), math.erfc(lam / math.sqrt(2)) / 2
    over = 2 * (density - lam * tail)
    least = 2 * (1 / math.sqrt(2 * math.pi) - density) + 2 * lam * tail
    return -over * least / (2 if signed else 4)


# Slopes from costs


def slope_at_zero(cost: Callable[[float], "Float[ndarray, ' n']"], step: float = 1e-5) -> float:
    """One-sided derivative at 0 of the mean of `cost(theta)`: secants over `step` and half of it, extrapolated."""
    start = cost(0.0)
    whole, half = (float((cost(t) - start).mean()) / t for t in (step, step / 2))
    return 2 * half - whole


def basis_slope_by_costs(h: "Float[ndarray, 'n d']", lam: float, signed: bool = True) -> float:
    """B5's slope from `turned_cost` on the same rows."""
    return slope_at_zero(lambda theta: turned_cost(h, theta, lam, signed))


def split_slope_by_costs(
    atoms: "Float[ndarray, 'N d']",
    x: "Float[ndarray, 'n d']",
    atom: int,
    direction: "Float[ndarray, ' d']",
    lam: float,
    signed: bool = True,
) -> float:
    """Slope of the mean of psi when a copy of one atom turns towards `direction`, by enumeration of codes."""

    def cost(theta: float) -> "Float[ndarray, ' n']":
        if theta == 0:
            return exact_psi(atoms, x, lam, signed)
        copy = math.cos(theta) * atoms[atom] + math.sin(theta) * direction
        return exact_psi(np.vstack([atoms, copy]), x, lam, signed)

    # nearer copies make the linear systems of the enumeration singular
    return slope_at_zero(cost, 3e-5)


class Split(NamedTuple):
    """One way to split a dictionary: the atom's codes, the residuals, and where its copy turns."""

    codes: "Float[ndarray, ' n']"
    residuals: "Float[ndarray, 'n d']"
    direction: "Float[ndarray, ' d']"
    atom: int


def splits(
    atoms: "Float[ndarray, 'N d']",
    x: "Float[ndarray, 'n d']",
    lam: float,
    rng: np.random.Generator,
    signed: bool = True,
    directions: int = 2,
) -> list[Split]:
    """Every atom, each with `directions` random unit vectors orthogonal to it; codes by enumeration."""
    codes = exact_codes(atoms, x, lam, signed)
    residuals = x - codes @ atoms
    found = []
    for j, atom in enumerate(atoms):
        for w in rng.standard_normal((directions, len(atom))):
            w -= (w @ atom) / (atom @ atom) * atom
            found.append(Split(codes[:, j], residuals, w / np.linalg.norm(w), j))
    return found


@lru_cache(maxsize=32)
def stationary(
    n_atoms: int, d: int, n: int, lam: float, signed: bool, seed: int
) -> "tuple[Float[ndarray, 'N d'], Float[ndarray, 'n d']]":
    """Where a descent on `n` Gaussian rows ended when no step lowered their risk any more, and the rows."""
    rng = np.random.default_rng([seed, n_atoms, d, signed])
    x = rng.standard_normal((n, d))
    start = tiling.start("random", n_atoms, d, rng)
    return tiling.descend(start, x, lam, signed, steps=3000, rtol=0, code_rtol=1e-12).atoms, x


def trained_dictionary(
    d: int, n_latents: int, seed: int, out: Path, deadline: float | None = None
) -> "tuple[Float[ndarray, 'N d'], Float[ndarray, 'n d']]":
    """Decoder of a trained ReLU autoencoder on one Gaussian feature of R^d, and held-out rows less its decoder bias.

    Its coefficient is 2 LAM, because its loss has no 1/2 before the squared error.
    """
    feature = {"manifold": "subspace", "dim": d}
    world = World.from_spec({"width": d, "features": [feature], "support": {"law": "exact", "active": 1}})
    model = {"n_latents": n_latents, "coefficient": 2 * LAM}
    settings = TrainSettings(steps=2000, batch_size=512, lr=3e-3, seed=seed)
    run = fit(world, "relu", model, settings, out=out, deadline=deadline)
    x = next(world.batches(300, stream="eval")).double().numpy()
    weights = {name: t.detach().double().numpy() for name, t in run.model.named_parameters()}
    return weights["W_dec"], x - weights["b_dec"]


# B6: paths


class Walk(NamedTuple):
    """Costs along a path. costs[m, s] are psi of every row during move m, at share s of its way; shares[0] = 0."""

    path: GapPath
    shares: "Float[ndarray, ' S']"
    costs: "Float[ndarray, 'M S n']"


#: how far a move has come when its cost is measured: its start, between, its end
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@lru_cache(maxsize=32)
def walk(d: int, n_atoms: int, lam: float, signed: bool, n: int, seed: int, variant: str = "into gaps") -> Walk:
    """psi of `n` uniform unit vectors along `gap_path`, the same rows throughout.

    Variants: "onto atoms", every copy goes to another basis vector; "atom itself", the basis vector turns instead of a
    copy, in each move from the dictionary the moves before have made.
    """
    path = gap_path(d, n_atoms, signed)
    homes = [int((path.basis @ home).argmax()) for home in path.homes]
    if variant == "onto atoms":
        # e_1 to e_2 and so on, never to the opposite vector
        path = GapPath(path.basis, path.homes, path.basis[[(i + 1) % len(path.basis) for i in homes]], path.gaps)
    x = sphere(n, d, np.random.default_rng([seed, d, n_atoms, signed]))

    def cost(move: int, share: float) -> "Float[ndarray, ' n']":
        atoms = path.distinct(move + share)
        if variant == "atom itself" and share > 0:
            atoms = np.delete(atoms, homes[move], axis=0)
        return lasso.solve(atoms, x, lam, signed=signed, rtol=1e-9).primal

    costs = np.array([[cost(move, share) for share in SHARES] for move in range(path.moves)])
    return Walk(path, np.array(SHARES), costs)


@lru_cache(maxsize=32)
def descended(
    d: int, n_atoms: int, lam: float, signed: bool, n: int, seed: int, tilt: float = 1e-3
) -> "tuple[float, float]":
    """Risk, and its standard error on held-out unit vectors, where the descent from basis and tilted copies ended.

    tilt = 0: copies that stay copies. A gradient shared equally among equal atoms moves them together, as one atom
    with all of their code, so the descent is that of the basis alone. (A solver that gives all of a token's code to one
    of them breaks the tie by itself.)
    """
    rng = np.random.default_rng([seed, d, n_atoms, signed])
    x, held_out = sphere(n, d, rng), sphere(2 * n, d, rng)
    basis = d if signed else 2 * d
    start = tiling.start("basis", n_atoms if tilt > 0 else basis, d, rng, signed, tilt)
    found = tiling.risk(tiling.descend(start, x, lam, signed, steps=100).atoms, held_out, lam, signed)
    return found.value, found.error


def widest_angle_by_search(atoms: "Float[ndarray, 'N d']", rng: np.random.Generator, signed: bool = True) -> float:
    """The widest gap by optimisation: least c with <d_j, u> <= c for all j and ||u|| = 1, from the best of many u.

    Sequential quadratic programming from the 20 best of 4,000 random directions; the angle is arccos c.
    """
    sides = np.vstack([atoms, -atoms]) if signed else atoms
    tried = sphere(4000, sides.shape[1], rng)
    best = tried[np.argsort((tried @ sides.T).max(1))[:20]]
    constraints = (
        {"type": "ineq", "fun": lambda v: v[-1] - sides @ v[:-1]},
        {"type": "eq", "fun": lambda v: v[:-1] @ v[:-1] - 1},
    )
    ends = [
        optimize.minimize(
            lambda v: v[-1],
            np.append(u, (sides @ u).max()),
            method="SLSQP",
            constraints=constraints,
            options={"ftol": 1e-14},
        ).x[:-1]
        for u in best
    ]
    return max(math.acos(min(1.0, float((sides @ (u / np.linalg.norm(u))).max()))) for u in ends)
