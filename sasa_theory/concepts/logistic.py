"""Logistic probes: one for each label against all others, by L-BFGS in float64.

With z_i = w.x_i + b and y_i = +-1 a label's probe minimises

    sum_i c_i log(1 + exp(-y_i z_i)) + l2/2 ||w||^2 + l1 sum_j w_j,      c_i = 1 / (2 n(y_i)),

so that the rows with and without the label weigh one half each, however few there are. With l1 > 0 the weights are held
non-negative: it chooses the features that speak for a label, and -w_j would speak against it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, special

from sasa_theory.arguments import require_real
from synthetic.errors import UsageError


@dataclass(frozen=True)
class Probes:
    """Linear probes of L labels on F features: the label is predicted where the score is positive."""

    weights: "Float[np.ndarray, 'L F']"
    bias: "Float[np.ndarray, ' L']"

    def scores(self, x: Any) -> "Float[np.ndarray, 'n L']":
        """x W^T + b of rows (n, F), dense or scipy.sparse."""
        return np.asarray(x @ self.weights.T) + self.bias


def fit_probes(
    x: Any,
    labels: "Bool[np.ndarray, 'n L']",
    l2: float,
    *,
    l1: "float | Float[np.ndarray, ' L']" = 0.0,
    start: Probes | None = None,
    tolerance: float = 1e-6,
    iterations: int = 5000,
) -> Probes:
    """The probes of the module's head on rows x (n, F), dense or scipy.sparse, in float64.

    l1 one number, or one for each label; start where to begin (the answer does not depend on it). It ends when no entry of the (projected) gradient exceeds `tolerance`, each
    feature measured in units in which its curvature is about 1.
    Raises UsageError for shapes that do not fit, a penalty that is negative, and a label that all rows or none have.
    """
    labels = np.asarray(labels, dtype=bool)
    if x.ndim != 2 or labels.ndim != 2 or len(labels) != x.shape[0]:
        raise UsageError(f"rows {x.shape} and labels {labels.shape}; expected (n, F) and (n, L)")
    require_real("l2", l2, 0)
    strength = np.broadcast_to(np.asarray(l1, dtype=np.float64), labels.shape[1:])
    if not (np.isfinite(strength).all() and (strength >= 0).all()):
        raise UsageError(f"l1 is {l1}; expected numbers >= 0")
    count = labels.sum(axis=0)
    if (count == 0).any() or (count == len(labels)).any():
        raise UsageError("every label needs rows with it and rows without it")
    x = x.astype(np.float64)
    transposed = x.T.tocsr() if hasattr(x, "tocsr") else x.T
    # steps in units in which all features have about the same curvature; the answer is the same
    square = x.multiply(x) if hasattr(x, "multiply") else x * x
    size = np.sqrt(np.asarray(square.mean(axis=0)).ravel() / 4 + l2)
    unit = np.append(np.where(size > 0, 1 / np.maximum(size, 1e-300), 1.0), 1.0)
    weights = np.zeros((labels.shape[1], x.shape[1] + 1))
    for number, (label, cost) in enumerate(zip(labels.T, strength, strict=True)):
        found = optimize.minimize(
            _objective(x, transposed, label, l2, cost, unit),
            np.zeros(x.shape[1] + 1) if start is None else np.append(start.weights[number], start.bias[number]) / unit,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * x.shape[1] + [(None, None)] if cost > 0 else None,
            options={"maxiter": iterations, "maxfun": 2 * iterations, "gtol": tolerance, "ftol": 0.0, "maxcor": 20},
        )
        weights[number] = found.x * unit
    return Probes(weights[:, :-1].copy(), weights[:, -1].copy())


def _objective(
    x: Any, transposed: Any, label: np.ndarray, l2: float, l1: float, unit: np.ndarray
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Value and gradient of one label's objective at (weights, bias) / unit."""
    sign = np.where(label, 1.0, -1.0)
    share = np.where(label, 0.5 / label.sum(), 0.5 / (~label).sum())

    def objective(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = (scaled * unit)[:-1], scaled[-1] * unit[-1]
        margin = sign * (x @ weights + bias)
        value = l2 / 2 * weights @ weights + l1 * weights.sum() - share @ special.log_expit(margin)
        pull = -share * sign * special.expit(-margin)
        gradient = np.append(transposed @ pull + l2 * weights + l1, pull.sum())
        return float(value), unit * gradient

    return objective


def smallest_silencing_l1(x: Any, labels: "Bool[np.ndarray, 'n L']") -> "Float[np.ndarray, ' L']":
    """For each label the smallest l1 at which all weights are zero: max_j sum_i c_i y_i x_ij / 2, at least 0."""
    return np.maximum(association(x, labels).max(axis=0), 0)


def association(x: Any, labels: "Bool[np.ndarray, 'n L']") -> "Float[np.ndarray, 'F L']":
    """A quarter of each feature's mean with the label less its mean without: minus the loss's slope at zero weights."""
    labels = np.asarray(labels, dtype=np.float64)
    count = labels.sum(axis=0)
    pull = 0.25 * (labels / count - (1 - labels) / (len(labels) - count))
    return np.asarray(x.T @ pull)


def f1(predicted: "Bool[np.ndarray, 'n L']", truth: "Bool[np.ndarray, 'n L']") -> "Float[np.ndarray, ' L']":
    """2 hits / (predicted + true) of each label, over the rows; 0 where nothing is predicted or true."""
    hits, total = (predicted & truth).sum(axis=0), predicted.sum(axis=0) + truth.sum(axis=0)
    return np.asarray(2 * hits / np.maximum(total, 1))
