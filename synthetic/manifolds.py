"""Laws of one factor: a random point z on a manifold in R^ambient, with its intrinsic parameters theta.

Every law is centred and has unit RMS: E z = 0 and E||z||^2 = 1. The constants that make it so are exact: written down
where the integral is elementary, else computed by Gauss-Legendre quadrature that must agree with a second, coarser
one. They are never sampled.

A manifold of your own is a frozen dataclass filed under a name; its fields are the keys a JSON spec may set:

    @manifolds.register("spiral")
    @dataclass(frozen=True)
    class Spiral(Parametric):
        turns: float = 2.0
        intrinsic, ambient = 1, 2

        def bounds(self):
            return ((0.0, 2 * math.pi * self.turns),)

        def embed(self, theta):
            t = theta[:, 0]
            return torch.stack((t * t.cos(), t * t.sin()), dim=1)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from synthetic.errors import UsageError
from synthetic.registry import Registry

#: manifold classes by name
manifolds: "Registry[type[Manifold]]" = Registry("manifold")


class Manifold(ABC):
    """A centred law of unit RMS on a subset of R^ambient; the two dimensions, `draw` and `moments` define one."""

    @property
    @abstractmethod
    def intrinsic(self) -> int:
        """Number of parameters theta of a point; a class attribute will do."""

    @property
    @abstractmethod
    def ambient(self) -> int:
        """Dimension of the space the manifold spans, d_i in the notation of THEORY.md; a class attribute will do."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, 'n ambient'], Float[Tensor, 'n p']]":
        """`n` points before centring and scaling, with their parameters; a world calls it in torch's inference mode."""

    @abstractmethod
    def moments(self) -> "tuple[Sequence[float], float]":
        """E[raw] (ambient numbers) and E||raw||^2 of what `draw` returns, exactly."""

    def mean_abs(self) -> float | None:
        """E|z| of a one-dimensional manifold; None where it is not known."""
        return None

    def sample(self, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, 'n ambient'], Float[Tensor, 'n p']]":
        """`n` independent points z with E z = 0, E||z||^2 = 1, and their intrinsic parameters theta (float32, CPU)."""
        raw, theta = self.draw(n, generator)
        return self._standardised(raw), theta

    def points(self, n: int, generator: torch.Generator) -> "Float[Tensor, 'n ambient']":
        """The points of `sample` without their parameters; worth a method of its own where those take time."""
        return self.sample(n, generator)[0]

    def _standardised(self, raw: "Float[Tensor, 'n ambient']") -> "Float[Tensor, 'n ambient']":
        centre, rms = self.standard
        if self._off_centre:
            raw = raw - centre
        return raw / rms if rms != 1 else raw

    @cached_property
    def _off_centre(self) -> bool:
        return bool(self.standard[0].any())

    @cached_property
    def standard(self) -> "tuple[Float[Tensor, ' ambient'], float]":
        """The centre subtracted from raw points and the RMS they are divided by."""
        mean, second = self.moments()
        variance = second - sum(m * m for m in mean)
        if not variance > 0:
            raise UsageError(f"{self} is a single point; a manifold needs a positive variance")
        return torch.tensor(list(mean), dtype=torch.float32), math.sqrt(variance)


class Parametric(Manifold):
    """A manifold given by a smooth map of parameters that are uniform on a box; its moments come by quadrature."""

    @abstractmethod
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """(low, high) of each parameter."""

    @abstractmethod
    def embed(self, theta: "Float[Tensor, 'n p']") -> "Float[Tensor, 'n ambient']":
        """The point of each parameter vector, in the dtype of `theta`."""

    def draw(self, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, 'n ambient'], Float[Tensor, 'n p']]":
        low, extent = self._box
        theta = low + extent * torch.rand(n, len(low), generator=generator)
        return self.embed(theta), theta

    @cached_property
    def _box(self) -> "tuple[Float[Tensor, ' p'], Float[Tensor, ' p']]":
        low, high = torch.tensor(self.bounds(), dtype=torch.float32).unbind(dim=1)
        return low, high - low

    def moments(self) -> "tuple[Sequence[float], float]":
        """Composite Gauss-Legendre quadrature; raises UsageError when two grids disagree by more than 1e-9."""
        panels = {1: (64, 48), 2: (24, 20), 3: (3, 2)}.get(len(self.bounds()))
        if panels is None:
            raise UsageError(
                f"{self} has {len(self.bounds())} parameters; give it a `moments` of its own (more than 3)"
            )
        (mean, second), (check, check_second) = (self._quadrature(count) for count in panels)
        error = max(abs(second - check_second), float((mean - check).abs().max()) * math.sqrt(second))
        if not error <= 1e-9 * second:
            raise UsageError(f"{self} is too rough for quadrature (error {error:.1e}); give it a `moments` of its own")
        return mean.tolist(), second

    def _quadrature(self, panels: int, order: int = 12) -> "tuple[Float[Tensor, ' ambient'], float]":
        nodes, weights = np.polynomial.legendre.leggauss(order)
        unit = ((np.arange(panels)[:, None] + (nodes + 1) / 2) / panels).ravel()
        weight = torch.from_numpy(np.tile(weights / 2, panels) / panels)
        axes = [torch.from_numpy(low + (high - low) * unit) for low, high in self.bounds()]
        theta = torch.cartesian_prod(*axes).reshape(-1, len(axes))
        mass = torch.cartesian_prod(*[weight] * len(axes)).reshape(-1, len(axes)).prod(dim=1)
        points = self.embed(theta)
        return mass @ points, float(mass @ points.square().sum(dim=1))


@manifolds.register("line")
@dataclass(frozen=True)
class Line(Manifold):
    """z uniform on [-sqrt 3, sqrt 3]; theta = z."""

    intrinsic, ambient = 1, 1

    def draw(self, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, 'n 1'], Float[Tensor, 'n 1']]":
        z = (2 * torch.rand(n, 1, generator=generator) - 1) * math.sqrt(3)
        return z, z

    def moments(self) -> tuple[Sequence[float], float]:
        return [0.0], 1.0

    def mean_abs(self) -> float:
        return math.sqrt(3) / 2


@manifolds.register("sign")
@dataclass(frozen=True)
class Sign(Manifold):
    """z = -1 or 1, equally likely; theta = z. Non-negative it is a fixed direction, whose length is the magnitude's."""

    intrinsic, ambient = 1, 1

    def draw(self, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, 'n 1'], Float[Tensor, 'n 1']]":
        z = 2 * torch.randint(2, (n, 1), generator=generator).float() - 1
        return z, z

    def moments(self) -> tuple[Sequence[float], float]:
        return [0.0], 1.0

    def mean_abs(self) -> float:
        return 1.0


@manifolds.register("subspace")
@dataclass(frozen=True)
class Subspace(Manifold):
    """z ~ N(0, I/dim): a Gaussian on a linear subspace; theta = z."""

    dim: int

    def __post_init__(self) -> None:
        _at_least(self, "dim", self.dim, 1)

    @property
    def intrinsic(self) -> int:
        return self.dim

    @property
    def ambient(self) -> int:
        return self.dim

    def draw(self, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, 'n d'], Float[Tensor, 'n d']]":
        z = torch.randn(n, self.dim, generator=generator) / math.sqrt(self.dim)
        return z, z

    def moments(self) -> tuple[Sequence[float], float]:
        return [0.0] * self.dim, 1.0

    def mean_abs(self) -> float | None:
        return math.sqrt(2 / math.pi) if self.dim == 1 else None


@manifolds.register("circle")
@dataclass(frozen=True)
class Circle(Manifold):
    """z = (cos theta, sin theta), theta uniform on [0, 2 pi)."""

    intrinsic, ambient = 1, 2

    def draw(self, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, 'n 2'], Float[Tensor, 'n 1']]":
        theta = 2 * math.pi * torch.rand(n, 1, generator=generator)
        return torch.cat((theta.cos(), theta.sin()), dim=1), theta

    def moments(self) -> tuple[Sequence[float], float]:
        return [0.0, 0.0], 1.0


@manifolds.register("disk")
@dataclass(frozen=True)
class Disk(Manifold):
    """z uniform on the disk of radius sqrt 2; theta = (radius in [0, 1], angle)."""

    intrinsic, ambient = 2, 2

    def draw(self, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, 'n 2'], Float[Tensor, 'n 2']]":
        u = torch.rand(n, 2, generator=generator)
        radius, angle = u[:, 0].sqrt(), 2 * math.pi * u[:, 1]
        return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1), torch.stack((radius, angle), dim=1)

    def moments(self) -> tuple[Sequence[float], float]:
        return [0.0, 0.0], 0.5


@manifolds.register("sphere")
@dataclass(frozen=True)
class Sphere(Manifold):
    """z uniform on the unit sphere S^(dim-1) of R^dim.

    theta holds dim - 1 angles: theta_k = atan2(||z_{k+1..}||, z_k) in [0, pi], the last one signed, in (-pi, pi].
    """

    dim: int = 3

    def __post_init__(self) -> None:
        _at_least(self, "dim", self.dim, 2)

    @property
    def intrinsic(self) -> int:
        return self.dim - 1

    @property
    def ambient(self) -> int:
        return self.dim

    def draw(self, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, 'n d'], Float[Tensor, 'n p']]":
        z = self.points(n, generator)
        rest = z.square().flip(1).cumsum(dim=1).flip(1).sqrt()  # rest_k = ||z_{k..}||
        theta = torch.atan2(rest[:, 1:], z[:, :-1])
        theta[:, -1] = torch.atan2(z[:, -1], z[:, -2])
        return z, theta

    def points(self, n: int, generator: torch.Generator) -> "Float[Tensor, 'n d']":
        z = torch.randn(n, self.dim, generator=generator)
        return z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min_(1e-12)

    def moments(self) -> tuple[Sequence[float], float]:
        return [0.0] * self.dim, 1.0


@manifolds.register("torus")
@dataclass(frozen=True)
class Torus(Manifold):
    """z uniform by area on the ring torus in R^3 with tube radius / ring radius = `ratio`; theta = (ring, tube) angle.

    Area is proportional to 1 + ratio cos v in the tube angle v, and E||raw||^2 = 1 + 2 ratio^2 at ring radius 1.
    """

    ratio: float = 0.5
    intrinsic, ambient = 2, 3

    def __post_init__(self) -> None:
        _between(self, "ratio", self.ratio, 0, 1)

    def draw(self, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, 'n 3'], Float[Tensor, 'n 2']]":
        u = torch.rand(n, 3, generator=generator)
        ring, tube = (2 * math.pi * u[:, :2]).unbind(dim=1)
        # a uniform angle v kept with probability (1 + ratio cos v)/2 and turned by pi otherwise has density
        # (1 + ratio cos v)/(2 pi): nothing is rejected
        turned = 2 * u[:, 2] >= 1 + self.ratio * tube.cos()
        tube = torch.where(turned, (tube + math.pi) % (2 * math.pi), tube)
        theta = torch.stack((ring, tube), dim=1)
        (ring_cos, tube_cos), (ring_sin, tube_sin) = theta.cos().unbind(dim=1), theta.sin().unbind(dim=1)
        radius = 1 + self.ratio * tube_cos
        return torch.stack((radius * ring_cos, radius * ring_sin, self.ratio * tube_sin), dim=1), theta

    def moments(self) -> tuple[Sequence[float], float]:
        return [0.0, 0.0, 0.0], 1 + 2 * self.ratio**2


@manifolds.register("moebius")
@dataclass(frozen=True)
class Moebius(Parametric):
    """Moebius strip in R^3, uniform in its parameters theta = (u, s), |s| <= half_width, u the ring angle.

    raw = ((1 + s cos(u/2)) cos u, (1 + s cos(u/2)) sin u, s sin(u/2)).
    """

    half_width: float = 0.5
    intrinsic, ambient = 2, 3

    def __post_init__(self) -> None:
        _between(self, "half_width", self.half_width, 0, 1)

    def bounds(self) -> tuple[tuple[float, float], ...]:
        return (0.0, 2 * math.pi), (-self.half_width, self.half_width)

    def embed(self, theta: "Float[Tensor, 'n 2']") -> "Float[Tensor, 'n 3']":
        u, s = theta.unbind(dim=1)
        half = u / 2
        radius = 1 + s * half.cos()
        return torch.stack((radius * u.cos(), radius * u.sin(), s * half.sin()), dim=1)


@manifolds.register("swiss_roll")
@dataclass(frozen=True)
class SwissRoll(Parametric):
    """Swiss roll in R^3, uniform in its parameters theta = (t, h): the spiral angle t and the height h.

    raw = (t cos t, t sin t, h), t from 2 pi `start` over `turns` turns; the height is `height` outer radii.
    """

    start: float = 0.75
    turns: float = 1.5
    height: float = 1.5
    intrinsic, ambient = 2, 3

    def __post_init__(self) -> None:
        _between(self, "start", self.start, 0, 100, closed=True)
        _between(self, "turns", self.turns, 0, 100)
        _between(self, "height", self.height, 0, math.inf)

    def bounds(self) -> tuple[tuple[float, float], ...]:
        inner, outer = 2 * math.pi * self.start, 2 * math.pi * (self.start + self.turns)
        return (inner, outer), (-self.height * outer / 2, self.height * outer / 2)

    def embed(self, theta: "Float[Tensor, 'n 2']") -> "Float[Tensor, 'n 3']":
        t, h = theta.unbind(dim=1)
        return torch.stack((t * t.cos(), t * t.sin(), h), dim=1)


@manifolds.register("helix")
@dataclass(frozen=True)
class Helix(Parametric):
    """Helix in R^3 with `turns` turns of radius 1 over a height of `height`, uniform by arc length; theta = angle."""

    turns: float = 2.0
    height: float = 2.0
    intrinsic, ambient = 1, 3

    def __post_init__(self) -> None:
        _between(self, "turns", self.turns, 0, 100)
        _between(self, "height", self.height, 0, math.inf)

    def bounds(self) -> tuple[tuple[float, float], ...]:
        return ((0.0, 2 * math.pi * self.turns),)

    def embed(self, theta: "Float[Tensor, 'n 1']") -> "Float[Tensor, 'n 3']":
        t = theta[:, 0]
        return torch.stack((t.cos(), t.sin(), t * (self.height / (2 * math.pi * self.turns))), dim=1)


def _at_least(manifold: Manifold, name: str, value: int, low: int) -> None:
    if value < low:
        raise UsageError(f"{type(manifold).__name__}.{name} is {value}; expected an integer >= {low}")


def _between(manifold: Manifold, name: str, value: float, low: float, high: float, closed: bool = False) -> None:
    if not (low < value < high or (closed and value == low)):
        ends = f"{'>=' if closed else '>'} {low:g}" + (f" and < {high:g}" if math.isfinite(high) else "")
        raise UsageError(f"{type(manifold).__name__}.{name} is {value:g}; expected a number {ends}")
