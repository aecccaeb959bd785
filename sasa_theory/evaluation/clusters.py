"""Do a dictionary's directions crowd together, and how many units share a concept?

Directions that one feature is split over lie close together, in few dimensions. They are clustered by angle (as lines:
a subspace knows no sign), and a cluster of m directions that needs q dimensions for 80 % of its variance is m / q
times redundant. The variance is about the origin, because the members span a subspace: near-parallel ones have q = 1.

    ratio = sum over clusters of m / sum over clusters of q

A single direction has ratio 1, and m random ones in many dimensions about 1 / .8: always look at the ratio beside that
of as many random directions. Clustering is K-lines (`solvers.klines`), k-means for lines.

The firing mass of unit k on a set of tokens is the sum over them of ||D_k p_k||, the length of its contribution;
its excess is by how much its mean there is above its mean on the other tokens, or zero. How many units carry 50 % or
90 % of it says over how many of them the concept is spread.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from sasa_theory.arguments import require_count
from sasa_theory.concepts.scores import UnitScores
from sasa_theory.evaluation.base import lower, neither
from sasa_theory.evaluation.planted import fewest
from sasa_theory.geometry import as_matrix, energy_rank
from sasa_theory.solvers import klines
from synthetic.errors import UsageError


@dataclass(frozen=True)
class ClustersResult:
    """How crowded a set of directions is (module docstring)."""

    ratio: float = field(metadata=lower("directions per dimension", "cluster sizes over their dimensions, summed"))
    largest: float = field(
        metadata=lower("directions per dimension", "the same of the most redundant tenth of clusters")
    )
    directions: int = field(metadata=neither("directions", "how many were clustered"))
    clusters: int = field(metadata=neither("clusters", "clusters that hold a direction"))
    sizes: "Int[ndarray, ' c']" = field(metadata=neither("directions", "of each cluster", report=False))
    dims: "Int[ndarray, ' c']" = field(metadata=neither("dimensions", "for the share of its variance", report=False))


def decoder_clusters(
    directions: "Float[ndarray, 'n D']", mean_size: int, rng: np.random.Generator, share: float = 0.8
) -> ClustersResult:
    """Cluster unit directions by angle into n / mean_size clusters and measure their redundancy (module docstring).

    Raises UsageError for zero rows, fewer directions than one cluster holds, or a share outside (0, 1].
    """
    require_count("mean_size", mean_size)
    rows = as_matrix(directions, "directions")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if len(rows) < mean_size or not (length > 0).all():
        raise UsageError(
            f"clusters of {mean_size} need at least as many nonzero directions; got {len(rows)}, "
            f"{int((length == 0).sum())} of them zero"
        )
    found = klines.fit(rows / length, max(1, len(rows) // mean_size), rng, signed=True, centre=False, restarts=1)
    return redundancy(rows / length, found.assignment, share)


def redundancy(directions: "Float[ndarray, 'n D']", labels: "Int[ndarray, ' n']", share: float = 0.8) -> ClustersResult:
    """Sizes, dimensions and redundancy of given clusters of unit directions. Raises UsageError for unequal lengths."""
    rows = as_matrix(directions, "directions")
    if len(labels) != len(rows) or len(rows) == 0:
        raise UsageError(f"{len(rows)} directions and {len(labels)} labels; expected as many, and at least one")
    sizes, dims = [], []
    for label in np.unique(labels):
        members = rows[labels == label]
        # the smaller of the two Gram matrices has the same energies
        gram = members @ members.T if len(members) <= members.shape[1] else members.T @ members
        sizes.append(len(members))
        dims.append(int(energy_rank(np.linalg.eigvalsh(gram).clip(0), share)))
    size, dim = np.array(sizes), np.array(dims)
    top = np.argsort(-size / dim, kind="stable")[: max(1, -(-len(size) // 10))]
    return ClustersResult(
        ratio=float(size.sum() / dim.sum()),
        largest=float(size[top].sum() / dim[top].sum()),
        directions=len(rows),
        clusters=len(size),
        sizes=size,
        dims=dim,
    )


class FiringMass:
    """Over how many units the firing on some tokens is spread, with half-sample intervals over documents.

    scores     lengths ||D_k p_k|| of the contributions on n tokens.
    on, other  (n,) the concept's tokens, and those it is compared with.
    documents  (n,) numbers. Raises UsageError when a kind of token is missing.
    """

    def __init__(
        self,
        scores: UnitScores,
        on: "Bool[ndarray, ' n']",
        other: "Bool[ndarray, ' n']",
        documents: "Int[ndarray, ' n']",
    ) -> None:
        if not on.any() or not other.any() or (on & other).any():
            raise UsageError("firing mass needs tokens with and without the concept, and none that are both")
        _, cluster = np.unique(documents, return_inverse=True)
        self.n_documents = int(cluster.max()) + 1
        self._tokens = [np.bincount(cluster, kind, self.n_documents) for kind in (on, other)]
        self._sums = []
        for kind in (on, other):
            kept = kind[scores.row]
            place = cluster[scores.row[kept]] * scores.n_units + scores.unit[kept]
            flat = np.bincount(place, scores.value[kept], self.n_documents * scores.n_units)
            self._sums.append(flat.reshape(self.n_documents, scores.n_units))

    def mass(self, weights: "Float[ndarray, 'R C'] | None" = None, *, excess: bool = True) -> "Float[ndarray, 'R K']":
        """Mass of every unit for every row of document weights (None: each document once).

        excess  the positive part of (mean on the concept - mean on other tokens); else the mean on the concept.
        """
        w = np.ones((1, self.n_documents)) if weights is None else weights
        here, there = (
            w @ sums / np.maximum(w @ tokens, 1)[:, None] for sums, tokens in zip(self._sums, self._tokens, strict=True)
        )
        return np.maximum(here - there, 0) if excess else here

    def units(
        self, share: float, rng: np.random.Generator, *, excess: bool = True, resamples: int = 100
    ) -> tuple[int, float]:
        """Fewest units that carry `share` of the mass, and the standard error of their number over documents.

        The error is the spread over random halves of the documents, which equals the standard error of a mean
        (McCarthy 1969); resampling with replacement would repeat tokens and so see too few units.
        """
        count = int(fewest(torch.from_numpy(self.mass(excess=excess)), share)[0])
        order = rng.permuted(np.tile(np.arange(self.n_documents), (resamples, 1)), axis=1)
        halves = (order < self.n_documents // 2).astype(float)
        halves = halves[(halves @ self._tokens[0] > 0) & (halves @ self._tokens[1] > 0)]
        if len(halves) < 2:
            return count, float("nan")
        drawn = fewest(torch.from_numpy(self.mass(halves, excess=excess)), share).numpy()
        return count, float(drawn.std(ddof=1))
