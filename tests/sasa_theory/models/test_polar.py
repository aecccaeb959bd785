"""Newton-Schulz roots of Gram products against eigen-decompositions, and the nuclear norm of a GPU's path on a CPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models import nuclear
from sasa_theory.models.polar import product_roots


@st.composite
def factors(draw):
    """A (K, D, r) and B (K, r, D) in float64, singular values of both spread over at most 1e2."""
    units, rank = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    width = draw(st.integers(rank, 12))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def factor():
        left = torch.linalg.qr(torch.randn(units, width, rank, generator=g, dtype=torch.float64)).Q
        right = torch.linalg.qr(torch.randn(units, rank, rank, generator=g, dtype=torch.float64)).Q
        spread = draw(st.floats(0, 2))
        values = 10 ** (-spread * torch.rand(units, 1, rank, generator=g, dtype=torch.float64))
        return 10 ** draw(st.floats(-3, 3)) * (left * values) @ right

    return factor(), factor().mT


@settings(max_examples=60, deadline=None)
@given(factors())
def test_roots_are_the_roots(pair):
    enc, dec = pair
    left, right = dec @ dec.mT, enc.mT @ enc
    root, inverse, error = product_roots(left, right)
    assert error.max() < 1e-6
    product = left @ right
    size = product.abs().amax((1, 2), keepdim=True)
    assert ((root @ root - product).abs() <= 1e-8 * size).all()
    unit = torch.eye(root.shape[1], dtype=root.dtype).expand_as(root)
    torch.testing.assert_close(root @ inverse, unit, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(factors())
def test_the_gpus_norms_and_gradients_equal_the_eigensolvers(pair):
    enc, dec = pair
    gram_a, gram_b = enc.mT @ enc, dec @ dec.mT
    ours, theirs = nuclear._by_newton_schulz(gram_a, gram_b), nuclear._by_eigenvectors(gram_a, gram_b)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=0)
    for a, b in ((enc @ ours[1], enc @ theirs[1]), (ours[2] @ dec, theirs[2] @ dec)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))


@pytest.mark.parametrize("kind", ["zero", "rank deficient", "tiny"])
def test_degenerate_blocks_give_a_finite_subgradient(kind):
    """<G, A> = ||A B||_* in each factor (Euler), and no singular value of U V^T above one."""
    g = torch.Generator().manual_seed(0)
    enc = torch.randn(3, 9, 4, generator=g, dtype=torch.float64)
    dec = torch.randn(3, 4, 9, generator=g, dtype=torch.float64)
    if kind == "zero":
        enc[1] = 0
    elif kind == "rank deficient":
        enc[1, :, 3], dec[1, 3] = enc[1, :, 0], dec[1, 0]
    else:
        enc[1, :, 3] *= 1e-9
    gram_a, gram_b = enc.mT @ enc, dec @ dec.mT
    root, inverse, error = product_roots(gram_b, gram_a)
    value = torch.linalg.svdvals(enc @ dec).sum(-1)
    torch.testing.assert_close(root.diagonal(dim1=-2, dim2=-1).sum(-1), value, rtol=1e-6, atol=1e-9)
    assert (error > 1e-6).tolist() == [False, True, False]
    torch.testing.assert_close((enc @ inverse @ gram_b * enc).sum((1, 2)), value, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close((gram_a @ inverse @ dec * dec).sum((1, 2)), value, rtol=1e-5, atol=1e-9)
    assert torch.linalg.svdvals(enc @ inverse @ dec).max() < 1 + 1e-6


@pytest.mark.gpu
def test_the_penalty_on_a_gpu_equals_the_cpus_and_never_waits():
    g = torch.Generator().manual_seed(0)
    enc, dec = torch.randn(50, 64, 6, generator=g), torch.randn(50, 6, 64, generator=g)

    def value_and_gradients(norm, *tensors):
        tensors = [t.requires_grad_() for t in tensors]
        value = norm(*tensors).sum()
        value.backward()
        return [value.detach().cpu(), *(t.grad.cpu() for t in tensors)]

    for norm, tensors in ((nuclear.map_nuclear_norm, (enc, dec)), (nuclear.block_nuclear_norm, (dec,))):
        theirs = value_and_gradients(norm, *(t.clone() for t in tensors))
        moved = [t.cuda() for t in tensors]
        norm(*moved)  # handles and workspaces
        torch.cuda.set_sync_debug_mode("error")
        try:
            norm(*(t.requires_grad_() for t in moved)).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        ours = value_and_gradients(norm, *(t.cuda() for t in tensors))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
