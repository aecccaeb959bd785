"""JumpReLU (Rajamanoharan et al. 2024): a learned threshold per latent, an L0 penalty by straight-through gradients.

    c = pre * 1{pre > theta},   loss = mean ||h - hhat||^2 + coefficient * mean ||c||_0

The step function's derivative in theta is replaced by -1/bandwidth inside a window of that width around theta (a
rectangle kernel), both in c and in the L0 term; theta = exp(log_threshold) stays positive.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sasa_theory.models.auxiliary import auxiliary_loss
from sasa_theory.models.base import Loss, SparseModel, reconstruction_error, require_number, unit_rows_
from sasa_theory.models.batchtopk import gated_by
from sasa_theory.models.codes import Codes
from sasa_theory.models.gate import units_above
from sasa_theory.models.registry import architectures
from sasa_theory.models.sparsity import Coefficient


class _Step(torch.autograd.Function):
    """1{pre > theta} with the rectangle-kernel gradient in theta only."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        pre, theta = ctx.saved_tensors
        window = (pre - theta).abs() < ctx.bandwidth / 2
        return None, -(grads[0] * window).sum_to_size(theta.shape) / ctx.bandwidth, None


@architectures.register("jumprelu")
class JumpReLU(SparseModel):
    """JumpReLU autoencoder; with `target_l0` the coefficient is steered to that mean L0.

    initial_threshold and bandwidth are in units of the pre-activations.
    """

    architecture = "jumprelu"

    def __init__(
        self,
        width_in: int,
        n_latents: int,
        coefficient: float = 0.01,
        target_l0: float | None = None,
        bandwidth: float = 0.05,
        initial_threshold: float = 0.05,
        aux_latents: int = 32,
    ) -> None:
        super().__init__(width_in, n_latents)
        require_number(low=1e-8, bandwidth=bandwidth, initial_threshold=initial_threshold)
        require_number(aux_latents=aux_latents)
        self.bandwidth, self.initial_threshold, self.aux_latents = bandwidth, initial_threshold, aux_latents
        self.log_threshold = nn.Parameter(torch.full((n_latents,), math.log(initial_threshold)))
        self.coefficient = Coefficient(coefficient, target_l0)

    @property
    def threshold(self) -> "Float[Tensor, ' K']":
        """theta = exp(log_threshold)."""
        return self.log_threshold.exp()

    def encode(self, x: "Float[Tensor, 'B D']") -> Codes:
        """Pre-activations above their thresholds, dense."""
        return gated_by(self.pre_activations(x), self.threshold)

    def loss(
        self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None" = None, penalty_scale: float = 1.0
    ) -> Loss:
        # whatever is on or in the window, and a little more, as the window is looked at again
        lowest = (self.threshold - (0.5 + 1e-3) * self.bandwidth).detach()
        found = units_above(x, self.W_enc, self.b_enc, self.b_dec, 1, lowest)
        pre, theta = found.values[..., 0], found.of_units(self.threshold)
        on = _Step.apply(pre, theta, self.bandwidth)
        # c = pre * 1{pre > theta}: its threshold gradient is -theta/bandwidth in the window, as pre ~ theta there
        value = pre * on.detach() + theta.detach() * (on - on.detach())
        codes = found.holding(value[..., None]).counted()
        xhat = self.decode(codes)
        l0 = on.sum() / codes.batch
        parts = {
            "reconstruction": reconstruction_error(x, xhat),
            "sparsity": penalty_scale * self.coefficient() * l0,
            "auxiliary": auxiliary_loss(self, x, xhat, dead, self.aux_latents, signed=False),
        }
        return Loss(torch.stack(list(parts.values())).sum(), parts, codes, xhat, {"l0": l0.detach()})

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """SAELens "jumprelu"."""
        return {"architecture": "jumprelu"}, {**self.linear_tensors(), "threshold": self.threshold.detach()}

    def post_step(self, loss: Loss) -> None:
        """Unit decoder rows; one move of the coefficient."""
        unit_rows_(self.W_dec)
        self.coefficient.update(loss.state["l0"])
