"""How many bits a row's code costs: which units are on, and their coefficients to the precision they are worth.

A block of r columns is not r free columns: saying which s of K groups are on takes log2 C(K, s) bits, which r s of
K r columns many more. So dictionaries of one L0 are also compared at one description length,

    bits = E log2 C(K, s_t) + E L0_t * b,

b the empirical entropy of a coefficient rounded to a grid. The grid (one step for all, each coefficient times the
length of its decoder row) is the coarsest that adds no more than ADDED of the squared error that is there anyway.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory.bounds import log_binomial
from sasa_theory.evaluation.base import lower, neither
from sasa_theory.models.base import SparseModel
from sasa_theory.models.codes import Codes
from sasa_theory.models.normaliser import NormalisedModel
from synthetic.errors import DataError, UsageError

#: share of the squared error that rounding may add
ADDED = 0.01
#: halvings of the grid's step between the bounds it is looked for in
HALVINGS = 24


@dataclass(frozen=True)
class DescriptionLength:
    bits: float = field(metadata=lower("bits a row", "which units are on, and their rounded coefficients"))
    unit_bits: float = field(metadata=lower("bits a row", "mean of log2 C(K, active units)"))
    coefficient_bits: float = field(metadata=lower("bits", "entropy of one rounded coefficient"))
    l0: float = field(metadata=lower("columns", "mean number of nonzero coefficients"))
    step: float = field(metadata=neither("decoder units", "step of the grid"))


@torch.no_grad()
def description_length(
    model: "SparseModel | NormalisedModel", rows: "Float[Tensor, 'n D']", added: float = ADDED
) -> DescriptionLength:
    """Bits of the codes of `rows` (module docstring), in the units the model was trained in.

    Raises UsageError for no rows or `added` not positive, DataError when nothing fires or the rows are rebuilt exactly.
    """
    if len(rows) == 0 or not added > 0:
        raise UsageError(f"description length needs rows and a positive share; got {len(rows)} rows, added {added}")
    if isinstance(model, NormalisedModel):
        x, inner = model.normaliser.apply(rows)[0], model.model
    else:
        x, inner = rows, model
    codes = inner.encode(x)
    error = float((x - inner.decode(codes)).double().square().sum())
    on = codes.values != 0
    if not bool(on.any()) or error == 0:
        raise DataError("no coefficient is nonzero, or the rows are rebuilt exactly: a code's precision has no measure")
    lengths = _lengths(inner, codes)

    def rounded(step: float) -> Tensor:
        return torch.round(codes.values * lengths / step)

    def worse(step: float) -> float:
        values = torch.where(lengths > 0, rounded(step) * step / lengths.clamp_min(1e-30), 0.0)
        got = inner.decode(Codes(codes.index, values.to(codes.values.dtype), codes.n_units))
        return float((x - got).double().square().sum()) / error - 1

    high = float((codes.values * lengths).abs().max()) * 4
    low = high * 1e-7
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if worse(middle) <= added else (low, middle)
    _, counts = torch.unique(rounded(low)[on], return_counts=True)
    share = counts.double() / counts.sum()
    each = float(-(share * share.log2()).sum())
    active, rows_with = torch.unique(codes.l0_units(), return_counts=True)
    choices = [log_binomial(codes.n_units, k) / math.log(2) for k in active.tolist()]
    of_units = float(np.average(choices, weights=rows_with.tolist()))
    l0 = float(codes.l0().double().mean())
    return DescriptionLength(of_units + l0 * each, of_units, each, l0, low)


def _lengths(model: SparseModel, codes: Codes) -> Tensor:
    """The length of the decoder row behind every stored coefficient, in the shape of the values."""
    lengths = torch.linalg.vector_norm(model.blocks()[1], dim=-1)
    if codes.index is None:
        return lengths.expand_as(codes.values)
    return lengths[codes.index.clamp_min(0)]
