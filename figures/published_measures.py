"""What the figure `published-benchmarks` measures in a model, and the yardsticks that need no training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from figures.published_recipe import GROUPS, L0, ON, RANK
from figures.pursuit import Pursuit
from figures.splitting_recipe import description_bits
from sasa_theory.evaluation import (
    Calculator,
    DeadShare,
    Detection,
    ExplainedVariance,
    FactorRecovery,
    Sparsity,
    oracle_recovery,
)
from sasa_theory.evaluation import run as feed
from sasa_theory.models import SASA, AbsTopK, SparseModel, TopK
from sasa_theory.models.normaliser import NormalisedModel
from sasa_theory.solvers import klines, ksubspaces
from synthetic import World


def kinds(world: World) -> list[str]:
    """The kind of manifold of every factor, in order."""
    groups = world.spec()["features"]
    return [group.get("name") or group["manifold"] for group in groups for _ in range(group["count"])]


def by_kind(world: World, r2: "Float[np.ndarray, ' n']") -> dict[str, float]:
    """Mean R^2 over the factors of every kind, over all factors ("all") and over all but the segments ("curved")."""
    names = np.array(kinds(world))
    means = {name: float(np.nanmean(r2[names == name])) for name in dict.fromkeys(names.tolist())}
    return {"all": float(np.nanmean(r2)), "curved": float(np.nanmean(r2[names != "segment"])), **means}


@torch.no_grad()
def measure_factors(model: "SparseModel | NormalisedModel", world: World, rows: int) -> dict[str, Any]:
    """Per-block recovery by kind, how well a unit tells that its factor is on, and what the codes cost."""
    got = _feed(model, world, rows, FactorRecovery(world.frames(), model.blocks()[1]))
    found = got.pop("result")
    return {**got, "r2": by_kind(world, found.r2), "presence": float(np.mean(found.presence))}


@torch.no_grad()
def measure_detection(model: "SparseModel | NormalisedModel", world: World, rows: int) -> dict[str, Any]:
    """F1, precision, recall, MCC and uniqueness of SynthSAEBench, and what the codes cost."""
    got = _feed(model, world, rows, Detection(world.frames(), model.blocks()[1]))
    found = got.pop("result")
    return {**got, **{name: getattr(found, name) for name in ("f1", "mcc", "precision", "recall", "uniqueness")}}


def _feed(
    model: "SparseModel | NormalisedModel", world: World, rows: int, calculator: "FactorRecovery | Detection"
) -> dict[str, Any]:
    plain: list[Calculator] = [ExplainedVariance(), Sparsity(), DeadShare()]
    got = feed(model, world, rows, [*plain, calculator])
    l0 = got["l0"]
    return {
        "explained": got["explained_variance"].explained_variance,
        "l0": l0.l0,
        "bits": description_bits(model.n_units, l0.l0_units, l0.l0),
        "dead": got["dead"].dead_share,
        "result": got[calculator.name],
    }


def oracle(world: World, rows: int) -> dict[str, float]:
    """R^2 by kind of the least-squares fit on the frames of the factors that are truly on."""
    batch = world.batches(rows, "cpu", stream="eval").batch()
    return by_kind(world, oracle_recovery(batch, world.bias).numpy())


@torch.no_grad()
def factor_yardsticks(world: World, rows: int, seed: int) -> dict[str, tuple[SparseModel, World]]:
    """What needs no training on `manifold-superposition`, each with the world it is measured on.

    planted truth          a block for each factor, gated as SASA gates.
    PCA                    as many principal directions as the dictionaries have active columns, all on.
    K-subspaces, K-lines   fitted and measured on rows with one factor each, for they know no other: an easier task.
    K-subspaces, four on   those blocks on the world itself, gated as SASA gates.
    """
    generator = torch.Generator().manual_seed(seed)
    single = World.from_spec({**world.spec(), "support": {"law": "exact", "active": 1}, "energy": None})
    alone = single.sample(rows, generator).x.numpy()
    x = world.sample(rows, generator).x.double()
    rng = np.random.default_rng(seed)
    frames, widest = world.frames(), max(world.dims)
    planted = SASA(world.width, len(frames), widest, ON)
    blocks = torch.zeros(len(frames), widest, world.width)
    for block, frame in zip(blocks, frames, strict=True):
        block[: len(frame)] = frame
    tie(planted, blocks.flatten(0, 1), world.bias)
    mean = x.mean(0)
    directions = torch.linalg.svd(x - mean, full_matrices=False).Vh[: RANK * ON]
    pca = AbsTopK(world.width, len(directions), len(directions))
    tie(pca, directions, mean)
    fitted = klines.fit(alone, GROUPS * RANK, rng, centre=False, restarts=1, iterations=30)
    lines = AbsTopK(world.width, GROUPS * RANK, 1)
    tie(lines, torch.from_numpy(fitted.atoms), torch.from_numpy(fitted.bias))
    found = ksubspaces.fit(alone, GROUPS, RANK, rng, centre=False, restarts=1, iterations=30)
    bases = torch.from_numpy(found.bases.reshape(-1, world.width))
    models = {}
    for name, on in (("K-subspaces", 1), ("K-subspaces, four on", ON)):
        models[name] = SASA(world.width, GROUPS, RANK, on)
        tie(models[name], bases, torch.from_numpy(found.bias))
    return {
        "planted truth": (planted, world),
        "PCA": (pca, world),
        "K-lines": (lines, single),
        "K-subspaces": (models["K-subspaces"], single),
        "K-subspaces, four on": (models["K-subspaces, four on"], world),
    }


@torch.no_grad()
def detection_yardsticks(
    world: World, width: int, ranks: Sequence[int], rows: int, seed: int
) -> dict[str, SparseModel]:
    """What needs no training on SynthSAEBench; PCA and K-lines are fitted to `rows` rows.

    planted truth   the `width` most frequent directions, the 25 of largest product with the row on.
    PCA             the 25 leading principal directions, all on.
    K-lines         `width` lines, fitted with one active on rows of many features, coded by 25 steps of matching
                    pursuit. (K-subspaces has no place here: features are single directions.)
    random          random directions, or random blocks of each of the ranks, in the place of learned ones: what F1 and
                    MCC are worth by chance, which is more for a block than for a direction.
    """
    rates = torch.as_tensor(world.support.rates)
    chosen = rates.argsort(descending=True, stable=True)[:width].tolist()
    frames = world.frames()
    planted = TopK(world.width, width, L0)
    tie(planted, torch.cat([frames[i] for i in chosen]), world.bias)
    generator = torch.Generator().manual_seed(seed)
    x = world.sample(rows, generator).x
    mean = x.mean(0)
    directions = torch.linalg.eigh((x - mean).double().T @ (x - mean).double()).eigenvectors[:, -L0:].T
    pca = AbsTopK(world.width, len(directions), len(directions))
    tie(pca, directions, mean)
    rng = np.random.default_rng(seed)
    fitted = klines.fit(x.numpy(), width, rng, restarts=1, iterations=10)  # a second of 20,000 rows each
    lines = Pursuit(world.width, width, L0)
    tie(lines, torch.from_numpy(fitted.atoms), torch.from_numpy(fitted.bias))
    models: dict[str, SparseModel] = {"planted truth": planted, "PCA": pca, "K-lines": lines}
    for rank in ranks:
        columns = torch.randn(width, world.width, generator=generator)
        columns /= torch.linalg.vector_norm(columns, dim=1, keepdim=True)
        random: SparseModel = TopK(world.width, width, L0)
        if rank > 1:
            random = SASA(world.width, width // rank, rank, L0 // rank)
        tie(random, columns, mean)
        models["random directions" if rank == 1 else f"random, r = {rank}"] = random
    return models


@torch.no_grad()
def tie(model: SparseModel, rows: "Float[Tensor, 'Kr D']", bias: "Float[Tensor, ' D']") -> None:
    """Decoder rows, the encoder transposed, and the bias."""
    model.W_dec.copy_(rows)
    model.W_enc.copy_(model.W_dec.T)
    model.b_dec.copy_(bias)
