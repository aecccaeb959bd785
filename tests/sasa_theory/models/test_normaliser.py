"""Normalisers: what they promise about the rows they saw, exact inverses, exact folding, and models in raw units."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.evaluation.driver import feed
from sasa_theory.models import NormalisedModel, Normaliser, build
from sasa_theory.models.normaliser import KINDS, LAYER_NORM_EPS
from synthetic.errors import DataError, LabError, UsageError


@st.composite
def row_sets(draw):
    """Rows of any width with unequal means and a wide range of scales per dimension."""
    n, width = draw(st.integers(20, 200)), draw(st.integers(3, 16))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    spread = torch.exp(draw(st.floats(0, 2)) * torch.randn(width, generator=generator))
    return torch.randn(n, width, generator=generator) * spread + 3 * torch.randn(width, generator=generator)


@settings(max_examples=30, deadline=None)
@given(row_sets(), st.one_of(st.none(), st.floats(1, 5)))
def test_mean_scalar_is_centred_with_energy_d(rows, cap):
    z, context = Normaliser.fit("mean_scalar", rows, cap).apply(rows)
    assert context is None
    assert z.mean(0).abs().max() < 1e-3
    assert float(z.square().sum(1).mean()) == pytest.approx(rows.shape[1], rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(row_sets(), st.floats(1, 5), st.sampled_from(KINDS))
def test_the_cap_lowers_outliers_to_the_bound_and_leaves_the_rest(rows, cap, kind):
    """Relative to the uncapped map, dimensions above cap x median RMS land on it; all others share one factor."""
    plain, capped = (Normaliser.fit(kind, rows, value) for value in (None, cap))
    before, after = (n.apply(rows)[0].square().mean(0).sqrt().double() for n in (plain, capped))
    bound = cap * before.quantile(0.5)
    expected = before.minimum(bound)
    if kind == "mean_scalar":
        expected = expected * (rows.shape[1] / expected.square().sum()).sqrt()
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(row_sets())
def test_layer_norm_is_that_of_saelens(rows):
    z, _ = Normaliser.fit("layer_norm", rows).apply(rows)
    for row, got in zip(rows.tolist(), z.tolist(), strict=True):
        mu = sum(row) / len(row)
        std = (sum((v - mu) ** 2 for v in row) / (len(row) - 1)) ** 0.5
        assert got == pytest.approx([(v - mu) / (std + LAYER_NORM_EPS) for v in row], rel=1e-3, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(row_sets(), st.sampled_from(KINDS), st.one_of(st.none(), st.floats(1, 5)))
def test_invert_undoes_apply_and_state_round_trips(rows, kind, cap):
    normaliser = Normaliser.fit(kind, rows, cap)
    z, context = normaliser.apply(rows)
    torch.testing.assert_close(normaliser.invert(z, context), rows, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(normaliser.apply_with(rows, context), z)
    again = Normaliser.from_state(normaliser.state())
    assert (again.kind, again.cap) == (kind, cap)
    torch.testing.assert_close(again.apply(rows)[0], z, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["topk", "gated", "jumprelu", "sasa"])
@settings(max_examples=8, deadline=None)
@given(row_sets(), st.sampled_from(["none", "mean_scalar"]), st.one_of(st.none(), st.floats(1, 5)))
def test_folding_is_exact(name, rows, kind, cap):
    """In float64 weights would be exact; the same function means the same codes too."""
    settings_of = {
        "topk": {"n_latents": 7, "active_latents": 2},
        "sasa": {"n_groups": 5, "group_rank": 2, "active_groups": 2},
    }
    model = build(name, width_in=rows.shape[1], **settings_of.get(name, {"n_latents": 7}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        raw = NormalisedModel(model, Normaliser.fit(kind, rows, cap))
        folded = raw.folded()
        assert folded is not None
        same = (folded.encode(rows).dense() - raw.encode(rows).dense()).flatten(1).norm(dim=1) < 1e-3
        assert same.float().mean() >= 0.95, "only a row at the edge of a gate may differ"
        torch.testing.assert_close(folded(rows)[same], raw(rows)[same], rtol=1e-3, atol=1e-3 * float(rows.abs().max()))
        for ours, theirs in zip(raw.blocks(), folded.blocks(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_layer_norm_decodes_with_its_input_only():
    rows = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    model = NormalisedModel(
        build("topk", width_in=6, n_latents=8, active_latents=2), Normaliser.fit("layer_norm", rows)
    )
    assert model.folded() is None
    codes = model.encode(rows)
    with pytest.raises(UsageError, match=r"decode\(codes, x\)"):
        model.decode(codes)
    torch.testing.assert_close(model.decode(codes, rows), model(rows))
    assert feed(model, [rows], 30, []) == 30, "evaluation reconstructs without tripping over it"


@pytest.mark.parametrize(
    "kind, rows, cap, error, message",
    [
        ("layernorm", torch.randn(5, 3), None, UsageError, "did you mean 'layer_norm'"),
        ("none", torch.randn(1, 3), None, UsageError, "at least 2 rows"),
        ("none", torch.randn(6), None, UsageError, "at least 2 rows"),
        ("none", torch.randn(5, 3), 0.5, UsageError, "outlier_cap is 0.5"),
        ("layer_norm", torch.randn(5, 1), None, UsageError, "width 1"),
        ("mean_scalar", torch.tensor([[1.0, 2.0], [1.0, torch.nan]]), None, DataError, "row 1 holds NaN or Inf"),
        ("mean_scalar", torch.full((9, 4), 0.1), None, DataError, "no variance"),
        ("layer_norm", torch.full((9, 4), 0.1), None, DataError, "no variance"),
        ("mean_scalar", torch.eye(9)[:, :1] * torch.tensor([1.0, 0, 0]), 2.0, DataError, "over half"),
    ],
)
def test_bad_input_is_one_sentence(kind, rows, cap, error, message):
    with pytest.raises(error, match=message):
        Normaliser.fit(kind, rows, cap)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(LabError, match="has width 4 but its normaliser 3"):
        NormalisedModel(build("relu", width_in=4, n_latents=5), Normaliser.identity(3))
    with pytest.raises(DataError, match="lacks scale"):
        Normaliser.from_state({"kind": "none", "cap": None, "mean": torch.zeros(2)})
    with pytest.raises(UsageError, match="finite and positive"):
        Normaliser("none", torch.zeros(2), torch.tensor([1.0, 0.0]))
