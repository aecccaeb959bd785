"""Magnitudes and groups: laws normalised exactly, groups expanded in order, bad groups named."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from synthetic import Magnitude, World, manifolds
from synthetic.errors import UsageError
from synthetic.features import Kind

MEANS, STDS = st.floats(-2, 2), st.floats(0.05, 2)
LAWS = st.one_of(
    st.just("constant"),
    st.fixed_dictionaries({"law": st.just("gaussian"), "mean": MEANS, "std": STDS}),
    st.fixed_dictionaries({"law": st.just("rectified_normal"), "mean": st.floats(0, 2), "std": STDS}),
    st.builds(lambda a, b: {"law": "uniform", "low": a, "high": a + b}, MEANS, STDS),
)


def law_integral(law: Magnitude, power: int) -> float:
    """E|raw|^power by adaptive quadrature over the density."""
    if law.law == "constant":
        return 1.0
    if law.law == "uniform":
        pdf, low, high = stats.uniform(law.low, law.high - law.low).pdf, law.low, law.high
    else:
        pdf, low, high = stats.norm(law.mean, law.std).pdf, law.mean - 12 * law.std, law.mean + 12 * law.std
    if law.law == "rectified_normal":
        low = max(low, 0.0)
    cut = [min(max(point, low), high) for point in (low, 0.0, law.mean, high)]
    ends = sorted(set(cut))
    parts = itertools.pairwise(ends)
    return sum(integrate.quad(lambda a: abs(a) ** power * pdf(a), *part, epsabs=1e-13)[0] for part in parts)


@settings(deadline=None, max_examples=40)
@given(LAWS, st.integers(0, 2**31))
def test_magnitudes_have_the_stated_moments(spec: Any, seed: int) -> None:
    law = Magnitude.from_spec(spec, "magnitude")
    assert law.second_moment() == pytest.approx(law_integral(law, 2), rel=1e-8)
    rms = math.sqrt(law.second_moment())
    assert law.mean_abs() == pytest.approx(law_integral(law, 1) / rms, rel=1e-8)
    a = law.sample(20_000, torch.Generator().manual_seed(seed)).double()
    for values, expected in ((a.square(), 1.0), (a.abs(), law.mean_abs())):
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - expected) < 6.5 * error + 1e-6
    assert Magnitude.from_spec(law.spec(), "again") == law


def test_rectified_magnitudes_are_not_negative() -> None:
    law = Magnitude.from_spec({"law": "rectified_normal", "mean": 0.2, "std": 1.0}, "magnitude")
    a = law.sample(5000, torch.Generator().manual_seed(0))
    silent = stats.norm.cdf(-0.2)
    assert float(a.min()) == 0.0
    assert abs(float((a == 0).double().mean()) - silent) < 6 * math.sqrt(silent * (1 - silent) / 5000)


@settings(deadline=None, max_examples=20)
@given(LAWS, st.sampled_from(["line", "subspace"]), st.integers(0, 2**31))
def test_nonnegative_coordinates_keep_their_energy_and_have_the_stated_mean(law: Any, name: str, seed: int) -> None:
    manifold = manifolds[name](**({"dim": 1} if name == "subspace" else {}))
    kind = Kind(manifold, Magnitude.from_spec(law, "magnitude"), True)
    z = kind.sample(20_000, torch.Generator().manual_seed(seed))[0].double()
    assert float(z.min()) >= 0
    mean = kind.mean()
    assert mean is not None
    assert abs(float(z.mean()) - mean) < 6.5 * float(z.std()) / math.sqrt(len(z)) + 1e-6
    assert abs(float(z.square().mean()) - 1) < 6.5 * float(z.square().std()) / math.sqrt(len(z)) + 1e-6


def world(**group: Any) -> World:
    energy_mode = group.pop("energy_mode", "total")
    return World.from_spec(
        {
            "width": 16,
            "features": [{"manifold": "subspace", "dim": 2, **group}],
            "energy_mode": energy_mode,
            "support": {"law": "exact", "active": 1},
        }
    )


def test_lists_expand_to_groups_in_order() -> None:
    made = world(dim=[1, 3, 4], count=2)
    assert made.dims == [1, 1, 3, 3, 4, 4]
    assert [feature.name for feature in made.features][:3] == ["subspace-1/0", "subspace-1/1", "subspace-3/0"]


def test_energy_modes_and_rank_power() -> None:
    dims = [1, 3, 4]
    assert world(dim=dims).scales.tolist() == [1.0, 1.0, 1.0]
    assert world(dim=dims, energy_mode="per_dim").scales.square().tolist() == pytest.approx(dims)
    powered = world(dim=dims, magnitude={"law": "constant", "rank_power": 1.5})
    assert powered.scales.tolist() == pytest.approx([d**1.5 for d in dims])


def test_scales_are_drawn_once_per_feature_from_their_law() -> None:
    scales = world(count=4000, scale={"law": "lognormal", "median": 2.0, "sigma": 0.5}).scales.log()
    assert abs(float(scales.mean()) - math.log(2)) < 6 * 0.5 / math.sqrt(4000)
    assert abs(float(scales.std()) - 0.5) < 6 * 0.5 / math.sqrt(8000)
    uniform = world(count=4000, scale={"law": "uniform", "low": 1.0, "high": 3.0}).scales
    assert float(uniform.min()) >= 1 and float(uniform.max()) <= 3
    assert abs(float(uniform.mean()) - 2) < 6 * 2 / math.sqrt(12 * 4000)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"manifold": "circel"}, r"unknown manifold in features\[0\]: 'circel'; did you mean 'circle'"),
        ({"cuont": 3}, r"unknown key in features\[0\]: 'cuont'; did you mean 'count'"),
        ({"count": 0}, r"features\[0\].count is 0; expected an integer >= 1"),
        ({"count": True}, r"features\[0\].count is True"),
        ({"dim": 2.5}, r"features\[0\].dim is 2.5; expected an integer"),
        ({"dim": []}, r"features\[0\].dim is an empty list"),
        ({"dim": 0}, r"features\[0\]: Subspace.dim is 0"),
        ({"dim": 17}, "dimension 17 does not fit into width 16"),
        ({"name": 3}, r"features\[0\].name is 3"),
        ({"scale": -1}, r"features\[0\].scale is -1; expected a number > 0"),
        ({"scale": "big"}, r"features\[0\].scale is 'big'"),
        ({"scale": {"law": "lognormale"}}, "did you mean 'lognormal'"),
        ({"magnitude": "gausian"}, "did you mean 'gaussian'"),
        ({"magnitude": {"law": "uniform", "low": 2, "high": 1}}, r"magnitude.high is 1; expected a number > 2"),
        ({"magnitude": {"law": "gaussian", "low": 2}}, "unknown key .* 'low'"),
        ({"magnitude": {"law": "rectified_normal", "mean": -1, "std": 0}}, "always zero"),
        ({"nonnegative": True}, "for features of dimension 1"),
        ({"nonnegative": 1}, "expected true or false"),
        ({"manifold": "helix", "dim": 2}, "unknown key .* 'dim'"),
    ],
)
def test_bad_groups_are_named(group: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        world(**group)


def test_a_shape_that_is_not_a_number_is_refused() -> None:
    spec = {"manifold": "helix", "turns": float("nan")}
    with pytest.raises(UsageError, match="turns is nan; expected a finite number"):
        World.from_spec({"width": 16, "features": [spec], "support": {"law": "exact", "active": 1}})


def test_two_lists_in_one_group_are_refused() -> None:
    spec = {"manifold": "helix", "turns": [1.0, 2.0], "height": [1.0, 2.0]}
    with pytest.raises(UsageError, match="lists for turns, height"):
        World.from_spec({"width": 16, "features": [spec], "support": {"law": "exact", "active": 1}})
