"""Part A: how many single directions a d-dimensional feature needs.

All of it rests on one law, the distance of a uniform unit vector from a fixed subspace (A1), and a union bound over
the subsets of k atoms. So the values are checked against quadrature in the angle and exact binomials, and the truths
against the best dictionaries at hand (`proofs_checks.dictionaries`), fitted on one sample and judged on another.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy import ndarray
from scipy import optimize

from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, Value, add, bounded, compare
from proofs_checks.dictionaries import (
    circle,
    equal_lines,
    fitted_lines,
    fitted_pairs,
    log_tube_by_angle,
    squared_distances,
)
from sasa_theory import bounds
from sasa_theory.geometry import orthonormal_basis, sphere
from sasa_theory.solvers import klines

#: one-sided 99.9 % normal quantile
SURE = 3.1


# A1


TUBES = ((0.3, 2, 1), (0.1, 3, 2), (0.5, 8, 3), (0.9, 5, 1), (0.02, 16, 12), (0.25, 64, 32))


def _tube(formula: Formula, bench: Bench) -> Outcome:
    ours = [formula(*case) for case in TUBES]
    return compare(ours, [math.exp(log_tube_by_angle(*case)) for case in TUBES], 1e-8, what="F against quadrature")


def _log_tube(formula: Formula, bench: Bench) -> Outcome:
    cases = (*TUBES, (1e-6, 64, 8), (1e-9, 200, 4), (1e-4, 1000, 1))
    ours = [formula(*case) for case in cases]
    return compare(ours, [log_tube_by_angle(*case) for case in cases], 1e-8, what="log F against quadrature")


def _tube_sampled(formula: Formula, bench: Bench, spectrum: Callable[[int], ndarray] = np.ones) -> Outcome:
    """Distances of random vectors from random subspaces; `spectrum` other than ones makes the law anisotropic."""
    rng = bench.rng("A1")
    n = bench.pick(100_000, 1_000_000)
    ours, seen, error = [], [], []
    for d, k in ((2, 1), (3, 1), (4, 2), (8, 3), (16, 8)):
        h = rng.standard_normal((n, d)) * spectrum(d)
        frame = np.eye(d)[:k] if spectrum is not np.ones else orthonormal_basis(rng.standard_normal((k, d)))
        share = 1 - np.square(h @ frame.T).sum(1) / np.square(h).sum(1)
        for t in np.quantile(share, (0.3, 0.6)) if spectrum is np.ones else ((d - k) / d,):
            t = round(float(t), 3)
            p = float((share <= t).mean())
            ours.append(formula(t, d, k))
            seen.append(p)
            error.append(5 * math.sqrt(p * (1 - p) / n))
    return compare(ours, seen, 0, error, "F against the share of sampled vectors", ("u uniform on the sphere",))


add(
    Claim(
        id="A1",
        statement="The squared distance of a uniform unit vector of R^d from a fixed k-dimensional subspace is "
        "Beta((d-k)/2, k/2) distributed.",
        formula="P(dist(u, U)^2 <= t) = F_{d,k}(t) = I_t((d-k)/2, k/2)",
        assumptions=("u uniform on the sphere", "U fixed before u is drawn"),
        source="THEORY.md A1; ratio of chi-squared variables",
        values=(Value(bounds.tube_cdf, _tube), Value(bounds.log_tube_cdf, _log_tube)),
        truths=(
            Truth(
                "sampled distances follow F",
                bounds.tube_cdf,
                _tube_sampled,
                side=None,
                dropped={
                    "anisotropic u": lambda bench: _tube_sampled(
                        bounds.tube_cdf, bench, lambda d: np.linspace(2.0, 0.5, d)
                    )
                },
            ),
        ),
    )
)


# A2


def _binomial(formula: Formula, bench: Bench) -> Outcome:
    cases = ((10, 3), (64, 32), (1000, 8), (10**6, 8), (10**30, 5), (7, 0), (3, 1))
    ours = [formula(*case) for case in cases]
    exact = [math.log(math.comb(*case)) for case in cases]
    return compare(ours, exact, 1e-9, 1e-12, "log C(N, k) against the exact integer")


def _count(d: int, k: int, eps: float) -> int:
    """N_min by trying every N with exact binomials and the tube measure by quadrature."""
    log_share = log_tube_by_angle(eps**2, d, k)
    n = k
    while math.log(math.comb(n, k)) + log_share < 0:
        n += 1
    return n


COUNTS = ((16, 4, 0.5), (2, 1, 0.1), (3, 1, 0.2), (6, 2, 0.3), (8, 1, 0.5), (12, 6, 0.3), (20, 5, 0.5))


def _atoms(formula: Formula, bench: Bench) -> Outcome:
    return compare([formula(*case) for case in COUNTS], [_count(*case) for case in COUNTS], 0, 0.5, "N_min, counted up")


def _floor(formula: Formula, bench: Bench) -> Outcome:
    exact = [max(case[0], _count(*case)) for case in COUNTS]
    return compare([formula(*case) for case in COUNTS], exact, 0, 0.5, "max(d, N_min), counted up")


@lru_cache
def _coverings(seed: int, rows: int) -> tuple[tuple[int, int, float, int], ...]:
    """(d, k, eps, N): dictionaries and a radius within which they reach every unit vector.

    The largest distance of a sample, plus the sample's own mesh (log n / n)^{1/(d-1)}, since distances are 1-Lipschitz.
    """
    bench = Bench(seed=seed)
    rng = bench.rng("A2")
    found = []
    for d, k, n_atoms in ((2, 1, 9), (2, 1, 40), (3, 1, 12), (3, 1, 60), (4, 1, 100), (3, 2, 6), (4, 2, 9), (5, 3, 8)):
        if k == 1:
            atoms = fitted_lines(n_atoms, d, True, rng, 20_000)
        else:
            atoms = fitted_pairs(n_atoms, d, k, rng, 3000)
        worst = float(squared_distances(sphere(rows, d, rng), atoms, k).max())
        mesh = (math.log(rows) / rows) ** (1 / (d - 1))
        found.append((d, k, min(math.sqrt(worst) + mesh, 0.999), n_atoms))
    return tuple(found)


def _covered(formula: Formula, bench: Bench) -> Outcome:
    cases = _coverings(bench.seed, bench.pick(40_000, 400_000))
    return bounded(
        [formula(d, k, eps) for d, k, eps, _ in cases],
        [n for *_, n in cases],
        error=1e-9,
        what="atoms",
        assumptions=("k < d", "no decoder bias", "every unit vector reached (held-out sample)"),
    )


def _no_budget(bench: Bench) -> Outcome:
    """Without a budget below d a basis reaches everything, whatever the count for k = 1 says."""
    d = 8
    points = sphere(1000, d, bench.rng("A2 basis"))
    left = squared_distances(points, np.eye(d), d).max()
    eps = 0.3
    return bounded(bounds.atom_floor(d, 1, eps), d if left < eps**2 else math.inf, what="atoms, all d active")


def rate(d: int, k: int, eps: float) -> float:
    """Leading order of log N_min: ((d-k)/k) log(1/eps) (A2)."""
    return (d - k) / k * math.log(1 / eps)


def _rate(formula: Formula, bench: Bench, budget: Callable[[int], int] | None = None) -> Outcome:
    """Growth of log N_min per dimension, against that of the formula; the O(log d) part is removed by a difference.

    Twice the step of d halves what the log terms leave, so the Richardson difference is free of them to second order.
    """
    ours, seen = [], []
    for k, eps in ((1, 0.2), (2, 0.2), (4, 0.1)):
        low, high = 256, 512
        k_low, k_high = (k, k) if budget is None else (budget(low), budget(high))
        ours.append((formula(high, k, eps) - formula(low, k, eps)) / (high - low))
        logs = [math.log(bounds.min_atoms(d, b, eps)) for d, b in ((low, k_low), (high, k_high))]
        seen.append((logs[1] - logs[0]) / (high - low))
    return compare(seen, ours, 0.02, what="growth of log N_min per dimension", assumptions=("k fixed as d grows",))


add(
    Claim(
        id="A2",
        statement="A dictionary that brings every unit vector of a d-dimensional feature within eps of k < d of its N "
        "atoms has N >= max(d, N_min); for fixed k that is exponential in d.",
        formula="C(N, k) F_{d,k}(eps^2) >= 1; log N_min = ((d-k)/k) log(1/eps) + O_k(log d)",
        assumptions=("0 < eps < 1", "1 <= k < d", "no decoder bias", "k fixed as d grows (for exponential)"),
        source="THEORY.md A2; union bound over the k-subsets; the paper's sentence with its budget made explicit",
        values=(
            Value(bounds.log_binomial, _binomial),
            Value(bounds.min_atoms, _atoms),
            Value(bounds.atom_floor, _floor),
            Value(rate, _rate),
        ),
        truths=(
            Truth(
                "dictionaries that reach everything have as many atoms",
                bounds.atom_floor,
                _covered,
                dropped={
                    "budget k not below d": _no_budget,
                    "exponential although k grows with d": lambda bench: _rate(rate, bench, lambda d: d // 4),
                },
            ),
        ),
    )
)


# A3


def distortion_by_sum(n_atoms: int, k: int, d: int, signed: bool = True, overflow: float = 0.0) -> float:
    """Dist by quadrature of the definition, with the tube measure by quadrature in the angle."""
    k = min(k, n_atoms)
    log_ways = math.log(math.comb(n_atoms, k)) - (math.log(2) if k == 1 and not signed else 0)

    def left(log_t: float) -> float:
        return 1 - overflow - math.exp(min(log_ways + log_tube_by_angle(math.exp(log_t), d, k), 1.0))

    ends = (-60.0, -1e-12)
    edge = optimize.brentq(left, *ends, xtol=1e-13) if left(ends[0]) > 0 > left(ends[1]) else ends[1]
    nodes, weights = np.polynomial.legendre.leggauss(40)
    t = math.exp(edge) * (nodes + 1) / 2
    return float(sum(w * left(math.log(x)) for x, w in zip(t, weights, strict=True)) * math.exp(edge) / 2)


DISTORTIONS = ((16, 1, 2), (32, 1, 4), (5, 2, 6), (9, 3, 5), (3, 3, 8), (200, 1, 12), (10**6, 8, 64))


def _distortion(formula: Formula, bench: Bench) -> Outcome:
    ours = [formula(*case) for case in DISTORTIONS]
    exact = [distortion_by_sum(*case) for case in DISTORTIONS]
    for case in ((16, 1, 2, False), (1, 1, 3, False), (2, 1, 5, False), (16, 2, 4, True, 0.2), (8, 1, 3, False, 0.1)):
        ours.append(formula(*case))
        exact.append(distortion_by_sum(*case))
    return compare(ours, exact, 2e-3, what="Dist against quadrature of its definition")


def _biased(formula: Formula, bench: Bench) -> Outcome:
    """Least E||X - b||^2 over laws X with E||X||^2 = Dist, ||b|| <= beta and any correlation, on a fine grid."""
    ours, exact = [], []
    for dist, beta in ((0.25, 0.2), (0.04, 0.1), (0.5, 0.05), (1.0, 0.7)):
        b, rho = np.meshgrid(np.linspace(0, beta, 2001), np.linspace(-1, 1, 201))
        exact.append(float((dist - 2 * math.sqrt(dist) * b * rho + b**2).min()))
        ours.append(formula(dist, beta))
    return compare(ours, exact, 1e-9, what="floor with a bias")


@lru_cache
def _held_out(seed: int, rows: int) -> tuple[tuple[int, int, int, bool, float, float], ...]:
    """(N, k, d, signed, mean squared distance, its error) of the best dictionaries found, on points of their own."""
    rng = Bench(seed=seed).rng("A3")
    found = []
    cases = [
        (16, 1, 2, True),
        (9, 1, 2, False),
        (24, 1, 3, True),
        (32, 1, 4, True),
        (64, 1, 6, True),
        (24, 1, 3, False),
    ]
    cases += [(6, 2, 3, True), (8, 2, 4, True), (8, 3, 5, True), (4, 4, 6, True)]
    for n_atoms, k, d, signed in cases:
        if k == 1:
            atoms = fitted_lines(n_atoms, d, signed, rng, 15_000)
        elif k == n_atoms:
            atoms = sphere(n_atoms, d, rng)
        else:
            atoms = fitted_pairs(n_atoms, d, k, rng, 3000)
        left = squared_distances(circle(rows) if d == 2 else sphere(rows, d, rng), atoms, k, signed)
        error = 1e-6 if d == 2 else SURE * float(left.std()) / math.sqrt(rows)
        found.append((n_atoms, k, d, signed, float(left.mean()), error))
    return tuple(found)


def _distorted(formula: Formula, bench: Bench) -> Outcome:
    cases = _held_out(bench.seed, bench.pick(60_000, 600_000))
    floors = [formula(n, k, d, signed) for n, k, d, signed, *_ in cases]
    best, error = [case[4] for case in cases], [case[5] for case in cases]
    return bounded(
        floors,
        best,
        error=error,
        what="mean squared distance",
        assumptions=("u uniform", "at most k active on every token", "held-out points", "no decoder bias"),
    )


def _on_training_points(bench: Bench) -> Outcome:
    """Judged on the points it was fitted to, a dictionary can fall below."""
    rng = bench.rng("A3 train")
    points = sphere(24, 4, rng)
    left = squared_distances(points, klines.fit(points, 20, rng, centre=False, dtype=np.float64).atoms, 1)
    return bounded(bounds.distortion_floor(20, 1, 4), float(left.mean()), what="on its own training points")


def _mean_budget(bench: Bench) -> Outcome:
    """k = 1 only in the mean: half the tokens are short and get no atom, the long ones get both."""
    d, long, short = 2, math.sqrt(1.98), math.sqrt(0.02)
    energy = (long**2 + short**2) / 2
    return bounded(bounds.distortion_floor(2, 1, d) * energy, short**2 / 2, what="mean L0 = k, radii differ")


def _overflowing(formula: Formula, bench: Bench, corrected: bool = True) -> Outcome:
    """A share p of the tokens, the worst served, gets more than k atoms and costs nothing."""
    n, p = 100_000, 0.2
    left = np.sort(squared_distances(circle(n), equal_lines(8), 1))
    left[int((1 - p) * n) :] = 0
    floor = formula(8, 1, 2, True, p) if corrected else formula(8, 1, 2)
    return bounded(floor, float(left.mean()), error=1e-6, what="P(L0 > k) = .2")


def _with_bias(formula: Formula, bench: Bench, corrected: bool = True) -> Outcome:
    """The best bias and dictionary found in the plane: atoms through a shifted centre, found by descent."""
    n = bench.pick(4000, 20_000)
    train, test = (sphere(n, 2, bench.rng(f"A3 bias {part}")) for part in ("train", "test"))

    def left(parameters: ndarray, points: ndarray) -> ndarray:
        angles, bias = parameters[:2], parameters[2:]
        atoms = np.column_stack([np.cos(angles), np.sin(angles)])
        return squared_distances(points - bias, atoms, 1)

    start = np.array([0.1, math.pi / 3, 0.3, 0.3])
    fit = optimize.minimize(
        lambda v: float(left(v, train).mean()), start, method="Nelder-Mead", options={"maxiter": 400}
    )
    seen = left(fit.x, test)
    bias = float(np.linalg.norm(fit.x[2:])) if corrected else 0.0
    floor = formula(bounds.distortion_floor(2, 1, 2), bias)
    return bounded(floor, float(seen.mean()), error=SURE * float(seen.std()) / math.sqrt(n), what=f"bias {bias:.2f}")


add(
    Claim(
        id="A3",
        statement="With at most k of N atoms on every token, a uniform d-dimensional feature is missed by at least "
        "Dist(N, k, d) of its energy.",
        formula="E dist^2 >= int_0^1 max(0, 1 - P(L0 > k) - C(N, k) F_{d,k}(t)) dt; with a bias b: "
        "(sqrt(Dist) - ||P_V b||)^2",
        assumptions=(
            "u uniform on the sphere of V",
            "at most k active on every token",
            "1 <= k < d",
            "held-out points",
        ),
        source="THEORY.md A3; tail integral of the union bound",
        values=(Value(bounds.distortion_floor, _distortion), Value(bounds.bias_corrected, _biased)),
        truths=(
            Truth(
                "no dictionary found comes closer on held-out points",
                bounds.distortion_floor,
                _distorted,
                dropped={"judged on its training points": _on_training_points, "k only the mean": _mean_budget},
            ),
            Truth(
                "with P(L0 > k) subtracted it binds varying budgets",
                bounds.distortion_floor,
                _overflowing,
                dropped={"not subtracted": lambda bench: _overflowing(bounds.distortion_floor, bench, corrected=False)},
            ),
            Truth("with its norm taken off it binds dictionaries with a bias", bounds.bias_corrected, _with_bias),
        ),
    )
)
