"""How well and how sparsely a model rebuilds its input: explained variance, cosine, L0, dead units.

    explained variance = 1 - sum_t ||x_t - xhat_t||^2 / sum_t ||x_t - mean||^2

One definition, streamed in float64. The total is kept by merging each batch's mean and centred sum of squares (Chan,
Golub & LeVeque 1983), which stays exact when the mean is large; raw second moments minus a squared mean do not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory.evaluation.base import higher, lower, neither, require_some
from sasa_theory.models.codes import Codes
from synthetic.errors import LabError, UsageError

if TYPE_CHECKING:
    from synthetic.world import Batch

#: (x, codes) -> (x, xhat), both in normalised units
Units = Callable[[Tensor, Codes], tuple[Tensor, Tensor]]


class CentredSquares:
    """Streaming mean and sum_t ||x_t - mean||^2 of rows, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.total = 0.0

    def update(self, x: "Float[Tensor, 'B D']") -> None:
        """Merge a batch: total += within-batch part + count n / (count + n) ||difference of means||^2."""
        rows = len(x)
        if rows == 0:
            return
        x = x.detach().double()
        mean = x.mean(dim=0)
        self.total += float((x - mean).square().sum())
        if self.mean is None:
            self.mean = mean
        else:
            shift = mean - self.mean
            self.total += float(shift.square().sum()) * self.count * rows / (self.count + rows)
            self.mean = self.mean + shift * (rows / (self.count + rows))
        self.count += rows


@dataclass(frozen=True)
class ExplainedVarianceResult:
    explained_variance: float = field(metadata=higher("share", "1 - sum||x-xhat||^2 / sum||x-mean||^2, in raw units"))
    explained_variance_normalised: float | None = field(
        metadata=higher("share", "the same in the model's normalised units; None when the model has no normaliser")
    )
    mean_squared_error: float = field(
        metadata=lower("raw units squared", "mean over rows of ||x-xhat||^2, summed over D")
    )
    variance: float = field(metadata=neither("raw units squared", "mean over rows of ||x-mean||^2, summed over D"))
    rows: int = field(metadata=neither("rows", "rows evaluated"))


class ExplainedVariance:
    """Explained variance in raw units and, given `units`, in the model's normalised units too.

    units   (x, codes) -> (x', xhat'): a batch and its reconstruction as the model saw them in training.
    Raises LabError when every row is the same: no variance can be explained.
    """

    name: ClassVar[str] = "explained_variance"
    needs_truth: ClassVar[bool] = False

    def __init__(self, units: Units | None = None) -> None:
        self.units = units
        self._squares, self._error = CentredSquares(), 0.0
        self._normalised_squares, self._normalised_error = CentredSquares(), 0.0

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None:
        require_same_shape(x, xhat)
        self._squares.update(x)
        self._error += squared_distance(x, xhat)
        if self.units is not None:
            normal, rebuilt = self.units(x, codes)
            self._normalised_squares.update(normal)
            self._normalised_error += squared_distance(normal, rebuilt)

    def compute(self) -> ExplainedVarianceResult:
        rows = self._squares.count
        require_some(rows, self.name)
        normalised = None
        if self.units is not None:
            normalised = explained(self._normalised_error, self._normalised_squares.total, rows)
        return ExplainedVarianceResult(
            explained_variance=explained(self._error, self._squares.total, rows),
            explained_variance_normalised=normalised,
            mean_squared_error=self._error / rows,
            variance=self._squares.total / rows,
            rows=rows,
        )


@dataclass(frozen=True)
class CosineResult:
    cosine: float = field(metadata=higher("cosine", "mean over rows of cos(x, xhat); 0 where either is zero"))
    rows: int = field(metadata=neither("rows", "rows evaluated"))


class Cosine:
    """Mean over rows of the cosine between input and reconstruction, raw units, no centring."""

    name: ClassVar[str] = "cosine"
    needs_truth: ClassVar[bool] = False

    def __init__(self) -> None:
        self._rows, self._sum = 0, 0.0

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None:
        require_same_shape(x, xhat)
        x, xhat = x.detach().double(), xhat.detach().double()
        norms = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(xhat, dim=1)
        inner = (x * xhat).sum(dim=1)
        self._sum += float(torch.where(norms > 0, inner / norms, torch.zeros_like(inner)).sum())
        self._rows += len(x)

    def compute(self) -> CosineResult:
        require_some(self._rows, self.name)
        return CosineResult(cosine=self._sum / self._rows, rows=self._rows)


@dataclass(frozen=True)
class SparsityResult:
    l0: float = field(metadata=lower("columns", "mean number of nonzero coefficients per row"))
    l0_units: float = field(metadata=lower("units", "mean number of active units (latents or groups) per row"))
    l0_max: int = field(metadata=lower("columns", "largest number of nonzero coefficients on one row"))
    rows: int = field(metadata=neither("rows", "rows evaluated"))


class Sparsity:
    """L0, in columns and in units (groups of r columns). Bounds of part A need the largest, not the mean."""

    name: ClassVar[str] = "l0"
    needs_truth: ClassVar[bool] = False

    def __init__(self) -> None:
        self._rows = self._columns = self._units = self._largest = 0

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None:
        if len(x) == 0:
            return
        columns = codes.l0()
        self._rows += len(x)
        self._columns += int(columns.sum())
        self._largest = max(self._largest, int(columns.max()))
        self._units += int(codes.l0_units().sum())

    def compute(self) -> SparsityResult:
        require_some(self._rows, self.name)
        return SparsityResult(
            l0=self._columns / self._rows, l0_units=self._units / self._rows, l0_max=self._largest, rows=self._rows
        )


@dataclass(frozen=True)
class DeadShareResult:
    dead_share: float = field(metadata=lower("share of units", "units that never fired on the evaluated rows"))
    units: int = field(metadata=neither("units", "units in the model"))
    rows: int = field(metadata=neither("rows", "rows evaluated; fewer rows leave more units silent by chance"))
    firing: Tensor = field(metadata=neither("share of rows", "firing frequency of each unit", report=False))


class DeadShare:
    """Share of units that never fire in the evaluation; the number of rows is part of the answer."""

    name: ClassVar[str] = "dead"
    needs_truth: ClassVar[bool] = False

    def __init__(self) -> None:
        self._rows = 0
        self._counts = torch.zeros(1, dtype=torch.int64)

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None:
        self._counts = self._counts + codes.counts().cpu()
        self._rows += len(x)

    def compute(self) -> DeadShareResult:
        require_some(self._rows, self.name)
        dead = int((self._counts == 0).sum())
        return DeadShareResult(
            dead_share=dead / len(self._counts),
            units=len(self._counts),
            rows=self._rows,
            firing=self._counts.double() / self._rows,
        )


def explained(error: float, total: float, rows: int) -> float:
    """1 - error / total; LabError when the total is zero."""
    if not total > 0:
        raise LabError(f"all {rows} evaluated rows are equal, so explained variance is undefined; evaluate more rows")
    return 1.0 - error / total


def squared_distance(x: Tensor, xhat: Tensor) -> float:
    """sum_t ||x_t - xhat_t||^2 in float64."""
    return float((x.detach().double() - xhat.detach().double()).square().sum())


def require_same_shape(x: Tensor, xhat: Tensor) -> None:
    """Raise UsageError unless the reconstruction has the input's shape."""
    if x.shape != xhat.shape:
        raise UsageError(f"the reconstruction has shape {tuple(xhat.shape)}, the input {tuple(x.shape)}; must be equal")
