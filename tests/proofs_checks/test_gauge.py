"""C5 and C8: changes of basis, unique maps, and the released objective over shapes, penalties and spectra."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import proofs_checks.consolidation  # noqa: F401  files the claims
from proofs_checks import CLAIMS, verify
from proofs_checks.gauge_measures import (
    change_basis,
    draw_model,
    factors,
    map_distance,
    maps_of,
    model_difference,
    nearly_parallel,
    released_search,
)
from sasa_theory.bounds import decoder_norm_range, slice_value
from sasa_theory.objectives import slice_cost

seeds = st.integers(0, 2**32 - 1)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 4), st.data(), seeds)
@settings(max_examples=30, deadline=None)
def test_rotations_and_order_leave_the_model_alone(
    width: int, groups: int, rank: int, data: st.DataObject, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model = draw_model(rng, width, groups, rank, data.draw(st.integers(1, groups), label="active"))
    other = change_basis(model, rng, "rotation")
    assert model_difference(model, other, rng.standard_normal((20, width))) < 1e-9
    assert map_distance(maps_of(model), maps_of(other)) < 1e-10


@given(st.integers(2, 6), st.integers(2, 5), st.integers(1, 4), seeds)
@settings(max_examples=30, deadline=None)
def test_invertible_changes_keep_the_maps(width: int, groups: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = draw_model(rng, width, groups, rank, 1)
    assert map_distance(maps_of(model), maps_of(change_basis(model, rng, "invertible"))) < 1e-9


def test_invertible_changes_move_the_gate() -> None:
    rng = np.random.default_rng(0)
    model = draw_model(rng, 4, 4, 2, 1)
    assert model_difference(model, change_basis(model, rng, "invertible"), rng.standard_normal((50, 4))) > 0.1


@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 3), seeds)
@settings(deadline=None)
def test_factors_make_the_map_whatever_is_free(width: int, kept: int, spare: int, seed: int) -> None:
    rng, kept = np.random.default_rng(seed), min(kept, width)
    left, right = (np.linalg.qr(rng.standard_normal((width, width)))[0][:, :kept] for _ in range(2))
    map_ = (left * rng.uniform(0.5, 2, kept)) @ right.T
    decoder, encoder = factors(map_, kept + spare, rng)
    assert np.allclose(decoder @ encoder, map_, atol=1e-6)
    assert np.linalg.matrix_rank(decoder) == min(width, kept + (spare + 1) // 2)


@given(st.integers(1, 4), st.floats(0.05, 1), st.booleans(), seeds)
@settings(max_examples=10, deadline=None)
def test_what_the_released_search_finds_is_feasible(rank: int, lam: float, unit: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sigma = np.diag(rng.uniform(0, 2, 4))
    found = released_search(sigma, lam, rank, rng, unit_encoder=unit, starts=1)
    norm = float(np.linalg.norm(found.decoder, "nuc"))
    assert np.allclose(np.linalg.norm(found.decoder, axis=1), 1)
    assert decoder_norm_range(rank).low - 1e-9 <= norm <= decoder_norm_range(rank).high + 1e-9
    # at parallel rows the Gram matrix has zero eigenvalues, whose roots are good to 1e-8
    assert math.isclose(found.cost, slice_cost(found.map, sigma, 0.0) + lam * norm, rel_tol=1e-6)
    charged = released_search(sigma, lam, rank, rng, penalty="map", unit_encoder=unit, starts=1)
    assert charged.cost >= slice_value(sigma, lam) - 1e-6


@given(st.lists(st.floats(0.1, 3), min_size=1, max_size=4), st.floats(0.01, 1))
def test_nearly_parallel_rows_reach_everything(spectrum: list[float], lam: float) -> None:
    rank, sigma = len(spectrum), np.diag([0.0, *spectrum])
    decoder = nearly_parallel(sigma, rank)
    assert slice_cost(decoder @ np.linalg.pinv(decoder), sigma, 0.0) < 1e-8
    assert np.linalg.norm(decoder, "nuc") == pytest.approx(decoder_norm_range(rank).low, rel=1e-4)


@pytest.mark.parametrize("name", ["C5", "C8"])
def test_claim(name: str) -> None:
    verdict = verify(CLAIMS[name])
    assert verdict.as_stated, verdict.rows
