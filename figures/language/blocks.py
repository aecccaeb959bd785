"""Held-out error in blocks of rows: dictionaries are compared on the same blocks, drawn again for an interval."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from figures.language.study import Study
from sasa_theory.evaluation.reconstruction import squared_distance
from sasa_theory.models.codes import Codes
from sasa_theory.resampling import bootstrap

#: held-out rows in a block
BLOCK = 512


class BlockErrors:
    """Calculator: squared error of every block of rows (batches of BLOCK are asked for)."""

    name: ClassVar[str] = "block_errors"
    needs_truth: ClassVar[bool] = False

    def __init__(self) -> None:
        self.errors: list[float] = []

    def update(self, x: Tensor, xhat: Tensor, codes: Codes, truth: Any = None) -> None:
        self.errors.append(squared_distance(x, xhat))

    def compute(self) -> list[float]:
        return self.errors


def whole_blocks(study: Study) -> int:
    """Held-out rows to measure on: the configuration's in whole blocks, two at least (one has no interval)."""
    return max(2, study.configuration.evaluation_tokens // BLOCK) * BLOCK


def explained_more(
    ours: "Float[np.ndarray, ' n']", theirs: "Float[np.ndarray, ' n']", variance: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Explained variance of ours less theirs from the errors on n blocks, with its 95 % interval over blocks.

    variance  E||x - mean||^2 of a row.
    """
    sums = np.stack([theirs - ours, np.full(len(ours), float(BLOCK))], axis=1)
    interval = bootstrap(sums, lambda total: total[:, 0] / total[:, 1] / variance, rng)
    return {"value": float(sums[:, 0].sum() / sums[:, 1].sum() / variance), "interval": interval}


def with_interval(got: dict[str, Any]) -> str:
    """+0.012 [+0.010, +0.014]."""
    low, high = got["interval"]
    return f"{got['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
