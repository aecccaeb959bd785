"""Part D: slices found from samples, perturbations, and the frame's verdicts on D1 to D4."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proofs_checks import Bench, verify
from proofs_checks.core import CLAIMS
from proofs_checks.samples import check_exact_samples, half_bound
from proofs_checks.samples_growth import by_r_squared, by_rule, check_growth, error_rates, planted, support, tobit
from proofs_checks.samples_measures import (
    crossing,
    crossing_by_bisection,
    general_rows,
    interpolated,
    perturbation_ratio,
    sampled_moment,
    samples_until_exact,
    sine_error,
    sine_errors,
    sizes_from,
    slice_samples,
    slice_spectrum,
    swapping_perturbation,
    worst_perturbation,
)
from proofs_checks.samples_trained import FixedRows
from sasa_theory.bounds import moment_error, subspace_error, subspace_error_bound
from sasa_theory.statistics import growth_law
from synthetic.errors import UsageError
from synthetic.source import Dataset, Source

seeds = st.integers(0, 2**32 - 1)
slices = st.integers(1, 6).flatmap(lambda d: st.tuples(st.just(d), st.integers(d + 1, 14)))


@pytest.mark.parametrize("name", ["D1", "D2", "D3", "D4"])
def test_the_claim_stands_as_stated_in_quick(name):
    verdict = verify(CLAIMS[name])
    assert verdict.as_stated, [(row.name, row.outcome.compared, row.twins) for row in verdict.rows]


@given(slices, st.sampled_from(["gaussian", "cauchy", "uniform"]), seeds)
def test_d_rows_in_general_position_span_the_slice_and_fewer_do_not(sizes, law, seed):
    d, ambient = sizes
    rows = general_rows(d + 3, d, ambient, law, np.random.default_rng(seed))
    assert samples_until_exact(d, rows) == d
    assert samples_until_exact(d, rows[: d - 1] if d > 1 else np.zeros((0, ambient))) is None


@given(slices, seeds, st.integers(1, 50))
def test_the_error_of_a_sampled_slice_never_exceeds_its_bound(sizes, seed, per_dim):
    d, ambient = sizes
    rng = np.random.default_rng(seed)
    spectrum = np.sort(rng.uniform(0, 1, ambient))[::-1].copy()
    spectrum[:d] += rng.uniform(0.01, 1)
    delta = sampled_moment(ambient * per_dim, spectrum, rng) - np.diag(spectrum)
    bound, sine = perturbation_ratio(subspace_error_bound, delta, spectrum, d)
    assert sine <= bound * (1 + 1e-9)


@given(st.integers(1, 5), st.integers(0, 4), st.floats(0.05, 3), st.floats(0, 1))
def test_the_swap_uses_the_whole_bound_and_breaks_half_of_it(d, more, gap, noise):
    ambient = 2 * d + more
    spectrum = slice_spectrum(ambient, d, noise, gap)
    delta = swapping_perturbation(ambient, d, gap, by=1e-6)
    bound, sine = perturbation_ratio(subspace_error_bound, delta, spectrum, d)
    assert sine == pytest.approx(math.sqrt(d), rel=1e-6) and bound == pytest.approx(sine, rel=1e-5)
    assert sine > perturbation_ratio(half_bound, delta, spectrum, d)[0]


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_hill_climbing_comes_near_the_bound_and_not_past_it(seed):
    """One climb in 60 stopped at half the bound; the best of four comes nearer."""
    spectrum, rng = slice_spectrum(3, 1, 0.2), np.random.default_rng(seed)
    climbs = [worst_perturbation(subspace_error_bound, spectrum, 1, rng, 300) for _ in range(4)]
    pairs = [perturbation_ratio(subspace_error_bound, delta, spectrum, 1) for delta in climbs]
    assert all(sine <= bound for bound, sine in pairs)
    assert max(sine / bound for bound, sine in pairs) > 0.6


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(1, 4), st.floats(0.1, 0.6), st.floats(0.5, 2))
def test_the_law_of_the_error_from_rows_and_from_wishart(seed, d, noise, signal):
    """Bartlett's draw and rows drawn one by one follow the same leading-order law."""
    ambient, n, trials = 12, 4000, 40
    rng = np.random.default_rng(seed)
    law = subspace_error(n, ambient, d, noise, signal)
    spread = math.sqrt(2 / (d * (ambient - d) * trials))
    drawn = sine_errors(n, ambient, d, noise, signal, trials, rng).mean()
    scale = np.sqrt(slice_spectrum(ambient, d, noise, signal))
    rows = [rng.standard_normal((n, ambient)) * scale for _ in range(trials)]
    direct = np.mean([sine_error(x.T @ x / n, d) ** 2 for x in rows])
    for found in (drawn, direct):
        assert found == pytest.approx(law, rel=6 * spread + 0.05)


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(2, 10), st.integers(1, 30), st.floats(0, 1))
def test_the_tail_bound_holds_in_samples(seed, ambient, per_dim, noise):
    n, delta, rng = ambient * per_dim, 0.001, np.random.default_rng(seed)
    spectrum = slice_spectrum(ambient, 1, noise)
    bound = moment_error(n, ambient, noise, delta=delta)
    errors = [np.linalg.norm(sampled_moment(n, spectrum, rng) - np.diag(spectrum), 2) for _ in range(30)]
    assert sum(e > bound for e in errors) <= 4  # five of 30 at 0.1 % has probability 1e-10


@given(st.floats(0.3, 3), st.floats(0.1, 10), st.floats(0.01, 0.5))
def test_a_power_law_error_crosses_its_target_where_it_should(power, scale, target):
    n, censored, seen = crossing(lambda size: scale * size**-power, target, sizes_from(1, 10**9, 2))
    exact = (scale / target) ** (1 / power)
    if not censored and len(seen) > 1:
        assert n == pytest.approx(exact, rel=1e-6)
        assert n == interpolated(seen, target)
    assert censored == (exact > 2**29)


@given(st.integers(1, 40), st.integers(1, 30))
def test_bisection_finds_the_crossing_of_the_full_search_with_fewer_tries(reached, count):
    sizes = list(range(3, 3 + count))

    def error(n):
        return 2.0 / n if n < reached else 0.5 / n

    full, quick = (search(error, 0.5 / reached, sizes) for search in (crossing, crossing_by_bisection))
    assert full[:2] == quick[:2]
    assert len(quick[2]) <= count.bit_length() and set(quick[2]) <= {(n, error(n)) for n in sizes}


@given(st.integers(1, 8), seeds)
def test_a_clean_subspace_needs_no_more_than_d_samples(d, seed):
    n, censored = slice_samples(d, 24, 0.0, 0.25, 20, np.random.default_rng(seed))
    assert not censored and n <= d + 1e-9


def test_samples_that_never_reach_the_target_are_censored():
    assert crossing(lambda n: 1.0, 0.5, [2, 4, 8])[:2] == (8.0, True)


@settings(max_examples=5, deadline=None)
@given(seeds, st.sampled_from(["exponential", "polynomial"]))
def test_support_changes_sign_with_the_law(seed, law):
    d = np.repeat([2.0, 3, 4, 5, 6, 7], 3)
    decision = growth_law(d, planted(law, d, 0.05, np.random.default_rng(seed)))
    other = "polynomial" if law == "exponential" else "exponential"
    assert support(decision, law) > 0 > support(decision, other)


def test_eyeballing_errs_where_the_rule_does_not():
    rng = np.random.default_rng(0)
    assert max(error_rates(by_rule, 20, rng).values()) < max(error_rates(by_r_squared, 20, rng).values())


def test_runs_with_their_dimensions_mixed_up_decide_nothing():
    rates = error_rates(by_rule, 20, np.random.default_rng(1), mix=True)
    assert max(rates.values()) <= 0.25  # at 5 %, six or more of 20 has probability 3e-4


def test_the_oracle_of_censored_regression_agrees_with_newton():
    rng = np.random.default_rng(2)
    d = np.repeat([2.0, 4, 6, 8], 4)
    n = planted("exponential", d, 0.5, rng)
    limit = np.sort(n)[-5]
    slope, _ = tobit(d, np.log(np.minimum(n, limit)), n > limit)
    assert growth_law(d, np.minimum(n, limit), n > limit).exponential.slope == pytest.approx(slope, rel=1e-3)


def test_checks_refuse_false_variants():
    bench = Bench()
    assert check_exact_samples(lambda d: d + 1, bench).state == "refuted"
    assert check_growth(growth_law, bench, swapped=True).state == "refuted"


def test_fixed_rows_are_nested_and_repeat():
    few, many = (FixedRows(n, 3, 10, 0.1, seed=4, largest=50) for n in (8, 50))
    assert isinstance(few, Dataset) and isinstance(few.batches(4), Source)
    assert (few.rows() == many.rows()[:8]).all() and few.fingerprint() != many.fingerprint()
    stream = few.batches(16, stream="train:0")
    next(stream)
    state = stream.state_dict()
    batch = next(stream)
    again = few.batches(16, stream="train:0")
    again.load_state_dict(state)
    assert (next(again) == batch).all()
    with pytest.raises(UsageError, match="not of"):
        many.batches(16, stream="train:0").load_state_dict(state)
