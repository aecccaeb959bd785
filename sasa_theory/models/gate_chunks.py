"""The Top-s gate in chunks of rows: the s best units are taken from each chunk of the encoder product at once.

No (B, K r) tensor is kept. Where a CPU multiplies bf16 at twice the rate of float32, a bf16 product is run first and
never trusted: it names `candidates(s)` units per row, their coefficients are computed in float32, and the s largest
of those are the answer, provided no unit left out can reach them. With x = xh + xl and W = Wh + Wl (bf16 and the rest)

    | ||p_k|| - ||p^_k|| |  <=  ||xl|| ||Wh_k|| + ||x|| ||Wl_k||  +  what bias, products and squares lose in bf16,

operator norms from r x r Gram matrices: ||A||^2 <= max row sum of |A A^T|. A row is certain when its s-th exact norm
exceeds the smallest candidate's norm by that much; the others (ties, narrow gaps) are computed in float32 in full.
"""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sasa_theory.models import bags

#: bytes of pre-activations per chunk: fewer and the product packs the weights too often, more and memory is all it uses
CHUNK = 64 << 20
#: the same in bf16, whose product does not mind: these stay in cache until the gate has read them
CHUNK_LOW = 8 << 20
#: share of uncertain rows in a chunk above which the next chunk names half as many candidates more, up to three times
#: as many; and above which, with those, the rest of the batch goes to float32 directly
ENOUGH_OPEN, GIVE_UP = 0.05, 0.3
#: multiplications from which the bf16 product pays for its preparation
WORTHWHILE = 1 << 33


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
    device = x.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    with torch.autocast(device, enabled=False):
        if low is not None or not screening_pays(x, w_enc, rank, n_best):
            return gate_full(x, w_enc, b_enc, rank, n_best, rectify, low)
        index, values, certain = gate_screened(x, w_enc, b_enc, rank, n_best, rectify)
        rest = (~certain).nonzero().flatten()
        if len(rest):
            index[rest], values[rest] = gate_full(x[rest], w_enc, b_enc, rank, n_best, rectify)
        return index, values


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
    columns = w_enc.shape[1]
    index = torch.empty(len(x), n_best, dtype=torch.int64, device=x.device)
    values = x.new_empty(len(x), n_best, rank)
    step = max(1, min(len(x), CHUNK // (columns * x.element_size())))
    select, buffer = bags.fastest(x).select, x.new_empty(2, step, columns)
    if low is not None:
        w_enc = w_enc.to(low)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        stop = start + len(part)
        pre, spare = buffer[0, : len(part)], buffer[1, : len(part)]
        if low is None:
            torch.mm(part, w_enc, out=pre)
        elif x.is_cuda:
            torch.mm(part.to(low), w_enc, out_dtype=x.dtype, out=pre)
        else:
            pre.copy_(part.to(low) @ w_enc)
        select(pre, b_enc, index[start:stop], values[start:stop], rectify, spare)
    return index, values


def candidates(n_best: int) -> int:
    """Units that the bf16 product names for n_best: the gaps between norms narrow as more are kept."""
    return n_best + n_best // 2 + 12


@functools.cache
def has_bf16_products() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX)."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))


def screening_pays(x: Tensor, w_enc: Tensor, rank: int, n_best: int) -> bool:
    """Whether `gate` runs bf16 first: float32 on a CPU that can, enough of it, and few candidates among the units."""
    columns = w_enc.shape[1]
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() * columns >= WORTHWHILE
        and 4 * candidates(n_best) * rank <= columns
        and has_bf16_products()
    )


def gate_screened(
    x: Tensor, w_enc: Tensor, b_enc: Tensor, rank: int, n_best: int, rectify: bool
) -> "tuple[Int[Tensor, 'B s'], Float[Tensor, 'B s r'], Tensor]":
    """`gate` by candidates from bf16; the third tensor (B,) says which rows are certain, the others are not filled."""
    rows = w_enc.T.contiguous()
    low, size, lost = _rounded(rows, rank)
    b_low, bias = b_enc.bfloat16(), b_enc.view(-1, rank)
    # one rounding loses a share of at most 2^-8: that of p (twice with a bias), half those of its squares and their sum
    lost_bias = 2**-7 * float(torch.linalg.vector_norm(bias, dim=1).max())
    lost_share = 0.008 if lost_bias == 0 else 0.012
    lost_sums = x.shape[1] * 2**-24 * rank**0.5 * size  # float32 sums of D products
    index = torch.empty(len(x), n_best, dtype=torch.int64)
    values = x.new_empty(len(x), n_best, rank)
    certain = torch.zeros(len(x), dtype=torch.bool)
    step = max(1, min(len(x), CHUNK_LOW // (2 * len(rows))))
    buffer = torch.empty(2, step, len(rows), dtype=torch.bfloat16)
    add_up = torch.block_diag(
        *[torch.ones(rank, 1, dtype=torch.bfloat16)] * (16 if len(rows) % (16 * rank) == 0 else 1)
    )
    named, most = candidates(n_best), min(len(rows) // rank, 3 * candidates(n_best))
    for start in range(0, len(x), step):
        if start > 0 and (open_ := 1 - float(certain[start - step : start].float().mean())) > ENOUGH_OPEN:
            if named == most and open_ > GIVE_UP:
                break
            named = min(most, named + named // 2)
        here = x[start : start + step]
        part, x_low = slice(start, start + len(here)), here.bfloat16()
        pre = torch.addmm(b_low, x_low, low.T, out=buffer[0, : len(here)])
        if rectify:
            pre.relu_()
        norms = torch.mul(pre, pre, out=buffer[1, : len(here)])
        if rank > 1:
            norms = (norms.view(-1, len(add_up)) @ add_up).view(len(here), -1)
        found = bags.best(norms, named)
        reach = norms.gather(1, found).amin(dim=1).float().sqrt_().mul_(1 + lost_share)
        reach += torch.linalg.vector_norm(here - x_low, dim=1) * size
        reach += torch.linalg.vector_norm(here, dim=1) * (lost + lost_sums) + lost_bias

        exact = bags.project(found, here, rows, rank).add_(bias[found])
        if rectify:
            exact.relu_()
        squares = exact.square().sum(-1)
        top, slot = squares.topk(n_best, dim=1, sorted=False)
        index[part] = found.gather(1, slot)
        values[part] = exact.gather(1, slot[..., None].expand(-1, -1, rank))
        certain[part] = top.amin(dim=1).sqrt_() > reach
    return index, values, certain


def _rounded(rows: "Float[Tensor, 'Kr D']", rank: int) -> tuple[Tensor, float, float]:
    """`rows` in bf16, the largest operator norm of its blocks, and that of what rounding took from them."""
    low = torch.empty_like(rows, dtype=torch.bfloat16)
    size = lost = 0.0
    step = rank * max(1, (1 << 18) // (rank * rows.shape[1]))  # blocks that stay in cache
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        rounded = low[start : start + step].copy_(block).float()
        size = max(size, _largest_norm(rounded, rank))
        lost = max(lost, _largest_norm(rounded.sub_(block), rank))
    return low, size, lost


def _largest_norm(rows: Tensor, rank: int) -> float:
    """At least the operator norm of every block of `rank` rows."""
    if rank == 1:
        return float(torch.linalg.vector_norm(rows, dim=1).max())
    blocks = rows.view(-1, rank, rows.shape[1])
    return float((blocks @ blocks.mT).abs().sum(-1).max().sqrt())
