"""The l1 autoencoder (Bricken et al. 2023; row norms in the penalty as in Conerly et al. 2024).

    c = relu((h - b) W_enc + b_enc),   loss = mean ||h - hhat||^2 + coefficient * mean sum_k c_k ||d_k||

Rows are kept at unit length after each step, so B1-B4 bind it.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sasa_theory.models.auxiliary import auxiliary_loss
from sasa_theory.models.base import Loss, SparseModel, reconstruction_error, require_number, unit_rows_, weighted_mean
from sasa_theory.models.codes import Codes
from sasa_theory.models.form import GatedForm
from sasa_theory.models.gate import units_above
from sasa_theory.models.registry import architectures
from sasa_theory.models.sparsity import Coefficient


@architectures.register("relu")
class ReLU(SparseModel):
    """l1 autoencoder; with `target_l0` the coefficient is steered to that mean L0."""

    architecture = "relu"

    def __init__(
        self,
        width_in: int,
        n_latents: int,
        coefficient: float = 0.03,
        target_l0: float | None = None,
        aux_latents: int = 32,
    ) -> None:
        super().__init__(width_in, n_latents)
        require_number(aux_latents=aux_latents)
        self.aux_latents = aux_latents
        self.coefficient = Coefficient(coefficient, target_l0)

    def encode(self, x: "Float[Tensor, 'B D']") -> Codes:
        """relu of the pre-activations, dense."""
        return Codes(None, self.pre_activations(x).relu()[..., None], self.n_units)

    def loss(
        self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None" = None, penalty_scale: float = 1.0
    ) -> Loss:
        found = units_above(x, self.W_enc, self.b_enc, self.b_dec, 1, torch.zeros_like(self.b_enc))
        codes = found.holding(found.values.relu()).counted()
        xhat = self.decode(codes)
        l1 = weighted_mean(codes, torch.linalg.vector_norm(self.W_dec, dim=1))
        parts = {
            "reconstruction": reconstruction_error(x, xhat),
            "sparsity": penalty_scale * self.coefficient() * l1,
            "auxiliary": auxiliary_loss(self, x, xhat, dead, self.aux_latents, signed=False),
        }
        return Loss(torch.stack(list(parts.values())).sum(), parts, codes, xhat, {"l0": codes.mean_l0()})

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """SAELens "standard"."""
        return {"architecture": "standard"}, self.linear_tensors()

    def gated_form(self) -> GatedForm | None:
        """Everything positive, charged by l1, with unit decoder rows."""
        return GatedForm(0, True, self.aux_latents, "rows", "l1", self.coefficient, choice="level")

    def post_step(self, loss: Loss) -> None:
        """Unit decoder rows; one move of the coefficient."""
        unit_rows_(self.W_dec)
        self.observe(loss)

    def observe(self, loss: Loss) -> None:
        """One move of the coefficient."""
        self.coefficient.update(loss.state["l0"])
