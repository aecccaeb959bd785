"""SAELens directories: `save` writes them, `load` reads ours and other people's, `register` teaches SAELens our SASA.

    cfg.json                  architecture, d_in, d_sae, normalize_activations, ..., metadata
    sae_weights.safetensors   W_enc (D, K r), b_enc (K r), W_dec (K r, D), b_dec (D), and what the architecture adds

Everything is in raw units. What is affine in an input normalisation is folded into the weights, a layer norm is named
in cfg.json. Written: standard, topk, abstopk, jumprelu (also for BatchTopK and Matryoshka), gated, `topk_sasa` (also
for the vanilla and the Grassmannian featurizer), which is

    pre = x W_enc + b_enc;  keep the k_groups groups of largest norm;  xhat = codes W_dec + b_dec,

and `grouplasso`, the same with every group's code shrunk by max(1 - threshold / norm, 0), which SAELens does not read.

A further architecture is one `@formats.register` here or in a plugin, and an `export` in its class.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sasa_theory.files import read_json, replacing, write_json
from sasa_theory.models.base import SparseModel
from sasa_theory.models.normaliser import NormalisedModel, Normaliser
from sasa_theory.models.registry import build
from synthetic.errors import DataError, LabError, UsageError
from synthetic.registry import Registry

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
#: the layout written; SAELens reads older versions through a conversion of its own
SAE_LENS_VERSION = "6.54.0"


def save(
    model: SparseModel | NormalisedModel, directory: str | Path, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write a model as a SAELens directory in raw units (weights, then cfg.json, each atomically); returns it.

    `metadata` (JSON values) is added to cfg.json's. Raises UsageError for an architecture without `export` and for
    metadata that JSON cannot hold, DataError for weights that are not finite, LabError for a full disk.
    """
    folder = Path(directory)
    normalisation = "none"
    inner: SparseModel
    if isinstance(model, NormalisedModel):
        inner = model.normaliser.folded_into(model.model)
        normalisation = "none" if model.normaliser.linear else "layer_norm"
    else:
        inner = model
    fields, tensors = inner.export()
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise DataError(f"tensor {name} of the model holds NaN or Inf; nothing was written to {folder}")
    config = {
        "d_in": inner.width_in,
        "d_sae": inner.n_units * inner.rank,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": normalisation,
        "reshape_activations": "none",
        **fields,
    }
    described = {
        **config,
        "metadata": {**(metadata or {}), "sae_lens_version": SAE_LENS_VERSION, "trained_as": inner.architecture},
    }
    _require_json(described, folder)
    _forget_other(folder / CONFIG, config)
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(folder / CONFIG, described)
    return folder


def load(directory: str | Path) -> SparseModel | NormalisedModel:
    """The model of a SAELens directory, ours or anyone's, in raw units and float32, on the CPU.

    A subtracted b_dec and acts rescaled by decoder norms are folded; a layer norm gives a NormalisedModel. Inputs of
    a hook_z dictionary are given flattened, (B, heads * d_head). Raises UsageError for a missing file or an unknown
    architecture (naming the nearest), DataError for anything wrong in the files, each naming the file and the tensor.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a directory; give one that holds {CONFIG} and {WEIGHTS}")
    config = Config(folder / CONFIG, _modern(folder / CONFIG, read_json(folder / CONFIG)))
    layout = formats[str(config.values["architecture"])]
    normalisation = config.choice("normalize_activations", ("none", "layer_norm"), "none", _WHY_NOT)
    config.choice("reshape_activations", ("none", "hook_z"), "none")
    sizes = {"d_in": config.positive("d_in"), "d_sae": config.positive("d_sae")}
    try:
        model = layout.build(config, sizes)
    except UsageError as error:
        raise DataError(f"{config.path} describes no model: {error}") from error
    columns = model.n_units * model.rank
    if columns != sizes["d_sae"]:
        raise DataError(f"{config.path} has d_sae {sizes['d_sae']}, but its groups make {columns} columns")
    names = {name: tuple(sizes[size] for size in sizes_of) for name, sizes_of in layout.tensors.items()}
    tensors = _read_tensors(folder / WEIGHTS, names)
    if config.flag("rescale_acts_by_decoder_norm", False):
        _fold_row_norms(tensors)
    _fill(model, tensors, subtracts_bias=config.flag("apply_b_dec_to_input", True))
    model.eval()
    if normalisation == "none":
        return model
    width = sizes["d_in"]
    return NormalisedModel(model, Normaliser("layer_norm", torch.zeros(width), torch.ones(width))).eval()


# ---- architectures -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """A cfg.json and its path; every accessor raises a DataError that names the file and the field."""

    path: Path
    values: dict[str, Any]

    def positive(self, name: str) -> int:
        """A required positive integer."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"{self.path} has {name} = {value!r}; expected a positive integer")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """An optional boolean."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise DataError(f"{self.path} has {name} = {value!r}; expected true or false")
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str, why_not: str = "") -> str:
        """An optional name out of a few."""
        value = self.values.get(name, default)
        if value not in choices:
            raise DataError(f"{self.path} has {name} = {value!r}; expected {' or '.join(choices)}{why_not}")
        return str(value)


_LINEAR = {"W_enc": ("d_in", "d_sae"), "b_enc": ("d_sae",), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}


@dataclass(frozen=True)
class Format:
    """How one `architecture` of cfg.json is read: the model it describes, and its tensors with their sizes.

    The tensors are parameters of that model, up to those of SAELens that `_fill` knows how to turn into ours.
    """

    build: Callable[[Config, dict[str, int]], SparseModel]
    tensors: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(_LINEAR))


#: readers by the `architecture` of cfg.json
formats: Registry[Format] = Registry("architecture in cfg.json")


def _sizes(sizes: dict[str, int]) -> dict[str, int]:
    return {"width_in": sizes["d_in"], "n_latents": sizes["d_sae"]}


def _topk(config: Config, sizes: dict[str, int]) -> SparseModel:
    signed = config.values["architecture"] == "abstopk"
    return build("topk", **_sizes(sizes), active_latents=config.positive("k"), signed=signed)


def _sasa(config: Config, sizes: dict[str, int]) -> SparseModel:
    groups, rank = config.positive("n_groups"), config.positive("group_rank")
    active = config.positive("k_groups")
    return build(
        "sasa",
        width_in=sizes["d_in"],
        n_groups=groups,
        group_rank=rank,
        active_groups=active,
        encoder_bias=True,
    )


def _group_lasso(config: Config, sizes: dict[str, int]) -> SparseModel:
    groups, rank = config.positive("n_groups"), config.positive("group_rank")
    return build("grouplasso", width_in=sizes["d_in"], n_groups=groups, group_rank=rank)


formats.register("standard")(Format(lambda config, sizes: build("relu", **_sizes(sizes))))
formats.register("topk")(Format(_topk))
formats.register("abstopk")(Format(_topk))
formats.register("topk_sasa")(Format(_sasa))
formats.register("grouplasso")(Format(_group_lasso, {**_LINEAR, "threshold": ()}))
formats.register("jumprelu")(
    Format(lambda config, sizes: build("jumprelu", **_sizes(sizes)), {**_LINEAR, "threshold": ("d_sae",)})
)
formats.register("gated")(
    Format(
        lambda config, sizes: build("gated", **_sizes(sizes)),
        {
            **{name: shape for name, shape in _LINEAR.items() if name != "b_enc"},
            **dict.fromkeys(("b_gate", "b_mag", "r_mag"), ("d_sae",)),
        },
    )
)


# ---- reading -------------------------------------------------------------------------------------------------------

_WHY_NOT = "; this normalisation needs statistics that the file does not hold: fold them in SAELens and save again"


def _modern(path: Path, values: Any) -> dict[str, Any]:
    """cfg.json's fields in the current layout; SAELens before 6.0 named the activation and nested k."""
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__}; expected a JSON object with an architecture")
    values = dict(values)
    activation = values.get("activation_fn_str", values.get("activation_fn", "relu"))
    values.setdefault("architecture", "standard" if "metadata" not in values else None)
    if values["architecture"] is None:
        raise DataError(f"{path} does not name an architecture")
    if values["architecture"] == "standard" and activation != "relu":
        if activation != "topk":
            raise DataError(f"{path} has activation_fn = {activation!r}; expected relu or topk")
        values["architecture"] = "topk"
        values["k"] = (values.get("activation_fn_kwargs") or {}).get("k")
    if values.get("finetuning_scaling_factor"):
        raise DataError(f"{path} has a finetuning_scaling_factor, which is not read; fold it in SAELens and save again")
    old = values.get("normalize_activations")
    if old is None or isinstance(old, bool):
        values["normalize_activations"] = "expected_average_only_in" if old else "none"
    return values


def _read_tensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Exactly the named tensors, with these shapes, finite, as float32."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist; the directory is no SAELens checkpoint or is incomplete")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = set(file.keys())
            for problem, found in (("lacks", set(shapes) - names), ("has unexpected", names - set(shapes))):
                if found:
                    raise DataError(
                        f"{path} {problem} {', '.join(sorted(found))}; this architecture has {', '.join(shapes)}"
                    )
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a whole safetensors file ({error})") from error
    for name, value in tensors.items():
        if tuple(value.shape) != shapes[name]:
            raise DataError(f"{path}: {name} has shape {tuple(value.shape)}; cfg.json asks for {shapes[name]}")
        if not value.is_floating_point():
            raise DataError(f"{path}: {name} has type {value.dtype}; expected floating-point weights")
        tensors[name] = value.float()
        if not tensors[name].isfinite().all():
            raise DataError(f"{path}: {name} holds NaN or Inf; the checkpoint is damaged or its training diverged")
    return tensors


def _fold_row_norms(tensors: dict[str, Tensor]) -> None:
    """TopK that ranks pre * ||d_k|| and decodes with unit rows: the norms moved into the encoder."""
    size = torch.linalg.vector_norm(tensors["W_dec"], dim=1)
    tensors["W_enc"] = tensors["W_enc"] * size
    tensors["b_enc"] = tensors["b_enc"] * size
    tensors["W_dec"] = tensors["W_dec"] / torch.where(size > 0, size, 1.0)[:, None]


@torch.no_grad()
def _fill(model: SparseModel, tensors: dict[str, Tensor], subtracts_bias: bool) -> None:
    """Copy the tensors in. Our models subtract b_dec, so where the file's does not, b_dec W_enc is added to its bias.

    In a gated dictionary the magnitude's bias takes exp(r_mag) times that; a threshold at or below 0 is a plain relu.
    """
    shift = tensors["b_dec"].double() @ tensors["W_enc"].double()
    shift = shift * (not subtracts_bias)
    gate_bias = tensors.pop("b_gate") if "b_gate" in tensors else tensors["b_enc"]
    tensors["b_enc"] = (gate_bias.double() + shift).float()
    if "b_mag" in tensors:
        tensors["b_mag"] = (tensors["b_mag"].double() + tensors["r_mag"].double().exp() * shift).float()
    if "threshold" in tensors:
        tensors["log_threshold"] = tensors.pop("threshold").double().clamp_min(0).log().float()
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameters[name].copy_(value)


# ---- writing -------------------------------------------------------------------------------------------------------


def _require_json(config: dict[str, Any], folder: Path) -> None:
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"cannot save to {folder}: metadata must be JSON values ({error}); nothing written") from error


def _forget_other(path: Path, config: dict[str, Any]) -> None:
    """Remove a cfg.json that describes another model, so that it is never seen beside the new weights."""
    if not path.exists():
        return
    try:
        old = read_json(path)
    except LabError:
        old = None
    if not isinstance(old, dict) or {k: v for k, v in old.items() if k != "metadata"} != config:
        path.unlink()


# ---- SAELens -------------------------------------------------------------------------------------------------------


def register() -> None:
    """Teach an installed SAELens `topk_sasa`, so that `SAE.load_from_disk(directory)` reads ours; may be called twice.

    Raises UsageError when sae-lens is not installed (extra `saelens`).
    """
    try:
        from sae_lens import registry
    except ImportError as error:
        raise UsageError("register() needs SAELens; install the extra with pip install 'sasa-lab[saelens]'") from error
    if "topk_sasa" in registry.SAE_CLASS_REGISTRY:
        return
    from sasa_theory.saelens_class import TopKSASA, TopKSASAConfig

    registry.register_sae_class("topk_sasa", TopKSASA, TopKSASAConfig)
