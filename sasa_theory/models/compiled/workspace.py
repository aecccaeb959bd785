"""Buffers that live from one step to the next.

A fresh array of 38 MB costs nine milliseconds of page faults, writing it again under one; so a step's big arrays are
asked for by name and stay. They begin at multiples of 64 bytes, as numpy's own do not: a load across two cache lines
costs two.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor


class Workspace:
    """Contiguous arrays by name; one is made anew when more, or far less, is asked for. They hold what was left."""

    def __init__(self) -> None:
        self._held: dict[str, ndarray] = {}
        self._given: dict[str, ndarray] = {}

    def __call__(self, name: str, shape: Sequence[int], dtype: Any = np.float32) -> ndarray:
        """The array of that name, of that shape."""
        given = self._given.get(name)
        if given is not None and given.shape == tuple(shape) and given.dtype == dtype:
            return given
        held, size = self._held.get(name), math.prod(shape)
        if held is None or held.dtype != dtype or not size <= held.size <= 2 * size:
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            held = self._held[name] = torch.empty(size, dtype=kind).numpy()
        given = self._given[name] = held[:size].reshape(shape)
        return given

    def tensor(self, name: str, shape: Sequence[int], dtype: Any = np.float32) -> Tensor:
        """The same as a tensor."""
        return torch.from_numpy(self(name, shape, dtype))
