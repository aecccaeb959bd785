"""SAELens directories: a model comes back as the same function of raw rows; a broken directory is one sentence."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sasa_theory import saelens
from sasa_theory.models import Grassmannian, NormalisedModel, Normaliser, SparseModel, TopK, build
from synthetic.errors import DataError, LabError, UsageError

VECTORS = ["relu", "topk", "abstopk", "batchtopk", "matryoshka", "jumprelu", "gated"]
BLOCKS = ["sasa", "bsf", "grassmannian", "grouplasso"]
ARCHITECTURES = VECTORS + BLOCKS
KINDS = ["none", "layer_norm", "mean_scalar"]


def random_model(name: str, width: int, units: int, active: int, rank: int, seed: int) -> SparseModel:
    """A model whose every parameter is random, biases and magnitudes included."""
    extra = {"active_latents": active}
    if name == "grouplasso":
        extra = {"group_rank": rank}
    elif name in BLOCKS:
        extra = {"group_rank": rank, "active_groups": active}
    elif name not in ("topk", "abstopk", "batchtopk", "matryoshka"):
        extra = {}
    units_name = "n_groups" if name in BLOCKS else "n_latents"
    model = build(name, width_in=width, **{units_name: units}, **extra)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        if name in ("batchtopk", "matryoshka"):
            model.threshold.fill_(0.2)
    if isinstance(model, Grassmannian):
        model.post_step()  # its encoder follows the decoder
    return model


def rows_with_outlier(n: int, width: int, seed: int) -> torch.Tensor:
    """Rows with unequal means and one dimension far larger than the rest."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator) + torch.randn(width, generator=generator)
    x[:, 0] *= 20
    return x


def assert_same_function(ours, theirs, x: torch.Tensor) -> None:
    """Same reconstruction up to rounding; a unit on the edge of a gate may flip, so all but a few rows must agree."""
    expected, got = ours(x), theirs(x)
    close = torch.isclose(got, expected, rtol=1e-3, atol=1e-3 * float(x.abs().max())).all(dim=1)
    assert close.float().mean() >= 0.99
    # and those that agree agree closely
    error = (got - expected)[close].norm() / expected[close].norm()
    assert error < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=5, deadline=None)
@given(
    width=st.integers(3, 12),
    units=st.integers(3, 9),
    active=st.integers(1, 3),
    rank=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, name, kind, cap, width, units, active, rank, seed):
    x = rows_with_outlier(200, width, seed)
    model = NormalisedModel(random_model(name, width, units, active, rank, seed), Normaliser.fit(kind, x, cap))
    folder = saelens.save(model, tmp_path_factory.mktemp("saved"))
    with torch.no_grad():
        assert_same_function(model, saelens.load(folder), x)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saving_a_loaded_model_again_changes_nothing(tmp_path, name):
    model = random_model(name, 6, 8, 2, 2, seed=1)
    first = saelens.load(saelens.save(model, tmp_path / "a"))
    second = saelens.load(saelens.save(first, tmp_path / "b"))
    x = rows_with_outlier(100, 6, 2)
    with torch.no_grad():
        assert_same_function(model, first, x)
        assert_same_function(first, second, x)
    assert not model.b_dec.allclose(torch.zeros(6)), "a zero bias would not test its folding"


def test_cfg_is_in_the_layout_of_saelens(tmp_path):
    folder = saelens.save(random_model("sasa", 6, 4, 2, 3, seed=0), tmp_path, metadata={"hook_name": "blocks.3"})
    config = json.loads((folder / "cfg.json").read_text())
    assert config["architecture"] == "topk_sasa"
    assert (config["n_groups"], config["group_rank"], config["k_groups"], config["d_sae"]) == (4, 3, 2, 12)
    assert config["apply_b_dec_to_input"] is False
    assert config["metadata"]["hook_name"] == "blocks.3"
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert set(load_file(folder / "sae_weights.safetensors")) == {"W_enc", "b_enc", "W_dec", "b_dec"}


def test_layer_norm_is_named_and_the_diagonal_folded(tmp_path):
    x = rows_with_outlier(100, 5, 0)
    model = NormalisedModel(random_model("topk", 5, 6, 2, 1, 0), Normaliser.fit("layer_norm", x, 1.5))
    loaded = saelens.load(saelens.save(model, tmp_path))
    assert json.loads((tmp_path / "cfg.json").read_text())["normalize_activations"] == "layer_norm"
    assert isinstance(loaded, NormalisedModel)
    assert bool((loaded.normaliser.scale == 1).all()) and not bool((model.normaliser.scale == 1).all())


def write_foreign(folder: Path, tensors: dict[str, torch.Tensor], **fields) -> Path:
    """A directory as another program writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    d_in, d_sae = tensors["W_enc"].shape
    config = {"architecture": "topk", "d_in": d_in, "d_sae": d_sae, "k": 2, "metadata": {"sae_lens_version": "6.5.0"}}
    (folder / "cfg.json").write_text(json.dumps(config | fields))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def foreign_tensors(d_in: int = 6, d_sae: int = 10) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("subtract", [True, False, None])
@pytest.mark.parametrize("rescale", [True, False])
def test_foreign_topk_equals_its_definition(tmp_path, subtract, rescale):
    """SAELens's formulas written out; a missing apply_b_dec_to_input is true there."""
    t = foreign_tensors()
    fields = {} if subtract is None else {"apply_b_dec_to_input": subtract}
    model = saelens.load(write_foreign(tmp_path, t, rescale_acts_by_decoder_norm=rescale, **fields))
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    pre = (x - t["b_dec"] * (subtract is not False)) @ t["W_enc"] + t["b_enc"]
    size = t["W_dec"].norm(dim=1) if rescale else torch.ones(10)
    best = (pre * size).topk(2, dim=1)
    acts = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
    torch.testing.assert_close(model(x), (acts / size) @ t["W_dec"] + t["b_dec"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.encode(x).dense()[..., 0], acts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_precisions_become_float32(tmp_path, dtype):
    tensors = {name: value.to(dtype) for name, value in foreign_tensors().items()}
    model = saelens.load(write_foreign(tmp_path, tensors))
    assert model.W_enc.dtype == torch.float32
    torch.testing.assert_close(model.W_dec.detach(), tensors["W_dec"].float(), rtol=0, atol=0)


def test_thresholds_at_or_below_zero_are_a_plain_relu(tmp_path):
    t = foreign_tensors() | {"threshold": torch.linspace(-1, 1, 10)}
    model = saelens.load(write_foreign(tmp_path, t, architecture="jumprelu"))
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(3))
    pre = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    acts = pre.relu() * (pre > t["threshold"])
    torch.testing.assert_close(model.encode(x).dense()[..., 0], acts, rtol=1e-4, atol=1e-4)


def test_directories_from_before_saelens_six(tmp_path):
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "normalize_activations": False}
    folder = write_foreign(tmp_path, foreign_tensors())
    config = json.loads((folder / "cfg.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("architecture", "metadata", "k")}
    (folder / "cfg.json").write_text(json.dumps(config | old))
    model = saelens.load(folder)
    assert isinstance(model, TopK) and model.active_latents == 3


BAD_FIELDS = [
    ({"architecture": "topk_sas"}, "did you mean 'topk_sasa'"),
    ({"architecture": "transcoder"}, "unknown architecture in cfg.json"),
    ({"architecture": None}, "does not name an architecture"),
    ({"k": None}, "k = None; expected a positive integer"),
    ({"k": 11}, "only 10 latents"),
    ({"d_in": "6"}, "d_in = '6'"),
    ({"d_in": 7}, r"W_enc has shape \(6, 10\); cfg.json asks for \(7, 10\)"),
    ({"apply_b_dec_to_input": "yes"}, "expected true or false"),
    ({"normalize_activations": "expected_average_only_in"}, "statistics that the file does not hold"),
    ({"normalize_activations": "covariance_whitening"}, "statistics that the file does not hold"),
    ({"reshape_activations": "hook_q"}, "expected none or hook_z"),
    ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
    ({"architecture": "jumprelu"}, "lacks threshold"),
    ({"architecture": "gated"}, "lacks b_gate, b_mag, r_mag"),
    ({"architecture": "topk_sasa", "n_groups": 3, "group_rank": 3, "k_groups": 1}, "make 9 columns"),
    ({"architecture": "topk_sasa", "n_groups": 5, "k_groups": 1}, "group_rank = None"),
]


@pytest.mark.parametrize("fields, message", BAD_FIELDS)
def test_a_wrong_cfg_is_one_sentence(tmp_path, fields, message):
    with pytest.raises(LabError, match=message) as caught:
        saelens.load(write_foreign(tmp_path, foreign_tensors(), **fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("damage", ["missing", "renamed", "shape", "nan", "inf", "integer"])
def test_a_wrong_tensor_is_named_with_its_file(tmp_path, name, damage):
    t = foreign_tensors()
    folder = write_foreign(tmp_path, t)
    if damage == "missing":
        del t[name]
    elif damage == "renamed":
        t[f"{name}_old"] = t.pop(name)
    elif damage == "shape":
        t[name] = t[name][:-1].contiguous()
    elif damage == "integer":
        t[name] = t[name].long()
    else:
        t[name].view(-1)[1] = float(damage)
    save_file(t, folder / "sae_weights.safetensors")
    with pytest.raises(DataError, match=name) as caught:
        saelens.load(folder)
    assert "sae_weights.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unexpected_tensor_is_named(tmp_path):
    folder = write_foreign(tmp_path, foreign_tensors() | {"scaling_factor": torch.ones(10)})
    with pytest.raises(DataError, match="has unexpected scaling_factor"):
        saelens.load(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "", "\xff"])
def test_a_cfg_that_is_no_json_object(tmp_path, text):
    folder = write_foreign(tmp_path, foreign_tensors())
    (folder / "cfg.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=re.escape(str(folder / "cfg.json"))):
        saelens.load(folder)


def test_missing_and_cut_files(tmp_path):
    with pytest.raises(UsageError, match="is not a directory"):
        saelens.load(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"cfg\.json does not exist"):
        saelens.load(tmp_path)
    folder = write_foreign(tmp_path, foreign_tensors())
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(DataError, match="is not a whole safetensors file"):
        saelens.load(folder)
    weights.unlink()
    with pytest.raises(UsageError, match=r"sae_weights\.safetensors does not exist"):
        saelens.load(folder)


class NoExport(TopK):
    """A user's architecture that forgot `export`."""

    architecture = "mine"
    export = SparseModel.export


def test_nothing_is_written_for_a_model_that_cannot_be_saved(tmp_path):
    broken = random_model("topk", 4, 5, 1, 1, 0)
    with torch.no_grad():
        broken.W_dec[0, 0] = torch.nan
    fresh = build("batchtopk", width_in=4, n_latents=5, active_latents=1)
    fine = random_model("topk", 4, 5, 1, 1, 0)
    for model, metadata, message in [
        (NoExport(4, 5, 1), None, "'mine' has no export.*implement export"),
        (broken, None, "W_dec of the model holds NaN"),
        (fresh, None, "no inference threshold yet"),
        (fine, {"a": object()}, "metadata must be JSON"),
        (fine, {"a": float("nan")}, "metadata must be JSON"),
    ]:
        with pytest.raises(LabError, match=message):
            saelens.save(model, tmp_path / "out", metadata)
    assert not (tmp_path / "out").exists()


def test_a_save_cut_between_its_files_leaves_no_mixture(tmp_path, monkeypatch):
    """Another model's cfg.json never stands beside the new weights; the same model's may, as it says the same."""
    saelens.save(random_model("topk", 4, 6, 1, 1, 0), tmp_path)

    def full_disk(*_):
        raise LabError("the disk is full")

    monkeypatch.setattr(saelens, "write_json", full_disk)
    with pytest.raises(LabError, match="disk is full"):
        saelens.save(random_model("topk", 4, 6, 1, 1, 1), tmp_path)
    assert saelens.load(tmp_path).active_latents == 1
    with pytest.raises(LabError, match="disk is full"):
        saelens.save(random_model("topk", 4, 6, 2, 1, 0), tmp_path)
    with pytest.raises(UsageError, match=r"cfg\.json does not exist"):
        saelens.load(tmp_path)
