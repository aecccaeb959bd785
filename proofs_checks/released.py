"""C8: the published code minimises another objective than the one the theorems are about.

It penalises the decoder block, with rows of unit length, in place of the map. Its minimisers gain more where C1
shrinks; and if encoder rows may grow, nearly parallel decoder rows reach everything at the least penalty there is.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, Value, add, bounded, compare
from proofs_checks.gauge_measures import draw_model, nearly_parallel, released_search
from sasa_theory.bounds import decoder_norm_range, slice_map, slice_value
from sasa_theory.objectives import sasa_penalty, slice_cost


def check_range(formula: Formula, bench: Bench) -> Outcome:
    """sqrt(r) and r against collinear and orthonormal rows, and against searches for the least and the largest norm."""
    ours, extremes = [], []
    rng = bench.rng("C8 range")
    for r in range(1, bench.pick(5, 9)):
        frame = np.linalg.qr(rng.standard_normal((8, r)))[0].T
        norms = [np.linalg.norm(rows, "nuc") for rows in (np.tile(frame[0], (r, 1)), frame)]
        # with Sigma = 0 the released objective is the norm alone; Sigma = 0, lam = -1 looks for the largest
        searched = [sign * released_search(np.zeros((8, 8)), sign, r, rng, starts=2).cost for sign in (1.0, -1.0)]
        ours += [*formula(r), *formula(r)]
        extremes += [*norms, *searched]
    return compare(ours, extremes, 1e-3, what="range of nuclear norms against extremes and searches")


def check_penalty(formula: Formula, bench: Bench) -> Outcome:
    """Both penalties against torch SVDs and against the models' own loss."""
    rng = bench.rng("C8 penalty")
    ours, theirs = [], []
    for _ in range(bench.pick(10, 50)):
        groups, rank, width = (int(n) for n in rng.integers((1, 1, 2), (6, 5, 9)))
        for penalty in ("map", "decoder"):
            model = draw_model(rng, width, groups, rank, 1, penalty)
            enc, dec = (block.detach() for block in model.blocks())
            norms = torch.linalg.svdvals(enc @ dec if penalty == "map" else dec).sum(1)
            value = formula(enc.numpy().transpose(0, 2, 1), dec.numpy().transpose(0, 2, 1), 0.3, penalty)
            ours += [value, value]
            theirs.append(0.3 * float(norms.sum() if penalty == "map" else norms.mean()))
            theirs.append(model.loss(torch.from_numpy(rng.standard_normal((4, width)))).parts["nuclear"].item())
    return compare(ours, theirs, 1e-9, what="penalties against torch and the models' loss")


def least_norm(r: int) -> float:
    """The lower end of the range."""
    return decoder_norm_range(r).low


def largest_norm(r: int) -> float:
    """The upper end of the range."""
    return decoder_norm_range(r).high


def _blocks(bench: Bench, unit: bool = True) -> list[tuple[int, float]]:
    """(r, nuclear norm) of random blocks of r rows, from nearly collinear to orthonormal; of unit length or not."""
    rng = bench.rng("C8 blocks")
    found = []
    for _ in range(bench.pick(100, 1000)):
        r, width = int(rng.integers(1, 7)), int(rng.integers(6, 12))
        rows = np.linalg.qr(rng.standard_normal((width, r)))[0].T + rng.exponential() * rng.standard_normal(width)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        rows *= 1 if unit else rng.uniform(0.3, 3, (r, 1))
        found.append((r, float(np.linalg.norm(rows, "nuc"))))
        found.append((r, float(np.linalg.norm(np.tile(rows[0], (r, 1)), "nuc"))))
        found.append((r, float(np.linalg.norm(np.linalg.qr(rows.T)[0] * (1 if unit else 3), "nuc"))))
    return found


def check_low(formula: Formula, bench: Bench, unit: bool = True) -> Outcome:
    """No block of unit rows has a norm below sqrt(r)."""
    found = _blocks(bench, unit)
    return bounded([formula(r) for r, _ in found], [norm for _, norm in found], error=1e-9, what="sqrt(r)")


def check_high(formula: Formula, bench: Bench, unit: bool = True) -> Outcome:
    """No block of unit rows has a norm above r."""
    found = _blocks(bench, unit)
    return bounded([formula(r) for r, _ in found], [norm for _, norm in found], "above", 1e-9, "r")


def released_floor(sigma: "Float[ndarray, 'D D']", lam: float, rank: int) -> float:
    """What C1's best map costs at least under the released objective, in any factors: its error, and lam sqrt(r)."""
    map_ = slice_map(sigma, lam)
    return slice_cost(map_, sigma, 0.0) + lam * decoder_norm_range(rank).low


@lru_cache(maxsize=64)
def _searched(
    seed: int, count: int, penalty: str, unit_encoder: bool
) -> tuple[tuple[ndarray, float, int, float, ndarray], ...]:
    """(Sigma, lam, r, cost and map of the best factors found) on slices with one direction too weak for C1."""
    rng = Bench(seed=seed).rng("C8 slices")
    found = []
    for _ in range(count):
        lam, rank = float(rng.uniform(0.5, 1)), int(rng.integers(2, 4))
        sigma = np.diag([float(rng.uniform(1, 1.5)), lam * float(rng.uniform(0.2, 0.45)), 0.0])
        best = released_search(sigma, lam, rank, rng, penalty=penalty, unit_encoder=unit_encoder)  # type: ignore[arg-type]
        found.append((sigma, lam, rank, best.cost, best.map))
    return tuple(found)


#: the least relative gain that counts as another minimiser
GAIN = 0.01


def check_released(formula: Formula, bench: Bench, penalty: str = "decoder") -> Outcome:
    """C1's map in its best factors against the best point found for the released objective, which gains 1 % or more."""
    bounds, costs, gains = [], [], []
    for unit in (True, False):
        for sigma, lam, rank, cost, map_ in _searched(bench.seed, bench.pick(3, 30), penalty, unit):
            least = formula(sigma, lam, rank) if penalty == "decoder" else slice_value(sigma, lam)
            bounds.append(least)
            costs.append(cost)
            gains.append(float(np.trace(map_)) / float(np.trace(slice_map(sigma, lam))))
    return bounded(
        bounds,
        costs,
        "above",
        -GAIN * np.array(costs),
        what=f"trace of the released map over C1's {min(gains):.2f} to {max(gains):.2f}; C1's map in the released cost",
        assumptions=("one group, r = 2 or 3 unit rows", "encoder rows of unit length, or free"),
    )


def free_encoder_floor(sigma: "Float[ndarray, 'D D']", lam: float, rank: int) -> float:
    """What the released objective costs at least on any slice: the penalty of parallel rows, lam sqrt(r)."""
    return lam * decoder_norm_range(rank).low


def check_free_encoder(formula: Formula, bench: Bench) -> Outcome:
    """lam sqrt(r) against nearly parallel rows on slices of rank r: the same whatever the spectrum."""
    rng = bench.rng("C8 free encoder")
    bounds, costs = [], []
    for _ in range(bench.pick(20, 200)):
        rank, lam = int(rng.integers(2, 5)), float(rng.uniform(0.1, 0.5))
        sigma = np.diag([*np.zeros(2), *rng.uniform(0.5, 2, rank)])
        decoder = nearly_parallel(sigma, rank)
        error = slice_cost(decoder @ np.linalg.pinv(decoder), sigma, 0.0)
        bounds.append(formula(sigma, lam, rank))
        costs.append(error + lam * float(np.linalg.norm(decoder, "nuc")))
    return bounded(bounds, costs, what="lam sqrt(r) against nearly parallel rows and a free encoder")


def check_reverse(formula: Formula, bench: Bench) -> Outcome:
    """The map found for the released objective against the least cost under C1's."""
    found = [case for unit in (True, False) for case in _searched(bench.seed, bench.pick(3, 30), "decoder", unit)]
    costs = np.array([slice_cost(map_, sigma, lam) for sigma, lam, _, _, map_ in found])
    return bounded(
        [formula(sigma, lam) for sigma, lam, *_ in found],
        costs,
        error=-GAIN * costs,
        what="least cost under C1 against the released minimiser",
    )


add(
    Claim(
        id="C8",
        statement="The published code's decoder penalty has other minimisers than the objective of the theorems.",
        formula="unit rows: sqrt(r) <= ||D_k||_* <= r; free encoder, rank Sigma <= r: inf cost = lam sqrt(r), M -> I",
        assumptions=("decoder rows of unit length", "one slice, one group for the instances"),
        source="||D||_F <= ||D||_* <= sqrt(r) ||D||_F with ||D||_F = sqrt(r); instances certified by C1's closed form",
        values=(Value(decoder_norm_range, check_range), Value(sasa_penalty, check_penalty)),
        truths=(
            Truth(
                statement="unit rows: the norm of the block is at least sqrt(r)",
                bound=least_norm,
                check=check_low,
                dropped={"rows of any length": lambda bench: check_low(least_norm, bench, False)},
            ),
            Truth(
                statement="unit rows: it is at most r",
                bound=largest_norm,
                check=check_high,
                side="above",
                dropped={"rows of any length": lambda bench: check_high(largest_norm, bench, False)},
            ),
            Truth(
                statement="C1's map is not optimal for the released objective",
                bound=released_floor,
                check=check_released,
                side="above",
                dropped={"with the map penalty": lambda bench: check_released(released_floor, bench, "map")},
            ),
            Truth(
                statement="with a free encoder the released objective has infimum lam sqrt(r): no pressure on the rank",
                bound=free_encoder_floor,
                check=check_free_encoder,
                dropped={"the floor of C1": lambda bench: check_free_encoder(lambda s, p, _: slice_value(s, p), bench)},
            ),
            Truth(
                statement="the released minimiser is not optimal for C1's",
                bound=slice_value,
                check=check_reverse,
            ),
        ),
    )
)
