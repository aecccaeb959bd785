"""What the claims about soft routing (C4) measure: routed slices, gates that realise them, and a search over gates.

A routed slice is a set of weighted tokens with the groups each of them uses. At a given routing the SASA objective is
convex in the maps; which routings a Top-s gate can produce is another question. With r >= d a gate is free: for any
invertible E_k the map M_k = D_k E_k can still be anything, so a search may choose the E_k for the routing alone. With
tied encoders, D_k = E_k^T, the gate is the map: ||p_k||^2 = h^T M_k h.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from sasa_theory.arguments import require_count
from sasa_theory.bounds import slice_floor, slice_map
from sasa_theory.models import SASA
from sasa_theory.objectives import routed_cost
from sasa_theory.solvers import routed
from synthetic.errors import UsageError


@dataclass(frozen=True)
class RoutedSlice:
    """Tokens h_t with weights w_t, the groups of each, and how many groups there are.

    tokens  (n, d) rows.    weights  (n,).    index  (n, s) groups, -1 for an empty slot.
    """

    tokens: "Float[ndarray, 'n d']"
    weights: "Float[ndarray, ' n']"
    index: "Int[ndarray, 'n s']"
    n_groups: int

    @property
    def sigma(self) -> "Float[ndarray, 'd d']":
        """sum_t w_t h_t h_t^T."""
        return (self.tokens * self.weights[:, None]).T @ self.tokens

    def cost(self, maps: "Float[ndarray, 'K d d']", lam: float) -> float:
        """The objective of these maps at this routing."""
        return routed_cost(maps, self.tokens, self.index, lam, self.weights)

    def best(self, lam: float, rtol: float = 1e-9) -> routed.Solution:
        """The best maps at this routing, with their dual bound."""
        return routed.solve(self.tokens, self.index, self.n_groups, lam, self.weights, rtol=rtol)

    def single_floor(self, lam: float) -> float:
        """A lower bound on the cost of one group for all tokens, by the dual of C1 (equal to the optimum)."""
        return slice_floor(slice_map(self.sigma, lam), self.sigma, lam)


# The family of C4


def simplex_slice(d: int, angle: float) -> RoutedSlice:
    """u_t = cos p e_1 + sin p w_t of weight 1, w_t a regular simplex around e_1, routed to {0, t} (C4; d = 2: b).

    Raises UsageError for d < 2.
    """
    require_count("d", d, 2)
    corners = np.eye(d) - 1 / d
    around = np.linalg.svd(corners)[2][: d - 1]  # an orthonormal basis of the simplex's own hyperplane
    w = corners @ around.T
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    tokens = np.column_stack((np.full(d, math.cos(angle)), math.sin(angle) * w))
    index = np.column_stack((np.zeros(d, dtype=int), np.arange(1, d + 1)))
    return RoutedSlice(tokens, np.ones(d), index, d + 1)


def simplex_maps(d: int, angle: float, lam: float) -> "Float[ndarray, 'K d d']":
    """The maps of C4 for `simplex_slice`: M_0 = (1 - lam / (2 d cos^2 p))_+ e_1 e_1^T, M_t = a w_t e_1^T.

    a = (sin p cos p - lam / 2) / cos^2 p. Near p = pi/2 the common part is worth nothing, hence the _+. One
    feasible point, not the optimum.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    maps = np.zeros((d + 1, d, d))
    maps[0, 0, 0] = max(0.0, 1 - lam / (2 * d * cosine**2))
    w = simplex_slice(d, math.pi / 2).tokens
    w[:, 0] = 0
    maps[1:, :, 0] = (sine * cosine - lam / 2) / cosine**2 * w
    return maps


def commuting_slice(d: int, groups: int, patterns: int, rng: np.random.Generator) -> RoutedSlice:
    """A slice whose patterns, random sets of groups, have second moments with a common eigenbasis.

    Each pattern's tokens lie along the basis vectors, at random energies, some of them zero.
    """
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    sets = [rng.permutation(groups)[: int(rng.integers(1, groups + 1))] for _ in range(patterns)]
    index = np.full((patterns * d, groups), -1)
    for i, chosen in enumerate(sets):
        index[i * d : (i + 1) * d, : len(chosen)] = chosen
    weights = rng.exponential(size=patterns * d) * (rng.random(patterns * d) < 0.8)
    return RoutedSlice(np.tile(basis.T, (patterns, 1)), weights, index, groups)


def random_slice(d: int, groups: int, s: int, n: int, rng: np.random.Generator) -> RoutedSlice:
    """n Gaussian tokens of random anisotropic law, each with s random groups."""
    tokens = rng.standard_normal((n, d)) * rng.uniform(0.1, 1, d)
    index = rng.random((n, groups)).argsort(axis=1)[:, :s]
    return RoutedSlice(tokens, np.full(n, 1 / n), index, groups)


# Gates


def realise(slice_: RoutedSlice, maps: "Float[ndarray, 'K d d']", gate_rows: "Float[ndarray, 'K d']") -> SASA:
    """A SASA of r = 2 whose maps are `maps` (rank one each) and whose gate adds <g_k, h>^2 to each group's score.

    Row one of a group is its map, scaled down in the encoder and up in the decoder so that the gate does not see it;
    row two is g_k in the encoder and zero in the decoder. Raises UsageError when a map has a higher rank.
    """
    small = 1e-3
    d = slice_.tokens.shape[1]
    model = SASA(d, slice_.n_groups, 2, slice_.index.shape[1]).double()
    left, values, right = np.linalg.svd(maps)
    if values[:, 1:].max(initial=0.0) > 1e-9 * values.max():
        raise UsageError("a map has rank above 1; a group of two columns has one left for it beside the gate's row")
    encoder = np.stack((small * right[:, 0], gate_rows), axis=1)  # (K, 2, d)
    decoder = np.stack((left[:, :, 0] * values[:, :1] / small, np.zeros((len(maps), d))), axis=1)
    with torch.no_grad():
        model.W_enc.copy_(torch.from_numpy(encoder.reshape(-1, d).T.copy()))
        model.W_dec.copy_(torch.from_numpy(decoder.reshape(-1, d)))
    return model


@torch.no_grad()
def gate_routing(model: SASA, tokens: "Float[ndarray, 'n d']") -> "Int[ndarray, 'n s']":
    """The groups the model's own gate picks for each token, ascending."""
    index = model.encode(torch.from_numpy(tokens)).index
    if index is None:
        raise UsageError("the model has no gate; expected one that keeps a few groups per token")
    return np.sort(index.numpy(), axis=1)


@torch.no_grad()
def model_cost(model: SASA, slice_: RoutedSlice, lam: float) -> float:
    """The objective as the model itself computes it: squared errors of its reconstructions, its map penalty."""
    x = torch.from_numpy(slice_.tokens)
    errors = (x - model(x)).square().sum(dim=1)
    enc, dec = model.blocks()
    norms = torch.linalg.svdvals(enc @ dec).sum()
    return float(torch.from_numpy(slice_.weights) @ errors + lam * norms)
