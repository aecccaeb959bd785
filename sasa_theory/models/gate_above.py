"""The gate of a threshold in chunks of rows: what exceeds its unit's level, found as the products are computed.

Where a penalty decides how many units are on, nothing bounds their number: half of all at the first step, a few dozen a
row in most of training. So the number is looked at first, on a sample of the rows. Where few are on, they are listed
and no (B, K r) tensor is kept; where many are, there is no answer, and the plain dense products are less work. A GPU
would have to report how many there are: it keeps to the dense products.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sasa_theory.models import bags
from sasa_theory.models.codes import Ragged
from sasa_theory.models.gate_batch import fixed_sizes
from sasa_theory.models.gate_chunks import low_precision, products

#: rows whose products are looked at first
SAMPLE = 64
#: share of all units above which dense products are less work
MOST = 1 / 8
#: how many times that the fullest row may have where every row has as much room
ROOM = 2


def gate_above(
    x: "Float[Tensor, 'B D']",
    w_enc: "Float[Tensor, 'D Kr']",
    b_enc: "Float[Tensor, ' Kr']",
    rank: int,
    level: "Float[Tensor, ' K']",
    by_norm: bool,
) -> "tuple[Int[Tensor, 'P 1'], Float[Tensor, 'P 1 r'], Ragged] | None":
    """Units, coefficients and rows of what exceeds its level in p = x W_enc + b_enc, row by row (no gradient).

    A column (r = 1) exceeds it by its value unless `by_norm`; NaN exceeds all. None where more than MOST of the
    units do, far more in one row, or on a GPU.
    """
    if fixed_sizes(x) or low_precision(x) is not None:
        return None
    some = x[:: max(1, len(x) // SAMPLE)]
    on = _exceeding(some @ w_enc + b_enc, rank, level, by_norm).sum(dim=1)
    if int(on.sum()) > MOST * len(on) * len(level):
        return None
    if loops := bags.compiled_loops(x):
        found = loops.above(x, w_enc, b_enc, rank, level, by_norm, int(on.max()), int(ROOM * MOST * len(level)))
    else:
        found = _above(x, w_enc, b_enc, rank, level, by_norm)
    if found is None:
        return None
    rows, units, values = found
    return units[:, None], values[:, None], Ragged.by(rows, len(x))


def _above(
    x: Tensor, w_enc: Tensor, b_enc: Tensor, rank: int, level: Tensor, by_norm: bool
) -> "tuple[Int[Tensor, ' P'], Int[Tensor, ' P'], Float[Tensor, 'P r']]":
    """Row, unit and coefficients of each, from float32 products."""
    rows, units, values = [], [], []
    for part, pre, _ in products(x, w_enc, None):
        entries = pre.add_(b_enc)
        row, unit = _exceeding(entries, rank, level, by_norm).nonzero(as_tuple=True)
        rows.append(row + part.start)
        units.append(unit)
        values.append(entries.unflatten(1, (-1, rank))[row, unit])
    return torch.cat(rows), torch.cat(units), torch.cat(values)


def _exceeding(
    pre: "Float[Tensor, 'B Kr']", rank: int, level: "Float[Tensor, ' K']", by_norm: bool
) -> "Bool[Tensor, 'B K']":
    size = pre if not by_norm else torch.linalg.vector_norm(pre.unflatten(1, (-1, rank)), dim=-1)
    return size.le(level).logical_not_()
