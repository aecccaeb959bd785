"""The trainer's optimiser: a step over transposed views is torch's own step, to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sasa_theory.training import TrainSettings
from sasa_theory.training.optimizer import make_optimizer, step


def weights(rows: int, columns: int, seed: int) -> "list[nn.Parameter]":
    """A matrix that lies column by column, one that lies row by row, a vector, and one that is not trained."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(columns, rows, generator=generator).T, torch.randn(columns, rows, generator=generator)]
    vectors = [torch.randn(columns, generator=generator) for _ in range(2)]
    made = [nn.Parameter(value) for value in (*drawn, *vectors)]
    made[-1].requires_grad_(False)
    return made


@settings(deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    steps=st.integers(1, 4),
    kind=st.sampled_from([("adam", 0.0), ("adamw", 0.1)]),
    seed=st.integers(0, 2**31),
)
def test_a_step_is_torchs_own(rows: int, columns: int, steps: int, kind: tuple[str, float], seed: int) -> None:
    """Weights, moments and their layout equal those of optimizer.step()."""
    settings = TrainSettings(steps=1, batch_size=1, optimizer=kind[0], weight_decay=kind[1])  # type: ignore[arg-type]
    ours, theirs = weights(rows, columns, seed), weights(rows, columns, seed)
    optimizers = [make_optimizer(parameters, settings) for parameters in (ours, theirs)]
    for number in range(steps):
        for parameters in (ours, theirs):
            generator = torch.Generator().manual_seed(seed ^ number)
            for p in parameters:
                if p.requires_grad:
                    gradient = torch.randn(p.T.shape if p.dim() == 2 else p.shape, generator=generator)
                    p.grad = gradient.T if p.dim() == 2 else gradient
        step(optimizers[0])
        optimizers[1].step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
        for name, held in optimizers[0].state.get(a, {}).items():
            other = optimizers[1].state[b][name]
            assert torch.equal(held, other) and held.shape == other.shape


def test_a_step_that_fails_leaves_the_weights_as_they_lie() -> None:
    """The views are turned back when torch raises."""
    parameters = weights(3, 5, 0)
    optimizer = make_optimizer(parameters, TrainSettings(steps=1, batch_size=1))
    parameters[0].grad = torch.ones(5, 3).T
    optimizer.param_groups[0]["betas"] = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        step(optimizer)
    assert parameters[0].shape == (3, 5) and parameters[0].grad.shape == (3, 5)
