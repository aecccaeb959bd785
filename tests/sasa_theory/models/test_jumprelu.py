"""JumpReLU: where a training begins, and that it is held at the L0 it is told."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.evaluation import Sparsity, run
from sasa_theory.models import build
from sasa_theory.models.jumprelu import DENSER, LOWEST, MOST_SHARE, TARGET_WEIGHT
from sasa_theory.training import Trainer, TrainSettings
from synthetic import World
from synthetic.errors import UsageError


def rows(n, width, seed, scale=1.0):
    return scale * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 24), st.integers(20, 80), st.floats(0.2, 30.0), st.floats(1e-3, 1e3), st.integers(0, 999))
def test_training_begins_on_a_quantile_of_the_first_rows(width, latents, target, scale, seed):
    """The wanted share of pairs is on, and threshold, window and coefficient follow the scale of the rows."""
    x = rows(500, width, seed)

    def begun(factor):
        model = build("jumprelu", width_in=width, n_latents=latents, target_l0=min(target, latents / 2))
        model.begin(factor * x)
        return model

    model, scaled = begun(1.0), begun(scale)
    l0, wanted = float(model.encode(x).l0().double().mean()), min(target, latents / 2)
    most = max(wanted, min(DENSER * wanted, MOST_SHARE * latents))
    # a small width may have fewer pre-activations above 0 than wanted; the threshold then stands at its lowest
    lowest = LOWEST * 2 * float(model.bandwidth)
    assert l0 == pytest.approx(most, abs=1.0) or float(model.threshold[0].detach()) == pytest.approx(lowest)
    torch.testing.assert_close(scaled.threshold, scale * model.threshold, rtol=1e-3, atol=0)
    torch.testing.assert_close(scaled.bandwidth, scale * model.bandwidth, rtol=1e-3, atol=0)
    torch.testing.assert_close(scaled.coefficient, scale**2 * model.coefficient, rtol=1e-3, atol=0)
    assert float(model.coefficient) == pytest.approx(TARGET_WEIGHT * float(x.square().sum(1).mean()), rel=1e-4)


def test_what_is_given_stays():
    model = build(
        "jumprelu", width_in=4, n_latents=9, initial_threshold=0.3, bandwidth=0.2, coefficient=0.7, target_l0=2.0
    )
    model.begin(rows(50, 4, 0, 10.0))
    torch.testing.assert_close(model.threshold, torch.full((9,), 0.3))
    assert float(model.bandwidth) == pytest.approx(0.2) and float(model.coefficient) == pytest.approx(0.7)


def test_rows_without_variance_begin_with_positive_thresholds():
    model = build("jumprelu", width_in=4, n_latents=9)
    model.begin(torch.zeros(10, 4))
    assert bool((model.threshold > 0).all()) and float(model.bandwidth) > 0
    assert torch.isfinite(model.loss(torch.zeros(10, 4)).total)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"target_l0": 0.0}, "target_l0 is 0.0"),
        ({"target_l0": 10.0}, "target_l0 is 10.0; expected a number between 0.001 and 9"),
        ({"coefficient": -1.0}, "coefficient is -1.0"),
        ({"coefficient": 0.0, "target_l0": 2.0}, "coefficient is 0.0"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"initial_threshold": 0.0}, "initial_threshold is 0.0"),
    ],
)
def test_what_cannot_be_is_named(given, words):
    with pytest.raises(UsageError, match=words):
        build("jumprelu", width_in=4, n_latents=9, **given)


@st.composite
def worlds(draw):
    """Features of several dimensions, on together or not, at any scale; a target within what they can fill."""
    active, dim = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    spec = {
        "width": 24,
        "features": [{"manifold": "subspace", "dim": dim, "count": 8}],
        "support": {"law": "exact", "active": active},
        "noise": 0.01,
        "energy": active * draw(st.sampled_from([1e-2, 1.0, 1e2])),
    }
    return World.from_spec(spec), active * draw(st.floats(0.5, 1.5)) * dim


def trained_l0(world, target, seed, **more):
    model = build("jumprelu", width_in=world.width, n_latents=96, target_l0=target, **more)
    training = TrainSettings(steps=500, batch_size=256, lr=3e-3, decay_fraction=0.3, dead_window=30 * 256, seed=seed)
    trained = Trainer(model, world.batches(256), training, progress=False).fit()
    return run(trained, world, 4096, [Sparsity()])["l0"].l0


@settings(max_examples=3, deadline=None)
@given(worlds(), st.integers(0, 99))
def test_training_ends_at_the_l0_it_is_told(world_and_target, seed):
    world, target = world_and_target
    assert trained_l0(world, target, seed) == pytest.approx(target, rel=0.15)


def test_without_the_weight_of_its_target_it_does_not():
    """The false twin of the test above."""
    spec = {"width": 24, "features": [{"manifold": "subspace", "dim": 3, "count": 8}], "noise": 0.01}
    world = World.from_spec({**spec, "support": {"law": "exact", "active": 2}})
    assert trained_l0(world, 3.0, 0) == pytest.approx(3.0, rel=0.15)
    assert trained_l0(world, 3.0, 0, coefficient=1e-9) != pytest.approx(3.0, rel=0.15)
