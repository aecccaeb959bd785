"""Circular fits and detectors against worlds where the answer is known, and against brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from sasa_theory.concepts import best_detector, circular_fit, class_means, concept, prompts, templates
from sasa_theory.concepts.circle import circular_r2
from sasa_theory.concepts.screening import auc, best_f1
from synthetic.errors import UsageError


def polygon(n: int, width: int, rng: np.random.Generator) -> np.ndarray:
    angle = 2 * math.pi * np.arange(n) / n + rng.uniform(0, 6)
    frame = np.linalg.qr(rng.standard_normal((width, 2)))[0]
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) @ frame.T


@settings(deadline=None, max_examples=25)
@given(n=st.integers(4, 12), width=st.integers(2, 9), seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100))
def test_regular_polygon_is_a_perfect_circle_and_a_shuffled_one_is_not(n, width, seed, scale):
    rng = np.random.default_rng(seed)
    means = scale * polygon(n, width, rng) + rng.standard_normal(width)
    fit = circular_fit(means, rng, n_permutations=200)
    assert fit.r2 == pytest.approx(1, abs=1e-9)
    assert fit.plane_share == pytest.approx(1, abs=1e-9)
    if n >= 6:
        swapped = means.copy()
        swapped[[0, 2]] = means[[2, 0]]
        assert circular_fit(swapped, rng, n_permutations=200).r2 < 0.95


@settings(deadline=None, max_examples=15)
@given(n=st.integers(4, 7), seed=st.integers(0, 2**32 - 1))
def test_exact_p_value_equals_enumeration_of_all_orders(n, seed):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((n, 4))
    fit = circular_fit(means, rng)
    every = [circular_r2(fit.plane[list(order)]) for order in itertools.permutations(range(n))]
    assert fit.exact
    assert fit.p_value == pytest.approx(np.mean([value >= fit.r2 - 1e-9 for value in every]), abs=1e-12)
    assert fit.p_value >= 2 * n / math.factorial(n) - 1e-12


def test_sampled_p_value_is_uniform_under_the_null():
    rng = np.random.default_rng()
    values = [circular_fit(rng.standard_normal((9, 5)), rng, n_permutations=199).p_value for _ in range(200)]
    # P(p <= .5) = .5 under the null; six standard errors of a proportion over 200 draws
    assert abs(np.mean(np.array(values) <= 0.5) - 0.5) < 6 * math.sqrt(0.25 / 200)


def test_plane_is_turned_to_the_first_word_and_counter_clockwise():
    rng = np.random.default_rng(3)
    fit = circular_fit(polygon(7, 5, rng), rng)
    angle = np.unwrap(np.arctan2(fit.plane[:, 1], fit.plane[:, 0]))
    np.testing.assert_allclose(angle, 2 * math.pi * np.arange(7) / 7, atol=1e-9)


def test_class_means_remove_whatever_a_template_adds():
    rng = np.random.default_rng(0)
    words, template = rng.standard_normal((7, 6)), rng.standard_normal((30, 1, 6)) * 50
    np.testing.assert_allclose(class_means(words + template), words - words.mean(axis=0), atol=1e-9)


def test_too_few_classes_is_one_sentence():
    with pytest.raises(UsageError, match="at least 4 classes"):
        circular_fit(np.zeros((3, 5)), np.random.default_rng(0))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 40), levels=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_auc_and_best_f1_equal_scikit_learn_with_ties(n, levels, seed):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, levels + 1, n).astype(float)
    positive = rng.random(n) < 0.4
    positive[0], positive[-1] = True, False
    assert auc(score, positive) == pytest.approx(roc_auc_score(positive, score))
    thresholds = [t for t in np.unique(score) if t > 0]
    brute = max((f1_score(positive, score >= t, zero_division=0) for t in thresholds), default=0.0)
    found, threshold = best_f1(score, positive)
    assert found == pytest.approx(brute)
    if np.isfinite(threshold):
        assert f1_score(positive, score >= threshold, zero_division=0) == pytest.approx(found)


def test_detector_is_judged_on_rows_it_was_not_chosen_on():
    rng = np.random.default_rng(1)
    positive = np.arange(400) % 4 == 0
    selection = np.arange(400) < 200
    scores = np.abs(rng.standard_normal((400, 5)))
    scores[:, 2] = positive * (1 + rng.random(400))
    overfit = np.where(selection, positive * 5.0, rng.random(400))  # perfect where it is chosen, noise elsewhere
    assert best_detector(scores, positive, selection).unit == 2
    assert best_detector(scores, positive, selection).f1 == 1.0
    chosen = best_detector(overfit[:, None], positive, selection)
    assert chosen.f1_selected == 1.0
    assert chosen.f1 < 0.6


def test_shipped_concepts():
    assert len(concept("weekday").words) == 7
    assert len(concept("month").words) == 12
    assert len(templates()) >= 30
    assert all(text.endswith("{word}") for text in templates())
    listed = prompts(concept("weekday"))
    assert len(listed) == 7 * len(templates())
    assert listed[8] == templates()[1].format(word="Tuesday")
    with pytest.raises(UsageError, match="did you mean 'weekday'"):
        concept("weekdays")
