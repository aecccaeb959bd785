"""Part A on trained dictionaries: how many atoms a feature really takes (A4), and how close they must lie (A5)."""

import math
from functools import lru_cache, partial

import numpy as np
from numpy import ndarray
from scipy import optimize, sparse

from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, Value, add, bounded, compare
from proofs_checks.dictionaries import (
    coherence,
    equal_lines,
    fitted_lines,
    fitted_pairs,
    log_tube_by_angle,
    repelled_lines,
    squared_distances,
    squared_distances_each,
)
from sasa_theory import bounds
from sasa_theory.geometry import covering_number, covering_number_exact, sphere

# A4


def exact_cover(points: ndarray, atoms: ndarray, k: int, eps: float) -> int:
    """L^(k)(eps) of a sample by enumeration: `geometry.covering_number_exact`."""
    return int(covering_number_exact(points, atoms, k, eps).atoms)


def _cover_value(formula: Formula, bench: Bench) -> Outcome:
    """k = 1 is a set-cover problem; an integer program solves it independently."""
    rng = bench.rng("A4 value")
    ours, exact = [], []
    for d, n_atoms, eps in ((2, 14, 0.3), (3, 16, 0.75), (2, 12, 0.25)):
        atoms = fitted_lines(n_atoms, d, True, rng, 2000)
        points = sphere(200, d, rng)
        near = squared_distances_each(points, atoms) <= eps**2
        points, near = points[near.any(1)], near[near.any(1)]
        program = optimize.milp(
            np.ones(n_atoms),
            constraints=optimize.LinearConstraint(sparse.csr_array(near.astype(float)), lb=1),
            integrality=np.ones(n_atoms),
            bounds=optimize.Bounds(0, 1),
        )
        ours.append(formula(points, atoms, 1, eps))
        exact.append(round(program.fun))
    return compare(ours, exact, 0, 0.5, "L by enumeration against an integer program")


@lru_cache
def _covers(seed: int, rows: int) -> tuple[tuple[int, int, float, float], ...]:
    """(d, k, eps, L) of dictionaries with more atoms than needed, greedy, at a radius they all reach."""
    rng = Bench(seed=seed).rng("A4")
    found = []
    for d, k, n_atoms, slack in ((2, 1, 24, 1.02), (2, 1, 24, 2.5), (3, 1, 48, 1.1), (3, 1, 48, 2.0), (4, 2, 9, 1.1)):
        atoms = fitted_lines(n_atoms, d, True, rng, 5000) if k == 1 else fitted_pairs(n_atoms, d, k, rng, 2000)
        points = sphere(rows, d, rng)
        eps = min(0.99, slack * math.sqrt(float(squared_distances(points, atoms, k).max())))
        found.append((d, k, eps, covering_number(points, atoms, k, eps).atoms))
    return tuple((d, k, eps, count) for d, k, eps, count in found if math.isfinite(count))


def _realised(formula: Formula, bench: Bench, rows: int | None = None) -> Outcome:
    cases = _covers(bench.seed, rows or bench.pick(4000, 20_000))
    return bounded(
        [formula(d, k, eps) for d, k, eps, _ in cases],
        [count for *_, count in cases],
        error=1e-9,
        what="atoms L",
        assumptions=("k < d", "eps < 1", "every sampled unit vector reached"),
    )


add(
    Claim(
        id="A4",
        statement="The fewest atoms of a trained dictionary that reach every direction of a feature, L, is at least "
        "max(d, N_min).",
        formula="max(d, N_min(d, k, eps)) <= L^(k)(eps), k < d",
        assumptions=("k < d", "eps < 1", "L finite", "sample dense enough to stand for the sphere"),
        source="THEORY.md A4; A2 applied to the chosen atoms",
        values=(Value(exact_cover, _cover_value),),
        truths=(
            Truth(
                "realised covering numbers are not below the floor",
                bounds.atom_floor,
                _realised,
                dropped={"a sample of three points": lambda bench: _realised(bounds.atom_floor, bench, rows=3)},
            ),
        ),
    )
)


# A5


def _packing(formula: Formula, bench: Bench) -> Outcome:
    cases = ((2, 16), (4, 64), (8, 512), (16, 4096), (3, 7))
    exact = []
    for d, n in cases:
        root = optimize.brentq(lambda s, d=d, n=n: log_tube_by_angle(s, d, 1) + math.log(n), 1e-9, 0.999, xtol=1e-14)
        exact.append(1 - 2 * root)
    return compare([formula(n, d) for d, n in cases], exact, 1e-6, what="cos 2 theta against quadrature")


@lru_cache
def _spread(seed: int, steps: int) -> tuple[tuple[int, int, float, float], ...]:
    """(N, d, largest |cos|, largest cos on a half circle more) of the best-spread lines found."""
    rng = Bench(seed=seed).rng("A5")
    found = []
    for n_atoms, d in ((5, 2), (16, 2), (6, 3), (40, 3), (64, 4), (120, 6)):
        lines = repelled_lines(n_atoms, d, rng, steps)
        found.append((n_atoms, d, coherence(lines), coherence(equal_lines(n_atoms, signed=False), signed=False)))
    return tuple(found)


def _collinear(formula: Formula, bench: Bench, side: str = "lines") -> Outcome:
    cases = _spread(bench.seed, bench.pick(1500, 6000))
    if side == "rays":
        cases = tuple(case for case in cases if case[1] == 2)
    best = [case[2] if side == "lines" else case[3] for case in cases]
    return bounded(
        [formula(n, d) for n, d, *_ in cases], best, error=1e-12, what="largest |cos|", assumptions=("N >= 2",)
    )


def _covering_angle(n_atoms: int, d: int) -> float:
    """The false variant: cos theta in place of cos 2 theta."""
    return math.sqrt((1 + bounds.packing_cosine(n_atoms, d)) / 2)


add(
    Claim(
        id="A5",
        statement="N atoms in d dimensions cannot stay apart: some two have |cos| at least cos 2 theta.",
        formula="N P(|u_1| >= cos theta) = 1, max |cos| >= cos 2 theta",
        assumptions=("unit atoms", "sign does not count"),
        source="THEORY.md A5; packing of caps",
        values=(Value(bounds.packing_cosine, _packing),),
        truths=(
            Truth(
                "the best-spread lines found are as close as that",
                bounds.packing_cosine,
                _collinear,
                dropped={
                    "cos theta in place of cos 2 theta": lambda bench: _collinear(_covering_angle, bench),
                    "cos in place of |cos|": partial(_collinear, bounds.packing_cosine, side="rays"),
                },
            ),
        ),
    )
)
