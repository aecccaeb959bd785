"""The compiled step against the plain one: same codes, loss, gradients and weights, whatever the shapes."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sasa_theory.models import SASA, build
from sasa_theory.models.base import Loss, SparseModel
from sasa_theory.models.compiled import gate
from sasa_theory.models.compiled.step import CompiledStep

RTOL = 1e-5


@st.composite
def cases(draw: st.DrawFn) -> tuple[SparseModel, torch.Tensor, "torch.Tensor | None", float]:
    """A gated model with uneven weights, a batch whose dimensions differ in size, dead units, a penalty scale."""
    width, units, rank = draw(st.integers(1, 40)), draw(st.integers(1, 60)), draw(st.integers(1, 7))
    best = draw(st.integers(1, units))
    aux = draw(st.integers(0, 9))
    kind = draw(st.sampled_from(["sasa", "bsf", "topk", "abstopk", "batchtopk", "matryoshka"]))
    if kind == "sasa":
        model = build(
            "sasa",
            width_in=width,
            n_groups=units,
            group_rank=rank,
            active_groups=best,
            nuclear=draw(st.sampled_from([0.0, 0.3])),
            penalty=draw(st.sampled_from(["map", "decoder"])),
            penalise=draw(st.sampled_from(["active", "all"])),
            aux_groups=aux,
            encoder_bias=draw(st.booleans()),
            gauge=draw(st.booleans()),
        )
    elif kind == "bsf":
        model = build(kind, width_in=width, n_groups=units, group_rank=rank, active_groups=best, aux_groups=aux)
    else:
        nested = {"prefixes": sorted(draw(st.sets(st.integers(1, units), max_size=4)))} if kind == "matryoshka" else {}
        model = build(kind, width_in=width, n_latents=units, active_latents=best, aux_latents=aux, **nested)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    with torch.no_grad():
        model.W_enc.copy_(normal(*model.W_enc.shape))
        model.W_dec.copy_(normal(*model.W_dec.shape))
        model.b_dec.copy_(normal(width))
        if model.b_enc.requires_grad:
            model.b_enc.copy_(0.3 * normal(len(model.b_enc)))
    spread = torch.exp(draw(st.sampled_from([0.0, 2.0])) * normal(width))
    x = normal(draw(st.integers(1, 70)), width) * spread + normal(width)
    dead = torch.rand(units, generator=generator) < 0.4 if draw(st.booleans()) else None
    return model, x, dead, draw(st.sampled_from([1.0, 0.25]))


def adam(model: SparseModel, decay: bool = False) -> torch.optim.Optimizer:
    """As the trainer makes it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, 1e-2, weight_decay=0.1) if decay else torch.optim.Adam(parameters, 1e-2)


def close(ours: torch.Tensor, plain: torch.Tensor, size: float) -> bool:
    """Equal to RTOL of `size`, the length of what it is part of."""
    return bool((ours.double() - plain.double()).norm() <= RTOL * size)


@pytest.fixture(autouse=True, params=["candidates", "product"])
def gate_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of the gate, which the number of weights would choose between."""
    monkeypatch.setattr(gate, "SMALL", 0 if request.param == "candidates" else 1 << 30)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_equals_the_plain_step_in_float64(case: tuple[SparseModel, torch.Tensor, "torch.Tensor | None", float]) -> None:
    model, x, dead, scale = case
    twin, rounded = copy.deepcopy(model).double(), copy.deepcopy(model)
    step = CompiledStep.of(model, adam(model))
    assert step is not None
    ours, plain = step.gradients(x, dead, scale), twin.loss(x.double(), dead, scale)
    plain.total.backward()
    rounded.loss(x, dead, scale).total.backward()
    chosen, right = ours.codes.dense().double(), plain.codes.dense().detach()
    if not torch.allclose(chosen, right, rtol=1e-4, atol=1e-4 * float(chosen.abs().max())):
        # only a tie may be decided otherwise: both choices have the same norms
        mine, best = (codes.norm(dim=2).flatten().sort().values for codes in (chosen, right))
        assert torch.allclose(mine, best, rtol=1e-5, atol=1e-5 * float(best.max()))
        return
    assert close(ours.xhat, plain.xhat, float(plain.xhat.detach().norm()) + float(x.norm()))
    # where little is left of the rows, what is left is known to the rounding of the rows
    size = float(plain.total.detach().abs()) + 1e-2 * float(x.square().sum(1).mean())
    for name, part in plain.parts.items():
        assert close(ours.parts[name], part, size)
    assert close(ours.total, plain.total, size)
    for (name, p), q, r in zip(model.named_parameters(), twin.parameters(), rounded.parameters(), strict=True):
        if p.requires_grad:
            right, theirs = (torch.zeros_like(v) if v.grad is None else v.grad.double() for v in (q, r))
            assert p.grad is not None
            # where a gradient is a small difference of large sums, float32 loses digits: no more than the plain path
            allowed = RTOL * right.norm() + 8 * (theirs - right).norm() + 1e-30
            assert (p.grad.double() - right).norm() <= allowed, name


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases(), st.sampled_from([None, 0.1]), st.booleans())
def test_update_equals_clipping_adam_and_post_step(
    case: tuple[SparseModel, torch.Tensor, "torch.Tensor | None", float], clip: float | None, decay: bool
) -> None:
    model, x, dead, scale = case
    optimizer = adam(model, decay)
    step = CompiledStep.of(model, optimizer)
    assert step is not None
    for _ in range(2):
        loss = step.gradients(x, dead, scale)
        twin = copy.deepcopy(model)
        used = copy.deepcopy(optimizer.state_dict())
        parameters = [p for p in twin.parameters() if p.requires_grad]
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        other = adam(twin, decay)
        other.load_state_dict(used)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        other.step()
        twin.post_step(loss)
        step.update(clip)
        expected = dict(twin.named_parameters())
        for name, p in model.named_parameters():
            assert torch.allclose(p, expected[name], rtol=1e-5, atol=1e-6), name


def test_a_subclass_with_a_loss_of_its_own_takes_the_plain_path() -> None:
    class Mine(SASA):
        def loss(self, x: torch.Tensor, dead: "torch.Tensor | None" = None, penalty_scale: float = 1.0) -> Loss:
            return super().loss(x, dead, penalty_scale)

    for kind, taken in ((SASA, True), (Mine, False)):
        model = kind(4, 3, 2, 1)
        assert (CompiledStep.of(model, adam(model)) is not None) == taken


@given(width=st.integers(1, 3), rank=st.integers(2, 8), seed=st.integers(0, 2**31))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_nuclear_norm_of_a_block_of_lower_rank_has_no_spurious_directions(width: int, rank: int, seed: int) -> None:
    """Rounded in float32, the Gram matrices made it up to 5e-4 too large."""
    generator = torch.Generator().manual_seed(seed)
    model = SASA(width, n_groups=2, group_rank=rank, active_groups=1, nuclear=0.5)
    with torch.no_grad():
        model.W_enc.copy_(torch.randn(width, 2 * rank, generator=generator))
        model.W_dec.copy_(torch.randn(2 * rank, width, generator=generator))
    x = torch.randn(4, width, generator=generator)
    step = CompiledStep.of(model, adam(model))
    assert step is not None
    ours, plain = step.gradients(x), copy.deepcopy(model).double().loss(x.double())
    assert float(ours.parts["nuclear"]) == pytest.approx(plain.parts["nuclear"].item(), rel=1e-6)
