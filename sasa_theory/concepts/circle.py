"""Is a cyclic concept a circle? Class means, their plane, and a circular fit with an exact or sampled p-value.

From activations x[t, w] (template t, word w) subtract each template's mean over words, average over templates, and
centre: m_w. Their top principal plane (chosen without looking at the order of the words) gives complex coordinates
y_w, and the fit in the words' natural order is

    R2 = max over both senses of rotation of |sum_w y_w exp(-+ 2 pi i w / n)|^2 / (n sum_w |y_w|^2),

1 for a regular n-gon in order, and at most 1 by Cauchy-Schwarz. The p-value is the share of all orders of the words
(enumerated up to n = 8, sampled beyond) whose R2 is at least as large; rotations and reflections of the order tie,
so it cannot fall below 2 n / n!.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from synthetic.errors import UsageError


@dataclass(frozen=True)
class CircularFit:
    """A circular fit of n class means in their principal plane.

    r2           share of the plane's variance on a circle in the given order (higher is better).
    p_value      permutation p of r2 (lower is better).
    plane_share  share of the class means' variance that the plane holds.
    plane        (n, 2) coordinates of the class means, rotated so that the first word is at angle 0 and the order
                 runs counter-clockwise.
    basis        (D, 2) orthonormal directions with plane = means @ basis.
    exact        True when every order was enumerated.
    """

    r2: float
    p_value: float
    plane_share: float
    plane: "Float[np.ndarray, 'n 2']"
    basis: "Float[np.ndarray, 'D 2']"
    exact: bool


def class_means(x: "Float[np.ndarray, 'T n D']") -> "Float[np.ndarray, 'n D']":
    """Means over templates after each template's own mean over words is removed; rows sum to zero."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 3 or min(x.shape) < 1:
        raise UsageError(f"class means need (templates, words, D) activations; got shape {x.shape}")
    return (x - x.mean(axis=1, keepdims=True)).mean(axis=0)


def circular_r2(y: "Float[np.ndarray, '*orders n 2']") -> "Float[np.ndarray, '*orders']":
    """R2 of points in the plane, taken in the order they stand, with a circle in that order (both senses)."""
    n = y.shape[-2]
    z = y[..., 0] + 1j * y[..., 1]
    turn = np.exp(2j * math.pi * np.arange(n) / n)
    energy = n * np.square(np.abs(z)).sum(axis=-1)
    best = np.maximum(np.abs(z @ turn.conj()), np.abs(z @ turn)) ** 2
    return np.divide(best, energy, out=np.zeros_like(best), where=energy > 0)


def circular_fit(
    means: "Float[np.ndarray, 'n D']", rng: np.random.Generator, n_permutations: int = 20_000
) -> CircularFit:
    """Circular fit of class means (module docstring); raises UsageError for fewer than 4 words.

    With three points every order is a rotation or reflection of every other, so there is nothing to test.
    """
    means = np.asarray(means, dtype=np.float64)
    n = len(means)
    if n < 4:
        raise UsageError(f"a circular fit needs at least 4 classes to have an order; got {n}")
    centred = means - means.mean(axis=0)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    basis = rows[:2].T
    plane = centred @ basis
    if plane.shape[1] < 2:
        raise UsageError(f"a circular fit needs at least 2 dimensions; got {means.shape[1]}")
    r2 = float(circular_r2(plane))
    exact = n <= 8
    if exact:
        # rotations of the order tie, so the first word may stay in place
        orders = np.array([(0, *rest) for rest in itertools.permutations(range(1, n))])
        p_value = float((circular_r2(plane[orders]) >= r2 - 1e-12).mean())
    else:
        orders = rng.permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1)
        hits = int((circular_r2(plane[orders]) >= r2 - 1e-12).sum())
        p_value = (1 + hits) / (1 + n_permutations)
    z, turn = plane[:, 0] + 1j * plane[:, 1], np.exp(2j * math.pi * np.arange(n) / n)
    if abs(z @ turn) > abs(z @ turn.conj()):
        basis = basis * np.array([1.0, -1.0])
        z = z.conj()
    angle = np.angle(z[0])
    spin = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    basis = basis @ spin
    total = float(np.square(values).sum())
    return CircularFit(
        r2=r2,
        p_value=p_value,
        plane_share=float(np.square(values[:2]).sum()) / total if total else 0.0,
        plane=centred @ basis,
        basis=basis,
        exact=exact,
    )
