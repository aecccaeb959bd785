"""C1: the best map of one group, and what it costs, in closed form.

The formulas are compared with cvxpy, with sums over samples and with two descents; the statement is tried from both
sides, by descents from above and by dual values from below.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from proofs_checks.consolidation_measures import Slice, draw_slice, edge_slices, factor_descent, proximal_descent
from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, Value, add, bounded, compare
from sasa_theory.bounds import slice_floor, slice_map, slice_value, spectral_cost
from sasa_theory.objectives import slice_cost
from sasa_theory.solvers import reference
from sasa_theory.solvers.nuclear import subdifferential_distance

GOLDEN = (np.sqrt(5) - 1) / 2


@lru_cache(maxsize=8)
def _slices(seed: int, count: int) -> tuple[Slice, ...]:
    """The edge cases, then random slices of width 1 to 6, some of them rank-deficient."""
    rng = Bench(seed=seed).rng("C1 slices")
    drawn = [draw_slice(rng, int(rng.integers(1, 7)), int(rng.integers(1, 12))) for _ in range(count)]
    return edge_slices() + tuple(drawn)


@lru_cache(maxsize=8)
def _descended(seed: int, count: int) -> tuple["Float[ndarray, 'D D']", ...]:
    """The better of the two descents for every slice: on the map, and on factors of full rank."""
    rng = Bench(seed=seed).rng("C1 descents")
    found = []
    for slice_ in _slices(seed, count):
        sigma, lam = slice_.sigma, slice_.lam
        maps = (
            proximal_descent(sigma, lam, rng.standard_normal(sigma.shape)),
            factor_descent(sigma, lam, len(sigma), rng),
        )
        found.append(maps[int(np.argmin([slice_cost(m, sigma, lam) for m in maps]))])
    return tuple(found)


@lru_cache(maxsize=8)
def _conic(seed: int, count: int) -> tuple[tuple[Slice, reference.Answer], ...]:
    """The edge cases but lam = 0 (M is free there outside the range) and lam huge, and random slices, by cvxpy."""
    edges = [s for s in edge_slices() if 0 < s.lam < 10]
    rng = Bench(seed=seed).rng("C1 conic")
    drawn = [draw_slice(rng, int(rng.integers(2, 5)), int(rng.integers(1, 9))) for _ in range(count)]
    return tuple((s, reference.slice_problem(s.sigma, s.lam)) for s in [*edges, *drawn])


def check_spectral_cost(formula: Formula, bench: Bench) -> Outcome:
    """f(x) against the least of x (1 - a)^2 + lam a over a in [0, 1], found numerically."""
    rng = bench.rng("C1 f")
    pairs = [(0.0, 1.0), (0.5, 1.0), (2.0, 0.0), (1.0, 1e6), *rng.uniform(0.01, 3, (bench.pick(40, 200), 2))]
    least = []
    for x, lam in pairs:
        gain = np.array([0.0, 1.0])
        for _ in range(100):  # golden-section search: the cost is convex in the gain
            a, b = gain[1] - GOLDEN * np.ptp(gain), gain[0] + GOLDEN * np.ptp(gain)
            below = x * (1 - a) ** 2 + lam * a <= x * (1 - b) ** 2 + lam * b
            gain = np.array([gain[0], b] if below else [a, gain[1]])
        middle = gain.mean()
        least.append(x * (1 - middle) ** 2 + lam * middle)
    return compare([formula(x, lam) for x, lam in pairs], least, 1e-8, 1e-10, what="f(x) against a search over a")


def check_slice_value(formula: Formula, bench: Bench) -> Outcome:
    """The value against cvxpy's optimum, and against the better of two descents."""
    solved = _conic(bench.seed, bench.pick(6, 40))
    count = bench.pick(20, 100)
    slices, maps = _slices(bench.seed, count), _descended(bench.seed, count)
    ours = [formula(s.sigma, s.lam) for s, _ in solved] + [formula(s.sigma, s.lam) for s in slices]
    theirs = [answer.value for _, answer in solved]
    theirs += [slice_cost(m, s.sigma, s.lam) for s, m in zip(slices, maps, strict=True)]
    return compare(
        ours,
        theirs,
        1e-6,
        1e-7,
        what="tr f(Sigma) against cvxpy and two descents",
        assumptions=("width 1 to 6, some rank-deficient", "lam = 0, lam / 2 on an eigenvalue, lam huge"),
    )


def check_slice_map(formula: Formula, bench: Bench) -> Outcome:
    """Every entry of M* against the maps cvxpy and a descent end with (lam > 0, where it is unique)."""
    solved = _conic(bench.seed, bench.pick(6, 40))
    ours = [formula(s.sigma, s.lam).ravel() for s, _ in solved]
    theirs = [answer.point.ravel() for _, answer in solved]
    return compare(np.concatenate(ours), np.concatenate(theirs), 0.0, 1e-4, what="entries of M* against cvxpy's")


def check_slice_floor(formula: Formula, bench: Bench) -> Outcome:
    """The dual value summed over samples: nu_t = t (h_t - M h_t), sum w (2 <nu, h> - ||nu||^2)."""
    rng = bench.rng("C1 floor")
    ours, sums = [], []
    for slice_ in _slices(bench.seed, bench.pick(20, 100)):
        map_ = slice_map(slice_.sigma, slice_.lam) + rng.choice([0, 0.3]) * rng.standard_normal(slice_.sigma.shape)
        nu = np.array([h - map_ @ h for h in slice_.tokens])
        pull = 2 * sum(w * np.outer(n, h) for w, n, h in zip(slice_.weights, nu, slice_.tokens, strict=True))
        size = float(np.sqrt(max(np.linalg.eigvalsh(pull.T @ pull).max(), 0)))
        nu = nu * (min(1.0, slice_.lam / size) if size > 0 else 1.0)
        sums.append(
            sum(w * float(2 * n @ h - n @ n) for w, n, h in zip(slice_.weights, nu, slice_.tokens, strict=True))
        )
        ours.append(formula(map_, slice_.sigma, slice_.lam))
    return compare(ours, sums, 1e-7, 1e-9, what="dual value against its sum over samples")


def check_slice_cost(formula: Formula, bench: Bench) -> Outcome:
    """The objective against its sum over samples, and a nuclear norm from the eigenvalues of M^T M."""
    rng = bench.rng("C1 cost")
    ours, sums = [], []
    for slice_ in _slices(bench.seed, bench.pick(20, 100)):
        map_ = rng.standard_normal(slice_.sigma.shape)
        errors = [w * float(np.sum((h - map_ @ h) ** 2)) for w, h in zip(slice_.weights, slice_.tokens, strict=True)]
        norm = float(np.sqrt(np.maximum(np.linalg.eigvalsh(map_.T @ map_), 0)).sum())
        ours.append(formula(map_, slice_.sigma, slice_.lam))
        sums.append(sum(errors) + slice_.lam * norm)
    return compare(ours, sums, 1e-7, what="cost against its sum over samples")


def _charged(bench: Bench) -> list[tuple[Slice, "Float[ndarray, 'D D']"]]:
    """Slices that cost something (lam > 0, not all zero), each with the best map the descents found."""
    count = bench.pick(20, 100)
    both = zip(_slices(bench.seed, count), _descended(bench.seed, count), strict=True)
    return [(s, m) for s, m in both if s.lam > 0 and s.tokens.any()]


def check_descents(formula: Formula, bench: Bench) -> Outcome:
    """No map found by descent costs less than the closed form."""
    found = _charged(bench)
    costs = np.array([slice_cost(m, s.sigma, s.lam) for s, m in found])
    return bounded(
        [formula(s.sigma, s.lam) for s, _ in found],
        costs,
        error=1e-11 * costs,
        what="tr f(Sigma) against the best maps of two descents",
    )


def _needed(slice_: Slice) -> int:
    return int((np.linalg.eigvalsh(slice_.sigma) > slice_.lam / 2 * (1 + 1e-12)).sum())


def check_rank(formula: Formula, bench: Bench, spare: int = 0) -> Outcome:
    """The value is reached with r = #{sigma_j > lam / 2} columns (`spare` fewer in the twin), by a search."""
    rng = bench.rng(f"C1 rank {spare}")
    slices = [s for s in _slices(bench.seed, bench.pick(12, 60)) if s.lam > 0 and _needed(s) > max(spare, 0)]
    costs = [slice_cost(factor_descent(s.sigma, s.lam, _needed(s) - spare, rng), s.sigma, s.lam) for s in slices]
    return bounded(
        [formula(s.sigma, s.lam) for s in slices], costs, "above", 1e-7 * np.array(costs), "best map of that rank"
    )


def check_floor(formula: Formula, bench: Bench) -> Outcome:
    """The dual value of any map, the best one included, is no more than what the best map found costs."""
    rng = bench.rng("C1 any map")
    floors, costs = [], []
    for slice_, best in _charged(bench):
        optimum = slice_map(slice_.sigma, slice_.lam)
        for size in (0.0, 0.01, 0.3, 3.0):
            map_ = optimum + size * rng.standard_normal(optimum.shape)
            floors.append(formula(map_, slice_.sigma, slice_.lam))
            costs.append(slice_cost(best, slice_.sigma, slice_.lam))
    return bounded(floors, costs, error=1e-9 * np.array(costs), what="dual value of a map against the best cost found")


def unscaled_dual(map_: "Float[ndarray, 'D D']", sigma: "Float[ndarray, 'D D']", lam: float) -> float:
    """The false variant of the dual bound: the residual as it is, not scaled into the operator-norm ball."""
    left = np.eye(len(sigma)) - map_
    return 2 * float(np.trace(left @ sigma)) - float(np.trace(left @ sigma @ left.T))


def check_subdifferential(formula: Formula, bench: Bench) -> Outcome:
    """2 (I - M) Sigma lies in lam times the subdifferential of the nuclear norm at the map the formula gives."""
    worst = max(
        subdifferential_distance(formula(s.sigma, s.lam), s.sigma, s.lam) / max(s.lam, float(np.trace(s.sigma)))
        for s in _slices(bench.seed, bench.pick(40, 200))
        if np.trace(s.sigma) > 0
    )
    return Outcome(1 - worst / 1e-9, compared=f"relative distance to the subdifferential at most {worst:.2g}")


add(
    Claim(
        id="C1",
        statement="One group's best map keeps Sigma's eigenvectors and shrinks each gain to (1 - lam / (2 sigma_j))_+.",
        formula="min_M tr((I-M) Sigma (I-M)^T) + lam ||M||_* = tr f(Sigma) = sum_j f(sigma_j)",
        assumptions=("map penalty", "rank r >= #{sigma_j > lam / 2}", "one bias for all groups, or none"),
        source="singular-value shrinkage; certificate: the subdifferential of the nuclear norm, and its dual",
        values=(
            Value(spectral_cost, check_spectral_cost),
            Value(slice_value, check_slice_value),
            Value(slice_map, check_slice_map),
            Value(slice_floor, check_slice_floor),
            Value(slice_cost, check_slice_cost),
        ),
        truths=(
            Truth(
                statement="no map costs less than tr f(Sigma)",
                bound=slice_value,
                check=check_descents,
            ),
            Truth(
                statement="r = #{sigma_j > lam / 2} columns reach it",
                bound=slice_value,
                check=check_rank,
                side="above",
                dropped={"one column fewer": lambda bench: check_rank(slice_value, bench, 1)},
            ),
            Truth(
                statement="every map's dual value bounds the optimum from below",
                bound=slice_floor,
                check=check_floor,
                dropped={"dual point not scaled": lambda bench: check_floor(unscaled_dual, bench)},
            ),
            Truth(
                statement="the subdifferential certifies M*",
                bound=slice_map,
                check=check_subdifferential,
                side=None,
                dropped={
                    "M* scaled by 1.05": lambda bench: check_subdifferential(lambda s, p: 1.05 * slice_map(s, p), bench)
                },
            ),
        ),
    )
)
