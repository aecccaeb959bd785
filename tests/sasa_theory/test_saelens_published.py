"""The published SASA checkpoints' directory: layer-normed input, topk_sasa with n_groups, group_rank and k_groups.

Random weights in that layout give the function that its fields define, written out here in float64:

    z = (x - mu) / (std + 1e-5),  std with D - 1;    p = (z - b_dec) W_enc + b_enc  (b_dec where cfg.json says so)
    keep the k_groups groups of largest norm;           xhat = (c W_dec + b_dec) std + mu

SAELens takes a missing apply_b_dec_to_input for true.
"""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sasa_theory import saelens
from sasa_theory.models import SASA, NormalisedModel


def published_directory(folder, width, groups, rank, active, seed, subtract=None, normalisation="layer_norm"):
    """cfg.json and weights as the published training writes them; returns the tensors."""
    generator = torch.Generator().manual_seed(seed)
    columns = groups * rank
    shapes = {"W_enc": (width, columns), "b_enc": (columns,), "W_dec": (columns, width), "b_dec": (width,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    config = {
        "architecture": "topk_sasa",
        "d_in": width,
        "d_sae": columns,
        "n_groups": groups,
        "group_rank": rank,
        "k_groups": active,
        "dtype": "float32",
        "device": "cuda",
        "normalize_activations": normalisation,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.22.3", "model_name": "gpt2", "hook_name": "blocks.7.hook_resid_pre"},
    }
    if subtract is not None:
        config["apply_b_dec_to_input"] = subtract
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return tensors


def defined(t, x, groups, rank, active, subtract, layer_norm=True):
    """(codes, reconstruction, whether the gate is far from a tie) by the formula, in float64."""
    t = {name: value.double() for name, value in t.items()}
    x = x.double()
    mu, std = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
    z = (x - mu) / (std + 1e-5) if layer_norm else x
    pre = ((z - t["b_dec"]) if subtract else z) @ t["W_enc"] + t["b_enc"]
    blocks = pre.reshape(len(x), groups, rank)
    order = blocks.norm(dim=2).sort(dim=1, descending=True)
    kept = torch.zeros(len(x), groups, dtype=torch.float64).scatter(1, order.indices[:, :active], 1.0)
    codes = (blocks * kept[..., None]).reshape(len(x), -1)
    out = codes @ t["W_dec"] + t["b_dec"]
    clear = torch.ones(len(x), dtype=torch.bool)
    if active < groups:
        clear = order.values[:, active - 1] > order.values[:, active] * (1 + 1e-4)
    return codes, out * std + mu if layer_norm else out, clear


@pytest.mark.parametrize("subtract", [None, True, False])
@given(st.integers(3, 12), st.integers(1, 8), st.integers(1, 4), st.integers(1, 8), st.integers(0, 999), st.booleans())
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_published_layout_is_its_formula(tmp_path_factory, subtract, width, groups, rank, active, seed, normed):
    active = min(active, groups)
    folder = tmp_path_factory.mktemp("published")
    kind = "layer_norm" if normed else "none"
    t = published_directory(folder, width, groups, rank, active, seed, subtract, kind)
    model = saelens.load(folder)
    generator = torch.Generator().manual_seed(seed + 1)
    x = 30 * torch.randn(40, width, generator=generator) + 10 * torch.randn(width, generator=generator)
    codes, expected, clear = defined(t, x, groups, rank, active, subtract is not False, normed)
    with torch.no_grad():
        got = model(x)
        found = model.encode(x).dense().flatten(1)
    size = float(expected.abs().max())
    assert clear.any()
    torch.testing.assert_close(got[clear].double(), expected[clear], rtol=1e-4, atol=1e-4 * size)
    scale = float(codes.abs().max())
    torch.testing.assert_close(found[clear].double(), codes[clear], rtol=1e-4, atol=1e-4 * scale)


def test_it_is_a_sasa_behind_a_layer_norm_and_saves_as_the_same_function(tmp_path):
    t = published_directory(tmp_path / "a", 12, 5, 3, 2, 0)
    model = saelens.load(tmp_path / "a")
    assert isinstance(model, NormalisedModel) and isinstance(model.model, SASA)
    assert (model.n_units, model.rank, model.model.active_groups) == (5, 3, 2)
    again = saelens.load(saelens.save(model, tmp_path / "b"))
    x = 5 * torch.randn(60, 12, generator=torch.Generator().manual_seed(4))
    _, expected, clear = defined(t, x, 5, 3, 2, True)
    with torch.no_grad():
        torch.testing.assert_close(again(x)[clear].double(), expected[clear], rtol=1e-3, atol=1e-3)


@pytest.mark.saelens
@pytest.mark.parametrize("subtract", [None, True, False])
@torch.no_grad()
def test_saelens_gives_the_same_function(tmp_path, subtract):
    """The published class is SAELens's own encoder and decoder around the group gate, as ours for SAELens is."""
    from sae_lens import SAE

    saelens.register()
    t = published_directory(tmp_path, 12, 6, 3, 2, 1, subtract)
    x = 5 * torch.randn(80, 12, generator=torch.Generator().manual_seed(4))
    _, expected, clear = defined(t, x, 6, 3, 2, subtract is not False)
    theirs = SAE.load_from_disk(tmp_path, device="cpu")
    torch.testing.assert_close(theirs(x)[clear].double(), expected[clear], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(saelens.load(tmp_path)(x)[clear], theirs(x)[clear], rtol=1e-4, atol=1e-4)
