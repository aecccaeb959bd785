"""The computable side of the claims: every bound and closed form of parts A to D as a pure function.

Two laws carry most of it. A uniform unit vector u of R^d has squared distance Beta((d-k)/2, k/2) from a fixed
k-dimensional subspace (A1), so u_1^2 is Beta(1/2, (d-1)/2). Binomials and Beta tails are kept as logarithms, because
both leave the range of a float long before the bounds do (N = 10^6, k = 8, d = 64). Everything is float64 and defined
at d = 1, where one atom or one direction is all there is.

Part A's and B's bounds are in this file; C's and D's in `bounds_groups`, and both are read as `sasa_theory.bounds`.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import integrate, optimize, special

from sasa_theory.arguments import require_count, require_real
from sasa_theory.bounds_groups import (
    consolidation_ratio,
    decoder_norm_range,
    gate_margin,
    gate_ratio,
    moment_error,
    rank_window,
    simplex_costs,
    slice_floor,
    slice_map,
    slice_value,
    soft_routing_floor,
    spectral_cost,
    subspace_error,
    subspace_error_bound,
)
from synthetic.errors import UsageError

__all__ = [
    "atom_floor",
    "basis_slope",
    "bias_corrected",
    "consolidation_ratio",
    "decoder_norm_range",
    "distortion_floor",
    "gate_margin",
    "gate_ratio",
    "log_binomial",
    "log_tube_cdf",
    "min_atoms",
    "moment_error",
    "packing_cosine",
    "rank_window",
    "simplex_costs",
    "slice_floor",
    "slice_map",
    "slice_value",
    "soft_routing_floor",
    "spectral_cost",
    "split_slope",
    "subspace_error",
    "subspace_error_bound",
    "tiled_limit",
    "tiling_atoms",
    "tiling_floor",
    "tube_cdf",
]


# A. How many single directions a feature needs


def tube_cdf(t: float, d: int, k: int) -> float:
    """P(dist(u, U)^2 <= t) for u uniform on the unit sphere of R^d and U a fixed k-dimensional subspace (A1).

    F_{d,k}(t), the distribution function of Beta((d-k)/2, k/2); 1 for t >= 0 when k >= d, because U is everything.
    Raises UsageError unless d, k >= 1 and t is a number.
    """
    return math.exp(log_tube_cdf(t, d, k))


def log_tube_cdf(t: float, d: int, k: int) -> float:
    """log F_{d,k}(t), right where F itself would underflow (A1); -inf where F is 0."""
    require_count("d", d)
    require_count("k", k)
    require_real("t", t)
    if t < 0:
        return -math.inf
    return 0.0 if k >= d else _log_betainc((d - k) / 2, k / 2, t)


def log_binomial(n: int, k: int) -> float:
    """log C(n, k) as a sum of logarithms: exact to rounding for any n (Python integers), k up to millions."""
    k = min(k, n - k)
    if k < 0:
        return -math.inf
    if n < 2**52:
        i = np.arange(k, dtype=np.float64)
        return float(np.log((n - i) / (i + 1)).sum())
    return sum(math.log(n - i) - math.log(i + 1) for i in range(k))


def min_atoms(d: int, k: int, eps: float) -> int:
    """Fewest atoms whose k-subsets could come within eps of every unit vector of a d-dimensional feature (A2).

    N_min = min{N : C(N, k) F_{d,k}(eps^2) >= 1}; a dictionary that succeeds has N >= max(d, N_min), see `atom_floor`.
    For k >= d the count is void and the answer is d: a basis suffices. Raises UsageError unless 0 < eps < 1.
    """
    log_share = log_tube_cdf(_open_unit("eps", eps) ** 2, d, k)
    if k >= d:
        return d

    def enough(n: int) -> bool:
        return log_binomial(n, k) + log_share >= -1e-12

    return _first(enough, k)


def atom_floor(d: int, k: int, eps: float) -> int:
    """Fewest atoms that can reach every unit vector of the feature to eps with k of them at a time (A2).

    max(d, N_min): since eps < 1, no unit vector may be orthogonal to all atoms. Raises UsageError unless 0 < eps < 1.
    """
    return max(d, min_atoms(d, k, eps))


def distortion_floor(n_atoms: int, k: int, d: int, signed: bool = True, overflow: float = 0.0) -> float:
    """Least mean squared distance from a uniform unit vector of a d-dimensional feature to k of N atoms (A3).

    Dist(N, k, d) = int_0^1 max(0, 1 - p - C(N, min(k, N)) F_{d,k}(t)) dt, p = `overflow` = P(more than k are active).
    Non-negative codes (`signed=False`): with k = 1 an atom reaches half as much, N F / 2; with k >= 2 the same bound.
    Multiply by E ||h||^2 for other radii; for a decoder bias see `bias_corrected`. Raises UsageError unless N, k,
    d >= 1 and 0 <= p <= 1.
    """
    require_count("n_atoms", n_atoms)
    require_count("k", k)
    require_count("d", d)
    if not 0 <= overflow <= 1:
        raise UsageError(f"overflow is {overflow}; expected a probability between 0 and 1")
    k = min(k, n_atoms)
    log_ways = log_binomial(n_atoms, k) - (math.log(2) if k == 1 and not signed else 0.0)
    left = 1 - overflow
    if left == 0:
        return 0.0
    if k >= d:  # only a ray that points away leaves anything
        return max(0.0, left - math.exp(min(log_ways, 0.0))) if k == 1 and not signed else 0.0
    a, b = (d - k) / 2, k / 2
    edge = 1.0 if log_ways <= math.log(left) else _inverse_log_betainc(a, b, math.log(left) - log_ways)
    # int_0^T F = T F(T) - mean * I_T(a + 1, b); at the edge T the ways times F equal `left`, unless T is 1
    reached = math.exp(log_ways) if edge == 1.0 else left
    below = a / (a + b) * math.exp(log_ways + _log_betainc(a + 1, b, edge))
    return max(0.0, edge * left - edge * reached + below)


def bias_corrected(distortion: float, bias_norm: float) -> float:
    """What is left of a mean-square floor when the decoder has a bias (A3).

    max(0, sqrt(Dist) - ||P_V b||)^2, since sqrt(E dist^2) >= sqrt(Dist) - ||P_V b||. Raises UsageError for negatives.
    """
    if distortion < 0 or bias_norm < 0:
        raise UsageError(f"distortion {distortion} and bias_norm {bias_norm} must not be negative")
    return max(0.0, math.sqrt(distortion) - bias_norm) ** 2


def packing_cosine(n_atoms: int, d: int) -> float:
    """Some two of N atoms in R^d have |cosine| at least this (A5).

    max(0, cos 2 theta) with N P(|u_1| >= cos theta) = 1: caps of angle theta around the lines would not fit
    otherwise. Raises UsageError unless N >= 2.
    """
    if n_atoms < 2:
        raise UsageError(f"n_atoms is {n_atoms}; a pair needs at least 2 atoms")
    require_count("d", d)
    if d == 1:
        return 1.0
    sine_squared = _inverse_log_betainc((d - 1) / 2, 0.5, -math.log(n_atoms))
    return max(0.0, 1 - 2 * sine_squared)


# B. What the l1 objective rewards


def tiled_limit(radius: "float | Float[ndarray, '...']", lam: float) -> "float | Float[ndarray, '...']":
    """psi of a point of norm `radius` when atoms fill the sphere: the l2 cost of one group (B3).

    lam rho - lam^2/2 for rho >= lam, rho^2/2 below (the Huber function of the norm). Raises UsageError for negatives.
    """
    rho = np.asarray(radius, dtype=np.float64)
    if lam < 0 or (rho < 0).any():
        raise UsageError(f"radius {radius} and lam {lam} must not be negative")
    value = np.where(rho >= lam, lam * rho - lam**2 / 2, rho**2 / 2)
    return float(value) if value.ndim == 0 else value


def tiling_floor(n_atoms: int, d: int, radius: float, lam: float, signed: bool = True) -> float:
    """Lower bound on R(D) for N atoms of at most unit length and a rotation-invariant law of norm rho (B4).

    int_0^1 g(sqrt(isf(v / N))) dv, isf the upper quantile of Beta(1/2, (d-1)/2), g(c) = t rho^2 - t^2 rho^2 / 2 with
    t = min(1, lam / (c rho)). Non-negative codes without decoder bias: isf(min(1, 2 v / N)). The floor of R itself,
    not of its excess over `tiled_limit`; for random radii average over them. Raises UsageError for N, d < 1 or
    negative radius or lam.
    """
    require_count("n_atoms", n_atoms)
    require_count("d", d)
    if not (radius >= 0 and lam >= 0 and math.isfinite(radius) and math.isfinite(lam)):
        raise UsageError(f"radius {radius} and lam {lam} must be finite and not negative")
    zero_code = radius**2 / 2  # the cost of explaining nothing
    if lam >= radius:
        return zero_code
    if lam == 0:
        return zero_code / 2 if n_atoms == 1 and not signed else 0.0
    reach = n_atoms if signed else n_atoms / 2  # caps (pairs of caps) of measure P(|u_1| >= x) each
    if d == 1:
        share = min(1.0, reach)
        return share * float(tiled_limit(radius, lam)) + (1 - share) * zero_code
    b = (d - 1) / 2
    # below the kink x = (lam / rho)^2 the dual scaling is 1 and g constant; below `edge` no cap is left
    edge = 1 - _inverse_log_betainc(b, 0.5, -math.log(reach)) if reach > 1 else 0.0
    low = max(edge, (lam / radius) ** 2)
    # upper part in y = (1 - x) / (1 - low): the density x^{-1/2} (1 - x)^{b-1} becomes x^{-1/2} y^{b-1}
    log_scale = math.log(reach) + b * math.log1p(-low) - special.betaln(0.5, b)

    def smooth(y: float) -> float:
        x = 1 - (1 - low) * y
        return (lam * radius / math.sqrt(x) - lam**2 / (2 * x)) / math.sqrt(x)

    upper, _ = integrate.quad(smooth, 0, 1, weight="alg", wvar=(b - 1, 0), epsabs=0, epsrel=1e-12)
    covered = min(1.0, reach * math.exp(_log_betainc(b, 0.5, 1 - low)))
    return math.exp(log_scale) * upper + (1 - covered) * zero_code


def tiling_atoms(d: int, delta: float, radius: float, lam: float, signed: bool = True) -> int:
    """Fewest atoms with which R could come within delta of the tiled limit (B4): N ~ delta^{-(d-1)/2}.

    min{N : tiling_floor(N) - tiled_limit <= delta}; 1 where one atom is allowed to be enough. Raises UsageError
    unless delta > 0.
    """
    if not delta > 0:
        raise UsageError(f"delta is {delta}; expected a positive excess risk")
    limit = float(tiled_limit(radius, lam))
    return _first(lambda n: tiling_floor(n, d, radius, lam, signed) - limit <= delta, 1)


def basis_slope(h: "Float[ndarray, 'n d']", lam: float, signed: bool = True) -> float:
    """Slope of the risk when a duplicate of e_1 leaves the true basis towards e_2 (B5).

    R'(0+) = -E[(|h_1| - lam)_+ min(lam, |h_2|) 1{h_1 h_2 > 0}], the mean over the rows of `h` (feature coordinates);
    non-negative codes: -E[(h_1 - lam)_+ min(lam, h_2)_+]. 0 when d = 1. Raises UsageError for lam < 0 or no rows.
    """
    rows = np.asarray(h, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0 or lam < 0:
        raise UsageError(f"basis_slope needs rows of shape (n, d) and lam >= 0; got {rows.shape} and lam {lam}")
    if rows.shape[1] == 1:
        return 0.0
    first, second = rows[:, 0], rows[:, 1]
    if signed:
        gain = np.maximum(np.abs(first) - lam, 0) * np.minimum(lam, np.abs(second)) * (first * second > 0)
    else:
        gain = np.maximum(first - lam, 0) * np.clip(second, 0, lam)
    return -float(gain.mean())


def split_slope(
    codes: "Float[ndarray, ' n']", residuals: "Float[ndarray, 'n D']", direction: "Float[ndarray, ' D']"
) -> float:
    """Slope of the risk when a copy of a trained atom turns towards `direction` (B5').

    R'(0+) = -E[(a_j nu.w)_+] with a_j the atom's codes, nu = h - D a the residuals, w a unit vector orthogonal to the
    atom. Raises UsageError for shapes that do not fit.
    """
    codes, residuals, direction = (np.asarray(v, dtype=np.float64) for v in (codes, residuals, direction))
    if residuals.shape != (len(codes), len(direction)):
        raise UsageError(f"residuals have shape {residuals.shape}; expected ({len(codes)}, {len(direction)})")
    return -float(np.maximum(codes * (residuals @ direction), 0).mean())


# Numerics


def _log_betainc(a: float, b: float, x: float) -> float:
    """log I_x(a, b); a series with positive terms where the function itself is below the range of a float."""
    if x <= 0:
        return -math.inf
    if x >= 1:
        return 0.0
    value = float(special.betainc(a, b, x))
    if value > 1e-280:
        return math.log(value)
    # I_x(a, b) = x^a (1-x)^b / (a B(a, b)) * sum_n (a+b)_n / (a+1)_n x^n, DLMF 8.17.8
    term = total = 1.0
    n = 0
    while term > 1e-17 * total:
        term *= (a + b + n) / (a + 1 + n) * x
        total += term
        n += 1
    return a * math.log(x) + b * math.log1p(-x) - math.log(a) - float(special.betaln(a, b)) + math.log(total)


def _inverse_log_betainc(a: float, b: float, log_target: float) -> float:
    """x with log I_x(a, b) = log_target <= 0, by bisection in log x."""
    if log_target >= 0:
        return 1.0
    if log_target > -600:
        x = float(special.betaincinv(a, b, math.exp(log_target)))
        if 0 < x < 1:
            return x
    low = (log_target + math.log(a) + float(special.betaln(a, b))) / a - 1
    return math.exp(optimize.brentq(lambda v: _log_betainc(a, b, math.exp(v)) - log_target, low, 0.0, xtol=1e-15))


def _first(enough: Callable[[int], bool], start: int) -> int:
    """Smallest integer >= start with a property that stays true once true."""
    if enough(start):
        return start
    low, high = start, 2 * start
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _open_unit(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise UsageError(f"{name} is {value}; expected a number strictly between 0 and 1")
    return value
