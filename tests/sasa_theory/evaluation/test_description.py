"""Bits of a code: the grid by what it may cost, units by a change of scale."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.evaluation.description import description_length
from sasa_theory.models import build
from synthetic.errors import DataError, UsageError


def dictionary(width: int, units: int, rank: int, active: int, seed: int) -> torch.nn.Module:
    model = build("sasa", width_in=width, n_groups=units, group_rank=rank, active_groups=active)
    model.initialise(torch.Generator().manual_seed(seed))
    return model


@settings(deadline=None, max_examples=20)
@given(units=st.integers(3, 8), rank=st.integers(1, 3), seed=st.integers(0, 1000))
def test_the_parts_add_up_and_finer_grids_cost_more(units: int, rank: int, seed: int) -> None:
    model = dictionary(12, units, rank, 2, seed)
    rows = torch.randn(200, 12, generator=torch.Generator().manual_seed(seed + 1))
    coarse, fine = description_length(model, rows, 0.05), description_length(model, rows, 0.0005)
    assert coarse.unit_bits == pytest.approx(math.log2(math.comb(units, 2)))
    assert coarse.bits == pytest.approx(coarse.unit_bits + 2 * rank * coarse.coefficient_bits)
    assert fine.coefficient_bits > coarse.coefficient_bits
    assert fine.step < coarse.step / 2  # rounding costs about step^2, so a hundredth of the error a tenth of the step


def test_a_coefficient_counts_by_what_its_decoder_row_makes_of_it() -> None:
    model = dictionary(10, 6, 2, 2, 0)
    rows = torch.randn(300, 10, generator=torch.Generator().manual_seed(1))
    before = description_length(model, rows)
    with torch.no_grad():
        model.W_enc.mul_(4.0)
        model.W_dec.div_(4.0)
    after = description_length(model, rows)
    assert after.bits == pytest.approx(before.bits, rel=1e-3)


@pytest.mark.parametrize("dense", [False, True])
def test_every_coefficient_counts_by_its_own_row(dense: bool) -> None:
    """Where all groups are on, or codes are dense, moving lengths from rows of the decoder to codes changes no bit."""
    model = build("relu", width_in=10, n_latents=6) if dense else dictionary(10, 3, 2, 3, 0)
    model.initialise(torch.Generator().manual_seed(0))
    rows = torch.randn(300, 10, generator=torch.Generator().manual_seed(1))
    before = description_length(model, rows)
    scale = torch.tensor([1.0, 10.0, 0.1]).repeat_interleave(2)
    with torch.no_grad():
        model.W_enc.mul_(scale)
        model.b_enc.mul_(scale)
        model.W_dec.div_(scale[:, None])
    assert description_length(model, rows).bits == pytest.approx(before.bits, rel=1e-3)


def test_what_cannot_be_measured_is_said() -> None:
    model = dictionary(8, 4, 2, 1, 0)
    with pytest.raises(UsageError, match="0 rows"):
        description_length(model, torch.empty(0, 8))
    with pytest.raises(DataError, match="no coefficient is nonzero"):
        description_length(model, torch.zeros(5, 8))
