"""All products of rows and encoder columns, chunk by chunk, in int8 or float32, shown to whoever lists candidates.

An int8 product errs by about a hundredth of a coefficient's spread: each entry's rounding error has variance
scale^2 / 12, and `Products` says how that adds up. Both sides are first scaled dimension by dimension to like sizes, so
that the few large dimensions of language-model activations do not use up the eight bits.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from sasa_theory.models.compiled import gate_loops as loops
from sasa_theory.models.compiled.workspace import Workspace
from sasa_theory.threads import split, spread

#: rows of a chunk: few enough that its products stay in cache until they have been looked at
CHUNK = 256
#: rows whose dimensions are measured to balance the two sides
SAMPLE = 256
#: standard deviation of a float32 product's error, over the lengths of its factors
FLOAT32_NOISE = 2.0**-22


class Products(NamedTuple):
    """What turns products of rows and weights into coefficients, and how far off these are (see `loops.shortlist`).

    Weights come as r stretches of K: the columns of one number of all units side by side.
    """

    row_scale: ndarray
    row_noise: ndarray
    scale: ndarray
    noise: ndarray
    bias: ndarray


#: visit(rows in the chunk, its first row, products (rows, r K), how to read them)
Visitor = Callable[[int, int, ndarray, Products], None]


class Screen:
    """Products with r columns per unit; buffers live in `space`, named after `name`."""

    def __init__(self, space: Workspace, name: str, rank: int) -> None:
        self.space, self.name, self.rank = space, name, rank

    def visit(self, x: ndarray, rows: ndarray, bias: ndarray, visitor: Visitor, exact: bool) -> None:
        """Show every chunk of x rows^T, in float32 if `exact`, else in int8; threads take chunks by turns."""
        (self._float32 if exact else self._int8)(x, rows, bias, visitor)

    def _int8(self, x: ndarray, rows: ndarray, bias: ndarray, visitor: Visitor) -> None:
        (batch, width), n = x.shape, len(rows)
        padded = (
            -(-width // 4) * 4
        )  # the processor takes four at once; at width 1 torch 2.13 misreads a transposed factor
        x8, w8 = self._held("x8", (batch, padded), np.int8), self._held("w8", (n, padded), np.int8)
        of_x = self._held("x8 scale", (batch,)), self._held("x8 noise", (batch, 2))
        of_w = self._held("w8 scale", (n,)), self._held("w8 noise", (n, 2))
        balance = balance_of(x, rows)
        split(loops.quantise, n, rows, 1 / balance, self.rank, w8, *of_w, work=2 * rows.size)
        factor, weights = torch.from_numpy(x8), torch.from_numpy(w8).T

        def multiply(start: int, stop: int, out: Tensor) -> Tensor:
            loops.quantise(start, stop, x, balance, 1, x8, *of_x)
            return torch._int_mm(factor[start:stop], weights, out=out)

        self._in_chunks(multiply, np.int32, Products(*of_x, *of_w, self._sideways(bias)), visitor)

    def _float32(self, x: ndarray, rows: ndarray, bias: ndarray, visitor: Visitor) -> None:
        batch, n = len(x), len(rows)
        squares, lengths = np.square(x).sum(1), np.square(rows).sum(1)
        of_x = np.ones(batch, np.float32), np.stack([FLOAT32_NOISE**2 * squares, squares], 1).astype(np.float32)
        of_w = np.ones(n, np.float32), np.stack([np.zeros_like(lengths), lengths], 1)
        factor, weights = torch.from_numpy(x), torch.from_numpy(rows).T

        def multiply(start: int, stop: int, out: Tensor) -> Tensor:
            pre = torch.mm(factor[start:stop], weights, out=out).view(stop - start, -1, self.rank)
            return pre.transpose(1, 2).reshape(stop - start, n)

        self._in_chunks(multiply, np.float32, Products(*of_x, *of_w, self._sideways(bias)), visitor)

    def _in_chunks(
        self, multiply: "Callable[[int, int, Tensor], Tensor]", dtype: type, products: Products, visitor: Visitor
    ) -> None:
        batch, chunks = len(products.row_scale), itertools.count()
        shape = (min(CHUNK, batch), len(products.scale))

        def work(thread: int) -> None:
            buffer = self.space.tensor(f"products {thread} {dtype.__name__}", shape, dtype)
            while (start := next(chunks) * CHUNK) < batch:
                stop = min(start + CHUNK, batch)
                visitor(stop - start, start, multiply(start, stop, buffer[: stop - start]).numpy(), products)

        spread(work)

    def _held(self, what: str, shape: tuple[int, ...], dtype: type = np.float32) -> ndarray:
        return self.space(f"{self.name} {what}", shape, dtype)

    def _sideways(self, bias: ndarray) -> ndarray:
        return np.ascontiguousarray(bias.reshape(-1, self.rank).T).ravel()


@functools.cache
def int8_is_faster() -> bool:
    """Whether this processor multiplies int8 faster than float32, and torch does it right (a small case is tried)."""
    if not (hasattr(torch, "_int_mm") and getattr(torch.cpu, "_is_vnni_supported", lambda: False)()):
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-127, 128, (n, 64), generator=generator, dtype=torch.int8) for n in (33, 70))
    return torch.equal(torch._int_mm(a, b.T), a.int() @ b.int().T)


def balance_of(x: ndarray, rows: ndarray) -> "Float[ndarray, ' D']":
    """What to multiply x's dimensions with, and divide the weights' by, so that both have like sizes in each."""
    size_x = np.square(x[:: max(1, len(x) // SAMPLE)]).mean(0)
    size_w = np.square(rows[:: max(1, len(rows) // SAMPLE)]).mean(0)
    usable = (size_x > 0) & (size_w > 0) & np.isfinite(size_x) & np.isfinite(size_w)
    return np.where(usable, (size_w / np.where(usable, size_x, 1)) ** 0.25, 1).astype(np.float32)
