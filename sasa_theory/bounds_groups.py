"""Bounds and closed forms for groups: one slice and its nuclear norm (C), and how many samples fix it (D).

Everything about one group follows from f(x) = min over a of x (1 - a)^2 + lam a, the cost of one direction that
carries energy x: keep it shrunk, or drop it when x <= lam / 2. A slice costs tr f(Sigma). Read as part of
`sasa_theory.bounds`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sasa_theory.arguments import require_count, require_real, second_moment
from synthetic.errors import UsageError


def spectral_cost(x: "float | Float[ndarray, '...']", lam: float) -> "Float[ndarray, '...']":
    """What a direction of energy x costs at its best: f(x) = x for x <= lam / 2, else lam - lam^2 / (4 x) (C1).

    Same shape as x. Raises UsageError for negative x or lam.
    """
    energy = np.asarray(x, dtype=np.float64)
    require_real("lam", lam, 0)
    if (energy < 0).any():
        raise UsageError(f"the smallest energy is {energy.min():.3g}; expected energies >= 0")
    safe = np.where(energy > 0, energy, 1)
    return np.where(energy <= lam / 2, energy, lam - lam**2 / (4 * safe))


def slice_value(sigma: "Float[ndarray, 'D D']", lam: float) -> float:
    """Least cost of one group on a slice with second moment Sigma: tr f(Sigma) (C1).

    min_M tr((I - M) Sigma (I - M)^T) + lam ||M||_*, for a rank r >= #{sigma_j > lam / 2}. Units of Sigma. Raises
    UsageError when Sigma is no second moment or lam < 0.
    """
    eigenvalues = np.linalg.eigvalsh(second_moment("Sigma", sigma))
    return float(spectral_cost(np.maximum(eigenvalues, 0), lam).sum())


def slice_map(sigma: "Float[ndarray, 'D D']", lam: float) -> "Float[ndarray, 'D D']":
    """The map that reaches `slice_value`: M* = U diag((1 - lam / (2 sigma_j))_+) U^T (C1).

    Unique for lam > 0; at lam = 0 the projector onto the range of Sigma. Raises UsageError when Sigma is no second
    moment or lam < 0.
    """
    require_real("lam", lam, 0)
    values, vectors = np.linalg.eigh(second_moment("Sigma", sigma))
    rounding = 1e-14 * max(float(values[-1]), 0.0) * len(values) if len(values) else 0.0
    safe = np.where(values > rounding, values, math.inf)
    gains = np.where(values > rounding, np.maximum(1 - lam / (2 * safe), 0), 0)
    return (vectors * gains) @ vectors.T


def slice_floor(map_: "Float[ndarray, 'D D']", sigma: "Float[ndarray, 'D D']", lam: float) -> float:
    """Lower bound on the cost of every single group, read off any map M (C1, dual).

    2 t tr((I - M) Sigma) - t^2 tr((I - M) Sigma (I - M)^T) with t = min(1, lam / ||2 (I - M) Sigma||_op); equal to
    the optimum at M*. Raises UsageError for shapes that do not fit.
    """
    sigma = second_moment("Sigma", sigma)
    require_real("lam", lam, 0)
    left = np.eye(len(sigma)) - np.asarray(map_, dtype=np.float64)
    unexplained = left @ sigma
    size = float(np.linalg.norm(2 * unexplained, 2)) if len(sigma) else 0.0
    t = min(1.0, lam / size) if size > 0 else 1.0
    return 2 * t * float(np.trace(unexplained)) - t**2 * float(np.trace(unexplained @ left.T))


def soft_routing_floor(sigma: "Float[ndarray, 'D D']", lam: float) -> float:
    """No routing, soft or hard, of a slice costs less than f(tr Sigma) (C4).

    With nu = max_S ||M_S||_* the objective is at least (1 - nu)_+^2 tr Sigma + lam nu, least at f(tr Sigma). Raises
    UsageError when Sigma is no second moment or lam < 0.
    """
    return float(spectral_cost(max(float(np.trace(second_moment("Sigma", sigma))), 0.0), lam))


def consolidation_ratio(d: int) -> float:
    """How little soft routing can cost against one group, at the very least: 1 / d (C4; an infimum, not reached).

    f(tr Sigma) / tr f(Sigma) > 1 / d, because tr f(Sigma) <= d f(tr Sigma / d). Raises UsageError unless d >= 1.
    """
    require_count("d", d)
    return 1 / d


class SimplexCosts(NamedTuple):
    """Costs of the family of C4: the shared soft routing, and the best single group."""

    shared: float
    single: float


def simplex_costs(d: int, angle: float, lam: float) -> SimplexCosts:
    """The family of slices on which soft routing gains most (C4).

    Tokens u_t = cos p e_1 + sin p w_t, t = 1..d of weight 1, w_t a regular simplex around e_1, routed to {0, t}:
    shared = f(d cos^2 p) + d lam tan p - d lam^2 / (4 cos^2 p); single = f(d cos^2 p) + (d-1) f(d sin^2 p / (d-1)).
    Raises UsageError unless d >= 2 and a = (sin p cos p - lam / 2) / cos^2 p > 0.
    """
    require_count("d", d, 2)
    cosine, sine = math.cos(angle), math.sin(angle)
    if not (cosine > 0 and sine * cosine > lam / 2 >= 0):
        raise UsageError(f"angle {angle:g} and lam {lam:g} give no code; expected sin p cos p > lam / 2 and p < pi/2")
    common = float(spectral_cost(d * cosine**2, lam))
    shared = common + d * lam * sine / cosine - d * lam**2 / (4 * cosine**2)
    return SimplexCosts(shared, common + (d - 1) * float(spectral_cost(d * sine**2 / (d - 1), lam)))


class Window(NamedTuple):
    """Penalties lam with low <= lam < high; empty when low >= high."""

    low: float
    high: float


def rank_window(signal: "Sequence[float] | Float[ndarray, ' d']", noise: float = 0.0, frequency: float = 1.0) -> Window:
    """Penalties for which the best map has exactly the rank of the signal (C6).

    nu^2 <= lam / 2 < p sigma_d, so lam from 2 nu^2 to 2 p sigma_d: `signal` the d signal eigenvalues of
    E[h h^T | active], `frequency` p how often the feature is active, `noise` nu^2 the largest other eigenvalue of
    Sigma_k = E[h h^T 1{k on}]. Several features: take the largest low and the least high. Raises UsageError for an
    empty or negative spectrum, noise < 0, or p outside (0, 1].
    """
    eigenvalues = np.asarray(signal, dtype=np.float64).ravel()
    if len(eigenvalues) == 0 or not (eigenvalues >= 0).all():
        raise UsageError(f"signal is {signal!r}; expected at least one eigenvalue, none negative")
    require_real("noise", noise, 0)
    if not 0 < frequency <= 1:
        raise UsageError(f"frequency is {frequency}; expected a share of the tokens in (0, 1]")
    return Window(2 * float(noise), 2 * frequency * float(eigenvalues.min()))


def gate_margin(norms: "Sequence[float] | Float[ndarray, ' s']", mu: float, noise: float = 0.0) -> float:
    """How far the Top-s gate is from a wrong choice; it is right when this is positive (C7).

    (1 + mu) min ||z_i|| - 2 mu sum ||z_l|| - 2 noise, `norms` the ||z_l|| of the active features, mu = max_{i != j}
    ||V_i^T V_j||_2, noise = max_i ||V_i^T e||. Units of z. Raises UsageError for no or negative norms, mu outside
    [0, 1], noise < 0.
    """
    sizes = np.asarray(norms, dtype=np.float64).ravel()
    if len(sizes) == 0 or not (sizes >= 0).all():
        raise UsageError(f"norms is {norms!r}; expected the norm of each active feature, none negative")
    require_real("noise", noise, 0)
    if not 0 <= mu <= 1:
        raise UsageError(f"mu is {mu}; expected a coherence between 0 and 1")
    return (1 + mu) * float(sizes.min()) - 2 * mu * float(sizes.sum()) - 2 * float(noise)


def gate_ratio(s: int, mu: float) -> float:
    """Ratio of the weakest to the strongest active feature above which Top-s is right without noise (C7).

    2 (s - 1) mu / (1 - mu); infinite at mu = 1 for s >= 2. Tight for d_i = 1 and mu < 1 / (2 s - 1). Raises UsageError
    unless s >= 1 and 0 <= mu <= 1.
    """
    require_count("s", s)
    if not 0 <= mu <= 1:
        raise UsageError(f"mu is {mu}; expected a coherence between 0 and 1")
    if s == 1:
        return 0.0
    return 2 * (s - 1) * mu / (1 - mu) if mu < 1 else math.inf


class NormRange(NamedTuple):
    """Least and largest value a norm can take."""

    low: float
    high: float


def decoder_norm_range(r: int) -> NormRange:
    """Nuclear norms a decoder block of r unit rows can have: sqrt(r) (collinear) to r (orthonormal) (C8).

    Raises UsageError unless r >= 1.
    """
    require_count("r", r)
    return NormRange(math.sqrt(r), float(r))


def subspace_error(n: int, ambient: int, d: int, noise: float, signal: float = 1.0) -> float:
    """Leading-order error of a slice found from n samples: E ||sin Theta||_F^2 (D2).

    d (D - d) sigma^2 (v + sigma^2) / (n v^2), sigma = `noise` the noise per direction (standard deviation), v =
    `signal` the signal variance per direction, top-d eigenvectors of the sample second moment. Raises UsageError for
    counts below 1, d > D, v <= 0 or sigma < 0.
    """
    _require_slice(n, ambient, d, noise, signal)
    return d * (ambient - d) * noise**2 * (signal + noise**2) / (n * signal**2)


def subspace_error_bound(d: int, operator_error: float, frobenius_error: float, gap: float) -> float:
    """Bound on ||sin Theta||_F that holds in every trial (D2; Davis and Kahan as Yu, Wang and Samworth 2015).

    2 min(sqrt(d) ||Delta||_op, ||Delta||_F) / gap, Delta the error of the second moment, gap the distance of its d-th
    and (d+1)-th eigenvalues. Raises UsageError for d < 1, negative errors or gap <= 0.
    """
    require_count("d", d)
    require_real("operator_error", operator_error, 0)
    require_real("frobenius_error", frobenius_error, 0)
    if not gap > 0:
        raise UsageError(f"gap is {gap}; expected a positive distance between the eigenvalues")
    return 2 * min(math.sqrt(d) * operator_error, frobenius_error) / gap


def moment_error(n: int, ambient: int, noise: float, signal: float = 1.0, delta: float = 0.01) -> float:
    """Bound on ||Delta||_op, the error of a Gaussian slice's second moment, with probability 1 - delta (D2).

    (v + sigma^2) (2 eta + eta^2), eta = sqrt(D / n) + sqrt(2 log(2 / delta) / n). Raises UsageError for counts below
    1, v <= 0, sigma < 0 or delta outside (0, 1).
    """
    _require_slice(n, ambient, 1, noise, signal)
    if not 0 < delta < 1:
        raise UsageError(f"delta is {delta}; expected a probability strictly between 0 and 1")
    eta = math.sqrt(ambient / n) + math.sqrt(2 * math.log(2 / delta) / n)
    return (signal + noise**2) * (2 * eta + eta**2)


def _require_slice(n: int, ambient: int, d: int, noise: float, signal: float) -> None:
    require_count("n", n)
    require_count("ambient", ambient)
    require_count("d", d)
    require_real("noise", noise, 0)
    if d > ambient:
        raise UsageError(f"d is {d}; expected at most the ambient dimension {ambient}")
    if not signal > 0:
        raise UsageError(f"signal is {signal}; expected a positive variance")
