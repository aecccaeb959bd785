"""A manifold of one's own: a figure eight in the plane. Load it with --plugin; examples/lemniscate.json is a world."""

import math
from dataclasses import dataclass

import torch

from synthetic.manifolds import Parametric, manifolds


@manifolds.register("lemniscate")
@dataclass(frozen=True)
class Lemniscate(Parametric):
    """z(t) = (sin t, height sin t cos t), t uniform; centred and brought to unit RMS by the base class."""

    height: float = 1.0
    intrinsic, ambient = 1, 2

    def bounds(self) -> tuple[tuple[float, float], ...]:
        return ((0.0, 2 * math.pi),)

    def embed(self, theta: torch.Tensor) -> torch.Tensor:
        t = theta[:, 0]
        return torch.stack((t.sin(), self.height * t.sin() * t.cos()), dim=1)
