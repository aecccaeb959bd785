"""C4: routed slices, the family, gates that realise it and the search, over dimensions, angles, penalties, routings."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proofs_checks import CLAIMS, verify
from proofs_checks.gate_search import _best_maps, cone_law, free_gates, sphere_law, tied_gates
from proofs_checks.soft_routing import gate_rows
from proofs_checks.soft_routing_measures import (
    commuting_slice,
    gate_routing,
    model_cost,
    random_slice,
    realise,
    simplex_maps,
    simplex_slice,
)
from sasa_theory.bounds import simplex_costs, slice_value, soft_routing_floor
from sasa_theory.solvers import routed
from synthetic.errors import UsageError

dimensions = st.integers(2, 6)
angles = st.floats(0.02, 1.4)
shares = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32 - 1)


@given(dimensions, angles)
def test_the_family_is_a_simplex_around_its_axis(d: int, angle: float) -> None:
    tokens = simplex_slice(d, angle).tokens
    inner = tokens @ tokens.T
    assert np.allclose(np.diag(inner), 1)
    assert np.allclose(inner[~np.eye(d, dtype=bool)], math.cos(angle) ** 2 - math.sin(angle) ** 2 / (d - 1))


@given(dimensions, angles, shares)
def test_costs_of_the_family(d: int, angle: float, share: float) -> None:
    lam = share * math.sin(2 * angle)
    slice_, costs = simplex_slice(d, angle), simplex_costs(d, angle, lam)
    assert math.isclose(slice_.cost(simplex_maps(d, angle, lam), lam), costs.shared, rel_tol=1e-9)
    assert math.isclose(slice_.single_floor(lam), costs.single, rel_tol=1e-9)


@given(st.integers(2, 4), angles, shares)
@settings(max_examples=25, deadline=None)
def test_the_familys_maps_are_no_better_than_the_optimum(d: int, angle: float, share: float) -> None:
    lam = share * math.sin(2 * angle)
    assert simplex_costs(d, angle, lam).shared >= simplex_slice(d, angle).best(lam).dual - 1e-12


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.floats(0.01, 3), seeds)
@settings(max_examples=40, deadline=None)
def test_commuting_patterns_do_not_beat_one_group(d: int, groups: int, patterns: int, lam: float, seed: int) -> None:
    slice_ = commuting_slice(d, groups, patterns, np.random.default_rng(seed))
    best = slice_.best(lam, 1e-7)
    assert best.dual >= slice_value(slice_.sigma, lam) - best.gap - 1e-9


@given(st.integers(1, 4), st.integers(1, 4), st.data(), st.floats(0.001, 1), seeds)
@settings(max_examples=40, deadline=None)
def test_no_routing_beats_the_floor(d: int, groups: int, data: st.DataObject, lam: float, seed: int) -> None:
    s = data.draw(st.integers(1, groups))
    slice_ = random_slice(d, groups, s, 12, np.random.default_rng(seed))
    cost = slice_.best(lam, 1e-5).primal
    assert cost >= soft_routing_floor(slice_.sigma, lam) - 1e-12
    assert cost > slice_value(slice_.sigma, lam) / d - 1e-12


@given(dimensions, shares)
@settings(max_examples=20, deadline=None)
def test_a_gate_realises_the_family(d: int, share: float) -> None:
    lam = share * math.sin(0.6)
    slice_, maps = simplex_slice(d, 0.3), simplex_maps(d, 0.3, lam)
    model = realise(slice_, maps, gate_rows(d))
    assert (gate_routing(model, slice_.tokens) == slice_.index).all()
    assert math.isclose(model_cost(model, slice_, lam), slice_.cost(maps, lam), rel_tol=1e-9)


def test_a_map_of_rank_two_leaves_no_row_for_the_gate() -> None:
    with pytest.raises(UsageError, match="rank above 1"):
        realise(simplex_slice(2, 0.3), np.stack([np.eye(2)] * 3), np.ones((3, 2)))


@given(st.integers(2, 3), st.floats(0.02, 0.5), seeds)
@settings(max_examples=15, deadline=None)
def test_batched_maps_are_feasible_and_near_the_optimum(d: int, lam: float, seed: int) -> None:
    patterns = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=bool)
    slice_ = random_slice(d, 3, 2, 20, np.random.default_rng(seed))
    sets = np.sort(slice_.index, axis=1)
    moments = np.stack([
        slice_.tokens[on].T @ slice_.tokens[on] / 20
        for on in ((sets == np.flatnonzero(pattern)).all(axis=1) for pattern in patterns)
    ])  # fmt: skip
    costs, maps = _best_maps(moments[None], patterns, lam, steps=2000)
    assert math.isclose(costs[0], slice_.cost(maps[0], lam), rel_tol=1e-9)
    exact = routed.solve(slice_.tokens, slice_.index, 3, lam)
    assert exact.dual - 1e-12 <= costs[0] <= exact.primal * (1 + 1e-4)


def test_the_search_finds_what_is_there_and_nothing_where_nothing_is() -> None:
    rng = np.random.default_rng(0)
    found = free_gates(cone_law(2, 0.3), 3, 2, 0.05, rng, starts=16, rounds=10, fresh=4000)
    assert found.ratio + 3.1 * found.error < 0.95
    # all groups always on is one pattern: nothing to route
    alone = free_gates(cone_law(2, 0.3), 2, 2, 0.05, rng, starts=4, rounds=2, fresh=4000)
    assert alone.ratio >= 1 - 3.1 * alone.error - 1e-6
    tied = tied_gates(sphere_law(2), 2, 1, 2, 0.05, rng, starts=4, steps=100, fresh=4000)  # hard routing: C2
    assert tied.ratio >= 1 - 3.1 * tied.error - 1e-6


def test_commuting_claim() -> None:
    verdict = verify(CLAIMS["C4a"])
    assert verdict.as_stated, verdict.rows


def test_counterexample_without_the_search() -> None:
    claim = CLAIMS["C4b"]
    verdict = verify(dataclasses.replace(claim, truths=claim.truths[:2]))
    assert verdict.as_stated, verdict.rows
    assert {row.outcome.state for row in verdict.rows if row.kind == "truth"} == {"refuted"}


@pytest.mark.slow
def test_counterexample_claim() -> None:
    verdict = verify(CLAIMS["C4b"])
    assert verdict.as_stated, verdict.rows
