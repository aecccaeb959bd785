"""Run a model over rows and collect every calculator's numbers.

    results = run(model, world, 50_000, standard_calculators(model, world))    # name -> frozen dataclass
    report = evaluate(model, world, 50_000)                                    # the same as plain JSON

The model takes raw units. A `World` (or its stream) brings the truth of each row with it; an `ActivationStore` or any
iterable of (batch, D) tensors does not. Datasets are opened on their "eval" stream, which training never saw.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from sasa_theory.evaluation.base import Calculator, describe
from sasa_theory.evaluation.planted import FeatureEnergy, OwnerCount
from sasa_theory.evaluation.reconstruction import Cosine, DeadShare, ExplainedVariance, Sparsity
from sasa_theory.evaluation.subspaces import Subspaces, UnitRanks, decoder_cosine
from synthetic.errors import DataError, UsageError
from synthetic.source import Dataset, Source, require_rows

if TYPE_CHECKING:
    from synthetic.world import Batch, World

    from sasa_theory.models.base import SparseModel
    from sasa_theory.models.normaliser import NormalisedModel

    Model: TypeAlias = SparseModel | NormalisedModel
    Rows: TypeAlias = World | Dataset | Source | Iterable[Tensor]


def standard_calculators(model: "Model", world: "World | None" = None) -> list[Calculator]:
    """Explained variance, cosine, L0, dead units and ranks; with a `world`, also everything about planted truth."""
    encoder, decoder = model.blocks()
    calculators: list[Calculator] = [
        ExplainedVariance(getattr(model, "normaliser", None)),
        Cosine(),
        Sparsity(),
        DeadShare(),
        UnitRanks(encoder, decoder),
    ]
    if world is not None:
        frames = world.frames()
        calculators += [
            FeatureEnergy(frames, decoder, bias=world.bias),
            Subspaces(frames, decoder),
            OwnerCount(decoder, len(frames)),
        ]
    return calculators


def run(
    model: "Model", source: "Rows", n_rows: int, calculators: Sequence[Calculator], *, batch_size: int = 2048
) -> dict[str, Any]:
    """Feed `n_rows` rows (exactly) to the calculators; returns their results by name.

    Raises UsageError for a wrong width or two calculators of one name, DataError for NaN or Inf and for a source that
    ends before the first row. A source that ends early is used up; results state the rows they saw.
    """
    feed(model, source, n_rows, calculators, batch_size=batch_size)
    return {calculator.name: calculator.compute() for calculator in calculators}


def evaluate(
    model: "Model",
    source: "Rows",
    n_rows: int,
    calculators: Sequence[Calculator] | None = None,
    *,
    world: "World | None" = None,
    batch_size: int = 2048,
) -> dict[str, Any]:
    """The numbers of a model on `n_rows` rows as plain JSON, each with its direction, unit and meaning.

    {"rows": int, "metrics": {calculator: {number: {"value", "better", "unit", "meaning"}}}}. Without `calculators`
    the standard ones are used; `world` gives the planted truth and defaults to `source` when that is a World. Raises as
    `run`.
    """
    if world is None and hasattr(source, "frames"):
        world = cast("World", source)
    if calculators is None:
        calculators = standard_calculators(model, world)
    rows = feed(model, source, n_rows, calculators, batch_size=batch_size)
    metrics = {calculator.name: describe(calculator.compute()) for calculator in calculators}
    metrics["decoder"] = describe(decoder_cosine(model.blocks()[1]))
    return {"rows": rows, "metrics": metrics}


@torch.no_grad()
def feed(
    model: "Model", source: "Rows", n_rows: int, calculators: Sequence[Calculator], *, batch_size: int = 2048
) -> int:
    """Encode and decode `n_rows` rows, update every calculator, and return how many rows there were (see `run`)."""
    if n_rows < 1:
        raise UsageError(f"n_rows is {n_rows}; expected a positive number of rows to evaluate")
    names = [calculator.name for calculator in calculators]
    if len(set(names)) < len(names):
        raise UsageError(f"calculators must have different names; got {', '.join(sorted(names))}")
    device = next(model.parameters()).device
    following = _stream(source, min(batch_size, n_rows), device)
    was_training = model.training
    model.eval()
    seen = 0
    try:
        while seen < n_rows:
            try:
                x, truth = following()
            except StopIteration:
                break
            x, truth = _head(x, truth, n_rows - seen)
            require_rows(x, model.width_in, f"the batch starting at row {seen}")
            x = x.to(device)
            codes = model.encode(x)
            xhat = model.decode(codes)
            for calculator in calculators:
                calculator.update(x, xhat, codes, truth)
            seen += len(x)
    finally:
        model.train(was_training)
    if seen == 0:
        raise DataError("the source ended before its first row; nothing was evaluated")
    return seen


def _stream(source: "Rows", size: int, device: torch.device) -> "Callable[[], tuple[Tensor, Batch | None]]":
    """A function that returns the next rows and, where the source has it, their truth."""
    if isinstance(source, Dataset):
        source = source.batches(size, device, stream="eval")
    batch = getattr(source, "batch", None)
    if callable(batch):

        def with_truth() -> "tuple[Tensor, Batch | None]":
            truth = batch()
            return truth.x, truth

        return with_truth
    iterator = iter(source)
    return lambda: (next(iterator), None)


def _head(x: Tensor, truth: "Batch | None", n: int) -> "tuple[Tensor, Batch | None]":
    """The first `n` rows of a batch and of its truth."""
    if len(x) <= n:
        return x, truth
    if truth is None:
        return x[:n], None
    parts = {item.name: getattr(truth, item.name) for item in dataclasses.fields(truth) if item.init}
    rows = {name: part[:n] for name, part in parts.items() if isinstance(part, Tensor) and len(part) == len(x)}
    return x[:n], dataclasses.replace(truth, **rows)
