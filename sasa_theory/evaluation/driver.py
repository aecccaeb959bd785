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
from sasa_theory.evaluation.detection import Detection
from sasa_theory.evaluation.factors import FactorRecovery
from sasa_theory.evaluation.planted import FeatureEnergy, OwnerCount, OwnerCountResult
from sasa_theory.evaluation.reconstruction import Cosine, DeadShare, ExplainedVariance, Sparsity, Units
from sasa_theory.evaluation.subspaces import Subspaces, UnitRanks, decoder_cosine
from sasa_theory.models.codes import Codes
from synthetic.errors import DataError, UsageError
from synthetic.source import Dataset, Source, require_rows

if TYPE_CHECKING:
    from sasa_theory.models.base import SparseModel
    from sasa_theory.models.normaliser import NormalisedModel
    from synthetic.world import Batch, World

    Model: TypeAlias = SparseModel | NormalisedModel
    Rows: TypeAlias = World | Dataset | Source | Iterable[Tensor]


#: largest number of (feature, unit, column, column) cells that the standard calculators fill
MOST_PAIRS = 1 << 25


def standard_calculators(model: "Model", world: "World | None" = None) -> list[Calculator]:
    """Explained variance, cosine, L0, dead units and ranks; with a `world`, what its features became too.

    That is energy per feature and subspaces, per-block recovery where features have several dimensions, detection
    where all have one. In a world of very many features only detection is left: the others hold numbers for every pair
    of a feature and a unit. Owners are counted on points of one feature at a time, which a stream need not hold: see
    `count_owners`.
    """
    encoder, decoder = model.blocks()
    calculators: list[Calculator] = [
        ExplainedVariance(_normalised_units(model)),
        Cosine(),
        Sparsity(),
        DeadShare(),
        UnitRanks(encoder, decoder),
    ]
    if world is None:
        return calculators
    frames = world.frames()
    if not _very_many(model, world):
        calculators += [FeatureEnergy(frames, decoder, bias=world.bias), Subspaces(frames, decoder)]
    several = max(world.dims) > 1
    return [*calculators, FactorRecovery(frames, decoder) if several else Detection(frames, decoder)]


def _very_many(model: "Model", world: "World") -> bool:
    """Whether numbers for every (feature, unit, column, column) would fill gigabytes."""
    return len(world.dims) * model.n_units * model.rank**2 > MOST_PAIRS


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
    the standard ones are used and, where there is planted truth, owners are counted; `world` gives that truth and
    defaults to `source` when that is a World. Raises as `run`.
    """
    if world is None and hasattr(source, "frames"):
        world = cast("World", source)
    owners = None
    if calculators is None:
        calculators = standard_calculators(model, world)
        if world is not None and not _very_many(model, world):
            owners = count_owners(model, world, min(5000, max(1000, n_rows // len(world.dims))), batch_size=batch_size)
    rows = feed(model, source, n_rows, calculators, batch_size=batch_size)
    metrics = {calculator.name: describe(calculator.compute()) for calculator in calculators}
    if owners is not None:
        metrics[OwnerCount.name] = describe(owners)
    metrics["decoder"] = describe(decoder_cosine(model.blocks()[1]))
    return {"rows": rows, "metrics": metrics}


@torch.no_grad()
def count_owners(
    model: "Model",
    world: "World",
    per_feature: int = 5000,
    floor: float = 0.005,
    *,
    seed: int = 0,
    batch_size: int = 2048,
) -> OwnerCountResult:
    """Units strongest somewhere on each manifold (E1), over `per_feature` noise-free points of each feature alone.

    The points are `world.points(i, per_feature, seed)`, which include the world's bias as the rows in training did.
    """
    calculator = OwnerCount(model.blocks()[1], len(world.dims), floor)
    device = next(model.parameters()).device
    for feature in range(len(world.dims)):
        points = world.points(feature, per_feature, seed)
        for start in range(0, per_feature, batch_size):
            truth = _part(points, slice(start, start + batch_size))
            x = truth.x.to(device)
            calculator.update(x, x, model.encode(x), truth)
    return calculator.compute()


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
            # together: behind a layer norm, decoding needs the input
            xhat, codes = model.reconstruct(x)
            for calculator in calculators:
                calculator.update(x, xhat, codes, truth)
            seen += len(x)
    finally:
        model.train(was_training)
    if seen == 0:
        raise DataError("the source ended before its first row; nothing was evaluated")
    return seen


def _normalised_units(model: "Model") -> Units | None:
    """How a normalised model saw a batch in training: the normalised rows and the inner model's reconstruction."""
    normaliser = getattr(model, "normaliser", None)
    if normaliser is None:
        return None
    inner = cast("NormalisedModel", model).model

    def units(x: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
        return normaliser.apply(x), inner.decode(codes)

    return units


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
    return x[:n], None if truth is None else _part(truth, slice(n))


def _part(truth: "Batch", rows: slice) -> "Batch":
    """The truth of some rows of a batch."""
    per_row = {name: getattr(truth, name) for name in ("x", "index", "coords", "theta", "noise")}
    return dataclasses.replace(truth, **{name: value[rows] for name, value in per_row.items() if value is not None})
