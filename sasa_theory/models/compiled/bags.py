"""The bags of models/bags.py as compiled loops, float32 on a CPU, and the gate of a threshold in int8 before float32.

For a step at D = 768, K = 12,288 and 60 columns on in a row of 4,096 they take a third of the time of torch's
embedding bags, whose gradients sort, gather and scatter in passes of their own.
"""

import threading

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from sasa_theory.models.bags import select
from sasa_theory.models.codes import Ragged
from sasa_theory.models.compiled import bag_loops as loops
from sasa_theory.models.compiled.gate import Gate, even
from sasa_theory.models.compiled.gradient_loops import by_unit
from sasa_theory.models.compiled.workspace import Workspace
from sasa_theory.threads import split

_held = threading.local()

__all__ = ["above", "bags", "outer", "project", "select"]


def bags(
    index: "Int[Tensor, 'B s']",
    values: "Float[Tensor, 'B s r']",
    rows: "Float[Tensor, 'Kr D']",
    ragged: Ragged | None = None,
) -> "Float[Tensor, 'B D']":
    """As models.bags.bags."""
    starts = _starts(index, ragged)
    out = rows.new_empty(len(starts) - 1, rows.shape[1])
    work = values.numel() * rows.shape[1]
    of = starts, _flat(index), _pairs(values), _numbers(rows), out.numpy()
    split(loops.add_up, len(out), *of, work=work, cuts=even(starts))
    return out


def project(
    index: "Int[Tensor, 'B s']",
    x: "Float[Tensor, 'B D']",
    rows: "Float[Tensor, 'Kr D']",
    rank: int,
    ragged: Ragged | None = None,
) -> "Float[Tensor, 'B s r']":
    """As models.bags.project."""
    out = x.new_empty(*index.shape, rank)
    starts = _starts(index, ragged)
    of = starts, _flat(index), _numbers(x), _numbers(rows), _pairs(out)
    split(loops.multiply, len(x), *of, work=out.numel() * x.shape[1], cuts=even(starts))
    return out


def outer(
    index: "Int[Tensor, 'B s']",
    values: "Float[Tensor, 'B s r']",
    x: "Float[Tensor, 'B D']",
    n_columns: int,
    with_sums: bool = False,
    ragged: Ragged | None = None,
) -> "tuple[Float[Tensor, 'Kr D'], Float[Tensor, ' Kr'] | None]":
    """As models.bags.outer."""
    _, slots, rank = values.shape
    units = n_columns // rank
    starts, pairs = by_unit(index.numpy(), units)
    of = np.arange(len(index)).repeat(slots) if ragged is None else ragged.of.numpy()
    gradient, sums = x.new_empty(n_columns, x.shape[1]), x.new_empty(n_columns)
    split(
        loops.add_by_unit, units, starts, pairs, of, _pairs(values), _numbers(x), gradient.numpy(), sums.numpy(),
        work=values.numel() * x.shape[1], cuts=even(starts),
    )  # fmt: skip
    return gradient, sums if with_sums else None


def above(
    x: "Float[Tensor, 'B D']",
    w_enc: "Float[Tensor, 'D Kr']",
    b_enc: "Float[Tensor, ' Kr']",
    rank: int,
    level: "Float[Tensor, ' K']",
    by_norm: bool,
    fullest: int,
    room: int,
) -> "tuple[Int[Tensor, ' P'], Int[Tensor, ' P'], Float[Tensor, 'P r']] | None":
    """Row, unit and coefficients of what exceeds its level, as models.gate_above.gate_above lists them.

    `fullest` is how many there are in the fullest row of a sample; None where a row has more than `room`.
    """
    gate, slots = Gate(_space(), "above", rank, False), fullest + fullest // 2 + 8
    found = gate.above(_numbers(x), _numbers(w_enc.T), _numbers(b_enc), _numbers(level), by_norm, slots, room)
    if found is None:
        return None
    rows, units, values = (torch.from_numpy(part) for part in found)
    return rows, units, values


def _space() -> Workspace:
    """This thread's buffers, as fresh ones cost page faults at every step. What `above` gives is copied out of them."""
    if not hasattr(_held, "space"):
        _held.space = Workspace()
    space: Workspace = _held.space
    return space


def _starts(index: Tensor, ragged: Ragged | None) -> ndarray:
    """The first pair of each row, and the number of pairs."""
    if ragged is not None:
        return ragged.starts.numpy()
    batch, slots = index.shape
    return np.arange(batch + 1) * slots


def _flat(index: Tensor) -> ndarray:
    return index.contiguous().numpy().ravel()


def _pairs(values: "Float[Tensor, 'B s r']") -> ndarray:
    """(pairs, r), in the same memory where it is contiguous."""
    return _numbers(values).reshape(-1, values.shape[2])


def _numbers(x: Tensor) -> ndarray:
    return x.detach().contiguous().numpy()
