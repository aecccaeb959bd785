"""Which units are dead: firing counts over a sliding window of rows.

The window is ten full buckets and the one being filled, so it slides by tenths and never holds less than `window` rows
once that many have been seen. A unit is dead when at most `threshold` of them made it fire; nothing is dead before.
Nothing here waits for the device: counts stay there, row numbers are Python's.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sasa_theory.models.codes import Codes
from synthetic.errors import UsageError

BUCKETS = 10 + 1


class FiringTracker:
    """Counts of firing per unit over the last `window` rows; sums over processes when torch.distributed runs."""

    def __init__(self, n_units: int, window: int, threshold: float, device: "torch.device | str" = "cpu") -> None:
        self.window, self.threshold = window, threshold
        self._counts = torch.zeros(BUCKETS, n_units, dtype=torch.int64, device=device)
        self._rows = [0] * BUCKETS
        self._now = 0

    @torch.no_grad()
    def update(self, codes: Codes) -> None:
        """Add one batch."""
        counts, rows = codes.counts(), codes.batch
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            rows *= torch.distributed.get_world_size()
        if self._rows[self._now] * (BUCKETS - 1) >= self.window:
            self._now = (self._now + 1) % BUCKETS
            self._counts[self._now] = 0
            self._rows[self._now] = 0
        self._counts[self._now] += counts
        self._rows[self._now] += rows

    @property
    def rows(self) -> int:
        """Rows in the window so far."""
        return sum(self._rows)

    def counts(self) -> "Int[Tensor, ' K']":
        """Firings per unit in the window."""
        return self._counts.sum(dim=0)

    def dead(self) -> "Bool[Tensor, ' K'] | None":
        """Units whose firing frequency is at or below the threshold; None before one window has passed."""
        if self.rows < self.window:
            return None
        return self.counts() <= self.threshold * self.rows

    def state_dict(self) -> "dict[str, Tensor]":
        """Everything needed to continue."""
        return {"counts": self._counts, "rows": torch.tensor(self._rows), "now": torch.tensor(self._now)}

    def load_state_dict(self, state: "dict[str, Tensor]") -> None:
        """Continue from `state_dict`; raises UsageError for another number of units."""
        if state["counts"].shape != self._counts.shape:
            raise UsageError(
                f"firing counts have shape {tuple(state['counts'].shape)}, not {tuple(self._counts.shape)}"
            )
        self._counts.copy_(state["counts"])
        self._rows = state["rows"].tolist()
        self._now = int(state["now"])
