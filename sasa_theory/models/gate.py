"""The gates: per row the units of largest norm among p_k = E_k (x - b), the largest of the batch, what exceeds a level.

Written plainly here; `gated_torch` does the same without keeping what the gate throws away.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory import parallel
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


def units_above(
    x: "Float[Tensor, 'B D']",
    w_enc: "Float[Tensor, 'D Kr']",
    b_enc: "Float[Tensor, ' Kr']",
    b_dec: "Float[Tensor, ' D']",
    rank: int,
    level: "Float[Tensor, ' K']",
    by_norm: bool = False,
) -> Codes:
    """p = (x - b_dec) W_enc + b_enc of the units that exceed their level, where these are few; else of all units.

    By its norm, or a column by its value. Differentiable in everything but the choice.
    """
    n_units = len(level)
    if gated_torch.available(x, w_enc, b_enc, b_dec) and x.dtype == level.dtype:
        found = gated_torch.encode_above(x, w_enc, b_enc, b_dec, rank, level, by_norm)
        if found is not None:
            index, values, ragged = found
            return Codes(index, values, n_units, ragged=ragged)
    pre = x @ w_enc + (b_enc - b_dec @ w_enc)
    return Codes(None, pre.unflatten(1, (n_units, rank)), n_units)


def top_units(values: "Float[Tensor, 'B K r']", n_best: int) -> Codes:
    """Per sample the `n_best` units of largest norm, as gated codes."""
    n_units = values.shape[1]
    with torch.no_grad():
        # squared norms order as norms do, and have no kink at zero
        index = values.square().sum(-1).topk(n_best, dim=1, sorted=False).indices
    picked = values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
    return Codes(index, picked, n_units)


def best_of_batch(
    x: "Float[Tensor, 'B D']",
    w_enc: "Float[Tensor, 'D K']",
    b_enc: "Float[Tensor, ' K']",
    b_dec: "Float[Tensor, ' D']",
    n_best: int,
    processes: int = 1,
) -> "tuple[Codes, Float[Tensor, '']]":
    """Codes of the B n_best largest entries of relu((x - b_dec) W_enc + b_enc), and the smallest positive one of them.

    The second is 0 if there is none. With the number of `processes` that train together it is one choice among the
    entries of all their batches; of entries that equal the least, all are then on. Differentiable in everything but the
    choice.
    """
    n_units = w_enc.shape[1]
    wanted = len(x) * n_best * processes
    n_here = min(wanted, len(x) * n_units)
    if gated_torch.available(x, w_enc, b_enc, b_dec):
        index, values, ragged = gated_torch.encode_batch(x, w_enc, b_enc, b_dec, n_here)
        kept, smallest = _shared(values.detach(), wanted, processes)
        if processes > 1:
            index, values = index.where(kept[..., 0], -1), values * kept
        return Codes(index, values, n_units, ragged=ragged), smallest
    pre = (x @ w_enc + (b_enc - b_dec @ w_enc)).relu()
    return largest_of_batch(pre, wanted, processes)


def largest_of_batch(pre: "Float[Tensor, 'B K']", wanted: int, processes: int = 1) -> "tuple[Codes, Float[Tensor, '']]":
    """`best_of_batch` of the non-negative entries themselves, as dense codes."""
    with torch.no_grad():
        # topk on the flattened batch; kthvalue would sort everything
        top = pre.flatten().topk(min(wanted, pre.numel()), sorted=False)
        kept, smallest = _shared(top.values, wanted, processes)
        mask = torch.zeros(pre.numel(), dtype=torch.bool, device=pre.device)
        mask[top.indices] = kept
    return Codes(None, (pre * mask.view_as(pre))[..., None], pre.shape[1]), smallest


def _shared(values: Tensor, wanted: int, processes: int) -> tuple[Tensor, Tensor]:
    """Which of this process's largest values are among the `wanted` largest of all; the smallest positive one, or 0."""
    kept = torch.ones_like(values, dtype=torch.bool)
    if processes > 1:
        kept = values >= parallel.nth_largest(values.flatten(), wanted)
    smallest = values.new_full((1,), torch.inf)
    smallest = torch.cat([smallest, torch.where(kept & (values > 0), values, torch.inf).flatten()]).amin()
    if processes > 1:
        smallest = parallel.least(smallest)
    return kept, torch.where(smallest.isfinite(), smallest, 0.0)
