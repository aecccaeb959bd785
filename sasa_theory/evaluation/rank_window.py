"""Trained models on which the rank window (C6) can be seen: a planted world, SASA models, the ranks of their groups.

A feature a row, white noise on top, one group active. Group k then sees Sigma_k = p_k (V V^T / d + nu^2 I), so its
window is 2 p_k nu^2 <= lam < 2 p_k (1/d + nu^2). Used by the claim and by the figure.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from sasa_theory.bounds_groups import Window, rank_window
from sasa_theory.evaluation.driver import run as measure
from sasa_theory.evaluation.subspaces import Subspaces, UnitRanks
from sasa_theory.training import Job, Run, TrainSettings
from synthetic import World

#: singular values of a trained map below this count as zero; training makes them small, not zero
SMALL_GAIN = 0.05


def window_world(dims: Sequence[int], width: int, noise: float, seed: int) -> World:
    """One feature a row, each a Gaussian in a d_i-dimensional subspace with E||h||^2 = 1, orthogonal to the others.

    `noise` is nu^2, the variance per direction of white noise on top.
    """
    return World.from_spec(
        {
            "width": width,
            "seed": seed,
            "features": [{"manifold": "subspace", "dim": d} for d in dims],
            "frames": "orthogonal",
            "support": {"law": "exact", "active": 1},
            "noise": noise * width,
        }
    )


def window_job(lam: float, steps: int, seed: int, groups: int, rank: int, penalty: str = "map") -> Job:
    """A SASA of s = 1 with penalty coefficient lam on every group, as in the theorem, warmed up over half the steps.

    Without the warm-up groups often settle before they have found a feature each, and one then holds parts of several.
    """
    model = {
        "n_groups": groups,
        "group_rank": rank,
        "active_groups": 1,
        "aux_groups": 1,
        "penalise": "all",
        "penalty": penalty,
        "nuclear": lam,
    }
    training = TrainSettings(
        steps=steps,
        batch_size=512,
        lr=3e-3,
        decay_fraction=0.4,
        penalty_warmup_steps=steps // 2,
        dead_window=30 * 512,
        initialise="data",
        seed=seed,
    )
    return Job("sasa", model, training)


def planted_spectra(dims: Sequence[int], noise: float) -> list[list[float]]:
    """Signal eigenvalues of E[h h^T | active] of every feature of `window_world`: 1/d_i + nu^2, d_i of them."""
    return [[1 / d + noise] * d for d in dims]


def planted_windows(dims: Sequence[int], noise: float) -> list[Window]:
    """The window of every feature of `window_world` (C6)."""
    rate = 1 / len(dims)
    return [rank_window(spectrum, rate * noise, rate) for spectrum in planted_spectra(dims, noise)]


class TrainedRank(NamedTuple):
    """The group that captures a feature best: rank of its map, 90 % rank of what it contributes, rate, capture."""

    rank: int
    rank90: int
    rate: float
    capture: float


def trained_ranks(trained: Run, world: World, rows: int = 4000) -> list[TrainedRank]:
    """For every feature of the world, the rank of its group (singular values of M_k above SMALL_GAIN) and the rest."""
    encoder, decoder = trained.model.blocks()
    subspaces = Subspaces(world.frames(), decoder)
    ranks = UnitRanks(encoder, decoder)
    got = measure(trained.model, world, rows, [subspaces, ranks])
    gains = torch.linalg.svdvals((encoder @ decoder).double())
    result = []
    for feature in range(len(world.dims)):
        unit = int(got["subspaces"].best_unit[feature])
        result.append(
            TrainedRank(
                rank=int((gains[unit] > SMALL_GAIN).sum()),
                rank90=int(got["ranks"].rank90[unit]),
                rate=float(ranks.moments.counts[unit]) / rows,
                capture=float(got["subspaces"].best_capture[feature]),
            )
        )
    return result
