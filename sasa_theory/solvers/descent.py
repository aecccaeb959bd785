"""The way down from the true basis: duplicates that turn away, one after another, into the widest gaps (B5, B6).

A dictionary with a duplicate codes as well as without it, whatever the duplicate then does: while a copy turns, all
other atoms stay, so by B2 the risk never exceeds what it was before the copy left. Two tools. `turned_cost` is psi
itself, in closed form, for an orthonormal basis and one copy of e_1 on its way to e_2. `gap_path` goes on: each copy
turns along a great circle from its basis vector to the centre of the widest gap the other atoms leave (farthest-point
filling, Gonzalez 1985, whose gaps shrink as fast as any dictionary's up to a factor of 2). That centre is exact: the
largest empty cap of points on a sphere is cut off by a facet of their convex hull.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial import ConvexHull, QhullError

from sasa_theory.arguments import require_count, require_real
from sasa_theory.objectives import huber
from synthetic.errors import UsageError


def turn(start: "Float[ndarray, '... D']", end: "Float[ndarray, '... D']", share: float) -> "Float[ndarray, '... D']":
    """The unit vector a `share` of the way along the great circle from one unit vector to another.

    (sin((1 - s) theta) start + sin(s theta) end) / sin(theta), theta the angle between them. Raises UsageError for
    vectors that are not unit or point in opposite directions, which no single great circle joins.
    """
    start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    if not np.allclose([np.linalg.norm(start), np.linalg.norm(end)], 1, atol=1e-8):
        raise UsageError("turn got a vector that is not of unit length; normalise it first")
    # arcsin of half the chord keeps small angles, which arccos of the inner product loses
    theta = 2 * math.asin(min(1.0, float(np.linalg.norm(end - start)) / 2))
    if theta > math.pi - 1e-6:
        raise UsageError("turn got opposite vectors; give a point between them first")
    if theta == 0:
        return end
    return (math.sin((1 - share) * theta) * start + math.sin(share * theta) * end) / math.sin(theta)


def turned_cost(h: "Float[ndarray, 'n d']", theta: float, lam: float, signed: bool = True) -> "Float[ndarray, ' n']":
    """psi of the orthonormal basis plus a copy of e_1 turned by `theta` towards e_2, one value per row (B5).

    The coordinates from the third on cost `huber`. In the plane of the first two psi = <u, h> - 1/2 ||u||^2, u the
    projection of h onto lam P*: the box |u_i| <= lam (non-negative codes: u_i <= lam) without the corners that
    <v, u> <= lam cuts off; the cut runs from lam (1, tan(theta/2)) to lam (tan(pi/4 - theta/2), 1). Rows are
    coordinates in the basis. Raises UsageError for theta outside [0, pi/2], d < 2 or lam < 0.
    """
    rows = np.asarray(h, dtype=np.float64)
    require_real("lam", lam, 0)
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise UsageError(f"turned_cost got rows of shape {rows.shape}; expected (n, d) with d >= 2")
    if not 0 <= theta <= math.pi / 2:
        raise UsageError(f"theta is {theta}; expected an angle between 0 and pi / 2")
    plane = rows[:, :2]
    if signed:  # lam P* is symmetric: a row in the third quadrant costs what its negative costs
        plane = np.where((plane < 0).all(1, keepdims=True), -plane, plane)
    u = np.clip(plane, -lam if signed else None, lam)
    cut = u @ [math.cos(theta), math.sin(theta)] > lam
    first = lam * np.array([1.0, math.tan(theta / 2)])
    along = lam * np.array([math.tan(math.pi / 4 - theta / 2), 1.0]) - first
    share = np.clip((plane[cut] - first) @ along / max(float(along @ along), np.finfo(float).tiny), 0, 1)
    u[cut] = first + share[:, None] * along
    return (u * plane).sum(1) - np.square(u).sum(1) / 2 + huber(rows[:, 2:], lam, signed).sum(1)


class Gap(NamedTuple):
    """The largest part of the sphere without atoms: its centre, and its angle to the nearest atom in radians.

    For signed codes an atom is a line, and the angle is that to the nearest line.
    """

    direction: "Float[ndarray, ' d']"
    angle: float


def widest_gap(atoms: "Float[ndarray, 'N d']", signed: bool = True) -> Gap:
    """The direction farthest from every atom: argmax_u min_j angle(u, d_j) over lines (signed codes) or rays.

    cos(angle) is the least distance of a facet of the convex hull of {+-d_j} (rays: {d_j}) from the origin, and the
    direction is that facet's normal; for lines it is given with its largest entry positive. Cost grows like
    N^{d/2}: meant for d up to about 6. d = 1 has no gap. Raises UsageError for atoms not of unit length, or whose hull
    does not hold the origin inside (they leave a half space empty).
    """
    points = np.asarray(atoms, dtype=np.float64)
    if points.ndim != 2 or not np.allclose(np.linalg.norm(points, axis=1), 1, atol=1e-8):
        raise UsageError(f"widest_gap got atoms of shape {points.shape}; expected unit rows (N, d)")
    if signed:
        points = np.concatenate([points, -points])
    if points.shape[1] == 1:
        if np.ptp(points) == 0:
            raise UsageError("the atoms leave a half space empty; add atoms until they surround the origin")
        return Gap(np.ones(1), 0.0)
    try:
        facets = ConvexHull(points).equations
    except QhullError as error:
        raise UsageError("the atoms do not span the space; add atoms until they surround the origin") from error
    distances = -facets[:, -1]
    if distances.min() <= 1e-12:
        raise UsageError("the atoms leave a half space empty; add atoms until they surround the origin")
    # equal gaps are common (a basis has 2^d): the first in a fixed order, not the one that rounding prefers
    nearest = np.flatnonzero(distances <= distances.min() + 1e-9)
    normals = facets[nearest, :-1]
    if signed:
        leading = np.take_along_axis(normals, np.abs(normals).argmax(1)[:, None], axis=1)
        normals = normals * np.sign(leading)
    direction = normals[np.lexsort(np.round(normals, 6).T)[-1]]
    return Gap(direction / np.linalg.norm(direction), math.acos(min(1.0, float(distances.min()))))


@dataclass(frozen=True)
class GapPath:
    """A continuous path of dictionaries, from a basis with duplicates to a tiling, one copy moving at a time.

    basis  (m, d) the vectors that stay.    homes  (M, d) where each copy starts: a vector of the basis.
    ends   (M, d) where it goes.            gaps   (M + 1,) widest gap before each move and after the last, radians.
    """

    basis: "Float[ndarray, 'm d']"
    homes: "Float[ndarray, 'M d']"
    ends: "Float[ndarray, 'M d']"
    gaps: "Float[ndarray, ' M+1']"

    @property
    def moves(self) -> int:
        """Number of copies that move."""
        return len(self.homes)

    def distinct(self, time: float) -> "Float[ndarray, 'N d']":
        """The atoms at `time` in [0, moves], copies that still wait on their basis vector left out.

        After floor(time) moves the next copy is the fraction time - floor(time) of its way. Copies that wait change no
        cost, so this dictionary has the risk of `atoms(time)`. Raises UsageError for a time outside.
        """
        if not 0 <= time <= self.moves:
            raise UsageError(f"time is {time}; expected a number between 0 and {self.moves} moves")
        done = int(time)
        moving = [turn(self.homes[done], self.ends[done], time - done)] if time > done else []
        return np.vstack([self.basis, self.ends[:done], *moving])

    def atoms(self, time: float) -> "Float[ndarray, 'm+M d']":
        """All atoms at `time`, waiting copies included: as many at every time. Raises UsageError for a time outside."""
        here = self.distinct(time)
        return np.vstack([here, self.homes[len(here) - len(self.basis) :]])


def gap_path(d: int, n_atoms: int, signed: bool = True) -> GapPath:
    """The path of B6 from a basis of R^d with duplicates to `n_atoms` atoms spread over the sphere.

    Each move takes a copy of the basis vector nearest the widest gap to the gap's centre (`widest_gap`). The basis is
    e_1..e_d, for non-negative codes e_1..e_d, -e_1..-e_d. Raises UsageError for d < 2 or fewer atoms than the basis
    has.
    """
    require_count("d", d, 2)
    basis = np.eye(d) if signed else np.concatenate([np.eye(d), -np.eye(d)])
    require_count("n_atoms", n_atoms, len(basis))
    gaps: list[float] = []
    atoms, homes = basis, np.empty((0, d))
    for _ in range(n_atoms - len(basis)):
        gap = widest_gap(atoms, signed)
        cosines = basis @ gap.direction
        nearest = int((np.abs(cosines) if signed else cosines).argmax())
        # an atom and its negative are one line: the copy takes the shorter way
        end = gap.direction * (np.sign(cosines[nearest]) if signed else 1.0)
        homes = np.vstack([homes, basis[nearest]])
        gaps.append(gap.angle)
        atoms = np.vstack([atoms, end])
    gaps.append(widest_gap(atoms, signed).angle)
    return GapPath(basis, homes, atoms[len(basis) :], np.array(gaps))
