"""The gated step in torch operations, differentiable, on any device.

Of the six dense products of a plain step only the encoder's forward, 2 B D K r flops, is needed: `gate_chunks` runs it.
Everything else touches s groups of each row, which `bags` adds up. (On a CPU the trainer has a faster step still,
`models.compiled`; this one is for GPUs, for float64, for losses of one's own.)
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sasa_theory.models import bags
from sasa_theory.models.gate_chunks import gate


def available(*tensors: Tensor) -> bool:
    """Whether this path applies: tensors of one float type on one CPU or CUDA device."""
    first = tensors[0]
    return (
        first.device.type in ("cpu", "cuda")
        and first.dtype in (torch.float32, torch.float64)
        and all((tensor.device, tensor.dtype) == (first.device, first.dtype) for tensor in tensors)
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
    """Weighted sums of decoder rows, differentiable in values and rows; index -1 is an empty slot."""
    out: Tensor = _Combine.apply(index, values.to(rows.dtype), rows)
    return out


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_enc: Tensor, b_enc: Tensor, b_dec: Tensor, rank: int, n_best: int, rectify: bool
    ) -> tuple[Tensor, Tensor]:
        x = x - b_dec
        index, values = gate(x, w_enc, b_enc, rank, n_best, rectify)
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
        gradient, sums = bags.fastest(x).outer(index, grad, x, len(by_column), with_sums=True)
        grad_x = bags.fastest(x).bags(index, grad, by_column) if ctx.needs_input_grad[0] else None
        return grad_x, gradient.T, sums, -(w_enc @ sums), None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(index, values, rows)
        return bags.fastest(rows).bags(index, values, rows.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        index, values, rows = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_values = grad_rows = None
        if ctx.needs_input_grad[1]:
            grad_values = bags.fastest(rows).project(index, grad, rows.contiguous(), values.shape[2])
        if ctx.needs_input_grad[2]:
            grad_rows, _ = bags.fastest(rows).outer(index, values, grad, len(rows))
        return None, grad_values, grad_rows
