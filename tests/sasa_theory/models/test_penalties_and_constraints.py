"""What a wrong penalty, limit or constraint would change: each test fails for a variant that the others let through."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models import BatchTopK, Codes, SparseModel, build, gated_torch
from sasa_theory.models.base import Loss, combine, reconstruction_error
from sasa_theory.models.nuclear import block_nuclear_norm, map_nuclear_norm

VECTORS = {
    "relu": {"coefficient": 0.3},
    "gated": {"coefficient": 0.3},
    "jumprelu": {"coefficient": 0.3},
    "topk": {"active_latents": 2},
    "batchtopk": {"active_latents": 2},
}


def random_model(name: str, width: int, units: int, seed: int, **extra) -> SparseModel:
    """Random float64 parameters, decoder rows of unequal norms."""
    model = build(name, width_in=width, n_latents=units, **(VECTORS[name] | extra)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def rows(n: int, width: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(3, 10), st.integers(2, 20), st.integers(0, 10**6), st.floats(0, 1))
def test_l1_counts_row_norms_and_is_warmed_up(width, units, n, seed, scale):
    x = rows(n, width, seed)
    for name in ("relu", "gated"):
        model = random_model(name, width, units, seed)
        gate = ((x - model.b_dec) @ model.W_enc + model.b_enc).relu()
        expected = scale * 0.3 * (gate * model.W_dec.norm(dim=1)).sum(1).mean()
        torch.testing.assert_close(model.loss(x, penalty_scale=scale).parts["sparsity"], expected, rtol=1e-6, atol=1e-9)
    model = random_model("jumprelu", width, units, seed)
    full = model.loss(x).parts["sparsity"]
    torch.testing.assert_close(model.loss(x, penalty_scale=scale).parts["sparsity"], scale * full)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(3, 10), st.integers(1, 12), st.integers(1, 20), st.integers(0, 10**6))
def test_the_auxiliary_loss_keeps_its_best_dead_latents_per_row(width, units, n_best, n, seed):
    """Enumerated row by row: sort the dead latents' rectified pre-activations of the residual, keep n_best."""
    model, x = random_model("topk", width, units, seed, aux_latents=n_best), rows(n, width, seed)
    dead = torch.arange(units) % 3 != 1
    loss = model.loss(x, dead)
    residual = (x - loss.xhat).detach()
    pre = ((residual @ model.W_enc + model.b_enc) * dead).relu()
    codes = torch.zeros_like(pre)
    for row in range(n):
        best = sorted(range(units), key=lambda k: -pre[row, k].item())[:n_best]
        codes[row, best] = pre[row, best]
    torch.testing.assert_close(loss.parts["auxiliary"], reconstruction_error(residual, codes @ model.W_dec))


def test_the_gate_reconstruction_leaves_the_output_bias_alone():
    """b_dec is the decoder's: it enters the gate's part through the encoder's input only."""
    model, x = random_model("gated", 5, 6, 0), rows(40, 5, 1)
    model.loss(x).parts["gate"].backward()
    gate = (x - model.b_dec) @ model.W_enc + model.b_enc
    error = gate.relu() @ model.W_dec + model.b_dec - x
    through_encoder = -2 * (((error @ model.W_dec.T) * (gate > 0)) @ model.W_enc.T).mean(0)
    torch.testing.assert_close(model.b_dec.grad, through_encoder.detach())


@pytest.mark.parametrize("plain", [False, True])
def test_batchtopk_threshold_ignores_zeros(plain, monkeypatch):
    """Where fewer than B k latents are positive, the smallest selected value is the smallest positive one."""
    if plain:
        monkeypatch.setattr(gated_torch, "available", lambda *tensors: False)
    model = BatchTopK(6, 6, 5)
    with torch.no_grad():
        model.W_enc.copy_(torch.eye(6))
    pre = torch.tensor([[0.0, 3.0, 0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0, 0.0, 0.0]])
    codes, smallest = model.choose(pre)
    assert float(smallest) == 0.5
    assert torch.equal(codes.dense()[..., 0], pre)
    assert float(model.choose(torch.zeros(2, 6))[1]) == 0


@pytest.mark.parametrize("name", list(VECTORS))
def test_decoder_rows_are_unit_after_a_step_and_a_zero_row_stays(name):
    model = random_model(name, 5, 6, 0)
    with torch.no_grad():
        model.W_dec[2] = 0
    encoder = model.W_enc.detach().clone()
    loss: Loss = model.loss(rows(20, 5, 1))
    model.post_step(loss)
    expected = torch.ones(6, dtype=torch.float64).index_fill(0, torch.tensor([2]), 0)
    torch.testing.assert_close(model.W_dec.detach().norm(dim=1), expected)
    assert torch.equal(model.W_enc, encoder)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 3), st.integers(1, 5), st.integers(0, 10**6))
def test_gated_codes_combine_as_their_dense_form(n, units, rank, width, seed):
    """Empty slots (index -1) included, in output and in both gradients."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(units, generator=generator) for _ in range(n)])
    index[torch.rand(index.shape, generator=generator) < 0.3] = -1
    values = torch.randn(n, units, rank, generator=generator, dtype=torch.float64) * (index >= 0)[..., None]
    table = torch.randn(units * rank, width, generator=generator, dtype=torch.float64)
    results = []
    for dense in (False, True):
        v, w = values.clone().requires_grad_(), table.clone().requires_grad_()
        codes = Codes(index, v, units)
        out = codes.dense().flatten(1) @ w if dense else combine(codes, w)
        out.square().sum().backward()
        results.append((out.detach(), w.grad, v.grad * (index >= 0)[..., None]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("small", [1e-2, 1e-3])
def test_autocast_leaves_the_small_singular_values_their_gradient(small):
    """Blocks with singular values (1, 1, small, small): Gram matrices in bf16 would make the small ones noise."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(64, 4, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    mix = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    root = torch.tensor([1, 1, small, small], dtype=torch.float64).sqrt()
    enc = (left * root @ mix).float()[None].requires_grad_()
    dec = (mix.T @ (right * root).T).float()[None].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        norm = map_nuclear_norm(enc, dec)
        block = block_nuclear_norm(dec)
    norm.sum().backward()
    exact = (left[:, 2:] @ right[:, 2:].T) @ dec[0].detach().double().T
    got = left[:, 2:] @ left[:, 2:].T @ enc.grad[0].double()
    assert (got - exact).norm() < 1e-3 * exact.norm()
    assert float(norm) == pytest.approx(2 + 2 * small, rel=1e-5)
    assert float(block) == pytest.approx(2 + 2 * small**0.5, rel=1e-5)
