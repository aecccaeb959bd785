"""Counts of dense and listed codes, in every precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models.codes import Codes


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_counts_are_exact_in_any_precision(batch, units, rank, dtype, autocast, seed):
    """Sums of bfloat16 would stop at 256."""
    values = torch.randn(batch, units, rank, generator=torch.Generator().manual_seed(seed)).to(dtype)
    values[values.abs() < 0.2] = 0
    codes = Codes(None, values, units)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        counts, mean = codes.counts(), codes.counted().mean_l0()
    assert torch.equal(counts, (values != 0).any(dim=2).sum(dim=0))
    assert counts.dtype == torch.int64
    assert float(mean) == pytest.approx(int((values != 0).sum()) / batch)


def test_other_coefficients_are_counted_anew():
    codes = Codes(None, torch.ones(4, 3, 1), 3).counted()
    assert codes.holding(torch.zeros(4, 3, 1)).counts().tolist() == [0, 0, 0]
    listed = Codes(torch.tensor([[2], [0]]), torch.ones(2, 1, 1), 3)
    assert listed.of_units(torch.tensor([5.0, 6.0, 7.0])).tolist() == [[7.0], [5.0]]
