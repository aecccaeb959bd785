"""The fast path of every gated model on a CPU: the encoder product in chunks, the gate behind each, sparse backward.

Of the six dense products of a plain step only the encoder's forward, 2 B D K r flops, is needed: everything else
touches s groups of each row. So the product runs in chunks of rows, `select` takes the s best units from each
at once (no (B, K r) tensor is kept), and the gradients are formed unit by unit from the (row, unit) pairs.
Same loss and gradients as the plain path (`models.gate.top_units`, `models.base.combine`), which is used wherever
`available` says no: on a GPU, under autocast, and without numba.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sasa_theory.threads import split

try:
    from sasa_theory.models import gated_loops as loops
except ImportError:  # pragma: no cover - numba is a dependency; a machine without it takes the plain path
    loops = None  # type: ignore[assignment]

#: bytes of pre-activations per chunk: fewer and the product packs the weights too often, more and memory is all it uses
CHUNK = 64 << 20


def available(*tensors: Tensor) -> bool:
    """Whether the compiled path applies: CPU tensors of one float type, no autocast, numba at hand."""
    return (
        loops is not None
        and all(tensor.device.type == "cpu" for tensor in tensors)
        and len({tensor.dtype for tensor in tensors}) == 1
        and tensors[0].dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


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
    """Weighted sums of decoder rows, differentiable in values and rows."""
    out: Tensor = _Combine.apply(index, values, rows)
    return out


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_enc: Tensor, b_enc: Tensor, b_dec: Tensor, rank: int, n_best: int, rectify: bool
    ) -> tuple[Tensor, Tensor]:
        x = x - b_dec
        columns = w_enc.shape[1]
        index = torch.empty(len(x), n_best, dtype=torch.int64)
        values = torch.empty(len(x), n_best, rank, dtype=x.dtype)
        rows = max(1, min(len(x), CHUNK // (columns * x.element_size())))
        buffer = torch.empty(rows, columns, dtype=x.dtype)
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            pre = torch.addmm(b_enc, part, w_enc, out=buffer[: len(part)])
            stop = start + len(part)
            chosen = (index[start:stop].numpy(), values[start:stop].numpy())
            split(loops.select, len(part), pre.numpy(), rank, rectify, *chosen)
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
        gradient, sums = _outer(index, grad, x, by_column)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
            split(loops.combine, len(x), index.numpy(), grad.numpy(), by_column.numpy(), grad_x.numpy())
        return grad_x, gradient.T, sums, -(w_enc @ sums), None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        out = rows.new_empty(len(index), rows.shape[1])
        weights = values.detach().contiguous().numpy()
        split(loops.combine, len(out), index.numpy(), weights, rows.detach().numpy(), out.numpy())
        ctx.save_for_backward(index, values, rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        index, values, rows = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_values = grad_rows = None
        if ctx.needs_input_grad[1]:
            grad_values = torch.empty_like(values, memory_format=torch.contiguous_format)
            split(loops.project, len(grad), index.numpy(), grad.numpy(), rows.numpy(), grad_values.numpy())
        if ctx.needs_input_grad[2]:
            grad_rows, _ = _outer(index, values.contiguous(), grad, rows)
        return None, grad_values, grad_rows


def _outer(index: Tensor, values: Tensor, x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Per row of the weights, the sum of values times x over the pairs that use it, and the sum of the values."""
    n_units = len(like) // values.shape[2]
    starts, pairs = loops.by_unit(index.numpy(), n_units)
    out, sums = torch.empty_like(like), torch.empty_like(like[:, 0])
    threads = torch.get_num_threads()
    # units fire unequally often: cut where the pairs are equally many
    cuts = [int(starts.searchsorted(len(pairs) * i // threads)) for i in range(1, min(threads, n_units))]
    split(loops.outer, n_units, starts, pairs, values.numpy(), x.numpy(), out.numpy(), sums.numpy(), cuts=cuts)
    return out, sums
