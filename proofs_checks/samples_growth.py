"""D3 and D4: samples to a held-out target against d, and the rule that says which law they follow.

D4 first: planted laws are recovered, and the rule errs no more often than it says, which R^2 does not. D3 then asks the
rule about K-lines and about the eigenvectors of the second moment (quick), and about trained dictionaries (standard).
"""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy import ndarray
from scipy import optimize, stats

from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, Value, add, compare
from proofs_checks.samples_measures import line_samples, slice_samples
from proofs_checks.samples_trained import samples_to_target
from sasa_theory.statistics import THRESHOLD, Decision, growth_law, power_law
from synthetic.errors import DataError

# D4: the judge

DIMS = (2, 3, 4, 5, 6, 7)
#: the subspace is cheap to follow further, and a wider range is what tells log d from d
WIDE = (2, 3, 4, 6, 8, 12, 16)
RATE, EXPONENT = 0.8, 1.5
OTHER = {"exponential": "polynomial", "polynomial": "exponential"}
SUBSPACES = ("subspace", "sasa")
#: how often the rule may decide for the wrong law, or at all without growth
ERROR_RATE = 0.05


def planted(law: str, d: ndarray, scatter: float, rng: np.random.Generator) -> ndarray:
    """n at each d under a law, with normal scatter of log n: "exponential", "polynomial" or "none"."""
    mean = {"exponential": RATE * d, "polynomial": EXPONENT * np.log(d), "none": np.zeros_like(d)}[law]
    return np.exp(3 + mean + scatter * rng.standard_normal(len(d)))


def fitted_rate(d: ndarray, n: ndarray, censored: ndarray) -> float:
    """Rate of the exponential law."""
    return growth_law(d, n, censored).exponential.slope


def fitted_exponent(d: ndarray, n: ndarray, censored: ndarray) -> float:
    """Exponent of the polynomial law."""
    return growth_law(d, n, censored).polynomial.slope


def lead_of_exponential(d: ndarray, n: ndarray, censored: ndarray) -> float:
    """AICc(polynomial) - AICc(exponential)."""
    return growth_law(d, n, censored).difference


def tobit(x: ndarray, y: ndarray, off: ndarray) -> tuple[float, float]:
    """(slope, log-likelihood) of censored regression, by a simplex search on the plain log-likelihood."""

    def cost(parameters: ndarray) -> float:
        intercept, slope, log_scale = parameters
        away, scale = y - intercept - slope * x, math.exp(log_scale)
        seen = stats.norm.logpdf(away[~off], scale=scale).sum()
        return -float(seen + stats.norm.logsf(away[off], scale=scale).sum())

    slope, intercept = np.polyfit(x, y, 1)
    options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-10, "fatol": 1e-12}
    start = np.array([intercept, slope, -1.0])
    for _ in range(3):  # restarts: a simplex can collapse early
        found = optimize.minimize(cost, start, method="Nelder-Mead", options=options)
        start = found.x
    return float(start[1]), -float(found.fun)


def _censored_case(bench: Bench, law: str) -> tuple[ndarray, ndarray, ndarray]:
    d = np.repeat(np.array(DIMS, dtype=float), 3)
    n = planted(law, d, 0.3, bench.rng(f"D4 value {law}"))
    limit = float(np.sort(n)[-5])
    return d, np.minimum(n, limit), n > limit


def _slope_value(law: str) -> Callable[[Formula, Bench], Outcome]:
    """Exact planted laws give their own slope; with scatter and censoring the slope of another optimiser."""

    def check(formula: Formula, bench: Bench) -> Outcome:
        d = np.array(DIMS, dtype=float)
        truth = RATE if law == "exponential" else EXPONENT
        ours = [formula(d, planted(law, d, 0.0, bench.rng("none")), np.zeros(len(d), bool))]
        d, n, off = _censored_case(bench, law)
        ours.append(formula(d, n, off))
        axis = d if law == "exponential" else np.log(d)
        return compare(ours, [truth, tobit(axis, np.log(n), off)[0]], 2e-4, what=f"slope of the {law} law")

    return check


def _lead_value(formula: Formula, bench: Bench) -> Outcome:
    """Twice the difference of the log-likelihoods another optimiser finds (equally many parameters)."""
    ours, found = [], []
    for law in ("exponential", "polynomial"):
        d, n, off = _censored_case(bench, law)
        ours.append(formula(d, n, off))
        found.append(2 * (tobit(d, np.log(n), off)[1] - tobit(np.log(d), np.log(n), off)[1]))
    # the scatter is floored at 1 % of n, which moves log-likelihoods by RESOLUTION^2 / scatter^2, here 1e-3
    return compare(ours, found, 0.01, what="lead in AICc")


def fitted_power(x: ndarray, y: ndarray) -> tuple[float, float]:
    """Exponent and log prefactor of a power law."""
    line = power_law(x, y)
    return line.slope, line.intercept


def _power_value(formula: Formula, bench: Bench) -> Outcome:
    """Exponent and log prefactor by least squares."""
    rng = bench.rng("D4 power")
    x = np.geomspace(1, 1000, 12)
    y = 2.5 * x**-0.7 * np.exp(0.2 * rng.standard_normal(12))
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return compare(formula(x, y), [slope, intercept], 1e-6, what="power law by least squares")


Judge = Callable[[ndarray, ndarray], str]


def by_rule(d: ndarray, n: ndarray) -> str:
    """The rule of D4."""
    return growth_law(d, n).decision


def by_r_squared(d: ndarray, n: ndarray) -> str:
    """Eyeballing: the law with the larger R^2, always."""
    fits = {name: abs(np.corrcoef(x, np.log(n))[0, 1]) for name, x in (("exponential", d), ("polynomial", np.log(d)))}
    return max(fits, key=lambda name: fits[name])


def error_rates(judge: Judge, trials: int, rng: np.random.Generator, mix: bool = False) -> dict[str, float]:
    """Share of data sets in which `judge` is wrong, per planted law and scatter; `mix` permutes the d of the runs."""
    rates = {}
    d = np.repeat(np.array(DIMS, dtype=float), 3)
    for law in ("exponential", "polynomial", "none"):
        for scatter in (0.2, 0.6):
            right = {"undecided"} if law == "none" or mix else {law, "undecided"}
            verdicts = [judge(rng.permutation(d) if mix else d, planted(law, d, scatter, rng)) for _ in range(trials)]
            rates[f"{law}, scatter {scatter}"] = sum(v not in right for v in verdicts) / trials
    return rates


@lru_cache(maxsize=16)
def _rates(seed: int, trials: int, judge: Judge, mix: bool) -> tuple[tuple[str, float], ...]:
    return tuple(error_rates(judge, trials, Bench(seed=seed).rng("D4 rates"), mix).items())


def check_rates(formula: Formula, bench: Bench, judge: Judge = by_rule, mix: bool = False) -> Outcome:
    """Worst error rate against 5 %, less 3.1 standard errors of a rate of 5 %."""
    trials = bench.pick(150, 2000)
    case, worst = max(_rates(bench.seed, trials, judge, mix), key=lambda pair: pair[1])
    error = 3.1 * math.sqrt(ERROR_RATE * (1 - ERROR_RATE) / trials)
    return Outcome(
        ERROR_RATE + error - worst,
        error=error,
        compared=f"wrong in at most {worst:.3f} of {trials} data sets ({case}), stated {ERROR_RATE}; margin is a rate",
        assumptions=("normal scatter of log n, equal at all d", f"d = {DIMS[0]}..{DIMS[-1]}, three runs each"),
    )


def check_power(formula: Formula, bench: Bench, swapped: bool = False) -> Outcome:
    """Each law, planted with 5 % scatter, is named in at least nine of ten data sets; `swapped`: names exchanged."""
    rng = bench.rng("D4 power of the rule")
    d = np.repeat(np.array(DIMS, dtype=float), 3)
    trials = bench.pick(60, 500)
    shares = []
    for law in OTHER:
        named = [formula(d, planted(law, d, 0.05, rng)).decision for _ in range(trials)]
        shares.append(np.mean([name == (OTHER[law] if swapped else law) for name in named]))
    line = f"named in {min(shares):.3f} of {trials} data sets, at least 0.9 asked; margin is a share"
    return Outcome(float(min(shares)) - 0.9, compared=line)


add(
    Claim(
        id="D4",
        statement="A growth law is decided only when its AICc leads by 6, which names the wrong law, or growth in pure "
        "noise, in at most one of 20 data sets, and names the right one when the scatter is small.",
        formula="log n = a + b d against log n = a + b log d; AICc differs by >= 6; censored runs by Tobit regression",
        assumptions=("one of the two laws is true", "normal scatter of log n", "runs independent"),
        source="THEORY.md D4; Tobin 1958, Olsen 1978, Hurvich and Tsai 1989",
        values=(
            Value(fitted_rate, _slope_value("exponential")),
            Value(fitted_exponent, _slope_value("polynomial")),
            Value(lead_of_exponential, _lead_value),
            Value(fitted_power, _power_value),
        ),
        truths=(
            Truth(
                "the wrong law is decided in at most 5 % of planted data sets",
                growth_law,
                check_rates,
                side=None,
                dropped={"R^2 in place of the rule": lambda bench: check_rates(growth_law, bench, by_r_squared)},
            ),
            Truth(
                "with small scatter the right law is decided",
                growth_law,
                check_power,
                side=None,
                dropped={"names exchanged": lambda bench: check_power(growth_law, bench, swapped=True)},
            ),
        ),
    )
)

# D3: the experiment


@lru_cache(maxsize=8)
def direct_study(seed: int, runs: int) -> dict[str, tuple[ndarray, ndarray, ndarray]]:
    """(d, n, censored) for K-lines and for the top eigenvectors: no training in the way."""
    rng = Bench(seed=seed).rng("D3")
    found: dict[str, list[tuple[float, float, bool]]] = {"lines": [], "subspace": []}
    for _ in range(runs):
        found["lines"] += [(d, *line_samples(d, 32, 512, 0.05, 0.25, 1024, rng)) for d in DIMS]
        found["subspace"] += [(d, *slice_samples(d, 32, 0.05, 0.25, 1024, rng)) for d in WIDE]
    return {name: _columns(rows) for name, rows in found.items()}


@lru_cache(maxsize=8)
def trained_study(profile: str, seed: int, out: Path, device: str) -> dict[str, tuple[ndarray, ndarray, ndarray]]:
    """(d, n, censored) for trained TopK, l1 and SASA dictionaries."""
    searches = samples_to_target(profile, (seed, seed + 1, seed + 2), out=out, device=device)
    names = dict.fromkeys(search.architecture for search in searches)
    return {name: _columns([(s.d, s.n, s.censored) for s in searches if s.architecture == name]) for name in names}


def _columns(rows: list[tuple[float, float, bool]]) -> tuple[ndarray, ndarray, ndarray]:
    d, n, off = zip(*rows, strict=True)
    return np.array(d, dtype=float), np.array(n, dtype=float), np.array(off, dtype=bool)


def support(decision: Decision, law: str) -> float:
    """Lead in AICc of `law` over the other law and over no growth; negative by the other law's lead over it."""
    lead = decision.difference if law == "exponential" else -decision.difference
    line = decision.exponential if law == "exponential" else decision.polynomial
    return min(lead, decision.constant.aicc - line.aicc)


def check_growth(formula: Formula, bench: Bench, swapped: bool = False) -> Outcome:
    """Least lead, in AICc, of "exponential" for lines and of "polynomial" for subspaces, undecided up to THRESHOLD.

    The quick profile trains nothing. A study in which too few runs reach the target has no lead: undecided.
    """
    study = direct_study(bench.seed, bench.pick(8, 16))
    if bench.profile != "quick":
        study = study | trained_study(bench.profile, bench.seed, bench.out, bench.device)
    leads, lines = [], []
    for name, (d, n, off) in study.items():
        law = "polynomial" if name in SUBSPACES else "exponential"
        try:
            decision = formula(d, n, off)
        except DataError:
            leads.append(0.0)
            lines.append(f"{name}: {off.sum()} of {len(off)} runs never reached the target")
            continue
        leads.append(support(decision, OTHER[law] if swapped else law))
        slope = (decision.polynomial if name in SUBSPACES else decision.exponential).slope
        lines.append(f"{name}: {decision.decision} by {decision.lead:.1f} (slope {slope:.2f}, {off.sum()} censored)")
    return Outcome(
        min(leads),
        resolution=THRESHOLD,
        compared="; ".join(lines) + "; margin is a lead in AICc",
        assumptions=(f"d = {DIMS[0]}..{DIMS[-1]}, unit sphere in R^32, noise .05", "one size for all d"),
    )


add(
    Claim(
        id="D3",
        statement="In the range measured, samples to a fixed held-out target grow exponentially in d for dictionaries "
        "of single directions and polynomially for the subspace.",
        formula="log n = a + b d for lines, log n = a + b log d for the subspace; each ahead by 6 in AICc (D4)",
        assumptions=("ambient D >> d", "as many atoms as the target needs", "runs that miss the target are censored"),
        source="THEORY.md D3; an experiment, not a theorem",
        truths=(
            Truth(
                "lines: exponential; subspaces: polynomial",
                growth_law,
                check_growth,
                side=None,
                dropped={"laws exchanged": lambda bench: check_growth(growth_law, bench, swapped=True)},
            ),
        ),
        quick_may=("undecided",),
    )
)
