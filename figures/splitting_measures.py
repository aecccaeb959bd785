"""What figure E2 measures in one model.

Per feature, on rows of the world: the fewest columns (and units) carrying 90 % of the energy the model puts into V_i
when i is active (the published rule), the energy recovered there, and the fewest groups whose union spans 90 % of V_i.
Subspaces that are not orthogonal put energy into each other, and the published rule counts that: the planted truth
itself needs many groups under it. So beside it stands the fewest units carrying 90 % of the excess energy

    max(0, E[||P_V D_k p_k||^2 | i active] - E[||P_V D_k p_k||^2 | i silent]),

in which a unit that serves other features cancels. On clean points of one feature alone: the energy recovered, beside
the most that A3 allows. Of the decoder alone: covering numbers L^(k)(eps) (A4), and the largest |cosine| of two atoms
of one feature inside V_i, beside A5's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from figures.splitting_recipe import description_bits
from sasa_theory import bounds
from sasa_theory.evaluation import (
    Calculator,
    DeadShare,
    ExplainedVariance,
    FeatureEnergy,
    Sparsity,
    Subspaces,
    covering_numbers,
)
from sasa_theory.evaluation import run as feed
from sasa_theory.evaluation.planted import FeatureEnergyResult, fewest
from sasa_theory.evaluation.subspaces import CodeMoments
from sasa_theory.models import SparseModel
from sasa_theory.models.normaliser import NormalisedModel
from synthetic import World

#: one-sided 99.9 %
QUANTILE = 3.09
SHARE = 0.9


@dataclass(frozen=True)
class Effort:
    """How closely a model is looked at.

    rows    evaluated rows.      alone  clean points of each feature.
    cases   (k, eps) of the covering numbers.
    covered features of each dimension whose sphere is covered, by `points` unit vectors and `candidates` atoms.
    """

    rows: int
    alone: int
    cases: tuple[tuple[int, float], ...]
    covered: int
    points: int
    candidates: int


@torch.no_grad()
def measure(model: "SparseModel | NormalisedModel", world: World, effort: Effort, seed: int) -> dict[str, Any]:
    """Every number of one model (module docstring), per dimension the mean over features; None where there is none."""
    decoder = model.blocks()[1]
    frames = world.frames()
    subspaces = Subspaces(frames, decoder)
    calculators: list[Calculator] = [
        ExplainedVariance(),
        Sparsity(),
        DeadShare(),
        FeatureEnergy(frames, decoder, bias=world.bias),
        subspaces,
    ]
    got = feed(model, world, effort.rows, calculators)
    energy: FeatureEnergyResult = got["feature_energy"]
    spanning = got["subspaces"].spanning_units
    excess = fewest(excess_energy(frames, decoder, energy, subspaces.moments).clamp_min(0), SHARE).numpy()
    alone = [_alone(model, world, i, effort.alone) for i in range(len(frames))]
    dims = np.array(world.dims)
    counted = energy.counted
    result: dict[str, Any] = {
        "seed": seed,
        "unexplained": 1 - got["explained_variance"].explained_variance,
        "l0_columns": got["l0"].l0,
        "l0_units": got["l0"].l0_units,
        "dead_share": got["dead"].dead_share,
        "bits": description_bits(model.n_units, got["l0"].l0_units, got["l0"].l0),
        "units": by_dim(energy.units_per_feature, dims, counted),
        "columns": by_dim(energy.columns_per_feature, dims, counted),
        "excess_units": by_dim(excess, dims, counted),
        "counted": by_dim(counted, dims),
        "recovered": by_dim(energy.recovered, dims),
        "spanning_groups": by_dim(spanning, dims, np.isfinite(spanning)),
        "spanned": by_dim(np.isfinite(spanning), dims),
        "alone": by_dim([a["recovered"] for a in alone], dims),
        "ceiling": by_dim([a["ceiling"] for a in alone], dims),
        "above_ceiling": sum(a["above"] for a in alone),
        "binding": sum(a["ceiling"] < 1 for a in alone),
        "covering": _coverings(frames, decoder, dims, effort, seed),
    }
    if model.rank == 1:
        result |= _cosines(frames, decoder[:, 0].cpu(), energy, dims)
    return result


def excess_energy(
    frames: "Sequence[Float[Tensor, 'd D']]",
    decoder: "Float[Tensor, 'K r D']",
    on: FeatureEnergyResult,
    moments: CodeMoments,
) -> "Float[Tensor, 'n K']":
    """Energy a unit puts into V_i when i is active beyond what it puts there when i is silent, on the same rows."""
    rows, total = torch.from_numpy(on.active_rows).double(), moments.rows
    active = torch.from_numpy(on.unit_energy)
    of_all = torch.empty_like(active)
    second = moments.value().to(decoder.device)
    for i, frame in enumerate(frames):
        inner = decoder.double() @ frame.to(decoder).double().T
        of_all[i] = ((inner @ inner.mT) * second).sum(dim=(1, 2)).cpu()
    silent = (total * of_all - rows[:, None] * active) / (total - rows)[:, None].clamp_min(1)
    return active - silent


def by_dim(values: Any, dims: np.ndarray, where: "np.ndarray | None" = None) -> list[float | None]:
    """Mean over the features of each dimension, in ascending order; None for a dimension without any."""
    values = np.asarray(values, dtype=np.float64)
    where = np.isfinite(values) if where is None else where
    return [float(values[m].mean()) if (m := (dims == d) & where).any() else None for d in sorted(set(dims.tolist()))]


def _alone(model: Any, world: World, feature: int, n: int) -> dict[str, float]:
    """Share of a lone feature's energy recovered, the most A3 allows, and whether it is exceeded beyond chance.

    k is the largest L0 on the feature's points, so that no row is beyond it; a decoder bias other than the world's is
    granted as A3 does. Rows are clean and were not trained on.
    """
    device = model.b_dec.device
    frame, bias = world.frames()[feature].to(device).double(), world.bias.to(device)
    x = world.points(feature, n, 1_000_003 + feature, device).x
    xhat, codes = model.reconstruct(x)
    energy = ((x - bias).double() @ frame.T).square().sum(1)
    error = ((x - xhat).double() @ frame.T).square().sum(1)
    radius = float(energy.mean())
    columns = model.n_units * model.rank
    floor = bounds.distortion_floor(columns, max(1, int(codes.l0().max())), len(frame))
    offset = float(torch.linalg.vector_norm((model.b_dec - bias).double() @ frame.T))
    share = bounds.bias_corrected(radius * floor, offset) / radius
    excess = error - share * energy
    above = share > 0 and float(excess.mean()) < -QUANTILE * float(excess.std()) / math.sqrt(n)
    return {"recovered": 1 - float(error.mean()) / radius, "ceiling": 1 - share, "above": float(above)}


def _coverings(frames: Any, decoder: torch.Tensor, dims: np.ndarray, effort: Effort, seed: int) -> list[dict[str, Any]]:
    """Covering numbers of a few features of each dimension: mean L where all points are covered, and how many are."""
    chosen = np.concatenate([np.flatnonzero(dims == d)[: effort.covered] for d in sorted(set(dims.tolist()))])
    out = []
    for k, eps in effort.cases:
        rng = np.random.default_rng(seed)  # the same points for every case and model
        got = covering_numbers(
            [frames[i] for i in chosen], decoder, k, eps, rng, n_points=effort.points, candidates=effort.candidates
        )
        out.append(
            {
                "k": k,
                "eps": eps,
                "atoms": by_dim(got.atoms, got.dims, np.isfinite(got.atoms)),
                "whole": by_dim(np.isfinite(got.atoms), got.dims),
                "atoms_for_covered": by_dim(got.atoms_for_covered, got.dims),
                "covered": by_dim(got.covered, got.dims),
            }
        )
    return out


def _cosines(
    frames: Any, atoms: torch.Tensor, energy: FeatureEnergyResult, dims: np.ndarray
) -> dict[str, list[float | None]]:
    """Largest |cosine| inside V_i of two of the atoms that carry a feature, and the least it could be (A5)."""
    found, least = np.full(len(dims), np.nan), np.full(len(dims), np.nan)
    for i, frame in enumerate(frames):
        n = int(energy.columns_per_feature[i])
        if n < 2 or not energy.counted[i]:
            continue
        own = np.argsort(-energy.unit_energy[i], kind="stable")[:n]
        inside = atoms[torch.from_numpy(own.copy())].double() @ frame.double().T
        inside = inside / torch.linalg.vector_norm(inside, dim=1, keepdim=True).clamp_min(1e-300)
        found[i] = float((inside @ inside.T).abs().fill_diagonal_(0).max())
        least[i] = bounds.packing_cosine(n, len(frame))
    return {"cosine": by_dim(found, dims), "least_cosine": by_dim(least, dims)}


def ceiling(n_atoms: int, k: int, d: int) -> float:
    """Most of a feature's energy that k of N atoms can recover on average: 1 - Dist(N, k, d) (A3)."""
    return 1 - bounds.distortion_floor(n_atoms, k, d)
