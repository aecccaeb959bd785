"""Vanilla block-sparse featurizer (Fel et al. 2026, arXiv:2606.25234): free encoder, signed blocks, block TopK.

    p_k = E_k (h - b) + e_k,  keep the s blocks of largest ||p_k||,  hhat = b + sum_k D_k p_k
    loss = mean ||h - hhat||^2 + auxiliary loss on dead blocks,   ||D_k||_F = sqrt(r)

SASA without its nuclear norm and with an encoder bias; with blocks of one column it is AbsTopK. The decoder alone is
rescaled after each step: blocks of equal norm make the gate compare contributions. The released code has blocks of norm
1 (a rescaling of the codes), no b (its data are centred), no auxiliary loss (`aux_groups=0`), and adds noise to inputs.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sasa_theory.models.auxiliary import auxiliary_loss
from sasa_theory.models.base import Loss, SparseModel, combine, reconstruction_error, require_number, require_positive
from sasa_theory.models.codes import Codes
from sasa_theory.models.form import GatedForm
from sasa_theory.models.gate import best_units
from sasa_theory.models.registry import architectures
from synthetic.errors import UsageError


@architectures.register("bsf")
class BSF(SparseModel):
    """Block-sparse featurizer with `active_groups` of `n_groups` blocks of `group_rank` columns on each row.

    Raises UsageError for more active blocks than there are.
    """

    architecture = "bsf"

    def __init__(self, width_in: int, n_groups: int, group_rank: int, active_groups: int, aux_groups: int = 32) -> None:
        super().__init__(width_in, n_groups, group_rank)
        require_positive(active_groups=active_groups)
        require_number(aux_groups=aux_groups)
        if active_groups > n_groups:
            raise UsageError(f"active_groups is {active_groups} but there are only {n_groups} groups; lower it")
        self.active_groups, self.aux_groups = active_groups, aux_groups

    def encode(self, x: "Float[Tensor, 'B D']") -> Codes:
        """The s blocks of largest norm, with their r coefficients each."""
        return best_units(x, self.W_enc, self.b_enc, self.b_dec, self.rank, self.active_groups, signed=True)

    def training_rows(self) -> "tuple[Float[Tensor, 'D Kr'], Float[Tensor, 'Kr D']]":
        """Encoder and decoder as the loss sees them, differentiable in everything that is trained."""
        return self.W_enc, self.W_dec

    def loss(
        self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None" = None, penalty_scale: float = 1.0
    ) -> Loss:
        encoder, rows = self.training_rows()
        codes = best_units(x, encoder, self.b_enc, self.b_dec, self.rank, self.active_groups, signed=True)
        xhat = combine(codes, rows) + self.b_dec
        parts = {
            "reconstruction": reconstruction_error(x, xhat),
            "auxiliary": auxiliary_loss(self, x, xhat, dead, self.aux_groups, signed=True),
        }
        return Loss(torch.stack(list(parts.values())).sum(), parts, codes, xhat)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The published SASA code's "topk_sasa", which has the same gate."""
        fields = {"n_groups": self.n_units, "group_rank": self.rank, "k_groups": self.active_groups}
        return {"architecture": "topk_sasa", **fields}, self.linear_tensors()

    def gated_form(self) -> GatedForm | None:
        """The Top-s gate with decoder blocks of fixed norm."""
        return GatedForm(self.active_groups, False, self.aux_groups, "blocks")

    def post_step(self, loss: Loss) -> None:
        """Decoder blocks of Frobenius norm sqrt(r)."""
        unit_blocks_(self.W_dec, self.rank)


@torch.no_grad()
def unit_blocks_(rows: "Float[Tensor, 'Kr D']", rank: int) -> None:
    """Scale every nonzero block of `rank` rows to Frobenius norm sqrt(rank), in place."""
    size = torch.linalg.vector_norm(rows.unflatten(0, (-1, rank)), dim=(1, 2)).div(rank**0.5)
    rows.div_(torch.where(size > 0, size, 1.0).repeat_interleave(rank)[:, None])
