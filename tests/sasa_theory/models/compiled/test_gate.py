"""The screened gate against the exact one: whatever int8 rounds away, the choice is that of float64 coefficients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models.codes import Codes
from sasa_theory.models.compiled import gate as module
from sasa_theory.models.compiled.gate import Chosen, Gate, Then, Thresholds
from sasa_theory.models.compiled.workspace import Workspace


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exact(x: np.ndarray, rows: np.ndarray, bias: np.ndarray, rank: int, rectify: bool) -> np.ndarray:
    """Coefficients (B, K, r) in float64."""
    pre = x.astype(np.float64) @ rows.T.astype(np.float64) + bias
    return (np.maximum(pre, 0) if rectify else pre).reshape(len(x), -1, rank)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, bool, int]:
    """Rows, shift, weights, bias, rank, rectify, n_best; some dimensions far larger than others, some rows zero."""
    width, rank = draw(st.integers(1, 50)), draw(st.one_of(st.integers(1, 5), st.sampled_from([8, 16, 32])))
    units = draw(st.integers(1, 300 if rank < 8 else 40))
    seed, batch = draw(st.integers(0, 2**31)), draw(st.integers(1, 300))
    x = normal(seed, batch, width) * np.exp(draw(st.sampled_from([0.0, 1.0, 3.0])) * normal(seed + 1, width))
    x[normal(seed + 2, batch) > 2] = 0
    shift = normal(seed + 3, width) if draw(st.booleans()) else np.zeros(width, np.float32)
    rows = normal(seed + 4, units * rank, width)
    rows[normal(seed + 5, units * rank) > 2] = 0
    bias = draw(st.sampled_from([0.0, 1.0])) * normal(seed + 6, units * rank)
    best = draw(st.integers(1, min(units, 20)))
    return x, shift, rows, bias.astype(np.float32), rank, draw(st.booleans()), best


@pytest.mark.parametrize("small", [0, 1 << 18])
@settings(deadline=None)
@given(problems())
def test_the_units_are_those_of_largest_exact_norm(
    small: int, problem: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, bool, int]
) -> None:
    """By candidates (no weights are few) and by a float32 product (all are)."""
    x, shift, rows, bias, rank, rectify, n_best = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALL", small)
        check_choice(x, shift, rows, bias, rank, rectify, n_best)


def check_choice(
    x: np.ndarray, shift: np.ndarray, rows: np.ndarray, bias: np.ndarray, rank: int, rectify: bool, n_best: int
) -> None:
    moved, index, values, *_ = Gate(Workspace(), "t", rank, rectify).per_row(x, shift, rows, bias, n_best)
    assert np.array_equal(moved, x - shift)
    coefficients = exact(moved, rows, bias, rank, rectify)
    norms = np.linalg.norm(coefficients, axis=2)
    assert all(len(set(row)) == n_best for row in index.tolist())
    here = np.take_along_axis(coefficients, index[..., None], 1)
    size = np.linalg.norm(moved, axis=1).max() * np.linalg.norm(rows, axis=1).max() + np.abs(bias).max()
    assert np.abs(values - here).max() <= 1e-5 * size
    # equal but for ties, which rounding decides
    ours, best = np.sort(np.take_along_axis(norms, index, 1), 1), np.sort(norms, 1)[:, -n_best:]
    assert np.abs(ours - best).max() <= 1e-5 * size


def crowded(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Many units whose norms lie closer together than int8 resolves, at uneven dimensions."""
    x = normal(seed, 1000, 64) * np.exp(normal(seed + 1, 64))
    rows = normal(seed + 2, 2000, 64)
    rows[::2] = rows[1::2] + 1e-3 * normal(seed + 3, 1000, 64)
    return x, rows, np.zeros(2000, np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_rows_in_doubt_are_listed_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not module.int8_is_faster():
        pytest.skip("this processor has no int8 product")
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "SPARE", -15)  # 3 s - 15: too few for the near ties
    x, rows, bias = crowded(seed)
    gate = Gate(Workspace(), "t", 1, False)
    index = gate.per_row(x, None, rows, bias, 9).units
    norms = np.abs(exact(x, rows, bias, 1, False))[..., 0]
    best = np.sort(norms, 1)[:, -9:]
    assert 0 < gate.doubted < gate.rows == len(x)
    assert np.allclose(np.sort(np.take_along_axis(norms, index, 1), 1), best, rtol=1e-5)


def test_without_the_doubt_the_choice_would_be_wrong() -> None:
    """The twin: the best by coefficients rounded to int8 are not the best."""
    x, rows, _ = crowded(0)
    x8 = torch.from_numpy(np.rint(x / np.abs(x).max(1, keepdims=True) * 127))
    w8 = torch.from_numpy(np.rint(rows / np.abs(rows).max(1, keepdims=True) * 127))
    scale = np.abs(rows).max(1)
    rounded = (x8 @ w8.T).abs().numpy() * scale
    wrong = np.sort(rounded.argsort(1)[:, -9:], 1) != np.sort(np.abs(x @ rows.T).argsort(1)[:, -9:], 1)
    assert wrong.any(axis=1).mean() > 0.3


def test_without_int8_the_choice_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, rows, bias = normal(0, 700, 33), normal(1, 400, 33), normal(2, 400)
    monkeypatch.setattr(module, "SMALL", 0)
    first = Gate(Workspace(), "t", 2, True).per_row(x, None, rows, bias, 7)
    monkeypatch.setattr(module, "int8_is_faster", lambda: False)
    second = Gate(Workspace(), "t", 2, True).per_row(x, None, rows, bias, 7)
    one, other = (Codes(torch.from_numpy(c.units), torch.from_numpy(c.values), 200).dense() for c in (first, second))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["row", "weight"])
@pytest.mark.parametrize("small", [0, 1 << 18])
def test_a_value_that_is_not_finite_ends_in_the_codes_of_its_rows(
    value: float, place: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", small)
    x, rows, bias = normal(0, 50, 9), normal(1, 40, 9), normal(2, 40)
    (x if place == "row" else rows)[3, 4] = value
    _, index, values, *_ = Gate(Workspace(), "t", 2, False).per_row(x, None, rows, bias, 3)
    assert ((index >= 0) & (index < 20)).all()
    assert not np.isfinite(values[3] if place == "row" else values).all()
    if place == "row":
        assert np.isfinite(np.delete(values, 3, 0)).all()


@pytest.mark.parametrize("small", [0, 1 << 18])
@settings(deadline=None)
@given(problems(), st.sampled_from([0.0, 0.3, 1.0, 3.0]))
def test_the_latents_of_a_batch_are_its_largest(
    small: int, problem: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, bool, int], guess: float
) -> None:
    """Whatever level is guessed, as a multiple of the right one; with fewer positive latents than wanted too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALL", small)
        check_batch(problem, guess)


def check_batch(problem: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, bool, int], guess: float) -> None:
    x, shift, rows, bias, _, _, n_best = problem
    latents = exact(x - shift, rows, bias, 1, True)[..., 0]
    best = np.sort(latents, None)[-len(x) * min(n_best, len(rows)) :]
    gate = Gate(Workspace(), "t", 1, True)
    gate.level = guess * float(best[0])
    _, index, values, smallest, _ = gate.per_batch(x, shift, rows, bias, n_best)
    chosen = np.take_along_axis(latents, index.clip(0), 1) * (index >= 0)
    size = np.linalg.norm(x - shift, axis=1).max() * np.linalg.norm(rows, axis=1).max() + np.abs(bias).max()
    assert np.abs(values[..., 0] - chosen).max(initial=0) <= 1e-5 * size
    ours = np.sort(chosen[chosen > 0])
    assert np.abs(ours[::-1] - best[::-1][: len(ours)]).max(initial=0) <= 1e-5 * size
    assert best[: len(best) - len(ours)].max(initial=0) <= 1e-5 * size  # only zeros are left out
    assert abs(smallest - (ours[0] if len(ours) else 0)) <= 1e-5 * size


@pytest.mark.parametrize("small", [0, 1 << 18])
@settings(deadline=None)
@given(problems(), st.integers(0, 40))
def test_all_that_is_positive_is_chosen(
    small: int, problem: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, bool, int], places: int
) -> None:
    """However many places a row is given first; what follows the choice sees every row once."""
    x, shift, rows, bias, _, _, _ = problem
    gate, totals = Gate(Workspace(), "t", 1, True), np.zeros((torch.get_num_threads(), 1))
    gate.slots = places

    def add_up(start: int, stop: int, chosen: Chosen, total: np.ndarray) -> None:
        total += chosen.values[start:stop].sum(dtype=np.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALL", small)
        patch.setattr(module, "MOST", 1.0)
        found = gate.exceeding(x, shift, rows, bias, then=Then(add_up, totals, 1 << 30))
    assert found is not None
    dense = Codes(torch.from_numpy(found.units), torch.from_numpy(found.values), len(rows)).dense()[..., 0]
    right = exact(x - shift, rows, bias, 1, True)[..., 0]
    size = np.linalg.norm(x - shift, axis=1).max() * np.linalg.norm(rows, axis=1).max() + np.abs(bias).max()
    assert np.abs(dense.numpy() - right).max() <= 1e-5 * size
    assert totals.sum() == pytest.approx(float(dense.double().sum()), rel=1e-9)
    assert (found.values >= 0).all()


@pytest.mark.parametrize("small", [0, 1 << 18])
@settings(deadline=None)
@given(problems(), st.integers(0, 2**31), st.floats(0.01, 5.0))
def test_thresholds_leave_what_exceeds_them_and_mark_their_window(
    small: int, problem: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, bool, int], seed: int, width: float
) -> None:
    x, shift, rows, bias, _, _, _ = problem
    size = np.linalg.norm(x - shift, axis=1).max() * np.linalg.norm(rows, axis=1).max() + np.abs(bias).max()
    jump = Thresholds(np.exp(normal(seed, len(rows))), width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALL", small)
        patch.setattr(module, "MOST", 1.0)
        found = Gate(Workspace(), "t", 1, False).exceeding(x, shift, rows, bias, jump)
    assert found is not None
    assert found.near is not None
    pre = (x - shift).astype(np.float64) @ rows.T.astype(np.float64) + bias
    near, values = np.zeros(pre.shape, np.bool_), np.zeros(pre.shape)
    row, slot = (found.units >= 0).nonzero()
    near[row, found.units[row, slot]] = found.near[row, slot]
    values[row, found.units[row, slot]] = found.values[row, slot, 0]
    assert not found.near[found.units < 0].any()
    assert not found.values[found.units < 0].any()
    # what float32 cannot decide is left out
    sure = np.abs(pre - jump.theta) > 1e-5 * size
    assert np.abs(values - pre * (pre > jump.theta))[sure].max(initial=0) <= 1e-5 * size
    edge = np.abs(np.abs(pre - jump.theta) - width / 2) <= 1e-5 * size
    assert np.array_equal(near[~edge], (np.abs(pre - jump.theta) < width / 2)[~edge])


@pytest.mark.parametrize("small", [0, 1 << 18])
def test_where_much_is_positive_there_is_no_answer(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of all, or half of one row's; nothing of it depends on the batches before."""
    monkeypatch.setattr(module, "SMALL", small)
    x, rows, shift = normal(0, 300, 37), normal(1, 400, 37), np.zeros(37, np.float32)
    low = np.full(400, -40, np.float32)
    one = x.copy()
    one[7] = 40 * rows[:200].sum(0)
    for batch, bias, answer in ((x, low, True), (x, 0 * low, False), (one, low, False), (x, low, True)):
        gate = Gate(Workspace(), "t", 1, True)
        for _ in range(2):
            assert (gate.exceeding(batch, shift, rows, bias) is not None) == answer


@pytest.mark.parametrize("small", [0, 1 << 18])
def test_the_level_looked_for_does_not_move_a_bit(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stopped run does not remember must not change what it computes."""
    monkeypatch.setattr(module, "SMALL", small)
    x, rows, bias = normal(0, 300, 37), normal(1, 200, 37), normal(2, 200)
    dense = []
    for level in (0.0, 0.5, 2.0):
        gate = Gate(Workspace(), "t", 1, True)
        gate.level = level
        _, index, values, *_ = gate.per_batch(x, np.zeros(37, np.float32), rows, bias, 5)
        dense.append(Codes(torch.from_numpy(index), torch.from_numpy(values), 200).dense())
    assert torch.equal(dense[0], dense[1])
    assert torch.equal(dense[0], dense[2])


@pytest.mark.parametrize("small", [0, 1 << 18])
@settings(deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 12),
    st.integers(1, 120),
    st.sampled_from([1, 2, 3, 8, 16, 32]),
    st.booleans(),
    st.integers(1, 9),
)
def test_ties_go_to_lower_units(
    small: int, seed: int, width: int, units: int, rank: int, rectify: bool, n_best: int
) -> None:
    """Small integers have exact coefficients and many equal norms; the reference is a stable sort."""
    random, n_best = np.random.default_rng(seed), min(n_best, units)
    x = random.integers(-2, 3, (60, width)).astype(np.float32)
    rows = random.integers(-1, 2, (units * rank, width)).astype(np.float32)
    norms = np.square(exact(x, rows, np.zeros(len(rows)), rank, rectify)).sum(2)
    expected = np.argsort(-norms, axis=1, kind="stable")[:, :n_best]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALL", small)
        index = Gate(Workspace(), "t", rank, rectify).per_row(x, None, rows, np.zeros(len(rows), np.float32), n_best)[1]
    assert np.array_equal(np.sort(index, 1), np.sort(expected, 1))
