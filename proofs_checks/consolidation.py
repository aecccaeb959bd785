"""C2 and C3: no hard routing of a slice does better than one group, as long as its rank suffices.

C2 compares one group with every split of the slice that could be found; when a split costs nothing is settled by two
conditions, tried from both sides. C3 is where it ends: with rank 1 two groups beat one. C1 is in `one_group`, C5 in
`gauge`, C8 in `released`; importing this module files them all.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import integrate, optimize

from proofs_checks import gauge, one_group, released  # noqa: F401  they file C5, C1 and C8
from proofs_checks.consolidation_measures import (
    ROUTINGS,
    Defects,
    draw_slice,
    equality_defects,
    every_assignment,
    factor_descent,
    free_split,
    local_search,
    split,
    split_cost,
    worst_pair,
)
from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, Value, add, bounded, compare
from sasa_theory.bounds import slice_value, spectral_cost
from sasa_theory.objectives import routed_cost, slice_cost
from sasa_theory.solvers import nuclear

# C2


@lru_cache(maxsize=8)
def _splits(seed: int, rounds: int) -> tuple[tuple[float, "Float[ndarray, 'm D D']"], ...]:
    """(lam, parts): slices split by gates, at random, by enumeration, by local search and by descent."""
    rng = Bench(seed=seed).rng("C2 splits")
    found = []
    for _ in range(rounds):
        slice_ = draw_slice(rng, int(rng.integers(2, 7)), 60)
        groups = int(rng.integers(2, 5))
        found += [(slice_.lam, split(slice_, route(slice_.tokens, groups, rng))) for route in ROUTINGS.values()]
        few = draw_slice(rng, int(rng.integers(2, 4)), 9)
        found.append((few.lam, every_assignment(few)))
        found.append((slice_.lam, local_search(slice_, groups, rng)))
        found.append((1.0, worst_pair(int(rng.integers(2, 4)), 1.0, rng)))
    return tuple(found)


def check_splits(formula: Formula, bench: Bench) -> Outcome:
    """One group against the best maps of every split found."""
    found = _splits(bench.seed, bench.pick(15, 150, 500))
    costs = np.array([split_cost(parts, lam) for lam, parts in found])
    return bounded(
        [formula(parts.sum(0), lam) for lam, parts in found],
        costs,
        error=1e-12 * costs,
        what="one group against every split",
        assumptions=("gates, random labels and random rules, all assignments of 9 tokens, local search, worst pairs",),
    )


def check_charged_per_token(bench: Bench) -> Outcome:
    """The same with each group's penalty weighted by the share of energy it handles, as a charge per token is."""
    found = _splits(bench.seed, bench.pick(15, 150, 500))
    costs = []
    for lam, parts in found:
        shares = np.einsum("kii->k", parts) / np.einsum("kii->", parts)
        costs.append(sum(slice_value(part, lam * q) for part, q in zip(parts, shares, strict=True)))
    return bounded([slice_value(parts.sum(0), lam) for lam, parts in found], costs, error=1e-12 * np.array(costs))


def check_integral(formula: Formula, bench: Bench) -> Outcome:
    """f(x) against int_{lam/2}^inf min(x, s) lam^2 / (2 s^3) ds by quadrature: a mixture of caps, hence concave."""
    rng = bench.rng("C2 integral")
    pairs = [(0.5, 1.0), *rng.uniform(0.05, 3, (bench.pick(40, 200), 2))]
    caps = [
        integrate.quad(
            lambda s, x=x, lam=lam: min(x, s) * lam**2 / (2 * s**3),
            lam / 2,
            max(x, lam),  # beyond both, min(x, s) = x and the rest is x lam^2 / (4 s^2)
            points=[x] if lam / 2 < x < max(x, lam) else None,
            epsabs=0,
            epsrel=1e-11,
        )[0]
        + x * lam**2 / (4 * max(x, lam) ** 2)
        for x, lam in pairs
    ]
    return compare([formula(x, lam) for x, lam in pairs], caps, 1e-8, what="f(x) against its integral over caps")


def excess(sigma: "Float[ndarray, 'D D']", s: float) -> float:
    """tr (Sigma - s)_+, the energy above level s."""
    return float(np.maximum(np.linalg.eigvalsh(sigma) - s, 0).sum())


def capped(sigma: "Float[ndarray, 'D D']", s: float) -> float:
    """tr min(Sigma, s): what the excess leaves; the inequality turns round for it."""
    return float(np.minimum(np.linalg.eigvalsh(sigma), s).sum())


def check_excess(formula: Formula, bench: Bench, measure: Formula = excess) -> Outcome:
    """sum_k tr (Sigma_k - s)_+ against tr (Sigma - s)_+ for every split and several levels."""
    parts_sum, whole = [], []
    for lam, parts in _splits(bench.seed, bench.pick(15, 150, 500)):
        for level in np.array([0.2, 0.5, 1.0]) * lam / 2:
            total = measure(parts.sum(0), level)
            if total > 0:
                whole.append(total)
                parts_sum.append(sum(formula(part, level) for part in parts))
    return bounded(parts_sum, whole, error=1e-11 * np.array(whole), what="sum of tr (Sigma_k - s)_+ against the whole")


def check_excess_value(formula: Formula, bench: Bench) -> Outcome:
    """tr (Sigma - s)_+ against Ky Fan's maximum: the best sum of the leading eigenvalues less s each."""
    ours, theirs = [], []
    for lam, parts in _splits(bench.seed, bench.pick(4, 40)):
        for part in parts:
            values = np.sort(np.linalg.svd(part, compute_uv=False))[::-1]
            ours.append(formula(part, lam / 4))
            theirs.append(max(0.0, float(np.cumsum(values - lam / 4).max())))
    return compare(ours, theirs, 1e-9, 1e-12, what="energy above a level against Ky Fan's maximum")


@lru_cache(maxsize=8)
def _near_ties(seed: int, rounds: int) -> tuple["Float[ndarray, 'm D D']", ...]:
    """Splits at lam = 1 that meet both conditions, that break one of them by 1e-1 to 1e-3, and random ones."""
    rng = Bench(seed=seed).rng("C2 ties")
    found = []
    for _ in range(rounds):
        kept = rng.integers(0, 3, int(rng.integers(2, 4)))
        found.append(free_split(1.0, kept, int(rng.integers(1, 4)), rng))
        for size in (0.1, 0.01, 0.001):
            found.append(free_split(1.0, kept, int(rng.integers(1, 4)), rng, excess=size))
            found.append(free_split(1.0, np.maximum(kept, 1), int(rng.integers(0, 3)), rng, tilt=size))
        random = draw_slice(rng, 4, 30)
        parts = split(random, ROUTINGS["half-spaces"](random.tokens, 2, rng)) / random.lam
        found.append(parts[np.einsum("kii->k", parts) > 0])
    return tuple(parts for parts in found if len(parts) > 1)


def is_free(defects: Defects) -> bool:
    """Conditions (i) and (ii) of C2 up to rounding."""
    return max(defects) <= 1e-9


def check_ties(formula: Callable[[Defects], bool], bench: Bench) -> Outcome:
    """A split costs what one group costs exactly where the conditions say so, to 1e-12; elsewhere it costs more."""
    margins, gaps = [], []
    for parts in _near_ties(bench.seed, bench.pick(30, 300)):
        whole = slice_value(parts.sum(0), 1.0)
        gap = split_cost(parts, 1.0) / whole - 1
        free = formula(equality_defects(parts, 1.0))
        margins.append(1 - abs(gap) / 1e-12 if free else min(1.0, gap / 1e-11 - 1))
        gaps += [] if free else [gap]
    ties = len(margins) - len(gaps)
    least = min(gaps, default=math.nan)
    line = f"{ties} splits said to be free: equal to 1e-12; {len(gaps)} said to cost: by at least {least:.2g}"
    return Outcome(min(margins), compared=line, assumptions=("either condition broken by 0.1 to 0.001",))


def check_routed_cost(formula: Formula, bench: Bench) -> Outcome:
    """The objective against loops over tokens and groups; some slots empty, some groups twice."""
    rng = bench.rng("C2 routed cost")
    ours, loops = [], []
    for _ in range(bench.pick(20, 100)):
        slice_ = draw_slice(rng, int(rng.integers(1, 5)), int(rng.integers(1, 12)))
        groups = int(rng.integers(1, 4))
        maps = rng.standard_normal((groups, *slice_.sigma.shape))
        index = rng.integers(-1, groups, (len(slice_.tokens), 2))
        total = slice_.lam * sum(float(np.linalg.svd(m, compute_uv=False).sum()) for m in maps)
        for h, w, row in zip(slice_.tokens, slice_.weights, index, strict=True):
            left = h - sum((maps[k] @ h for k in row if k >= 0), np.zeros(len(h)))
            total += w * float(left @ left)
        ours.append(formula(maps, slice_.tokens, index, slice_.lam, slice_.weights))
        loops.append(total)
    return compare(ours, loops, 1e-9, what="objective against loops over tokens")


@lru_cache(maxsize=8)
def _planes(seed: int, count: int) -> tuple["Float[ndarray, '2 D D']", ...]:
    """Second moments of two unit-energy planes in random position in R^64."""
    rng = Bench(seed=seed).rng("C2 planes")
    frames = np.linalg.qr(rng.standard_normal((count, 2, 64, 2)))[0]
    return tuple(frame @ frame.transpose(0, 2, 1) / 2 for frame in frames)


def merged_cost(parts: "Float[ndarray, 'm D D']", lam: float) -> float:
    """One group for all features."""
    return slice_value(parts.sum(0), lam)


def check_merging(formula: Formula, bench: Bench) -> Outcome:
    """One group of rank 4 for two planes in R^64 against one group of rank 2 for each, lam = 0.3."""
    planes = _planes(bench.seed, bench.pick(20, 100))
    return bounded(
        [formula(pair, 0.3) for pair in planes],
        [split_cost(pair, 0.3) for pair in planes],
        what="one group for both planes against one each",
        assumptions=("two random planes in R^64, r = 4, lam = 0.3",),
    )


def _rank_two(parts: "Float[ndarray, 'm D D']", lam: float) -> float:
    """The best single group of rank 2 found on both planes, in the four dimensions they span."""
    values = np.linalg.eigvalsh(parts.sum(0))[-4:]
    return nuclear.solve(np.diag(values), lam, rank=2, starts=0).primal


add(
    Claim(
        id="C2",
        statement="With each token in one group, no routing of a slice costs less than a single group that holds it.",
        formula="Sigma = sum_k Sigma_k: sum_k tr f(Sigma_k) >= tr f(Sigma); equal iff (i) and (ii)",
        assumptions=(
            "hard routing, by any rule",
            "r >= #{sigma_j(Sigma) > lam / 2}",
            "map penalty, once per group",
            "for 'every optimum is one group': sigma_d > lam / 2 and no mutually orthogonal parts",
        ),
        source="f is a mixture of caps min(x, s); Rotfel'd: tr (A+B-s)_+ >= tr (A-s)_+ + tr (B-s)_+",
        values=(
            Value(spectral_cost, check_integral),
            Value(excess, check_excess_value),
            Value(routed_cost, check_routed_cost),
        ),
        truths=(
            Truth(
                statement="no split of a slice costs less than one group",
                bound=slice_value,
                check=check_splits,
                dropped={"penalty charged per token": check_charged_per_token},
            ),
            Truth(
                statement="the energy above any level is superadditive",
                bound=excess,
                check=check_excess,
                dropped={"the energy below a level": lambda bench: check_excess(capped, bench, capped)},
            ),
            Truth(
                statement="a split is free exactly under (i) and (ii)",
                bound=is_free,
                check=check_ties,
                side=None,
                dropped={
                    "no split is free (orthogonal parts)": lambda bench: check_ties(lambda _: False, bench),
                    "(i) alone": lambda bench: check_ties(lambda defects: defects.overlap <= 1e-9, bench),
                    "(ii) alone": lambda bench: check_ties(lambda defects: defects.discarded <= 1e-9, bench),
                },
            ),
            Truth(
                statement="different features that are not orthogonal merge when r >= d_1 + d_2",
                bound=merged_cost,
                check=check_merging,
                dropped={"r = 2 < d_1 + d_2": lambda bench: check_merging(_rank_two, bench)},
            ),
        ),
    )
)


# C3


def two_groups(lam: float) -> float:
    """What two groups of rank 1 cost on two unit tokens, one each: 2 (lam - lam^2 / 4) for lam < 2, else 2."""
    return 2 * float(spectral_cost(1.0, lam))


def crossing() -> float:
    """The penalty at which two groups cost 1, the energy one group of rank 1 must leave: 2 - sqrt 2."""
    return 2 - math.sqrt(2)


def check_two_groups(formula: Formula, bench: Bench) -> Outcome:
    """Two groups on e_1 and e_2 against a search over the gain of each."""
    rng = bench.rng("C3 two groups")
    lams = [*rng.uniform(0.01, 2.5, bench.pick(6, 30))]
    found = []
    for lam in lams:
        maps = [factor_descent(np.outer(e, e), lam, 1, rng) for e in np.eye(2)]
        found.append(routed_cost(np.stack(maps), np.eye(2), np.array([[0], [1]]), lam, np.ones(2)))
    return compare([formula(lam) for lam in lams], found, 1e-7, what="two groups of rank 1 on e_1, e_2")


def check_crossing(formula: Formula, bench: Bench) -> Outcome:
    """2 - sqrt 2 against the root of 2 f(1) = 1, f by a search over the gain."""

    def least(lam: float) -> float:
        found = optimize.minimize_scalar(
            lambda a: (1 - a) ** 2 + lam * a, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}
        )
        return float(found.fun)

    return compare(formula(), optimize.brentq(lambda lam: 2 * least(lam) - 1, 0.1, 1), 1e-7, what="root of 2 f(1) = 1")


def left_over(sigma: "Float[ndarray, 'D D']", rank: int) -> float:
    """What a map of that rank leaves of a slice at least: the eigenvalues beyond the first `rank` (Eckart, Young)."""
    return float(np.sort(np.linalg.eigvalsh(sigma))[: len(sigma) - rank].sum())


@lru_cache(maxsize=8)
def _pairs(seed: int, count: int) -> tuple[tuple["Float[ndarray, '2 2']", float, float], ...]:
    """(tokens, lam, what one group of rank 1 costs at least) for two unit tokens, every other time at right angles.

    At right angles Sigma = I and ||I - M||_F^2 >= sum_j (1 - s_j)^2 (Mirsky), hence 1 + f(1) for rank 1. At 60 to 90
    degrees only what it must leave is proved, 1 - cos, and lam is small enough for two groups to cost less than that.
    """
    rng = Bench(seed=seed).rng("C3 pairs")
    found = []
    for i in range(count):
        if i % 2:
            lam = float(rng.uniform(0.05, 1.8))
            found.append((np.eye(2), lam, 1 + float(spectral_cost(1.0, lam))))
        else:
            angle = float(rng.uniform(math.pi / 3, math.pi / 2 - 0.1))
            tokens = np.array([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
            least = left_over(tokens.T @ tokens, 1)
            found.append((tokens, float(rng.uniform(0.1, 0.95)) * least / 2, least))
    return tuple(found)


def check_low_rank(formula: Formula, bench: Bench, rank: int = 1) -> Outcome:
    """Two groups of rank 1 against the best single group of rank `rank` found, and against its proved floor."""
    rng = bench.rng(f"C3 rank {rank}")
    bounds, costs = [], []
    for tokens, lam, least in _pairs(bench.seed, bench.pick(10, 60)):
        sigma = tokens.T @ tokens
        searched = slice_cost(factor_descent(sigma, lam, rank, rng), sigma, lam)
        for cost in (searched, least) if rank == 1 else (searched,):
            bounds.append(formula(lam))
            costs.append(cost)
    return bounded(bounds, costs, what="two groups of rank 1 against one")


def check_left_over(formula: Formula, bench: Bench, spare: int = 0) -> Outcome:
    """What a group of rank r (of r + `spare` in the twin) costs by search against the energy beyond r directions."""
    rng = bench.rng(f"C3 left {spare}")
    bounds, costs = [], []
    for _ in range(bench.pick(12, 60)):
        slice_ = draw_slice(rng, int(rng.integers(2, 5)), 20)
        rank = int(rng.integers(1, len(slice_.sigma)))
        lam = 0.02 * slice_.lam  # the bound leaves the penalty out
        bounds.append(formula(slice_.sigma, rank))
        costs.append(slice_cost(factor_descent(slice_.sigma, lam, rank + spare, rng), slice_.sigma, lam))
    return bounded(bounds, costs, what="energy beyond r directions against the best map of rank r found")


add(
    Claim(
        id="C3",
        statement="With rank r below d one group need not be optimal: at r = 1 two groups beat it on two tokens.",
        formula="r = 1, tokens e_1, e_2, f = lam - lam^2/4: two groups 2 f, below 1 iff lam < 2 - sqrt 2; one 1 + f",
        assumptions=("hard routing", "r = 1 < d = 2", "lam < 2 at right angles; small where the tokens are oblique"),
        source="Eckart and Young, at right angles Mirsky, for the group of rank 1; C1 for the two",
        values=(Value(two_groups, check_two_groups), Value(crossing, check_crossing)),
        truths=(
            Truth(
                statement="two groups of rank 1 cost less than any single one",
                bound=two_groups,
                check=check_low_rank,
                dropped={"r = 2 = d": lambda bench: check_low_rank(two_groups, bench, 2)},
            ),
            Truth(
                statement="a group of rank r costs at least the energy beyond r directions",
                bound=left_over,
                check=check_left_over,
                dropped={"one column more": lambda bench: check_left_over(left_over, bench, 1)},
            ),
        ),
    )
)
