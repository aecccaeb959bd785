"""One identity of its own paper for each relative: Matryoshka and the three block-sparse featurizers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models import BSF, SASA, AbsTopK, BatchTopK, Grassmannian, GroupLasso, Matryoshka, TopK, build
from sasa_theory.models.grouplasso import block_soft_threshold

seeds = st.integers(0, 10**6)


def normal(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def disturbed(model, seed: int):
    """The model in float64 with every trained parameter moved at random."""
    model = model.double()
    with torch.no_grad():
        for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.add_(normal(*parameter.shape, seed=seed + i, scale=0.3))
    return model


def assert_same_loss(a, b, x, dead) -> None:
    """Equal totals and equal gradients of every shared parameter."""
    first, second = a.loss(x, dead), b.loss(x, dead)
    torch.testing.assert_close(first.total, second.total)
    first.total.backward()
    second.total.backward()
    theirs = dict(b.named_parameters())
    for name, parameter in a.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)


# ---- Matryoshka ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(3, 20), st.data(), seeds)
def test_matryoshka_is_the_sum_over_truncated_dictionaries(width, latents, data, seed):
    """Each term is BatchTopK's reconstruction with the rows beyond the prefix set to zero."""
    sizes = sorted(data.draw(st.sets(st.integers(1, latents), max_size=4)) | {latents})
    active = data.draw(st.integers(1, latents))
    model = disturbed(Matryoshka(width, latents, active, prefixes=sizes), seed)
    x = normal(12, width, seed=seed + 99)
    loss = model.loss(x)
    plain = BatchTopK(width, latents, active).double()
    errors = []
    for size in sizes:
        plain.load_state_dict(model.state_dict())
        with torch.no_grad():
            codes = plain.loss(x).codes.dense()[..., 0].clone()
            codes[:, size:] = 0
            errors.append((x - codes @ plain.W_dec - plain.b_dec).square().sum(1).mean())
    torch.testing.assert_close(loss.total.detach(), torch.stack(errors).sum())
    torch.testing.assert_close(loss.parts["reconstruction"].detach(), errors[-1])


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 6), st.integers(3, 20), seeds)
def test_matryoshka_of_one_prefix_is_batchtopk(width, latents, seed):
    one = disturbed(Matryoshka(width, latents, 2, prefixes=[latents]), seed)
    plain = BatchTopK(width, latents, 2).double()
    plain.load_state_dict(one.state_dict())
    assert_same_loss(one, plain, normal(15, width, seed=seed + 99), torch.arange(latents) % 3 == 0)


@pytest.mark.parametrize("latents, sizes", [(256, [16, 32, 64, 128, 256]), (3, [1, 3]), (40, [2, 5, 10, 20, 40])])
def test_matryoshka_nests_halves_by_default(latents, sizes):
    assert Matryoshka(4, latents, 1).prefixes == sizes
    assert Matryoshka(4, latents, 1, prefixes=[1]).prefixes == [1, latents], "the whole dictionary is always a term"


def test_matryoshka_charges_early_latents_more():
    """On data with one frequent direction, the gradient on a latent of the first prefix is as many times the other's
    as there are terms it stands in, all else equal."""
    model = Matryoshka(3, 4, 2, prefixes=[1, 2, 4]).double()
    with torch.no_grad():
        model.W_dec.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, 1.0]]))
        model.W_enc.copy_(0.5 * model.W_dec.T)
    model.loss(torch.eye(3, dtype=torch.float64)[:2]).total.backward()
    # latents 0 and 1 code rows 0 and 1 in the same way; latent 0 is in three terms, latent 1 in two
    assert float(model.W_dec.grad[0, 0] / model.W_dec.grad[1, 1]) == pytest.approx(3 / 2)


# ---- vanilla -------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(3, 9), st.integers(1, 3), seeds)
def test_vanilla_blocks_of_one_column_are_abstopk(width, units, active, seed):
    bsf = disturbed(BSF(width, units, 1, active), seed)
    dead = torch.arange(units) % 2 == 0
    x = normal(15, width, seed=seed + 99)
    for twin in (AbsTopK(width, units, active), TopK(width, units, active, signed=True)):
        twin = twin.double()
        twin.load_state_dict(bsf.state_dict())
        bsf.zero_grad()
        assert_same_loss(bsf, twin, x, dead)
        twin.post_step(twin.loss(x))
    bsf.post_step(bsf.loss(x))
    torch.testing.assert_close(bsf.state_dict(), twin.state_dict())


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 7), st.integers(3, 9), st.integers(1, 3), st.integers(1, 3), seeds)
def test_vanilla_is_sasa_without_nuclear_norm(width, units, rank, active, seed):
    bsf = disturbed(BSF(width, units, rank, active), seed)
    sasa = SASA(width, units, rank, active, nuclear=0.0, encoder_bias=True).double()
    sasa.load_state_dict(bsf.state_dict())
    assert_same_loss(bsf, sasa, normal(15, width, seed=seed + 99), torch.arange(units) % 2 == 0)
    bsf.post_step(bsf.loss(normal(4, width, seed=seed)))
    norms = bsf.W_dec.detach().unflatten(0, (units, rank)).norm(dim=(1, 2))
    torch.testing.assert_close(norms, torch.full_like(norms, rank**0.5))


# ---- Grassmannian --------------------------------------------------------------------------------------------------


def trained_grassmannian(width: int, units: int, rank: int, seed: int, steps: int = 5) -> Grassmannian:
    """A few large steps of Adam, as the trainer takes them."""
    model = Grassmannian(width, units, rank, min(2, units)).double()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        loss = model.loss(normal(20, width, seed=seed + step), torch.arange(units) == 0)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        model.post_step(loss)
    return model


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 7), st.integers(1, 6), st.integers(1, 3), seeds)
def test_grassmannian_blocks_are_scaled_projectors(width, units, rank, seed):
    """After any number of steps: orthonormal frames, and maps gamma_k P_k with P_k an orthogonal projector."""
    model = trained_grassmannian(width, units, rank, seed)
    enc, dec = (block.detach().clone() for block in model.blocks())
    eye = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(dec @ dec.mT, eye.expand(units, rank, rank))
    assert not torch.allclose(model.gamma, torch.ones_like(model.gamma)), "gamma is trained"
    projector = dec.mT @ dec
    with torch.no_grad():
        model.W_dec.neg_()
    model.post_step()
    torch.testing.assert_close(model.blocks()[1].detach(), -dec, msg="frames that are orthonormal do not flip")
    torch.testing.assert_close(enc @ dec, model.gamma.detach()[:, None, None] * projector)
    torch.testing.assert_close(projector @ projector, projector)


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 7), st.integers(2, 6), st.integers(1, 2), seeds)
def test_grassmannian_code_is_the_projection_and_the_gate_its_energy(width, units, rank, seed):
    """At gamma = 1 the blocks kept are those nearest to the input, and each leaves the residual of the projection."""
    model = trained_grassmannian(width, units, rank, seed)
    with torch.no_grad():
        model.gamma.fill_(1.0)
        model.post_step()
        x = normal(10, width, seed=seed + 7)
        codes = model.encode(x)
        frames = model.blocks()[1]
        p = torch.einsum("krd,bd->bkr", frames, x - model.b_dec)  # r < D: frames of all of R^D would tie
        distance = (x - model.b_dec).square().sum(1, keepdim=True) - p.square().sum(-1)
        nearest = distance.topk(2, largest=False).indices.sort(1).values
        assert torch.equal(codes.index.sort(1).values, nearest)
        torch.testing.assert_close(codes.dense()[codes.dense() != 0], p[codes.dense() != 0])


@settings(max_examples=10, deadline=None)
@given(st.integers(3, 7), st.integers(2, 6), st.integers(1, 3), seeds)
def test_grassmannian_learns_along_its_frames_through_both_sides(width, units, rank, seed):
    """All blocks on, so no gate: loss = mean ||y - sum_k gamma_k D_k D_k^T y||^2 by plain autograd, and of its gradient
    what is tangent to the frames: G - (G D^T + D G^T) D / 2."""
    model = disturbed(Grassmannian(width, units, rank, units), seed)
    model.post_step()
    x = normal(10, width, seed=seed + 7)
    model.loss(x).total.backward()
    frames, gamma = (p.detach().clone().requires_grad_() for p in (model.W_dec, model.gamma))
    y = x - model.b_dec.detach()
    maps = torch.einsum("k,krd,kre->de", gamma, *[frames.unflatten(0, (units, rank))] * 2)
    (y - y @ maps).square().sum(1).mean().backward()
    g, d = (value.unflatten(0, (units, rank)) for value in (frames.grad, frames.detach()))
    tangent = g - 0.5 * (g @ d.mT + d @ g.mT) @ d
    torch.testing.assert_close(model.W_dec.grad, tangent.flatten(0, 1))
    torch.testing.assert_close(model.gamma.grad, gamma.grad)
    assert model.W_enc.grad is None


# ---- group lasso ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.floats(1e-3, 3), st.floats(0.01, 3), seeds)
def test_the_block_soft_threshold_is_the_proximal_map_of_the_norm(rank, theta, size, seed):
    """c minimises 1/2 ||c - p||^2 + theta ||c||: the subgradient condition, and no random point is better."""
    p = normal(40, rank, seed=seed, scale=size)
    c = block_soft_threshold(p, torch.tensor(theta, dtype=torch.float64))
    on = c.norm(dim=1) > 0
    torch.testing.assert_close(p[on] - c[on], theta * c[on] / c[on].norm(dim=1, keepdim=True))
    assert (p[~on].norm(dim=1) <= theta * (1 + 1e-12)).all()
    cost = 0.5 * (c - p).square().sum(1) + theta * c.norm(dim=1)
    for i in range(20):
        other = c + normal(40, rank, seed=seed + i, scale=0.1 * size)
        assert (0.5 * (other - p).square().sum(1) + theta * other.norm(dim=1) >= cost - 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 3), seeds)
def test_blocks_of_one_column_are_the_l1_soft_threshold(theta, seed):
    """And on positive inputs a relu whose bias is -theta."""
    p, theta = normal(200, 1, seed=seed), torch.tensor(theta, dtype=torch.float64)
    c = block_soft_threshold(p, theta)
    torch.testing.assert_close(c, p.sign() * (p.abs() - theta).relu())
    torch.testing.assert_close(block_soft_threshold(p.abs(), theta), (p.abs() - theta).relu())


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 6), st.integers(2, 6), st.integers(1, 3), st.floats(0, 1), seeds)
def test_group_lasso_loss_is_its_formula(width, units, rank, scale, seed):
    model = disturbed(build("grouplasso", width_in=width, n_groups=units, group_rank=rank, coefficient=0.2), seed)
    assert isinstance(model, GroupLasso)
    x = normal(12, width, seed=seed + 9)
    x[0] = model.b_dec.detach()
    loss = model.loss(x, penalty_scale=scale)
    theta = model.log_threshold.detach().exp()
    penalty, xhat = 0.0, model.b_dec.detach().repeat(12, 1)
    for row in range(12):
        for k in range(units):
            columns = slice(k * rank, (k + 1) * rank)
            p = ((x[row] - model.b_dec) @ model.W_enc[:, columns] + model.b_enc[columns]).detach()
            kept = max(1 - float(theta / p.norm()), 0) if p.any() else 0.0
            penalty += float((kept * p).norm()) / 12
            xhat[row] += (kept * p) @ model.W_dec[columns].detach()
    torch.testing.assert_close(loss.xhat.detach(), xhat)
    assert float(loss.parts["sparsity"].detach()) == pytest.approx(scale * 0.2 * penalty, rel=1e-6, abs=1e-9)
    loss.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters()), "a block that is off has a gradient of zero"


def test_group_lasso_finds_the_target_number_of_columns():
    """Planes in R^8, two in ten rows each: the steered coefficient brings the active columns to the target."""
    generator = torch.Generator().manual_seed(0)
    planes = torch.linalg.qr(torch.randn(6, 8, 2, generator=generator)).Q.mT
    model = build("grouplasso", width_in=8, n_groups=8, group_rank=2, target_l0=4.0, initial_threshold=0.05)
    model.initialise(generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    seen = []
    for step in range(1200):
        z = torch.randn(256, 6, 2, generator=generator) * (torch.rand(256, 6, 1, generator=generator) < 0.2)
        loss = model.loss(torch.einsum("bkr,krd->bd", z, planes))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        model.post_step(loss)
        if step >= 1000:
            seen.append(float(loss.state["l0"]))
    assert sum(seen) / len(seen) == pytest.approx(4.0, rel=0.15)
    assert float(model.log_threshold.detach().exp()) > 0.05, "the threshold is learned"
