"""The path in torch alone against a plain restatement: same codes, loss and gradients, ties in the gate included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models import bags, build, gate_chunks, gated_torch

cases = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 12),
        "width": st.integers(1, 9),
        "units": st.integers(1, 100),
        "rank": st.one_of(st.integers(1, 5), st.sampled_from([8, 16, 32])),
        "share": st.floats(0, 1),
        "rectify": st.booleans(),
        "whole": st.booleans(),
        "empty_slot": st.booleans(),
        "rows_per_chunk": st.integers(1, 5),
        "screened": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)


def tensors(case, dtype):
    """Inputs of a step; whole numbers make equal norms common, real ones make them all but impossible."""
    g = torch.Generator().manual_seed(case["seed"])
    columns = case["units"] * case["rank"]

    def draw(*shape):
        if case["whole"]:
            return torch.randint(-2, 3, shape, generator=g).to(dtype)
        return torch.randn(*shape, generator=g, dtype=dtype)

    made = [draw(case["batch"], case["width"]), draw(columns, case["width"]).T, draw(columns), draw(case["width"])]
    return [tensor.requires_grad_() for tensor in [*made, draw(columns, case["width"])]]


def plain_values(x, w_enc, b_enc, b_dec, rank, rectify):
    pre = (x - b_dec) @ w_enc + b_enc
    return (pre.relu() if rectify else pre).unflatten(1, (-1, rank))


def plain_combine(index, values, rows):
    """A dense weight for every row, then one product."""
    batch, _, rank = values.shape
    dense = values.new_zeros(batch, len(rows) // rank + 1, rank)  # slot -1 of an empty pair falls into the last, unused
    dense = dense.index_put((torch.arange(batch)[:, None].expand_as(index), index), values, accumulate=True)
    return dense[:, :-1].flatten(1) @ rows


@settings(max_examples=200, deadline=None)
@given(cases, st.sampled_from([torch.float64, torch.float32]))
def test_codes_loss_and_every_gradient_equal_the_plain_path(case, dtype):
    n_best = max(1, round(case["share"] * case["units"]))
    ours, theirs = tensors(case, dtype), tensors(case, dtype)
    chunk = case["rows_per_chunk"] * ours[1].shape[1] * ours[1].element_size()
    low = case["screened"] and dtype == torch.float32 and gate_chunks.candidates(n_best) <= case["units"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_chunks, "CHUNK", chunk)
        patch.setattr(gate_chunks, "CHUNK_CPU", chunk)
        patch.setattr(gate_chunks, "ROWS_CPU", 1)
        patch.setattr(gate_chunks, "CHUNK_INT8", chunk)
        patch.setattr(gate_chunks, "screening_pays", lambda *_: low)
        index, values = gated_torch.encode(*ours[:4], case["rank"], n_best, case["rectify"])
    dense = plain_values(*theirs[:4], case["rank"], case["rectify"])

    # a valid choice: different units, none left out that is larger; which of equal ones is free
    assert all(len(set(row)) == n_best for row in index.tolist())
    norms = dense.detach().square().sum(-1)
    largest = norms.topk(n_best, dim=1).values
    torch.testing.assert_close(norms.gather(1, index).sort(dim=1, descending=True).values, largest)

    # the rest of the step, with that choice
    picked = dense.gather(1, index[..., None].expand(-1, -1, case["rank"]))
    used = index.clone()
    if case["empty_slot"]:
        used[0, 0] = -1
    found = loss_and_gradients(ours, used, values, gated_torch.combine, -1)
    wanted = loss_and_gradients(theirs, used, picked, plain_combine, -1)
    # where terms cancel only rounding is left, so a second step adds up the sizes of all terms
    sizes = [tensor.detach().abs().requires_grad_() for tensor in theirs]
    x, w_enc, b_enc, b_dec, _ = sizes
    whole = plain_values(x, w_enc, b_enc, -b_dec, case["rank"], False)
    whole = whole.gather(1, index[..., None].expand(-1, -1, case["rank"])) * (picked != 0)
    size = loss_and_gradients(sizes, used, whole, plain_combine, 1)
    terms = case["batch"] + case["width"] + n_best * case["rank"]
    for name, a, b, c in zip(("loss", "x", "W_enc", "b_enc", "b_dec", "W_dec"), found, wanted, size, strict=True):
        allowed = 1e-5 * b.abs() + terms * torch.finfo(dtype).eps * c.abs()
        assert ((a - b).abs() <= allowed).all(), name


def loss_and_gradients(weights, index, values, add_up, sign):
    x, _, _, b_dec, w_dec = weights
    loss = (add_up(index, values, w_dec) + b_dec + sign * x.detach()).square().sum(-1).mean()
    loss.backward()
    return [loss.detach(), *(tensor.grad for tensor in weights)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 200), st.floats(0, 1), st.booleans(), st.integers(0, 2**31))
def test_two_rounds_choose_as_one(batch, units, share, whole, seed):
    g = torch.Generator().manual_seed(seed)
    norms = torch.rand(batch, units, generator=g)
    norms = (4 * norms).floor() if whole else norms
    n_best = max(1, round(share * units))
    index = bags.best(norms, n_best)
    assert all(len(set(row)) == n_best for row in index.tolist())
    chosen = norms.gather(1, index).sort(dim=1, descending=True).values
    assert torch.equal(chosen, norms.topk(n_best, dim=1).values)


@pytest.mark.parametrize("rank", [1, 3])
def test_gradients_by_finite_differences(rank):
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()  # noqa: E731
    x, w, b, shift, rows = draw(5, 4), draw(4, 6 * rank), draw(6 * rank), draw(4), draw(6 * rank, 4)

    def step(x, w, b, shift, rows):
        index, values = gated_torch.encode(x, w, b, shift, rank, 2, False)
        return gated_torch.combine(index, values, rows)

    assert torch.autograd.gradcheck(step, (x, w, b, shift, rows))


def test_no_rows_and_no_pairs():
    rows = torch.randn(6, 4, requires_grad=True)
    index = torch.full((3, 2), -1)
    out = gated_torch.combine(index, torch.randn(3, 2, 2), rows)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(3, 4))
    assert torch.equal(rows.grad, torch.zeros(6, 4))
    nothing = gated_torch.encode(torch.randn(0, 4), rows.detach().T, torch.zeros(6), torch.zeros(4), 2, 1, False)
    assert [t.shape for t in nothing] == [(0, 1), (0, 1, 2)]
    assert gated_torch.combine(*nothing, rows).shape == (0, 4)


def test_gradients_have_the_layout_of_the_weights():
    x, w, rows = torch.randn(7, 4), torch.randn(6, 4).T.requires_grad_(), torch.randn(6, 4, requires_grad=True)
    gated_torch.combine(*gated_torch.encode(x, w, torch.zeros(6), torch.zeros(4), 2, 1, False), rows).sum().backward()
    assert w.grad.stride() == w.stride()
    assert rows.grad.stride() == rows.stride()


def screened(seed, rank, rectify, scale, bias):
    """A gate of 64 rows on 40 units, by int8 candidates; and all coefficients in float64."""
    g = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(64, 16, generator=g)
    rows = torch.randn(40 * rank, 16, generator=g)
    rows *= torch.rand(40, 1, generator=g).repeat_interleave(rank, dim=0)  # blocks of unequal size
    b_enc = bias * torch.randn(40 * rank, generator=g)
    dense = plain_values(x.double(), rows.T.double(), b_enc.double(), torch.zeros(16), rank, rectify)
    return gate_chunks.gate_screened(x, rows.T, b_enc, rank, 4, rectify), dense


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.sampled_from([0.0, 1.0, 100.0]),
)
def test_rows_that_int8_settles_are_settled_rightly(seed, rank, rectify, scale, bias):
    (index, values, certain), dense = screened(seed, rank, rectify, scale, bias)
    norms = torch.linalg.vector_norm(dense, dim=-1)
    # float32 decides among the candidates, so choices may differ where norms agree to its rounding, and only there
    chosen = norms[certain].gather(1, index[certain]).sort(dim=1, descending=True).values
    torch.testing.assert_close(chosen, norms[certain].topk(4, dim=1).values, rtol=1e-6, atol=0)
    assert all(len(set(row)) == 4 for row in index[certain].tolist())
    picked = dense[certain].gather(1, index[certain][..., None].expand(-1, -1, rank)).float()
    size = float(dense.abs().max())
    torch.testing.assert_close(values[certain], picked, rtol=1e-5, atol=1e-5 * size)


def test_int8_settles_clear_rows_and_leaves_ties_open():
    g = torch.Generator().manual_seed(0)
    clear = torch.eye(64).repeat_interleave(2, dim=0) + 0.01 * torch.randn(128, 64, generator=g)
    x = torch.zeros(8, 64)
    x[:, :4] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    index, _, certain = gate_chunks.gate_screened(x, clear.T, torch.zeros(128), 2, 3, False)
    assert certain.all()
    assert torch.equal(index.sort(dim=1).values, torch.arange(3).expand(8, 3))
    # more equal units than candidates: any of those left out is as large as the ones kept
    same = torch.ones(128, 64)
    assert not gate_chunks.gate_screened(x, same.T, torch.zeros(128), 2, 3, False)[2].any()


def test_a_batch_that_int8_cannot_settle_is_given_up_early(monkeypatch):
    monkeypatch.setattr(gate_chunks, "CHUNK_INT8", 4 * 256 * 5)
    monkeypatch.setattr(gate_chunks, "screening_pays", lambda *_: True)
    calls = []
    project = bags.project
    monkeypatch.setattr(bags, "project", lambda *args: calls.append(1) or project(*args))
    index, values = gate_chunks.gate(torch.ones(50, 8), torch.ones(8, 256), torch.zeros(256), 2, 3, False)
    assert 1 <= len(calls) < 10  # of ten chunks
    assert torch.equal(values, torch.full((50, 3, 2), 8.0))
    assert all(len(set(row)) == 3 for row in index.tolist())


@pytest.mark.parametrize("architecture", ["sasa", "topk", "abstopk"])
def test_a_models_step_is_the_same_in_torch_alone_and_plainly(architecture, monkeypatch):
    def gradients():
        torch.manual_seed(0)
        if architecture == "sasa":
            model = build("sasa", width_in=20, n_groups=30, group_rank=3, active_groups=4, nuclear=0.1, penalise="all")
        else:
            model = build("topk", width_in=20, n_latents=90, active_latents=12, signed=architecture == "abstopk")
        loss = model.loss(torch.randn(64, 20), dead=torch.arange(model.n_units) % 5 == 0)
        loss.total.backward()
        return [loss.total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    torch_alone = gradients()
    monkeypatch.setattr(gated_torch, "available", lambda *tensors: False)
    for ours, theirs in zip(torch_alone, gradients(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_the_path_is_taken_on_one_device_in_one_type():
    x = torch.zeros(2, 3)
    assert gated_torch.available(x, x)
    assert gated_torch.available(x.double())
    assert not gated_torch.available(x, x.double())
    assert not gated_torch.available(x.half())
    assert not gated_torch.available(x.to("meta"))


def test_autocast_rounds_the_product_alone():
    g = torch.Generator().manual_seed(0)
    x, rows = torch.randn(30, 16, generator=g), torch.randn(60, 16, generator=g)
    with torch.autocast("cpu", torch.bfloat16):
        index, values = gated_torch.encode(x, rows.T, torch.full((60,), 1e-3), torch.zeros(16), 3, 4, False)
    pre = (x.bfloat16() @ rows.bfloat16().T).float() + 1e-3
    assert values.dtype == torch.float32
    assert torch.equal(values, pre.unflatten(1, (-1, 3)).gather(1, index[..., None].expand(-1, -1, 3)))
