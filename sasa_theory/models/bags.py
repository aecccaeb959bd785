"""Bags: sums of a few weighted rows of a table, which is all a gated model does after its gate.

    bags     out[t] = sum over the columns c that row t uses of  value(t, c) rows[c]      one bag per row
    outer    out[c] = sum over the rows t that use column c  of  value(t, c) x[t]         one bag per column
    project  out(t, c) = <x[t], rows[c]>

`bags` decodes; `outer` and `project` are its gradients by its table and by its values; `select` is the gate itself, on
a chunk of pre-activations. A row uses the columns [k r, (k+1) r) of its units k; rows that use unequally many units are
given as one list of pairs, index (P, 1) and values (P, 1, r), with the `ragged` that says whose each is. Nothing here
asks the device for a number, shapes depend on (B, s, r, K) alone, and every sum has one order (no atomics): equal runs
stay equal bit for bit. `fastest` gives the same functions as Triton kernels or compiled loops where there are any.
"""

import functools
import sys
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from sasa_theory.models.codes import Ragged

#: candidates come from the units in sets of this many: the s best lie in the s sets with the largest members
SET = 16
#: whether compiled loops are used on a CPU; the benchmark of torch alone switches them off
LOOPS = True


def fastest(x: Tensor) -> ModuleType:
    """Where to take `select`, `bags`, `project` and `outer` from: for float32 Triton's on a GPU, loops on a CPU."""
    if x.is_cuda and x.dtype == torch.float32 and (kernels := _triton()) is not None:
        return kernels
    return compiled_loops(x) or sys.modules[__name__]


def compiled_loops(x: Tensor) -> ModuleType | None:
    """The compiled loops, for float32 on a CPU, unless `LOOPS` is switched off."""
    return _loops() if LOOPS and x.device.type == "cpu" and x.dtype == torch.float32 else None


@functools.cache
def _loops() -> ModuleType | None:
    try:
        from sasa_theory.models.compiled import bags as loops
    except ImportError:  # pragma: no cover - numba is a dependency; a machine without it takes torch's operations
        return None
    return loops


@functools.cache
def _triton() -> ModuleType | None:
    try:
        from sasa_theory.models import gated_triton
    except ImportError:  # a torch without Triton
        return None
    return gated_triton


def select(
    pre: "Float[Tensor, 'B Kr']",
    bias: "Float[Tensor, ' Kr']",
    index: "Int[Tensor, 'B s']",
    values: "Float[Tensor, 'B s r']",
    rectify: bool,
    spare: "Float[Tensor, 'B Kr']",
) -> None:
    """Writes the units of largest norm of pre + bias, in any order, and their coefficients; pre and spare are lost."""
    _, slots, rank = values.shape
    pre.add_(bias)
    if rectify:
        pre.relu_()
    squares = torch.mul(pre, pre, out=spare)
    index.copy_(best(squares if rank == 1 else squares.unflatten(1, (-1, rank)).sum(-1), slots))
    values.copy_(pre.unflatten(1, (-1, rank)).gather(1, index[..., None].expand(-1, -1, rank)))


def best(norms: "Float[Tensor, 'B K']", n_best: int) -> "Int[Tensor, 'B s']":
    """Per row the `n_best` largest entries (all non-negative), in any order; in two rounds where that is less work."""
    batch, units = norms.shape
    sets = -(-units // SET)
    if sets < 2 * n_best:
        return norms.topk(n_best, dim=1, sorted=False).indices
    # set c holds units c, c + sets, c + 2 sets, ...: its largest member is a maximum over contiguous rows
    whole = norms if sets * SET == units else pad(norms, (0, sets * SET - units), value=-1.0)
    members = whole.view(batch, SET, sets)
    chosen = members.amax(dim=1).topk(n_best, dim=1, sorted=False).indices
    among = members.gather(2, chosen[:, None, :].expand(-1, SET, -1)).flatten(1)
    found = among.topk(n_best, dim=1, sorted=False).indices
    return torch.div(found, n_best, rounding_mode="floor") * sets + chosen.gather(1, found % n_best)


def bags(
    index: "Int[Tensor, 'B s']",
    values: "Float[Tensor, 'B s r']",
    rows: "Float[Tensor, 'Kr D']",
    ragged: Ragged | None = None,
) -> "Float[Tensor, 'B D']":
    """out[t] = sum over slots i and columns j of values[t, i, j] rows[index[t, i] r + j]; index -1 is skipped."""
    if values.numel() == 0:
        return rows.new_zeros(len(index) if ragged is None else len(ragged.starts) - 1, rows.shape[1])
    # detached, or what only embedding_bag's own gradient would need is made too
    rows, values = rows.detach(), values.detach()
    weights = values if _full(index) else values * (index >= 0)[..., None]
    columns = _columns(index, values.shape[2])
    if ragged is None:
        return embedding_bag(columns, rows, per_sample_weights=weights.flatten(1), mode="sum")
    starts = (ragged.starts * values.shape[2]).to(columns.dtype)
    return embedding_bag(
        columns.flatten(), rows, starts, per_sample_weights=weights.flatten(), mode="sum", include_last_offset=True
    )


def project(
    index: "Int[Tensor, 'B s']",
    x: "Float[Tensor, 'B D']",
    rows: "Float[Tensor, 'Kr D']",
    rank: int,
    ragged: Ragged | None = None,
) -> "Float[Tensor, 'B s r']":
    """out[t, i, j] = <x[t], rows[index[t, i] r + j]>; 0 where index is -1."""
    batch, slots = index.shape
    if index.numel() == 0:
        return x.new_zeros(batch, slots, rank)
    columns = _columns(index, rank).flatten()
    whose = torch.arange(batch, device=x.device) if ragged is None else ragged.of
    bag = whose.to(columns.dtype).repeat_interleave(slots * rank, output_size=len(columns))
    if ragged is None:
        offsets = torch.arange(0, len(columns), slots * rank, dtype=columns.dtype, device=x.device)
    else:
        offsets = (ragged.starts[:-1] * rank).to(columns.dtype)
    # the operation behind embedding_bag's own gradient, called here without the gradient of the table
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(x, rows, columns, offsets, bag, 0)
    dots = dots.view(batch, slots, rank)
    return dots if _full(index) else dots.mul_((index >= 0)[..., None])


def outer(
    index: "Int[Tensor, 'B s']",
    values: "Float[Tensor, 'B s r']",
    x: "Float[Tensor, 'B D']",
    n_columns: int,
    with_sums: bool = False,
    ragged: Ragged | None = None,
) -> "tuple[Float[Tensor, 'Kr D'], Float[Tensor, ' Kr'] | None]":
    """Per column, the sum of values times x over the pairs that use it; and, if asked, the sum of the values."""
    _, slots, rank = values.shape
    if values.numel() == 0:
        return x.new_zeros(n_columns, x.shape[1]), x.new_zeros(n_columns) if with_sums else None
    weights = (values if _full(index) else values * (index >= 0)[..., None]).flatten(0, 1)
    by_unit, order = index.clamp_min(0).flatten().to(torch.int32).sort(stable=True)
    starts = torch.searchsorted(by_unit, torch.arange(n_columns // rank, dtype=torch.int32, device=x.device))
    row = torch.div(order, slots, rounding_mode="floor") if ragged is None else ragged.of[order]
    gradient = x.new_empty(n_columns // rank, rank, x.shape[1])
    for j, weight in enumerate(weights.index_select(0, order).T.contiguous()):
        gradient[:, j] = embedding_bag(row, x, starts, per_sample_weights=weight, mode="sum")
    sums = embedding_bag(order, weights, starts, mode="sum").flatten() if with_sums else None
    return gradient.flatten(0, 1), sums


def _columns(index: Tensor, rank: int) -> "Int[Tensor, 'B sr']":
    """Columns of each row; an empty slot is columns 0 .. r-1. In 32 bits, which are read in half the time."""
    first = index.clamp_min(0).to(torch.int32)[..., None] * rank
    return (first + torch.arange(rank, dtype=torch.int32, device=index.device)).flatten(1)


def _full(index: Tensor) -> bool:
    """Whether every slot is known to hold a unit; a GPU is not asked."""
    return index.device.type == "cpu" and not bool((index < 0).any())
