"""Units as detectors of planted directions, as SynthSAEBench defines it (arXiv:2602.14687; SAELens 6.54).

For units of one column the similarity is |cos(d_k, v_i)|. Each unit detects the feature it is most similar to:

    precision = TP / (TP + FP),  recall = TP / (TP + FN),  F1 their harmonic mean   ("on" against "the feature is on")

are taken per unit, 0 where undefined, and averaged over all units, dead ones included. MCC is the mean similarity of a
one-to-one matching (Hungarian) between all units and all features; uniqueness the share of distinct features detected.

For blocks (not in the paper) the similarity is ||P_k v_i||, P_k onto the block's decoder span: the cosine between the
feature and the nearest direction of the block, and a block is on as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sasa_theory.evaluation.base import higher, neither, require_some, require_truth
from sasa_theory.models.codes import Codes
from synthetic.errors import UsageError

if TYPE_CHECKING:
    from synthetic.world import Batch

#: (active unit, active feature) pairs compared at a time
CHUNK = 1 << 22


@dataclass(frozen=True)
class DetectionResult:
    f1: float = field(metadata=higher("share", "mean over units: F1 of firing for its most similar feature being on"))
    precision: float = field(metadata=higher("share", "mean over units: share of firings with that feature on"))
    recall: float = field(metadata=higher("share", "mean over units: share of that feature's rows on which it fires"))
    accuracy: float = field(metadata=higher("share", "mean over units: share of rows on which both agree"))
    mcc: float = field(metadata=higher("cosine", "mean similarity of units and features matched one to one"))
    uniqueness: float = field(metadata=higher("share", "distinct features detected over units"))
    rows: int = field(metadata=neither("rows", "rows behind precision, recall, F1 and accuracy"))


class Detection:
    """Precision, recall, F1, accuracy, MCC and uniqueness against planted directions.

    directions  (n, D) unit rows, one per feature;  decoder  (K, r, D) blocks in raw units.
    Raises UsageError when the features are not one-dimensional or the widths differ.
    """

    name: ClassVar[str] = "detection"
    needs_truth: ClassVar[bool] = True

    def __init__(self, frames: "Sequence[Float[Tensor, 'd D']]", decoder: "Float[Tensor, 'K r D']") -> None:
        if any(len(frame) != 1 for frame in frames):
            raise UsageError("detection is of single directions; this world has features of more dimensions")
        self.directions = torch.cat([frame.detach() for frame in frames]).to(decoder)
        if self.directions.shape[1] != decoder.shape[2]:
            raise UsageError(
                f"the world has width {self.directions.shape[1]}, the model {decoder.shape[2]}; they must be equal"
            )
        self.decoder = decoder.detach()
        self.feature = similarity(self.decoder, self.directions).argmax(dim=1)
        units, device = len(decoder), decoder.device
        self._hits, self._fires = (torch.zeros(units, dtype=torch.int64, device=device) for _ in range(2))
        self._active = torch.zeros(len(self.directions), dtype=torch.int64, device=device)
        self._rows = 0

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None:
        truth = require_truth(truth, self.name)
        # a magnitude can be cut to zero: such a feature is not on
        index = torch.where((truth.coords != 0).any(dim=2), truth.index, -1).to(self._active.device)
        self._active += torch.bincount(index[index >= 0], minlength=len(self._active))
        row, unit, _ = codes.detach().pairs()
        self._fires += torch.bincount(unit, minlength=len(self._fires))
        step = max(1, CHUNK // max(1, index.shape[1]))
        for r, u in zip(row.split(step), unit.split(step), strict=True):
            hit = (index[r] == self.feature[u][:, None]).any(dim=1)
            self._hits += torch.bincount(u[hit], minlength=len(self._hits))
        self._rows += len(x)

    def compute(self) -> DetectionResult:
        require_some(self._rows, self.name)
        hits, fires, active = self._hits.double(), self._fires.double(), self._active[self.feature].double()
        precision = hits / fires.clamp_min(1)
        recall = hits / active.clamp_min(1)
        f1 = 2 * hits / (fires + active).clamp_min(1)
        wrong = (fires - hits) + (active - hits)
        table = similarity(self.decoder, self.directions).cpu().numpy()
        matched = linear_sum_assignment(table, maximize=True)
        return DetectionResult(
            f1=float(f1.mean()),
            precision=float(precision.mean()),
            recall=float(recall.mean()),
            accuracy=float(1 - wrong.mean() / self._rows),
            mcc=float(table[matched].mean()),
            uniqueness=len(self.feature.unique()) / len(self.feature),
            rows=self._rows,
        )


def similarity(decoder: "Float[Tensor, 'K r D']", directions: "Float[Tensor, 'n D']") -> "Float[Tensor, 'K n']":
    """||P_k v_i||, P_k onto the span of block k: |cos| for blocks of one row; 0 for a block that is zero."""
    rows = decoder.double()
    energies, vectors = torch.linalg.eigh(rows @ rows.mT)
    kept = (energies > 1e-12 * energies[:, -1:]) & (energies > 0)
    scale = torch.where(kept, energies.clamp_min(1e-300).rsqrt(), 0.0)
    basis = (scale[:, :, None] * vectors.mT @ rows).to(directions)
    squares = directions.new_zeros(len(decoder), len(directions))
    for row in basis.unbind(dim=1):
        squares += (row @ directions.T).square_()
    return squares.sqrt_()
