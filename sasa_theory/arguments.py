"""What the theory side asks of its numbers: one sentence when a count, a real number or a spectrum is none."""

import math
import numbers

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from synthetic.errors import UsageError


def require_count(name: str, value: object, least: int = 1) -> None:
    """Raise UsageError unless `value` is an integer >= least."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UsageError(f"{name} is {value!r}; expected a whole number >= {least}")


def require_real(name: str, value: float, least: float = -math.inf) -> None:
    """Raise UsageError unless `value` is a number >= least; NaN is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not float(value) >= least:
        raise UsageError(f"{name} is {value!r}; expected a number" + (f" >= {least:g}" if least > -math.inf else ""))


def second_moment(name: str, value: "Float[ndarray, 'D D']") -> "Float[ndarray, 'D D']":
    """`value` as a float64 matrix; UsageError unless it is square, finite, symmetric and not indefinite."""
    matrix = np.asarray(value, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise UsageError(f"{name} has shape {matrix.shape}; expected a finite square matrix")
    size = float(np.abs(matrix).max(initial=0.0))
    if np.abs(matrix - matrix.T).max(initial=0.0) > 1e-8 * size:
        raise UsageError(f"{name} is not symmetric; expected a second moment sum_t w_t h_t h_t^T")
    lowest = float(np.linalg.eigvalsh(matrix)[0]) if len(matrix) else 0.0
    if lowest < -1e-8 * size * len(matrix):
        raise UsageError(f"{name} has the eigenvalue {lowest:.3g}; a second moment has none below zero")
    return matrix
