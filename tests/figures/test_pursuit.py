"""Orthogonal matching pursuit of lines: exact where lines are orthogonal, never worse with more lines or than one."""

import pytest
import torch

from figures.pursuit import CHUNK, Pursuit
from sasa_theory.models import AbsTopK


def lines(rows, active, bias=0.5):
    model = Pursuit(rows.shape[1], len(rows), active)
    with torch.no_grad():
        model.W_dec.copy_(rows)
        model.b_dec.fill_(bias)
    return model


def test_orthogonal_lines_are_coded_exactly_in_chunks_of_rows():
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    codes = torch.zeros(CHUNK + 7, 12)
    for row in codes:
        row[torch.randperm(12, generator=generator)[:3]] = torch.tensor([2.0, -1.0, 0.5])
    xhat, got = lines(frame, 3).reconstruct(codes @ frame + 0.5)
    assert torch.allclose(xhat, codes @ frame + 0.5, atol=1e-5)
    assert torch.allclose(got.dense()[..., 0], codes, atol=1e-5)


def test_more_lines_explain_more_and_nearly_parallel_lines_do_not_overshoot():
    generator = torch.Generator().manual_seed(1)
    centre = torch.randn(1, 8, generator=generator)
    rows = torch.cat([centre + 0.1 * torch.randn(30, 8, generator=generator), torch.randn(10, 8, generator=generator)])
    rows = rows / rows.norm(dim=1, keepdim=True)
    x = torch.randn(200, 8, generator=generator) + 0.5
    errors = [(lines(rows, k)(x) - x).square().sum(1) for k in (1, 2, 4)]
    assert (errors[1] <= errors[0] + 1e-5).all() and (errors[2] <= errors[1] + 1e-5).all()
    gated = AbsTopK(8, 40, 4)
    with torch.no_grad():
        gated.W_dec.copy_(rows)
        gated.W_enc.copy_(rows.T)
        gated.b_dec.fill_(0.5)
    assert errors[2].sum() < x.square().sum() < (gated(x) - x).square().sum()


def test_a_line_is_taken_once_and_the_residual_is_orthogonal_to_all_taken():
    generator = torch.Generator().manual_seed(2)
    rows = torch.nn.functional.normalize(torch.randn(20, 16, generator=generator))
    x = torch.randn(50, 16, generator=generator)
    xhat, codes = lines(rows, 6, bias=0.0).reconstruct(x)
    assert all(len(set(row.tolist())) == 6 for row in codes.index)
    inner = torch.einsum("bkd,bd->bk", rows[codes.index], x - xhat)
    assert inner.abs().max().item() == pytest.approx(0, abs=1e-4)
