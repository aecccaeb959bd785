"""The auxiliary loss with shapes that do not depend on how many units are dead, so that the host never waits.

`auxiliary.auxiliary_loss` gathers the dead units, whose number a GPU would have to report. Here `room` places are
gathered whatever the number: the dead units first, in order, then others, whose encoder columns count as zero. They
take a token's place only when no dead unit is left, add nothing, and get no gradient. Loss and gradients are those of
`auxiliary_loss` as long as at most `room` units are dead; beyond that the first `room` dead ones compete.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sasa_theory.models.auxiliary import units
from sasa_theory.models.base import SparseModel, combine, reconstruction_error
from sasa_theory.models.gate import best_units


def auxiliary_loss(
    model: SparseModel,
    x: "Float[Tensor, 'B D']",
    xhat: "Float[Tensor, 'B D']",
    dead: "Bool[Tensor, ' K'] | None",
    n_best: int,
    signed: bool,
    room: int,
) -> "Float[Tensor, '']":
    """As `auxiliary.auxiliary_loss`, for at most `room` dead units; zero when none is dead."""
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
