"""The gated step in torch operations, differentiable, on any device.

Of the six dense products of a plain step only the encoder's forward, 2 B D K r flops, is needed: `gate_chunks` runs it.
(For a gate of the whole batch, `gate_batch`.) Everything else touches the groups that are on: `bags` adds them up. On a
CPU the trainer has a faster step still, `models.compiled`; this one is for GPUs, for float64, for losses of one's own.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sasa_theory.models import bags
from sasa_theory.models.codes import Ragged
from sasa_theory.models.gate_above import gate_above
from sasa_theory.models.gate_batch import gate_batch
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
    with torch.no_grad():
        moved = x - b_dec
        index, values = gate(moved, w_enc, b_enc, rank, n_best, rectify)
    return index, _Coefficients.apply(x, w_enc, b_enc, b_dec, moved, index, values, rectify, None)


def encode_batch(
    x: "Float[Tensor, 'B D']",
    w_enc: "Float[Tensor, 'D K']",
    b_enc: "Float[Tensor, ' K']",
    b_dec: "Float[Tensor, ' D']",
    n: int,
) -> "tuple[Int[Tensor, 'n 1'], Float[Tensor, 'n 1 1'], Ragged]":
    """The n largest entries of relu((x - b_dec) W_enc + b_enc), differentiable, and the rows they stand in."""
    with torch.no_grad():
        moved = x - b_dec
        index, values, ragged = gate_batch(moved, w_enc, b_enc, n)
    return index, _Coefficients.apply(x, w_enc, b_enc, b_dec, moved, index, values, True, ragged), ragged


def encode_above(
    x: "Float[Tensor, 'B D']",
    w_enc: "Float[Tensor, 'D Kr']",
    b_enc: "Float[Tensor, ' Kr']",
    b_dec: "Float[Tensor, ' D']",
    rank: int,
    level: "Float[Tensor, ' K']",
    by_norm: bool,
) -> "tuple[Int[Tensor, 'P 1'], Float[Tensor, 'P 1 r'], Ragged] | None":
    """What exceeds its unit's level in (x - b_dec) W_enc + b_enc, differentiable; None where that is much."""
    with torch.no_grad():
        moved = x - b_dec
        found = gate_above(moved, w_enc, b_enc, rank, level, by_norm)
    if found is None:
        return None
    index, values, ragged = found
    return index, _Coefficients.apply(x, w_enc, b_enc, b_dec, moved, index, values, False, ragged), ragged


def combine(
    index: "Int[Tensor, 'B s']",
    values: "Float[Tensor, 'B s r']",
    rows: "Float[Tensor, 'Kr D']",
    ragged: Ragged | None = None,
) -> "Float[Tensor, 'B D']":
    """Weighted sums of decoder rows, differentiable in values and rows; index -1 is an empty slot."""
    out: Tensor = _Combine.apply(index, values.to(rows.dtype), rows, ragged)
    return out


class _Coefficients(torch.autograd.Function):
    """The chosen coefficients, already known, as a function of what they were computed from."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        moved: Tensor,
        index: Tensor,
        values: Tensor,
        rectify: bool,
        ragged: Ragged | None,
    ) -> Tensor:
        ctx.save_for_backward(moved, w_enc, index, values)
        ctx.rectify, ctx.ragged = rectify, ragged
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        moved, w_enc, index, values = ctx.saved_tensors
        grad = grads[0].contiguous()
        if ctx.rectify:
            grad = grad * (values > 0)
        fast, by_column = bags.fastest(moved), w_enc.T.contiguous()  # no copy where stored column by column
        gradient, sums = fast.outer(index, grad, moved, len(by_column), with_sums=True, ragged=ctx.ragged)
        grad_x = fast.bags(index, grad, by_column, ctx.ragged) if ctx.needs_input_grad[0] else None
        return grad_x, gradient.T, sums, -(w_enc @ sums), None, None, None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, values: Tensor, rows: Tensor, ragged: Ragged | None) -> Tensor:
        ctx.save_for_backward(index, values, rows)
        ctx.ragged = ragged
        return bags.fastest(rows).bags(index, values, rows.contiguous(), ragged)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        index, values, rows = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_values = grad_rows = None
        if ctx.needs_input_grad[1]:
            grad_values = bags.fastest(rows).project(index, grad, rows.contiguous(), values.shape[2], ctx.ragged)
        if ctx.needs_input_grad[2]:
            grad_rows, _ = bags.fastest(rows).outer(index, values, grad, len(rows), ragged=ctx.ragged)
        return None, grad_values, grad_rows, None
