"""Manifolds: centred, unit RMS, on the surface they claim, with constants that are exact."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthetic import Parametric, manifolds
from synthetic.errors import UsageError
from synthetic.manifolds import Helix, Manifold, Moebius, Sphere, Subspace, SwissRoll, Torus

SEEDS = st.integers(0, 2**31)
SHAPES = {
    "line": {},
    "sign": {},
    "subspace": {"dim": st.integers(1, 9)},
    "circle": {},
    "disk": {},
    "sphere": {"dim": st.integers(2, 9)},
    "torus": {"ratio": st.floats(0.05, 0.95)},
    "moebius": {"half_width": st.floats(0.05, 0.95)},
    "swiss_roll": {"start": st.floats(0, 3), "turns": st.floats(0.2, 5), "height": st.floats(0.1, 4)},
    "helix": {"turns": st.floats(0.2, 6), "height": st.floats(0.1, 8)},
}


@st.composite
def any_manifold(draw: st.DrawFn) -> Manifold:
    name = draw(st.sampled_from(sorted(SHAPES)))
    return manifolds[name](**{key: draw(values) for key, values in SHAPES[name].items()})


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def deviations(z: torch.Tensor) -> tuple[float, float]:
    """Largest |mean| and |E||z||^2 - 1| in standard errors (plus float32 rounding)."""
    z = z.double()
    mean, error = z.mean(dim=0), z.std(dim=0) / math.sqrt(len(z))
    square = z.square().sum(dim=1)
    spread = float(square.std()) / math.sqrt(len(z))
    return float((mean.abs() / (error + 1e-6)).max()), float((square.mean() - 1).abs()) / (spread + 1e-6)


def test_all_ten_are_registered() -> None:
    assert set(manifolds) >= set(SHAPES)


@settings(deadline=None, max_examples=50)
@given(any_manifold(), SEEDS)
def test_centred_with_unit_rms_and_stated_dimensions(manifold: Manifold, seed: int) -> None:
    z, theta = manifold.sample(4000, rng(seed))
    assert z.shape == (4000, manifold.ambient) and theta.shape == (4000, manifold.intrinsic)
    assert z.dtype == theta.dtype == torch.float32
    mean, square = deviations(z)
    assert mean < 6.5 and square < 6.5


def test_the_check_above_refutes_an_uncentred_and_an_unscaled_law() -> None:
    raw, _ = SwissRoll().draw(4000, rng(0))
    centre, rms = SwissRoll().standard
    assert deviations(raw / rms)[0] > 10
    assert deviations((raw - centre) / (1.05 * rms))[1] > 6.5


@settings(deadline=None, max_examples=30)
@given(any_manifold(), SEEDS)
def test_dimensions_are_the_true_ones(manifold: Manifold, seed: int) -> None:
    """The points span R^ambient (a flat line or roll would not)."""
    z, _ = manifold.sample(500, rng(seed))
    assert torch.linalg.matrix_rank(z.double(), rtol=1e-4) == manifold.ambient


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 3), st.floats(0.2, 5), st.floats(0.1, 4))
def test_swiss_roll_moments_are_the_elementary_integrals(start: float, turns: float, height: float) -> None:
    a, b = 2 * math.pi * start, 2 * math.pi * (start + turns)
    mean, second = SwissRoll(start, turns, height).moments()
    cos = (b * math.sin(b) + math.cos(b) - a * math.sin(a) - math.cos(a)) / (b - a)
    sin = (math.sin(b) - b * math.cos(b) - math.sin(a) + a * math.cos(a)) / (b - a)
    assert list(mean) == pytest.approx([cos, sin, 0], abs=1e-10 * b)
    assert second == pytest.approx((b**3 - a**3) / (3 * (b - a)) + (height * b) ** 2 / 12, rel=1e-11)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.2, 6), st.floats(0.1, 8), st.floats(0.05, 0.95))
def test_helix_and_moebius_moments_are_the_elementary_integrals(turns: float, height: float, width: float) -> None:
    end = 2 * math.pi * turns
    mean, second = Helix(turns, height).moments()
    assert list(mean) == pytest.approx([math.sin(end) / end, (1 - math.cos(end)) / end, height / 2], abs=1e-11)
    assert second == pytest.approx(1 + height**2 / 3, rel=1e-11)
    mean, second = Moebius(width).moments()
    assert list(mean) == pytest.approx([0, 0, 0], abs=1e-12)
    assert second == pytest.approx(1 + width**2 / 3, rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(any_manifold(), SEEDS)
def test_theta_determines_the_point(manifold: Manifold, seed: int) -> None:
    z, theta = (part.double() for part in manifold.sample(200, rng(seed)))
    centre, rms = manifold.standard
    raw = z * rms + centre
    if isinstance(manifold, Parametric):
        expected = manifold.embed(theta)
    elif isinstance(manifold, Torus):
        radius = 1 + manifold.ratio * theta[:, 1].cos()
        expected = torch.stack(
            (radius * theta[:, 0].cos(), radius * theta[:, 0].sin(), manifold.ratio * theta[:, 1].sin()), dim=1
        )
    elif isinstance(manifold, Sphere):
        sines = torch.cat((torch.ones(200, 1), theta.sin().cumprod(dim=1)), dim=1)
        expected = sines * torch.cat((theta.cos(), torch.ones(200, 1)), dim=1)
    elif manifold.ambient == 2 and manifold.intrinsic == 2 and not isinstance(manifold, Subspace):
        expected = theta[:, :1] * torch.stack((theta[:, 1].cos(), theta[:, 1].sin()), dim=1)
    elif manifold == manifolds["circle"]():
        expected = torch.cat((theta.cos(), theta.sin()), dim=1)
    else:
        expected = theta
    scale = float(expected.abs().max())
    torch.testing.assert_close(raw, expected, atol=2e-5 * max(1.0, scale), rtol=0)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 0.95), SEEDS)
def test_torus_is_uniform_by_area(ratio: float, seed: int) -> None:
    """The density 1 + ratio cos v of the tube angle has E cos v = ratio/2 and E cos 2v = 0."""
    _, theta = Torus(ratio).sample(20_000, rng(seed))
    cos = theta[:, 1].double().cos()
    error = float(cos.std()) / math.sqrt(len(cos))
    assert abs(float(cos.mean()) - ratio / 2) < 6 * error
    double = (2 * theta[:, 1].double()).cos()
    assert abs(float(double.mean())) < 6 * float(double.std()) / math.sqrt(len(cos))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 8), SEEDS)
def test_sphere_and_subspace_are_isotropic(dim: int, seed: int) -> None:
    for manifold in (Sphere(dim), Subspace(dim)):
        z, _ = manifold.sample(20_000, rng(seed))
        products = z.double()[:, :, None] * z.double()[:, None, :]
        error = products.std(dim=0) / math.sqrt(len(z))
        assert bool(((products.mean(dim=0) - torch.eye(dim) / dim).abs() < 6.5 * error + 1e-7).all())
    norms = Sphere(dim).sample(100, rng(seed))[0].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(100))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("subspace", {"dim": 0}),
        ("sphere", {"dim": 1}),
        ("torus", {"ratio": 1.0}),
        ("moebius", {"half_width": 0.0}),
        ("swiss_roll", {"turns": -1.0}),
        ("helix", {"height": 0.0}),
    ],
)
def test_impossible_shapes_name_the_value(name: str, shape: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(shape))} is {next(iter(shape.values())):g}; expected"):
        manifolds[name](**shape)


def test_a_map_too_rough_for_quadrature_is_refused() -> None:
    @dataclass(frozen=True)
    class Step(Parametric):
        intrinsic, ambient = 1, 1

        def bounds(self) -> tuple[tuple[float, float], ...]:
            return ((0.0, 1.0),)

        def embed(self, theta: torch.Tensor) -> torch.Tensor:
            return (theta > 1 / math.pi).to(theta)

    with pytest.raises(UsageError, match="too rough"):
        Step().sample(3, rng(0))


def test_a_point_is_no_manifold() -> None:
    @dataclass(frozen=True)
    class Point(Parametric):
        intrinsic, ambient = 1, 1

        def bounds(self) -> tuple[tuple[float, float], ...]:
            return ((0.0, 1.0),)

        def embed(self, theta: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(theta)

    with pytest.raises(UsageError, match="positive variance"):
        Point().sample(3, rng(0))
