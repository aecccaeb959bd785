"""All products of rows and encoder columns, chunk by chunk, in int8 or float32, shown to whoever lists candidates."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from sasa_theory.models.compiled import gate_loops as loops
from sasa_theory.models.compiled.workspace import Workspace
from sasa_theory.models.rounding import balance_of, padded
from sasa_theory.threads import split, spread

#: products of a chunk: few enough to stay in cache until they have been looked at; and its rows at least
CHUNK, ROWS = 1 << 20, 256


class Products(NamedTuple):
    """What turns products of rows and weights into coefficients, and how far off these are (see `loops.shortlist`).

    Weights come as r stretches of K: the columns of one number of all units side by side.
    """

    row_scale: ndarray
    row_noise: ndarray
    scale: ndarray
    noise: ndarray
    bias: ndarray


class Screen:
    """Products with r columns per unit; buffers live in `space`, named after `name`."""

    def __init__(self, space: Workspace, name: str, rank: int) -> None:
        self.space, self.name, self.rank = space, name, rank

    def int8(
        self, x: ndarray, rows: ndarray, bias: ndarray, visitor: "Callable[[int, int, ndarray, Products], bool | None]"
    ) -> None:
        """Show every chunk of x rows^T in int8: visitor(number of rows, the first of them, products, how to read them).

        Threads take chunks by turns; one whose visitor answers True takes no more.
        """
        (batch, width), n = x.shape, len(rows)
        x8, w8 = self._held("x8", (batch, padded(width)), np.int8), self._held("w8", (n, padded(width)), np.int8)
        of_x = self._held("x8 scale", (batch,)), self._held("x8 noise", (batch, 2))
        of_w = self._held("w8 scale", (n,)), self._held("w8 noise", (n, 2))
        balance = balance_of(x, rows)
        split(loops.quantise, n, rows, 1 / balance, self.rank, w8, *of_w, work=2 * rows.size)
        factor, weights = torch.from_numpy(x8), torch.from_numpy(w8).T

        products = Products(*of_x, *of_w, np.ascontiguousarray(bias.reshape(-1, self.rank).T).ravel())

        def visit(start: int, stop: int, out: Tensor, _: int) -> bool | None:
            loops.quantise(start, stop, x, balance, 1, x8, *of_x)
            pre = torch._int_mm(factor[start:stop], weights, out=out)
            return visitor(stop - start, start, pre.numpy(), products)

        self._in_chunks(visit, np.int32, batch, n)

    def float32(
        self,
        x: ndarray,
        rows: ndarray,
        visitor: "Callable[[int, int, ndarray, int], bool | None]",
        before: "Callable[[int, int], None]" = lambda start, stop: None,
    ) -> None:
        """Show every chunk of x rows^T, columns in the order of `rows`: visitor(how many, first, products, thread).

        `before` may still fill the rows [start, stop) of x. A thread whose visitor answers True takes no more chunks.
        """
        factor, weights = torch.from_numpy(x), torch.from_numpy(rows).T

        def visit(start: int, stop: int, out: Tensor, thread: int) -> bool | None:
            before(start, stop)
            return visitor(stop - start, start, torch.mm(factor[start:stop], weights, out=out).numpy(), thread)

        self._in_chunks(visit, np.float32, len(x), len(rows))

    def _in_chunks(
        self, visit: "Callable[[int, int, Tensor, int], bool | None]", dtype: type, batch: int, columns: int
    ) -> None:
        rows = min(max(ROWS, CHUNK // columns), -(-batch // torch.get_num_threads()))
        chunks = itertools.count()

        def work(thread: int) -> None:
            buffer = self.space.tensor(f"{self.name} products {thread} {dtype.__name__}", (rows, columns), dtype)
            while (start := next(chunks) * rows) < batch:
                stop = min(start + rows, batch)
                if visit(start, stop, buffer[: stop - start], thread):
                    break

        spread(work)

    def _held(self, what: str, shape: tuple[int, ...], dtype: type = np.float32) -> ndarray:
        return self.space(f"{self.name} {what}", shape, dtype)
