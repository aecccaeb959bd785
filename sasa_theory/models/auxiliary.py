"""The auxiliary loss that brings dead units back, one for every architecture.

The residual x - xhat, detached, is encoded again by the dead units alone; each token keeps its best `n_best` of them
(by group norm; non-negative codes are rectified first), and they are asked to reconstruct the residual:

    mean || residual - sum_k D_k p_k(residual) ||^2,    coefficient 1.

Only dead units appear in it, so only they receive its gradient. On a GPU it has fixed shapes and at most a quarter of
the units, the first of the dead ones, take part at a time (`fixed_shapes`).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sasa_theory.models.base import SparseModel, combine, reconstruction_error
from sasa_theory.models.gate import best_units


def auxiliary_loss(
    model: SparseModel,
    x: "Float[Tensor, 'B D']",
    xhat: "Float[Tensor, 'B D']",
    dead: "Bool[Tensor, ' K'] | None",
    n_best: int,
    signed: bool,
) -> "Float[Tensor, '']":
    """The loss above; zero when no unit is dead or n_best is 0."""
    if x.is_cuda:  # the number of dead units is not asked for: a GPU would have to report it
        room = max(n_best, -(-model.n_units // 4))
        return fixed_shapes(model, x, xhat, dead, n_best, signed, room)
    which = dead.nonzero().flatten() if dead is not None and n_best > 0 else None
    if which is None or len(which) == 0:
        return x.new_zeros(())
    residual = (x - xhat).detach()
    w_enc, b_enc, w_dec = units(model, which)
    codes = best_units(residual, w_enc, b_enc, None, model.rank, min(n_best, len(which)), signed)
    # an unrevived unit must not push the others, so the target is the residual itself
    return reconstruction_error(residual, combine(codes, w_dec))


def fixed_shapes(
    model: SparseModel,
    x: "Float[Tensor, 'B D']",
    xhat: "Float[Tensor, 'B D']",
    dead: "Bool[Tensor, ' K'] | None",
    n_best: int,
    signed: bool,
    room: int,
) -> "Float[Tensor, '']":
    """The loss above for at most `room` dead units, with shapes that do not depend on how many there are.

    `room` units take part whatever the number: the dead ones first, in order, then others, whose encoder columns count
    as zero. They take a token's place only when no dead unit is left, add nothing, and get no gradient. Of more than
    `room` dead units, the first compete.
    """
    if dead is None or n_best == 0:
        return x.new_zeros(())
    which, real = places(dead, room)
    residual = (x - xhat).detach()
    w_enc, b_enc, w_dec = units(model, which)
    used = real.repeat_interleave(model.rank, output_size=len(b_enc)).to(w_enc.dtype)
    codes = best_units(residual, w_enc * used, b_enc * used, None, model.rank, min(n_best, len(which)), signed)
    loss = reconstruction_error(residual, combine(codes, w_dec))
    return torch.where(dead.any(), loss, 0.0)


def places(dead: "Bool[Tensor, ' K']", room: int) -> "tuple[Int[Tensor, ' m'], Bool[Tensor, ' m']]":
    """The first m = min(room, K) units when the dead ones are put in front, and which of them are dead."""
    which = dead.logical_not().int().sort(stable=True).indices[:room]
    return which, dead[which]


def units(
    model: SparseModel, which: "Int[Tensor, ' m']"
) -> "tuple[Float[Tensor, 'D mr'], Float[Tensor, ' mr'], Float[Tensor, 'mr D']]":
    """Encoder columns, their biases and decoder rows of some units, differentiable; `which` without repetition."""
    w_enc, b_enc, w_dec = _Blocks.apply(model.W_enc, model.b_enc, model.W_dec, which, model.rank)
    return w_enc, b_enc, w_dec


class _Blocks(torch.autograd.Function):
    """Blocks of the weights, which lie together in memory: by single columns the gradient took three times as long.

    Gradients go back as tensors of their own, none a view of another, as autograd's indexing would give: into those
    the engine adds the other losses' gradients in place, a fifth of the time of a fresh sum.
    """

    @staticmethod
    def forward(
        ctx: Any, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor, which: Tensor, rank: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(which)
        ctx.rank, ctx.n_units = rank, len(b_enc) // rank

        def picked(rows: Tensor) -> Tensor:
            return rows.unflatten(0, (-1, rank)).index_select(0, which).flatten(0, 1)

        return picked(w_enc.T).T, picked(b_enc), picked(w_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (which,) = ctx.saved_tensors
        by_enc, by_bias, by_dec = grads

        def whole(rows: Tensor, to: Tensor) -> None:
            blocks = to.zero_().unflatten(0, (ctx.n_units, ctx.rank))
            blocks.index_copy_(0, which, rows.unflatten(0, (-1, ctx.rank)))

        columns, width = ctx.n_units * ctx.rank, by_dec.shape[1]
        of_enc = by_enc.new_empty_strided((width, columns), (1, width))  # column by column, as the weights are
        of_bias, of_dec = by_bias.new_empty(columns), by_dec.new_empty(columns, width)
        whole(by_enc.T, of_enc.T)
        whole(by_bias, of_bias)
        whole(by_dec, of_dec)
        return of_enc, of_bias, of_dec, None, None
