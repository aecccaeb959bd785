"""Features: a manifold, how strongly it fires, and the scale of its contribution V_i z_i.

An active feature contributes h_i = scale_i * a * V_i z with z from its manifold and a magnitude a drawn anew each
time. Both have unit second moment, so E[||h_i||^2 | active] = scale_i^2. In a spec features are a list of groups:

    {"manifold": "subspace", "dim": [1, 2, 3], "count": 32, "magnitude": "uniform", "scale": 1.0}

A list in place of a manifold's parameter stands for one group per value, `count` features each.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from synthetic.errors import UsageError, unknown
from synthetic.manifolds import Manifold, manifolds
from synthetic.spec import Fields, as_number

#: what a group sets besides its manifold's own parameters
GROUP_KEYS = ("manifold", "count", "name", "scale", "magnitude", "nonnegative")


@dataclass(frozen=True)
class Magnitude:
    """The law of a magnitude a, normalised to E a^2 = 1.

    constant          a = 1
    gaussian          N(mean, std^2); signed; default mean 0, std 1
    uniform           uniform on [low, high]; default [0, 1]
    rectified_normal  max(0, N(mean, std^2)); default mean 1, std 0.25 (with mean 0 every second firing is silent)

    `rank_power` p lets it depend on the rank: the contribution of a d-dimensional feature is multiplied by d^p.

    varied_normal gives every feature of the group a law of its own: `VariedMagnitude`.
    """

    law: str = "constant"
    mean: float = 0.0
    std: float = 0.0
    low: float = 0.0
    high: float = 0.0
    rank_power: float = 0.0

    @classmethod
    def from_spec(cls, value: object, where: str) -> "Magnitude":
        """From a law's name or {"law": name, its parameters}; raises UsageError for impossible ones."""
        fields = Fields({"law": value} if isinstance(value, str) else value, where)
        laws = ("constant", "gaussian", "uniform", "rectified_normal", "varied_normal")
        law = fields.choice("law", laws, "constant")
        power = fields.number("rank_power", 0.0)
        if law == "varied_normal":
            return VariedMagnitude.read(fields, power)
        found = cls(law, rank_power=power)
        if law in ("gaussian", "rectified_normal"):
            mean, std = (0.0, 1.0) if law == "gaussian" else (1.0, 0.25)
            found = cls(law, fields.number("mean", mean), fields.number("std", std, low=0), rank_power=power)
        elif law == "uniform":
            low = fields.number("low", 0.0)
            found = cls(law, low=low, high=fields.number("high", 1.0, above=low), rank_power=power)
        fields.finish()
        if not found.second_moment() > 1e-30:
            raise UsageError(f"{where} is always zero; give it a positive mean or std")
        return found

    def spec(self) -> dict[str, Any]:
        keys = {"constant": (), "uniform": ("low", "high")}.get(self.law, ("mean", "std"))
        return {"law": self.law, **{key: getattr(self, key) for key in keys}, "rank_power": self.rank_power}

    def sample(self, n: int, generator: torch.Generator) -> "Float[Tensor, ' n']":
        """`n` magnitudes with E a^2 = 1 (float32, CPU)."""
        if self.law == "constant":
            return torch.ones(n)
        if self.law == "uniform":
            raw = self.low + (self.high - self.low) * torch.rand(n, generator=generator)
        else:
            raw = self.mean + self.std * torch.randn(n, generator=generator)
            if self.law == "rectified_normal":
                raw = raw.clamp_min(0)
        return raw / math.sqrt(self.second_moment())

    def second_moment(self) -> float:
        """E a^2 before normalisation."""
        m, s = self.mean, self.std
        if self.law == "constant":
            return 1.0
        if self.law == "uniform":
            return (self.low**2 + self.low * self.high + self.high**2) / 3
        if self.law == "gaussian":
            return m * m + s * s
        if s == 0:
            return max(m, 0.0) ** 2
        return (m * m + s * s) * _cdf(m / s) + m * s * _pdf(m / s)

    def mean_abs(self) -> float:
        """E|a| after normalisation."""
        m, s = self.mean, self.std
        if self.law == "constant":
            return 1.0
        if self.law == "uniform":
            low, high = self.low, self.high
            raw = (abs(high) * high - abs(low) * low) / (2 * (high - low))
        elif s == 0:
            raw = abs(m) if self.law == "gaussian" else max(m, 0.0)
        elif self.law == "gaussian":
            raw = m * (1 - 2 * _cdf(-m / s)) + 2 * s * _pdf(m / s)
        else:
            raw = m * _cdf(m / s) + s * _pdf(m / s)
        return raw / math.sqrt(self.second_moment())


@dataclass(frozen=True)
class VariedMagnitude(Magnitude):
    """A rectified normal per feature, a_i = max(0, N(mean_i, std_i^2)), whose energy is part of the feature's scale.

    mean_i runs linearly from `first` to `last` over the group; std_i = |N(std_mean, std_std^2)|, drawn once. In a spec:
    {"law": "varied_normal", "mean": [first, last], "std": {"mean": 0.5, "std": 0.5}}. The RMS of a_i multiplies the
    feature's scale, so that what is drawn each time still has E a^2 = 1; `OwnMagnitudes` draws it.
    """

    first: float = 1.0
    last: float = 1.0
    std_mean: float = 0.0
    std_std: float = 0.0

    @classmethod
    def read(cls, fields: Fields, power: float) -> "VariedMagnitude":
        ends = fields.numbers("mean")
        if len(ends) != 2 or min(ends) <= 0:
            raise UsageError(f"{fields.where}.mean is {ends}; expected two positive numbers, of the first and the last")
        spread = Fields(fields.raw("std"), f"{fields.where}.std")
        mean, std = spread.number("mean", low=0), spread.number("std", low=0)
        spread.finish()
        fields.finish()
        return cls("varied_normal", rank_power=power, first=ends[0], last=ends[1], std_mean=mean, std_std=std)

    def spec(self) -> dict[str, Any]:
        std = {"mean": self.std_mean, "std": self.std_std}
        return {"law": self.law, "mean": [self.first, self.last], "std": std, "rank_power": self.rank_power}

    def draw_laws(self, count: int, generator: torch.Generator) -> list[Magnitude]:
        """The law of each of `count` features."""
        means = torch.linspace(self.first, self.last, count, dtype=torch.float64)
        stds = (self.std_mean + self.std_std * torch.randn(count, generator=generator, dtype=torch.float64)).abs()
        return [Magnitude("rectified_normal", m, s) for m, s in zip(means.tolist(), stds.tolist(), strict=True)]


@dataclass(frozen=True)
class Kind:
    """What features share that are drawn together: manifold, magnitude law, and whether the coordinate is |a z|."""

    manifold: Manifold
    magnitude: Magnitude
    nonnegative: bool

    def sample(self, n: int, generator: torch.Generator) -> "tuple[Float[Tensor, 'n d'], Float[Tensor, 'n p']]":
        """`n` coordinates a z with E||a z||^2 = 1, and their parameters theta (a varied magnitude is left out)."""
        z, theta = self.manifold.sample(n, generator)
        return self._with_magnitude(z, generator), theta

    def points(self, n: int, generator: torch.Generator) -> "Float[Tensor, 'n d']":
        """The coordinates of `sample` without their parameters."""
        return self._with_magnitude(self.manifold.points(n, generator), generator)

    def _with_magnitude(self, z: "Float[Tensor, 'n d']", generator: torch.Generator) -> "Float[Tensor, 'n d']":
        if self.magnitude.law not in ("constant", "varied_normal"):
            z = z * self.magnitude.sample(len(z), generator)[:, None]
        return z.abs() if self.nonnegative else z

    def mean(self) -> float | None:
        """E|a z| of a non-negative coordinate, 0 for any other (it is centred); None where it is not known."""
        if not self.nonnegative:
            return 0.0
        mean = self.manifold.mean_abs() if self.magnitude.law != "varied_normal" else None
        return None if mean is None else mean * self.magnitude.mean_abs()


@dataclass(frozen=True)
class Feature:
    """One planted feature: its name, how it is drawn, its dimension d_i and its scale (RMS norm when active).

    magnitude  its own law, where the features of its group have different ones (their RMS is part of the scale).
    """

    name: str
    kind: Kind
    dim: int
    scale: float
    magnitude: Magnitude | None = None


class OwnMagnitudes:
    """The magnitudes of features with laws of their own (`VariedMagnitude`), for the world to draw; empty if none has.

    table  (n, 3) mean, std and RMS of each feature's law; (1, 0, 1), a constant, where it has none.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        laws = [feature.magnitude for feature in features]
        rows = [(law.mean, law.std, math.sqrt(law.second_moment())) if law else (1.0, 0.0, 1.0) for law in laws]
        self.table = torch.tensor(rows if any(laws) else [], dtype=torch.float64).reshape(-1, 3)
        self._laws = self.table.float().numpy()

    def __len__(self) -> int:
        return len(self.table)

    def scale(self, coords: "Float[ndarray, 'm d']", feature: "Int[ndarray, ' m']", generator: torch.Generator) -> None:
        """Multiply each activation's coordinates by a magnitude with E a^2 = 1 of its own, in place and in float32."""
        from synthetic import loops

        normal = torch.randn(len(feature), generator=generator).numpy()
        loops.magnitudes(self._laws, feature, normal, coords)

    def over_means(self, parent: "Int[Tensor, ' n']") -> "Float[Tensor, ' n']":
        """Product of RMS / mean over each feature's ancestors: what scaling by length over mean adds to over RMS."""
        gain, node = self.table[:, 2] / self.table[:, 0], parent
        product = torch.ones_like(gain)
        while bool((node >= 0).any()):
            product *= torch.where(node >= 0, gain[node.clamp_min(0)], 1.0)
            node = torch.where(node >= 0, parent[node.clamp_min(0)], -1)
        return product


def read_groups(value: object) -> tuple[list[tuple[str, Kind, int, Any]], list[dict[str, Any]]]:
    """(name, kind, count, scale spec) of every group, lists expanded, and the groups as normalised specs.

    Raises UsageError for anything that is not a list of well-formed groups.
    """
    if not isinstance(value, list) or not value:
        raise UsageError(f"features is {value!r}; expected a list of groups such as {{'manifold': 'circle'}}")
    groups, specs = [], []
    for i, item in enumerate(value):
        found, spec = _read_group(Fields(item, f"features[{i}]"))
        groups += found
        specs.append(spec)
    return groups, specs


def _read_group(fields: Fields) -> tuple[list[tuple[str, Kind, int, Any]], dict[str, Any]]:
    name = fields.raw("manifold")
    if not isinstance(name, str) or name not in manifolds:
        raise unknown(f"manifold in {fields.where}:", name, manifolds.names())
    count = fields.integer("count", 1, low=1)
    label = fields.raw("name", name)
    if not isinstance(label, str):
        raise UsageError(f"{fields.where}.name is {label!r}; expected a string")
    magnitude = Magnitude.from_spec(fields.raw("magnitude", "constant"), f"{fields.where}.magnitude")
    nonnegative = fields.flag("nonnegative", False)
    scale = _read_scale(fields.raw("scale", 1.0), f"{fields.where}.scale")
    shapes, shape_spec = _read_shapes(name, fields)
    fields.finish()
    made = [_make(name, shape, fields.where) for shape in shapes]
    if nonnegative and all(manifold.ambient > 1 for manifold in made):
        raise UsageError(f"{fields.where}.nonnegative is for features of dimension 1; this group has none")
    groups = [
        (label + (f"-{manifold.ambient}" if len(made) > 1 else ""), kind, count, scale)
        for manifold in made
        for kind in [Kind(manifold, magnitude, nonnegative and manifold.ambient == 1)]
    ]
    spec = {
        "manifold": name,
        **shape_spec,
        "count": count,
        "name": label,
        "scale": scale,
        "magnitude": magnitude.spec(),
        "nonnegative": nonnegative,
    }
    return groups, spec


def _read_shapes(name: str, fields: Fields) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The manifold's parameters: one dict per manifold (a list gives several), and as they stand in the spec."""
    cls = manifolds[name]
    if not dataclasses.is_dataclass(cls):
        raise UsageError(f"manifold {name!r} is not a dataclass; decorate {cls.__name__} with @dataclass(frozen=True)")
    types, common, many = get_type_hints(cls), {}, {}
    for field in dataclasses.fields(cls):
        if field.name in GROUP_KEYS:
            raise UsageError(f"manifold {name!r} has a field {field.name!r}, which every group already has; rename it")
        required = field.default is dataclasses.MISSING
        value = fields.raw(field.name) if required else fields.raw(field.name, field.default)
        where = f"{fields.where}.{field.name}"
        if isinstance(value, list):
            if not value:
                raise UsageError(f"{where} is an empty list; give at least one value")
            many[field.name] = [_parameter(item, types[field.name], f"{where}[{i}]") for i, item in enumerate(value)]
        else:
            common[field.name] = _parameter(value, types[field.name], where)
    if len(many) > 1:
        raise UsageError(f"{fields.where} has lists for {', '.join(many)}; a group may have one list, make more groups")
    shapes = [{**common, key: item} for key, items in many.items() for item in items] or [common]
    return shapes, {**common, **many}


def _parameter(value: object, kind: type, where: str) -> Any:
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"{where} is {value!r}; expected an integer")
        return value
    if kind is float:
        return as_number(value, where)
    if not isinstance(value, kind):
        raise UsageError(f"{where} is {value!r}; expected {kind.__name__}")
    return value


def _make(name: str, shape: dict[str, Any], where: str) -> Manifold:
    """The manifold, tried out once so that one of the user's own that is malformed is named here."""
    try:
        manifold: Manifold = manifolds[name](**shape)
        z, theta = manifold.sample(2, torch.Generator().manual_seed(0))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    expected = (2, manifold.ambient), (2, manifold.intrinsic)
    if (tuple(z.shape), tuple(theta.shape)) != expected:
        raise UsageError(
            f"{where}: manifold {name!r} gave points of shape {tuple(z.shape)} and parameters {tuple(theta.shape)}; "
            f"expected {expected[0]} and {expected[1]}"
        )
    return manifold


def _read_scale(value: object, where: str) -> Any:
    """A positive number, or a law from which each feature draws its scale once."""
    if not isinstance(value, dict):
        return Fields({"scale": value}, where.removesuffix(".scale")).number("scale", above=0)
    fields = Fields(value, where)
    if fields.choice("law", ("lognormal", "uniform")) == "lognormal":
        spec = {
            "law": "lognormal",
            "median": fields.number("median", 1.0, above=0),
            "sigma": fields.number("sigma", 0.5, low=0),
        }
    else:
        low = fields.number("low", above=0)
        spec = {"law": "uniform", "low": low, "high": fields.number("high", above=low)}
    fields.finish()
    return spec


def draw_scales(spec: Any, count: int, generator: torch.Generator) -> list[float]:
    """The scales of `count` features: the number itself, or independent draws from the law."""
    if not isinstance(spec, dict):
        return [spec] * count
    if spec["law"] == "lognormal":
        normal = torch.randn(count, generator=generator, dtype=torch.float64)
        return (spec["median"] * (spec["sigma"] * normal).exp()).tolist()
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    return (spec["low"] + (spec["high"] - spec["low"]) * uniform).tolist()


def make_features(
    groups: Sequence[tuple[str, Kind, int, Any]], energy_mode: str, generator: Callable[[str], torch.Generator]
) -> list[Feature]:
    """All features in order.

    energy_mode "total": scale_i is the drawn scale, the same energy whatever the dimension; "per_dim": times sqrt d_i,
    the same energy per direction. `generator(purpose)` gives the generator of a group's scales.
    """
    features = []
    for number, (label, kind, count, scale) in enumerate(groups):
        dim = kind.manifold.ambient
        factor = dim**kind.magnitude.rank_power * (math.sqrt(dim) if energy_mode == "per_dim" else 1.0)
        laws: list[Magnitude | None] = [None] * count
        if isinstance(kind.magnitude, VariedMagnitude):
            laws = [*kind.magnitude.draw_laws(count, generator(f"magnitudes/{number}"))]
        for i, value in enumerate(draw_scales(scale, count, generator(f"scales/{number}"))):
            law = laws[i]
            own = 1.0 if law is None else math.sqrt(law.second_moment())
            features.append(Feature(f"{label}/{i}" if count > 1 else label, kind, dim, value * factor * own, law))
    return features


def _cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _pdf(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
