"""Interventions on hidden states through some units of a dictionary: remove what they hold, put in what another holds.

What a set S of units holds of a state h is a vector v_S(h) in raw units, of one of two kinds:

    contribution   decode(codes) - decode(codes without S): what the units write, nothing where they are off
    subspace       Q Q^T (h - b), Q an orthonormal basis of the units' decoder rows, b the reconstruction of no code

Every intervention is made of it, and leaves the rest of the state, the dictionary's error included, as it is:

    remove         h - v(h)
    replace        h - v(h) + v(h')     h' the state of another word: along a ring, or into a neutral word's state
    random         h - ||v(h)|| u       u uniform on the sphere: a control of the same size
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory.models.base import SparseModel
from sasa_theory.models.codes import Codes
from sasa_theory.models.normaliser import NormalisedModel
from synthetic.errors import UsageError

Kind = Literal["contribution", "subspace"]
KINDS: tuple[Kind, ...] = ("contribution", "subspace")


@dataclass(frozen=True)
class Part:
    """What the units `units` of `model` hold of a state, as their contribution or in their subspace.

    Raises UsageError for units that do not exist, none, one named twice, or an unknown kind.
    """

    model: "SparseModel | NormalisedModel"
    units: tuple[int, ...]
    kind: Kind

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        count = self.model.n_units
        if not self.units or len(set(self.units)) < len(self.units) or not all(0 <= u < count for u in self.units):
            raise UsageError(f"units are {self.units}; expected different numbers from 0 to {count - 1}")

    @torch.no_grad()
    def of(self, x: "Float[Tensor, 'n D']") -> "Float[Tensor, 'n D']":
        """v(h) of every row of `x` (raw units)."""
        codes = self.model.encode(x)
        if self.kind == "contribution":
            return _decode(self.model, codes, x) - _decode(self.model, without(codes, self.units), x)
        silent = Codes(codes.index, torch.zeros_like(codes.values), codes.n_units)
        basis = self.basis().to(x)
        return (x - _decode(self.model, silent, x)) @ basis @ basis.T

    @torch.no_grad()
    def basis(self) -> "Float[Tensor, 'D m']":
        """Orthonormal basis of the units' decoder rows, m at most their number of columns (none for zero rows)."""
        rows = self.model.blocks()[1][list(self.units)].flatten(0, 1).double()
        _, size, directions = torch.linalg.svd(rows, full_matrices=False)
        return directions[size > 1e-6 * size.max()].T if float(size.max()) > 0 else directions[:0].T

    def remove(self, x: "Float[Tensor, 'n D']") -> "Float[Tensor, 'n D']":
        """The states without what the units hold of them."""
        return x - self.of(x)

    def replace(self, x: "Float[Tensor, 'n D']", source: "Float[Tensor, 'n D']") -> "Float[Tensor, 'n D']":
        """The states with what the units hold of `source` in place of what they hold of `x`."""
        return x - self.of(x) + self.of(source)


def random_like(part: "Float[Tensor, 'n D']", generator: torch.Generator) -> "Float[Tensor, 'n D']":
    """For each row a vector of the same norm and uniformly random direction."""
    noise = torch.randn(part.shape, generator=generator).to(part)
    sizes = torch.linalg.vector_norm(part, dim=-1, keepdim=True)
    return noise * (sizes / torch.linalg.vector_norm(noise, dim=-1, keepdim=True))


def without(codes: Codes, units: Sequence[int]) -> Codes:
    """The codes with these units switched off."""
    named = torch.tensor(list(units), device=codes.values.device)
    if codes.index is None:
        off = torch.isin(torch.arange(codes.n_units, device=named.device), named)[None]
    else:
        off = torch.isin(codes.index, named)
    return Codes(codes.index, codes.values.masked_fill(off[..., None], 0.0), codes.n_units)


@torch.no_grad()
def rivals(model: "SparseModel | NormalisedModel", x: "Float[Tensor, 'n D']", units: Sequence[int]) -> list[int | None]:
    """For each state another unit that is on there, whose code's norm is nearest to that of `units` together.

    None where nothing else is on.
    """
    codes = model.encode(x)
    row, unit, values = codes.pairs()
    size = torch.linalg.vector_norm(values, dim=-1)
    own = torch.isin(unit, torch.tensor(list(units), device=unit.device))
    found: list[int | None] = []
    for i in range(len(x)):
        here = row == i
        target = torch.linalg.vector_norm(size[here & own])
        others = here & ~own
        found.append(int(unit[others][(size[others] - target).abs().argmin()]) if bool(others.any()) else None)
    return found


def _decode(model: "SparseModel | NormalisedModel", codes: Codes, x: Tensor) -> Tensor:
    return model.decode(codes, x) if isinstance(model, NormalisedModel) else model.decode(codes)
