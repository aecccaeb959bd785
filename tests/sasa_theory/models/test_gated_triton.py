"""Triton's kernels against the same functions in torch: natively on a GPU, else in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models import bags, gate_chunks, gated_torch, nuclear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are made
triton = pytest.importorskip("triton", reason="Triton is not installed (it comes with torch for CUDA)")
if DEVICE == "cpu" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
    pytest.skip("Triton's interpreter before 3.9 fails under NumPy 2.4", allow_module_level=True)

from sasa_theory.models import gated_triton, polar_triton  # noqa: E402

cases = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 6),
        "width": st.integers(1, 40),
        "units": st.integers(1, 40),
        "rank": st.sampled_from([1, 2, 3, 6, 17]),
        "share": st.floats(0, 1),
        "rectify": st.booleans(),
        "whole": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)


def drawn(case):
    """x (B, D), rows (K r, D), bias (K r), s; whole numbers make equal norms common."""
    g = torch.Generator().manual_seed(case["seed"])

    def draw(*shape):
        return torch.randint(-2, 3, shape, generator=g).float() if case["whole"] else torch.randn(*shape, generator=g)

    columns = case["units"] * case["rank"]
    made = draw(case["batch"], case["width"]), draw(columns, case["width"]), draw(columns)
    return *(tensor.to(DEVICE) for tensor in made), max(1, round(case["share"] * case["units"]))


@settings(max_examples=40, deadline=None)
@given(cases)
def test_select_takes_the_largest_and_of_equal_ones_the_first(case):
    x, rows, bias, n_best = drawn(case)
    pre = x @ rows.T
    index = torch.empty(len(x), n_best, dtype=torch.int64, device=DEVICE)
    values = x.new_empty(len(x), n_best, case["rank"])
    gated_triton.select(pre, bias, index, values, case["rectify"])
    pre = (pre + bias).relu() if case["rectify"] else pre + bias
    pre = pre.unflatten(1, (-1, case["rank"]))
    norms = pre.square().sum(-1)
    if case["whole"]:  # sums are exact, so the order is known
        wanted = norms.argsort(dim=1, descending=True, stable=True)[:, :n_best].sort(dim=1).values
        assert torch.equal(index, wanted)
    largest = norms.topk(n_best, dim=1).values
    torch.testing.assert_close(norms.gather(1, index).sort(dim=1, descending=True).values, largest)
    assert torch.equal(values, pre.gather(1, index[..., None].expand(-1, -1, case["rank"])))


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
def test_what_is_not_finite_is_chosen_so_that_the_loss_shows_it(bad):
    pre = torch.randn(3, 20, device=DEVICE)
    pre[1, 13] = bad
    index, values = torch.empty(3, 2, dtype=torch.int64, device=DEVICE), torch.empty(3, 2, 2, device=DEVICE)
    gated_triton.select(pre, torch.zeros(20, device=DEVICE), index, values, rectify=True)
    assert 6 in index[1].tolist()
    assert not values[1].isfinite().all()
    assert values[[0, 2]].isfinite().all()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 16), st.integers(4, 30), st.sampled_from(["full", "zero", "deficient"]))
def test_the_nuclear_kernel_equals_newton_schulz_in_torch(units, rank, more, kind):
    g = torch.Generator().manual_seed(rank)
    enc, dec = (torch.randn(units, rank, rank + more, generator=g).to(DEVICE) for _ in range(2))
    if kind == "zero":
        dec[0] = 0
    elif kind == "deficient" and rank > 1:
        enc[0, 1] = enc[0, 0]
    grams = [block.double() @ block.double().mT for block in (enc, dec)]
    theirs = nuclear._by_newton_schulz(*grams)
    ours = polar_triton.roots(enc, dec)
    torch.testing.assert_close(ours[0].double(), theirs[0], rtol=1e-6, atol=1e-6)
    # factors matter through the gradients they make
    for a, b, block in ((ours[1], theirs[1].mT, enc), (ours[2], theirs[2], dec)):
        made = polar_triton.times(a, block, torch.ones(units, device=DEVICE)).double()
        if kind == "deficient":  # any subgradient will do: <G, A> = ||A B||_*
            torch.testing.assert_close((made * block).sum((1, 2)), theirs[0], rtol=1e-5, atol=1e-5)
        else:
            wanted = b @ block.double()
            torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5 * (1 + float(wanted.abs().max())))
    alone = polar_triton.roots(None, dec)[0]
    torch.testing.assert_close(alone, torch.linalg.svdvals(dec).sum(-1), rtol=1e-4, atol=1e-5)


def step(device, low=None, batch=24, width=33, units=40, rank=3, n_best=4):
    g = torch.Generator().manual_seed(1)
    shapes = (batch, width), (width, units * rank), (units * rank,), (width,), (units * rank, width)
    x, w_enc, b_enc, b_dec, w_dec = (torch.randn(*shape, generator=g).to(device).requires_grad_() for shape in shapes)
    with torch.autocast(device, dtype=low or torch.bfloat16, enabled=low is not None):
        index, values = gated_torch.encode(x, w_enc, b_enc, b_dec, rank, n_best, False)
        loss = (gated_torch.combine(index, values, w_dec) + b_dec - x.detach()).square().sum(-1).mean()
    loss.backward()
    return index, [loss.detach(), *(t.grad for t in (x, w_enc, b_enc, b_dec, w_dec))]


@pytest.mark.skipif(DEVICE == "cuda", reason="the GPU's own tests cover the whole step")
def test_the_whole_step_equals_torchs(monkeypatch):
    theirs = step("cpu")
    monkeypatch.setattr(bags, "fastest", lambda x: gated_triton)
    ours = step("cpu")
    assert torch.equal(ours[0].sort(dim=1).values, theirs[0].sort(dim=1).values)
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    gated = ["_select", "_bags", "_project", "_bags", "_project", "_outer", "_outer"]
    assert done.stdout.split() == gated * 3 + ["_roots", "_apply"] * 3


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sasa_theory.models import gated_triton as t, polar_triton as p

def compiled(kernel, warps=4, **constants):
    kinds = dict.fromkeys(("index", "starts", "order", "whose"), "*i64")
    kinds |= dict.fromkeys(("right", "left", "factors"), "*fp64") | dict.fromkeys(("UNITS", "SLOTS", "D"), "i32")
    names = {n: "constexpr" if n in constants else kinds.get(n, "*fp32") for n in kernel.arg_names}
    made = triton.compile(ASTSource(kernel, signature=names, constexprs=constants), GPUTarget("cuda", 90, 32),
                          {"num_warps": warps})
    if made.asm["cubin"]:
        print(kernel.__name__)

for rank, units, warps in ((6, 2048, 4), (1, 16384, 32), (32, 512, 4)):
    up = triton.next_power_of_2(rank)
    compiled(t._select, warps, RANK=rank, RECTIFY=rank == 1, BLOCK=units)
    for ragged in (False, True):
        compiled(t._bags, RAGGED=ragged, RANK=rank, BLOCK=512)
        compiled(t._project, RAGGED=ragged, RANK=rank, RANK_UP=up, BLOCK=t.HELD_PROJECT // up)
    up = 1 if rank == 1 else max(t.SMALLEST, up)
    for ragged in (False, True):
        compiled(t._outer, RAGGED=ragged, RANK=rank, RANK_UP=up, PAIRS=t.PAIRS, BLOCK=t.HELD_OUTER // max(8, up))
for rank, up, whole in ((1, 2, True), (6, 8, False), (16, 16, True)):
    compiled(p._roots, 4 if up > 8 else 1, MAP=whole, RANK=rank, RANK_UP=up, BLOCK=p.STRETCH, STEPS=p.STEPS,
             ARRIVED=p.ARRIVED)
    compiled(p._apply, 4 if up > 8 else 1, RANK=rank, RANK_UP=up, BLOCK=p.STRETCH)
"""


@pytest.mark.gpu
def test_the_step_on_a_gpu_equals_the_cpus():
    shape = {"batch": 300, "width": 256, "units": 700, "rank": 6, "n_best": 8}
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        assert bags.fastest(torch.zeros(1, device="cuda")) is gated_triton
        ours, theirs = step("cuda", **shape), step("cpu", **shape)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert torch.equal(ours[0].cpu().sort(dim=1).values, theirs[0].sort(dim=1).values)
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("low", [None, torch.bfloat16])
@pytest.mark.parametrize("kernels", [gated_triton, bags])
def test_the_step_never_waits_for_the_device_and_repeats_bit_for_bit(low, kernels, monkeypatch):
    monkeypatch.setattr(bags, "fastest", lambda x: kernels)
    shape = {"batch": 300, "width": 256, "units": 700, "rank": 6, "n_best": 8}
    first = step("cuda", low, **shape)  # compiles
    g = torch.Generator(device="cuda").manual_seed(1)
    x = torch.randn(300, 256, generator=g, device="cuda")
    w_enc = torch.randn(256, 4200, generator=g, device="cuda").requires_grad_()
    bias, shift = torch.zeros(4200, device="cuda"), torch.zeros(256, device="cuda")
    w_dec = torch.randn(4200, 256, generator=g, device="cuda").requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=low is not None):
            codes = gated_torch.encode(x, w_enc, bias, shift, 6, 8, False)
            loss = (gated_torch.combine(*codes, w_dec) - x).square().sum()
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    again = step("cuda", low, **shape)
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert all(tensor.dtype == torch.float32 for tensor in first[1])


@pytest.mark.gpu
def test_bf16_autocast_changes_the_product_alone():
    """Coefficients are bf16 products summed in float32: within bf16's rounding of float64, never rounded to bf16."""
    g = torch.Generator().manual_seed(0)
    x, rows = torch.randn(64, 512, generator=g).cuda(), torch.randn(600, 512, generator=g).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        index, values = gate_chunks.gate(x, rows.T, torch.zeros(600, device="cuda"), 3, 5, False)
    exact = (x.bfloat16().double() @ rows.bfloat16().double().T).unflatten(1, (-1, 3))
    picked = exact.gather(1, index[..., None].expand(-1, -1, 3))
    torch.testing.assert_close(values.double(), picked, rtol=1e-4, atol=1e-3)
    assert not torch.equal(values, values.bfloat16().float())
