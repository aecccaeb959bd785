"""Triton kernels for what the gated step does after its encoder product; same functions as `bags`, float32 on a GPU.

    select   one program per row: group norms, then the s-th largest by bisection on the bits of the norms (non-negative
             floats order as integers do), so its cost does not grow with s; ties go to the lower unit
    bags     one program per row and stretch of D
    project  one program per (row, slot)
    outer    one program per unit and stretch of D, over the unit's pairs, which a stable sort has put side by side

Products and sums are float32 (no TF32), in one order, without atomics. No shape or branch depends on the data, so the
host never waits. TRITON_INTERPRET=1, set before this module is imported, runs all of it on a CPU.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (the arguments of a kernel are pointers and numbers of Triton's own types)

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from jaxtyping import Float, Int
from torch import Tensor

from sasa_theory.models.codes import Ragged

#: numbers that one program of `bags`, `project` and `outer` holds: a stretch of D, times the rank in the last two
HELD_BAGS, HELD_PROJECT, HELD_OUTER = 512, 2048, 4096
#: pairs that one step of `outer` adds up
PAIRS = 16
#: smallest side of a matrix product in Triton
SMALLEST = 16


@triton.jit
def _select(pre, bias, index, values, UNITS, RANK: tl.constexpr, SLOTS, RECTIFY: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    unit = tl.arange(0, BLOCK)
    inside = unit < UNITS
    pre += row * UNITS * RANK
    norms = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(RANK):
        at = unit * RANK + j
        v = tl.load(pre + at, mask=inside, other=0.0) + tl.load(bias + at, mask=inside, other=0.0)
        if RECTIFY:
            v = tl.where(v < 0, 0.0, v)  # not maximum, which would hide a NaN
        norms += v * v
    # without the sign bit a NaN of either sign is the largest, and the loss will show it
    bits = tl.where(inside, norms.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)
    # count(bits >= low) >= s > count(bits >= high)
    low = tl.full([], 0, tl.int32)
    high = tl.max(bits, axis=0) + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        count = tl.sum((bits >= middle).to(tl.int32), axis=0)
        low = tl.where(count >= SLOTS, middle, low)
        high = tl.where(count > SLOTS, high, tl.where(count == SLOTS, middle + 1, middle))
    above = bits > low
    level = bits == low
    room = SLOTS - tl.sum(above.to(tl.int32), axis=0)
    keep = above | (level & (tl.cumsum(level.to(tl.int32), axis=0) <= room))
    slot = row * SLOTS + tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.store(index + slot, unit.to(tl.int64), mask=keep)
    for j in tl.static_range(RANK):
        at = unit * RANK + j
        v = tl.load(pre + at, mask=keep, other=0.0) + tl.load(bias + at, mask=keep, other=0.0)
        if RECTIFY:
            v = tl.where(v < 0, 0.0, v)
        tl.store(values + slot * RANK + j, v, mask=keep)


@triton.jit
def _bags(index, values, rows, starts, out, D, SLOTS, RAGGED: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    if RAGGED:
        first, stop = tl.load(starts + row), tl.load(starts + row + 1)
    else:
        first, stop = row * SLOTS, (row + 1) * SLOTS
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for pair in range(first, stop):
        unit = tl.load(index + pair)
        inside = (d < D) & (tl.broadcast_to(unit, [BLOCK]) >= 0)
        for j in tl.static_range(RANK):
            weight = tl.load(values + pair * RANK + j)
            total += weight * tl.load(rows + (unit * RANK + j) * D + d, mask=inside, other=0.0)
    tl.store(out + row * D + d, total, mask=d < D)


@triton.jit
def _project(
    index,
    x,
    rows,
    whose,
    out,
    D,
    SLOTS,
    RAGGED: tl.constexpr,
    RANK: tl.constexpr,
    RANK_UP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    row = tl.load(whose + pair) if RAGGED else pair // SLOTS
    unit = tl.load(index + pair)
    j = tl.arange(0, RANK_UP)
    used = (j < RANK) & (tl.broadcast_to(unit, [RANK_UP]) >= 0)
    total = tl.zeros([RANK_UP, BLOCK], tl.float32)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        here = tl.load(x + row * D + d, mask=d < D, other=0.0)
        at = (unit * RANK + j)[:, None] * D + d[None, :]
        total += here[None, :] * tl.load(rows + at, mask=used[:, None] & (d < D)[None, :], other=0.0)
    tl.store(out + pair * RANK + j, tl.sum(total, axis=1), mask=j < RANK)


@triton.jit
def _outer(
    starts,
    order,
    values,
    x,
    whose,
    out,
    sums,
    D,
    SLOTS,
    RAGGED: tl.constexpr,
    RANK: tl.constexpr,
    RANK_UP: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    j = tl.arange(0, RANK_UP)
    total = tl.zeros([RANK_UP, BLOCK], tl.float32)
    weight_sum = tl.zeros([RANK_UP], tl.float32)
    stop = tl.load(starts + unit + 1)
    for first in range(tl.load(starts + unit), stop, PAIRS):
        p = first + tl.arange(0, PAIRS)
        pair = tl.load(order + p, mask=p < stop, other=0).to(tl.int32)  # 64-bit division is slow
        row = tl.load(whose + pair, mask=p < stop, other=0) if RAGGED else (pair // SLOTS).to(tl.int64)
        here = tl.load(x + row[:, None] * D + d[None, :], mask=(p < stop)[:, None] & (d < D)[None, :], other=0.0)
        at = pair[None, :].to(tl.int64) * RANK + j[:, None]
        weight = tl.load(values + at, mask=(j < RANK)[:, None] & (p < stop)[None, :], other=0.0)
        if RANK == 1:
            total += tl.sum(tl.trans(weight) * here, axis=0)[None, :]
        else:
            total += tl.dot(weight, here, input_precision="ieee")
        weight_sum += tl.sum(weight, axis=1)
    at = (unit * RANK + j)[:, None] * D + d[None, :]
    tl.store(out + at, total, mask=(j < RANK)[:, None] & (d < D)[None, :])
    if tl.program_id(1) == 0:
        tl.store(sums + unit * RANK + j, weight_sum, mask=j < RANK)


def select(
    pre: "Float[Tensor, 'B Kr']",
    bias: "Float[Tensor, ' Kr']",
    index: "Int[Tensor, 'B s']",
    values: "Float[Tensor, 'B s r']",
    rectify: bool,
    spare: Tensor | None = None,
) -> None:
    """As `bags.select`; units in ascending order, pre is kept."""
    batch, slots, rank = values.shape
    units = pre.shape[1] // rank
    block = triton.next_power_of_2(units)
    warps = min(32, max(4, block // 512))
    if batch:
        with torch.cuda.device_of(pre):
            _select[(batch,)](pre, bias, index, values, units, rank, slots, rectify, block, num_warps=warps)


def bags(
    index: "Int[Tensor, 'B s']",
    values: "Float[Tensor, 'B s r']",
    rows: "Float[Tensor, 'Kr D']",
    ragged: Ragged | None = None,
) -> "Float[Tensor, 'B D']":
    """As `bags.bags`."""
    batch, slots, rank = values.shape
    # without `ragged`, a kernel is given a pointer that it does not follow
    batch, starts = (batch, index) if ragged is None else (len(ragged.starts) - 1, ragged.starts)
    width = rows.shape[1]
    out = rows.new_empty(batch, width)
    block = _stretch(width, HELD_BAGS)
    grid = (batch, triton.cdiv(width, block))
    if batch:
        with torch.cuda.device_of(rows):
            _bags[grid](
                index.contiguous(),
                values.contiguous(),
                rows,
                starts,
                out,
                width,
                slots,
                ragged is not None,
                rank,
                block,
            )
    return out


def project(
    index: "Int[Tensor, 'B s']",
    x: "Float[Tensor, 'B D']",
    rows: "Float[Tensor, 'Kr D']",
    rank: int,
    ragged: Ragged | None = None,
) -> "Float[Tensor, 'B s r']":
    """As `bags.project`."""
    batch, slots = index.shape
    width = x.shape[1]
    out = x.new_empty(batch, slots, rank)
    up = triton.next_power_of_2(rank)
    grid = (batch * slots,)
    if batch * slots:
        with torch.cuda.device_of(rows):
            _project[grid](
                index.contiguous(),
                x,
                rows,
                index if ragged is None else ragged.of,
                out,
                width,
                slots,
                ragged is not None,
                rank,
                up,
                _stretch(width, HELD_PROJECT // up),
            )
    return out


def outer(
    index: "Int[Tensor, 'B s']",
    values: "Float[Tensor, 'B s r']",
    x: "Float[Tensor, 'B D']",
    n_columns: int,
    with_sums: bool = False,
    ragged: Ragged | None = None,
) -> "tuple[Float[Tensor, 'Kr D'], Float[Tensor, ' Kr'] | None]":
    """As `bags.outer`."""
    _, slots, rank = values.shape
    units, width = n_columns // rank, x.shape[1]
    by_unit, order = index.flatten().int().sort(stable=True)  # empty slots before unit 0
    starts = torch.searchsorted(by_unit, torch.arange(units + 1, device=x.device, dtype=torch.int32))
    out, sums = x.new_empty(n_columns, width), x.new_empty(n_columns)
    up = 1 if rank == 1 else max(SMALLEST, triton.next_power_of_2(rank))
    block = max(SMALLEST, _stretch(width, HELD_OUTER // max(8, up)))
    grid = (units, triton.cdiv(width, block))
    with torch.cuda.device_of(x):
        _outer[grid](
            starts,
            order,
            values.contiguous(),
            x,
            index if ragged is None else ragged.of,
            out,
            sums,
            width,
            slots,
            ragged is not None,
            rank,
            up,
            PAIRS,
            block,
        )
    return out, sums if with_sums else None


def _stretch(width: int, most: int) -> int:
    """Entries of D per program: a power of two."""
    return min(max(1, most), triton.next_power_of_2(width))
