"""The gate of a threshold in chunks against dense products: choice, loss and every gradient, ties included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models import bags, build, gate_above, gate_chunks
from sasa_theory.models.compiled import gate as compiled_gate

MODELS = {
    "relu": {},
    "gated": {},
    "jumprelu": {"bandwidth": 0.5, "initial_threshold": 0.7},
    "grouplasso": {"initial_threshold": 1.5},
}

cases = st.fixed_dictionaries(
    {
        "name": st.sampled_from(list(MODELS)),
        "rank": st.integers(1, 4),
        "batch": st.integers(1, 12),
        "width": st.integers(1, 9),
        "units": st.integers(1, 60),
        "whole": st.booleans(),
        "rows_per_chunk": st.integers(1, 5),
        "path": st.sampled_from(["torch", "float32 loops", "int8 loops"]),
        "dead": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)


def drawn(case):
    """A model and rows; whole numbers make values at the threshold common, rows of unequal size make them ragged."""
    g = torch.Generator().manual_seed(case["seed"])
    sizes = {"n_latents": case["units"]}
    if case["name"] == "grouplasso":
        sizes = {"n_groups": case["units"], "group_rank": case["rank"]}
    model = build(case["name"], width_in=case["width"], **sizes, **MODELS[case["name"]])

    def draw(*shape):
        return torch.randint(-2, 3, shape, generator=g) if case["whole"] else torch.randn(*shape, generator=g)

    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(p if name == "log_threshold" else draw(*p.shape))
        if case["name"] == "jumprelu":
            model.log_threshold.add_(torch.rand(case["units"], generator=g))
    x = draw(case["batch"], case["width"]) * torch.randint(0, 4, (case["batch"], 1), generator=g)
    dead = torch.rand(case["units"], generator=g) < 0.3
    return model, x.float(), dead if case["dead"] else None


def learned(model, x, dead):
    model.zero_grad(set_to_none=True)
    loss = model.loss(x, dead)
    loss.total.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters()}


@settings(max_examples=300, deadline=None)
@given(cases)
def test_choice_loss_and_every_gradient_equal_the_dense_path(case):
    model, x, dead = drawn(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_above, "MOST", 1.0)
        patch.setattr(gate_chunks, "ROWS_CPU", case["rows_per_chunk"])
        patch.setattr(gate_chunks, "CHUNK_CPU", 1)
        patch.setattr(bags, "LOOPS", case["path"] != "torch")
        patch.setattr(compiled_gate, "SMALL", 0 if case["path"] == "int8 loops" else 2**60)
        ours, grads = learned(model, x, dead)
        patch.setattr(gate_above, "MOST", -1.0)
        theirs, wanted = learned(model, x, dead)
    assert ours.codes.ragged is not None
    assert theirs.codes.index is None
    close = {"rtol": 1e-5, "atol": 1e-5 * (1 + float(x.square().sum(1).max()))}
    torch.testing.assert_close(ours.codes.dense(), theirs.codes.dense(), **close)
    torch.testing.assert_close(ours.xhat, theirs.xhat, **close)
    if case["whole"]:  # which are on is then beyond rounding
        assert torch.equal(ours.codes.counts(), theirs.codes.counts())
        if case["name"] != "jumprelu":  # steers nothing
            assert float(ours.state["l0"]) == pytest.approx(float(theirs.codes.l0().float().mean()), rel=1e-6)
    for name, part in theirs.parts.items():
        torch.testing.assert_close(ours.parts[name], part, rtol=1e-5, atol=1e-5 * (1 + float(part.detach())), msg=name)
    for name, grad in wanted.items():
        size = 1 + float(grad.abs().max()) + float(x.square().sum(1).max())
        torch.testing.assert_close(grads[name], grad, rtol=1e-5, atol=1e-5 * size, msg=name)


def test_dense_products_where_many_are_on_or_a_gpu_would_have_to_count(monkeypatch):
    model, x = build("relu", width_in=16, n_latents=64), torch.randn(80, 16)
    assert model.loss(x).codes.index is None  # half of all
    with torch.no_grad():
        model.b_enc.fill_(-2.5)
    assert model.loss(x).codes.ragged is not None
    monkeypatch.setattr(gate_above, "fixed_sizes", lambda x: True)
    assert model.loss(x).codes.index is None


@pytest.mark.parametrize("screened", [False, True])
@pytest.mark.parametrize("most", [1 / 8, 1 / 2])
def test_a_row_far_fuller_than_the_sample(screened, most, monkeypatch):
    """Row 1 is not among the rows looked at first, and has everything on: given up, or listed again with more room."""
    monkeypatch.setattr(gate_above, "MOST", most)
    monkeypatch.setattr(compiled_gate, "SMALL", 0 if screened else 2**60)
    model, x = build("relu", width_in=16, n_latents=1000), torch.randn(3 * gate_above.SAMPLE, 16)
    with torch.no_grad():
        model.W_enc[0] = model.W_enc[0].abs() + 1
        model.b_enc.fill_(-6.0)
        x[1] = 0.0
        x[1, 0] = 100.0
    dense = model.encode(x).dense()
    assert dense[1].count_nonzero() == 1000
    loss = model.loss(x)
    assert (loss.codes.index is None) == (most == 1 / 8)
    torch.testing.assert_close(loss.codes.dense(), dense, rtol=1e-5, atol=1e-5)


def test_nan_reaches_the_loss():
    model, x = build("relu", width_in=8, n_latents=200), torch.randn(40, 8)
    with torch.no_grad():
        model.b_enc.fill_(-3.0)
    x[7, 3] = float("nan")
    loss = model.loss(x)
    assert loss.codes.ragged is not None
    assert loss.total.isnan()


@settings(max_examples=60, deadline=None)
@given(cases, st.booleans())
def test_what_is_listed_is_what_exceeds_its_level(case, by_norm):
    """Whole numbers, so that some lie at the level, which does not exceed it."""
    rank = case["rank"] if by_norm else 1
    g = torch.Generator().manual_seed(case["seed"])
    shapes = (case["batch"], case["width"]), (case["width"], case["units"] * rank), (case["units"] * rank,)
    x, w_enc, b_enc = (torch.randint(-2, 3, shape, generator=g).float() for shape in shapes)
    level = torch.randint(0, 4, (case["units"],), generator=g).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_above, "MOST", 1.0)
        patch.setattr(gate_chunks, "CHUNK_CPU", 1)
        patch.setattr(gate_chunks, "ROWS_CPU", case["rows_per_chunk"])
        patch.setattr(bags, "LOOPS", case["path"] != "torch")
        patch.setattr(compiled_gate, "SMALL", 0 if case["path"] == "int8 loops" else 2**60)
        found = gate_above.gate_above(x, w_enc.T.contiguous().T, b_enc, rank, level, by_norm)
    assert found is not None
    units, values, ragged = found
    pre = (x @ w_enc + b_enc).unflatten(1, (-1, rank))
    exceeds = (pre.square().sum(-1) > level**2) if by_norm else pre[..., 0] > level
    row, unit = exceeds.nonzero(as_tuple=True)
    assert torch.equal(ragged.of, row)
    assert torch.equal(units[:, 0], unit)
    assert torch.equal(values[:, 0], pre[row, unit])
