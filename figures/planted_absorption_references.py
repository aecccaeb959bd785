"""What needs no training, beside the dictionaries of figure `planted-absorption`, as models tied to their decoder.

planted truth  a group for each feature, gated as SASA gates.
PCA            the leading principal directions, as many as the dictionaries have columns on, all on.
K-lines        as many lines as the vector dictionaries have latents, fitted with one active line, coded by orthogonal
               matching pursuit (`pursuit`): summing the largest inner products of nearly parallel lines overshoots.
K-subspaces    as many subspaces as SASA has groups, fitted with one active, gated as SASA gates.
"""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from figures.planted_absorption_recipe import ACTIVE, SPARE
from figures.pursuit import Pursuit
from figures.yardsticks import TRUTH, tie
from sasa_theory.models import SASA, AbsTopK
from sasa_theory.models.base import SparseModel
from sasa_theory.solvers import klines, ksubspaces
from synthetic import World

REFERENCES = (TRUTH, "PCA", "K-lines", "K-subspaces")
M = TypeVar("M", bound=SparseModel)
#: rows that the classical ones are fitted on
FITTED = 6000


def planted(world: World) -> SASA:
    """The planted dictionary: a group for each feature, tied to it, and a Top-s gate."""
    model = SASA(world.width, len(world.dims), world.dims[0], ACTIVE)
    return _tied(model, torch.cat(world.frames()), world.bias)


@torch.no_grad()
def references(world: World, seed: int) -> dict[str, SparseModel]:
    """All four (module docstring), at the budget of matched columns."""
    features, dim = len(world.dims), world.dims[0]
    x = world.sample(FITTED, torch.Generator().manual_seed(seed)).x.double()
    mean = x.mean(0)
    rng = np.random.default_rng(seed)
    directions = torch.linalg.svd(x - mean, full_matrices=False).Vh[: ACTIVE * dim]
    lines = klines.fit(x.numpy(), SPARE * features * dim, rng, centre=True, restarts=1, iterations=30)
    blocks = ksubspaces.fit(x.numpy(), SPARE * features, dim, rng, centre=True, restarts=1, iterations=30)
    return {
        TRUTH: planted(world),
        "PCA": _tied(AbsTopK(world.width, len(directions), len(directions)), directions, mean),
        "K-lines": _tied(
            Pursuit(world.width, len(lines.atoms), ACTIVE * dim),
            torch.from_numpy(lines.atoms),
            torch.from_numpy(lines.bias),
        ),
        "K-subspaces": _tied(
            SASA(world.width, SPARE * features, dim, ACTIVE),
            torch.from_numpy(blocks.bases.reshape(-1, world.width)),
            torch.from_numpy(blocks.bias),
        ),
    }


@torch.no_grad()
def _tied(model: M, rows: Tensor, bias: Tensor) -> M:
    model.W_dec.copy_(rows)
    tie(model, bias)
    return model
