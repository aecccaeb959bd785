"""What a dictionary is measured beside in every figure on planted data, and what needs no training.

planted truth  the true subspaces, a group each, gated as SASA gates.
PCA            the leading principal directions, as many as the dictionaries have active columns, all on.
K-lines        one active line of as many atoms as the dictionaries have,
K-subspaces    one active subspace of as many as there are features: both fitted to rows with one feature each and
               measured on such rows, as they know no other; so their task is easier than the dictionaries'.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory.models import SASA, AbsTopK, SparseModel
from sasa_theory.solvers import klines, ksubspaces
from synthetic import World

TRUTH = "planted truth"
REFERENCES = (TRUTH, "PCA", "K-lines", "K-subspaces")


@torch.no_grad()
def references(world: World, rank: int, columns: int, rows: int, seed: int) -> dict[str, tuple[SparseModel, World]]:
    """The four as models, each with the world it is measured on (module docstring).

    rank     columns of a group, at least the largest dimension of a feature.
    columns  lines of K-lines.
    rows     rows that each is fitted to.
    """
    generator = torch.Generator().manual_seed(seed)
    single = World.from_spec({**world.spec(), "support": {"law": "exact", "active": 1}, "energy": None})
    x = world.sample(rows, generator).x.double()
    alone = single.sample(rows, generator).x.numpy()
    rng = np.random.default_rng(seed)
    features, width, active = len(world.dims), world.width, round(world.statistics().expected_active)

    mean = x.mean(0)
    directions = torch.linalg.svd(x - mean, full_matrices=False).Vh[: active * rank]
    pca = AbsTopK(width, len(directions), len(directions))
    pca.W_dec.copy_(directions)
    tie(pca, mean)
    fitted = klines.fit(alone, columns, rng, centre=False, restarts=1, iterations=30)
    lines = AbsTopK(width, columns, 1)
    lines.W_dec.copy_(torch.from_numpy(fitted.atoms))
    tie(lines, torch.from_numpy(fitted.bias))
    found = ksubspaces.fit(alone, features, rank, rng, centre=False, restarts=1, iterations=30)
    blocks = SASA(width, features, rank, 1)
    blocks.W_dec.copy_(torch.from_numpy(found.bases.reshape(-1, width)))
    tie(blocks, torch.from_numpy(found.bias))
    return {
        TRUTH: (planted_truth(world, rank), world),
        "PCA": (pca, world),
        "K-lines": (lines, single),
        "K-subspaces": (blocks, single),
    }


@torch.no_grad()
def planted_truth(world: World, rank: int) -> SASA:
    """The true subspaces, a group of `rank` columns each, as many active as features are on average."""
    model = SASA(world.width, len(world.dims), rank, round(world.statistics().expected_active))
    model.W_dec.zero_()
    for i, frame in enumerate(world.frames()):
        model.W_dec[rank * i : rank * i + len(frame)] = frame
    tie(model, world.bias)
    return model


@torch.no_grad()
def tie(model: SparseModel, bias: "Float[Tensor, ' D']") -> None:
    """Encoder = decoder transposed, and the bias."""
    model.W_enc.copy_(model.W_dec.T)
    model.b_dec.copy_(bias)
