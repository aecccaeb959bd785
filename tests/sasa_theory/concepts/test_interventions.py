"""Interventions: algebra of what a set of units holds of a state, for dictionaries of every kind."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.concepts.interventions import Part, random_like, rivals, without
from sasa_theory.models import build
from sasa_theory.models.normaliser import NormalisedModel, Normaliser
from synthetic.errors import UsageError

D = 12
#: states are of size 10 here, in single precision
close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-3)


def dictionary(kind, seed):
    settings = {
        "sasa": {"n_groups": 10, "group_rank": 3, "active_groups": 4},
        "topk": {"n_latents": 30, "active_latents": 6},
        "relu": {"n_latents": 30},
    }[kind]
    model = build(kind, width_in=D, **settings)
    generator = torch.Generator().manual_seed(seed)
    model.initialise(generator)
    with torch.no_grad():
        model.b_dec.copy_(torch.randn(D, generator=generator))
    return model


def normalised(model, how, seed):
    """The model behind a normaliser: none, mean and one scale, or a layer norm."""
    if how is None:
        return model
    x = 3 + 5 * torch.randn(64, D, generator=torch.Generator().manual_seed(seed))
    return NormalisedModel(model, Normaliser.fit(how, x))


cases = given(
    st.sampled_from(["sasa", "topk", "relu"]),
    st.sampled_from([None, "mean_scalar", "layer_norm"]),
    st.integers(0, 10**6),
    st.sets(st.integers(0, 9), min_size=1, max_size=4),
)


@cases
@settings(deadline=None, max_examples=40)
def test_contribution_is_the_units_share_of_the_reconstruction(kind, how, seed, units):
    model = normalised(dictionary(kind, seed), how, seed)
    x = 3 + 5 * torch.randn(7, D, generator=torch.Generator().manual_seed(seed + 1))
    part = Part(model, tuple(units), "contribution")
    rest = Part(model, tuple(set(range(model.n_units)) - units), "contribution")
    nothing = x - Part(model, tuple(range(model.n_units)), "contribution").of(x)
    close(part.of(x) + rest.of(x), x - nothing)
    silent = ~torch.isin(torch.arange(model.n_units), torch.tensor(sorted(units)))
    norms = torch.linalg.vector_norm(model.encode(x).dense(), dim=-1)
    off = (norms[:, ~silent] == 0).all(1)
    assert not part.of(x)[off].any(), "a unit that is off writes nothing"
    if how != "layer_norm":
        codes = model.encode(x).dense()[:, sorted(units)]
        written = torch.einsum("nkr,krd->nd", codes, model.blocks()[1][sorted(units)])
        close(part.of(x), written)


@cases
@settings(deadline=None, max_examples=40)
def test_the_subspace_part_is_a_projection(kind, how, seed, units):
    model = normalised(dictionary(kind, seed), how, seed)
    x = 3 + 5 * torch.randn(7, D, generator=torch.Generator().manual_seed(seed + 1))
    part = Part(model, tuple(units), "subspace")
    basis = part.basis()
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double())
    rows = model.blocks()[1][sorted(units)].flatten(0, 1).double()
    close(rows @ basis @ basis.T, rows)
    assert basis.shape[1] == torch.linalg.matrix_rank(rows)
    removed, basis = part.remove(x), basis.float()
    close(part.of(x) @ basis @ basis.T, part.of(x))
    if how != "layer_norm":  # a layer norm's bias depends on the state
        close(part.of(removed), torch.zeros_like(x))
    close(removed - removed @ basis @ basis.T, x - x @ basis @ basis.T)


@cases
@settings(deadline=None, max_examples=30)
def test_replacing_with_itself_changes_nothing_and_moves_all_of_the_part(kind, how, seed, units):
    model = normalised(dictionary(kind, seed), how, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x, y = (3 + 5 * torch.randn(5, D, generator=generator) for _ in range(2))
    for name in ("contribution", "subspace"):
        part = Part(model, tuple(units), name)
        close(part.replace(x, x), x)
        close(part.replace(x, y) - part.remove(x), part.of(y))
        noise = random_like(part.of(x), generator)
        close(noise.norm(dim=1), part.of(x).norm(dim=1))


def test_rivals_are_on_and_are_others():
    model = dictionary("sasa", 0)
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    dense = torch.linalg.vector_norm(model.encode(x).dense(), dim=-1)
    for i, unit in enumerate(rivals(model, x, (0, 1))):
        assert unit not in (0, 1) and dense[i, unit] > 0
        gap = (dense[i] - dense[i, :2].norm()).abs()
        others = [k for k in range(2, model.n_units) if dense[i, k] > 0]
        assert gap[unit] == gap[others].min()
    silent = without(model.encode(x), range(model.n_units))
    assert not silent.values.any() and not silent.slots().any()
    model.W_enc.data.zero_()
    assert rivals(model, x, (0,)) == [None] * 20


def test_bad_requests():
    model = dictionary("topk", 0)
    for units in ((), (3, 3), (30,), (-1,)):
        with pytest.raises(UsageError, match="expected different numbers from 0 to 29"):
            Part(model, units, "subspace")
    with pytest.raises(UsageError, match="expected one of contribution, subspace"):
        Part(model, (0,), "plane")
