"""Sparse scores against dense ones and scikit-learn; detectors on worlds where the right units are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from sasa_theory.concepts.detectors import Chosen, Halves, average, interval, weighted_auc
from sasa_theory.concepts.scores import UnitScores, unit_scores
from sasa_theory.concepts.screening import auc, best_f1
from sasa_theory.models import SASA, TopK
from synthetic.errors import UsageError


def sparse(dense: np.ndarray) -> UnitScores:
    row, unit = np.nonzero(dense)
    return UnitScores.of_pairs(row, unit, dense[row, unit], *dense.shape)


def world(rng, n, units, levels=4):
    dense = rng.integers(0, levels, (n, units)) * (rng.random((n, units)) < 0.5).astype(float)
    positive = rng.random(n) < 0.3
    positive[:2] = True, False
    return dense, positive


@settings(deadline=None, max_examples=40)
@given(n=st.integers(4, 60), units=st.integers(1, 6), levels=st.integers(2, 6), seed=st.integers(0, 2**32 - 1))
def test_every_units_auc_and_f1_equal_the_dense_ones(n, units, levels, seed):
    rng = np.random.default_rng(seed)
    dense, positive = world(rng, n, units, levels)
    among = rng.random(n) < 0.7
    among[:2] = True
    scores = sparse(dense)
    want = [auc(column[among], positive[among]) for column in dense.T]
    np.testing.assert_allclose(scores.aucs(positive, among), want, atol=1e-12)
    want = [best_f1(column[among], positive[among])[0] for column in dense.T]
    np.testing.assert_allclose(scores.best_f1s(positive, among), want, atol=1e-12)
    np.testing.assert_array_equal(scores.column(units - 1), dense[:, -1])
    np.testing.assert_allclose(scores.joint(range(units)), np.linalg.norm(dense, axis=1))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(4, 60), clusters=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_weighted_auc_is_the_auc_of_repeated_documents(n, clusters, seed):
    rng = np.random.default_rng(seed)
    dense, positive = world(rng, n, 1)
    cluster = rng.integers(0, clusters, n)
    weights = rng.integers(0, 3, (4, clusters)).astype(float)
    got = weighted_auc(dense[:, 0], positive, cluster, weights)
    for value, weight in zip(got, weights, strict=True):
        times = weight[cluster].astype(int)
        repeated = np.repeat(positive, times)
        if repeated.any() and not repeated.all():
            assert value == pytest.approx(roc_auc_score(repeated, np.repeat(dense[:, 0], times)))
        else:
            assert np.isnan(value)


@pytest.mark.parametrize("model", [TopK(8, n_latents=24, active_latents=3), SASA(8, 6, 4, 2)])
def test_scores_are_the_norms_of_the_codes_however_the_rows_are_cut(model):
    model.initialise(torch.Generator().manual_seed(1))
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    want = torch.linalg.vector_norm(model.encode(x).dense(), dim=-1).detach().numpy()
    for cut in (30, 7):
        scores = unit_scores(model, x.split(cut))
        got = np.stack([scores.column(unit) for unit in range(model.n_units)], axis=1)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def planted(rng, n=4000, units=10):
    """Units 2, 3, 4 fire on a third of the concept each, unit 7 on half of it, none elsewhere; others anywhere."""
    documents = np.arange(n) // 20
    positive = rng.random(n) < 0.05
    dense = rng.random((n, units)) * (rng.random((n, units)) < 0.05)
    part = rng.integers(0, 3, n)
    for i in range(3):
        dense[:, 2 + i] = positive * (part == i) * (1 + rng.random(n))
    dense[:, 7] = positive * (rng.random(n) < 0.5)
    return sparse(dense), positive, documents


def test_a_set_of_units_finds_what_no_single_one_does():
    rng = np.random.default_rng(5)
    scores, positive, documents = planted(rng)
    halves = Halves(positive, documents, rng=rng)
    single = halves.choose(scores, 1)
    assert single.by_f1 == single.by_auc == (7,)
    alone = halves.judge(scores, single)
    assert alone.value["precision"] == 1
    weak = halves.judge(scores, Chosen((0,), (0,), 0.0))  # a unit that fires anywhere
    assert weak.value["precision"] < 0.6
    assert 0.5 < alone.value["f1"] < 0.8
    four = halves.choose(scores, 4)
    assert set(four.by_f1) == {2, 3, 4, 7}
    together = halves.judge(scores, four)
    assert together.value["auc"] == 1
    assert together.value["f1"] > 0.95  # its threshold is the lowest concept score of the other half
    difference = interval(together.draws["f1"] - alone.draws["f1"])
    assert difference is not None
    assert difference[0] > 0


def test_interval_covers_the_value_of_more_data_and_no_power_is_read_into_noise():
    rng = np.random.default_rng()
    covered = 0
    for _ in range(60):
        scores, positive, documents = planted(rng, 3000)
        halves = Halves(positive, documents, rng=rng, resamples=200)
        judged = halves.judge(scores, halves.choose(scores, 1))
        low, high = interval(judged.draws["f1"])
        covered += low <= 2 / 3 <= high  # F1 of a unit that fires on half of the concept and nowhere else
    # a 95 % interval; 60 trials below 80 % would be six standard errors off
    assert covered >= 48
    noise = sparse(rng.random((3000, 30)) * (rng.random((3000, 30)) < 0.1))
    positive = rng.random(3000) < 0.05
    halves = Halves(positive, np.arange(3000) // 20, rng=rng)
    judged = halves.judge(noise, halves.choose(noise, 1))
    low, high = interval(judged.draws["auc"])
    assert low - 0.1 < 0.5 < high + 0.1
    assert judged.value["f1"] < 0.35


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_second_unit_is_the_best_partner_by_enumeration(seed):
    rng = np.random.default_rng(seed)
    dense = rng.random((200, 6)) * (rng.random((200, 6)) < 0.2)
    scores, positive = sparse(dense), rng.random(200) < 0.2
    halves = Halves(positive, np.arange(200) // 5, rng=rng, resamples=2)
    chosen = halves.choose(scores, 2)
    truth = positive[halves.selection]
    for units, measure in ((chosen.by_auc, auc), (chosen.by_f1, lambda *pair: best_f1(*pair)[0])):
        alone = [measure(column[halves.selection], truth) for column in dense.T]
        assert alone[units[0]] == pytest.approx(max(alone))
        pairs = [measure(scores.joint({units[0], other})[halves.selection], truth) for other in range(6)]
        assert measure(scores.joint(units)[halves.selection], truth) == pytest.approx(max(pairs))


def test_ignored_tokens_count_neither_way_and_bad_halves_are_one_sentence():
    rng = np.random.default_rng(0)
    scores, positive, documents = planted(rng)
    wrong = positive & (rng.random(len(positive)) < 0.5)
    halves = Halves(positive & ~wrong, documents, wrong, rng=rng)
    assert halves.judge(scores, halves.choose(scores, 4)).value["auc"] == 1
    assert sum(halves.counts()) == (positive & ~wrong).sum()
    with pytest.raises(UsageError, match="judging half"):
        Halves(documents == documents[0], documents, rng=rng)


def test_average_over_seeds_leaves_out_what_was_never_measured():
    rng = np.random.default_rng(0)
    scores, positive, documents = planted(rng)
    halves = Halves(positive, documents, rng=rng, resamples=20)
    one = halves.judge(scores, halves.choose(scores, 1))
    silent = halves.judge(sparse(np.zeros((len(positive), 3))), halves.choose(sparse(np.zeros((len(positive), 3))), 1))
    assert silent.value["f1"] == 0
    assert silent.value["auc"] == 0.5
    assert np.isnan(silent.value["precision"])
    both = average([one, silent])
    assert both.value["f1"] == pytest.approx(one.value["f1"] / 2)
    assert both.value["precision"] == one.value["precision"]
