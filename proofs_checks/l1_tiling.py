"""B4: how many atoms an l1 penalty wants. The tiling law, tried against the best dictionaries found.

A dictionary of N atoms leaves a token about N^{-1/(d-1)} from its nearest atom, and that angle alone costs something,
because t h with the right t is a dual point. All of it is compared as the excess over the tiled limit: nearly all of
the risk is that limit, and a bound that missed the whole excess would still look tight.
"""

from dataclasses import replace

import numpy as np
from scipy import stats

from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, Value, add, bounded, compare
from proofs_checks.l1_measures import (
    best_excess,
    best_with_bias,
    exact_codes,
    exact_psi,
    excess_at_large_n,
    floor_by_angle,
    gathered_excess,
    opponents,
)
from sasa_theory import bounds, objectives
from sasa_theory.geometry import sphere
from sasa_theory.solvers import tiling

#: one-sided 99.9 % normal quantile
SURE = 3.1
#: relative rounding of exact cases
EXACT = 1e-9


def tiling_excess(n_atoms: int, d: int, radius: float, lam: float, signed: bool = True) -> float:
    """B4's floor over the tiled limit, the part of the risk that depends on N: `tiling_floor` - `tiled_limit`."""
    return bounds.tiling_floor(n_atoms, d, radius, lam, signed) - float(bounds.tiled_limit(radius, lam))


def _floor(formula: Formula, bench: Bench) -> Outcome:
    cases = [
        (n, d, radius, lam, signed)
        for n in (1, 2, 3, 16, 1000)
        for d in (1, 2, 3, 5, 8, 16)
        for radius, lam in ((1.0, 0.3), (1.0, 0.02), (2.0, 1.8), (0.5, 0.6))
        for signed in (True, False)
    ]
    return compare(
        [formula(*case) for case in cases], [floor_by_angle(*case) for case in cases], 1e-8, what="floor by angle"
    )


def _asymptote(formula: Formula, bench: Bench) -> Outcome:
    """The exponent -2/(d-1): at excess 1e-6, where the leading order is exact to 1e-3."""
    cases = [
        (round(10 ** (3 * (d - 1))), d, 1.0, lam, signed)
        for d in range(2, 9)
        for lam in (0.1, 0.3)
        for signed in (True, False)
    ]
    return compare(
        [formula(*case) for case in cases],
        [excess_at_large_n(*case) for case in cases],
        1e-3,
        what="excess against c N^(-2/(d-1))",
    )


def _count(formula: Formula, bench: Bench) -> Outcome:
    """The count against enumeration: 1, 2, 3, ... atoms until the floor by angle is low enough."""
    ours, reference = [], []
    for d, delta, signed in ((2, 1e-3, True), (2, 3e-4, False), (3, 3e-3, True), (4, 0.02, True), (5, 0.03, False)):
        limit = float(bounds.tiled_limit(1.0, 0.3))
        n = 1
        while floor_by_angle(n, d, 1.0, 0.3, signed) - limit > delta:
            n += 1
        ours.append(formula(d, delta, 1.0, 0.3, signed))
        reference.append(n)
    return compare(ours, reference, 1e-9, what="atoms by enumeration")


CASES = ((2, 8, True), (2, 16, False), (3, 24, True), (3, 24, False), (4, 32, True), (5, 40, True), (6, 48, False))
MORE = ((2, 32, True), (3, 48, True), (3, 96, True), (4, 64, False), (5, 160, True), (6, 96, True))


def _tiled(formula: Formula, bench: Bench) -> Outcome:
    lam = 0.3
    cases = bench.pick(CASES, CASES + MORE)
    best = opponents(bench, cases, lam)
    return bounded(
        [formula(n_atoms, d, 1.0, lam, signed) for d, n_atoms, signed in cases],
        best[:, 0],
        error=SURE * best[:, 1],
        what="excess risk of the best dictionary found, d = 2..6",
        assumptions=("rotation-invariant law", "held-out points", "unit atoms"),
    )


def _plane(bench: Bench, length: float, signed: bool = True) -> Outcome:
    """Sixteen equally spaced lines of this length with signed codes, against the floor of `signed` ones."""
    seen = tiling.circle_risk(length * tiling.well_spread(16, 2, bench.rng("B4 plane")), 1.0, 0.3)
    excess = seen.value - float(bounds.tiled_limit(1.0, 0.3))
    return bounded(tiling_excess(16, 2, 1.0, 0.3, signed), excess, error=seen.error, what=f"lines of length {length}")


def _anisotropic(bench: Bench) -> Outcome:
    """A law gathered around one axis, and atoms that followed it."""
    return bounded(tiling_excess(8, 2, 1.0, 0.3), gathered_excess(8, 0.3, 0.1), error=1e-6, what="anisotropic law")


def _random_radii(formula: Formula, bench: Bench, at_mean: bool = False) -> Outcome:
    """Gaussian vectors, their norm on eight quantiles of its law: the floor averaged over them.

    `at_mean`: the floor at the root mean square of the norm instead, over the same opponents.
    """
    lam = 0.3
    ours, best = [], []
    for d, n_atoms, signed in ((2, 12, True), (3, 24, False), (4, 32, True)):
        radii = tuple(float(v) for v in stats.chi.ppf((np.arange(8) + 0.5) / 8, d) / np.sqrt(d))
        n, steps = bench.pick(1600, 8000), bench.pick(10, 40)
        best.append(best_excess(n_atoms, d, radii, lam, signed, n, steps, bench.seed))
        limit = float(np.mean(bounds.tiled_limit(np.array(radii), lam)))
        used = (float(np.sqrt(np.mean(np.square(radii)))),) if at_mean else radii
        ours.append(float(np.mean([formula(n_atoms, d, radius, lam, signed) for radius in used])) - limit)
    found = np.array(best)
    return bounded(
        ours, found[:, 0], error=SURE * found[:, 1], what="excess at random radii", assumptions=("any radial law",)
    )


def _biased(formula: Formula, bench: Bench, signed: bool = True) -> Outcome:
    """Non-negative codes with the best bias found in the plane, against a floor; `signed` False: that without bias."""
    ours, best = [], []
    for n_atoms in (2, 3):
        best.append(best_with_bias(n_atoms, 0.3, bench.pick(2, 6), bench.seed))
        ours.append(formula(n_atoms, 2, 1.0, 0.3, signed))
    limit = float(bounds.tiled_limit(1.0, 0.3))
    return bounded(np.array(ours) - limit, np.array(best) - limit, error=1e-6, what="excess with a bias, d = 2")


def _useless_bias(formula: Formula, bench: Bench, signed: bool = True) -> Outcome:
    """Mean cost without bias against that with one, over points h and -h, where convexity decides exactly."""
    rng, lam = bench.rng("B4 bias"), 0.3
    without, within = [], []
    for d in (2, 3, 4):
        atoms, x = sphere(d + 1, d, rng), sphere(50, d, rng)
        x = np.concatenate([x, -x])
        # against the mean of the atoms: where a bias helps non-negative codes, it is here
        for bias in -np.array([[0.3], [0.6]]) * atoms.mean(0):
            without.append(formula(atoms, x, exact_codes(atoms, x, lam, signed), lam).mean())
            within.append(exact_psi(atoms, x - bias, lam, signed).mean())
    found = bounded(without, within, error=EXACT, what="risk without bias", assumptions=("symmetric law",))
    return replace(found, tightness=None)  # no bound whose tightness means anything


add(
    Claim(
        id="B4",
        statement="A dictionary of N unit atoms leaves an excess l1 risk over the tiled limit of at least order "
        "N^(-2/(d-1)), so coming within delta of the infimum takes about delta^(-(d-1)/2) atoms, without any sparsity "
        "budget.",
        formula="R(D) >= int_0^1 g(sqrt(isf(v / N))) dv, g(c) = t rho^2 - t^2 rho^2 / 2, t = min(1, lam / (c rho)), "
        "isf the upper quantile of Beta(1/2, (d-1)/2); non-negative codes without decoder bias: isf(min(1, 2 v / N))",
        assumptions=(
            "rotation-invariant law, one active feature per token",
            "0 < lam < rho",
            "atoms of at most unit length",
            "non-negative codes with a decoder bias: the signed bound",
        ),
        source="THEORY.md B4; dual point t h and a union bound over caps",
        values=(
            Value(bounds.tiling_floor, _floor),
            Value(tiling_excess, _asymptote),
            Value(bounds.tiling_atoms, _count),
        ),
        truths=(
            Truth(
                "no dictionary found has less excess risk, d = 2 to 6",
                tiling_excess,
                _tiled,
                dropped={
                    "one-sided floor for signed codes": lambda bench: _plane(bench, 1.0, signed=False),
                    "law not rotation-invariant": _anisotropic,
                    "atoms of length 1.1": lambda bench: _plane(bench, 1.1),
                },
            ),
            Truth(
                "with random radii the average of the floors binds",
                bounds.tiling_floor,
                _random_radii,
                dropped={
                    "floor at the root mean square norm": lambda bench: _random_radii(
                        bounds.tiling_floor, bench, at_mean=True
                    )
                },
            ),
            Truth(
                "the signed floor binds non-negative codes with a bias",
                bounds.tiling_floor,
                _biased,
                dropped={"floor without bias": lambda bench: _biased(bounds.tiling_floor, bench, signed=False)},
            ),
            Truth(
                "a bias never helps signed codes",
                objectives.lasso_cost,
                _useless_bias,
                side=None,
                dropped={"non-negative codes": lambda bench: _useless_bias(objectives.lasso_cost, bench, signed=False)},
            ),
        ),
    )
)
