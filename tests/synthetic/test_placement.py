"""Frames: orthonormal, as orthogonal or as coherent as asked, with coherence equal to brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthetic import coherent_frames, mutual_coherence, orthogonal_frames, random_frames, welch_bound
from synthetic.errors import UsageError

SEEDS = st.integers(0, 2**31)
DIMS = st.lists(st.integers(1, 5), min_size=2, max_size=12)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormality_error(rows: torch.Tensor, dims: list[int]) -> float:
    return max(float((v @ v.T - torch.eye(len(v))).abs().max()) for v in rows.double().split(dims))


def brute_coherence(rows: torch.Tensor, dims: list[int]) -> float:
    frames = rows.double().split(dims)
    pairs = [(a, b) for i, a in enumerate(frames) for b in frames[:i]]
    return max(float(torch.linalg.matrix_norm(a @ b.T, ord=2)) for a, b in pairs)


@settings(deadline=None, max_examples=30)
@given(DIMS, st.integers(5, 40), SEEDS)
def test_random_frames_are_orthonormal_and_coherence_is_brute_force(dims: list[int], width: int, seed: int) -> None:
    rows = random_frames(dims, width, rng(seed))
    assert rows.shape == (sum(dims), width) and orthonormality_error(rows, dims) < 2e-6
    coherence, (i, j) = mutual_coherence(rows, dims)
    assert coherence == pytest.approx(brute_coherence(rows, dims), abs=1e-7)
    frames = rows.double().split(dims)
    assert float(torch.linalg.matrix_norm(frames[i] @ frames[j].T, ord=2)) == pytest.approx(coherence, abs=1e-12)
    assert coherence >= welch_bound(dims, width) - 1e-6


def test_random_frames_are_haar() -> None:
    """E[P_V] = (d/D) I, entry by entry within 6 standard errors; a frame from |Gaussian| rows is refuted."""
    dims, width = [2] * 4000, 4
    entries = random_frames(dims, width, rng(0)).double().reshape(-1, 2, width)
    for frames, fair in ((entries, True), (entries.abs() / entries.norm(dim=2, keepdim=True), False)):
        projections = frames.transpose(1, 2) @ frames
        error = projections.std(dim=0) / math.sqrt(len(frames))
        near = (projections.mean(dim=0) - torch.eye(width) / 2).abs() < 6 * error + 1e-9
        assert bool(near.all()) is fair


@settings(deadline=None, max_examples=30)
@given(DIMS, st.integers(0, 10), SEEDS)
def test_orthogonal_frames(dims: list[int], spare: int, seed: int) -> None:
    rows = orthogonal_frames(dims, sum(dims) + spare, rng(seed))
    assert orthonormality_error(rows, [sum(dims)]) < 2e-6
    assert mutual_coherence(rows, dims)[0] < 1e-6


def test_orthogonal_frames_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="9 jointly orthogonal dimensions do not fit into width 8"):
        orthogonal_frames([3, 3, 3], 8, rng(0))


@settings(deadline=None, max_examples=40)
@given(DIMS, st.integers(5, 30), st.floats(0, 1), SEEDS)
def test_prescribed_coherence_is_reached_or_refused(dims: list[int], width: int, coherence: float, seed: int) -> None:
    """Reached to 1e-6; refused only below what random frames have, and always below the Welch bound."""
    try:
        rows = coherent_frames(dims, width, coherence, rng(seed))
    except UsageError as error:
        assert "out of reach" in str(error) or "do not fit" in str(error)
        assert sum(dims) > width
        return
    assert coherence >= welch_bound(dims, width) - 1e-6
    assert brute_coherence(rows, dims) == pytest.approx(coherence, abs=1e-6)
    assert orthonormality_error(rows, dims) < 2e-6


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), SEEDS)
def test_overcomplete_frames_go_well_below_random_ones(dim: int, seed: int) -> None:
    dims, width = [dim] * 12, 8 * dim
    target = 0.75 * mutual_coherence(random_frames(dims, width, rng(seed)), dims)[0]
    rows = coherent_frames(dims, width, target, rng(seed))
    assert brute_coherence(rows, dims) == pytest.approx(target, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(DIMS, st.integers(5, 15), SEEDS)
def test_welch_bound_is_the_stated_sum(dims: list[int], width: int, seed: int) -> None:
    """The proof's chain on actual frames: sum ||V_i^T V_j||_F^2 >= T^2/D, and <= T + mu^2 sum min(d_i, d_j)."""
    rows, total = random_frames(dims, width, rng(seed)).double(), sum(dims)
    assert float((rows @ rows.T).square().sum()) >= total**2 / width - 1e-4
    pairs = sum(min(a, b) for i, a in enumerate(dims) for j, b in enumerate(dims) if i != j)
    stated = math.sqrt(max(0, total**2 / width - total) / pairs) if sum(sorted(dims)[-2:]) <= width else 1.0
    assert welch_bound(dims, width) == pytest.approx(stated, abs=1e-12)


def test_welch_bound_is_reached_by_an_equiangular_frame() -> None:
    """Three lines at 120 degrees in the plane have coherence 1/2, exactly the bound."""
    angles = torch.arange(3) * 2 * math.pi / 3
    rows = torch.stack((angles.cos(), angles.sin()), dim=1)
    assert welch_bound([1, 1, 1], 2) == pytest.approx(0.5)
    assert mutual_coherence(rows, [1, 1, 1])[0] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("dims", "width", "coherence", "message"),
    [
        ([1, 1, 1], 2, 0.49, "out of reach: 3 dimensions in 2 force at least 0.5000"),
        ([2] * 12, 8, 0.45, "out of reach"),
        ([4, 1, 3], 6, 0.9, "out of reach: 8 dimensions in 6 force at least 1.0000"),
        ([2], 8, 0.5, "one feature alone"),
        ([2, 2], 8, 1.5, "coherence is 1.5"),
        ([9, 2], 8, 0.5, "dimension 9 does not fit into width 8"),
    ],
)
def test_coherence_out_of_reach_is_refused(dims: list[int], width: int, coherence: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        coherent_frames(dims, width, coherence, rng(0))


def test_subspaces_that_must_intersect_have_coherence_one() -> None:
    for coherence in (None, 1.0):
        rows = random_frames([4, 3], 6, rng(0)) if coherence is None else coherent_frames([4, 3], 6, 1.0, rng(0))
        assert brute_coherence(rows, [4, 3]) == pytest.approx(1.0, abs=1e-6)


def test_coherence_of_many_features_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    dims = [1, 2, 3, 4] * 10
    rows = random_frames(dims, 24, rng(1))
    whole = mutual_coherence(rows, dims)
    monkeypatch.setattr("synthetic.placement._CHUNK", 1000)
    in_chunks = mutual_coherence(rows, dims)
    assert in_chunks[1] == whole[1] and in_chunks[0] == pytest.approx(whole[0], abs=1e-12)
