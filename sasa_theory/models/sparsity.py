"""A penalty coefficient that finds itself: multiplicative control towards a target L0.

    log c <- log c + gain * clip(log(L0 / target), -1, 1)      after every step

Comparisons at matched L0 need no grid of coefficients then. Without a target the coefficient stays as given.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sasa_theory import parallel
from sasa_theory.models.base import require_number


class Coefficient(nn.Module):
    """A positive penalty coefficient, fixed or steered towards `target_l0` (columns per token)."""

    log_value: Tensor

    def __init__(self, initial: float, target_l0: float | None, gain: float = 0.01) -> None:
        super().__init__()
        require_number(low=0.0 if target_l0 is None else 1e-12, coefficient=initial)
        if target_l0 is not None:
            require_number(low=1e-3, target_l0=target_l0)
        self.initial, self.target_l0, self.gain = initial, target_l0, gain
        self.register_buffer("log_value", torch.tensor(math.log(max(initial, 1e-38)), dtype=torch.float64))

    def __call__(self) -> "Float[Tensor, '']":
        """The coefficient now."""
        return self.log_value.exp().float() if self.initial > 0 else torch.zeros_like(self.log_value).float()

    @torch.no_grad()
    def update(self, l0: "Float[Tensor, '']") -> None:
        """Move towards the target, given the mean L0 of the last batch."""
        if self.target_l0 is not None:
            error = torch.log(parallel.mean(l0.double()).clamp_min(1e-3) / self.target_l0).clamp(-1, 1)
            self.log_value += self.gain * error.to(self.log_value.device)
