"""Starts of a SASA that are fitted to rows, and a gate that is noisy early in training, for figure `recovery`.

K-subspaces   the classical fit of one subspace a row (solvers/ksubspaces.py), though rows hold several features.
block PCA     a group's block of rows is the BLOCK rows nearest to a row drawn for it (largest |cosine|); the group
              starts at their leading r directions.
gate noise    groups are chosen by ||p_k|| + noise (1 - c) mean_j ||p_j|| N(0, 1), c the share of the penalty in
              force: noise falls to none as the penalty is warmed up. Codes, and the gate at evaluation, have none.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, from_numpy

from sasa_theory.models import SASA
from sasa_theory.models.base import Loss
from sasa_theory.models.codes import Codes
from sasa_theory.solvers import ksubspaces

#: rows that a start is fitted to, for each group; rows of a block
FIT_ROWS, BLOCK = 100, 100


def ksubspaces_start(rows: "Float[Tensor, 'n D']", groups: int, rank: int, seed: int) -> "Float[Tensor, 'K r D']":
    """The subspaces that K-subspaces fits to the rows, one to a group."""
    rng = np.random.default_rng(seed)
    fitted = ksubspaces.fit(rows.double().numpy(), groups, rank, rng, restarts=1, iterations=30)
    return from_numpy(fitted.bases).float()


def block_pca_start(rows: "Float[Tensor, 'n D']", groups: int, rank: int, seed: int) -> "Float[Tensor, 'K r D']":
    """The leading `rank` directions of a block of rows for each group (module docstring)."""
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:groups]
    unit = torch.nn.functional.normalize(rows, dim=1)
    near = (unit[drawn] @ unit.T).abs().topk(min(BLOCK, len(rows)), dim=1).indices
    return torch.linalg.svd(rows[near], full_matrices=False).Vh[:, :rank].contiguous()


Start = Callable[["Float[Tensor, 'n D']", int, int, int], "Float[Tensor, 'K r D']"]
STARTS: dict[str, Start] = {"ksubspaces": ksubspaces_start, "block pca": block_pca_start}


class NoisyGate(SASA):
    """A SASA whose gate is noisy while it trains (module docstring); `gate_noise` is replaced, never changed.

    The rows of a step seed its noise, so a resumed run draws what the straight one draws.
    """

    gate_noise = 0.0
    share = 0.0

    def loss(
        self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None" = None, penalty_scale: float = 1.0
    ) -> Loss:
        """SASA's loss with the noisy gate; without gradient, as where a split is judged, there is no noise."""
        self.share = self.gate_noise * (1 - penalty_scale) if torch.is_grad_enabled() else 0.0
        try:
            return super().loss(x, dead, penalty_scale)
        finally:
            self.share = 0.0

    def encode(self, x: "Float[Tensor, 'B D']") -> Codes:
        """The chosen groups' coefficients; which are chosen is noisy inside `loss`."""
        if not self.share:
            return super().encode(x)
        values = self.pre_activations(x).unflatten(1, (self.n_units, self.rank))
        with torch.no_grad():
            seed = int(x[0].view(torch.int32).long().sum()) % (1 << 32)
            norms = torch.linalg.vector_norm(values, dim=2)
            noise = torch.randn(norms.shape, generator=torch.Generator().manual_seed(seed)).to(norms)
            index = (norms + self.share * norms.mean() * noise).topk(self.active_groups, dim=1, sorted=False).indices
        return Codes(index, values.gather(1, index[..., None].expand(-1, -1, self.rank)), self.n_units)
