"""An l1 autoencoder begins with half of its latents on, by dense products, and ends with few, by the compiled step."""

from pathlib import Path

import pytest
import torch

from sasa_theory.models import build
from sasa_theory.training import Trainer, TrainSettings
from synthetic import World
from synthetic.errors import Interrupted

STEPS = 80


def trainer(out: "Path | None", taken: "list[bool] | None" = None) -> Trainer:
    """A training that writes down which of its steps the compiled step took."""
    world = World.from_spec("smoke")
    settings = TrainSettings(steps=STEPS, batch_size=64, lr=3e-3, dead_window=300, checkpoint_every=10)
    model = build("relu", width_in=world.width, n_latents=64, coefficient=0.3, target_l0=5.0)
    run = Trainer(model, world.batches(64, stream="train:0"), settings, out=out, progress=False)
    compiled = run.compiled
    if taken is not None and compiled is not None:
        gradients = compiled.gradients

        def seen(*of):
            loss = gradients(*of)
            taken.append(loss is not None)
            return loss

        compiled.gradients = seen
    return run


def test_both_ways_are_taken_and_lead_where_the_plain_path_leads() -> None:
    taken: list[bool] = []
    ours, plain = trainer(None, taken), trainer(None)
    plain.compiled = None
    ours.fit()
    plain.fit()
    assert not taken[0] and taken[-1]
    for (name, p), q in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-3, atol=1e-3), name
    assert torch.allclose(ours.model.coefficient(), plain.model.coefficient(), rtol=1e-3)


def test_a_run_that_was_stopped_changes_over_where_the_straight_one_does(tmp_path: Path) -> None:
    taken: list[bool] = []
    straight = trainer(tmp_path / "straight", taken)
    straight.fit()
    first = taken.index(True)
    assert 0 < first < STEPS
    for stop in (first - 1, first, first + 1):
        run = trainer(tmp_path / str(stop))
        run._late = lambda run=run, stop=stop: run.step >= stop
        with pytest.raises(Interrupted):
            run.fit()
        again = trainer(tmp_path / str(stop))
        again.fit(resume=True)
        for p, q in zip(again.model.state_dict().values(), straight.model.state_dict().values(), strict=True):
            assert torch.equal(p, q)
