"""The Top-s gate: per row, the units of largest norm among p_k = E_k (x - b), with their coefficients.

Written plainly here; `gated_torch` does the same without keeping what the gate throws away.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory.models import gated_torch
from sasa_theory.models.codes import Codes


def best_units(
    x: "Float[Tensor, 'B D']",
    w_enc: "Float[Tensor, 'D Kr']",
    b_enc: "Float[Tensor, ' Kr']",
    b_dec: "Float[Tensor, ' D'] | None",
    rank: int,
    n_best: int,
    signed: bool,
) -> Codes:
    """Gated codes of the `n_best` units of largest ||p_k||, p = (x - b_dec) W_enc + b_enc, rectified unless `signed`.

    `b_dec` None is zero. Differentiable in everything but the choice.
    """
    n_units = w_enc.shape[1] // rank
    shift = w_enc.new_zeros(w_enc.shape[0]) if b_dec is None else b_dec
    if gated_torch.available(x, w_enc, b_enc, shift):
        index, values = gated_torch.encode(x, w_enc, b_enc, shift, rank, n_best, not signed)
        return Codes(index, values, n_units)
    pre = x @ w_enc + (b_enc if b_dec is None else b_enc - b_dec @ w_enc)
    return top_units((pre if signed else pre.relu()).unflatten(1, (n_units, rank)), n_best)


def top_units(values: "Float[Tensor, 'B K r']", n_best: int) -> Codes:
    """Per sample the `n_best` units of largest norm, as gated codes."""
    n_units = values.shape[1]
    with torch.no_grad():
        # squared norms order as norms do, and have no kink at zero
        index = values.square().sum(-1).topk(n_best, dim=1, sorted=False).indices
    picked = values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
    return Codes(index, picked, n_units)
