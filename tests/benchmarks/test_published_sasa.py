"""The restated published step against the same formulas written row by row in float64, and the loop around it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.published_sasa import AUX_COLUMNS, PublishedSASA, PublishedTrainer


def row_by_row(model, x, dead):
    """Loss and gradients in float64: one row at a time, singular values from an SVD of each block."""
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    w_enc, b_enc, w_dec, b_dec = (weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    r, total, x = model.rank, torch.zeros((), dtype=torch.float64), x.double()
    best = min(AUX_COLUMNS, int(dead.sum()), x.shape[1] // 2)
    for row in x:
        p = w_enc.T @ (row - b_dec) + b_enc
        norms = [float(p[g * r : g * r + r].detach().norm()) for g in range(model.n_groups)]
        xhat = b_dec
        for g in sorted(range(model.n_groups), key=lambda g: -norms[g])[: model.active]:
            for column in range(g * r, g * r + r):
                xhat = xhat + p[column] * w_dec[column]
        total = total + (row - xhat).square().sum() / len(x)
        if best:
            chosen = sorted(dead.nonzero().flatten().tolist(), key=lambda column: -float(p[column].detach()))[:best]
            guess = sum(p[column] * w_dec[column] for column in chosen)
            total = total + (guess - (row - xhat).detach()).square().sum() / len(x)
    for g in range(model.n_groups):
        total = total + model.nuclear * torch.linalg.svdvals(w_dec[g * r : g * r + r]).sum() / model.n_groups
    total.backward()
    return float(total.detach()), {name: p.grad for name, p in weights.items()}


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(2, 12),
    n_groups=st.integers(1, 8),
    rank=st.integers(1, 5),
    batch=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_loss_and_gradients_are_those_of_the_formulas(width, n_groups, rank, batch, share, seed, data):
    rank = min(rank, width)  # beyond it some singular value is zero, where the norm has a kink
    active = data.draw(st.integers(1, n_groups))
    torch.manual_seed(seed)
    model = PublishedSASA(width, n_groups, rank, active, nuclear=3.0)
    with torch.no_grad():
        for parameter in (model.W_enc, model.W_dec):
            parameter.add_(0.3 * torch.randn_like(parameter))
        for parameter in (model.b_enc, model.b_dec):
            parameter.copy_(torch.randn_like(parameter))
        # blocks of nearly dependent rows have singular values near that kink: they are made orthogonal, then bent
        blocks = torch.linalg.qr(torch.randn(n_groups, width, rank)).Q.mT + 0.1 * torch.randn(n_groups, rank, width)
        model.W_dec.copy_(blocks.reshape(-1, width))
    x = torch.randn(batch, width)
    dead = torch.rand(n_groups * rank) < share
    result = model.loss(x, dead)
    result.total.backward()
    total, gradients = row_by_row(model, x, dead)
    assert float(result.total.detach()) == pytest.approx(total, rel=1e-5)
    for name, parameter in model.named_parameters():
        expected = gradients[name]
        assert (parameter.grad.double() - expected).norm() <= 1e-5 * max(float(expected.norm()), 1e-2), name


def test_a_step_normalises_counts_firing_and_lowers_the_loss():
    torch.manual_seed(0)
    model = PublishedSASA(16, 12, 2, 3, nuclear=0.0)
    trainer = PublishedTrainer(model, lr=1e-2)
    with torch.no_grad():
        model.W_dec *= 3
    x = torch.randn(64, 16)
    losses = [float(trainer.step(x)) for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]
    model.normalise()
    assert torch.allclose(model.W_dec.norm(dim=1), torch.ones(24)) and torch.allclose(
        model.W_enc.norm(dim=0), torch.ones(24)
    )
    assert float(trainer.frequency.sum()) == 30 * 64 * 3 * 2
    assert bool((trainer.silent_steps <= 30).all())


def test_dead_columns_alone_get_gradients_from_the_auxiliary_loss():
    torch.manual_seed(0)
    model = PublishedSASA(16, 12, 2, 3)
    dead = torch.zeros(24, dtype=torch.bool)
    dead[4:8] = True
    model.loss(torch.randn(32, 16), dead).parts["auxiliary"].backward()
    assert bool((model.W_enc.grad.norm(dim=0) > 0).eq(dead).all())
    assert bool((model.W_dec.grad.norm(dim=1) > 0).eq(dead).all())
