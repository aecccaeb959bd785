"""B5 and B5': the l1 objective leads away from the true basis, and from any trained dictionary, by small steps.

A copy of an atom costs nothing (an l1 code is shared between equal atoms at no charge), and turning the copy pays to
first order for every token that uses the atom and has residual left on that side. B5 is the true basis, B5' any
dictionary; where the path leads is B6, in `l1_path`.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, Value, add, bounded, compare
from proofs_checks.l1_descent_measures import (
    LAM,
    LAWS,
    Split,
    basis_slope_by_costs,
    normal_rows,
    normal_slope,
    quiet_laws,
    split_slope_by_costs,
    splits,
    stationary,
    trained_dictionary,
)
from proofs_checks.l1_measures import exact_psi
from sasa_theory import bounds, objectives
from sasa_theory.geometry import sphere
from sasa_theory.solvers.descent import turned_cost

#: relative rounding of exact cases
EXACT = 1e-9
#: below this share of the largest slope possible a slope counts as zero; finite differences are good to 1e-9
ZERO = 1e-7

# B5


def _basis_cases(bench: Bench) -> "list[tuple[Float[ndarray, 'n d'], float, bool]]":
    rng = bench.rng("B5")
    return [
        (law(bench.pick(500, 5000, 50_000), d, rng), lam, signed)
        for law in LAWS.values()
        for d in (2, 3, 6)
        for lam in (0.05, 0.2, 1.0)
        for signed in (True, False)
    ]


def _slope(formula: Formula, bench: Bench) -> Outcome:
    cases = _basis_cases(bench)
    return compare(
        [formula(*case) for case in cases],
        [basis_slope_by_costs(*case) for case in cases],
        1e-6,
        EXACT,
        "slope against finite differences of the risk, five laws",
    )


def _normal(formula: Formula, bench: Bench) -> Outcome:
    rows = normal_rows(bench.pick(500, 1500))
    cases = [(lam, signed) for lam in (0.1, 0.2, 0.5, 1.0) for signed in (True, False)]
    return compare(
        [formula(rows, *case) for case in cases],
        [normal_slope(*case) for case in cases],
        0.005,  # a grid of quantiles stops short of the tails
        what="slope against the closed form for the standard normal",
    )


def _turned(formula: Formula, bench: Bench) -> Outcome:
    """psi along the whole turn, both ends included, by enumeration of codes."""
    rng = bench.rng("B5 turned")
    ours, reference = [], []
    for d in (2, 3):
        h = rng.standard_normal((bench.pick(50, 500), d))
        for theta in (0.0, 1e-3, 0.3, np.pi / 4, 1.2, np.pi / 2):
            copy = np.cos(theta) * np.eye(d)[0] + np.sin(theta) * np.eye(d)[1]
            for lam in (0.05, 0.3, 1.0):
                for signed in (True, False):
                    ours.append(formula(h, theta, lam, signed))
                    reference.append(exact_psi(np.vstack([np.eye(d), copy]), h, lam, signed))
    return compare(np.concatenate(ours), np.concatenate(reference), EXACT, EXACT, "closed form against enumeration")


def _huber(formula: Formula, bench: Bench) -> Outcome:
    """The basis with its duplicate, before it turns."""
    h = bench.rng("B5 Huber").standard_normal((200, 3)) * 1.5
    atoms = np.eye(3)[[0, 1, 2, 0]]
    ours, reference = [], []
    for lam in (0.0, 0.1, 0.5, 2.0):
        for signed in (True, False):
            ours.append(formula(h, lam, signed).sum(1))
            reference.append(exact_psi(atoms, h, lam, signed))
    return compare(np.concatenate(ours), np.concatenate(reference), EXACT, EXACT, "Huber sum against enumeration")


def event_share(h: "Float[ndarray, 'n d']", lam: float, signed: bool = True) -> float:
    """Share of tokens that gain when the copy turns (B5).

    P(|h_1| > lam, h_1 h_2 > 0), for non-negative codes P(h_1 > lam, h_2 > 0).
    """
    first, second = h[:, 0], h[:, 1]
    return float(((np.abs(first) > lam) & (first * second > 0) & (signed | (first > 0))).mean())


def _always(h: "Float[ndarray, 'n d']", lam: float, signed: bool = True) -> float:
    return 1.0


def _any_side(h: "Float[ndarray, 'n d']", lam: float, signed: bool = True) -> float:
    return float(((np.abs(h[:, 0]) > lam) & (h[:, 1] != 0)).mean())


def _any_size(h: "Float[ndarray, 'n d']", lam: float, signed: bool = True) -> float:
    return float((h[:, 0] * h[:, 1] > 0).mean())


def _exactly_when(formula: Formula, bench: Bench) -> Outcome:
    """Is the measured slope negative exactly for the laws whose event has positive probability?"""
    rng = bench.rng("B5 event")
    wrong = total = 0
    for lam in (0.05, 0.3, 1.0):
        for d in (2, 4):
            laws = [law(500, d, rng) for law in LAWS.values()] + list(quiet_laws(500, d, lam, rng).values())
            for h in laws:
                for signed in (True, False):
                    wrong += (basis_slope_by_costs(h, lam, signed) < -ZERO * lam) != (formula(h, lam, signed) > 0)
                    total += 1
    return Outcome(
        margin=1.0 if wrong == 0 else -wrong / total,
        compared=f"{wrong} of {total} laws against the rule, five with the event and three without",
        assumptions=("laws with and without a density",),
    )


def basis_risk(h: "Float[ndarray, 'n d']", lam: float, signed: bool = True) -> float:
    """Risk of the true basis: the mean Huber sum (B5)."""
    return float(objectives.huber(h, lam, signed).sum(1).mean())


def _whole_turn(formula: Formula, bench: Bench, monotone: bool = False, duplicate: bool = True) -> Outcome:
    """R along the turn against R(0). `monotone`: against the angle before; not `duplicate`: e_1 itself turns."""
    rng = bench.rng("B5 turn")
    angles = np.linspace(0, np.pi / 2, bench.pick(13, 61))
    bound: list[float] = []
    found: list[float] = []
    for law in LAWS.values():
        h = law(400, 3, rng)
        for lam in (0.1, 0.5):
            for signed in (True, False):
                if duplicate:
                    risks = [float(turned_cost(h, theta, lam, signed).mean()) for theta in angles]
                else:
                    alone = [np.vstack([[np.cos(t), np.sin(t), 0], np.eye(3)[1:]]) for t in angles]
                    risks = [float(exact_psi(atoms, h, lam, signed).mean()) for atoms in alone]
                bound += risks[:-1] if monotone else [formula(h, lam, signed)] * (len(angles) - 1)
                found += risks[1:]
    return bounded(bound, found, "above", EXACT, "risk along the turn", ("five laws", "the same rows throughout"))


add(
    Claim(
        id="B5",
        statement="The true basis is not a local minimum: a duplicate of one basis vector lowers the risk at once when "
        "it turns towards another, and nowhere on its way is the risk above its start.",
        formula="R'(0+) = -E[(|h_1| - lam)_+ min(lam, |h_2|) 1{h_1 h_2 > 0}] (non-negative codes: "
        "-E[(h_1 - lam)_+ min(lam, h_2)_+]) < 0 iff P(|h_1| > lam, h_1 h_2 > 0) > 0; R(theta) <= R(0) = R(pi/2)",
        assumptions=("lam > 0", "d >= 2 and N >= d + 1", "tokens with |h_1| > lam and h_1 h_2 > 0"),
        source="paper, 'a continuous path'; THEORY.md B5",
        values=(
            Value(bounds.basis_slope, _slope),
            Value(bounds.basis_slope, _normal),
            Value(turned_cost, _turned),
            Value(objectives.huber, _huber),
        ),
        truths=(
            Truth(
                "the slope is negative exactly when some token gains",
                event_share,
                _exactly_when,
                side=None,
                dropped={
                    "negative for every law": lambda bench: _exactly_when(_always, bench),
                    "h_1 h_2 > 0 not asked for": lambda bench: _exactly_when(_any_side, bench),
                    "|h_1| > lam not asked for": lambda bench: _exactly_when(_any_size, bench),
                },
            ),
            Truth(
                "the risk stays below its start along the whole turn",
                basis_risk,
                _whole_turn,
                side="above",
                dropped={
                    "falling monotonically": lambda bench: _whole_turn(basis_risk, bench, monotone=True),
                    "e_1 itself turns, no duplicate": lambda bench: _whole_turn(basis_risk, bench, duplicate=False),
                },
            ),
        ),
    )
)


# B5'

Cases = list[tuple[ndarray, ndarray, bool]]  # atoms (N, d), rows (n, d), signed


def _random(bench: Bench) -> Cases:
    rng = bench.rng("B5' random")
    return [
        (sphere(n_atoms, d, rng), rng.standard_normal((bench.pick(200, 1000), d)), signed)
        for d, n_atoms in ((2, 2), (2, 5), (3, 3), (3, 5))
        for signed in (True, False)
    ]


def _stationary(bench: Bench) -> Cases:
    sizes = ((2, 3), (2, 4), (3, 5), *bench.pick((), ((2, 8), (3, 8), (4, 6))))
    return [
        (*stationary(n_atoms, d, bench.pick(200, 1000), LAM, signed, bench.seed), signed)
        for d, n_atoms in sizes
        for signed in (True, False)
    ]


def _trained(bench: Bench) -> Cases:
    sizes = bench.pick((), ((2, 12), (3, 16)))
    return [(*trained_dictionary(d, n_latents, bench.seed, bench.out), False) for d, n_latents in sizes]


def _all_splits(cases: Cases, bench: Bench, lam: float = LAM) -> list[Split]:
    rng = bench.rng("B5' directions")
    return [split for atoms, x, signed in cases for split in splits(atoms, x, lam, rng, signed)]


@lru_cache(maxsize=4)
def _differences(bench: Bench) -> list[tuple[Split, float]]:
    """Every atom of every dictionary with one direction, and the slope of its split by finite differences."""
    rng = bench.rng("B5' directions")
    return [
        (split, split_slope_by_costs(atoms, x, split.atom, split.direction, LAM, signed))
        for atoms, x, signed in [*_random(bench), *_stationary(bench), *_trained(bench)]
        for split in splits(atoms, x, LAM, rng, signed, directions=1)
    ]


def _split(formula: Formula, bench: Bench) -> Outcome:
    return compare(
        [formula(s.codes, s.residuals, s.direction) for s, _ in _differences(bench)],
        [slope for _, slope in _differences(bench)],
        1e-4,
        1e-8,
        "slope against finite differences of the risk, every atom",
    )


def stationary_slope(
    codes: "Float[ndarray, ' n']", residuals: "Float[ndarray, 'n d']", direction: "Float[ndarray, ' d']"
) -> float:
    """-1/2 E|a_j <nu, w>|, what `bounds.split_slope` becomes where turning the atom itself gains nothing (B5')."""
    return -float(np.abs(codes * (residuals @ direction)).mean()) / 2


def _halved(formula: Formula, bench: Bench, still: bool = True) -> Outcome:
    """Not `still`: random dictionaries instead of stationary ones."""
    found = _all_splits(_stationary(bench) if still else _random(bench), bench)
    turned = [abs(float((s.codes * (s.residuals @ s.direction)).mean())) for s in found]
    sizes = [-stationary_slope(s.codes, s.residuals, s.direction) for s in found]
    still_to = max(t / s for t, s in zip(turned, sizes, strict=True))
    return compare(
        [formula(s.codes, s.residuals, s.direction) for s in found],
        [bounds.split_slope(s.codes, s.residuals, s.direction) for s in found],
        1e-6,
        what="-1/2 E|a nu.w| against the slope of the split",
        assumptions=(f"atoms whose own slope is at most {still_to:.1g} of that size",) if still else (),
    )


def _flattest(formula: Formula, cases: Cases, bench: Bench, lam: float = LAM, either: bool = False) -> Outcome:
    """Slopes of the splits of used atoms relative to lam E|a_j|; `either`: the steeper of the ways w and -w.

    Gains are never negative, so one token that gains proves the slope of the law negative: no error bar is needed.
    """
    worst, count = np.inf, 0
    for split in _all_splits(cases, bench, lam):
        used = LAM * float(np.abs(split.codes).mean())
        if used > 0:
            ways = (split.direction, -split.direction) if either else (split.direction,)
            worst = min(worst, max(-formula(split.codes, split.residuals, way) for way in ways) / used)
            count += 1
    return Outcome(
        margin=float(worst) - ZERO,
        compared=f"the flattest of {count} splits falls by {worst:.3g} lam E|a_j| a radian",
        assumptions=("a law with a density", "used atoms", "lam > 0", *(() if either else ("stationary",))),
    )


def _held_out(bench: Bench) -> Cases:
    """Stationary dictionaries with rows they were not fitted to."""
    rng = bench.rng("B5' rows")
    return [(atoms, rng.standard_normal((4 * len(x), x.shape[1])), signed) for atoms, x, signed in _stationary(bench)]


def _every_way(formula: Formula, bench: Bench, lam: float = LAM) -> Outcome:
    return _flattest(formula, _held_out(bench), bench, lam)


def _one_way(formula: Formula, bench: Bench, on_atoms: bool = False) -> Outcome:
    """Dictionaries of all kinds. `on_atoms`: a law on the atoms themselves, which leaves residuals along them."""
    rng = bench.rng("B5' tokens")
    cases = [*_random(bench), *_held_out(bench), *_trained(bench)]
    if on_atoms:
        cases = [(atoms, 2 * atoms[rng.integers(0, len(atoms), len(x))], signed) for atoms, x, signed in cases]
    return _flattest(formula, cases, bench, either=True)


def _one_sided(bench: Bench) -> Outcome:
    """A dictionary that is not stationary: e_1 alone, tokens with h_1 > 0 > h_2. Turning to e_2 gains nothing."""
    rows = np.abs(bench.rng("B5' quadrant").standard_normal((500, 2))) * (1, -1)
    codes, residuals = np.maximum(rows[:, 0] - LAM, 0), rows - np.outer(np.maximum(rows[:, 0] - LAM, 0), (1, 0))
    slope = bounds.split_slope(codes, residuals, np.array([0.0, 1.0]))
    return Outcome(margin=-slope - ZERO, compared=f"slope {slope:.3g}")


add(
    Claim(
        id="B5'",
        statement="At any dictionary, a copy of a used atom lowers the risk to first order when it turns one way or "
        "the other; where no atom gains by turning itself, whichever way it turns.",
        formula="R'(0+) = -E[(a_j <nu, w>)_+], nu = h - D a, w a unit vector orthogonal to d_j; stationary D: "
        "-1/2 E|a_j <nu, w>| < 0 for every w",
        assumptions=("lam > 0", "codes almost surely unique", "d >= 2", "a law with a density", "atoms that are used"),
        source="paper, 'drive any trained dictionary'; THEORY.md B5'",
        values=(Value(bounds.split_slope, _split),),
        truths=(
            Truth(
                "at a stationary dictionary every split has slope -1/2 E|a_j nu.w|",
                stationary_slope,
                _halved,
                side=None,
                dropped={"a dictionary not stationary": lambda bench: _halved(stationary_slope, bench, still=False)},
            ),
            Truth(
                "at a stationary dictionary every split lowers the risk",
                bounds.split_slope,
                _every_way,
                side=None,
                dropped={
                    "lam = 0": lambda bench: _every_way(bounds.split_slope, bench, lam=0.0),
                    "a dictionary not stationary": _one_sided,
                },
            ),
            Truth(
                "at any dictionary a copy lowers it one way or the other",
                bounds.split_slope,
                _one_way,
                side=None,
                dropped={"a law on the atoms": lambda bench: _one_way(bounds.split_slope, bench, on_atoms=True)},
            ),
        ),
    )
)
