"""TopK (Gao et al. 2024): the k largest latents of each token stay on.

    c = relu((h - b) W_enc + b_enc) restricted to its k largest entries,   hhat = c W_dec + b

`signed=True` keeps the k largest in absolute value without rectifying (AbsTopK), which is SASA with r = 1.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

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
from sasa_theory.models.gate import best_units
from sasa_theory.models.registry import architectures
from synthetic.errors import UsageError


@architectures.register("topk")
class TopK(SparseModel):
    """TopK autoencoder with `active_latents` latents per token; raises UsageError for k > n_latents."""

    architecture = "topk"

    def __init__(
        self, width_in: int, n_latents: int, active_latents: int, aux_latents: int = 32, signed: bool = False
    ) -> None:
        super().__init__(width_in, n_latents)
        require_positive(active_latents=active_latents)
        require_number(aux_latents=aux_latents)
        if active_latents > n_latents:
            raise UsageError(f"active_latents is {active_latents} but there are only {n_latents} latents; lower it")
        self.active_latents, self.aux_latents, self.signed = active_latents, aux_latents, signed

    def encode(self, x: "Float[Tensor, 'B D']") -> Codes:
        """The k largest rectified (or, signed, absolutely largest) latents."""
        return best_units(x, self.W_enc, self.b_enc, self.b_dec, 1, self.active_latents, self.signed)

    def loss(
        self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None" = None, penalty_scale: float = 1.0
    ) -> Loss:
        codes = self.encode(x)
        xhat = self.decode(codes)
        parts = {
            "reconstruction": reconstruction_error(x, xhat),
            "auxiliary": auxiliary_loss(self, x, xhat, dead, self.aux_latents, self.signed),
        }
        return Loss(torch.stack(list(parts.values())).sum(), parts, codes, xhat)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """SAELens "topk", or "abstopk" when signed."""
        name = "abstopk" if self.signed else "topk"
        fields = {"architecture": name, "k": self.active_latents, "rescale_acts_by_decoder_norm": False}
        return fields, self.linear_tensors()

    def gated_form(self) -> GatedForm | None:
        """The Top-s gate with unit decoder rows."""
        return GatedForm(self.active_latents, not self.signed, self.aux_latents, "rows")

    def post_step(self, loss: Loss) -> None:
        """Unit decoder rows."""
        unit_rows_(self.W_dec)
