"""One Triton kernel for all that the nuclear norm needs of a unit: both Gram matrices and their Newton-Schulz roots.

As `polar.product_roots`, one program per unit in float64 on float32 weights. A unit stops when it has arrived, so that
well-conditioned ones cost about ten steps and not the fixed number; the host never waits. Ranks up to `LARGEST`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (the arguments of a kernel are pointers and numbers of Triton's own types)

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from jaxtyping import Float
from torch import Tensor

from sasa_theory.models.polar import STEPS

#: products are sums over r x r x r numbers held at once
LARGEST = 16
#: entries of D read at once
STRETCH = 32
#: distance of Z Y from I before a last step, which squares it
ARRIVED = 1e-8


@triton.jit
def _times(a, b):
    return tl.sum(a[:, :, None] * b[None, :, :], axis=1)


@triton.jit
def _roots(
    enc, dec, norms, right, left, D,
    MAP: tl.constexpr, RANK: tl.constexpr, RANK_UP: tl.constexpr, BLOCK: tl.constexpr,
    STEPS: tl.constexpr, ARRIVED: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, RANK_UP)
    diagonal = i[:, None] == i[None, :]
    inside = (i < RANK)[:, None] & (i < RANK)[None, :]
    eye = diagonal.to(tl.float64)
    gram_a = tl.zeros([RANK_UP, RANK_UP], tl.float64)
    gram_b = tl.zeros([RANK_UP, RANK_UP], tl.float64)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        at = (unit * RANK + i)[:, None] * D + d[None, :]
        here = (i < RANK)[:, None] & (d < D)[None, :]
        b = tl.load(dec + at, mask=here, other=0.0).to(tl.float64)
        gram_b += tl.sum(b[:, None, :] * b[None, :, :], axis=2)
        if MAP:
            a = tl.load(enc + at, mask=here, other=0.0).to(tl.float64)
            gram_a += tl.sum(a[:, None, :] * a[None, :, :], axis=2)
    if not MAP:
        gram_a = eye
    product = _times(gram_b, gram_a)
    squares = tl.sum(tl.sum(product * tl.trans(product), axis=1), axis=0)
    scale = tl.sqrt(tl.where(squares > 0, squares, 1.0))
    y = tl.where(inside, product / scale, eye)  # what pads the rank has arrived already
    z = eye
    step = tl.full([], 0, tl.int32)
    error = tl.full([], 1.0, tl.float64)
    while (step < STEPS) & (error > ARRIVED):
        both = _times(z, y)
        error = tl.max(tl.max(tl.abs(eye - both), axis=1), axis=0)
        both = 1.5 * eye - 0.5 * both
        y = _times(y, both)
        z = _times(both, z)
        step += 1
    root = tl.sqrt(scale)
    z = tl.where(squares > 0, z / root, 0.0)
    norm = tl.sum(tl.sum(tl.where(diagonal & inside, y * root, 0.0), axis=1), axis=0)
    tl.store(norms + unit, norm.to(tl.float32))
    at = (unit * RANK + i)[:, None] * RANK + i[None, :]
    tl.store(right + at, tl.trans(_times(z, gram_b)), mask=inside)
    tl.store(left + at, _times(gram_a, z), mask=inside)


@triton.jit
def _apply(factors, blocks, scale, out, D, RANK: tl.constexpr, RANK_UP: tl.constexpr, BLOCK: tl.constexpr):
    unit = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, RANK_UP)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (i < RANK)[:, None] & (i < RANK)[None, :]
    here = (i < RANK)[:, None] & (d < D)[None, :]
    factor = tl.load(factors + (unit * RANK + i)[:, None] * RANK + i[None, :], mask=inside, other=0.0)
    at = (unit * RANK + i)[:, None] * D + d[None, :]
    made = _times(factor, tl.load(blocks + at, mask=here, other=0.0).to(tl.float64))
    tl.store(out + at, (tl.load(scale + unit) * made).to(tl.float32), mask=here)


def roots(
    enc: "Float[Tensor, 'K r D'] | None", dec: "Float[Tensor, 'K r D']"
) -> "tuple[Float[Tensor, ' K'], Float[Tensor, 'K r r'], Float[Tensor, 'K r r']]":
    """||A B||_*, (N^{-1/2} G_B)^T and G_A N^{-1/2} for A = enc^T, B = dec, blocks of float32 rows; enc None: A = I.

    The factors are float64 and `times` multiplies them so: where a block is nearly singular they are large in
    directions that the block itself cancels, which float32 would not.
    """
    units, rank, width = dec.shape
    dec = dec.contiguous()
    enc_rows = dec if enc is None else enc.contiguous()
    norms = dec.new_empty(units)
    right, left = (dec.new_empty(units, rank, rank, dtype=torch.float64) for _ in range(2))
    up = max(2, triton.next_power_of_2(rank))
    with torch.cuda.device_of(dec):
        _roots[(units,)](
            enc_rows, dec, norms, right, left, width,
            enc is not None, rank, up, STRETCH, STEPS, ARRIVED, num_warps=4 if up > 8 else 1,
        )  # fmt: skip
    return norms, right, left


def times(
    factors: "Float[Tensor, 'K r r']", blocks: "Float[Tensor, 'K r D']", scale: "Float[Tensor, ' K']"
) -> "Float[Tensor, 'K r D']":
    """scale[k] factors[k] @ blocks[k], float64 factors on float32 blocks, summed in float64."""
    units, rank, width = blocks.shape
    blocks, out = blocks.contiguous(), blocks.new_empty(units, rank, width)
    up = max(2, triton.next_power_of_2(rank))
    grid = (units, triton.cdiv(width, STRETCH))
    with torch.cuda.device_of(blocks):
        _apply[grid](factors, blocks, scale.contiguous(), out, width, rank, up, STRETCH, num_warps=4 if up > 8 else 1)
    return out
