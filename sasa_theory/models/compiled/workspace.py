"""Buffers that live from one step to the next.

A fresh array of 38 MB costs nine milliseconds of page faults, writing it again under one; so a step's big arrays are
asked for by name and stay.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor


class Workspace:
    """Arrays by name; one is made anew when another size or type is asked for. What they hold is whatever was left."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def tensor(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous CPU tensor."""
        held = self._held.get(name)
        size = int(np.prod(shape))
        if held is None or held.dtype != dtype or held.numel() < size or held.numel() > 2 * size:
            held = self._held[name] = torch.empty(size, dtype=dtype)
        return held[:size].view(*shape)

    def __call__(self, name: str, shape: Sequence[int], dtype: type = np.float32) -> ndarray:
        """A contiguous array."""
        made: ndarray = self.tensor(name, shape, torch.from_numpy(np.empty(0, dtype)).dtype).numpy()
        return made
