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

try:
    import numba

    from sasa_theory.models import gated_loops as loops
except ImportError:  # pragma: no cover - numba is a dependency; a machine without it takes the plain path
    numba = None

#: bytes of pre-activations per chunk: fewer and the product packs the weights too often, more and memory is all it uses
CHUNK = 64 << 20


def available(*tensors: Tensor) -> bool:
    """Whether the compiled path applies: CPU tensors of one float type, no autocast, numba at hand."""
    return (
        numba is not None
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
        _share_threads()
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
            loops.select(pre.numpy(), rank, rectify, index[start:stop].numpy(), values[start:stop].numpy())
        ctx.save_for_backward(x, w_enc, index, values)
        ctx.rectify = rectify
        ctx.mark_non_differentiable(index)
        return index, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _share_threads()
        x, w_enc, index, values = ctx.saved_tensors
        grad = grads[1].contiguous()
        if ctx.rectify:
            grad = grad * (values > 0)
        by_column = w_enc.T.contiguous()  # no copy where the weights are stored column by column
        starts, pairs = loops.by_unit(index.numpy(), by_column.shape[0] // values.shape[2])
        gradient, sums = torch.empty_like(by_column), torch.empty_like(by_column[:, 0])
        loops.outer(starts, pairs, grad.numpy(), x.numpy(), gradient.numpy(), sums.numpy())
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
            loops.combine(index.numpy(), grad.numpy(), by_column.numpy(), grad_x.numpy())
        return grad_x, gradient.T, sums, -(w_enc @ sums), None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        _share_threads()
        rows = rows.contiguous()
        out = rows.new_empty(len(index), rows.shape[1])
        loops.combine(index.numpy(), values.detach().contiguous().numpy(), rows.detach().numpy(), out.numpy())
        ctx.save_for_backward(index, values, rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _share_threads()
        index, values, rows = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_values = grad_rows = None
        if ctx.needs_input_grad[1]:
            grad_values = torch.empty_like(values, memory_format=torch.contiguous_format)
            loops.project(index.numpy(), grad.numpy(), rows.numpy(), grad_values.numpy())
        if ctx.needs_input_grad[2]:
            starts, pairs = loops.by_unit(index.numpy(), rows.shape[0] // values.shape[2])
            grad_rows, sums = torch.empty_like(rows), torch.empty_like(rows[:, 0])
            loops.outer(starts, pairs, values.contiguous().numpy(), grad.numpy(), grad_rows.numpy(), sums.numpy())
        return None, grad_values, grad_rows


def _share_threads() -> None:
    """As many threads as torch uses: one in a worker process, all in a run of its own."""
    wanted = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if numba.get_num_threads() != wanted:
        numba.set_num_threads(wanted)
