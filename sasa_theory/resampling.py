"""Bootstrap intervals of statistics that are functions of sums over independent units (contexts, prompts, words).

Units are drawn with replacement as often as there are units; a draw is a vector of counts, so the sums of all draws are
one matrix product and ratios of sums (scores, shares) cost no more than means.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from sasa_theory.arguments import require_count
from synthetic.errors import UsageError

#: bootstrap draws
RESAMPLES = 2000


def bootstrap(
    sums: "Float[np.ndarray, 'n m']",
    statistic: "Callable[[Float[np.ndarray, 'B m']], Float[np.ndarray, ' B']]",
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of statistic(sums over units) under resampling of the n units (Efron 1979).

    sums       one row per unit: the quantities that the statistic needs, summed (or counted) over that unit.
    statistic  maps (B, m) totals of B draws to B numbers, elementwise over draws.
    Raises UsageError for no unit, values that are not finite or a level outside (0, 1). With one unit the interval is
    (nan, nan): nothing is known about the spread.
    """
    sums = np.asarray(sums, dtype=np.float64)
    if sums.ndim != 2 or len(sums) == 0 or not np.isfinite(sums).all():
        raise UsageError(f"sums has shape {sums.shape}; expected finite numbers (units, quantities), at least one unit")
    if len(sums) == 1:
        return float("nan"), float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(resample_counts(len(sums), rng, resamples) @ sums)
    return percentile_interval(values, level)


def resample_counts(n: int, rng: np.random.Generator, resamples: int = RESAMPLES) -> "Float[np.ndarray, 'B n']":
    """How often each of n units is in each resample; to share the same resamples between many statistics."""
    require_count("units", n)
    require_count("resamples", resamples)
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def percentile_interval(values: "Float[np.ndarray, ' B']", level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of the resampled values that are finite; (nan, nan) when none is."""
    if not 0 < level < 1:
        raise UsageError(f"level is {level}; expected a number between 0 and 1")
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_mean(
    values: "Float[np.ndarray, ' n']", rng: np.random.Generator, *, resamples: int = RESAMPLES, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of one number per unit."""
    values = np.asarray(values, dtype=np.float64)
    return bootstrap(values[:, None], lambda total: total[:, 0] / len(values), rng, resamples=resamples, level=level)
