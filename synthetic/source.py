"""Where rows come from: one protocol for planted worlds, activation stores and language models.

A `Dataset` is a thing with a width and a fingerprint that can be opened as streams; a `Source` is one open stream of
(batch, D) tensors that can say where it stands. Streams of different names ("train", "eval", ...) are disjoint.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from synthetic.errors import DataError, UsageError

#: What a source's state may hold: tensors, and values that JSON can hold.
State = dict[str, Any]


@runtime_checkable
class Source(Protocol):
    """An iterator of (batch, D) float tensors that can be stopped and resumed."""

    width: int

    def __iter__(self) -> "Iterator[Tensor]": ...
    def __next__(self) -> "Tensor": ...
    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...


@runtime_checkable
class Dataset(Protocol):
    """Something that opens as streams: `World`, `ActivationStore`."""

    width: int

    def batches(self, size: int, device: "torch.device | str" = "cpu", stream: str = "train") -> Source: ...

    def fingerprint(self) -> str:
        """A string that differs whenever the data differ (spec or manifest), for naming runs."""
        ...


class PlainSource:
    """A plain iterable of (batch, D) tensors as a Source; it cannot be resumed, and says so."""

    resumable = False

    def __init__(self, batches: "Iterable[Float[Tensor, 'batch D']]", width: int | None = None) -> None:
        self._iterator = iter(batches)
        self._head: Tensor | None = None
        if width is None:
            try:
                self._head = next(self._iterator)
            except StopIteration:
                raise UsageError("the iterator of batches is empty; it must yield (batch, D) tensors") from None
            width = int(self._head.shape[-1])
        self.width = width

    def __iter__(self) -> "Iterator[Tensor]":
        return self

    def __next__(self) -> "Float[Tensor, 'batch D']":
        if self._head is not None:
            batch, self._head = self._head, None
            return batch
        return next(self._iterator)

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        raise UsageError(
            "a plain iterator cannot be resumed; give a World, an ActivationStore, or an object with "
            "state_dict and load_state_dict"
        )


def as_source(source: "Source | Iterable[Tensor]") -> Source:
    """`source` itself when it is a Source, else a PlainSource around it."""
    return source if isinstance(source, Source) else PlainSource(source)


def require_rows(x: Tensor, width: int, where: str = "the batch") -> None:
    """Raise unless `x` is a finite float tensor of shape (batch, width).

    Raises UsageError for a wrong shape or dtype and DataError for NaN or Inf, naming the first bad row.
    """
    if x.ndim != 2 or x.shape[1] != width:
        raise UsageError(f"{where} has shape {tuple(x.shape)}; expected (batch, {width})")
    if not x.is_floating_point():
        raise UsageError(f"{where} has dtype {x.dtype}; expected a floating-point tensor")
    finite = torch.isfinite(x).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise DataError(f"{where} holds NaN or Inf (first at row {row}); remove or repair these rows")
