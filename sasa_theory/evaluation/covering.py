"""Realised covering numbers of a trained dictionary (A4): how many of its atoms tile each feature's sphere."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory import geometry
from sasa_theory.evaluation.base import higher, lower, neither
from synthetic.errors import UsageError


@dataclass(frozen=True)
class CoveringResult:
    atoms: np.ndarray = field(
        metadata=lower("atoms", "per feature: L^(k)(eps), greedy; None when not every point is covered")
    )
    atoms_for_covered: np.ndarray = field(metadata=lower("atoms", "per feature: atoms that cover the coverable points"))
    covered: np.ndarray = field(metadata=higher("share of points", "per feature: sampled unit vectors within eps"))
    splitting: np.ndarray = field(
        metadata=lower("ratio", "per feature: L / d; above 1 the feature is split; None as for atoms")
    )
    dims: np.ndarray = field(metadata=neither("dimensions", "per feature: d"))
    k: int = field(metadata=neither("atoms", "atoms that may be used at once"))
    eps: float = field(metadata=neither("distance", "distance allowed, for unit vectors"))
    points: int = field(metadata=neither("points", "unit vectors sampled per feature"))


def covering_numbers(
    frames: "Sequence[Float[Tensor, 'd D']]",
    decoder: "Float[Tensor, 'K r D']",
    k: int,
    eps: float,
    rng: np.random.Generator,
    n_points: int = 500,
    candidates: int = 512,
) -> CoveringResult:
    """L^(k)(eps) of the decoder's columns for each feature, over `n_points` uniform unit vectors of V_i (A4).

    Every decoder column is an atom (also inside a group); its length does not matter, the decoder bias is left out.
    Only the `candidates` atoms with the largest cosine with V_i are tried: an atom at cosine c with V_i leaves alone a
    distance of at least sqrt(1 - c^2), but may still help with others, so a number may be over-estimated.
    """
    columns = decoder.detach().reshape(-1, decoder.shape[-1]).double().cpu()
    norms = torch.linalg.vector_norm(columns, dim=1, keepdim=True)
    columns = (columns / norms)[norms[:, 0] > 0]
    if len(columns) == 0:
        raise UsageError("every decoder column is zero; there is no dictionary to cover with")
    coverings = []
    for frame in frames:
        rows = torch.as_tensor(frame).detach().double().cpu()
        cosine = torch.linalg.vector_norm(columns @ rows.T, dim=1)
        atoms = columns[cosine.topk(min(candidates, len(columns))).indices]
        points = geometry.sphere(n_points, len(rows), rng) @ rows.numpy()
        coverings.append(geometry.covering_number(points, atoms.numpy(), k, eps))
    number = np.array([covering.atoms for covering in coverings])
    dims = np.array([len(frame) for frame in frames])
    return CoveringResult(
        atoms=number,
        atoms_for_covered=np.array([len(covering.chosen) for covering in coverings]),
        covered=np.array([covering.covered_fraction for covering in coverings]),
        splitting=number / dims,
        dims=dims,
        k=k,
        eps=eps,
        points=n_points,
    )
