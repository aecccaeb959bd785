"""The batch-wide gate in chunks of rows: the n largest of all B K pre-activations, found as they are computed.

No (B, K) tensor is kept. Each chunk of the encoder product hands over the entries that can still be among the n
largest; of those and the ones kept so far the n largest are kept, and their least is the level that an entry of the
next chunk must exceed. A GPU would have to report how many do, so there each chunk hands over its own n largest
(unmeasured). On one CPU thread a whole BatchTopK step at D = 768, K = 12,288, k = 60, batch 4096 took 1.4 s of CPU
time and 0.8 GB at its peak; chosen, decoded and differentiated densely, 5.9 s and 1.9 GB.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sasa_theory.models.codes import Ragged
from sasa_theory.models.gate_chunks import low_precision, products

#: the first level comes from the largest entry of every so many: n of those reach it, so n entries do
SET = 16


def gate_batch(
    x: "Float[Tensor, 'B D']", w_enc: "Float[Tensor, 'D K']", b_enc: "Float[Tensor, ' K']", n: int
) -> "tuple[Int[Tensor, 'n 1'], Float[Tensor, 'n 1 1'], Ragged]":
    """Units, values and rows of the n <= B K largest entries of relu(x W_enc + b_enc), row by row (no gradient).

    Which of equal entries are taken is free, NaN counts as the largest; on a CPU zeros are left out, so that there may
    be fewer than n. Under autocast the product takes its lower precision with float32 sums.
    """
    units, low = w_enc.shape[1], low_precision(x)
    values, places = x.new_empty(0), torch.empty(0, dtype=torch.int64, device=x.device)
    level = x.new_zeros(())
    with torch.autocast(x.device.type, enabled=False):
        for part, pre, _ in products(x, w_enc, low):
            entries = pre.add_(b_enc).relu_()
            if fixed_sizes(x):
                found, at = entries.flatten().topk(min(n, entries.numel()), sorted=False)
            else:
                if len(values) < n:
                    level = _first_level(entries, n)
                at = entries.le(level).logical_not_().flatten().nonzero().flatten()
                found = entries.take(at)
            values, places = torch.cat([values, found]), torch.cat([places, at + part.start * units])
            if len(values) > n:
                values, kept = values.topk(n, sorted=False)
                places = places[kept]
                level = _least(values)
    places, order = places.sort()
    ragged = Ragged.by(torch.div(places, units, rounding_mode="floor"), len(x))
    return (places % units)[:, None], values[order][:, None, None], ragged


def fixed_sizes(x: Tensor) -> bool:
    """Whether no shape may depend on the data: a GPU would have to report it."""
    return x.is_cuda


def _first_level(entries: "Float[Tensor, 'b K']", n: int) -> "Float[Tensor, '']":
    """A level that at least n of these entries exceed, unless it is 0."""
    sets = entries.shape[1] // SET
    if len(entries) * sets < n:
        return entries.new_zeros(())
    largest = entries[:, : sets * SET].unflatten(1, (SET, sets)).amax(dim=1)
    reached = _least(largest.flatten().topk(n, sorted=False).values)
    return torch.nextafter(reached, reached.new_zeros(()))


def _least(values: "Float[Tensor, ' n']") -> "Float[Tensor, '']":
    """The smallest of some numbers, of which a NaN is the largest."""
    return values.nan_to_num(torch.inf, torch.inf).amin()
