"""The auxiliary loss that brings dead units back, one for every architecture.

The residual x - xhat, detached, is encoded again by the dead units alone; each token keeps its best `n_best` of them
(by group norm; non-negative codes are rectified first), and they are asked to reconstruct the residual:

    mean || residual - sum_k D_k p_k(residual) ||^2,    coefficient 1.

Only dead units appear in it, so only they receive its gradient.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sasa_theory.models.base import SparseModel, combine, reconstruction_error
from sasa_theory.models.codes import Codes


def auxiliary_loss(
    model: SparseModel,
    x: "Float[Tensor, 'B D']",
    xhat: "Float[Tensor, 'B D']",
    dead: "Bool[Tensor, ' K'] | None",
    n_best: int,
    signed: bool,
) -> "Float[Tensor, '']":
    """The loss above; zero when no unit is dead or n_best is 0."""
    which = dead.nonzero().flatten() if dead is not None and n_best > 0 else None
    if which is None or len(which) == 0:
        return x.new_zeros(())
    residual = (x - xhat).detach()
    columns = (which[:, None] * model.rank + torch.arange(model.rank, device=which.device)).flatten()
    pre = residual @ model.W_enc[:, columns] + model.b_enc[columns]
    values = (pre if signed else pre.relu()).unflatten(1, (len(which), model.rank))
    codes = top_units(values, min(n_best, len(which)))
    # an unrevived unit must not push the others, so the target is the residual itself
    return reconstruction_error(residual, combine(codes, model.W_dec[columns]))


def top_units(values: "Float[Tensor, 'B K r']", n_best: int) -> Codes:
    """Per sample the `n_best` units of largest norm, as gated codes (the Top-s gate)."""
    n_units = values.shape[1]
    with torch.no_grad():
        # squared norms order as norms do, and have no kink at zero
        index = values.square().sum(-1).topk(n_best, dim=1, sorted=False).indices
    picked = values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
    return Codes(index, picked, n_units)
