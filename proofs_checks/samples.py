"""D1 and D2: how many samples one known slice needs. Importing this module files D3 and D4 (`samples_growth`) too.

Both are theorems: d clean samples span the slice, and with noise its error follows from how far the sample second
moment is off.
"""

import math
from functools import lru_cache

import numpy as np
from numpy import ndarray

from proofs_checks import samples_growth  # noqa: F401  it files D3 and D4
from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, Value, add, bounded, compare
from proofs_checks.samples_measures import (
    exact_samples,
    general_rows,
    normal_deviation,
    perturbation_ratio,
    sampled_moment,
    samples_to_error,
    samples_until_exact,
    sine_errors,
    slice_spectrum,
    swapping_perturbation,
    worst_perturbation,
)
from sasa_theory.bounds import moment_error, subspace_error, subspace_error_bound
from sasa_theory.statistics import power_law

# D1


def check_exact_samples(formula: Formula, bench: Bench, repeat: bool = False) -> Outcome:
    """Smallest n whose rows span the slice, for Gaussian, heavy-tailed and sign rows; `repeat` takes each row twice."""
    rng = bench.rng("D1")
    ours, found = [], []
    for d in (1, 2, 3, 5, 8, 13, bench.pick(20, 60)):
        for law in ("gaussian", "cauchy", "uniform"):
            rows = general_rows(2 * d + 2, d, 2 * d + 3, law, rng)
            n = samples_until_exact(d, np.repeat(rows, 2, axis=0) if repeat else rows)
            ours.append(formula(d))
            found.append(math.inf if n is None else n)
    return compare(ours, found, 0, 0.5, "samples", assumptions=("no noise", "general position: laws with a density"))


add(
    Claim(
        id="D1",
        statement="Without noise, d samples in general position determine the slice exactly, and d - 1 do not.",
        formula="min{n : span(h_1..h_n) = V} = d",
        assumptions=("no noise", "samples in general position"),
        source="THEORY.md D1; linear algebra",
        values=(Value(exact_samples, check_exact_samples),),
        truths=(
            Truth(
                "the span of the samples is V from n = d on",
                exact_samples,
                check_exact_samples,
                side=None,
                dropped={
                    "d - 1 samples": lambda bench: check_exact_samples(lambda d: d - 1, bench),
                    "every sample twice (not in general position)": lambda bench: check_exact_samples(
                        exact_samples, bench, repeat=True
                    ),
                },
            ),
        ),
    )
)

# D2


@lru_cache(maxsize=8)
def _sines(seed: int, trials: int) -> tuple[tuple[tuple[int, int, int, float, float], float, float], ...]:
    """((n, D, d, sigma, v), mean of ||sin Theta||_F^2, its standard error)."""
    rng = Bench(seed=seed).rng("D2 value")
    found = []
    for case in ((40_000, 64, 8, 0.3, 1.0), (40_000, 48, 3, 0.5, 1.0), (40_000, 40, 16, 0.2, 0.25)):
        errors = sine_errors(*case, trials, rng)
        found.append((case, float(errors.mean()), float(errors.std(ddof=1)) / math.sqrt(trials)))
    return tuple(found)


def check_subspace_error(formula: Formula, bench: Bench) -> Outcome:
    """Leading order against Monte Carlo at n = 40,000, where the next order is below the tolerance of 1 %."""
    cases = _sines(bench.seed, bench.pick(250, 2000, 10_000))
    what = f"E||sin Theta||_F^2 against {bench.pick(250, 2000, 10_000)} samples"
    return compare(
        [formula(*case) for case, *_ in cases], [mean for _, mean, _ in cases], 0.01, [5 * e for *_, e in cases], what
    )


def check_error_bound_value(formula: Formula, bench: Bench) -> Outcome:
    """Against ||sin Theta||_F = sqrt(d) at the perturbation that swaps V out, where the bound is an equality.

    That fixes the branch of the operator norm; the branch of the Frobenius norm is never an equality, so it is compared
    with the same product formed from singular values of random perturbations (a second coding, not a second proof).
    """
    rng = bench.rng("D2 bound value")
    ours, exact = [], []
    for d, ambient, gap in ((1, 4, 0.5), (3, 8, 2.0), (5, 10, 0.1)):
        spectrum = slice_spectrum(ambient, d, 0.3, gap)
        bound, sine = perturbation_ratio(formula, swapping_perturbation(ambient, d, gap), spectrum, d)
        ours.append(bound)
        exact.append(sine)
    for d, ambient in ((6, 9), (4, 30)):
        direction = rng.standard_normal((ambient, 2))
        sigma = np.linalg.svd(direction @ direction.T, compute_uv=False)
        ours.append(formula(d, sigma[0], float(np.linalg.norm(direction.T @ direction)), 0.7))
        exact.append(2 / 0.7 * min(math.sqrt(d * float(sigma[0]) ** 2), math.sqrt(float(np.square(sigma).sum()))))
    return compare(ours, exact, 1e-6, what="bound on ||sin Theta||_F where it is sharp")


@lru_cache(maxsize=8)
def _perturbed(seed: int, trials: int, steps: int) -> tuple[tuple[ndarray, ndarray, int], ...]:
    """(Delta, spectrum, d): sampling errors of small and large samples, random, adversarial and climbed ones."""
    rng = Bench(seed=seed).rng("D2 truth")
    found = []
    for _ in range(trials):
        ambient = int(rng.integers(2, 12))
        d = int(rng.integers(1, ambient))
        spectrum = np.sort(rng.uniform(0, 1, ambient))[::-1]
        spectrum[:d] += rng.uniform(0.05, 1)
        n = int(rng.integers(ambient, 60 * ambient))
        found.append((sampled_moment(n, spectrum, rng) - np.diag(spectrum), spectrum, d))
    for ambient, d in ((2, 1), (6, 3), (9, 4)):
        spectrum = slice_spectrum(ambient, d, 0.2)
        found.append((swapping_perturbation(ambient, d, 1.0), spectrum, d))
    for ambient, d in ((2, 1), (3, 1), (4, 2)):
        spectrum = slice_spectrum(ambient, d, 0.2)
        found.append((worst_perturbation(subspace_error_bound, spectrum, d, rng, steps), spectrum, d))
    return tuple(found)


def check_error_bound(formula: Formula, bench: Bench) -> Outcome:
    """Every trial: sampled second moments, the swap, and what hill climbing over perturbations finds."""
    cases = _perturbed(bench.seed, bench.pick(300, 3000), bench.pick(600, 4000))
    pairs = [perturbation_ratio(formula, delta, spectrum, d) for delta, spectrum, d in cases]
    climbed = max(sine / bound for bound, sine in pairs[-3:])
    what = f"||sin Theta||_F in every trial (hill climbing alone used {climbed:.3f} of the bound)"
    return bounded([b for b, _ in pairs], [s for _, s in pairs], "above", 1e-8, what, ("gap > 0", "any perturbation"))


def half_bound(d: int, operator_error: float, frobenius_error: float, gap: float) -> float:
    """The false variant with 1 in place of 2."""
    return subspace_error_bound(d, operator_error, frobenius_error, gap) / 2


def no_dimension(d: int, operator_error: float, frobenius_error: float, gap: float) -> float:
    """The false variant without sqrt(d)."""
    return 2 * operator_error / gap


def check_moment_value(formula: Formula, bench: Bench) -> Outcome:
    """||Sigma|| times the largest |s^2 - 1| over singular values s of G / sqrt(n) allowed by their tail bound.

    s lies within sqrt(D/n) + t of 1 except with probability 2 exp(-n t^2 / 2) (Davidson and Szarek 2001); t is found
    from that by root finding, ||Sigma|| from the spectrum: the same theorem, computed another way. Whether the bound
    is true is the truth's question, with Monte Carlo.
    """
    ours, exact = [], []
    for n, ambient, noise, signal, delta in (
        (200, 64, 0.3, 1.0, 0.01),
        (5000, 20, 0.1, 0.3, 0.2),
        (50, 80, 1.0, 2.0, 1e-6),
    ):
        eta = math.sqrt(ambient / n) + normal_deviation(delta, n)
        top = float(slice_spectrum(ambient, 1, noise, signal).max())
        ours.append(formula(n, ambient, noise, signal, delta))
        exact.append(top * max(abs(s * s - 1) for s in (1 + eta, max(0.0, 1 - eta))))
    return compare(ours, exact, 1e-9, what="bound on ||Delta||_op from singular values")


MOMENT_CASES = ((30, 8, 4, 0.3, 1.0, 0.05), (200, 16, 16, 0.5, 1.0, 0.05), (1000, 24, 2, 0.2, 0.1, 0.05))


@lru_cache(maxsize=8)
def _moment_errors(seed: int, trials: int) -> tuple[ndarray, ...]:
    rng = Bench(seed=seed).rng("D2 moments")
    found = []
    for n, ambient, d, noise, signal, _ in MOMENT_CASES:
        spectrum = slice_spectrum(ambient, d, noise, signal)
        errors = [np.linalg.norm(sampled_moment(n, spectrum, rng) - np.diag(spectrum), 2) for _ in range(trials)]
        found.append(np.sort(errors))
    return tuple(found)


def check_moment_error(formula: Formula, bench: Bench) -> Outcome:
    """The (1 - delta)-quantile of ||Delta||_op, upper end of its 99.9 % binomial interval, against the bound."""
    ours, found = [], []
    trials = bench.pick(600, 6000)
    for case, errors in zip(MOMENT_CASES, _moment_errors(bench.seed, trials), strict=True):
        n, ambient, _, noise, signal, delta = case
        place = math.ceil(trials * (1 - delta) + 3.1 * math.sqrt(trials * delta * (1 - delta)))
        ours.append(formula(n, ambient, noise, signal, delta))
        found.append(float(errors[min(place, trials - 1)]))
    return bounded(
        ours, found, "above", what=f"quantile of ||Delta||_op over {trials} samples", assumptions=("Gaussian",)
    )


DIMS = (1, 2, 4, 8, 16)


@lru_cache(maxsize=8)
def _sample_law(seed: int, trials: int, energy: str) -> tuple[float, ...]:
    rng = Bench(seed=seed).rng("D2 growth")
    return tuple(samples_to_error(0.05, 96, d, 0.3, 1.0 if energy == "per_dim" else 1 / d, trials, rng) for d in DIMS)


def check_linear(formula: Formula, bench: Bench, energy: str = "per_dim") -> Outcome:
    """Exponent of n(||sin Theta||_F^2 = .05) in d; (D - d) takes .06 off it at D = 96, so 1 is granted .15."""
    samples = _sample_law(bench.seed, bench.pick(12, 100), energy)
    exponent = formula(np.array(DIMS), np.array(samples)).slope
    line = f"exponent {exponent:.3f} of the samples needed at d = {', '.join(map(str, DIMS))}, energy {energy}"
    return Outcome(0.15 - abs(exponent - 1), compared=line, assumptions=("fixed ambient D >> d", f"energy {energy}"))


add(
    Claim(
        id="D2",
        statement="The error of a noisy slice found from n samples is d (D - d) sigma^2 (v + sigma^2) / (n v^2) to "
        "leading order, and the error of the second moment bounds it in every trial: n(eps) is linear in d at fixed v.",
        formula="||sin Theta||_F <= 2 min(sqrt(d) ||Delta||_op, ||Delta||_F) / gap; P(||Delta||_op <= (v + sigma^2)"
        "(2 eta + eta^2)) >= 1 - delta",
        assumptions=("one known slice", "Gaussian for the law and the tail bound", "fixed variance v per direction"),
        source="THEORY.md D2; Yu, Wang and Samworth 2015; Davidson and Szarek 2001",
        values=(
            Value(subspace_error, check_subspace_error),
            Value(subspace_error_bound, check_error_bound_value),
            Value(moment_error, check_moment_value),
        ),
        truths=(
            Truth(
                "the deterministic bound holds in every trial",
                subspace_error_bound,
                check_error_bound,
                side="above",
                dropped={
                    "half the bound": lambda bench: check_error_bound(half_bound, bench),
                    "without sqrt(d)": lambda bench: check_error_bound(no_dimension, bench),
                },
            ),
            Truth("the tail bound holds with probability 1 - delta", moment_error, check_moment_error, side="above"),
            Truth(
                "samples to a fixed error grow like d at fixed variance per direction",
                power_law,
                check_linear,
                side=None,
                dropped={
                    "fixed total energy, v = 1/d": lambda bench: check_linear(power_law, bench, energy="total"),
                },
            ),
        ),
    )
)
