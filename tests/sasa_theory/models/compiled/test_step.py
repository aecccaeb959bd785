"""The compiled step against the plain one: same codes, loss, gradients and weights, whatever the shapes."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sasa_theory.models import SASA, build
from sasa_theory.models.base import Loss, SparseModel
from sasa_theory.models.codes import Codes
from sasa_theory.models.compiled import gate
from sasa_theory.models.compiled.step import CompiledStep
from sasa_theory.models.jumprelu import JumpReLU

RTOL = 1e-5
#: the large ones with few units
RANKS = st.one_of(st.integers(1, 7), st.sampled_from([8, 16, 32]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[SparseModel, torch.Tensor, "torch.Tensor | None", float]:
    """A gated model with uneven weights, a batch whose dimensions differ in size, dead units, a penalty scale."""
    width, rank = draw(st.integers(1, 40)), draw(RANKS)
    units = draw(st.integers(1, 60 if rank < 8 else 12))
    best = draw(st.integers(1, units))
    aux = draw(st.integers(0, 9))
    kind = draw(st.sampled_from(["sasa", "bsf", "topk", "abstopk", "batchtopk", "matryoshka", "relu", "jumprelu"]))
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
    elif kind == "relu":
        model = build(kind, width_in=width, n_latents=units, coefficient=draw(st.sampled_from([0.0, 0.7])))
        model.aux_latents = aux
    elif kind == "jumprelu":
        held = {
            "target_l0": draw(st.sampled_from([None, 0.3 * units])),
            "coefficient": draw(st.sampled_from([0.1, 0.7])),
        }
        model = build(kind, width_in=width, n_latents=units, aux_latents=aux, **held)
    else:
        nested = {"prefixes": sorted(draw(st.sets(st.integers(1, units), max_size=4)))} if kind == "matryoshka" else {}
        model = build(kind, width_in=width, n_latents=units, active_latents=best, aux_latents=aux, **nested)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    with torch.no_grad():
        model.W_enc.copy_(normal(*model.W_enc.shape))
        model.W_dec.copy_(normal(*model.W_dec.shape))
        model.b_dec.copy_(normal(width))
        if isinstance(model, JumpReLU):
            model.log_threshold.copy_(normal(units))
            model.bandwidth.fill_(draw(st.sampled_from([0.2, 2.0])))
        if model.b_enc.requires_grad:
            model.b_enc.copy_(0.3 * normal(len(model.b_enc)))
    spread = torch.exp(draw(st.sampled_from([0.0, 2.0])) * normal(width))
    x = normal(draw(st.integers(1, 70)), width) * spread + normal(width)
    dead = torch.rand(units, generator=generator) < 0.4 if draw(st.booleans()) else None
    if isinstance(model, JumpReLU):  # float32 may not decide what lies on a threshold, or on the edge of its window
        with torch.no_grad():
            above = copy.deepcopy(model).double().pre_activations(x.double()) - model.threshold.double()
            edges = torch.stack([above, above - model.bandwidth / 2, above + model.bandwidth / 2]).abs()
            assume(float(edges.min()) > 1e-6 * (1 + float(x.abs().max())))
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
    monkeypatch.setattr(gate, "MOST", 1.0)  # nothing is left to the plain path


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_equals_the_plain_step_in_float64(case: tuple[SparseModel, torch.Tensor, "torch.Tensor | None", float]) -> None:
    model, x, dead, scale = case
    twin, rounded = copy.deepcopy(model).double(), copy.deepcopy(model)
    step = CompiledStep.of(model, adam(model))
    assert step is not None
    ours, plain = step.gradients(x, dead, scale), twin.loss(x.double(), dead, scale)
    assert ours is not None
    plain.total.backward()
    rounded.loss(x, dead, scale).total.backward()
    chosen, right = ours.codes.dense().double(), plain.codes.dense().detach()
    if not torch.allclose(chosen, right, rtol=1e-4, atol=1e-4 * float(chosen.abs().max())):
        # only a tie may be decided otherwise: both choices have the same norms
        mine, best = (codes.norm(dim=2).flatten().sort().values for codes in (chosen, right))
        assert torch.allclose(mine, best, rtol=1e-5, atol=1e-5 * float(best.max()))
        return
    assert close(ours.xhat, plain.xhat, float(plain.xhat.detach().norm()) + float(x.norm()))
    # where little is left of the rows, what is left is known to the rounding of the terms that cancel
    terms = x.double().abs() + twin.b_dec.abs() + right.abs().flatten(1) @ twin.W_dec.abs()
    size = float(plain.total.detach().abs()) + 1e-2 * float(terms.detach().square().sum(1).mean())
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


@st.composite
def tied(draw: st.DrawFn) -> tuple[SparseModel, torch.Tensor, "torch.Tensor | None", float]:
    """A model and a batch of small integers, whose coefficients are exact; each encoder block is one of a few, or less.

    Decoders are whole numbers too, so that the residual's ties, which decide the auxiliary loss, are exact as well.
    """
    kind = draw(st.sampled_from(["sasa", "topk", "abstopk", "batchtopk"]))
    rank = draw(st.sampled_from([1, 2, 5, 8, 16, 32])) if kind == "sasa" else 1
    width, units = draw(st.integers(1, 12)), draw(st.integers(2, 24 if rank < 8 else 9))
    best, aux = draw(st.integers(1, min(4, units - 1))), draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    whole = lambda *shape, most=1: torch.randint(-most, most + 1, shape, generator=generator).float()  # noqa: E731
    pool = whole(draw(st.integers(1, 3)), rank, width)
    enc = pool[torch.randint(len(pool), (units,), generator=generator)].flatten(0, 1)
    dec = whole(units, rank, width)
    if kind == "sasa":
        # the nuclear norm has one gradient where blocks have full rank
        sound = rank <= width and all(float(torch.linalg.svdvals(b)[:, -1].min()) > 0.1 for b in (pool, dec))
        model = build(
            kind,
            width_in=width,
            n_groups=units,
            group_rank=rank,
            active_groups=best,
            nuclear=0.3 if sound else 0.0,
            penalise=draw(st.sampled_from(["active", "all"])),
            aux_groups=aux,
        )
    else:
        model = build(kind, width_in=width, n_latents=units, active_latents=best, aux_latents=aux)
    with torch.no_grad():
        model.W_enc.copy_(enc.T)
        model.W_dec.copy_(dec.flatten(0, 1))
        model.b_dec.copy_(whole(width))
    # numbers of rows that divide exactly: gradients that cancel to zero are zero
    x = whole(draw(st.sampled_from([1, 2, 4, 8, 16, 32])), width, most=2)
    dead = torch.rand(units, generator=generator) < 0.4 if draw(st.booleans()) else None
    return model, x, dead, draw(st.sampled_from([1.0, 0.25]))


def restated(model: SparseModel, x: torch.Tensor, on: torch.Tensor, dead: "torch.Tensor | None", scale: float) -> Loss:
    """The loss by dense products in x's precision, given which units are on (B, K); ties among the dead go to lower."""
    form = model.gated_form()
    assert form is not None
    n_units, rank = model.n_units, model.rank
    blocks = lambda pre: (pre.relu() if form.rectify else pre).unflatten(1, (n_units, rank))  # noqa: E731
    values = blocks((x - model.b_dec) @ model.W_enc + model.b_enc) * on[..., None]
    xhat = values.flatten(1) @ model.W_dec + model.b_dec
    parts = {"reconstruction": (x - xhat).square().sum(1).mean()}
    if form.penalty is not None:
        assert isinstance(model, SASA)
        parts["nuclear"] = scale * model.nuclear * model.nuclear_penalty(Codes(None, values, n_units))
    parts["auxiliary"] = x.new_zeros(())
    if dead is not None and dead.any() and form.n_aux > 0:
        residual = (x - xhat).detach()
        found = blocks(residual @ model.W_enc + model.b_enc)
        norms = found.detach().square().sum(2).masked_fill(~dead, -1)
        chosen = norms.argsort(dim=1, descending=True, stable=True)[:, : min(form.n_aux, int(dead.sum()))]
        kept = torch.zeros_like(norms).scatter_(1, chosen, 1)
        parts["auxiliary"] = (residual - (found * kept[..., None]).flatten(1) @ model.W_dec).square().sum(1).mean()
    return Loss(torch.stack(list(parts.values())).sum(), parts, Codes(None, values, n_units), xhat)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(tied())
def test_with_ties_in_the_gate_loss_and_every_gradient_are_those_of_the_choice(
    case: tuple[SparseModel, torch.Tensor, "torch.Tensor | None", float],
) -> None:
    model, x, dead, scale = case
    twin, step, form = copy.deepcopy(model).double(), CompiledStep.of(model, adam(model)), model.gated_form()
    assert step is not None and form is not None
    # a tie at the gate: of equal norms (exact here), some are on and some are off
    pre = (x.double() - twin.b_dec) @ twin.W_enc
    norms = (pre.relu() if form.rectify else pre).detach().unflatten(1, (-1, model.rank)).square().sum(2)
    ranked = norms.view(1, -1) if form.choice == "batch" else norms
    wanted = form.n_best * (len(x) if form.choice == "batch" else 1)
    ordered = ranked.sort(dim=1, descending=True).values
    level, beyond = ordered[:, wanted - 1], ordered[:, wanted]
    assume(bool(((level == beyond) & (level > 0)).any()))

    ours = step.gradients(x, dead, scale)
    assert ours is not None
    index = ours.codes.index
    assert index is not None
    on = torch.zeros(len(x), model.n_units + 1, dtype=torch.bool).scatter_(
        1, index.where(index >= 0, model.n_units), True
    )
    on = on[:, :-1]
    # as many as asked for, but for zeros of the batch's choice; each at least as large as any left out
    kept = norms.masked_fill(~on, 0).view_as(ranked).sort(dim=1, descending=True).values[:, :wanted]
    assert torch.equal(kept, ordered[:, :wanted])
    assert form.choice == "batch" or (on.sum(1) == wanted).all()

    plain = restated(twin, x.double(), on, dead, scale)
    plain.total.backward()
    assert close(ours.total, plain.total, float(plain.total.detach().abs()))
    for name, part in plain.parts.items():
        assert close(ours.parts[name], part, float(plain.total.detach().abs())), name
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if p.requires_grad:
            right = torch.zeros_like(q) if q.grad is None else q.grad
            assert p.grad is not None
            assert close(p.grad, right, float(right.norm())), name


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
        assert loss is not None
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

    class Softer(JumpReLU):
        @property
        def threshold(self) -> torch.Tensor:
            return torch.nn.functional.softplus(self.log_threshold)

    for model, taken in (
        (SASA(4, 3, 2, 1), True),
        (Mine(4, 3, 2, 1), False),
        (JumpReLU(4, 9), True),
        (Softer(4, 9), False),
    ):
        assert (CompiledStep.of(model, adam(model)) is not None) == taken


def test_places_held_from_other_batches_do_not_move_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run has none; here some are so many that two threads would share work that one does alone."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    for name, more in (("relu", {}), ("jumprelu", {}), ("batchtopk", {"active_latents": 9})):
        found = []
        for slots in (1, 16, 60, 200):
            model = build(name, width_in=64, n_latents=512, **more)
            with torch.no_grad():
                model.b_enc.fill_(-1.5 if name == "relu" else 0.0)
            step = CompiledStep.of(model, adam(model))
            assert step is not None
            step.gate.slots = slots
            loss = step.gradients(x)
            assert loss is not None
            found.append([loss.total, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_threshold_that_is_no_number_is_seen_in_the_loss() -> None:
    model = build("jumprelu", width_in=16, n_latents=80)
    with torch.no_grad():
        model.log_threshold[5] = float("nan")
    step = CompiledStep.of(model, adam(model))
    assert step is not None
    loss = step.gradients(torch.randn(30, 16))
    assert loss is not None
    assert not bool(torch.isfinite(loss.total))


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
    assert ours is not None
    assert float(ours.parts["nuclear"]) == pytest.approx(plain.parts["nuclear"].item(), rel=1e-6)
