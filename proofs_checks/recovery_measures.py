"""What the claims about recovery (C6, C7) measure: ranks of best maps, edges of the rank window, and the Top-s gate.

Best maps are found by proximal gradient descent on the objective itself, so that ranks owe nothing to the closed form
of C1. The gate is run on vectors: frames V_i, codes z, noise e; its gap is how much larger the smallest norm
||V_i^T h|| of an active feature is than the largest of an inactive one. Opponents turn the codes and the noise to make
that gap small, with the norms of the codes held fixed.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from sasa_theory.arguments import require_count
from sasa_theory.geometry import sphere
from synthetic.errors import UsageError
from synthetic.placement import coherent_frames

# C6. Ranks


def spectrum_moment(
    signal: "Float[ndarray, ' d']", noise: "Float[ndarray, ' m']", rng: np.random.Generator
) -> "Float[ndarray, 'D D']":
    """A second moment with these eigenvalues, d + m = D of them, in a random orthonormal basis."""
    eigenvalues = np.concatenate((signal, noise))
    basis = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))[0]
    return (basis * eigenvalues) @ basis.T


def best_map(
    sigma: "Float[ndarray, 'D D']", lam: float, tolerance: float = 1e-11, steps: int = 100_000
) -> "Float[ndarray, 'D D']":
    """argmin_M tr((I - M) Sigma (I - M)^T) + lam ||M||_* by accelerated proximal gradient, no closed form used (C1).

    Step 1 / (2 sigma_1), momentum restarted when it points uphill (O'Donoghue & Candes 2015); stops when a step moves
    no entry by more than `tolerance`. Raises UsageError when `steps` are not enough for that.
    """
    size = float(np.linalg.norm(sigma, 2))
    eye = np.eye(len(sigma))
    now = ahead = np.zeros_like(sigma)
    momentum = 1.0
    for _ in range(steps):
        u, values, v = np.linalg.svd(ahead + (eye - ahead) @ sigma / size)
        new = (u * np.maximum(values - lam / (2 * size), 0)) @ v
        if np.vdot(ahead - new, new - now) > 0:
            momentum, ahead = 1.0, now
            if np.abs(new - now).max() > tolerance:
                continue
        if np.abs(new - ahead).max() <= tolerance:
            return new
        faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / faster * (new - now)
        now, momentum = new, faster
    raise UsageError("the proximal descent did not settle; give it more steps, or a Sigma of smaller condition number")


def best_rank(sigma: "Float[ndarray, 'D D']", lam: float) -> int:
    """Rank of `best_map`: its singular values above 1e-7 (the steps themselves set small ones to zero)."""
    return int((np.linalg.svd(best_map(sigma, lam), compute_uv=False) > 1e-7).sum())


def rank_edges(sigma: "Float[ndarray, 'D D']", d: int, rtol: float = 1e-4) -> tuple[float, float]:
    """Penalties between which the best map has rank d: where the rank comes down to d, and where it leaves it.

    By bisection in log lam between 0.1 sigma_D and 4 sigma_1, to a relative `rtol`; the rank never grows with lam.
    """

    def first(most: int) -> float:
        values = np.linalg.eigvalsh(sigma)
        low, high = 0.1 * float(values[0]), 4 * float(values[-1])
        while high > low * (1 + rtol):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if best_rank(sigma, middle) <= most else (middle, high)
        return math.sqrt(low * high)

    return first(d), first(d - 1)


# C7. The gate


class Gate(NamedTuple):
    """A case for the Top-s gate.

    frames  V_i^T, orthonormal rows, one array (d_i, D) per feature.
    codes   z_i of the active features, which are the first len(codes) frames.
    noise   (D,) added to h.
    """

    frames: "list[Float[ndarray, 'd D']]"
    codes: "list[Float[ndarray, ' d']]"
    noise: "Float[ndarray, ' D']"

    @property
    def s(self) -> int:
        """Number of active features."""
        return len(self.codes)

    @property
    def norms(self) -> "Float[ndarray, ' s']":
        """||z_l|| of the active features."""
        return np.array([np.linalg.norm(z) for z in self.codes])

    @property
    def mu(self) -> float:
        """max_{i != j} ||V_i^T V_j||_2."""
        return max(float(np.linalg.norm(a @ b.T, 2)) for i, a in enumerate(self.frames) for b in self.frames[:i])

    @property
    def noise_size(self) -> float:
        """max_i ||V_i^T e||."""
        return max(float(np.linalg.norm(v @ self.noise)) for v in self.frames)

    def gap(self) -> float:
        """min over active of ||V_i^T h|| - max over inactive: positive iff Top-s picks exactly the active set."""
        scores = self.scores()
        return float(scores[: self.s].min() - scores[self.s :].max())

    def scores(self) -> "Float[ndarray, ' K']":
        """||V_i^T h|| for every feature, h = sum_l V_l z_l + e."""
        h = self.noise + sum(v.T @ z for v, z in zip(self.frames, self.codes, strict=False))
        return np.array([np.linalg.norm(v @ h) for v in self.frames])


def random_frames(
    dims: Sequence[int], width: int, coherence: float, rng: np.random.Generator
) -> "list[Float[ndarray, 'd D']]":
    """Frames of prescribed mutual coherence, orthonormal in float64."""
    rows = coherent_frames(dims, width, coherence, torch.Generator().manual_seed(int(rng.integers(2**31))))
    parts = rows.double().split(list(dims))
    return [np.linalg.qr(part.numpy().T)[0].T for part in parts]


def worst_gate(
    frames: "list[Float[ndarray, 'd D']]",
    norms: "Float[ndarray, ' s']",
    noise: float,
    rng: np.random.Generator,
    steps: int = 25,
) -> Gate:
    """The smallest gap found over codes of the given norms and noise with max_i ||V_i^T e|| = `noise`.

    For every pair of an active i and an inactive j, from a random start: turn each z_l and e along the gradient of
    ||V_i^T h|| - ||V_j^T h||, downhill, and scale them back (conditional gradient steps of full length).
    """
    start = _scaled_noise(frames, rng.standard_normal(frames[0].shape[1:]), noise)
    worst = Gate(frames, _codes(frames, norms, rng), start)
    for i in range(len(norms)):
        for j in range(len(norms), len(frames)):
            found = worst._replace(codes=_codes(frames, norms, rng))
            for _ in range(steps):
                h = found.noise + sum(v.T @ z for v, z in zip(frames, found.codes, strict=False))
                uphill = frames[i].T @ _unit(frames[i] @ h) - frames[j].T @ _unit(frames[j] @ h)
                codes = [-n * _unit(v @ uphill, z) for n, v, z in zip(norms, frames, found.codes, strict=False)]
                found = Gate(frames, codes, _scaled_noise(frames, -uphill, noise))
                worst = min(worst, found, key=Gate.gap)
    return worst


def tight_gate(s: int, mu: float, ratio: float, noise: float = 0.0, strongest: float = 1.0) -> Gate:
    """The case on which the condition of C7 is sharp: s active unit vectors and one inactive, all |<v_i, v_j>| = mu.

    <v_0, v_l> = -mu for the other active l, all other products mu; z_0 = ratio, z_l = 1 (times `strongest`); the noise
    has <v_0, e> = -noise, <v_j, e> = noise, 0 elsewhere. Raises UsageError unless s >= 1 and 0 <= mu < 1 / s, where
    the Gram matrix is positive definite.
    """
    require_count("s", s)
    if not 0 <= mu < 1 / s:
        raise UsageError(f"mu is {mu}; expected 0 <= mu < 1/s = {1 / s:.4g}, where such vectors exist")
    gram = np.full((s + 1, s + 1), mu) + (1 - mu) * np.eye(s + 1)
    gram[0, 1:s] = gram[1:s, 0] = -mu
    vectors = np.linalg.cholesky(gram)
    wanted = np.zeros(s + 1)
    wanted[0], wanted[-1] = -noise, noise
    codes = [np.array([strongest * (ratio if i == 0 else 1.0)]) for i in range(s)]
    return Gate([v[None, :] for v in vectors], codes, np.linalg.solve(vectors, wanted))


def failing_ratio(s: int, mu: float, rtol: float = 1e-10) -> float:
    """Largest ratio at which Top-s picks the inactive vector of `tight_gate`, by bisection; 0 when it never does."""
    low, high = 0.0, 1.0
    if tight_gate(s, mu, rtol).gap() > 0:
        return 0.0
    while high - low > rtol:
        middle = (low + high) / 2
        low, high = (low, middle) if tight_gate(s, mu, middle).gap() > 0 else (middle, high)
    return (low + high) / 2


def _codes(frames: Sequence[Any], norms: "Float[ndarray, ' s']", rng: np.random.Generator) -> list[ndarray]:
    return [n * sphere(1, len(v), rng)[0] for n, v in zip(norms, frames, strict=False)]


def _scaled_noise(frames: Sequence[Any], direction: ndarray, noise: float) -> ndarray:
    size = max(float(np.linalg.norm(v @ direction)) for v in frames)
    return direction * (noise / size) if size > 0 else np.zeros_like(direction)


def _unit(vector: ndarray, instead: "ndarray | None" = None) -> ndarray:
    """The vector at unit length; where it is zero, minus the direction of `instead`, or zero."""
    size = float(np.linalg.norm(vector))
    if size > 0:
        return vector / size
    return np.zeros_like(vector) if instead is None else -_unit(instead)
