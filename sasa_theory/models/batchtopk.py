"""BatchTopK (Bussmann et al. 2024): the B k largest latents of the whole batch stay on.

    training   c = relu(pre) restricted to the B k largest entries of the batch
    inference  c = relu(pre) where pre > threshold: a JumpReLU with one threshold for all latents

The threshold is a running mean of each training batch's smallest selected value, moved in `post_step`.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sasa_theory import parallel
from sasa_theory.models.auxiliary import auxiliary_loss
from sasa_theory.models.base import (
    Loss,
    SparseModel,
    reconstruction_error,
    require_number,
    require_positive,
    unit_rows_,
)
from sasa_theory.models.codes import Codes
from sasa_theory.models.form import GatedForm
from sasa_theory.models.gate import best_of_batch
from sasa_theory.models.registry import architectures
from synthetic.errors import UsageError


@architectures.register("batchtopk")
class BatchTopK(SparseModel):
    """BatchTopK with a mean of `active_latents` latents per token; raises UsageError for k > n_latents."""

    architecture = "batchtopk"
    threshold: Tensor

    def __init__(
        self, width_in: int, n_latents: int, active_latents: int, aux_latents: int = 32, threshold_decay: float = 0.99
    ) -> None:
        super().__init__(width_in, n_latents)
        require_positive(active_latents=active_latents)
        require_number(aux_latents=aux_latents)
        require_number(high=1.0, threshold_decay=threshold_decay)
        if active_latents > n_latents:
            raise UsageError(f"active_latents is {active_latents} but there are only {n_latents} latents; lower it")
        self.active_latents, self.aux_latents, self.threshold_decay = active_latents, aux_latents, threshold_decay
        # negative: no batch seen yet
        self.register_buffer("threshold", torch.tensor(-1.0))

    def encode(self, x: "Float[Tensor, 'B D']") -> Codes:
        """Latents above the threshold; before any training step, the batch's own selection."""
        if self.threshold >= 0:
            return gated_by(self.pre_activations(x).relu(), self.threshold)
        return Codes(None, self.choose(x)[0].dense(), self.n_units)

    def choose(self, x: "Float[Tensor, 'B D']", processes: int = 1) -> "tuple[Codes, Float[Tensor, '']]":
        """The batch's B k largest latents, and the smallest positive one of them; see `best_of_batch`."""
        return best_of_batch(x, self.W_enc, self.b_enc, self.b_dec, self.active_latents, processes)

    def loss(
        self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None" = None, penalty_scale: float = 1.0
    ) -> Loss:
        codes, smallest = self.choose(x, parallel.world_size())
        xhat = self.decode(codes)
        parts = {
            "reconstruction": reconstruction_error(x, xhat),
            "auxiliary": auxiliary_loss(self, x, xhat, dead, self.aux_latents, signed=False),
        }
        return Loss(torch.stack(list(parts.values())).sum(), parts, codes, xhat, {"smallest": smallest})

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """SAELens "jumprelu" with the one threshold; UsageError before the first training step, when there is none."""
        if self.threshold < 0:
            raise UsageError("this BatchTopK has no inference threshold yet; train it for at least one step, then save")
        threshold = self.threshold.to(self.b_enc).expand(self.n_units).contiguous()
        return {"architecture": "jumprelu"}, {**self.linear_tensors(), "threshold": threshold}

    def gated_form(self) -> GatedForm | None:
        """The gate of the whole batch, with unit decoder rows."""
        return GatedForm(self.active_latents, True, self.aux_latents, "rows", choice="batch")

    @torch.no_grad()
    def post_step(self, loss: Loss) -> None:
        """Unit decoder rows; one move of the inference threshold."""
        unit_rows_(self.W_dec)
        self.observe(loss)

    @torch.no_grad()
    def observe(self, loss: Loss) -> None:
        """One move of the inference threshold."""
        new = loss.state["smallest"].float()
        moved = self.threshold + (1 - self.threshold_decay) * (new - self.threshold)
        self.threshold.copy_(torch.where(self.threshold < 0, new, moved))


def gated_by(pre: "Float[Tensor, 'B K']", threshold: Tensor) -> Codes:
    """pre where it exceeds the threshold (JumpReLU), as dense codes."""
    return Codes(None, (pre * (pre > threshold))[..., None], pre.shape[1])
