"""The gate of the whole batch in chunks against dense products: choice, loss and every gradient, ties included."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory import parallel
from sasa_theory.models import build, gate_batch, gate_chunks, gated_torch
from sasa_theory.models.gate import best_of_batch

cases = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 12),
        "width": st.integers(1, 9),
        "units": st.integers(1, 100),
        "share": st.floats(0, 1),
        "whole": st.booleans(),
        "rows_per_chunk": st.integers(1, 5),
        "as_on_a_gpu": st.booleans(),
        "dtype": st.sampled_from([torch.float64, torch.float32]),
        "prefixes": st.one_of(st.none(), st.sets(st.integers(1, 100), max_size=4)),
        "seed": st.integers(0, 2**31),
    }
)


def drawn(case):
    """A model and rows; whole numbers make equal entries common, and rows of unequal size make them ragged."""
    units, g = case["units"], torch.Generator().manual_seed(case["seed"])
    settings = {"width_in": case["width"], "n_latents": units, "active_latents": max(1, round(case["share"] * units))}
    if case["prefixes"] is None:
        model = build("batchtopk", **settings)
    else:
        model = build("matryoshka", **settings, prefixes=sorted(m for m in case["prefixes"] if m < units))
    model = model.to(case["dtype"])

    def draw(*shape):
        return torch.randint(-2, 3, shape, generator=g) if case["whole"] else torch.randn(*shape, generator=g)

    with torch.no_grad():
        for p in model.parameters():
            p.copy_(draw(*p.shape))
    x = draw(case["batch"], case["width"]) * torch.randint(0, 4, (case["batch"], 1), generator=g)
    return model, x.to(case["dtype"])


@contextlib.contextmanager
def chunked(case) -> Iterator[None]:
    """The gate in chunks of so few rows, with a GPU's shapes or a CPU's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_chunks, "ROWS_CPU", case["rows_per_chunk"])
        patch.setattr(gate_chunks, "CHUNK_CPU", 1)
        patch.setattr(gate_batch, "fixed_sizes", lambda x: case["as_on_a_gpu"])
        yield


def restated(weights, x, mask, prefixes, sign):
    """The loss from dense products, and its gradients; with sign -1 and all sizes, the sum of the terms' sizes."""
    w_enc, b_enc, w_dec, b_dec = weights
    codes = ((x - sign * b_dec) @ w_enc + b_enc) * mask
    loss = sum((codes[:, :m] @ w_dec[:m] + b_dec - sign * x).square().sum(1).mean() for m in prefixes or [len(w_dec)])
    return [loss.detach(), *torch.autograd.grad(loss, weights)]


@settings(max_examples=200, deadline=None)
@given(cases)
def test_choice_loss_and_every_gradient_equal_the_dense_path(case):
    model, x = drawn(case)
    n = case["batch"] * model.active_latents
    with chunked(case):
        loss = model.loss(x)
    codes = loss.codes
    assert codes.ragged is not None and codes.batch == case["batch"]
    assert len(codes.values) == n or not case["as_on_a_gpu"]
    dense = ((x - model.b_dec) @ model.W_enc + model.b_enc).relu().detach()
    exact = {} if case["whole"] else {"rtol": 1e-5, "atol": 1e-5}
    largest = dense.flatten().topk(n).values
    torch.testing.assert_close(codes.dense().detach().flatten().topk(n).values, largest, **exact)
    positive = largest[largest > 0]
    wanted = positive.min() if len(positive) else torch.zeros(())
    torch.testing.assert_close(loss.state["smallest"], wanted.to(dense), **exact)
    whose, unit, _ = codes.pairs()
    assert len(set(zip(whose.tolist(), unit.tolist(), strict=True))) == len(unit)
    mask = codes.dense().detach()[..., 0] > 0
    assert codes.l0().tolist() == codes.l0_units().tolist() == mask.sum(1).tolist()
    assert codes.counts().tolist() == mask.sum(0).tolist()

    loss.total.backward()
    weights = [model.W_enc, model.b_enc, model.W_dec, model.b_dec]
    found = [loss.total.detach(), *(p.grad for p in weights)]
    prefixes = getattr(model, "prefixes", None)
    plain = restated(weights, x, mask, prefixes, 1)
    # where terms cancel only rounding is left
    size = restated([p.detach().abs().requires_grad_() for p in weights], x.abs(), mask, prefixes, -1)
    terms = case["batch"] + case["width"] + case["units"]
    for name, a, b, c in zip(("loss", "W_enc", "b_enc", "W_dec", "b_dec"), found, plain, size, strict=True):
        allowed = 1e-5 * b.abs() + terms * torch.finfo(case["dtype"]).eps * c.abs()
        assert ((a - b).abs() <= allowed).all(), name


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
@pytest.mark.parametrize("as_on_a_gpu", [False, True])
def test_a_models_step_is_the_same_in_chunks_and_plainly(architecture, as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(gate_batch, "fixed_sizes", lambda x: as_on_a_gpu)

    def step():
        torch.manual_seed(0)
        model = build(architecture, width_in=20, n_latents=90, active_latents=12)
        loss = model.loss(torch.randn(64, 20), dead=torch.arange(90) % 5 == 0)
        loss.total.backward()
        codes = model.encode(torch.randn(7, 20)).dense()  # before any step: the batch's own choice
        return [loss.total.detach(), loss.state["smallest"], codes.detach(), *(p.grad for p in model.parameters())]

    in_chunks = step()
    monkeypatch.setattr(gated_torch, "available", lambda *tensors: False)
    for ours, theirs in zip(in_chunks, step(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_of_several_processes_only_what_reaches_the_joint_level_is_on(monkeypatch):
    """The level of two processes with this batch each is that of four rows of which every entry stands twice."""
    x, w = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    monkeypatch.setattr(parallel, "nth_largest", lambda values, n: torch.tensor(4.0))
    codes, smallest = best_of_batch(x, w, torch.zeros(3), torch.zeros(1), 1, processes=2)
    assert torch.equal(codes.dense()[..., 0], torch.tensor([[0.0, 0.0, 0.0], [0.0, 4.0, 6.0]]))
    assert float(smallest) == 4.0


@pytest.mark.parametrize("as_on_a_gpu", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_chosen_so_that_the_loss_shows_it(as_on_a_gpu, bad):
    case = {"rows_per_chunk": 1, "as_on_a_gpu": as_on_a_gpu}
    x, w = torch.ones(4, 3), torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    x[2, 1] = bad
    with chunked(case):
        index, values, ragged = gate_batch.gate_batch(x, w, torch.zeros(40), 5)
    assert ragged.of.eq(2).all() and not values.isfinite().any() and len(index) >= 5


def test_no_rows():
    index, values, ragged = gate_batch.gate_batch(torch.zeros(0, 3), torch.ones(3, 4), torch.zeros(4), 0)
    assert (index.shape, values.shape, len(ragged.starts)) == ((0, 1), (0, 1, 1), 1)
