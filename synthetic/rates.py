"""Firing rates and family trees of features, read from a spec."""

import itertools
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from synthetic.errors import UsageError
from synthetic.spec import Fields


def read_rates(value: object, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, ' n'], Any]":
    """Rates in (0, 1] of `n` features and their normalised spec.

    0.02 or {"law": "constant", "rate": 0.02}: all equal. {"law": "zipf", "exponent", "max", "min", "order"}: the
    k-th most frequent feature has rate max * k^-exponent, or, with `min`, that law mapped linearly onto [min, max];
    `order` "random" deals the ranks out by the world's seed, "listed" gives feature 0 the highest. A list: as it is.
    """
    where = "support.rates"
    if isinstance(value, list):
        if len(value) != n:
            raise UsageError(f"{where} has {len(value)} numbers, but the world has {n} features; give one for each")
        numbers = Fields({"rates": value}, "support").numbers("rates")
        wrong = [i for i, rate in enumerate(numbers) if not 0 < rate <= 1]
        if wrong:
            raise UsageError(f"{where}[{wrong[0]}] is {numbers[wrong[0]]:g}; expected a rate > 0 and <= 1")
        return torch.tensor(numbers, dtype=torch.float64), numbers
    fields = Fields(value if isinstance(value, dict) else {"rate": value}, where)
    law = fields.choice("law", ("constant", "zipf"), "constant")
    if law == "constant":
        rate = fields.number("rate", above=0, high=1)
        fields.finish()
        return torch.full((n,), rate, dtype=torch.float64), {"law": law, "rate": rate}
    top = fields.number("max", above=0, high=1)
    exponent = fields.number("exponent", 1.0, low=0)
    bottom = fields.raw("min", None)
    order = fields.choice("order", ("random", "listed"), "random")
    rates = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    if bottom is None:
        rates = top * rates
    else:
        bottom = fields.number("min", above=0, high=top)
        spread = 1 - float(rates[-1])
        rates = bottom + (top - bottom) * ((rates - rates[-1]) / spread if spread > 0 else torch.ones(n))
    fields.finish()
    if order == "random":
        rates = rates[torch.randperm(n, generator=generator)]
    return rates, {"law": law, "max": top, "exponent": exponent, "min": bottom, "order": order}


def read_hierarchy(value: object, n: int) -> "tuple[Int[Tensor, ' n'], float | None, bool, dict[str, Any] | None]":
    """Each feature's parent (-1: none), the children's rate given their parent, whether siblings exclude; the spec.

    {"roots": R, "branching": b, "depth": g}: a forest on the first R (1 + b + ... + b^g) features, level by level;
    features after it stand alone. {"parents": [...]}: one parent index (or -1) per feature. `child_rate`: P(child
    active | parent active); without it, each child's own rate under the support's `rates`, as it is before its parent
    and its siblings have their say. `exclusive`: at most one child of a parent at a time. `scale_children`: a
    child's contribution is multiplied by the relative norm ||h_p|| / scale_p of its parent's (under varied_normal by
    ||h_p|| over the mean of the parent's own law). `compensate` (without `child_rate`): children's rates are raised
    first for what their parent and siblings will take (`compensated`).
    """
    if value is None:
        return torch.full((n,), -1, dtype=torch.int64), None, False, None
    fields = Fields(value, "support.hierarchy")
    rate = fields.raw("child_rate", None)
    if rate is not None:
        rate = fields.number("child_rate", above=0, high=1)
    spec: dict[str, Any] = {
        "child_rate": rate,
        "exclusive": fields.flag("exclusive", False),
        "scale_children": fields.flag("scale_children", False),
    }
    if fields.flag("compensate", False):
        if rate is not None:
            raise UsageError("support.hierarchy has both child_rate and compensate; child_rate needs no compensation")
        spec["compensate"] = True
    if fields.has("parents"):
        spec["parents"] = fields.raw("parents")
        parent = _listed(spec["parents"], n)
    else:
        roots, branching, depth = (fields.integer(key, low=1) for key in ("roots", "branching", "depth"))
        spec |= {"roots": roots, "branching": branching, "depth": depth}
        parent = _forest(roots, branching, depth, n)
    fields.finish()
    return parent, rate, spec["exclusive"], spec


def _forest(roots: int, branching: int, depth: int, n: int) -> "Int[Tensor, ' n']":
    levels = [roots * branching**level for level in range(depth + 1)]
    if sum(levels) > n:
        raise UsageError(
            f"support.hierarchy needs {sum(levels)} features ({' + '.join(map(str, levels))}), the world has {n}; "
            "add features or make the trees smaller"
        )
    parent, start = torch.full((n,), -1, dtype=torch.int64), 0
    for above, below in itertools.pairwise(levels):
        parent[start + above : start + above + below] = start + torch.arange(below) // branching
        start += above
    return parent


def _listed(value: object, n: int) -> "Int[Tensor, ' n']":
    where = "support.hierarchy.parents"
    if not isinstance(value, list) or len(value) != n:
        raise UsageError(f"{where} is {value!r}; expected a list of {n} feature indices, -1 for no parent")
    for i, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, int) or not -1 <= item < n:
            raise UsageError(f"{where}[{i}] is {item!r}; expected -1 or a feature index up to {n - 1}")
    for i in range(n):
        node, steps = i, 0
        while node >= 0:
            node, steps = value[node], steps + 1
            if steps > n:
                raise UsageError(f"{where} has a cycle through feature {i}; every feature must end at a root")
    return torch.tensor(value, dtype=torch.int64)


def compensated(own: "Float[Tensor, ' n']", parent: "Int[Tensor, ' n']", exclusive: bool) -> "Float[Tensor, ' n']":
    """Rates at which features are drawn so that what is left of children is about their own rate p_c (SynthSAEBench).

    q_c = min(1, p_c / p_parent * (1 + sum over the other siblings of p_j / p_parent)), the bracket only where siblings
    exclude each other; roots keep p. First order in the rates: where they are high, less is left than p_c.
    """
    child = parent >= 0
    above = torch.where(child, own[parent.clamp_min(0)], 1.0)
    share = torch.where(child, own / above, 0.0)
    family = torch.zeros_like(own).index_add_(0, parent.clamp_min(0), share)[parent.clamp_min(0)]
    rivals = family - share if exclusive else torch.zeros_like(own)
    return torch.where(child, (share * (1 + rivals)).clamp_max(1.0), own)


def winning_rates(q: "Float[Tensor, ' n']", parent: "Int[Tensor, ' n']") -> "Float[Tensor, ' n']":
    """P(child c wins | parent on) when siblings fire independently at rates q and one that fired, at random, stays.

    q_c E[1/(1 + K)], K the number of other siblings that fired, = q_c int_0^1 prod_{j != c} (1 - q_j + q_j t) dt.
    """
    nodes, weights = np.polynomial.legendre.leggauss(64)  # exact for up to 128 siblings
    t, weight = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    out = q.clone()
    for node in torch.unique(parent[parent >= 0]).tolist():
        members = (parent == node).nonzero()[:, 0]
        factor = 1 - q[members, None] * (1 - t)
        others = torch.exp(factor.log().sum(dim=0) - factor.log())
        out[members] = q[members] * (others @ weight)
    return out
