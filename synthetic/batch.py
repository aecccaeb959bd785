"""A batch of planted rows with its truth: x = bias + sum over active features of V_i z_i + noise."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor


class FrameTable:
    """The frames of all features as one table of rows, and the sums of its rows that make up contributions.

    rows     (T, D) float32, the orthonormal rows V_i^T of every feature, stacked; T = sum d_i.
    starts   (n,) where each feature's rows begin.
    dims     (n,) d_i.
    """

    def __init__(self, rows: "Float[Tensor, 'T D']", dims: "Int[Tensor, ' n']") -> None:
        self.rows, self.dims = rows, dims
        self.starts = dims.cumsum(0) - dims
        self.layout = dims.numpy(force=True), self.starts.numpy(force=True)

    def __len__(self) -> int:
        return len(self.dims)

    def to(self, device: "torch.device | str") -> "FrameTable":
        return FrameTable(self.rows.to(device), self.dims.to(device))

    def each(self) -> "list[Float[Tensor, 'd D']]":
        """V_i^T of every feature."""
        return list(self.rows.split(self.dims.tolist()))

    def combine(self, index: "Int[Tensor, 'B S']", coords: "Float[Tensor, 'B S d']") -> "Float[Tensor, 'B D']":
        """sum_S V_index coords per row, touching only the table rows that are used (index -1: nothing)."""
        dims = torch.where(index >= 0, self.dims[index], 0)  # -1 reads the last feature, and is then dropped
        step = torch.arange(coords.shape[2], device=index.device)
        used = step < dims[:, :, None]
        table_row = (self.starts[index][:, :, None] + step)[used]
        per_row = dims.sum(dim=1)
        return self.add_up(table_row, coords[used], per_row.cumsum(0) - per_row)

    def add_up(
        self, table_row: "Int[Tensor, ' m']", weight: "Float[Tensor, ' m']", offsets: "Int[Tensor, ' B']"
    ) -> "Float[Tensor, 'B D']":
        """Weighted sums of table rows; those of output b begin at offsets_b."""
        return torch.nn.functional.embedding_bag(
            table_row, self.rows, offsets=offsets, mode="sum", per_sample_weights=weight
        )


@dataclass(frozen=True)
class Activations:
    """What is active in `n` rows, sorted by row and then by feature, with coordinates and (if asked for) parameters."""

    row: "Int[ndarray, ' m']"
    feature: "Int[ndarray, ' m']"
    coords: "Float[ndarray, 'm d']"
    theta: "Float[ndarray, 'm p']"
    n: int

    def terms(self, table: FrameTable) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of `FrameTable.add_up`: one term per coordinate."""
        from synthetic import loops

        table_row, weight, offsets = loops.terms(self.row, self.feature, self.coords, *table.layout, self.n)
        return torch.from_numpy(table_row), torch.from_numpy(weight), torch.from_numpy(offsets)

    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Index, coordinates and parameters by row, padded to the fullest row."""
        from synthetic import loops

        index, coords, theta = loops.padded(self.row, self.feature, self.coords, self.theta, self.n)
        return torch.from_numpy(index), torch.from_numpy(coords), torch.from_numpy(theta)


@dataclass(frozen=True)
class Batch:
    """Rows of a world with everything that made them.

    x        (B, D) = bias + sum over slots of V_index coords + noise.
    index    (B, S) the active features of each row in ascending order, -1 in empty slots.
    coords   (B, S, d_max) coordinates in the feature's frame after magnitude and scale, zero past d_i.
    theta    (B, S, p_max) intrinsic parameters, zero past the feature's own number of them.
    noise    (B, D), or None in a world without noise.
    frames   the frames of all features.
    """

    x: "Float[Tensor, 'B D']"
    index: "Int[Tensor, 'B S']"
    coords: "Float[Tensor, 'B S d']"
    theta: "Float[Tensor, 'B S p'] | None" = None
    noise: "Float[Tensor, 'B D'] | None" = None
    frames: FrameTable = field(kw_only=True, repr=False)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def active(self) -> "Bool[Tensor, 'B n']":
        """Whether each feature is active in each row."""
        n = len(self.frames)
        out = torch.zeros(len(self.index), n + 1, dtype=torch.bool, device=self.index.device)
        return out.scatter_(1, self.index % (n + 1), True)[:, :n]

    def contributions(self) -> "Float[Tensor, 'B S D']":
        """V_i z_i of every slot, zero for empty ones."""
        rows, slots = self.index.shape
        flat = self.frames.combine(self.index.reshape(-1, 1), self.coords.reshape(rows * slots, 1, -1))
        return flat.reshape(rows, slots, -1)

    def to(self, device: "torch.device | str") -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: value if value is None else value.to(device) for name, value in vars(self).items()
        }
        return Batch(**moved)
