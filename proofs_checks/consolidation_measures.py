"""What the claims about one group per feature (C1, C2, C3) measure: slices, splits of a slice, opponents of one group.

A hard routing only matters through the second moments of its groups, Sigma_1 + .. + Sigma_m = Sigma. A rule that sends
a token to group k with some probability splits its weight, so random rules are splits too. The opponents of one group
are splits drawn from gates and at random, every assignment of a few tokens, local search over assignments of more, and
a search over pairs of matrices. The opponents of the closed form are two descents that share nothing with it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import optimize

from sasa_theory.bounds import slice_map, spectral_cost
from sasa_theory.objectives import slice_cost

Split = "Float[ndarray, 'm D D']"


class Slice(NamedTuple):
    """Tokens (n, D) with weights (n,), and a penalty."""

    tokens: "Float[ndarray, 'n D']"
    weights: "Float[ndarray, ' n']"
    lam: float

    @property
    def sigma(self) -> "Float[ndarray, 'D D']":
        """sum_t w_t h_t h_t^T."""
        return (self.tokens * self.weights[:, None]).T @ self.tokens


def draw_slice(rng: np.random.Generator, width: int, n: int) -> Slice:
    """n tokens of a random anisotropic law and random weights; lam / 2 lies inside or just outside the spectrum.

    With n < width the slice is rank-deficient.
    """
    basis = np.linalg.qr(rng.standard_normal((width, width)))[0]
    tokens = (rng.standard_normal((n, width)) * rng.uniform(0.2, 1, width)) @ basis
    weights = rng.dirichlet(np.ones(n))
    energy = float(weights @ np.square(tokens).sum(1))
    return Slice(tokens, weights, float(rng.uniform(0.02, 1.5)) * 2 * energy / min(n, width))


def edge_slices() -> tuple[Slice, ...]:
    """Where a closed form breaks first: equal eigenvalues, lam / 2 on an eigenvalue, rank 1, lam = 0, lam huge."""
    basis, ones = np.eye(3), np.ones(3)
    ladder = basis * np.sqrt([0.3, 0.5, 2.0])
    return (
        Slice(basis, ones, 0.4),
        Slice(ladder, ones, 1.0),
        Slice(np.ones((1, 3)), ones[:1], 0.5),
        Slice(ladder, ones, 0.0),
        Slice(ladder, ones, 1e4),
        Slice(np.zeros((1, 3)), ones[:1], 0.5),
    )


# Descents to one group


def proximal_descent(
    sigma: "Float[ndarray, 'D D']", lam: float, start: "Float[ndarray, 'D D']", steps: int = 4000
) -> "Float[ndarray, 'D D']":
    """A map found by accelerated proximal gradient on M itself, restarted where the momentum points uphill."""
    size = 2 * float(np.linalg.norm(sigma, 2))
    if size == 0:
        return np.zeros_like(sigma) if lam > 0 else start
    map_, ahead, t = start, start, 1.0
    for _ in range(steps):
        u, values, vt = np.linalg.svd(ahead - 2 * (ahead - np.eye(len(sigma))) @ sigma / size)
        new = (u * np.maximum(values - lam / size, 0)) @ vt
        step = new - map_
        if np.abs(new - ahead).max() <= 1e-13 and np.abs(step).max() <= 1e-13:
            return new
        t = 1.0 if np.sum((ahead - new) * step) > 0 else (1 + np.sqrt(1 + 4 * t**2)) / 2
        ahead = new + (t - 1) / (t + 2) * step
        map_ = new
    return map_


def factor_descent(
    sigma: "Float[ndarray, 'D D']", lam: float, rank: int, rng: np.random.Generator, starts: int = 3
) -> "Float[ndarray, 'D D']":
    """The best map P Q of rank at most `rank` found by L-BFGS on its factors from random starts.

    ||M||_* = min over P Q = M of (||P||_F^2 + ||Q||_F^2) / 2 makes the cost smooth.
    """
    width = len(sigma)
    identity = np.eye(width)

    def cost(flat: "Float[ndarray, ' 2Dr']") -> "tuple[float, Float[ndarray, ' 2Dr']]":
        p, q = flat[: width * rank].reshape(width, rank), flat[width * rank :].reshape(rank, width)
        left = identity - p @ q
        pull = -2 * left @ sigma
        gradient = np.concatenate(((pull @ q.T + lam * p).ravel(), (p.T @ pull + lam * q).ravel()))
        return float(np.sum((left @ sigma) * left)) + lam / 2 * float(flat @ flat), gradient

    best, least = np.zeros_like(sigma), np.inf
    for _ in range(starts):
        begin = rng.standard_normal(2 * width * rank) * 0.5
        flat = optimize.minimize(
            cost, begin, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-10}
        ).x
        map_ = flat[: width * rank].reshape(width, rank) @ flat[width * rank :].reshape(rank, width)
        value = slice_cost(map_, sigma, lam)
        if value < least:
            best, least = map_, value
    return best


# Splits of a slice


def split(slice_: Slice, shares: "Float[ndarray, 'n m']") -> "Float[ndarray, 'm D D']":
    """Second moments of the groups when token t gives the share q_tk of its weight to group k."""
    return np.einsum("tk,t,ti,tj->kij", shares, slice_.weights, slice_.tokens, slice_.tokens)


def split_cost(parts: "Float[ndarray, 'm D D']", lam: float) -> float:
    """What the groups cost together, each at its own best map: the objective evaluated at those maps."""
    return sum(slice_cost(slice_map(part, lam), part, lam) for part in parts)


def _labels(scores: "Float[ndarray, 'n m']") -> "Float[ndarray, 'n m']":
    return np.eye(scores.shape[1])[scores.argmax(1)]


#: hard routings of tokens (n, D) to m groups, as shares (n, m)
ROUTINGS: dict[str, Callable[["Float[ndarray, 'n D']", int, np.random.Generator], "Float[ndarray, 'n m']"]] = {
    "random labels": lambda x, m, rng: _labels(rng.random((len(x), m))),
    "half-spaces": lambda x, m, rng: _labels(x @ rng.standard_normal((x.shape[1], m))),
    "norm gate": lambda x, m, rng: _labels(
        np.square(np.einsum("ti,kri->tkr", x, rng.standard_normal((m, 1, x.shape[1])))).sum(2)
    ),
    "random rule": lambda x, m, rng: rng.dirichlet(np.ones(m) * 0.5, len(x)),
}


def _traces(stack: "Float[ndarray, '... D D']", lam: float) -> "Float[ndarray, '...']":
    return spectral_cost(np.maximum(np.linalg.eigvalsh(stack), 0), lam).sum(-1)


def every_assignment(slice_: Slice) -> "Float[ndarray, 'm D D']":
    """The cheapest split of the tokens between two groups, both of them used, by enumeration (n up to about 14)."""
    n = len(slice_.tokens)
    masks = (np.arange(1, 2 ** (n - 1))[:, None] >> np.arange(n) & 1).astype(float)
    outer = np.einsum("t,ti,tj->tij", slice_.weights, slice_.tokens, slice_.tokens)
    first = np.einsum("at,tij->aij", masks, outer)
    second = outer.sum(0) - first
    best = int((_traces(first, slice_.lam) + _traces(second, slice_.lam)).argmin())
    return np.stack((first[best], np.einsum("t,tij->ij", 1 - masks[best], outer)))


def local_search(
    slice_: Slice, groups: int, rng: np.random.Generator, least_share: float = 0.1, moves: int = 500
) -> "Float[ndarray, 'm D D']":
    """A split found by moving one token at a time, the best move first, from random labels.

    Every group keeps at least `least_share` of the energy: without that the search ends in one group.
    """
    outer = np.einsum("t,ti,tj->tij", slice_.weights, slice_.tokens, slice_.tokens)
    energy = np.einsum("tii->t", outer)
    label = rng.permutation(np.arange(len(outer)) % groups)
    parts = np.stack([outer[label == k].sum(0) for k in range(groups)])
    for _ in range(moves):
        now = _traces(parts, slice_.lam)
        without = _traces(parts[label] - outer, slice_.lam) - now[label]
        gains = without[:, None] + _traces(parts[None] + outer[:, None], slice_.lam) - now
        gains[np.arange(len(outer)), label] = 0
        left = np.einsum("kii->k", parts)[label] - energy
        gains[left < least_share * energy.sum()] = np.inf
        token, group = np.unravel_index(int(gains.argmin()), gains.shape)
        if gains[token, group] >= -1e-12 * now.sum():
            break
        label[token] = group
        parts = np.stack([outer[label == k].sum(0) for k in range(groups)])
    return parts


def worst_pair(d: int, lam: float, rng: np.random.Generator) -> "Float[ndarray, '2 d d']":
    """Two second moments of random energies and ranks, moved by descent to where merging them gains least."""
    ranks = rng.integers(1, d + 1, 2)
    energies = rng.uniform(0.2, 2, 2) * lam * d

    def parts(flat: "Float[ndarray, ' p']") -> "Float[ndarray, '2 d d']":
        factors = flat[: d * ranks[0]].reshape(d, -1), flat[d * ranks[0] :].reshape(d, -1)
        return np.stack([e * x @ x.T / np.sum(x**2) for e, x in zip(energies, factors, strict=True)])

    def gap(flat: "Float[ndarray, ' p']") -> float:
        pair = parts(flat)
        return float(_traces(pair, lam).sum() - _traces(pair.sum(0), lam)) / lam

    begin = rng.standard_normal(d * int(ranks.sum()))
    return parts(optimize.minimize(gap, begin, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-14}).x)


# When a split costs nothing


class Defects(NamedTuple):
    """How far a split is from the two conditions under which it costs nothing, relative to lam; 0: met.

    overlap    (i) the largest ||Sigma_l v||, v an eigenvector of another group's Sigma_k with eigenvalue > lam / 2
    discarded  (ii) what the norm of the parts all groups discard together exceeds lam / 2 by
    """

    overlap: float
    discarded: float


def equality_defects(parts: "Float[ndarray, 'm D D']", lam: float) -> Defects:
    """Defects of conditions (i) and (ii) of C2; lam > 0."""
    values, vectors = np.linalg.eigh(parts)
    kept = values > lam / 2
    overlap = max(
        (
            float(np.linalg.norm(other @ vectors[k][:, kept[k]], 2))
            for k in range(len(parts))
            for j, other in enumerate(parts)
            if j != k and kept[k].any()
        ),
        default=0.0,
    )
    discarded = np.einsum("kij,kj,klj->il", vectors, np.where(kept, 0, values), vectors)
    return Defects(overlap / lam, max(0.0, float(np.linalg.norm(discarded, 2)) - lam / 2) / lam)


def free_split(
    lam: float, kept: "Int[ndarray, ' m']", small: int, rng: np.random.Generator, tilt: float = 0.0, excess: float = 0.0
) -> "Float[ndarray, 'm D D']":
    """A split that meets both conditions of C2, or breaks one of them by a stated amount.

    Group k keeps `kept[k]` directions of its own, eigenvalues in (1, 3) lam; all groups have a part in `small` common
    directions, each below lam / 2, their sum of norm (1 + excess) lam / 2 at most (exactly, when excess > 0). `tilt`
    turns one kept direction of group 0 towards one of group 1 by that angle.
    """
    m, width = len(kept), int(kept.sum()) + small
    basis = np.linalg.qr(rng.standard_normal((width, width)))[0]
    ends = np.cumsum([0, *kept])
    common = basis[:, ends[-1] :]
    parts = np.zeros((m, width, width))
    for k in range(m):
        own = basis[:, ends[k] : ends[k + 1]].copy()
        if k == 0 and tilt:
            own[:, 0] = np.cos(tilt) * own[:, 0] + np.sin(tilt) * basis[:, ends[1]]
        parts[k] = (own * rng.uniform(1, 3, own.shape[1]) * lam) @ own.T
    if small:
        factors = rng.standard_normal((m, small, small))
        shares = factors @ factors.transpose(0, 2, 1)
        if excess:
            shares += np.eye(small) * np.linalg.norm(shares, 2, axis=(1, 2)).max()  # no group alone exceeds lam / 2
        size = (1 + excess) * lam / 2 * (1.0 if excess else float(rng.uniform(0.2, 0.99)))
        shares *= size / np.linalg.norm(shares.sum(0), 2)
        parts += common @ shares @ common.T
    return parts
