"""Logistic probes against scikit-learn, and by their optimality conditions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, special

from sasa_theory.concepts.logistic import association, f1, fit_probes, smallest_silencing_l1
from synthetic.errors import UsageError


def problem(seed, n=60, features=4, labels=2):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, features)) * rng.uniform(0.1, 10, features) + rng.standard_normal(features)
    scores = x @ rng.standard_normal((features, labels)) / 5 + rng.standard_normal((n, labels))
    truth = scores > np.quantile(scores, rng.uniform(0.3, 0.9, labels), axis=0).diagonal()
    return x, truth


@given(st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 100.0]))
@settings(deadline=None, max_examples=8)
def test_equals_scikit_learn_with_balanced_classes(seed, strength):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, truth = problem(seed)
    got = fit_probes(x, truth, 1 / (strength * len(x)), tolerance=1e-9)
    for label in range(truth.shape[1]):
        other = linear_model.LogisticRegression(C=strength, class_weight="balanced", tol=1e-10, max_iter=10**5)
        other.fit(x, truth[:, label])
        scale = np.abs(other.coef_).max()
        np.testing.assert_allclose(got.weights[label], other.coef_[0], atol=1e-4 * scale)
        np.testing.assert_allclose(got.scores(x)[:, label], other.decision_function(x), atol=2e-3)


@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=8)
def test_the_non_negative_l1_probe_meets_its_optimality_conditions(seed, share):
    """Slope of loss + l1: zero where a weight is positive, not negative where it is zero; sparse input, same answer."""
    x, truth = problem(seed, n=50, features=6)
    x = np.abs(x) * (x > 0)
    limit = smallest_silencing_l1(x, truth)
    l1 = np.maximum(share * limit, 1e-3)
    got = fit_probes(x, truth, 0.0, l1=l1, tolerance=1e-9)
    assert (got.weights >= 0).all()
    for label, strength in enumerate(l1):
        y = np.where(truth[:, label], 1.0, -1.0)
        weight = 0.5 / np.where(y > 0, (y > 0).sum(), (y < 0).sum())
        pull = -weight * y * special.expit(-y * got.scores(x)[:, label])
        slope = x.T @ pull + strength
        on = got.weights[label] > 1e-8
        assert np.abs(slope[on]).max(initial=0) < 1e-5
        assert slope.min() > -1e-5
    again = fit_probes(sparse.csr_array(x), truth, 0.0, l1=l1, tolerance=1e-9)
    np.testing.assert_allclose(again.weights, got.weights, atol=1e-4 * max(1.0, np.abs(got.weights).max()))


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=8)
def test_the_silencing_penalty_is_the_smallest(seed):
    x, truth = problem(seed, features=3)
    x = np.abs(x)
    limit = smallest_silencing_l1(x, truth)
    np.testing.assert_allclose(limit, np.maximum(association(x, truth).max(axis=0), 0))
    silent = fit_probes(x, truth, 0.0, l1=1.001 * limit + 1e-9, tolerance=1e-10)
    assert np.abs(silent.weights).max() < 1e-6
    for label in np.flatnonzero(limit > 1e-3):
        heard = fit_probes(x, truth[:, [label]], 0.0, l1=0.98 * limit[label], tolerance=1e-10)
        assert heard.weights.max() > 1e-6


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=5)
def test_a_start_changes_nothing(seed):
    x, truth = problem(seed)
    first = fit_probes(x, truth, 0.1, tolerance=1e-9)
    again = fit_probes(x, truth, 0.01, start=first, tolerance=1e-9)
    np.testing.assert_allclose(again.weights, fit_probes(x, truth, 0.01, tolerance=1e-9).weights, atol=1e-5)


def test_f1_by_hand():
    truth = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], dtype=bool)
    predicted = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], dtype=bool)
    np.testing.assert_allclose(f1(predicted, truth), [0.5, 0.0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": np.ones((5, 1), bool)}, "rows with it and rows without"),
        ({"labels": np.ones((4, 1), bool)}, "expected"),
        ({"l2": -1.0}, "l2"),
        ({"l1": float("nan")}, "l1"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"x": np.eye(5), "labels": np.arange(5)[:, None] < 2, "l2": 0.1, **change}
    with pytest.raises(UsageError, match=message):
        fit_probes(given.pop("x"), given.pop("labels"), given.pop("l2"), **given)
