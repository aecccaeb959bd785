"""How much less than one group a Top-s gate can cost: a search over gates, for slices that are given (C4).

Free encoders, r >= d. The gate is E_k^T E_k and the maps are free beside it, so the search is over the E_k: random
starts, then random steps of falling size, kept when the best maps for the new routing cost less. The best maps of many
candidates at once come from a batched proximal gradient on the second moments of the routing patterns.

Tied encoders, D_k = E_k^T. Gate and map are one, so the E_k are trained: Adam on the objective itself, many starts at
once, the gate inside the loop.

What is found is measured on tokens that the search did not see.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from proofs_checks.soft_routing_measures import simplex_slice
from sasa_theory.bounds import slice_value
from sasa_theory.geometry import sphere

Law = Callable[[int, np.random.Generator], ndarray]


@dataclass(frozen=True)
class Advantage:
    """The best gate found for a slice.

    ratio   its cost on fresh tokens over the cost of one group on the same tokens; below 1: the gate is cheaper.
    error   standard error of that ratio.
    seen    the same ratio on the tokens of the search.
    """

    ratio: float
    error: float
    seen: float


def sphere_law(d: int) -> Law:
    """Uniform on the unit sphere of R^d."""
    return lambda n, rng: sphere(n, d, rng)


def gaussian_law(d: int) -> Law:
    """Gaussian with E||h||^2 = 1 whose standard deviations halve from one direction to the next."""
    scale = 0.5 ** np.arange(d)
    return lambda n, rng: rng.standard_normal((n, d)) * (scale / np.linalg.norm(scale))


def cone_law(d: int, angle: float) -> Law:
    """The tokens of the simplex family, at random signs and radii, with 5 % of isotropic noise: E||h||^2 about 1."""
    corners = simplex_slice(d, angle).tokens

    def draw(n: int, rng: np.random.Generator) -> ndarray:
        radius = rng.choice([-1.0, 1.0], n) * rng.uniform(0.5, 1.3, n)
        return radius[:, None] * corners[rng.integers(0, d, n)] + 0.05 / math.sqrt(d) * rng.standard_normal((n, d))

    return draw


# Free encoders


def free_gates(
    law: Law,
    groups: int,
    s: int,
    lam: float,
    rng: np.random.Generator,
    *,
    starts: int = 32,
    rounds: int = 20,
    tokens: int = 400,
    fresh: int = 20_000,
) -> Advantage:
    """The best Top-s gate with free encoders of r = d found for a slice drawn from `law` (module docstring)."""
    x = law(tokens, rng)
    d = x.shape[1]
    patterns = np.array([[k in chosen for k in range(groups)] for chosen in itertools.combinations(range(groups), s)])
    encoders = rng.standard_normal((starts, groups, d, d)) * rng.uniform(0.05, 1, (starts, 1, 1, d))
    costs, _ = _best_maps(_pattern_moments(x, encoders, patterns), patterns, lam)
    for round_ in range(rounds):
        size = 0.7 * 0.02 ** (round_ / rounds)
        moved = encoders + size * rng.standard_normal(encoders.shape) * np.abs(encoders).mean((1, 2, 3), keepdims=True)
        new, _ = _best_maps(_pattern_moments(x, moved, patterns), patterns, lam)
        better = new < costs
        encoders[better], costs[better] = moved[better], new[better]
        if round_ == rounds // 2:  # the worse half starts again from the better half
            order = costs.argsort()
            encoders[order[starts // 2 :]] = encoders[order[: starts - starts // 2]]
            costs[order[starts // 2 :]] = costs[order[: starts - starts // 2]]
    gate = encoders[[int(costs.argmin())]]
    _, maps = _best_maps(_pattern_moments(x, gate, patterns), patterns, lam, steps=3000)
    return _judge(maps[0], gate[0], x, law(fresh, rng), s, lam)


def _pattern_moments(
    x: "Float[ndarray, 'n d']", encoders: "Float[ndarray, 'B K r d']", patterns: "Float[ndarray, 'P K']"
) -> "Float[ndarray, 'B P d d']":
    """Sigma_P = E[h h^T 1{pattern P}] of every candidate gate."""
    s = int(patterns[0].sum())
    number = {int(p @ (1 << np.arange(len(p)))): i for i, p in enumerate(patterns)}
    lookup = np.zeros(1 << patterns.shape[1], dtype=int)
    lookup[list(number)] = list(number.values())
    code = (1 << _route(x, encoders, s)).sum(axis=-1)
    chosen = lookup[code][..., None] == np.arange(len(patterns))
    n, d = x.shape
    squares = (x[:, :, None] * x[:, None, :]).reshape(n, d * d) / n
    return (chosen.transpose(0, 2, 1).astype(float) @ squares).reshape(len(encoders), len(patterns), d, d)


def _route(x: "Float[ndarray, 'n d']", encoders: "Float[ndarray, 'B K r d']", s: int) -> "Int[ndarray, 'B n s']":
    """The s groups of largest ||E_k h|| for every gate and token."""
    scores = np.square(np.einsum("nd,bkrd->bnkr", x, encoders, optimize=True)).sum(-1)
    return np.argpartition(-scores, s - 1, axis=-1)[..., :s]


def _best_maps(
    moments: "Float[ndarray, 'B P d d']", patterns: "Float[ndarray, 'P K']", lam: float, steps: int = 150
) -> "tuple[Float[ndarray, ' B'], Float[ndarray, 'B K d d']]":
    """Costs and maps after accelerated proximal steps on sum_P tr((I-M_P) Sigma_P (I-M_P)^T) + lam sum ||M_k||_*.

    Feasible maps, so the costs are upper bounds whatever the number of steps.
    """
    uses = patterns.astype(float)
    size = np.linalg.eigvalsh(np.einsum("pk,bpij->bkij", uses, moments))[..., -1].max(1)
    step = 1 / (2 * int(uses[0].sum()) * np.maximum(size, 1e-300))[:, None, None, None]
    eye = np.eye(moments.shape[-1])
    now = ahead = np.zeros((len(moments), uses.shape[1], *moments.shape[2:]))
    momentum = 1.0
    for _ in range(steps):
        unexplained = (eye - np.einsum("pk,bkij->bpij", uses, ahead)) @ moments
        u, values, v = np.linalg.svd(ahead + 2 * step * np.einsum("pk,bpij->bkij", uses, unexplained))
        new = (u * np.maximum(values - lam * step[..., 0], 0)[..., None, :]) @ v
        faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead, now, momentum = new + (momentum - 1) / faster * (new - now), new, faster
    left = eye - np.einsum("pk,bkij->bpij", uses, now)
    errors = np.einsum("bpij,bpjk,bpik->b", left, moments, left, optimize=True)
    return errors + lam * np.linalg.svd(now, compute_uv=False).sum((1, 2)), now


# Tied encoders


def tied_gates(
    law: Law,
    groups: int,
    s: int,
    rank: int,
    lam: float,
    rng: np.random.Generator,
    *,
    starts: int = 32,
    steps: int = 400,
    tokens: int = 400,
    fresh: int = 20_000,
) -> Advantage:
    """The best Top-s gate with D_k = E_k^T found by training from random starts (module docstring)."""
    data = law(tokens, rng)
    x = torch.from_numpy(data)
    shape = (starts, groups, rank, x.shape[1])
    encoders = torch.from_numpy(0.5 * rng.standard_normal(shape) * rng.uniform(0.1, 1, (starts, groups, 1, 1)))
    encoders.requires_grad_(True)
    optimiser = torch.optim.Adam([encoders], lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, steps)
    best, costs = encoders.detach().clone(), torch.full((starts,), torch.inf, dtype=x.dtype)
    for _ in range(steps):
        loss = _tied_cost(x, encoders, s, lam)
        with torch.no_grad():
            better = loss < costs
            best[better], costs[better] = encoders[better], loss[better]
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        schedule.step()
    gate = best[int(costs.argmin())].numpy()
    return _judge(gate.transpose(0, 2, 1) @ gate, gate, data, law(fresh, rng), s, lam)


def _tied_cost(x: torch.Tensor, encoders: torch.Tensor, s: int, lam: float) -> torch.Tensor:
    """The objective of every start; ||E^T E||_* = ||E||_F^2."""
    codes = torch.einsum("nd,bkrd->bnkr", x, encoders)
    on = torch.zeros(codes.shape[:3], dtype=x.dtype)
    on.scatter_(2, codes.detach().square().sum(-1).topk(s, dim=2).indices, 1.0)
    xhat = torch.einsum("bnkr,bkrd->bnd", codes * on[..., None], encoders)
    return (x - xhat).square().sum(2).mean(1) + lam * encoders.square().sum((1, 2, 3))


def _judge(
    maps: "Float[ndarray, 'K d d']",
    gate: "Float[ndarray, 'K r d']",
    seen: "Float[ndarray, 'n d']",
    fresh: "Float[ndarray, 'm d']",
    s: int,
    lam: float,
) -> Advantage:
    """Cost of a gate and its maps over that of one group, on the tokens of the search and on fresh ones."""
    parts = [_errors(maps, x, _route(x, gate[None], s)[0]) for x in (seen, fresh)]
    penalty = lam * float(np.linalg.svd(maps, compute_uv=False).sum())
    single = [slice_value(x.T @ x / len(x), lam) for x in (seen, fresh)]
    ratios = [(float(e.mean()) + penalty) / value for e, value in zip(parts, single, strict=True)]
    error = float(parts[1].std(ddof=1)) / math.sqrt(len(fresh)) / single[1]
    return Advantage(ratios[1], error, ratios[0])


def _errors(maps: ndarray, x: ndarray, index: ndarray) -> ndarray:
    """||h - sum_{k on} M_k h||^2 of every token."""
    on = np.zeros((len(x), len(maps)))
    np.put_along_axis(on, index, 1.0, axis=1)
    return np.square(x - np.einsum("nk,kij,nj->ni", on, maps, x, optimize=True)).sum(axis=1)
