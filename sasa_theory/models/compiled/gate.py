"""Which units win: a product in int8 lists the candidates, their exact coefficients decide.

An int8 product errs by about a hundredth of a coefficient's spread, as each entry's rounding error has variance
scale^2 / 12. So a row's candidates are the units within twice SIGMAS such errors of the s-th largest norm, some
more than s. Their coefficients are then computed in float32 and the s largest stay on. A row is sure when the least of
them exceeds what an unlisted unit can reach; the others (a few in a thousand) are listed again from a float32 product.

The choice is therefore that of exact coefficients except with the probability that errors exceed SIGMAS deviations.
Both sides are first scaled dimension by dimension to like sizes, so that the few large dimensions of language-model
activations do not use up the eight bits.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from sasa_theory.models.compiled import gate_loops as loops
from sasa_theory.models.compiled.gradient_loops import by_unit
from sasa_theory.models.compiled.workspace import Workspace
from sasa_theory.threads import split, spread

#: rows of a chunk: few enough that its pre-activations stay in cache until the gate has read them
CHUNK = 256
#: rows whose dimensions are measured to balance the two sides
SAMPLE = 256
#: standard deviation of a float32 product's error, over the lengths of its factors
FLOAT32_NOISE = 2.0**-22
#: a row lists at most 2 s + SPARE candidates
SPARE = 12


class Products(NamedTuple):
    """What turns products of rows and weights into coefficients, and how far off these are (see `loops.shortlist`).

    Weights come as r stretches of K: the columns of one number of all units side by side.
    """

    row_scale: ndarray
    row_noise: ndarray
    scale: ndarray
    noise: ndarray
    bias: ndarray


class Gate:
    """The Top-s gate by group norm, rectified or signed; its buffers live in `space`."""

    def __init__(self, space: Workspace, rank: int, rectify: bool) -> None:
        self.space, self.rank, self.rectify = space, rank, rectify
        #: rows that were listed again from a float32 product, and rows in all
        self.doubted = self.rows = 0

    def choose(
        self, name: str, x: ndarray, shift: "ndarray | None", rows: ndarray, bias: ndarray, n_best: int
    ) -> "tuple[ndarray, Int[ndarray, 'B s'], Float[ndarray, 'B s r']]":
        """x - shift, and for each of its rows the `n_best` units of largest norm with their coefficients.

        rows (K r, D) are the encoder's columns. Results lie in buffers named after `name`, which its next call writes
        over.
        """
        batch = len(x)
        slots = min(len(rows) // self.rank, 2 * n_best + SPARE)
        listed, bound = self.space(f"{name} listed", (batch, slots), np.int64), self.space(f"{name} bound", (batch,))
        index = self.space(f"{name} index", (batch, n_best), np.int64)
        values = self.space(f"{name} values", (batch, n_best, self.rank))
        sure = self.space(f"{name} sure", (batch,), np.bool_)
        moved = x if shift is None else self.space(f"{name} moved", x.shape)
        if shift is not None:
            split(loops.subtract, batch, x, shift, moved)
        rounded = int8_is_faster()
        (self._list_int8 if rounded else self._list_float32)(name, moved, rows, bias, n_best, listed, bound)
        self._decide(name, moved, rows, bias, listed, bound, index, values, sure)
        doubtful = np.flatnonzero(~sure) if rounded else np.empty(0, np.int64)
        self.rows, self.doubted = self.rows + batch, self.doubted + len(doubtful)
        if len(doubtful):
            few, listed, bound = moved[doubtful], listed[doubtful], bound[doubtful]
            chosen = index[doubtful], values[doubtful], sure[doubtful]
            self._list_float32(f"{name} again", few, rows, bias, n_best, listed, bound)
            self._decide(f"{name} again", few, rows, bias, listed, bound, *chosen)
            index[doubtful], values[doubtful], _ = chosen
        return moved, index, values

    def _list_int8(
        self, name: str, x: ndarray, rows: ndarray, bias: ndarray, n_best: int, listed: ndarray, bound: ndarray
    ) -> None:
        """Candidates from a product in int8."""
        (batch, width), n = x.shape, len(rows)
        x8 = self.space.tensor(f"{name} x8", (batch, _padded(width)), torch.int8)
        w8 = self.space.tensor(f"{name} w8", (n, _padded(width)), torch.int8)
        products = Products(
            self.space(f"{name} x8 scale", (batch,)),
            self.space(f"{name} x8 noise", (batch, 2)),
            self.space(f"{name} w8 scale", (n,)),
            self.space(f"{name} w8 noise", (n, 2)),
            self._sideways(bias),
        )
        balance = balance_of(x, rows)
        split(loops.quantise, n, rows, 1 / balance, self.rank, w8.numpy(), products.scale, products.noise)

        def multiply(start: int, stop: int, out: Tensor) -> ndarray:
            loops.quantise(start, stop, x, balance, 1, x8.numpy(), products.row_scale, products.row_noise)
            pre: ndarray = torch._int_mm(x8[start:stop], w8.T, out=out).numpy()
            return pre

        self._list(multiply, torch.int32, products, n_best, listed, bound)

    def _list_float32(
        self, name: str, x: ndarray, rows: ndarray, bias: ndarray, n_best: int, listed: ndarray, bound: ndarray
    ) -> None:
        """Candidates from a product in float32."""
        batch, n = len(x), len(rows)
        squares, lengths = np.square(x).sum(1), np.square(rows).sum(1)
        products = Products(
            np.ones(batch, np.float32),
            np.stack([FLOAT32_NOISE**2 * squares, squares], 1).astype(np.float32),
            np.ones(n, np.float32),
            np.stack([np.zeros_like(lengths), lengths], 1),
            self._sideways(bias),
        )
        factor, weights = torch.from_numpy(x), torch.from_numpy(rows).T

        def multiply(start: int, stop: int, out: Tensor) -> ndarray:
            pre = torch.mm(factor[start:stop], weights, out=out).view(stop - start, -1, self.rank)
            turned: ndarray = pre.transpose(1, 2).reshape(stop - start, n).numpy()
            return turned

        self._list(multiply, torch.float32, products, n_best, listed, bound)

    def _list(
        self,
        multiply: "Callable[[int, int, Tensor], ndarray]",
        dtype: torch.dtype,
        products: Products,
        n_best: int,
        listed: ndarray,
        bound: ndarray,
    ) -> None:
        """Multiply and list chunk by chunk, each thread taking the next that is left."""
        batch, chunks = len(listed), itertools.count()

        def work(thread: int) -> None:
            shape = (min(CHUNK, batch), len(products.scale))
            buffer = self.space.tensor(f"chunk {thread} {dtype}", shape, dtype)
            while (start := next(chunks) * CHUNK) < batch:
                stop = min(start + CHUNK, batch)
                pre = multiply(start, stop, buffer[: stop - start])
                count = stop - start
                loops.shortlist(0, count, start, pre, *products, self.rank, self.rectify, n_best, listed, bound)

        spread(work)

    def _decide(
        self,
        name: str,
        x: ndarray,
        rows: ndarray,
        bias: ndarray,
        listed: ndarray,
        bound: ndarray,
        index: ndarray,
        values: ndarray,
        sure: ndarray,
    ) -> None:
        """The best of the candidates by their exact coefficients."""
        n_units = len(rows) // self.rank
        found = self.space(f"{name} found", (*listed.shape, self.rank))
        starts, pairs = by_unit(listed, n_units)
        split(loops.exact, n_units, starts, pairs, x, rows, bias, self.rectify, found, cuts=even(starts))
        split(loops.keep, len(x), listed, found, bound, index, values, sure)

    def _sideways(self, bias: ndarray) -> ndarray:
        return np.ascontiguousarray(bias.reshape(-1, self.rank).T).ravel()


def _padded(width: int) -> int:
    """Entries of a row of int8: a multiple of four, which the processor takes at once.

    (And at a width of one, torch 2.13 reads the transposed factor wrongly.)
    """
    return -(-width // 4) * 4


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


def even(starts: ndarray) -> list[int]:
    """Where to cut the units so that each thread has as many pairs: units fire unequally often."""
    threads, pairs = torch.get_num_threads(), int(starts[-1])
    return [int(starts.searchsorted(pairs * i // threads)) for i in range(1, min(threads, len(starts) - 1))]
