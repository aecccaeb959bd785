"""SASA: groups of signed linear codes, a Top-s gate by group norm, a nuclear-norm penalty per group.

    p_k = E_k (h - b),  keep the s groups of largest ||p_k||,  hhat = b + sum_k D_k p_k
    loss = mean ||h - hhat||^2 + nuclear * sum_k ||D_k E_k||_*     (penalty "map", the paper's objective: C1-C6)
                              or nuclear * mean_k ||D_k||_*        (penalty "decoder", the published code's: C8)
           + auxiliary loss on dead groups

`penalise="active"` charges the groups that fire in the batch, so that a dead group is not also shrunk; `"all"` is the
objective as written. On language-model activations this with a warm-up of `penalty_scale` left 4 % of the groups silent
against 21 % for "all" without one and 0.2 % without penalty (K=1024, nuclear .0156, one seed); at nuclear .3 each alone
took .56 to .43 and .45, both to .34; on planted data only the warm-up helped. Neither ends it.
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sasa_theory import parallel
from sasa_theory.models.auxiliary import auxiliary_loss
from sasa_theory.models.base import Loss, SparseModel, reconstruction_error, require_number, require_positive
from sasa_theory.models.codes import Codes
from sasa_theory.models.form import GatedForm
from sasa_theory.models.gate import best_units
from sasa_theory.models.nuclear import block_nuclear_norm, map_nuclear_norm
from sasa_theory.models.registry import architectures
from synthetic.errors import UsageError, unknown


@architectures.register("sasa")
class SASA(SparseModel):
    """Subspace-aware sparse autoencoder; raises UsageError for s > K or an unknown penalty."""

    architecture = "sasa"

    def __init__(
        self,
        width_in: int,
        n_groups: int,
        group_rank: int,
        active_groups: int,
        penalty: Literal["map", "decoder"] = "map",
        nuclear: float = 0.0,
        penalise: Literal["active", "all"] = "active",
        aux_groups: int = 32,
        encoder_bias: bool = False,
        gauge: bool = True,
    ) -> None:
        super().__init__(width_in, n_groups, group_rank)
        require_positive(active_groups=active_groups)
        require_number(nuclear=nuclear, aux_groups=aux_groups)
        if active_groups > n_groups:
            raise UsageError(f"active_groups is {active_groups} but there are only {n_groups} groups; lower it")
        for value, choices in ((penalty, ("map", "decoder")), (penalise, ("active", "all"))):
            if value not in choices:
                raise unknown("penalty option", value, choices)
        self.active_groups, self.penalty, self.nuclear, self.penalise = active_groups, penalty, nuclear, penalise
        self.aux_groups, self.encoder_bias, self.gauge = aux_groups, encoder_bias, gauge
        self.b_enc.requires_grad_(encoder_bias)

    def encode(self, x: "Float[Tensor, 'B D']") -> Codes:
        """The s groups of largest norm, with their r coefficients each."""
        return best_units(x, self.W_enc, self.b_enc, self.b_dec, self.rank, self.active_groups, signed=True)

    def loss(
        self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None" = None, penalty_scale: float = 1.0
    ) -> Loss:
        codes = self.encode(x)
        xhat = self.decode(codes)
        parts = {
            "reconstruction": reconstruction_error(x, xhat),
            "nuclear": penalty_scale * self.nuclear * self.nuclear_penalty(codes),
            "auxiliary": auxiliary_loss(self, x, xhat, dead, self.aux_groups, signed=True),
        }
        return Loss(torch.stack(list(parts.values())).sum(), parts, codes, xhat)

    def nuclear_penalty(self, codes: Codes) -> "Float[Tensor, '']":
        """sum_k ||M_k||_* ("map") or mean_k ||D_k||_* ("decoder") over the groups that are charged."""
        if self.nuclear == 0:
            return self.W_dec.new_zeros(())
        dec = _Own.apply(self.W_dec).view(self.n_units, self.rank, self.width_in)
        if self.penalty == "map":
            enc = _Own.apply(self.W_enc).unflatten(1, (self.n_units, self.rank)).permute(1, 0, 2)
            norms = map_nuclear_norm(enc, dec)
        else:
            norms = block_nuclear_norm(dec)
        if self.penalise == "active":
            norms = norms * parallel.any_process(codes.counts() > 0)
        return norms.sum() if self.penalty == "map" else norms.sum() / self.n_units

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The published code's "topk_sasa"."""
        fields = {"n_groups": self.n_units, "group_rank": self.rank, "k_groups": self.active_groups}
        return {"architecture": "topk_sasa", **fields}, self.linear_tensors()

    def gated_form(self) -> GatedForm | None:
        """The Top-s gate with the gauge, and the nuclear charge."""
        price = self.nuclear if self.penalty == "map" else self.nuclear / self.n_units
        constraint: Literal["gauge"] | None = "gauge" if self.gauge else None
        everyone = self.penalise == "all"
        return GatedForm(self.active_groups, False, self.aux_groups, constraint, self.penalty, price, everyone)

    @torch.no_grad()
    def post_step(self, loss: Loss) -> None:
        """Fix the gauge: each block to ||D_k||_F = sqrt(r), its encoder block scaled back, so every map stays.

        Adam's moments stay in the scale of before: a step moves each entry by about lr, so a block's norm by at most
        a share of about lr sqrt(D), and the moments are off by that share.
        """
        if not self.gauge:
            return
        _, dec = self.blocks()
        size = torch.linalg.vector_norm(dec, dim=(1, 2)).div(self.rank**0.5)
        size = torch.where(size > 0, size, 1.0).repeat_interleave(self.rank)
        self.W_dec.div_(size[:, None])
        self.W_enc.mul_(size)
        self.b_enc.mul_(size)


class _Own(torch.autograd.Function):
    """The same tensor; its gradient goes back as no view of another.

    Into such a one the engine adds the other losses' gradients in place, a fifth of the time of a fresh sum.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor) -> Tensor:
        return weights.view_as(weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].detach()
