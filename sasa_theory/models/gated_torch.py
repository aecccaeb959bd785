"""The gated step in torch operations alone, on any device: a CPU without numba, a GPU.

Of the six dense products of a plain step only the encoder's forward, 2 B D K r flops, is needed (`gated_step` says the
same with compiled loops). It runs in chunks of rows, and each chunk's s best units are taken at once, so no (B, K r)
tensor is kept. What is left is bags, sums of a few weighted rows of a table, which torch has a kernel for:

    xhat[t]       = sum over the columns c that row t uses of  value(t, c)  W_dec[c]      table W_dec, one bag per row
    dW_dec[c]     = sum over the rows t that use column c  of  value(t, c)  g[t]          table g,     one bag per column
    dvalue(t, c)  = <g[t], W_dec[c]>

and the same with x in place of g for the encoder. The pairs are sorted by column once per gradient; nothing here asks
the device for a number, shapes depend on (B, s, r, K) alone, and every sum has one order (no atomics).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, pad

#: bytes of pre-activations per chunk: fewer and the product packs the weights too often, more and memory is all it uses
CHUNK = 64 << 20
#: candidates come from the units in sets of this many: the s best lie in the s sets with the largest members
SET = 16


def encode(
    x: "Float[Tensor, 'B D']",
    w_enc: "Float[Tensor, 'D Kr']",
    b_enc: "Float[Tensor, ' Kr']",
    b_dec: "Float[Tensor, ' D']",
    rank: int,
    n_best: int,
    rectify: bool,
) -> "tuple[Int[Tensor, 'B s'], Float[Tensor, 'B s r']]":
    """The `n_best` units of largest norm of (x - b_dec) W_enc + b_enc and their coefficients, differentiable."""
    index, values = _Encode.apply(x, w_enc, b_enc, b_dec, rank, n_best, rectify)
    return index, values


def combine(
    index: "Int[Tensor, 'B s']", values: "Float[Tensor, 'B s r']", rows: "Float[Tensor, 'Kr D']"
) -> "Float[Tensor, 'B D']":
    """Weighted sums of decoder rows, differentiable in values and rows; index -1 is an empty slot."""
    out: Tensor = _Combine.apply(index, values, rows)
    return out


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_enc: Tensor, b_enc: Tensor, b_dec: Tensor, rank: int, n_best: int, rectify: bool
    ) -> tuple[Tensor, Tensor]:
        x = x - b_dec
        columns = w_enc.shape[1]
        index = torch.empty(len(x), n_best, dtype=torch.int64, device=x.device)
        values = x.new_empty(len(x), n_best, rank)
        rows = max(1, min(len(x), CHUNK // (columns * x.element_size())))
        buffer, squares = x.new_empty(rows, columns), x.new_empty(rows, columns)
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            count = len(x[part])
            pre = torch.addmm(b_enc, x[part], w_enc, out=buffer[:count])
            if rectify:
                pre.relu_()
            torch.mul(pre, pre, out=squares[:count])
            norms = squares[:count] if rank == 1 else squares[:count].view(count, -1, rank).sum(-1)
            index[part] = best(norms, n_best)
            blocks = pre.view(count, -1, rank)
            torch.gather(blocks, 1, index[part][..., None].expand(-1, -1, rank), out=values[part])
        ctx.save_for_backward(x, w_enc, index, values)
        ctx.rectify = rectify
        ctx.mark_non_differentiable(index)
        return index, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w_enc, index, values = ctx.saved_tensors
        grad = grads[1].contiguous()
        if ctx.rectify:
            grad = grad * (values > 0)
        by_column = w_enc.T.contiguous()  # no copy where the weights are stored column by column
        gradient, sums = outer(index, grad, x, len(by_column), with_sums=True)
        grad_x = bags(index, grad, by_column) if ctx.needs_input_grad[0] else None
        return grad_x, gradient.T, sums, -(w_enc @ sums), None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(index, values, rows)
        return bags(index, values, rows.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        index, values, rows = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_values = grad_rows = None
        if ctx.needs_input_grad[1]:
            grad_values = project(index, grad, rows.contiguous(), values.shape[2])
        if ctx.needs_input_grad[2]:
            grad_rows, _ = outer(index, values, grad, len(rows))
        return None, grad_values, grad_rows


def best(norms: "Float[Tensor, 'B K']", n_best: int) -> "Int[Tensor, 'B s']":
    """Per row the `n_best` largest entries, in any order; in two rounds where there are many columns for each."""
    batch, units = norms.shape
    sets = -(-units // SET)
    if sets < 2 * n_best:
        return norms.topk(n_best, dim=1, sorted=False).indices
    # set c holds units c, c + sets, c + 2 sets, ...: its largest member is a maximum over contiguous rows
    members = pad(norms, (0, sets * SET - units), value=-1.0).view(batch, SET, sets)
    chosen = members.amax(dim=1).topk(n_best, dim=1, sorted=False).indices
    among = members.gather(2, chosen[:, None, :].expand(-1, SET, -1)).flatten(1)
    found = among.topk(n_best, dim=1, sorted=False).indices
    return found // n_best * sets + chosen.gather(1, found % n_best)


def bags(index: Tensor, values: Tensor, rows: "Float[Tensor, 'Kr D']") -> "Float[Tensor, 'B D']":
    """out[t] = sum over slots i and columns j of values[t, i, j] rows[index[t, i] r + j]."""
    if values.numel() == 0:
        return rows.new_zeros(len(index), rows.shape[1])
    columns, weights = _columns(index, values)
    return embedding_bag(columns, rows, per_sample_weights=weights, mode="sum")


def project(index: Tensor, x: "Float[Tensor, 'B D']", rows: "Float[Tensor, 'Kr D']", rank: int) -> Tensor:
    """out[t, i, j] = <x[t], rows[index[t, i] r + j]>, 0 in empty slots: the gradient of `bags` by its values."""
    batch, slots = index.shape
    columns, weights = _columns(index, x.new_ones(batch, slots, rank))
    bag = torch.arange(batch, device=x.device).repeat_interleave(slots * rank, output_size=columns.numel())
    offsets = torch.arange(0, columns.numel(), slots * rank, device=x.device)
    # the operation behind embedding_bag's own gradient, called here without the gradient of the table
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(x, rows, columns.flatten(), offsets, bag, 0)
    return (dots * weights.flatten()).view(batch, slots, rank)


def outer(
    index: Tensor, values: Tensor, x: "Float[Tensor, 'B D']", n_columns: int, with_sums: bool = False
) -> "tuple[Float[Tensor, 'Kr D'], Float[Tensor, ' Kr'] | None]":
    """Per column, the sum of values times x over the pairs that use it; and, if asked, the sum of the values."""
    columns, weights = _columns(index, values)
    if columns.numel() == 0:
        return x.new_zeros(n_columns, x.shape[1]), x.new_zeros(n_columns) if with_sums else None
    by_column, order = columns.flatten().sort(stable=True)
    starts = torch.searchsorted(by_column, torch.arange(n_columns, device=x.device))
    weights = weights.flatten()
    rows = torch.div(order, columns.shape[1], rounding_mode="floor")
    gradient = embedding_bag(rows, x, starts, per_sample_weights=weights[order], mode="sum")
    sums = embedding_bag(order, weights[:, None], starts, mode="sum").flatten() if with_sums else None
    return gradient, sums


def _columns(index: Tensor, values: Tensor) -> "tuple[Int[Tensor, 'B sr'], Float[Tensor, 'B sr']]":
    """Columns and weights of each row, (B, s r) both; an empty slot is columns 0 .. r-1 with weight zero."""
    rank = values.shape[2]
    columns = index.clamp_min(0)[..., None] * rank + torch.arange(rank, device=index.device)
    return columns.flatten(1), (values * (index >= 0)[..., None]).flatten(1)
