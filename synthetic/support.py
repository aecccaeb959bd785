"""Who is active: which features each row of a batch contains, as sorted (row, feature) pairs.

Features without a parent ("roots") are drawn first:

    exact         s of them, every s-subset equally likely
    independent   root i with its own rate p_i (constant, Zipf or listed); with `cofiring` through a Gaussian copula
                  g = L f + sqrt(1 - ||L_i||^2) e, i on iff g_i < Phi^-1(p_i): rates stay exact, latents correlate as
                  L L^T, which has low rank; `exclusive` sets of roots fire at most one member at a time

and then, level by level, the children of active features: child c with probability q_c given its parent, or, where
siblings exclude each other, at most one of them, child c with probability q_c. All marginal rates are exact.

Work goes with the number of activations, not with rows times features (but for the scores of the copula).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from synthetic.errors import UsageError
from synthetic.rates import compensated, read_hierarchy, read_rates, winning_rates
from synthetic.spec import Fields

Pairs = tuple[Tensor, Tensor]
#: most (row, feature) cells whose rates are computed at a time
_CHUNK = 1 << 21
#: longest row of Gaussian loadings: at least a hundredth of a latent's variance is its own
_LONGEST = 0.99**0.5


@dataclass(frozen=True)
class Tables:
    """Children of every node, padded to the largest family: `child` (n, b) with -1 for none, and the ends of the
    interval of [0, 1) in which a uniform number turns each one on (all start at 0 unless siblings exclude)."""

    child: "Int[Tensor, 'n b']"
    low: "Float[Tensor, 'n b']"
    high: "Float[Tensor, 'n b']"
    exclusive: "Tensor"


class Support:
    """The law of the active set of `n` features.

    rates     (n,) float64, the exact probability that each feature is active.
    parent    (n,) int64, -1 for roots.
    level     (n,) int64, generations between a feature and its root; `depth` is the largest.
    """

    def __init__(self, value: object, n: int, generator: torch.Generator) -> None:
        fields = Fields(value, "support")
        self.n = n
        self.law = fields.choice("law", ("exact", "independent"))
        self._spec: dict[str, Any] = {"law": self.law}
        parent, child_rate, self.exclusive_children, hierarchy = read_hierarchy(fields.raw("hierarchy", None), n)
        self.parent = parent
        self.scale_children = bool(hierarchy and hierarchy["scale_children"])
        roots = (parent < 0).nonzero()[:, 0]
        self.active, self._loadings = 0, torch.zeros(0, 0)
        sets: list[list[int]] = []
        if self.law == "exact":
            self.active = fields.integer("active", low=1)
            if self.active > len(roots):
                raise UsageError(
                    f"support.active is {self.active}, but there are only {len(roots)} features to choose from; "
                    "lower it or add features"
                )
            self._spec["active"] = self.active
            own = torch.full((n,), self.active / len(roots), dtype=torch.float64)
            if len(roots) < n and child_rate is None:
                raise UsageError("support.hierarchy needs child_rate when exactly `active` features are drawn")
        else:
            own, self._spec["rates"] = read_rates(fields.raw("rates"), n, generator)
            self._loadings, spec = _read_cofiring(fields.raw("cofiring", None), len(roots), generator)
            sets = _read_sets(fields.raw("exclusive", []), parent)
            if spec and sets:
                raise UsageError("support has both cofiring and exclusive; roots can have one of them")
            self._spec |= {"cofiring": spec, "exclusive": sets}
        fields.finish()
        self._spec["hierarchy"] = hierarchy
        q = own if child_rate is None else torch.where(parent < 0, own, child_rate)
        if hierarchy and hierarchy.get("compensate"):
            q = compensated(own, parent, self.exclusive_children)
        if self.exclusive_children and child_rate is None:
            q = winning_rates(q, parent)
        self.rates = _marginal(q, parent)
        self.level = _levels(parent)
        self.depth = int(self.level.max())
        self._tables = _tables(parent, q, self.exclusive_children) if len(roots) < n else None
        grouped = {i for members in sets for i in members}
        self._roots = roots[[int(i) not in grouped for i in roots]]
        self._sets = _set_tables(sets, q) if sets else None
        self._own = q[self._roots]

    def spec(self) -> dict[str, Any]:
        """The support as JSON, every default filled in."""
        return self._spec

    def is_plain(self) -> bool:
        """Whether P(i and j active) has a closed form: exact or independent, without families, sets or co-firing."""
        return self._tables is None and self._sets is None and not len(self._loadings)

    def sample(self, rows: int, generator: torch.Generator) -> "tuple[Int[Tensor, ' m'], Int[Tensor, ' m']]":
        """(row, feature) of every activation in `rows` rows, sorted by row and then by feature."""
        from synthetic import loops

        if self.law == "exact":
            row, feature = self._exact(rows, generator)
            if self._tables is None:
                return row, feature
        elif len(self._loadings):
            row, feature = self._copula(rows, generator)
        elif len(self._own):
            row, root = _cells(self._own, rows, generator)
            row, feature = row.long(), self._roots[root]
        else:
            row = feature = torch.zeros(0, dtype=torch.int64)
        found = [(row, feature)]
        if self._sets is not None:
            everywhere = torch.arange(rows).repeat_interleave(len(self._sets.child))
            node = torch.arange(len(self._sets.child)).repeat(rows)
            found.append(_born(self._sets, everywhere, node, generator))
        if self._tables is not None:
            parents = (torch.cat([row for row, _ in found]), torch.cat([feature for _, feature in found]))
            for _ in range(self.depth):
                parents = _born(self._tables, *parents, generator)
                found.append(parents)
        row, feature = (torch.cat(parts) if len(found) > 1 else parts[0] for parts in zip(*found, strict=True))
        row, feature = loops.by_row(row.numpy(), feature.numpy(), rows, self.n)
        return torch.from_numpy(row), torch.from_numpy(feature)

    def _exact(self, rows: int, generator: torch.Generator) -> Pairs:
        """Floyd's algorithm, one pass per slot: draw from [0, j], and take j itself when the draw is already in."""
        from synthetic import loops

        n, s = len(self._roots), self.active
        draw = torch.empty(s, rows, dtype=torch.int64)
        for slot in range(s):
            draw[slot].random_(0, n - s + slot + 1, generator=generator)
        row, feature = loops.floyd(draw.numpy(), self._roots.numpy(), self._tables is None)
        return torch.from_numpy(row), torch.from_numpy(feature)

    @cached_property
    def _copula_scores(self) -> "tuple[Float[Tensor, ' m'], Float[Tensor, 'rank m']]":
        """Phi^-1(p_i) / sqrt(1 - ||L_i||^2) and -L_i / sqrt(1 - ||L_i||^2) of every root."""
        rest = (1 - self._loadings.square().sum(dim=1)).sqrt()
        return torch.special.ndtri(self._own).float() / rest, (self._loadings / -rest[:, None]).T

    def _copula(self, rows: int, generator: torch.Generator) -> Pairs:
        """Given the factors f, roots are independent with rates Phi((Phi^-1(p_i) - L_i f) / sqrt(1 - ||L_i||^2)).

        Cells are drawn at each root's highest rate among the rows, then kept in proportion to the row's own.
        """
        from synthetic import loops

        threshold, slopes = self._copula_scores
        found, chunk = [], max(1, _CHUNK // len(threshold))
        shifts = torch.empty(min(chunk, rows), len(threshold))  # one for all chunks: fresh pages cost as much as sums
        for start in range(0, rows, chunk):
            factors = torch.randn(min(chunk, rows - start), len(slopes), generator=generator)
            shift = torch.mm(factors, slopes, out=shifts[: len(factors)])
            highest = torch.special.ndtr(threshold + shift.amax(dim=0))
            row, root = _cells(highest.double(), len(factors), generator)
            cells = row.numpy(), root.numpy(), torch.rand(len(row), generator=generator).numpy()
            *cells, score = loops.hopeful(*cells, threshold.numpy(), shift.numpy(), highest.numpy(), _above_phi())
            chance = torch.special.ndtr(torch.from_numpy(score))
            kept = loops.kept(*cells, chance.numpy(), highest.numpy())
            found.append((kept[0] + start, self._roots.numpy()[kept[1]]))
        row, root = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*found, strict=True))
        return row, root


@cache
def _above_phi() -> "Float[np.ndarray, ' m']":
    """Phi at the upper end of every 64th of [-8, 8), and more by what float32 may err: (1 + erf) / 2 loses the tail."""
    ends = torch.arange(1, 16 * 64 + 1, dtype=torch.float64) / 64 - 8
    return (1.001 * torch.special.ndtr(ends) + 1e-6).float().numpy()


def _cells(rates: "Float[Tensor, ' m']", rows: int, generator: torch.Generator) -> Pairs:
    """(row, column) of independent Bernoulli cells, column i at rate rates_i.

    Rare ones are the cells that a Poisson process of intensity -log(1 - rate) hits at least once: the work is that of
    the hits, not of rows times columns.
    """
    from synthetic import loops

    if float(rates.mean()) > 0.05:
        return (torch.rand(rows, len(rates), generator=generator) < rates).nonzero(as_tuple=True)  # type: ignore[return-value]
    intensity = -torch.log1p(-rates.clamp_max(1 - 1e-16))
    hits = torch.poisson(intensity * rows, generator=generator).long()
    # 32 bits here and in what follows: half of the memory to go through, and the same numbers
    row = torch.randint(0, rows, (int(hits.sum()),), generator=generator, dtype=torch.int32)
    found, column = loops.cells(row.numpy(), hits.numpy(), rows)
    return torch.from_numpy(found), torch.from_numpy(column)


def _born(tables: Tables, row: Tensor, node: Tensor, generator: torch.Generator) -> Pairs:
    """The active children of active nodes."""
    from synthetic import loops

    nodes, child = node.numpy(), tables.child.numpy()
    able = loops.with_children(nodes, child)
    u = torch.rand(len(able), child.shape[1], generator=generator).numpy()
    ends = tables.low.numpy(), tables.high.numpy()
    rows, children = loops.born(row.numpy(), nodes, able, u, child, *ends, tables.exclusive.numpy())
    return torch.from_numpy(rows), torch.from_numpy(children)


def _tables(parent: Tensor, q: Tensor, exclusive: bool) -> Tables:
    n = len(parent)
    children = (parent >= 0).nonzero()[:, 0]
    children = children[parent[children].argsort(stable=True)]
    owner = parent[children]
    counts = torch.bincount(owner, minlength=n)
    slot = torch.arange(len(children)) - (counts.cumsum(0) - counts)[owner]
    child = torch.full((n, int(counts.max())), -1, dtype=torch.int64)
    child[owner, slot] = children
    chance = torch.where(child >= 0, q[child.clamp_min(0)], 0.0)
    return _intervals(child, chance, torch.full((n,), exclusive))


def _set_tables(sets: Sequence[Sequence[int]], q: Tensor) -> Tables:
    """Each set of excluding roots as the family of a virtual node that is always on."""
    child = torch.full((len(sets), max(map(len, sets))), -1, dtype=torch.int64)
    for i, members in enumerate(sets):
        child[i, : len(members)] = torch.tensor(members)
    chance = torch.where(child >= 0, q[child.clamp_min(0)], 0.0)
    return _intervals(child, chance, torch.ones(len(sets), dtype=torch.bool))


def _intervals(child: Tensor, chance: Tensor, exclusive: Tensor) -> Tables:
    ends = chance.cumsum(dim=1)
    total = ends[:, -1]
    for i in (exclusive & (total > 1 + 1e-9)).nonzero()[:1, 0].tolist():
        members = child[i][child[i] >= 0].tolist()
        raise UsageError(
            f"features {members[:6]} exclude each other but their rates add up to {float(total[i]):.3g}; "
            "at most 1 is possible, so lower them"
        )
    low = torch.where(exclusive[:, None], ends - chance, 0.0)
    return Tables(child, low, low + chance, exclusive)


def _marginal(q: Tensor, parent: Tensor) -> "Float[Tensor, ' n']":
    """Product of the conditional rates from the root down."""
    rates, node = q.clone(), parent.clone()
    while bool((node >= 0).any()):
        rates = torch.where(node >= 0, rates * q[node.clamp_min(0)], rates)
        node = torch.where(node >= 0, parent[node.clamp_min(0)], node)
    return rates


def _levels(parent: Tensor) -> "Int[Tensor, ' n']":
    """Generations between each feature and its root."""
    level, node = torch.zeros_like(parent), parent
    while bool((node >= 0).any()):
        level += node >= 0
        node = torch.where(node >= 0, parent[node.clamp_min(0)], node)
    return level


def _read_cofiring(value: object, roots: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any] | None]:
    """Loadings L (roots, rank) with ||L_i|| = strength: random directions, or one factor per block of neighbours.

    "gaussian": independent N(0, strength^2 / rank) entries, so that strength is the RMS of ||L_i||; rows longer than
    sqrt(0.99) are cut to that (SynthSAEBench).
    """
    if value is None:
        return torch.zeros(0, 0), None
    fields = Fields(value, "support.cofiring")
    rank = fields.integer("rank", low=1)
    strength = fields.number("strength", low=0, below=1)
    kind = fields.choice("kind", ("random", "blocks", "gaussian"), "random")
    fields.finish()
    if kind == "random":
        directions = torch.randn(roots, rank, generator=generator)
        loadings = strength * torch.nn.functional.normalize(directions, dim=1)
    elif kind == "gaussian":
        loadings = strength / rank**0.5 * torch.randn(roots, rank, generator=generator)
        loadings /= (loadings.norm(dim=1, keepdim=True) / _LONGEST).clamp_min(1.0)
    else:
        if rank > roots:
            raise UsageError(f"support.cofiring.rank is {rank}, more blocks than the {roots} features; lower it")
        loadings = strength * torch.nn.functional.one_hot(torch.arange(roots) * rank // roots, rank).float()
    return loadings, {"rank": rank, "strength": strength, "kind": kind}


def _read_sets(value: object, parent: Tensor) -> list[list[int]]:
    where = "support.exclusive"
    if not isinstance(value, list) or not all(isinstance(members, list) and members for members in value):
        raise UsageError(f"{where} is {value!r}; expected a list of lists of feature indices")
    seen: set[int] = set()
    for members in value:
        for i in members:
            if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(parent):
                raise UsageError(f"{where} holds {i!r}; expected feature indices from 0 to {len(parent) - 1}")
            if i in seen:
                raise UsageError(f"{where} names feature {i} twice; a feature can be in one set")
            if parent[i] >= 0:
                raise UsageError(f"{where} names feature {i}, which has a parent; use hierarchy.exclusive for siblings")
            seen.add(i)
    return value
