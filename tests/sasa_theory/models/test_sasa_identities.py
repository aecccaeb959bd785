"""Identities of SASA that need no data: rank one is AbsTopK, rotating a block changes nothing, the gauge keeps maps."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models import SASA, SparseModel, TopK
from sasa_theory.models.base import unit_rows_


def randomise(model: SparseModel, seed: int) -> SparseModel:
    """Every trainable parameter random, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@st.composite
def cases(draw, max_rank: int = 4):
    """(model, rows, dead units) of drawn sizes; the penalty is on and some units are dead."""
    rank = draw(st.integers(min(2, max_rank), max_rank))
    width, groups = draw(st.integers(rank, 10)), draw(st.integers(2, 7))
    seed = draw(st.integers(0, 10**6))
    model = SASA(
        width,
        groups,
        rank,
        draw(st.integers(1, groups)),
        penalty=draw(st.sampled_from(["map", "decoder"])),
        penalise=draw(st.sampled_from(["active", "all"])),
        nuclear=draw(st.sampled_from([0.0, 0.3])),
        aux_groups=2,
        encoder_bias=draw(st.booleans()),
    )
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(draw(st.integers(2, 20)), width, generator=generator, dtype=torch.float64)
    return randomise(model, seed), x, torch.arange(groups) % 3 == 0


def rotated(model: SASA, seed: int) -> SASA:
    """The same map in other coordinates: enc_k Q, b_k Q, Q^T dec_k with a random orthogonal Q per block."""
    twin = copy.deepcopy(model)
    shape = (model.n_units, model.rank, model.rank)
    q = torch.linalg.qr(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    enc, dec = model.blocks()
    with torch.no_grad():
        twin.W_enc.copy_((enc @ q).permute(1, 0, 2).flatten(1))
        twin.W_dec.copy_((q.mT @ dec).flatten(0, 1))
        twin.b_enc.copy_((model.b_enc.unflatten(0, (model.n_units, 1, model.rank)) @ q).flatten())
    return twin


def sgd_step(model: SASA, x: torch.Tensor, dead: torch.Tensor, constrain) -> None:
    """One plain-SGD step, then `constrain(model, loss)`."""
    loss = model.loss(x, dead)
    loss.total.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
    constrain(model, loss)


def maps(model: SASA) -> torch.Tensor:
    enc, dec = model.blocks()
    return (enc @ dec).detach()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8 * max(1.0, float(b.detach().abs().max())))


@settings(max_examples=30, deadline=None)
@given(cases(max_rank=1))
def test_rank_one_is_signed_topk(case):
    sasa, x, dead = case
    sasa.nuclear = 0.0
    topk = TopK(sasa.width_in, sasa.n_units, sasa.active_groups, aux_latents=2, signed=True).double()
    topk.load_state_dict(sasa.state_dict())
    ours, theirs = sasa.loss(x, dead), topk.loss(x, dead)
    close(sasa(x), topk(x))
    close(ours.total, theirs.total)
    ours.total.backward()
    theirs.total.backward()
    for name in ("W_enc", "W_dec", "b_dec", *(["b_enc"] if sasa.encoder_bias else [])):
        close(getattr(sasa, name).grad, getattr(topk, name).grad)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 999))
def test_rotating_blocks_changes_nothing_even_after_a_step(case, seed):
    """Plain SGD with the Frobenius gauge is equivariant. (Adam is not: it scales each coordinate by itself.)"""
    model, x, dead = case
    twin = rotated(model, seed)
    close(twin(x), model(x))
    a, b = model.loss(x, dead), twin.loss(x, dead)
    for name in a.parts:
        close(b.parts[name], a.parts[name])
    for m in (model, twin):
        sgd_step(m, x, dead, lambda m, loss: m.post_step(loss))
    close(maps(twin), maps(model))
    close(twin(x), model(x))


def test_normalising_row_by_row_breaks_the_rotation_symmetry():
    """False twin of the gauge: unit decoder rows, norms folded into the encoder, give another function after a step."""
    generator = torch.Generator().manual_seed(0)
    model = randomise(SASA(6, 4, 3, 2, nuclear=0.1), 0)
    twin, x = rotated(model, 1), torch.randn(30, 6, generator=generator, dtype=torch.float64)

    def unit_rows(m: SASA, _loss) -> None:
        unit_rows_(m.W_dec)

    for m in (model, twin):
        sgd_step(m, x, torch.zeros(4, dtype=torch.bool), unit_rows)
    assert (maps(twin) - maps(model)).norm() > 0.1 * maps(model).norm()


@settings(max_examples=30, deadline=None)
@given(cases())
def test_the_gauge_fixes_block_norms_and_keeps_maps(case):
    model, x, dead = case
    # a group whose decoder vanished has no norm to fix and must stay finite
    with torch.no_grad():
        model.W_dec[: model.rank] = 0
    before, output = maps(model), model(x).detach()
    model.post_step(model.loss(x, dead))
    size = torch.linalg.vector_norm(model.blocks()[1], dim=(1, 2))
    close(size[1:].detach(), torch.full_like(size[1:], model.rank**0.5).detach())
    close(maps(model), before)
    if model.active_groups == model.n_units:
        close(model(x), output)


@pytest.mark.parametrize("penalty, expected", [("map", "sum"), ("decoder", "mean")])
def test_the_penalty_charges_what_it_says(penalty, expected):
    """Against torch's nuclear norm; groups that do not fire are free under "active" and charged under "all"."""
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for penalise in ("active", "all"):
        model = randomise(SASA(5, 6, 2, 1, penalty=penalty, penalise=penalise, nuclear=0.5), 3)
        enc, dec = model.blocks()
        norms = torch.linalg.matrix_norm(enc @ dec if penalty == "map" else dec, "nuc")
        loss = model.loss(x, penalty_scale=0.5)
        fired = loss.codes.counts() > 0
        assert 0 < int(fired.sum()) < 6
        charged = norms[fired].sum() if penalise == "active" else norms.sum()
        close(loss.parts["nuclear"], 0.25 * charged / (1 if expected == "sum" else 6))
