"""Absorption in planted hierarchies, by definition: which units carry a parent once one of its children is on?

Feature p adds h_p to a row and unit k adds c_k to the reconstruction. Unit k then carries the share

    a_k = <c_k, h_p> / ||h_p||^2

of the parent's energy. Shares add up over units, to 1 where the reconstruction holds all of h_p, and what cancels
between units counts for nothing. The *main units* of a feature are the fewest that carry 90 % of what is carried on
rows on which it is on without any of its children. A (row, parent) pair with a child on is

    kept       main units of the parent carry at least half of it,
    absorbed   they do not, and all other units together do,
    lost       neither: the reconstruction has dropped the parent.

A dictionary with a unit for each feature keeps every parent. One whose unit for a child points along child + parent,
so that the parent's own unit can stay silent, absorbs it. No probe, label or threshold on activations plays a part.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sasa_theory.evaluation.base import higher, lower, neither, require_some, require_truth
from sasa_theory.evaluation.planted import fewest
from sasa_theory.models.codes import Codes
from synthetic.errors import UsageError

if TYPE_CHECKING:
    from synthetic.world import Batch

#: at most this many numbers in the tensor of contributions of all active features to all active pairs
CHUNK = 1 << 24


@dataclass(frozen=True)
class AbsorptionResult:
    absorbed: np.ndarray = field(
        metadata=lower("share", "per feature: rows with a child on, on which other units carry half of it, its own not")
    )
    kept: np.ndarray = field(metadata=higher("share", "per feature: of these rows, its main units carry half of it"))
    lost: np.ndarray = field(metadata=lower("share", "per feature: of these rows, no units together carry half of it"))
    by_children: np.ndarray = field(
        metadata=neither("share", "per feature: of absorbed rows, a child's main units alone carry half of it")
    )
    units: np.ndarray = field(metadata=lower("units", "per feature: main units, on rows without its children"))
    units_with_child: np.ndarray = field(
        metadata=lower("units", "per feature: fewest units carrying 90 % on rows with a child on")
    )
    shared: np.ndarray = field(
        metadata=lower("feature", "per feature: whether a main unit of it is one of a child of it too")
    )
    alone: np.ndarray = field(metadata=higher("share", "per feature: share of it carried on rows without its children"))
    counted: np.ndarray = field(
        metadata=higher("feature", "per feature: whether at least half of it is carried there, and it has children")
    )
    rows_with_child: np.ndarray = field(metadata=neither("rows", "per feature: rows on which a child was on too"))
    absorbed_share: float | None = field(metadata=lower("share", "absorbed, over all pairs of counted parents"))
    lost_share: float | None = field(metadata=lower("share", "lost, over all pairs of counted parents"))
    mean_units: float | None = field(metadata=lower("units", "mean of units over counted parents"))
    mean_units_with_child: float | None = field(
        metadata=lower("units", "mean of units_with_child over counted parents")
    )
    shared_share: float | None = field(metadata=lower("share", "mean of shared over counted parents"))
    parents_counted: int = field(metadata=higher("features", "parents of which half is carried without their children"))
    main: np.ndarray = field(metadata=neither("unit", "(n, K) whether a unit is a main one", report=False))


@dataclass(frozen=True)
class _Carried:
    """Shares carried on one batch's pairs with a child on: entry e is of slot[e] of row[e], by unit[e]."""

    index: "Int[Tensor, 'B S']"
    row: "Int[Tensor, ' e']"
    slot: "Int[Tensor, ' e']"
    unit: "Int[Tensor, ' e']"
    share: "Float[Tensor, ' e']"
    pairs: "Bool[Tensor, 'B S']"


class Absorption:
    """Absorption, splitting and sharing of units in a hierarchy (module docstring).

    decoder  (K, r, D) blocks in raw units.      parent   (n,) index of each feature's parent, -1 for roots.
    share    what main units carry together;      half    what absorbs, keeps and counts.

    Holds a number for each (row, parent with a child on, unit on), because main units are known only at the end.
    Raises UsageError when no feature has a parent, or `parent` names features that do not exist.
    """

    name: ClassVar[str] = "planted_absorption"
    needs_truth: ClassVar[bool] = True

    def __init__(
        self, decoder: "Float[Tensor, 'K r D']", parent: "Int[Tensor, ' n']", share: float = 0.9, half: float = 0.5
    ) -> None:
        self.decoder, self.parent = decoder.detach(), torch.as_tensor(parent).long().cpu()
        features = len(self.parent)
        if bool((self.parent < 0).all()):
            raise UsageError("no feature has a parent; absorption is of parents by children: give a world a hierarchy")
        if int(self.parent.max()) >= features or int(self.parent.min()) < -1:
            raise UsageError(f"parent holds indices outside -1 ... {features - 1}; expected features, -1 for roots")
        self.share, self.half = share, half
        self._alone = torch.zeros(features, len(decoder), dtype=torch.float64)
        self._with_child = torch.zeros_like(self._alone)
        self._energy = torch.zeros(features, dtype=torch.float64)
        self._batches: list[_Carried] = []
        self._seen = 0

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None:
        truth = require_truth(truth, self.name)
        planted = truth.contributions().cpu()
        energy = planted.double().square().sum(dim=2)
        # a magnitude can be cut to zero: such a feature is not on
        index = torch.where(energy > 0, truth.index.cpu(), -1)
        with_child = self._with_active_child(index)
        row, slot, unit, inner = self._inner(codes, planted.to(self.decoder), index)
        feature = index[row, slot]
        below = with_child[row, slot]
        for table, part in ((self._alone, ~below), (self._with_child, below)):
            cell = feature[part] * codes.n_units + unit[part]
            table.view(-1).index_add_(0, cell, inner[part])
        childless = (index >= 0) & ~with_child
        self._energy.index_add_(0, index[childless], energy[childless])
        share = (inner / energy[row, slot])[below].float()
        self._batches.append(_Carried(index, row[below], slot[below], unit[below], share, with_child))
        self._seen += len(x)

    def _with_active_child(self, index: "Int[Tensor, 'B S']") -> "Bool[Tensor, 'B S']":
        """Whether a child of each slot's feature is on in the same row."""
        above = torch.where(index >= 0, self.parent[index], -1)
        return ((above[:, None, :] == index[:, :, None]) & (index >= 0)[:, :, None]).any(dim=2)

    def _inner(
        self, codes: Codes, planted: "Float[Tensor, 'B S D']", index: "Int[Tensor, 'B S']"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(row, slot, unit, <c_unit, h_slot>) of every unit and feature that are on together, on the CPU."""
        row, unit, values = codes.detach().pairs()
        rows, slots, units, products = [], [], [], []
        step = max(1, CHUNK // (index.shape[1] * self.decoder.shape[2]))
        for r, u, v in zip(row.split(step), unit.split(step), values.split(step), strict=True):
            added = torch.einsum("pr,prd->pd", v.to(self.decoder), self.decoder[u])
            product = torch.einsum("pd,psd->ps", added, planted[r]).cpu()
            pair, slot = (index[r.cpu()] >= 0).nonzero(as_tuple=True)
            rows.append(r.cpu()[pair])
            slots.append(slot)
            units.append(u.cpu()[pair])
            products.append(product[pair, slot].double())
        return torch.cat(rows), torch.cat(slots), torch.cat(units), torch.cat(products)

    def compute(self) -> AbsorptionResult:
        require_some(self._seen, self.name)
        main = main_units(self._alone, self.share)
        features = len(self.parent)
        kept, absorbed, by_children, pairs = (torch.zeros(features, dtype=torch.float64) for _ in range(4))
        for batch in self._batches:
            mine, others, theirs = self._carried_by(batch, main)
            keeps = mine >= self.half
            absorbs = ~keeps & (others >= self.half)
            told = (batch.pairs, keeps & batch.pairs, absorbs & batch.pairs, absorbs & (theirs >= self.half))
            for total, chosen in zip((pairs, kept, absorbed, by_children), told, strict=True):
                total += torch.bincount(batch.index[chosen], minlength=features)
        has = pairs > 0
        carried = self._alone.sum(dim=1)
        alone = torch.where(self._energy > 0, carried / self._energy.clamp_min(1e-300), torch.nan)
        counted = has & (alone >= self.half)
        units = main.sum(dim=1)
        units_with_child = fewest(self._with_child.clamp_min(0), self.share)
        shared = torch.zeros(features, dtype=torch.bool)
        children = (self.parent >= 0).nonzero()[:, 0]
        together = (main[children] & main[self.parent[children]]).any(dim=1)
        shared[self.parent[children[together]]] = True

        def rate(count: Tensor) -> np.ndarray:
            return torch.where(has, count / pairs.clamp_min(1), torch.nan).numpy()

        def pooled(count: Tensor) -> float | None:
            return float(count[counted].sum() / pairs[counted].sum()) if bool(counted.any()) else None

        def mean(value: Tensor) -> float | None:
            return float(value[counted].double().mean()) if bool(counted.any()) else None

        lost = pairs - kept - absorbed
        return AbsorptionResult(
            absorbed=rate(absorbed),
            kept=rate(kept),
            lost=rate(lost),
            by_children=torch.where(absorbed > 0, by_children / absorbed.clamp_min(1), torch.nan).numpy(),
            units=units.numpy(),
            units_with_child=units_with_child.numpy(),
            shared=shared.numpy(),
            alone=alone.numpy(),
            counted=counted.numpy(),
            rows_with_child=pairs.long().numpy(),
            absorbed_share=pooled(absorbed),
            lost_share=pooled(lost),
            mean_units=mean(units),
            mean_units_with_child=mean(units_with_child),
            shared_share=mean(shared),
            parents_counted=int(counted.sum()),
            main=main.numpy(),
        )

    def _carried_by(self, batch: _Carried, main: "Bool[Tensor, 'n K']") -> tuple[Tensor, Tensor, Tensor]:
        """Per (row, slot): what the feature's main units carry, all others, and of those the main ones of a child."""
        feature = batch.index[batch.row, batch.slot]
        own = main[feature, batch.unit]
        together = batch.index[batch.row]
        child = (together >= 0) & (torch.where(together >= 0, self.parent[together], -1) == feature[:, None])
        of_child = (child & main[together.clamp_min(0), batch.unit[:, None]]).any(dim=1)
        out = []
        for chosen in (own, ~own, ~own & of_child):
            sums = torch.zeros(batch.index.shape, dtype=torch.float64)
            where = (batch.row[chosen], batch.slot[chosen])
            out.append(sums.index_put_(where, batch.share[chosen].double(), accumulate=True))
        return out[0], out[1], out[2]


def main_units(carried: "Float[Tensor, 'n K']", share: float = 0.9) -> "Bool[Tensor, 'n K']":
    """The fewest units of each row that carry `share` of its positive part; none where nothing is carried."""
    positive = carried.clamp_min(0)
    order = positive.argsort(dim=1, descending=True, stable=True)
    needed = fewest(positive, share)
    chosen = torch.arange(carried.shape[1]) < needed[:, None]
    return torch.zeros_like(chosen).scatter_(1, order, chosen)
