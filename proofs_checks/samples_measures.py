"""What the claims of part D measure: slices found from samples, the worst perturbations, and samples to a target.

The slice is V = the first d coordinates of R^D (every law here is rotation-invariant), so its second moment with noise
is diag(v + sigma^2, .., sigma^2, ..) and a sample second moment can be drawn from Wishart's law directly.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import optimize

from sasa_theory.solvers import klines

# Slices


def slice_spectrum(ambient: int, d: int, noise: float, signal: float = 1.0) -> "Float[ndarray, ' D']":
    """Eigenvalues of the second moment: v + sigma^2 on the first d coordinates, sigma^2 on the others."""
    return np.where(np.arange(ambient) < d, signal, 0.0) + noise**2


def sampled_moment(n: int, spectrum: "Float[ndarray, ' D']", rng: np.random.Generator) -> "Float[ndarray, 'D D']":
    """Second moment of n >= D Gaussian rows with covariance diag(spectrum), by Bartlett's decomposition."""
    width = len(spectrum)
    factor = np.tril(rng.standard_normal((width, width)), -1)
    factor[np.diag_indices(width)] = np.sqrt(rng.chisquare(n - np.arange(width)))
    factor *= np.sqrt(spectrum)[:, None]
    return factor @ factor.T / n


def sine_error(moment: "Float[ndarray, 'D D']", d: int) -> float:
    """||sin Theta||_F between the first d coordinates and the top-d eigenvectors of `moment`."""
    _, vectors = np.linalg.eigh(moment)
    return float(np.linalg.norm(vectors[d:, -d:]))


def sine_errors(
    n: int, ambient: int, d: int, noise: float, signal: float, trials: int, rng: np.random.Generator
) -> "Float[ndarray, ' trials']":
    """||sin Theta||_F^2 of `trials` samples of n rows each (D2)."""
    spectrum = slice_spectrum(ambient, d, noise, signal)
    return np.array([sine_error(sampled_moment(n, spectrum, rng), d) ** 2 for _ in range(trials)])


def samples_to_error(
    target: float, ambient: int, d: int, noise: float, signal: float, trials: int, rng: np.random.Generator
) -> float:
    """n at which the mean of ||sin Theta||_F^2 comes down to `target`, between sizes a factor 2 apart."""

    def mean_error(n: int) -> float:
        return float(sine_errors(n, ambient, d, noise, signal, trials, rng).mean())

    return crossing(mean_error, target, [ambient * 2**i for i in range(16)])[0]


def exact_samples(d: int) -> int:
    """Samples in general position that determine a noise-free slice: d (D1)."""
    return d


def general_rows(n: int, d: int, ambient: int, law: str, rng: np.random.Generator) -> "Float[ndarray, 'n D']":
    """n clean rows in the first d coordinates, from a law with a density there: "gaussian", "cauchy" or "uniform"."""
    rows = np.zeros((n, ambient))
    if law == "gaussian":
        rows[:, :d] = rng.standard_normal((n, d))
    elif law == "cauchy":
        rows[:, :d] = rng.standard_cauchy((n, d))
    else:
        rows[:, :d] = rng.uniform(-1, 1, (n, d))
    return rows


def samples_until_exact(d: int, rows: "Float[ndarray, 'n D']", tolerance: float = 1e-6) -> int | None:
    """Fewest leading rows whose span is the first d coordinates, to `tolerance` in the sine; None if never."""
    for n in range(1, len(rows) + 1):
        _, sigma, right = np.linalg.svd(rows[:n], full_matrices=False)
        basis = right[sigma > 1e-9 * sigma[0]]
        if len(basis) == d and float(np.linalg.norm(basis[:, d:])) <= tolerance:
            return n
    return None


# Perturbations


def swapping_perturbation(ambient: int, d: int, gap: float, by: float = 1e-9) -> "Float[ndarray, 'D D']":
    """The smallest perturbation that puts d other directions on top: gap/2 (1 + by) on d of them, minus that on V."""
    size = np.zeros(ambient)
    size[:d], size[d : 2 * d] = -0.5 * gap * (1 + by), 0.5 * gap * (1 + by)
    return np.diag(size)


def perturbation_ratio(
    formula: Callable[..., float], delta: "Float[ndarray, 'D D']", spectrum: "Float[ndarray, ' D']", d: int
) -> tuple[float, float]:
    """(bound, ||sin Theta||_F) of a second moment diag(spectrum) perturbed by a symmetric `delta`."""
    bound = formula(d, float(np.linalg.norm(delta, 2)), float(np.linalg.norm(delta)), spectrum[d - 1] - spectrum[d])
    return bound, sine_error(np.diag(spectrum) + delta, d)


def worst_perturbation(
    formula: Callable[..., float],
    spectrum: "Float[ndarray, ' D']",
    d: int,
    rng: np.random.Generator,
    steps: int,
) -> "Float[ndarray, 'D D']":
    """The symmetric perturbation found to use up most of the bound: hill climbing from a random start."""
    width, gap = len(spectrum), spectrum[d - 1] - spectrum[d]

    def symmetric(size: float) -> ndarray:
        noise = rng.standard_normal((width, width))
        return size * gap * (noise + noise.T)

    def share(delta: ndarray) -> float:
        bound, found = perturbation_ratio(formula, delta, spectrum, d)
        return found / bound

    best = symmetric(0.1)
    value = share(best)
    for step in range(steps):
        trial = best + symmetric(0.1 * 0.97 ** (step % 200))
        if (got := share(trial)) > value:
            best, value = trial, got
    return best


def normal_deviation(delta: float, n: int) -> float:
    """t with 2 exp(-n t^2 / 2) = delta, by root finding."""
    return float(optimize.brentq(lambda t: math.log(2) - n * t * t / 2 - math.log(delta), 0, 100, xtol=1e-15))


# Samples to a target


def crossing(
    error: Callable[[int], float], target: float, sizes: Sequence[int]
) -> tuple[float, bool, list[tuple[int, float]]]:
    """First n at which `error` is down to `target`, log-log between the sizes tried: (n, censored, what was seen).

    Censored: not even the largest size reached it, and n is that size.
    """
    seen: list[tuple[int, float]] = []
    for n in sizes:
        seen.append((n, error(n)))
        if seen[-1][1] <= target:
            break
    else:
        return float(sizes[-1]), True, seen
    return interpolated(seen, target), False, seen


def crossing_by_bisection(
    error: Callable[[int], float], target: float, sizes: Sequence[int]
) -> tuple[float, bool, list[tuple[int, float]]]:
    """As `crossing`, for an `error` that is dear and falls with n: about log2 of the sizes are tried."""
    seen: dict[int, float] = {}
    low, high = -1, len(sizes)  # sizes[low] missed the target, sizes[high] reached it
    while high - low > 1:
        middle = (low + high) // 2
        seen[sizes[middle]] = error(sizes[middle])
        low, high = (low, middle) if seen[sizes[middle]] <= target else (middle, high)
    tried = sorted(seen.items())
    if high == len(sizes):
        return float(sizes[-1]), True, tried
    return interpolated([(n, e) for n, e in tried if n <= sizes[high]], target), False, tried


def interpolated(seen: Sequence[tuple[int, float]], target: float) -> float:
    """n at the target, on the log-log line through the last two sizes; the last size reached it, the others did not."""
    (n, low) = seen[-1]
    if len(seen) == 1 or low <= 0:
        return float(n)
    before, high = seen[-2]
    share = math.log(high / target) / math.log(high / low)
    return float(before * (n / before) ** share)


def sphere_rows(n: int, d: int, ambient: int, noise: float, rng: np.random.Generator) -> "Float[ndarray, 'n D']":
    """n points uniform on the unit sphere of the first d coordinates, plus noise of that standard deviation."""
    rows = noise * rng.standard_normal((n, ambient))
    points = rng.standard_normal((n, d))
    rows[:, :d] += points / np.linalg.norm(points, axis=1, keepdims=True)
    return rows


def sizes_from(first: int, last: int, ratio: float = 2**0.5) -> list[int]:
    """Sample sizes a factor `ratio` apart."""
    steps = math.floor(math.log(last / first) / math.log(ratio) + 1e-9)
    return sorted({round(first * ratio**i) for i in range(steps + 1)})


def line_samples(
    d: int, ambient: int, n_atoms: int, noise: float, target: float, largest: int, rng: np.random.Generator
) -> tuple[float, bool]:
    """Samples from which K-lines with non-negative codes explain all but `target` of clean points (D3), censored?"""
    rows, clean = sphere_rows(largest, d, ambient, noise, rng), sphere_rows(4000, d, ambient, 0.0, rng)

    def error(n: int) -> float:
        fitted = klines.fit(rows[:n], n_atoms, rng, signed=False, centre=False, restarts=1, iterations=20)
        _, codes = fitted.encode(clean)
        return float(1 - np.square(codes, dtype=np.float64).mean())

    return crossing(error, target, sizes_from(2, largest))[:2]


def slice_samples(
    d: int, ambient: int, noise: float, target: float, largest: int, rng: np.random.Generator
) -> tuple[float, bool]:
    """Samples from which the top-d eigenvectors leave at most `target` of clean points unexplained (D3), censored?"""
    rows = sphere_rows(largest, d, ambient, noise, rng)

    def error(n: int) -> float:
        _, _, right = np.linalg.svd(rows[:n], full_matrices=False)
        return 1 - float(np.square(right[:d, :d]).sum()) / d

    return crossing(error, target, range(1, largest + 1))[:2]
