"""JumpReLU (Rajamanoharan et al. 2024): a learned threshold per latent, an L0 penalty by straight-through gradients.

    c = pre * 1{pre > theta},   loss = mean ||h - hhat||^2 + coefficient * L0,   L0 = mean ||c||_0

or, told its L0 (their appendix on a fixed sparsity), coefficient * (L0 / target - 1)^2 in place of the penalty: below
the target it pulls thresholds down, which a penalty on L0, however steered, cannot.

The step function's derivative in theta is replaced by -1/bandwidth inside a window of that width around theta (a
rectangle kernel), both in c and in the L0 term; theta = exp(log_threshold) stays positive.

A threshold moves by its logarithm, at the learning rate, and only while pre-activations lie in its window. One that
begins far from where it must go is still on its way when a short training ends, so training begins near there: at a
quantile of the pre-activations on the first rows, with a window of half their spread.
"""

import math
import statistics
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sasa_theory import parallel
from sasa_theory.models.auxiliary import auxiliary_loss
from sasa_theory.models.base import Loss, SparseModel, reconstruction_error, require_number, unit_rows_
from sasa_theory.models.batchtopk import gated_by
from sasa_theory.models.codes import Codes
from sasa_theory.models.form import WINDOW, GatedForm, Jump
from sasa_theory.models.gate import units_above
from sasa_theory.models.registry import architectures


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


#: rows on which threshold, window and coefficient begin
FIRST_ROWS = 1024
#: weight of (L0 / target - 1)^2 in units of E||h||^2. One more latent explains less than the mean one, E||h||^2 / L0;
#: with this weight w the two sides of the loss are then in balance within 1 / (2 w) = 5 % of the target
TARGET_WEIGHT = 10.0
#: latents on at the beginning for each one wanted: those that begin off learn nothing until one turns on
DENSER = 4.0
#: share of latents on at the beginning without a target; and at most, as the window must not reach below 0
BEGIN_SHARE, MOST_SHARE = 0.05, 0.15
#: smallest threshold, in standard deviations of the pre-activations
LOWEST = 0.05


@architectures.register("jumprelu")
class JumpReLU(SparseModel):
    """JumpReLU autoencoder; with `target_l0` it is held at that mean L0.

    initial_threshold and bandwidth are in units of the pre-activations, coefficient in those of ||h||^2. What is None
    is measured on the first rows of a training: the threshold that `DENSER` times target_l0 latents exceed
    (`BEGIN_SHARE` of them without a target), half of the pre-activations' standard deviation, and `TARGET_WEIGHT`
    E||h - b_dec||^2 (without a target the threshold's square: what such a latent explains). Until then they are those
    of standard normal pre-activations.
    """

    architecture = "jumprelu"
    bandwidth: Tensor
    coefficient: Tensor

    def __init__(
        self,
        width_in: int,
        n_latents: int,
        coefficient: float | None = None,
        target_l0: float | None = None,
        bandwidth: float | None = None,
        initial_threshold: float | None = None,
        aux_latents: int = 32,
    ) -> None:
        super().__init__(width_in, n_latents)
        require_number(aux_latents=aux_latents)
        # a coefficient of 0 would hold nothing at the target
        least = 0.0 if target_l0 is None else 1e-12
        for name, value, low, high in (
            ("coefficient", coefficient, least, math.inf),
            ("bandwidth", bandwidth, 1e-8, math.inf),
            ("initial_threshold", initial_threshold, 1e-8, math.inf),
            ("target_l0", target_l0, 1e-3, n_latents),
        ):
            if value is not None:
                require_number(low, high, **{name: value})
        self.aux_latents, self.target_l0 = aux_latents, target_l0
        self._share = BEGIN_SHARE
        if target_l0 is not None:
            wanted = min(0.5, target_l0 / n_latents)
            self._share = max(wanted, min(DENSER * wanted, MOST_SHARE))
        self._given = (initial_threshold, bandwidth, coefficient)
        self.log_threshold = nn.Parameter(torch.zeros(n_latents))
        self.register_buffer("bandwidth", torch.ones(()))
        self.register_buffer("coefficient", torch.ones(()))
        self._start(statistics.NormalDist().inv_cdf(1 - self._share), 1.0, float(width_in))

    @torch.no_grad()
    def begin(self, x: "Float[Tensor, 'n D']") -> None:
        """Threshold, window and coefficient where none was given, from the first rows (class docstring)."""
        pre = self.pre_activations(x[:FIRST_ROWS])
        on = min(pre.numel() - 1, max(1, round(self._share * pre.numel())))
        level = pre.flatten().kthvalue(pre.numel() - on).values
        energy = (x - self.b_dec).square().sum(dim=1).mean()
        self._start(float(level), max(float(pre.std(correction=0)), 1e-6), float(energy))

    @torch.no_grad()
    def _start(self, level: float, spread: float, energy: float) -> None:
        """Begin with what was given, and else with these measures of pre-activations and rows."""
        threshold, bandwidth, coefficient = self._given
        theta = max(level, LOWEST * spread) if threshold is None else threshold
        weight = theta**2 if self.target_l0 is None else TARGET_WEIGHT * energy
        self.log_threshold.fill_(math.log(theta))
        self.bandwidth.fill_(spread / 2 if bandwidth is None else bandwidth)
        self.coefficient.fill_(weight if coefficient is None else coefficient)

    def charge(self, l0: "Float[Tensor, '']") -> "tuple[Float[Tensor, ''], Float[Tensor, '']]":
        """The penalty on L0 (told a target, that of the joint batch) and its derivative."""
        if self.target_l0 is None:
            return self.coefficient * l0, self.coefficient
        off = parallel.mean(l0) / self.target_l0 - 1
        return self.coefficient * off**2, 2 * self.coefficient * off / self.target_l0

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
        # whatever is on or in the window
        lowest = (self.threshold - WINDOW * self.bandwidth).detach()
        found = units_above(x, self.W_enc, self.b_enc, self.b_dec, 1, lowest)
        pre, theta = found.values[..., 0], found.of_units(self.threshold)
        on = _Step.apply(pre, theta, self.bandwidth)
        # c = pre * 1{pre > theta}: its threshold gradient is -theta/bandwidth in the window, as pre ~ theta there
        value = pre * on.detach() + theta.detach() * (on - on.detach())
        codes = found.holding(value[..., None]).counted()
        xhat = self.decode(codes)
        l0 = on.sum() / codes.batch
        penalty, slope = self.charge(l0.detach())
        parts = {
            "reconstruction": reconstruction_error(x, xhat),
            # the difference is 0 and carries the gradient
            "sparsity": penalty_scale * (penalty + slope * (l0 - l0.detach())),
            "auxiliary": auxiliary_loss(self, x, xhat, dead, self.aux_latents, signed=False),
        }
        return Loss(torch.stack(list(parts.values())).sum(), parts, codes, xhat)

    def gated_form(self) -> GatedForm | None:
        """Everything above its threshold, with unit decoder rows."""
        jump = Jump(self.log_threshold, self.bandwidth, self.charge)
        return GatedForm(0, True, self.aux_latents, "rows", choice="level", jump=jump)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """SAELens "jumprelu"."""
        return {"architecture": "jumprelu"}, {**self.linear_tensors(), "threshold": self.threshold.detach()}

    def post_step(self, loss: Loss) -> None:
        """Unit decoder rows."""
        unit_rows_(self.W_dec)
