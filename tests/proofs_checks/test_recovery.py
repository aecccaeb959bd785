"""C6 and C7: the measuring functions over spectra, frames, codes and noise; the claims with their twins."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proofs_checks import CLAIMS, Bench, recovery, verify
from proofs_checks.core import scaled
from proofs_checks.recovery_measures import (
    Gate,
    best_map,
    best_rank,
    failing_ratio,
    random_frames,
    rank_edges,
    spectrum_moment,
    tight_gate,
    worst_gate,
)
from sasa_theory.bounds import gate_margin, gate_ratio, rank_window, slice_map
from synthetic.errors import UsageError

energies = st.lists(st.floats(0.1, 2), min_size=1, max_size=4)
seeds = st.integers(0, 2**32 - 1)
coherences = st.floats(0, 0.95)


@given(energies, st.floats(0.01, 6), seeds)
@settings(max_examples=25, deadline=None)
def test_descent_finds_the_closed_form(spectrum: list[float], lam: float, seed: int) -> None:
    sigma = spectrum_moment(np.array(spectrum), np.array([0.1]), np.random.default_rng(seed))
    assert np.allclose(best_map(sigma, lam), slice_map(sigma, lam), atol=1e-8)


@given(energies, st.lists(st.floats(0.2, 0.9), min_size=1, max_size=3), st.floats(0.1, 1), seeds)
@settings(max_examples=5, deadline=None)
def test_rank_changes_at_the_edges_of_the_window(
    signal: list[float], noise: list[float], frequency: float, seed: int
) -> None:
    spectrum = np.array(signal)
    rest = np.array(noise) * frequency * spectrum.min()
    sigma = spectrum_moment(frequency * spectrum, rest, np.random.default_rng(seed))
    window = rank_window(signal, float(rest.max()), frequency)
    assert np.allclose(rank_edges(sigma, len(signal), 1e-3), window, rtol=2e-3)


@given(energies, st.floats(0.3, 0.9), seeds)
@settings(max_examples=15, deadline=None)
def test_rank_inside_and_outside_the_window(signal: list[float], share: float, seed: int) -> None:
    sigma = spectrum_moment(np.array(signal), np.array([share * min(signal)]), np.random.default_rng(seed))
    low, high = rank_window(signal, share * min(signal))
    assert best_rank(sigma, math.sqrt(low * high)) == len(signal)
    assert best_rank(sigma, 0.99 * low) == len(signal) + 1
    assert best_rank(sigma, 1.01 * high) < len(signal)


def test_descent_that_cannot_settle_says_so() -> None:
    with pytest.raises(UsageError, match="did not settle"):
        best_map(np.diag([1.0, 0.1]), 0.01, steps=3)


@st.composite
def gates(draw: st.DrawFn) -> Gate:
    """Codes turned against the gate on random frames: any dimensions, coherence, norms and noise."""
    s = draw(st.integers(1, 3))
    dims = draw(st.lists(st.integers(1, 3), min_size=s + 1, max_size=s + 3))
    rng = np.random.default_rng(draw(seeds))
    try:
        frames = random_frames(dims, sum(dims) + 1, draw(st.floats(0.01, 0.9)), rng)
    except UsageError:
        assume(False)
    norms = np.array(draw(st.lists(st.floats(0, 3), min_size=s, max_size=s)))
    return worst_gate(frames, norms, draw(st.sampled_from([0.0, 0.1, 1.0])), rng, steps=8)


@given(gates())
@settings(max_examples=40, deadline=None)
def test_no_gate_falls_below_the_margin(gate: Gate) -> None:
    assert gate.gap() >= gate_margin(gate.norms, gate.mu, gate.noise_size) - 1e-9


@given(gates())
@settings(max_examples=40, deadline=None)
def test_a_positive_margin_means_that_top_s_is_right(gate: Gate) -> None:
    picked = set(np.argsort(-gate.scores())[: gate.s])
    if gate_margin(gate.norms, gate.mu, gate.noise_size) > 1e-9:
        assert picked == set(range(gate.s))


@given(st.integers(1, 6), coherences, st.floats(0, 1), st.floats(0, 0.3), st.floats(0.1, 10))
def test_the_tight_case_is_what_it_says(s: int, share: float, ratio: float, noise: float, strongest: float) -> None:
    mu = share / (2 * s - 1)
    gate = tight_gate(s, mu, ratio, noise, strongest)
    vectors = np.concatenate(gate.frames)
    gram = vectors @ vectors.T
    assert np.allclose(np.diag(gram), 1)
    assert np.allclose(np.abs(gram[~np.eye(s + 1, dtype=bool)]), mu)
    assert math.isclose(gate.noise_size, noise, abs_tol=1e-9)
    assert np.allclose(gate.norms, strongest * np.array([ratio] + [1.0] * (s - 1)))


@given(st.integers(2, 6), st.floats(0.01, 0.99), st.floats(1e-6, 0.01))
def test_the_tight_case_fails_just_below_the_ratio_and_not_above(s: int, share: float, step: float) -> None:
    mu = share / (2 * s - 1)
    ratio = gate_ratio(s, mu)
    assert tight_gate(s, mu, ratio * (1 + step)).gap() > 0
    assert tight_gate(s, mu, ratio * (1 - step)).gap() < 0
    assert math.isclose(failing_ratio(s, mu), ratio, abs_tol=1e-8)


def test_one_active_feature_never_fails_below_full_coherence() -> None:
    assert failing_ratio(1, 0.9) == 0.0


def test_vectors_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UsageError, match="where such vectors exist"):
        tight_gate(2, 0.5, 1.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_window_stands_and_its_variants_fall(seed: int) -> None:
    bench = Bench(seed=seed)
    assert recovery.check_window(rank_window, bench, 2).state == "holds"
    for factor in (0.95, 1.05):
        assert recovery.check_window(scaled(rank_window, factor), bench, 2).state == "refuted"


@pytest.mark.parametrize("seed", [0, 7])
def test_the_gate_claim_holds_and_its_twins_fall(seed: int) -> None:
    verdict = verify(CLAIMS["C7"], seed=seed)
    assert verdict.as_stated, verdict.rows


@pytest.mark.slow
def test_the_window_claim_holds_in_trained_models(tmp_path) -> None:  # type: ignore[no-untyped-def]
    verdict = verify(CLAIMS["C6"], out=tmp_path)
    assert verdict.as_stated, verdict.rows
