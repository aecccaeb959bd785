"""A world: features in R^D, a law of who is active, noise and a bias; an endless supply of rows with their truth.

    x = c (b + sum_{i in S} scale_i a_i V_i z_i + noise),      E||noise||^2 = share * E||sum_i scale_i a_i V_i z_i||^2

with c = 1, or the factor that makes E||x||^2 a prescribed number. A world is described in JSON:

    {"width": 64, "seed": 0,
     "features": [{"manifold": "circle", "count": 4}, {"manifold": "subspace", "dim": [1, 2, 3], "count": 8}],
     "frames": "random" | "orthogonal" | "tight" | {"coherence": 0.3},
     "energy_mode": "total" | "per_dim",
     "support": {"law": "exact", "active": 2},
     "noise": 0.01,        share of the signal's power
     "bias": 0.0,          norm of a random vector, or the vector itself
     "energy": null}       E||x||^2, or null for no normalisation

Everything but width, features and support has a default. Rows are made from the active features only.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from synthetic.batch import Activations, Batch, FrameTable
from synthetic.errors import UsageError, unknown
from synthetic.features import Feature, Kind, OwnMagnitudes, make_features, read_groups
from synthetic.placement import coherent_frames, mutual_coherence, orthogonal_frames, random_frames, tight_frames
from synthetic.spec import Fields, read_spec
from synthetic.stream import WorldStream, derived_generator, one_thread
from synthetic.support import Support

#: changes whenever the same spec would give other numbers
FORMAT = 1
#: rows behind an energy that has no closed form
ESTIMATE_ROWS = 1 << 16
#: numbers of the frames that a batch adds up beyond which every thread helps: 8 instead of 15 ms at 10^8
MANY = 1 << 23


@dataclass(frozen=True)
class Moments:
    """E[h] and E||h||^2 of the signal h = sum_i V_i z_i; `standard_error` of the energy is 0 where it is exact."""

    mean: "Float[Tensor, ' D']"
    energy: float
    standard_error: float


@dataclass(frozen=True)
class WorldStatistics:
    """What is planted.

    coherence        mu = max_{i != j} ||V_i^T V_j||_2, reached by features `coherence_pair`.
    load             sum d_i / D.
    rates            P(feature i active).
    feature_energy   E||V_i z_i||^2 = rate_i scale_i^2, over all rows.
    signal_energy    E||sum_i V_i z_i||^2; `signal_energy_error` is its standard error, 0 where it is exact.
    noise_energy     E||noise||^2;  total_energy: E||x||^2, bias included.
    expected_active  mean number of active features;  expected_dims: mean of their summed dimensions.
    """

    coherence: float
    coherence_pair: tuple[int, int]
    load: float
    dims: list[int]
    rates: list[float]
    feature_energy: list[float]
    signal_energy: float
    signal_energy_error: float
    noise_energy: float
    total_energy: float
    expected_active: float
    expected_dims: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return {**vars(self), "coherence_pair": list(self.coherence_pair)}


class World:
    """Planted data in R^width; made by `World.from_spec`.

    features  the planted features in order: name, dimension, scale.
    support   the law of the active set.
    bias      (D,) added to every row.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        fields = Fields(dict(spec) if isinstance(spec, Mapping) else spec, "world")
        self.width = fields.integer("width", low=1)
        self.seed = fields.integer("seed", 0)
        groups, group_specs = read_groups(fields.raw("features"))
        energy_mode = fields.choice("energy_mode", ("total", "per_dim"), "total")
        self.features: list[Feature] = make_features(groups, energy_mode, self._generator)
        self.dims = [feature.dim for feature in self.features]
        rows, frame_spec = self._read_frames(fields.raw("frames", "random"))
        self.support = Support(fields.raw("support"), len(self.features), self._generator("support"))
        noise = fields.number("noise", 0.0, low=0)
        bias, bias_spec = self._read_bias(fields.raw("bias", 0.0))
        energy = fields.raw("energy", None)
        if energy is not None:
            energy = fields.number("energy", above=0)
        fields.finish()
        self._spec = {
            "width": self.width,
            "seed": self.seed,
            "features": group_specs,
            "energy_mode": energy_mode,
            "frames": frame_spec,
            "support": self.support.spec(),
            "noise": noise,
            "bias": bias_spec,
            "energy": energy,
        }
        self._tables = {torch.device("cpu"): FrameTable(rows, torch.tensor(self.dims))}
        self._kinds, self._kind = _distinct([feature.kind for feature in self.features])
        self._widest = max(self.dims)
        self._parameters = max(kind.manifold.intrinsic for kind in self._kinds)
        self._magnitudes = OwnMagnitudes(self.features)
        self.scales = torch.tensor([feature.scale for feature in self.features], dtype=torch.float64)
        if self._magnitudes and self.support.scale_children:
            self.scales *= self._magnitudes.over_means(self.support.parent)
        self.bias, self._biased, self._noise_std = bias, bool(bias.any()), 0.0
        self._finish(noise, energy)

    @classmethod
    def from_spec(cls, spec: "Mapping[str, Any] | str | Path") -> "World":
        """A world from a spec as a dict, the path of a JSON file, or the name of a world that ships with the package.

        Raises UsageError for unknown names and impossible worlds, DataError for a file that is not JSON.
        """
        return cls(spec if isinstance(spec, Mapping) else read_spec(spec))

    def spec(self) -> dict[str, Any]:
        """The world as JSON with every default filled in; `World.from_spec` of it is the same world."""
        copied: dict[str, Any] = json.loads(json.dumps(self._spec))
        return copied

    def fingerprint(self) -> str:
        """A hash of the spec: equal for equal data, different for different data."""
        text = json.dumps([FORMAT, self._spec], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def frames(self) -> "list[Float[Tensor, 'd D']]":
        """The orthonormal rows V_i^T of every feature (float32)."""
        return self._table("cpu").each()

    def batches(self, size: int, device: "torch.device | str" = "cpu", stream: str = "train") -> WorldStream:
        """An endless stream of batches; different names give different data."""
        return WorldStream(self, size, device, stream)

    def sample(self, n: int, generator: "torch.Generator | int", device: "torch.device | str" = "cpu") -> Batch:
        """`n` rows with their truth, drawn from a CPU generator or a seed."""
        n, generator = _as_count(n), _as_generator(generator)
        with one_thread():
            activations, noise = self._draw(n, generator), self._noise(n, generator)
        return self._batch(activations, noise, device)

    def rows(
        self, n: int, generator: "torch.Generator | int", device: "torch.device | str" = "cpu"
    ) -> "Float[Tensor, 'n D']":
        """The x of `sample` without its truth, which takes less time."""
        n, generator = _as_count(n), _as_generator(generator)
        with one_thread():
            activations, noise = self._draw(n, generator, truth=False), self._noise(n, generator)
        return self._x(activations, noise, device)

    def points(
        self, feature: int, n: int, generator: "torch.Generator | int", device: "torch.device | str" = "cpu"
    ) -> Batch:
        """`n` rows in which one feature alone is active, without noise: clean points of its manifold (plus the bias).

        A child scaled by its parent is drawn as if its parent had its RMS norm. Raises UsageError for a feature that
        does not exist.
        """
        if not 0 <= feature < len(self.features):
            raise UsageError(f"feature {feature} does not exist; the world has features 0 to {len(self.features) - 1}")
        n, generator = _as_count(n), _as_generator(generator)
        return self._batch(self._draw(n, generator, (torch.arange(n), torch.full((n,), feature))), None, device)

    def statistics(self) -> WorldStatistics:
        """Coherence, load and energies of the planted features (computed once)."""
        return self._statistics

    @cached_property
    def moments(self) -> Moments:
        """E[h] and E||h||^2 of the signal.

        Exact when features are centred, because then E<h_i, h_j> = 0, and for non-negative ones when the support is
        exact or independent. Otherwise (non-negative features with co-firing, exclusion or a hierarchy) it is an
        average over 65,536 rows, the same ones every time.
        """
        p, square = self.support.rates, self.scales.square()
        energy = float(p @ square)
        means = [feature.kind.mean() for feature in self.features]
        if all(mean == 0 for mean in means):
            return Moments(torch.zeros(self.width), energy, 0.0)
        plain = self.support.is_plain()
        if not plain or any(mean is None for mean in means):
            return self._estimated_moments()
        table = self._table("cpu")
        length = self.scales * torch.tensor([mean or 0.0 for mean in means], dtype=torch.float64)
        mu = length[:, None] * table.rows[table.starts].double()  # only one-dimensional features have a mean
        mean = p @ mu
        if self.support.law == "exact":
            n, s = len(p), self.support.active
            together = s * (s - 1) / (n * (n - 1)) if n > 1 else 0.0
            energy += together * float(mu.sum(dim=0).square().sum() - length.square().sum())
        else:
            energy += float(mean.square().sum() - (p * length).square().sum())
        return Moments(mean.float(), energy, 0.0)

    def _estimated_moments(self) -> Moments:
        generator = self._generator("moments")
        table, chunk = self._table("cpu"), 4096
        mean, squares = torch.zeros(self.width, dtype=torch.float64), []
        for _ in range(ESTIMATE_ROWS // chunk):
            signal = table.add_up(*self._draw(chunk, generator, truth=False).terms(table))
            mean += signal.sum(dim=0, dtype=torch.float64)
            squares.append(signal.double().square().sum(dim=1))
        energies = torch.cat(squares)
        error = float(energies.std()) / math.sqrt(len(energies))
        return Moments((mean / len(energies)).float(), float(energies.mean()), error)

    def _finish(self, noise: float, energy: float | None) -> None:
        """Set the noise level, and scale everything so that E||x||^2 = energy."""
        if noise:
            self._noise_std = math.sqrt(noise * self.moments.energy / self.width)
        if energy is None:
            return
        factor = math.sqrt(energy / self._total_energy())
        self.scales *= factor
        self.bias = self.bias * factor
        self._noise_std *= factor
        raw = self.moments
        self.moments = Moments(raw.mean * factor, raw.energy * factor**2, raw.standard_error * factor**2)

    def _total_energy(self) -> float:
        bias = self.bias.double()
        cross = 2 * float(bias @ self.moments.mean.double())
        return self.moments.energy + self.width * self._noise_std**2 + float(bias.square().sum()) + cross

    @cached_property
    def _statistics(self) -> WorldStatistics:
        coherence, pair = mutual_coherence(self._table("cpu").rows, self.dims)
        rates = self.support.rates
        return WorldStatistics(
            coherence=coherence,
            coherence_pair=pair,
            load=sum(self.dims) / self.width,
            dims=list(self.dims),
            rates=rates.tolist(),
            feature_energy=(rates * self.scales.square()).tolist(),
            signal_energy=self.moments.energy,
            signal_energy_error=self.moments.standard_error,
            noise_energy=self.width * self._noise_std**2,
            total_energy=self._total_energy(),
            expected_active=float(rates.sum()),
            expected_dims=float(rates @ torch.tensor(self.dims, dtype=torch.float64)),
        )

    @torch.inference_mode()  # no gradients through the draw: an eighth of the time of a small batch
    def _draw(
        self, n: int, generator: torch.Generator, pairs: tuple[Tensor, Tensor] | None = None, truth: bool = True
    ) -> Activations:
        """Activations in `n` rows at sorted (row, feature) pairs, drawn if not given; no parameters without `truth`."""
        from synthetic import loops

        row, feature = (part.numpy() for part in pairs or self.support.sample(n, generator))
        flat = np.zeros((len(feature), self._widest), np.float32)
        theta = np.zeros((len(feature), self._parameters if truth else 0), np.float32)
        order, starts = loops.grouped(self._kind[feature], len(self._kinds))
        for kind, start, stop in zip(self._kinds, starts.tolist(), starts[1:].tolist(), strict=False):
            if start < stop and truth:
                z, parameters = kind.sample(stop - start, generator)
                loops.spread(z.numpy(), order[start:stop], flat)
                loops.spread(parameters.numpy(), order[start:stop], theta)
            elif start < stop:
                loops.spread(kind.points(stop - start, generator).numpy(), order[start:stop], flat)
        if self._magnitudes:
            self._magnitudes.scale(flat, feature, generator)
        if self.support.scale_children:
            self._scale_children(torch.from_numpy(flat), row, feature)
        loops.scale(feature, self.scales.numpy(), flat)
        return Activations(row, feature, flat, theta, n)

    def _scale_children(self, coords: "Float[Tensor, 'm d']", row: ndarray, feature: ndarray) -> None:
        """Multiply each child's coordinates by the norm of its parent's, from the roots down, in place.

        A child without its parent, as in `points`, stays as it is.
        """
        from synthetic import loops

        above = loops.parents(row, feature, self.support.parent.numpy())
        children = np.flatnonzero(above >= 0)
        level = self.support.level.numpy()[feature[children]]
        for depth in range(1, self.support.depth + 1):
            child = children[level == depth]
            coords[torch.from_numpy(child)] *= coords[torch.from_numpy(above[child])].norm(dim=1, keepdim=True)

    def _noise(self, n: int, generator: torch.Generator) -> Tensor | None:
        return torch.randn(n, self.width, generator=generator).mul_(self._noise_std) if self._noise_std else None

    def _x(self, activations: Activations, noise: Tensor | None, device: "torch.device | str") -> Tensor:
        table_row, weight, offsets = activations.terms(self._table("cpu"))
        many = len(weight) * self.width > MANY
        with contextlib.nullcontext() if many else one_thread():
            x = self._table(device).add_up(table_row.to(device), weight.to(device), offsets.to(device))
            if self._biased:
                x += self.bias.to(device)
            return x if noise is None else x.add_(noise.to(device))

    def _batch(self, activations: Activations, noise: Tensor | None, device: "torch.device | str") -> Batch:
        noise = None if noise is None else noise.to(device)
        index, coords, theta = (part.to(device) for part in activations.padded())
        x = self._x(activations, noise, device)
        return Batch(x, index, coords, theta, noise, frames=self._table(device))

    def _table(self, device: "torch.device | str") -> FrameTable:
        device = torch.device(device)
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]

    def _generator(self, purpose: str) -> torch.Generator:
        return derived_generator("world", self.seed, purpose)

    def _read_frames(self, value: object) -> "tuple[Float[Tensor, 'T D'], Any]":
        generator = self._generator("frames")
        if isinstance(value, dict):
            fields = Fields(value, "frames")
            coherence = fields.number("coherence", low=0, high=1)
            fields.finish()
            return coherent_frames(self.dims, self.width, coherence, generator), {"coherence": coherence}
        laws = {"random": random_frames, "orthogonal": orthogonal_frames, "tight": tight_frames}
        if not isinstance(value, str) or value not in laws:
            raise unknown('frames (or {"coherence": number}):', value, laws)
        return laws[value](self.dims, self.width, generator), value

    def _read_bias(self, value: object) -> "tuple[Float[Tensor, ' D'], Any]":
        fields = Fields({"bias": value}, "world")
        if isinstance(value, list):
            numbers = fields.numbers("bias")
            if len(numbers) != self.width:
                raise UsageError(f"bias has {len(numbers)} numbers; expected {self.width}, one for each dimension")
            return torch.tensor(numbers), numbers
        norm = fields.number("bias", low=0)
        direction = torch.randn(self.width, generator=self._generator("bias"))
        return norm * torch.nn.functional.normalize(direction, dim=0), norm


def _distinct(kinds: list[Kind]) -> "tuple[list[Kind], Int[ndarray, ' n']]":
    number: dict[Kind, int] = {}
    which = [number.setdefault(kind, len(number)) for kind in kinds]
    return list(number), np.array(which)


def _as_generator(generator: "torch.Generator | int") -> torch.Generator:
    if isinstance(generator, torch.Generator) and generator.device.type == "cpu":
        return generator
    if isinstance(generator, bool) or not isinstance(generator, int):
        raise UsageError(f"the generator is {generator!r}; expected a torch.Generator on the CPU, or a seed")
    return torch.Generator().manual_seed(generator)


def _as_count(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UsageError(f"the number of rows is {n!r}; expected an integer >= 1")
    return n
