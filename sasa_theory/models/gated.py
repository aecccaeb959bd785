"""Gated (Rajamanoharan et al. 2024): one set of encoder weights decides which latents are on, and how much.

    u = (h - b) W_enc,   gate = u + b_gate,   magnitude = relu(u exp(r_mag) + b_mag)
    c = 1{gate > 0} * magnitude
    loss = mean ||h - hhat||^2 + coefficient * mean sum relu(gate) ||d_k||
           + mean ||h - (relu(gate) W_dec + b)||^2 with the decoder frozen (it trains the gate)

b_gate is the base class's b_enc.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sasa_theory.models.auxiliary import auxiliary_loss
from sasa_theory.models.base import (
    Loss,
    SparseModel,
    combine,
    reconstruction_error,
    require_number,
    unit_rows_,
    weighted_mean,
)
from sasa_theory.models.codes import Codes
from sasa_theory.models.gate import units_above
from sasa_theory.models.registry import architectures
from sasa_theory.models.sparsity import Coefficient


@architectures.register("gated")
class Gated(SparseModel):
    """Gated autoencoder; with `target_l0` the coefficient is steered to that mean L0."""

    architecture = "gated"

    def __init__(
        self,
        width_in: int,
        n_latents: int,
        coefficient: float = 0.06,
        target_l0: float | None = None,
        aux_latents: int = 32,
    ) -> None:
        super().__init__(width_in, n_latents)
        require_number(aux_latents=aux_latents)
        self.aux_latents = aux_latents
        self.r_mag = nn.Parameter(torch.zeros(n_latents))
        self.b_mag = nn.Parameter(torch.zeros(n_latents))
        self.coefficient = Coefficient(coefficient, target_l0)

    def encode(self, x: "Float[Tensor, 'B D']") -> Codes:
        """Magnitudes of the latents whose gate is open, dense."""
        u = x @ self.W_enc - self.b_dec @ self.W_enc
        return self._gated(Codes(None, u[..., None], self.n_units))[0]

    def _gated(self, entries: Codes) -> tuple[Codes, Codes]:
        """Codes, and the rectified gates, from u of all latents or of those whose gate is open."""
        u = entries.values[..., 0]
        gate = u + entries.of_units(self.b_enc)
        magnitude = (u * entries.of_units(self.r_mag.exp()) + entries.of_units(self.b_mag)).relu()
        codes = entries.holding((magnitude * (gate > 0))[..., None])
        return codes, entries.holding(gate.relu()[..., None])

    def loss(
        self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None" = None, penalty_scale: float = 1.0
    ) -> Loss:
        no_bias, closed = torch.zeros_like(self.b_enc), -self.b_enc.detach()
        codes, gate = self._gated(units_above(x, self.W_enc, no_bias, self.b_dec, 1, closed))
        codes = codes.counted()
        xhat, frozen = self.decode(codes), self.W_dec.detach()
        via_gate = combine(gate, frozen) + self.b_dec.detach()
        l1 = weighted_mean(gate, torch.linalg.vector_norm(frozen, dim=1))
        parts = {
            "reconstruction": reconstruction_error(x, xhat),
            "sparsity": penalty_scale * self.coefficient() * l1,
            "gate": reconstruction_error(x, via_gate),
            "auxiliary": auxiliary_loss(self, x, xhat, dead, self.aux_latents, signed=False),
        }
        return Loss(torch.stack(list(parts.values())).sum(), parts, codes, xhat, {"l0": codes.mean_l0()})

    @torch.no_grad()
    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """SAELens "gated": b_gate = b_enc - b_dec W_enc, b_mag - exp(r_mag) b_dec W_enc, r_mag."""
        tensors = self.linear_tensors()
        shift = self.b_dec.double() @ self.W_enc.double()
        b_mag = (self.b_mag.double() - self.r_mag.double().exp() * shift).to(self.b_mag.dtype)
        tensors |= {"b_gate": tensors.pop("b_enc"), "b_mag": b_mag, "r_mag": self.r_mag}
        return {"architecture": "gated"}, tensors

    def post_step(self, loss: Loss) -> None:
        """Unit decoder rows; one move of the coefficient."""
        unit_rows_(self.W_dec)
        self.coefficient.update(loss.state["l0"])
