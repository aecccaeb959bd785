"""C6 and C7: which penalties give the rank of the feature, and when the Top-s gate finds the active features.

C6 is a statement about one eigenvalue at a time: the best map keeps the directions of energy above lam / 2. C7 is a
statement about norms: an active feature keeps at least ||z_i|| - mu * (the others), an inactive one gets at most
mu * (all of them). Both are sharp, and the checks put them against cases just inside and just outside.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, Value, add, bounded, compare
from proofs_checks.recovery_measures import (
    Gate,
    best_rank,
    failing_ratio,
    random_frames,
    rank_edges,
    spectrum_moment,
    tight_gate,
    worst_gate,
)
from sasa_theory.bounds import gate_margin, gate_ratio, rank_window
from sasa_theory.bounds_groups import Window
from sasa_theory.evaluation.rank_window import planted_spectra, planted_windows, trained_ranks, window_job, window_world
from sasa_theory.training import fit_all
from synthetic.errors import UsageError

#: nu^2 of the trained models' world
NOISE = 0.02

# C6


class Slice:
    """Signal eigenvalues of E[h h^T | active], the other eigenvalues of Sigma_k, the rate, and Sigma_k itself."""

    def __init__(self, rng: np.random.Generator) -> None:
        d, others = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        self.frequency = float(rng.uniform(0.2, 1))
        self.signal = rng.uniform(0.5, 2, d)
        self.noise = self.frequency * rng.uniform(0.1, 0.35, others)
        self.sigma = spectrum_moment(self.frequency * self.signal, self.noise, rng)


@lru_cache(maxsize=64)
def _edges(seed: int, cases: int) -> tuple[tuple[Slice, tuple[float, float]], ...]:
    rng = Bench(seed=seed).rng("C6 slices")
    slices = [Slice(rng) for _ in range(cases)]
    return tuple((one, rank_edges(one.sigma, len(one.signal))) for one in slices)


def check_window_value(formula: Formula, bench: Bench) -> Outcome:
    """The edges against those found by bisection on the rank of the best map."""
    cases = _edges(bench.seed, bench.pick(4, 20, 60))
    ours = [formula(one.signal, float(one.noise.max()), one.frequency) for one, _ in cases]
    return compare(ours, [found for _, found in cases], 1e-3, what="edges of the window against bisection on the rank")


def check_window(formula: Formula, bench: Bench, count: int | None = None) -> Outcome:
    """Ranks of best maps just inside and just outside the window, of single features and of several at once.

    Each world has 1 to 3 features in a group each; the window of all is their intersection. margin: 1e-3 (how near to
    the edges the penalties are) when every rank is as said, minus the share of wrong ones otherwise.
    """
    rng = bench.rng("C6 worlds")
    wrong = tried = 0
    for case in range(count or bench.pick(4, 30, 100)):
        slices = [Slice(rng) for _ in range(1 + case % 3)]
        windows = [formula(one.signal, float(one.noise.max()), one.frequency) for one in slices]
        low, high = max(w[0] for w in windows), min(w[1] for w in windows)
        edges = (low * (1 - 1e-3), low * (1 + 1e-3), math.sqrt(low * high), high * (1 - 1e-3), high * (1 + 1e-3))
        for lam in edges if low < high else (math.sqrt(low * high),):
            all_right = all(best_rank(one.sigma, lam) == len(one.signal) for one in slices)
            wrong += all_right != (low <= lam < high)
            tried += 1
    return Outcome(
        1e-3 if wrong == 0 else -wrong / tried,
        compared=f"{tried - wrong} of {tried} penalties 0.1 % inside or outside a window gave the ranks it says",
        assumptions=("signal eigenvalues above the noise floor", "one group of rank r >= D per feature"),
    )


def _without_noise(signal: object, noise: float = 0.0, frequency: float = 1.0) -> Window:
    return rank_window(signal, 0.0, frequency)  # type: ignore[arg-type]


def _without_rate(signal: object, noise: float = 0.0, frequency: float = 1.0) -> Window:
    return rank_window(signal, noise, 1.0)  # type: ignore[arg-type]


def _without_half(signal: object, noise: float = 0.0, frequency: float = 1.0) -> Window:
    low, high = rank_window(signal, noise, frequency)  # type: ignore[arg-type]
    return Window(low / 2, high / 2)


def _ten_times(signal: object, noise: float = 0.0, frequency: float = 1.0) -> Window:
    low, high = rank_window(signal, noise, frequency)  # type: ignore[arg-type]
    return Window(10 * low, 10 * high)


@lru_cache(maxsize=4)
def _trained(bench: Bench) -> tuple[tuple[int, ...], tuple[float, ...], tuple[tuple[int, ...], ...]]:
    """(dims, penalties, rank of every feature's group at every penalty) of trained models."""
    dims, groups, rank = bench.pick(((3,), 2, 6), ((4, 5, 6), 6, 8))
    world = window_world(dims, bench.pick(12, 24), NOISE, bench.seed)
    lows, highs = zip(*planted_windows(dims, NOISE), strict=True)
    low, high, last = lows[0], min(highs), max(highs)
    # a factor of 2 or so from the edges, where gains are small and training ends in other minima
    penalties = (low / 8, low / 3, math.sqrt(low * high), high / 2, 1.5 * last, 3 * last)
    jobs = [window_job(lam, bench.pick(400, 2000, 8000), bench.seed, groups, rank) for lam in penalties]
    runs = fit_all(world, jobs, out=bench.out, device=bench.device)
    return dims, penalties, tuple(tuple(one.rank for one in trained_ranks(run, world)) for run in runs)


def check_trained_window(formula: Formula, bench: Bench) -> Outcome:
    """Ranks of trained groups at penalties below every feature's window, inside all of them, and above all.

    r < d_i + d_j keeps two features out of one group: orthogonal ones cost the same together (C2), and then the rank is
    that of their sum. margin: 1/5 - share of (feature, penalty) pairs where "rank is d" and "inside the window"
    disagree: training need not reach the minimiser, so one pair in five may.
    """
    dims, penalties, found = _trained(bench)
    rate = 1 / len(dims)
    windows = [formula(spectrum, rate * NOISE, rate) for spectrum in planted_spectra(dims, NOISE)]
    wrong = [
        (rank == d) != (window[0] <= lam < window[1])
        for lam, ranks in zip(penalties, found, strict=True)
        for rank, d, window in zip(ranks, dims, windows, strict=True)
    ]
    listed = "; ".join(
        f"lam {lam:.3g}: {'/'.join(map(str, ranks))}" for lam, ranks in zip(penalties, found, strict=True)
    )
    return Outcome(
        0.2 - float(np.mean(wrong)),
        compared=f"ranks for d = {'/'.join(map(str, dims))}, {sum(wrong)} of {len(wrong)} not as predicted: {listed}",
        assumptions=("one feature a row", "trained with the map penalty on every group, s = 1"),
    )


add(
    Claim(
        id="C6",
        statement="The best map of a group has exactly the rank of its feature if and only if lam is in the window.",
        formula="rank M* = d  iff  nu^2 <= lam/2 < p sigma_d (largest other and smallest signal eigenvalue of Sigma_k)",
        assumptions=(
            "the d signal eigenvalues of Sigma_k lie above its other eigenvalues",
            "group rank r at least the number of eigenvalues above lam/2",
            "map penalty, hard routing",
        ),
        source="C1 eigenvalue by eigenvalue: the gain 1 - lam/(2 sigma_j) is positive iff sigma_j > lam/2",
        values=(Value(rank_window, check_window_value),),
        truths=(
            Truth(
                statement="ranks of best maps at the edges of the window, one and several features",
                bound=rank_window,
                check=check_window,
                side=None,
                dropped={
                    "noise floor left out": lambda bench: check_window(_without_noise, bench),
                    "rate of the feature left out": lambda bench: check_window(_without_rate, bench),
                    "lam in place of lam / 2": lambda bench: check_window(_without_half, bench),
                },
            ),
            Truth(
                statement="ranks of trained groups inside and outside the window",
                bound=rank_window,
                check=check_trained_window,
                side=None,
                dropped={"window ten times higher": lambda bench: check_trained_window(_ten_times, bench)},
            ),
        ),
    )
)


# C7


def _recovers(gate: Gate) -> bool:
    return gate.gap() > 0


@lru_cache(maxsize=8)
def _gates(seed: int, cases: int) -> tuple[Gate, ...]:
    """Adversarial cases with a positive margin: random frames of prescribed coherence, and the tight ones."""
    rng = Bench(seed=seed).rng("C7 gates")
    found: list[Gate] = []
    while len(found) < cases:
        s = int(rng.integers(1, 4))
        count = s + int(rng.integers(1, 4))
        dims = rng.integers(1, 4, count).tolist()
        mu = float(rng.uniform(0.02, 0.9 / (2 * s - 1)))
        try:
            frames = random_frames(dims, sum(dims) + 2, mu, rng)
        except UsageError:  # this coherence is out of reach for these dimensions
            continue
        weakest = float(rng.uniform(min(1.0, 1.02 * gate_ratio(s, mu) + 0.02), 1))
        norms = np.append(weakest, rng.uniform(weakest, 1, s - 1))
        room = gate_margin(norms, mu)
        if room > 0:
            found.append(worst_gate(frames, norms, 0.3 * room * float(rng.integers(0, 2)), rng))
    for s in (1, 2, 3, 5):
        mu = float(rng.uniform(0.2, 0.8)) / (2 * s - 1)
        ratio = min(1.0, gate_ratio(s, mu) + 0.3 * (1 - gate_ratio(s, mu)))
        noise = 0.25 * gate_margin([ratio] + [1.0] * (s - 1), mu)
        found += [tight_gate(s, mu, ratio), tight_gate(s, mu, ratio, noise)]
    return tuple(found)


def check_margin_value(formula: Formula, bench: Bench) -> Outcome:
    """The margin against the gap of the gate run on the vectors that reach it (`tight_gate`)."""
    rng = bench.rng("C7 tight")
    ours, gaps = [], []
    for _ in range(bench.pick(30, 200, 500)):
        s = int(rng.integers(1, 6))
        mu, size = float(rng.uniform(0, 0.95)) / (2 * s - 1), float(rng.uniform(0.1, 10))
        ratio = float(rng.uniform(gate_ratio(s, mu), 1))
        noise = float(rng.uniform(0, 0.4)) * gate_margin([ratio] + [1.0] * (s - 1), mu) * size
        gate = tight_gate(s, mu, ratio, noise, size)
        ours.append(formula(gate.norms, mu, noise))
        gaps.append(gate.gap())
    return compare(ours, gaps, 1e-8, 1e-12, "margin against the gap of the sharp cases")


def check_margin(formula: Formula, bench: Bench) -> Outcome:
    """No gate has a smaller gap than the margin: coded adversaries on random frames, and the sharp cases."""
    gates = _gates(bench.seed, bench.pick(25, 200, 600))
    bounds = [formula(gate.norms, gate.mu, gate.noise_size) for gate in gates]
    gaps = [gate.gap() for gate in gates]
    return bounded(
        bounds,
        gaps,
        error=1e-9 * np.abs(gaps),
        what="margin against the smallest gap of norms",
        assumptions=(
            "tied encoders with orthonormal frames of dimension 1 to 3",
            f"coherence {min(g.mu for g in gates):.2f} to {max(g.mu for g in gates):.2f}, s = 1 to 5",
            "codes turned against the gate; noise in half the cases",
        ),
    )


def check_ratio_value(formula: Formula, bench: Bench) -> Outcome:
    """The ratio against the one at which the gate starts to fail on the sharp example, by bisection."""
    rng = bench.rng("C7 ratio")
    cases = [(s, float(rng.uniform(0.05, 0.98)) / (2 * s - 1)) for s in range(2, bench.pick(8, 12))]
    ours = [formula(s, mu) for s, mu in cases]
    return compare(ours, [failing_ratio(s, mu) for s, mu in cases], 1e-8, what="ratio against bisection")


def check_ratio(formula: Formula, bench: Bench) -> Outcome:
    """The largest ratio at which a gate fails lies below the bound: sharp cases, and random frames with adversaries."""
    rng = bench.rng("C7 failing")
    bounds, failing = [], []
    for s in range(2, 6):
        mu = float(rng.uniform(0.2, 0.95)) / (2 * s - 1)
        bounds.append(formula(s, mu))
        failing.append(failing_ratio(s, mu))
    for _ in range(bench.pick(4, 30, 100)):
        s = int(rng.integers(2, 4))
        dims, mu = rng.integers(1, 3, s + 2).tolist(), float(rng.uniform(0.3, 0.9)) / (2 * s - 1)
        frames = random_frames(dims, sum(dims), mu, rng)
        low, high = 0.0, 1.0
        for _ in range(8):
            middle = (low + high) / 2
            fails = worst_gate(frames, np.array([middle] + [1.0] * (s - 1)), 0.0, rng, 12).gap() <= 0
            low, high = (middle, high) if fails else (low, middle)
        if low > 0:
            bounds.append(formula(s, mu))
            failing.append(low)
    return bounded(
        bounds,
        failing,
        side="above",
        error=1e-8,
        what="ratio against the largest at which Top-s fails",
        assumptions=("no noise", "coherence below 1 / (2 s - 1)"),
    )


def check_published(condition: Formula, bench: Bench) -> Outcome:
    """A condition min/max > condition(s, mu) on sharp cases just above it: Top-s must still be right.

    margin: how far above the condition the cases are (1e-6) when none fails, minus the share that fails otherwise.
    """
    rng = bench.rng("C7 published")
    wrong = tried = 0
    for _ in range(bench.pick(60, 300)):
        s = int(rng.integers(1, 6))
        mu = float(rng.uniform(0.05, 0.98)) / (2 * s - 1)
        ratio = condition(s, mu) * (1 + 1e-6)
        if ratio <= 1:
            wrong += not _recovers(tight_gate(s, mu, ratio))
            tried += 1
    return Outcome(1e-6 if wrong == 0 else -wrong / tried, compared=f"{wrong} of {tried} sharp cases fail")


def published_condition(s: int, mu: float) -> float:
    """The ratio of the paper's code: (2 s - 1) mu."""
    return (2 * s - 1) * mu


def _margin_variant(change: Callable[..., float]) -> Callable[[Bench], Outcome]:
    return lambda bench: check_margin(change, bench)


add(
    Claim(
        id="C7",
        statement="The Top-s gate with tied encoders picks exactly the active features when none is too weak.",
        formula="(1+mu) min ||z_i|| > 2 mu sum ||z_l|| + 2 max ||V_i^T e||; implied by min/max > 2(s-1) mu/(1-mu)",
        assumptions=(
            "tied encoders E_i = V_i^T with orthonormal frames",
            "mu = max_{i != j} ||V_i^T V_j||_2",
            "s the number of active features",
        ),
        source="triangle inequality on ||V_i^T h||; sharp for d_i = 1, s >= 2, mu < 1/(2s-1)",
        values=(Value(gate_margin, check_margin_value), Value(gate_ratio, check_ratio_value)),
        truths=(
            Truth(
                statement="the gap of norms is at least the margin",
                bound=gate_margin,
                check=check_margin,
                dropped={
                    "coherence counted once": _margin_variant(
                        lambda norms, mu, noise: min(norms) - mu * sum(norms) - 2 * noise
                    ),
                    "noise left out": _margin_variant(lambda norms, mu, noise: gate_margin(norms, mu)),
                    "noise counted once": _margin_variant(lambda norms, mu, noise: gate_margin(norms, mu, noise / 2)),
                },
            ),
            Truth(
                statement="no gate fails above the ratio",
                bound=gate_ratio,
                check=check_ratio,
                side="above",
                dropped={
                    "without 1 - mu": lambda bench: check_ratio(lambda s, mu: 2 * (s - 1) * mu, bench),
                    "one side of the interference": lambda bench: check_ratio(
                        lambda s, mu: gate_ratio(s, mu) / 2, bench
                    ),
                },
            ),
            Truth(
                statement="the condition of the published code, min/max > (2s-1) mu, is enough",
                bound=published_condition,
                check=check_published,
                side=None,
                dropped={"(2s-2) mu": lambda bench: check_published(lambda s, mu: (2 * s - 2) * mu, bench)},
            ),
        ),
    )
)
