"""The frame of a claim: verdicts follow from checks, and a check without power is noticed."""

import json
import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proofs_checks import Bench, Claim, Outcome, Truth, Value, bounded, compare, scaled, verify
from synthetic.errors import LabError, UsageError


class Pair(NamedTuple):
    low: float
    high: float


@given(st.integers(1, 10**40), st.sampled_from([0.95, 1.05]))
def test_a_scaled_count_moves_by_five_percent_and_at_least_one(value, factor):
    moved = scaled(lambda: value, factor)()
    assert isinstance(moved, int) and moved != value
    assert (moved > value) == (factor > 1)
    assert abs(moved - value) <= max(1, value // 20 + 1)


def test_scaled_keeps_the_kind_of_answer():
    def pair() -> Pair:
        return Pair(1.0, 2.0)

    assert scaled(pair, 2.0)() == Pair(2.0, 4.0)
    assert np.allclose(scaled(lambda: np.eye(2), 0.5)(), 0.5 * np.eye(2))
    with pytest.raises(TypeError, match="yes or no"):
        scaled(lambda: True, 1.05)()


@given(st.floats(0.1, 10), st.floats(-0.2, 0.2))
def test_compare_is_positive_exactly_within_its_tolerance(reference, away):
    outcome = compare(reference * (1 + away), reference, 0.1)
    if abs(abs(away) - 0.1) > 1e-9:
        assert (outcome.state == "holds") == (abs(away) < 0.1)


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 1))
def test_bounded_grants_the_error_and_no_more(bound, best, error):
    below = bounded(bound, best, "below", error)
    above = bounded(bound, best, "above", error)
    assert math.isclose(below.margin, (best + error - bound) / best, abs_tol=1e-12)
    assert math.isclose(above.margin, (bound + error - best) / best, abs_tol=1e-12)
    assert below.tightness == pytest.approx(bound / best) and above.tightness == pytest.approx(best / bound)


def test_nan_never_holds_and_nothing_is_no_comparison():
    assert compare(math.nan, 1.0, 0.1).state == "refuted"
    assert bounded([1.0, math.nan], [2.0, 2.0]).state == "undecided"
    with pytest.raises(LabError, match="nothing to compare"):
        compare([], [], 0.1)
    with pytest.raises(LabError, match="not finite"):
        bounded(1.0, math.inf)


def claim(**changes):
    base = {
        "id": "T1",
        "statement": "two is two",
        "formula": "2 = 2",
        "assumptions": (),
        "source": "this test",
        "values": (Value(two, lambda formula, bench: compare(formula(), 2.0, 1e-6)),),
    }
    return Claim(**{**base, **changes})


def two() -> float:
    return 2.0


def below_three(formula, bench):
    return bounded(formula(), 3.0)


def test_a_value_check_refutes_its_twins():
    verdict = verify(claim())
    assert (verdict.verdict, verdict.twin_refuted, verdict.as_stated) == ("holds", True, True)
    assert set(verdict.rows[0].twins.values()) == {"refuted"}


def test_a_check_that_accepts_its_twin_has_no_power():
    loose = claim(values=(Value(two, lambda formula, bench: compare(formula(), 2.0, 0.2)),))
    verdict = verify(loose)
    assert verdict.verdict == "holds" and not verdict.twin_refuted and not verdict.as_stated


def test_a_bound_is_moved_just_past_its_slack():
    verdict = verify(claim(truths=(Truth("two is below three", two, below_three),)))
    assert verdict.as_stated and verdict.tightness == pytest.approx(2 / 3)
    assert verdict.rows[1].twins == {"bound times 1.58": "refuted"}


def test_a_truth_without_any_twin_has_no_power():
    verdict = verify(claim(truths=(Truth("two is below three", two, below_three, side=None),)))
    assert verdict.verdict == "holds" and not verdict.twin_refuted


def test_nothing_follows_from_a_wrong_formula():
    wrong = claim(
        expected="refuted",
        values=(Value(two, lambda formula, bench: compare(formula(), 3.0, 1e-6)),),
        truths=(Truth("two is above three", two, lambda f, bench: bounded(f(), 3.0, "above")),),
    )
    assert verify(wrong).verdict == "undecided"


def test_only_the_quick_profile_may_be_undecided():
    unsure = claim(
        values=(),
        truths=(
            Truth(
                "unsure",
                two,
                lambda f, bench: Outcome(0.1, resolution=0.2),
                side=None,
                dropped={"false": lambda bench: Outcome(-1.0)},
            ),
        ),
        quick_may=("undecided",),
    )
    assert verify(unsure, "quick").as_stated
    assert not verify(unsure, "standard").as_stated


def test_a_claim_needs_a_check_and_a_known_profile():
    with pytest.raises(UsageError, match="no check"):
        verify(claim(values=()))
    with pytest.raises(UsageError, match="unknown profile 'fast'"):
        verify(claim(), "fast")


def test_twins_meet_the_opponents_of_the_original():
    assert Bench(seed=3).rng("a").random() == Bench(seed=3).rng("a").random()
    assert Bench(seed=3).rng("a").random() != Bench(seed=3).rng("b").random()


def test_a_verdict_is_json():
    row = verify(claim()).to_json()
    json.dumps(row, allow_nan=False)
    keys = {"id", "statement", "expected", "verdict", "margin", "tightness", "twin_refuted", "assumptions", "seed"}
    assert keys | {"seconds"} <= set(row)
