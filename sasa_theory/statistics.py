"""Growth laws: is a quantity measured at several d exponential or polynomial in d, or can the data not tell?

Both laws are lines for y = log n: y = a + b d (exponential, rate b) and y = a + b log d (polynomial, exponent b), with
normal scatter. A run that ended before it reached its target is right-censored: all that is known is that its y lies
above the limit. The fit is maximum likelihood (Tobin 1958), in Olsen's (1978) parameters, in which the log-likelihood
is concave and Newton's method finds its only maximum.

The two laws have equally many parameters, so the difference of their AICc is twice the log of their likelihood ratio.
A law is decided when its AICc lies at least `THRESHOLD` below that of the other law and below that of "no growth", and
its slope is positive; otherwise the answer is "undecided". A threshold of 6 is a likelihood ratio of e^3 = 20: were the
parameters known, the wrong law would be so far ahead in at most one set of data in 20 (Markov's inequality), and growth
is read into pure noise less often than that. Both rates are measured by claim D4. They hold when one of the two laws is
true with equal scatter of log n at all d; whole numbers of samples near n = 2 break that, so keep n well above it or
let d range widely.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import special

from sasa_theory.arguments import require_count, require_real
from synthetic.errors import DataError, UsageError

#: lead in AICc that decides
THRESHOLD = 6.0
#: scatter of log n below which no fit is believed: 1 % of n
RESOLUTION = 0.01
#: runs at each x from which the bootstrap resamples runs within x; with 2 or 3 its 95 % intervals covered 80-90 %
FEW = 5

Growth = Literal["exponential", "polynomial", "undecided"]


@dataclass(frozen=True)
class Line:
    """A law y = intercept + slope x fitted to y = log n; x is d, log d, or 0 (no growth).

    slope            rate per unit of d, or exponent.
    low, high        its confidence interval; NaN when none was asked for.
    scale            standard deviation of the scatter in log n.
    log_likelihood   of the data, censored runs included.       aicc  Akaike's criterion, corrected for few runs.
    """

    intercept: float
    slope: float
    scale: float
    log_likelihood: float
    aicc: float
    low: float = float("nan")
    high: float = float("nan")

    def at(self, x: "Float[ndarray, ' m'] | float") -> "Float[ndarray, ' m']":
        """exp(intercept + slope x), the n of the law at x (d, or log d)."""
        return np.exp(self.intercept + self.slope * np.asarray(x, dtype=np.float64))


@dataclass(frozen=True)
class Decision:
    """Which law the data support, and by how much.

    difference   AICc(polynomial) - AICc(exponential): positive when the exponential law is ahead.
    low, high    its bootstrap percentile interval (how much of it hangs on a few runs); NaN when not asked for.
    lead         AICc of the law ahead below its best rival, the other law or no growth; decided at `threshold`.
    """

    decision: Growth
    difference: float
    low: float
    high: float
    lead: float
    threshold: float
    exponential: Line
    polynomial: Line
    constant: Line
    runs: int
    censored: int


def growth_law(
    d: "Float[ndarray, ' m']",
    n: "Float[ndarray, ' m']",
    censored: "Bool[ndarray, ' m'] | None" = None,
    *,
    rng: np.random.Generator | None = None,
    threshold: float = THRESHOLD,
    resamples: int = 500,
    level: float = 0.95,
) -> Decision:
    """Decide whether n grows exponentially or polynomially in d, from one run per entry (D4).

    log n = a + b d against log n = a + b log d by AICc (module docstring). `d` >= 1; `n` > 0, for censored runs the
    largest value tried; `rng` draws the bootstrap (None: no intervals). Raises UsageError for arrays that do not fit
    or a negative threshold, DataError when fewer than three values of d have a run that reached its target or fewer
    than five runs are given.
    """
    d, y, off = _checked(d, n, censored)
    require_real("threshold", threshold, 0)
    if not (d >= 1).all():
        raise UsageError(f"d is as small as {d.min()}; expected dimensions >= 1")
    axes = {"exponential": d, "polynomial": np.log(d), "constant": np.zeros_like(d)}
    lines = {name: _line(x, y, off, rng, resamples, level) for name, x in axes.items()}
    exponential, polynomial, constant = lines.values()
    difference = polynomial.aicc - exponential.aicc
    ahead: Growth = "exponential" if difference > 0 else "polynomial"
    lead = min(abs(difference), constant.aicc - lines[ahead].aicc)
    low = high = float("nan")
    if rng is not None:
        draws = _draws(axes[ahead], y, off, lines[ahead], rng, resamples)
        first, second = (_fit(axes[name], *draws).log_likelihood for name in ("exponential", "polynomial"))
        low, high = np.quantile(2 * (first - second), [(1 - level) / 2, (1 + level) / 2])
    return Decision(
        decision=ahead if lead >= threshold and lines[ahead].slope > 0 else "undecided",
        difference=float(difference),
        low=float(low),
        high=float(high),
        lead=float(lead),
        threshold=float(threshold),
        exponential=exponential,
        polynomial=polynomial,
        constant=constant,
        runs=len(y),
        censored=int(off.sum()),
    )


def power_law(
    x: "Float[ndarray, ' m']",
    y: "Float[ndarray, ' m']",
    censored: "Bool[ndarray, ' m'] | None" = None,
    *,
    rng: np.random.Generator | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> Line:
    """Exponent of y ~ x^b with its interval: the line log y = a + b log x (B4's exponent of excess risk against N).

    `x`, `y` > 0; censored entries say that y is larger; `rng` draws the bootstrap (None: no interval). Raises
    UsageError for arrays that do not fit, DataError for fewer than five entries or three values of x.
    """
    x, log_y, off = _checked(x, y, censored)
    if not (x > 0).all():
        raise UsageError(f"x is as small as {x.min()}; a power law needs x > 0")
    return _line(np.log(x), log_y, off, rng, resamples, level)


def _checked(x: object, n: object, censored: object) -> tuple[ndarray, ndarray, ndarray]:
    """x, log n and the censoring mask as arrays of one length, or an error."""
    axis, values = (np.asarray(v, dtype=np.float64) for v in (x, n))
    off = np.zeros(values.shape, dtype=bool) if censored is None else np.asarray(censored, dtype=bool)
    if axis.ndim != 1 or axis.shape != values.shape or off.shape != values.shape:
        raise UsageError(f"shapes {axis.shape}, {values.shape}, {off.shape}; expected three vectors of one length")
    if not (np.isfinite(axis).all() and np.isfinite(values).all() and (values > 0).all()):
        raise UsageError("every entry must be finite and every n positive; a run without a result is censored")
    if len(values) < 5 or len(np.unique(axis[~off])) < 3:
        raise DataError(
            f"{len(values)} runs, {len(np.unique(axis[~off]))} distinct x with a run that reached its target; a law "
            "needs 5 and 3: measure more, or allow larger n"
        )
    return axis, np.log(values), off


class _Fits(NamedTuple):
    """Maximum-likelihood lines of B data sets: intercept, slope, its standard error, scatter, log-likelihood, (B,)."""

    intercept: ndarray
    slope: ndarray
    error: ndarray
    scale: ndarray
    log_likelihood: ndarray


def _fit(
    x: "Float[ndarray, ' m']",
    y: "Float[ndarray, 'B m']",
    off: "Bool[ndarray, 'B m']",
    weights: "Float[ndarray, 'B m']",
) -> _Fits:
    """Tobit regression of B data sets at once by Newton's method.

    With gamma = (a, b) / sigma, h = 1 / sigma and z = h y - gamma.(1, x) the log-likelihood is the sum over reached
    runs of log h - z^2 / 2 and over censored ones of log Phi(-z): concave in (gamma, h). RESOLUTION^2 is added to every
    squared residual, so that a perfect fit does not make the likelihood infinite.
    """
    centre, width = x.mean(), x.std()
    level = y.mean()
    columns = [-np.ones_like(x)] + ([-(x - centre) / width] if width > 0 else [])
    p = len(columns)
    z_of = np.stack([*(np.broadcast_to(c, y.shape) for c in columns), y - level], axis=2)
    on = np.where(off, 0.0, weights)
    reached = on.sum(axis=1)

    def value(theta: ndarray) -> ndarray:
        h = np.maximum(theta[:, p], 1e-300)
        z = np.einsum("bmp,bp->bm", z_of, theta)
        seen = on * (np.log(h)[:, None] - 0.5 * z**2)
        hidden = np.where(off, weights * special.log_ndtr(-z), 0.0)
        return (seen + hidden).sum(axis=1) - 0.5 * reached * (h * RESOLUTION) ** 2

    theta = np.zeros((len(y), p + 1))
    theta[:, p] = 1 / max(float(y.std()), RESOLUTION)
    best = value(theta)
    for _ in range(100):
        z, h = np.einsum("bmp,bp->bm", z_of, theta), theta[:, p]
        hazard = np.exp(-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - special.log_ndtr(-z))
        pull = np.where(off, weights * hazard, on * z)
        curve = np.where(off, weights * hazard * (hazard - z), on)
        gradient = -np.einsum("bm,bmp->bp", pull, z_of)
        gradient[:, p] += reached / h - reached * RESOLUTION**2 * h
        information = np.einsum("bm,bmp,bmq->bpq", curve, z_of, z_of)
        information[:, p, p] += reached / h**2 + reached * RESOLUTION**2
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        size = np.ones(len(y))
        for _ in range(40):
            trial = theta + size[:, None] * step
            got = np.where(trial[:, p] > 0, value(trial), -np.inf)
            worse = got < best
            if not worse.any():
                break
            size[worse] /= 2
        theta = np.where((got >= best)[:, None], trial, theta)
        gain, best = np.maximum(got - best, 0), np.maximum(got, best)
        if gain.max() <= 1e-11:
            break
    h = theta[:, p]
    covariance = np.linalg.inv(information)
    slope, error = np.zeros(len(y)), np.zeros(len(y))
    if p == 2:
        direction = np.stack([np.zeros_like(h), 1 / h, -theta[:, 1] / h**2], axis=1)
        slope = theta[:, 1] / h / width
        error = np.sqrt(np.einsum("bp,bpq,bq->b", direction, covariance, direction)) / width
    intercept = level + theta[:, 0] / h - slope * centre
    return _Fits(intercept, slope, error, 1 / h, best - 0.5 * reached * np.log(2 * np.pi))


def _line(x: ndarray, y: ndarray, off: ndarray, rng: np.random.Generator | None, resamples: int, level: float) -> Line:
    """The fitted line, with a studentised bootstrap interval of its slope (Efron 1979; Hall 1988)."""
    require_count("resamples", resamples)
    if not 0 < level < 1:
        raise UsageError(f"level is {level}; expected a confidence level strictly between 0 and 1")
    fit = _fit(x, y[None], off[None], np.ones((1, len(y))))
    intercept, slope, error, scale, log_likelihood = (float(v[0]) for v in fit)
    k, m = (3 if x.std() > 0 else 2), len(y)
    aicc = 2 * k - 2 * log_likelihood + 2 * k * (k + 1) / (m - k - 1)
    line = Line(intercept, slope, scale, log_likelihood, aicc)
    if rng is None or k == 2:
        return line
    again = _fit(x, *_draws(x, y, off, line, rng, resamples))
    lowest, highest = map(float, np.quantile((again.slope - slope) / again.error, [(1 - level) / 2, (1 + level) / 2]))
    return Line(intercept, slope, scale, log_likelihood, aicc, low=slope - highest * error, high=slope - lowest * error)


def _draws(
    x: ndarray, y: ndarray, off: ndarray, line: Line, rng: np.random.Generator, resamples: int
) -> tuple[ndarray, ndarray, ndarray]:
    """Resampled (y, off, weights): runs within each x where each has at least FEW, else from the fitted law.

    Data sets in which fewer than two x have a run that reached its target do not fix a slope and are left out.
    """
    m = len(y)
    groups = [np.flatnonzero(x == value) for value in np.unique(x)]
    weights = np.ones((resamples, m))
    if min(len(group) for group in groups) >= FEW:
        for group in groups:
            weights[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=resamples)
        drawn, hidden = np.broadcast_to(y, (resamples, m)), np.broadcast_to(off, (resamples, m))
    else:
        limit = y[off].max() if off.any() else np.inf
        drawn = line.intercept + line.slope * x + line.scale * rng.standard_normal((resamples, m))
        hidden = drawn > limit
        drawn = np.minimum(drawn, limit)
    reached = sum(((weights[:, g] > 0) & ~hidden[:, g]).any(axis=1).astype(int) for g in groups)
    usable = np.asarray(reached) >= 2
    return drawn[usable], hidden[usable], weights[usable]
