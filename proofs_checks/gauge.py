"""C5: what the objective identifies.

The maps M_k are determined up to the order of the groups, their factors only up to a change of basis. The gate sees
more than the objective: a group norm survives a rotation, but no other change of basis.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from proofs_checks.consolidation_measures import ROUTINGS, Slice, draw_slice, factor_descent, proximal_descent, split
from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, add
from proofs_checks.gauge_measures import (
    Change,
    change_basis,
    draw_model,
    factors,
    map_distance,
    maps_of,
    model_difference,
)
from sasa_theory.bounds import slice_map
from sasa_theory.evaluation import map_directions
from sasa_theory.geometry import orthonormal_basis, principal_angles
from sasa_theory.objectives import routed_cost, sasa_penalty
from sasa_theory.solvers import routed


def _within(worst: float, limit: float, what: str, assumptions: tuple[str, ...] = ()) -> Outcome:
    """A statement that something is at most rounding: margin 1 at zero, negative above `limit`."""
    return Outcome(1 - worst / limit, compared=f"{what}: at most {worst:.2g}", assumptions=assumptions)


def same_model(bench: Bench, change: Change = "rotation", penalty: str = "map") -> float:
    """Largest relative difference of reconstructions and losses of models and their changed copies."""
    rng = bench.rng("C5 models")
    differences = []
    for _ in range(bench.pick(15, 100)):
        groups, rank, width = (int(n) for n in rng.integers((2, 1, 3), (7, 5, 9)))
        model = draw_model(rng, width, groups, rank, int(rng.integers(1, groups + 1)), penalty)
        x = rng.standard_normal((50, width))
        differences.append(model_difference(model, change_basis(model, rng, change), x))
    return max(differences)


def check_model(formula: Formula, bench: Bench) -> Outcome:
    """Outputs, gate and loss of SASA models under rotations inside groups and another order of the groups."""
    return _within(
        formula(bench), 1e-9, "difference of outputs and loss", ("K = 2 to 6, r = 1 to 4, with encoder biases",)
    )


def same_objective(bench: Bench, penalty: str = "map") -> float:
    """Largest relative difference of the objective at a given routing under any invertible change inside groups."""
    rng = bench.rng("C5 objective")
    differences = []
    for _ in range(bench.pick(15, 100)):
        model = draw_model(rng, 4, 3, 2, 1)
        other = change_basis(model, rng, "invertible")
        x, index = rng.standard_normal((30, 4)), rng.integers(0, 3, (30, 2))
        order = np.argmin(np.linalg.norm(maps_of(model)[:, None] - maps_of(other)[None], axis=(2, 3)), axis=1)
        fits = [routed_cost(maps_of(m), x, i, 0.0) for m, i in ((model, index), (other, order[index]))]
        costs = []
        for one, fit in zip((model, other), fits, strict=True):
            enc, dec = (block.detach().numpy().transpose(0, 2, 1) for block in one.blocks())
            costs.append(fit + sasa_penalty(enc, dec, 0.3, penalty))
        differences.append(abs(costs[0] - costs[1]) / costs[0])
    return max(differences)


def check_objective(formula: Formula, bench: Bench) -> Outcome:
    """The objective alone under any invertible change, the routing kept."""
    return _within(formula(bench), 1e-9, "difference of the objective")


@lru_cache(maxsize=8)
def _routed_slices(seed: int, count: int) -> tuple[tuple[Slice, "Float[ndarray, 'n m']"], ...]:
    """Slices with a hard routing to 2 or 3 groups."""
    rng = Bench(seed=seed).rng("C5 slices")
    found = []
    for _ in range(count):
        slice_ = draw_slice(rng, int(rng.integers(2, 5)), 40)
        found.append((slice_, ROUTINGS["half-spaces"](slice_.tokens, int(rng.integers(2, 4)), rng)))
    return tuple(found)


def same_maps(bench: Bench) -> float:
    """Largest distance of the maps two unrelated descents find from the closed form, groups matched."""
    rng = bench.rng("C5 descents")
    distances = []
    for slice_, shares in _routed_slices(bench.seed, bench.pick(8, 60)):
        parts, lam = split(slice_, shares), slice_.lam
        closed = np.stack([slice_map(part, lam) for part in parts])
        for descent in (
            [proximal_descent(part, lam, rng.standard_normal(part.shape)) for part in parts],
            [factor_descent(part, lam, len(part), rng, starts=1) for part in parts],
        ):
            distances.append(map_distance(closed, np.stack(descent)[rng.permutation(len(parts))]))
    return max(distances)


def same_factors(bench: Bench) -> float:
    """The false variant: distance of D_k D_k^T, which no rotation changes, in two factorings of a map."""
    rng = bench.rng("C5 factors")
    distances = []
    for slice_, shares in _routed_slices(bench.seed, bench.pick(8, 60)):
        for part in split(slice_, shares):
            map_ = slice_map(part, slice_.lam)
            first, second = (factors(map_, len(map_), rng)[0] for _ in range(2))
            distances.append(float(np.linalg.norm(first @ first.T - second @ second.T)))
    return max(distances)


def same_maps_always_on(bench: Bench) -> float:
    """Without hard routing: two groups that are always on together share one map in any proportion at the same cost."""
    slice_, _ = _routed_slices(bench.seed, 1)[0]
    lam = float(np.linalg.norm(slice_.sigma, 2)) / 2  # something is worth keeping
    whole = slice_map(slice_.sigma, lam)
    index = np.tile([0, 1], (len(slice_.tokens), 1))
    best = routed.solve(slice_.tokens, index, 2, lam, slice_.weights)
    optimal = [
        maps
        for maps in (np.stack((whole, 0 * whole)), np.stack((whole / 2, whole / 2)))
        if routed_cost(maps, slice_.tokens, index, lam, slice_.weights) <= best.dual * (1 + 1e-6)
    ]
    return map_distance(optimal[0], optimal[-1])


def check_unique(formula: Formula, bench: Bench) -> Outcome:
    """Optimal maps at a hard routing, found twice without the closed form."""
    return _within(formula(bench), 1e-3, "distance of optimal maps", ("each token in one group", "lam > 0"))


@lru_cache(maxsize=8)
def _planted(seed: int, count: int) -> tuple[tuple["Float[ndarray, 'd D']", "Float[ndarray, 'D D']", int], ...]:
    """(planted frame, best map on the slice, group rank above d) with noise below and signal above lam / 2 = 0.2."""
    rng = Bench(seed=seed).rng("C5 planted")
    found = []
    for _ in range(count):
        d, width = int(rng.integers(1, 4)), int(rng.integers(5, 9))
        basis = np.linalg.qr(rng.standard_normal((width, width)))[0]
        energies = np.concatenate((rng.uniform(0.4, 2, d), rng.uniform(0, 0.1, width - d)))
        found.append((basis[:, :d].T, slice_map((basis * energies) @ basis.T, 0.4), d + int(rng.integers(1, 4))))
    return tuple(found)


def read_off(bench: Bench, of: str = "map") -> float:
    """Largest error of a rank or an angle (radians) read off factors with free rows: off the map, or off D alone."""
    rng = bench.rng("C5 read off")
    errors = []
    for frame, map_, rank in _planted(bench.seed, bench.pick(20, 200)):
        decoder, encoder = factors(map_, rank, rng)
        if of == "map":
            rows = map_directions(torch.from_numpy(encoder.T[None]), torch.from_numpy(decoder.T[None])).rows[0].numpy()
            rows = rows[np.linalg.norm(rows, axis=1) > 0.5]
        else:
            rows = orthonormal_basis(decoder.T)
        errors += [float(abs(len(rows) - len(frame))), float(principal_angles(frame, rows).max())]
    return max(errors)


def check_read_off(formula: Formula, bench: Bench) -> Outcome:
    """Rank and subspace of planted slices from D_k E_k, in factors with free decoder columns and encoder rows."""
    return _within(formula(bench), 1e-6, "error of rank or angle", ("r > d", "noise below lam / 2 below signal"))


add(
    Claim(
        id="C5",
        statement="Optimal maps are unique up to the order of the groups, their factors only up to a change of basis.",
        formula="E_k -> Q E_k, D_k -> D_k Q^{-1}: objective unchanged; gate unchanged for Q orthogonal; M_k determined",
        assumptions=("hard routing and lam > 0 for unique maps", "map penalty"),
        source="only D_k E_k and ||E_k h|| enter; strict convexity on range(Sigma_k), shrinkage outside it",
        truths=(
            Truth(
                statement="a SASA model is unchanged by rotations inside groups and their order",
                bound=same_model,
                check=check_model,
                side=None,
                dropped={
                    "any invertible change, gate and all": lambda bench: check_model(
                        lambda b: same_model(b, "invertible"), bench
                    )
                },
            ),
            Truth(
                statement="at a given routing the objective is unchanged by any invertible change",
                bound=same_objective,
                check=check_objective,
                side=None,
                dropped={
                    "decoder penalty": lambda bench: check_objective(lambda b: same_objective(b, "decoder"), bench)
                },
            ),
            Truth(
                statement="two descents end in the same maps, up to the order of the groups",
                bound=same_maps,
                check=check_unique,
                side=None,
                dropped={
                    "the factors are unique too": lambda bench: check_unique(same_factors, bench),
                    "groups always on together": lambda bench: check_unique(same_maps_always_on, bench),
                },
            ),
            Truth(
                statement="D_k E_k gives rank and subspace",
                bound=read_off,
                check=check_read_off,
                side=None,
                dropped={"read off D_k alone": lambda bench: check_read_off(lambda b: read_off(b, "decoder"), bench)},
            ),
        ),
    )
)
