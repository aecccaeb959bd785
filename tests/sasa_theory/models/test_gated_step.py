"""The fast path against a plain restatement: same codes, loss and gradients, ties in the gate included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models import build, gated_step
from sasa_theory.models.base import combine
from sasa_theory.models.gate import best_units

cases = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 12),
        "width": st.integers(1, 9),
        "units": st.integers(1, 14),
        "rank": st.integers(1, 5),
        "share": st.floats(0, 1),
        "rectify": st.booleans(),
        "tied_units": st.booleans(),
        "empty_slot": st.booleans(),
        "threads": st.integers(1, 3),
        "seed": st.integers(0, 2**31),
    }
)


def plain_gate(x, w_enc, b_enc, b_dec, rank, n_best, rectify):
    """All pre-activations; ties go to the lower unit, as a stable sort leaves them."""
    pre = (x - b_dec) @ w_enc + b_enc
    pre = (pre.relu() if rectify else pre).unflatten(1, (-1, rank))
    order = pre.detach().square().sum(-1).argsort(dim=1, descending=True, stable=True)[:, :n_best]
    return order, pre.gather(1, order[..., None].expand(-1, -1, rank))


def plain_combine(index, values, rows):
    """A dense weight for every row, then one product."""
    batch, _, rank = values.shape
    dense = values.new_zeros(batch, len(rows) // rank + 1, rank)  # slot -1 of an empty pair falls into the last, unused
    dense = dense.index_put((torch.arange(batch)[:, None].expand_as(index), index), values, accumulate=True)
    return dense[:, :-1].flatten(1) @ rows


def weights(case, dtype):
    g = torch.Generator().manual_seed(case["seed"])
    columns = case["units"] * case["rank"]
    # small whole numbers: sums are exact in any order, so that equal norms are equal
    draw = lambda *shape: torch.randint(-2, 3, shape, generator=g).to(dtype)  # noqa: E731
    w_enc, w_dec = draw(columns, case["width"]), draw(columns, case["width"])
    if case["tied_units"] and case["units"] > 1:
        w_enc[-case["rank"] :] = w_enc[: case["rank"]]
    b_enc = draw(columns)
    if case["tied_units"] and case["units"] > 1:
        b_enc[-case["rank"] :] = b_enc[: case["rank"]]
    tensors = [draw(case["batch"], case["width"]), w_enc.T, b_enc, draw(case["width"]), w_dec]
    return [tensor.requires_grad_() for tensor in tensors]


@settings(max_examples=150, deadline=None)
@given(cases, st.sampled_from([torch.float64, torch.float32]))
def test_codes_loss_and_every_gradient_equal_the_plain_path(case, dtype):
    n_best = max(1, round(case["share"] * case["units"]))
    before = torch.get_num_threads()
    torch.set_num_threads(case["threads"])
    try:
        fast = run(case, dtype, n_best, gated_step.encode, gated_step.combine)
    finally:
        torch.set_num_threads(before)
    plain = run(case, dtype, n_best, plain_gate, plain_combine)
    assert torch.equal(fast[0].sort(dim=1).values, plain[0].sort(dim=1).values)
    # where terms cancel to nothing, only rounding is left: 1e-6 of the largest number in the step
    rounding = 1e-6 * max(float(v.detach().abs().max()) for v in plain[1])
    for name, ours, theirs in zip(("loss", "x", "W_enc", "b_enc", "b_dec", "W_dec"), fast[1], plain[1], strict=True):
        allowed = 1e-5 * float(theirs.detach().abs().max()) + rounding
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=allowed), name


def run(case, dtype, n_best, encode, add_up):
    x, w_enc, b_enc, b_dec, w_dec = weights(case, dtype)
    index, values = encode(x, w_enc, b_enc, b_dec, case["rank"], n_best, case["rectify"])
    used = index.clone()
    if case["empty_slot"]:
        used[0, index[0].argmax()] = -1  # the slots may stand in any order
    loss = (add_up(used, values, w_dec) + b_dec - x.detach()).square().sum(-1).mean()
    loss.backward()
    return index, [loss.detach(), x.grad, w_enc.grad, b_enc.grad, b_dec.grad, w_dec.grad]


@pytest.mark.parametrize("architecture", ["sasa", "topk", "abstopk"])
def test_a_models_step_is_the_same_with_and_without_the_fast_path(architecture, monkeypatch):
    def gradients():
        torch.manual_seed(0)
        if architecture == "sasa":
            model = build("sasa", width_in=20, n_groups=30, group_rank=3, active_groups=4, nuclear=0.1, penalise="all")
        else:
            model = build("topk", width_in=20, n_latents=90, active_latents=12, signed=architecture == "abstopk")
        loss = model.loss(torch.randn(64, 20), dead=torch.arange(model.n_units) % 5 == 0)
        loss.total.backward()
        return [loss.total, *(p.grad for p in model.parameters() if p.grad is not None)]

    fast = gradients()
    monkeypatch.setattr(gated_step, "available", lambda *tensors: False)
    for ours, theirs in zip(fast, gradients(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_the_path_is_taken_on_a_cpu_and_not_elsewhere():
    x = torch.zeros(2, 3)
    assert gated_step.available(x, x)
    assert not gated_step.available(x, x.double())
    assert not gated_step.available(x.half())
    assert not gated_step.available(x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not gated_step.available(x)


def test_chunks_do_not_show(monkeypatch):
    x, w_enc, b_enc, b_dec = torch.randn(50, 8), torch.randn(8, 40), torch.randn(40), torch.randn(8)
    whole = best_units(x, w_enc, b_enc, b_dec, 4, 3, signed=True)
    monkeypatch.setattr(gated_step, "CHUNK", 7 * 40 * 4)
    parts = best_units(x, w_enc, b_enc, b_dec, 4, 3, signed=True)
    assert torch.equal(whole.index, parts.index)
    assert torch.allclose(whole.values, parts.values, atol=1e-6)


def test_no_slots_and_no_pairs():
    rows = torch.randn(6, 4)
    index = torch.full((3, 2), -1)
    assert torch.equal(gated_step.combine(index, torch.randn(3, 2, 2), rows), torch.zeros(3, 4))
    assert combine(best_units(torch.randn(0, 4), rows.T, rows.new_zeros(6), None, 2, 1, True), rows).shape == (0, 4)
