"""Gram-based nuclear norms against torch's SVD, in value and gradient, and on the blocks where SVD gradients break."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models.nuclear import block_nuclear_norm, map_nuclear_norm


@st.composite
def blocks(draw):
    """Encoder (K, D, r) and decoder (K, r, D) blocks in float64, r <= D."""
    units, rank = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    width = draw(st.integers(rank, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    size = 10 ** draw(st.floats(-3, 3))
    return (
        size * torch.randn(units, width, rank, generator=generator, dtype=torch.float64),
        torch.randn(units, rank, width, generator=generator, dtype=torch.float64),
    )


def value_and_gradients(norm, *tensors):
    """Weighted sum of the norms (weights differ per unit, to catch mixed-up units) and its gradients."""
    tensors = [t.clone().requires_grad_() for t in tensors]
    norms = norm(*tensors)
    (norms * torch.arange(1.0, len(norms) + 1, dtype=norms.dtype)).sum().backward()
    return [norms.detach(), *(t.grad for t in tensors)]


@settings(max_examples=50, deadline=None)
@given(blocks())
def test_map_norm_equals_svd(pair):
    ours = value_and_gradients(map_nuclear_norm, *pair)

    # autograd of the D x D SVD is singular at the D - r zero singular values, so a QR-reduced core carries it
    def by_svd(enc, dec):
        core = torch.linalg.qr(enc).R @ torch.linalg.qr(dec.mT).R.mT
        return torch.linalg.svdvals(core).sum(-1)

    theirs = value_and_gradients(by_svd, *pair)
    torch.testing.assert_close(ours[0], torch.linalg.svdvals(pair[0] @ pair[1]).sum(-1), rtol=1e-6, atol=1e-9)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))


@settings(max_examples=50, deadline=None)
@given(blocks())
def test_block_norm_equals_svd(pair):
    ours = value_and_gradients(block_nuclear_norm, pair[1])
    theirs = value_and_gradients(lambda dec: torch.linalg.svdvals(dec).sum(-1), pair[1])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))


def degenerate(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    enc = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dec = enc.mT.clone()
    if kind == "zero":
        enc[1], dec[1] = 0, 0
    elif kind == "zero decoder":
        dec[1] = 0
    elif kind == "rank deficient":
        enc[1, :, 3], dec[1, 3] = enc[1, :, 0], dec[1, 0]
    else:  # all singular values equal
        frame = torch.linalg.qr(enc[1]).Q
        enc[1], dec[1] = frame, frame.T
    return enc, dec


@pytest.mark.parametrize("kind", ["zero", "zero decoder", "rank deficient", "repeated"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_degenerate_blocks_have_finite_subgradients(kind, dtype):
    """Value as by SVD; the gradient satisfies <G, A> = ||A B||_* in each factor (Euler, the norm being homogeneous)."""
    enc, dec = (t.to(dtype) for t in degenerate(kind))
    value, grad_enc, grad_dec = value_and_gradients(map_nuclear_norm, enc, dec)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(value, torch.linalg.svdvals(enc @ dec).sum(-1), **tolerance)
    weights = torch.arange(1, 4)
    for gradient, factor in ((grad_enc, enc), (grad_dec, dec)):
        assert gradient.isfinite().all()
        torch.testing.assert_close((gradient * factor).sum((1, 2)), value * weights, **tolerance)
    value, gradient = value_and_gradients(block_nuclear_norm, dec)
    assert gradient.isfinite().all()
    torch.testing.assert_close((gradient * dec).sum((1, 2)), value * weights, **tolerance)
    # minimal: no direction outside the block's row space
    basis = torch.linalg.svd(dec[1].double())
    outside = basis.Vh[(basis.S > 1e-4).sum() :]
    assert (gradient[1].double() @ outside.T).abs().max() < 1e-4
