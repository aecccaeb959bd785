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

    l1 one number, or one for each label; start where to begin (the answer does not depend on it). It ends when no entry
    of the (projected) gradient exceeds `tolerance`, each feature in units in which its curvature is about 1.
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
    unit = np.append(np.where(size > 0, 1 / np.maximum(size, 1e-300), 1.0), 1.0)[:, None]
    begin = np.zeros((x.shape[1] + 1, labels.shape[1]))
    if start is not None:
        begin = np.vstack([start.weights.T, start.bias]) / unit
    if not (strength > 0).any():
        table = unit * _minimise(_objective(x, transposed, labels, l2, strength, unit), begin, tolerance, iterations)
        return Probes(table[:-1].T.copy(), table[-1].copy())
    table = np.empty_like(begin)
    for i in range(labels.shape[1]):
        objective = _objective(x, transposed, labels[:, [i]], l2, strength[[i]], unit)
        found = optimize.minimize(
            lambda flat, objective=objective: tuple(part.ravel() for part in objective(flat[:, None])),
            begin[:, i],
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * x.shape[1] + [(None, None)],
            options={"maxiter": iterations, "maxfun": 2 * iterations, "gtol": tolerance, "ftol": 0.0, "maxcor": 20},
        )
        table[:, i] = found.x
    table = unit * table
    return Probes(table[:-1].T.copy(), table[-1].copy())


Objective = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _objective(x: Any, transposed: Any, labels: np.ndarray, l2: float, l1: np.ndarray, unit: np.ndarray) -> Objective:
    """Values (L,) and gradients (F + 1, L) of the labels' objectives at (weights, biases) / unit."""
    sign = np.where(labels, 1.0, -1.0)
    count = labels.sum(axis=0)
    share = np.where(labels, 0.5 / count, 0.5 / (len(labels) - count))

    def objective(scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = scaled * unit
        weights = table[:-1]
        margin = sign * (x @ weights + table[-1])
        value = l2 / 2 * (weights**2).sum(axis=0) + l1 * weights.sum(axis=0)
        value -= (share * special.log_expit(margin)).sum(axis=0)
        pull = -share * sign * special.expit(-margin)
        gradient = np.vstack([transposed @ pull + l2 * weights + l1, pull.sum(axis=0)])
        return value, unit * gradient

    return objective


def _minimise(objective: Objective, at: np.ndarray, tolerance: float, iterations: int, memory: int = 20) -> np.ndarray:
    """L-BFGS (Nocedal 1980) on many convex problems at once, a column each, halving steps until Armijo's rule holds.

    scipy minimises one at a time, and then reading x is what costs; here all labels share each pass over it.
    """
    value, gradient = objective(at)
    history: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for _ in range(iterations):
        open_ = np.abs(gradient).max(axis=0) > tolerance
        if not open_.any():
            break
        toward = np.where(open_, -_inverse_hessian_times(gradient, history), 0.0)
        slope = (toward * gradient).sum(axis=0)
        step = np.ones(at.shape[1])
        for _ in range(40):
            trial = at + step * toward
            new_value, new_gradient = objective(trial)
            # a step that rounding alone makes longer is taken
            high = new_value > value + 1e-4 * step * slope + 1e-14 * np.abs(value)
            if not high.any():
                break
            step = np.where(high, step / 2, step)
        moved, turned = trial - at, new_gradient - gradient
        product = (moved * turned).sum(axis=0)
        history = [
            *history[-memory + 1 :],
            (moved, turned, np.where(product > 0, 1 / np.maximum(product, 1e-300), 0.0)),
        ]
        at, value, gradient = trial, new_value, new_gradient
    return at


def _inverse_hessian_times(
    gradient: np.ndarray, history: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> np.ndarray:
    """The two-loop recursion, a column each; a pair with weight 0 is passed over."""
    out = gradient.copy()
    alphas = []
    for moved, turned, weight in reversed(history):
        alphas.append(weight * (moved * out).sum(axis=0))
        out -= alphas[-1] * turned
    if history:
        _, turned, weight = history[-1]
        square = (turned**2).sum(axis=0)
        out *= np.where(weight > 0, 1 / np.maximum(weight * square, 1e-300), 1.0)
    for (moved, turned, weight), alpha in zip(history, reversed(alphas), strict=True):
        out += (alpha - weight * (turned * out).sum(axis=0)) * moved
    return out


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
