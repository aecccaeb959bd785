"""Compiled loops and Triton's kernels against torch's own operations: sums of weighted rows, and their gradients."""

import importlib
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models import bags
from sasa_theory.models.codes import Ragged

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are made


def kernels():
    """Triton's, where its interpreter works here (before 3.9 it fails under NumPy 2.4)."""
    triton = pytest.importorskip("triton", reason="Triton is not installed (it comes with torch for CUDA)")
    if DEVICE == "cpu" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip("Triton's interpreter before 3.9 fails under NumPy 2.4")
    return importlib.import_module("sasa_theory.models.gated_triton"), DEVICE


def loops():
    return importlib.import_module("sasa_theory.models.compiled.bags"), "cpu"


cases = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 6),
        "width": st.integers(1, 40),
        "units": st.integers(1, 40),
        "rank": st.sampled_from([1, 2, 3, 6, 17]),
        "share": st.floats(0, 1),
        "empty_slot": st.booleans(),
        "ragged": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)


def drawn(case):
    """Units, values, rows of pairs: as many in each row, or drawn at random, so that some rows have many, some none."""
    g = torch.Generator().manual_seed(case["seed"])
    batch, units, ragged = case["batch"], case["units"], None
    per_row = max(1, round(case["share"] * units))
    index = torch.rand(batch, units, generator=g).argsort(dim=1)[:, :per_row]
    if case["ragged"]:
        places = torch.rand(batch * units, generator=g).argsort()[: batch * per_row].sort().values
        ragged, index = Ragged.by(torch.div(places, units, rounding_mode="floor"), batch), (places % units)[:, None]
    if case["empty_slot"]:
        index[0, 0] = -1
    values = torch.randn(*index.shape, case["rank"], generator=g)
    x, rows = (torch.randn(n, case["width"], generator=g) for n in (batch, units * case["rank"]))
    return index, values, x, rows, ragged


@pytest.mark.parametrize("others", [loops, kernels])
@settings(max_examples=80, deadline=None)
@given(cases)
def test_bags_project_and_outer_equal_torchs(others, case):
    module, device = others()
    index, values, x, rows, ragged = drawn(case)
    index, values, x, rows = (tensor.to(device) for tensor in (index, values, x, rows))
    if ragged is not None:
        ragged = Ragged(ragged.of.to(device), ragged.starts.to(device))
    found = []
    for made in (module, bags):
        found.append([made.bags(index, values, rows, ragged), made.project(index, x, rows, case["rank"], ragged)])
        found[-1] += made.outer(index, values, x, len(rows), with_sums=True, ragged=ragged)
    for name, a, b in zip(("bags", "project", "outer", "sums"), *found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * (1 + float(b.abs().max())), msg=name)


def test_loops_are_for_float32_on_a_cpu_unless_switched_off(monkeypatch):
    assert bags.fastest(torch.zeros(1)) is loops()[0]
    assert bags.fastest(torch.zeros(1, dtype=torch.float64)) is bags
    monkeypatch.setattr(bags, "LOOPS", False)
    assert bags.fastest(torch.zeros(1)) is bags
