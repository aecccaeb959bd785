"""The Top-s gate in chunks of rows: the s best units are taken from each chunk of the encoder product at once.

No (B, K r) tensor is kept. Where a CPU multiplies int8 faster than float32, an int8 product is run first and never
trusted (see `rounding`): it names `candidates(s)` units per row, those of largest norm plus margin; their coefficients
are computed in float32, and the s largest of those are the answer, provided no unit left out can reach them: a row is
certain when its s-th exact norm is at least the smallest candidate's bound. The others (ties, narrow gaps) are computed
in float32 in full.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sasa_theory.models import bags
from sasa_theory.models.rounding import SIGMAS, balance_of, int8_is_faster, padded

#: bytes of pre-activations per chunk on a GPU, and on a CPU, whose cache they should fit; rows below which a CPU's
#: product would pack the weights too often
CHUNK, CHUNK_CPU, ROWS_CPU = 64 << 20, 16 << 20, 1024
#: the same behind an int8 product: these stay in cache until the gate has read them
CHUNK_INT8 = 8 << 20
#: share of uncertain rows in a chunk above which the next names twice as many candidates; and above which, with those,
#: the rest of the batch goes to float32 directly
ENOUGH_OPEN, GIVE_UP = 0.05, 0.3
#: what a coefficient of a candidate costs, in coefficients of the float32 product
RESCORING = 32
#: multiplications from which the int8 product pays for its preparation
WORTHWHILE = 1 << 31


def gate(
    x: "Float[Tensor, 'B D']",
    w_enc: "Float[Tensor, 'D Kr']",
    b_enc: "Float[Tensor, ' Kr']",
    rank: int,
    n_best: int,
    rectify: bool,
) -> "tuple[Int[Tensor, 'B s'], Float[Tensor, 'B s r']]":
    """Units of largest norm of x W_enc + b_enc, in any order, and their coefficients (no gradient).

    Under autocast the product takes its lower precision with float32 sums; everything after it is in x's own.
    """
    low = low_precision(x)
    with torch.autocast(x.device.type, enabled=False):
        if low is not None or not screening_pays(x, w_enc, rank, n_best):
            return gate_full(x, w_enc, b_enc, rank, n_best, rectify, low)
        index, values, certain = gate_screened(x, w_enc, b_enc, rank, n_best, rectify)
        rest = (~certain).nonzero().flatten()
        if len(rest):
            index[rest], values[rest] = gate_full(x[rest], w_enc, b_enc, rank, n_best, rectify)
        return index, values


def low_precision(x: Tensor) -> torch.dtype | None:
    """What autocast asks the encoder product to be taken in; None outside of it."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def gate_full(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    rank: int,
    n_best: int,
    rectify: bool,
    low: torch.dtype | None = None,
) -> "tuple[Int[Tensor, 'B s'], Float[Tensor, 'B s r']]":
    """`gate` by the whole product, in precision `low` if given."""
    index = torch.empty(len(x), n_best, dtype=torch.int64, device=x.device)
    values = x.new_empty(len(x), n_best, rank)
    select = bags.fastest(x).select
    for part, pre, spare in products(x, w_enc, low):
        select(pre, b_enc, index[part], values[part], rectify, spare)
    return index, values


def products(
    x: "Float[Tensor, 'B D']", w_enc: "Float[Tensor, 'D Kr']", low: torch.dtype | None
) -> "Iterator[tuple[slice, Float[Tensor, 'b Kr'], Float[Tensor, 'b Kr']]]":
    """x W_enc in chunks of rows: which rows, their product, and as much room; both are written over by the next."""
    columns = w_enc.shape[1]
    size = columns * x.element_size()
    step = max(1, min(len(x), CHUNK // size if x.is_cuda else max(ROWS_CPU, CHUNK_CPU // size)))
    # rows that begin at multiples of 64 bytes: else MKL's product took two fifths longer
    buffer = x.new_empty(2, step, -(-columns // 16) * 16)[:, :, :columns]
    if low is not None:
        w_enc = w_enc.to(low)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        pre, spare = buffer[0, : len(part)], buffer[1, : len(part)]
        if low is None:
            torch.mm(part, w_enc, out=pre)
        elif x.is_cuda:
            torch.mm(part.to(low), w_enc, out_dtype=x.dtype, out=pre)
        else:
            pre.copy_(part.to(low) @ w_enc)
        yield slice(start, start + len(part)), pre, spare


def candidates(n_best: int) -> int:
    """Units that the int8 product names for n_best: the gaps between norms narrow as more are kept."""
    return n_best + n_best // 2 + 5


def screening_pays(x: Tensor, w_enc: Tensor, rank: int, n_best: int) -> bool:
    """Whether `gate` runs int8 first: float32 on a CPU that can, enough of it, and few candidates among the units."""
    columns = w_enc.shape[1]
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() * columns >= WORTHWHILE
        and RESCORING * candidates(n_best) * rank <= columns
        and int8_is_faster()
    )


def gate_screened(
    x: Tensor, w_enc: Tensor, b_enc: Tensor, rank: int, n_best: int, rectify: bool
) -> "tuple[Int[Tensor, 'B s'], Float[Tensor, 'B s r'], Tensor]":
    """`gate` by candidates from int8; the third tensor (B,) says which rows are certain, the others are not filled."""
    rows, bias = w_enc.T.contiguous(), b_enc.view(-1, rank)
    units = len(rows) // rank
    balance = torch.from_numpy(balance_of(x.numpy(), rows.numpy()))
    # columns of one number of all units side by side, so that a group's squares add up stretch by stretch
    w8, w_scale, w_size = _quantised(rows, 1 / balance, rank)
    sideways = bias.T.reshape(-1)
    w_noise, w_length = ((v.view(rank, units).amax(dim=0) * SIGMAS**2) for v in (w_scale.square() / 12, w_size))
    index = torch.empty(len(x), n_best, dtype=torch.int64)
    values = x.new_empty(len(x), n_best, rank)
    certain = torch.zeros(len(x), dtype=torch.bool)
    step = max(1, min(len(x), CHUNK_INT8 // (4 * len(rows))))
    products = torch.empty(step, len(rows), dtype=torch.int32)
    buffer, spare = x.new_empty(step, len(rows)), x.new_empty(step, units)
    named = candidates(n_best)
    most = min(units, 2 * named)
    for start in range(0, len(x), step):
        if start > 0 and (open_ := 1 - float(certain[start - step : start].float().mean())) > ENOUGH_OPEN:
            if named == most and open_ > GIVE_UP:
                break
            named = most
        here = x[start : start + step]
        part = slice(start, start + len(here))
        x8, x_scale, x_size = _quantised(here, balance, 1)
        torch._int_mm(x8, w8.T, out=products[: len(here)])
        pre = buffer[: len(here)].copy_(products[: len(here)]).mul_(w_scale)  # mixed types would go through a copy
        pre.mul_(x_scale[:, None]).add_(sideways)
        if rectify:
            pre.relu_()
        reach = pre.abs_() if rank == 1 else pre.square_().view(len(here), rank, units).sum(1).sqrt_()
        margin = torch.outer(x_scale.square() / 12, w_length, out=spare[: len(here)])
        reach.add_(margin.addr_(x_size, w_noise).sqrt_())
        found = bags.best(reach, named)
        bound = reach.gather(1, found).amin(dim=1) if named < units else x.new_zeros(len(here))

        exact = bags.project(found, here, rows, rank).add_(bias[found])
        if rectify:
            exact.relu_()
        squares = exact.square().sum(-1)
        top, slot = squares.topk(n_best, dim=1, sorted=False)
        index[part] = found.gather(1, slot)
        values[part] = exact.gather(1, slot[..., None].expand(-1, -1, rank))
        certain[part] = top.amin(dim=1).sqrt_() >= bound
    return index, values, certain


def _quantised(rows: Tensor, factor: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """rows * factor in int8, scales and squared lengths; row k rank + j goes to place j K + k, zeros to the right."""
    n, width = rows.shape
    out = torch.zeros(n, padded(width), dtype=torch.int8)
    scale, size = rows.new_empty(n), rows.new_empty(n)
    units = n // rank
    turned = [v.view(rank, units, *v.shape[1:]).transpose(0, 1) for v in (out, scale, size)]
    step = max(1, (1 << 18) // (rank * width))  # rows that stay in cache
    for start in range(0, units, step):
        part = slice(start, min(start + step, units))
        block = (rows[start * rank : part.stop * rank] * factor).view(-1, rank, width)
        torch.amax(block.abs(), dim=2, out=(largest := block.new_empty(block.shape[:2])))
        turned[1][part] = largest / 127
        turned[2][part] = torch.linalg.vecdot(block, block)
        turned[0][part, :, :width] = block.mul_((127 / largest.clamp_min(1e-30))[..., None]).round_().to(torch.int8)
    return out, scale, size
