"""Whole training steps of our architectures and of the peers', behind one call each.

A builder takes a Setting and returns a function that does one step: forward, loss with its auxiliary part, backward,
clipping, Adam, normalisation, firing statistics, as its own trainer does them with its own defaults; Adam and the
auxiliary loss are switched on where they are not the default. All see the same rows in the same order. Which units are
dead is forced, the same random share for everyone, since no trainer runs long enough here for units to die.

sparsify's loop has no step that can be called (it hooks a language model), so its order of calls is repeated here
around its own SparseCoder; it does not clip. Peers are imported where they are used. Where a penalty decides how many
columns are on (relu, gated, jumprelu, group lasso), biases or thresholds begin where L0 is the setting's, for everyone,
and learning rates of next to nothing keep it there.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.published_sasa import PublishedSASA, PublishedTrainer
from sasa_theory.models import bags, build
from sasa_theory.training import Trainer, TrainSettings
from synthetic.errors import UsageError

Step = Callable[[], object]
#: batches that every contender goes round and round
BATCHES = 3
#: rows on which L0 is set where a penalty decides it, and the learning rate that leaves it there
SAMPLE, STILL = 256, 1e-12


@dataclass(frozen=True)
class Setting:
    """Sizes of one comparison; vector dictionaries get n_groups * rank latents of which active * rank are on."""

    width: int
    n_groups: int
    rank: int
    active: int
    batch: int
    dead: float = 0.0
    """share of the units that the auxiliary loss takes for dead"""

    @property
    def columns(self) -> int:
        """Width of the dictionary, K r."""
        return self.n_groups * self.rank

    @property
    def l0(self) -> int:
        """Columns on per row, s r."""
        return self.active * self.rank

    @property
    def aux_columns(self) -> int:
        """Dead columns a row may use in the auxiliary loss: the published min(512, D/2), peers take D/2."""
        return min(512, self.width // 2)


@dataclass(frozen=True)
class Bench:
    """One comparison: sizes, the rows, where, and whether products run in bf16 autocast."""

    setting: Setting
    rows: list[Tensor]
    device: str = "cpu"
    autocast: bool = False
    sasa_path: Path | None = None

    def batches(self) -> Iterator[Tensor]:
        """The rows for ever."""
        return cycle(self.rows)

    def dead(self, units: int) -> "Bool[Tensor, ' n']":
        """The dead ones among `units`, at random places, the same ones every time."""
        order = torch.randperm(units, generator=torch.Generator().manual_seed(1))
        return (order < round(self.setting.dead * units)).to(self.device)


def rows(setting: Setting, device: str) -> list[Tensor]:
    """Standard normal rows: every group is used about equally often, the hardest case for gathers and scatters."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(setting.batch, setting.width, generator=generator).to(device) for _ in range(BATCHES)]


# ---- ours ----------------------------------------------------------------------------------------------------------


def ours(architecture: str, bench: Bench, compiled: bool = True, **changes: Any) -> Step:
    """One step of our Trainer; not `compiled`: in torch operations alone, as without numba."""
    at = bench.setting
    sizes: dict[str, Any]
    if architecture in GROUPED:
        aux = max(1, at.aux_columns // at.rank)
        sizes = {"n_groups": at.n_groups, "group_rank": at.rank, "active_groups": at.active, "aux_groups": aux}
    else:
        sizes = {"n_latents": at.columns, "active_latents": at.l0, "aux_latents": at.aux_columns}
    if architecture in PENALISED:
        del sizes["active_groups" if architecture in GROUPED else "active_latents"]
    if architecture == "sasa":
        sizes["nuclear"] = 0.01
    model: Any = build(architecture, width_in=at.width, **{**sizes, **changes})
    settings = TrainSettings(steps=10**6, batch_size=at.batch, log_every=10**6, autocast=bench.autocast)
    if architecture in PENALISED:
        settings = replace(settings, lr=STILL)
    trainer = Trainer(model, bench.batches(), settings, device=bench.device, progress=False)
    trainer._start()
    if architecture == "grouplasso":
        with torch.no_grad():
            blocks = model.pre_activations(bench.rows[0][:SAMPLE]).unflatten(1, (at.n_groups, at.rank))
            model.log_threshold.fill_(_level(blocks.norm(dim=-1), at.active).log())
    elif architecture in PENALISED:
        threshold = float(model.threshold[0].detach()) if architecture == "jumprelu" else 0.0
        begin_at_l0(bench, model.W_enc, model.b_enc, threshold)
    dead = bench.dead(model.n_units)
    trainer.firing.dead = lambda: dead  # type: ignore[method-assign]
    if not compiled:
        trainer.compiled, learn = None, trainer._learn

        def in_torch(*of: Any) -> Any:
            bags.LOOPS = False
            try:
                return learn(*of)
            finally:
                bags.LOOPS = True

        trainer._learn = in_torch  # type: ignore[assignment, method-assign]
    return trainer._train_step


def begin_at_l0(bench: Bench, encoder: "Float[Tensor, 'D n']", bias: Tensor, threshold: float = 0.0) -> None:
    """Set the encoder's bias so that the setting's L0 columns a row are above the threshold."""
    with torch.no_grad():
        bias.fill_(threshold - _level(bench.rows[0][:SAMPLE] @ encoder, bench.setting.l0))


def _level(values: Tensor, on: int) -> Tensor:
    """What `on` values a row, on average, are above."""
    return values.flatten().topk(on * len(values)).values[-1]


# ---- the published step --------------------------------------------------------------------------------------------


def restated(bench: Bench) -> Step:
    """The published step as `benchmarks.published_sasa` states it."""
    at = bench.setting
    model = PublishedSASA(at.width, at.n_groups, at.rank, at.active).to(bench.device)
    trainer = PublishedTrainer(model, autocast=bench.autocast)
    batches, forced = bench.batches(), _silent(bench, trainer.dead_window)

    def step() -> object:
        trainer.silent_steps.copy_(forced)
        return trainer.step(next(batches))

    return step


def published(bench: Bench) -> Step:
    """The published code itself, from the checkout at `sasa_path`, in sae-lens's trainer."""
    module = published_module(bench.sasa_path)
    at = bench.setting
    config = module.TopKSASAConfig(
        d_in=at.width,
        d_sae=at.columns,
        n_groups=at.n_groups,
        group_rank=at.rank,
        k_groups=at.active,
        device=bench.device,
    )
    return _saelens_step(module.TopKSASA(config), bench)


def published_module(path: Path | None) -> ModuleType:
    """`sasa.model` of a checkout, both of its classes registered with sae-lens.

    Raises UsageError when the directory has no sasa/model.py or when it cannot be imported.
    """
    if path is None or not (path / "sasa" / "model.py").is_file():
        raise UsageError(f"--sasa-path is {path}; expected a checkout of the published code (it has sasa/model.py)")
    saelens = require("sae_lens")
    sys.path.insert(0, str(path.resolve()))
    try:
        module = importlib.import_module("sasa.model")
        for register, model, config in (
            (saelens.register_sae_training_class, module.TopKSASA, module.TopKSASAConfig),
            (saelens.register_sae_class, module.TopKSASAInference, module.TopKSASAInferenceConfig),
        ):
            try:
                register("topk_sasa", model, config)
            except ValueError:  # registered by an earlier comparison of this run
                continue
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the published code at {path} cannot be used ({error}); it needs sae-lens 6.54") from error
    finally:
        sys.path.remove(str(path.resolve()))
    return module


# ---- peers ---------------------------------------------------------------------------------------------------------


def saelens(kind: str, bench: Bench) -> Step:
    """sae-lens's class of an architecture, in its trainer."""
    at, library, name = bench.setting, require("sae_lens"), f"{SAELENS[kind]}TrainingSAE"
    sizes: dict[str, Any] = {"d_in": at.width, "d_sae": at.columns}
    if kind not in PENALISED:
        sizes["k"] = at.l0
    if kind == "matryoshka":
        sizes["matryoshka_widths"] = [at.columns // part for part in (16, 8, 4, 2, 1)]
    model = getattr(library, name)(getattr(library, f"{name}Config")(**sizes, device=bench.device))
    if kind in PENALISED:
        threshold = float(model.threshold[0].detach()) if kind == "jumprelu" else 0.0
        begin_at_l0(bench, model.W_enc, model.b_gate if kind == "gated" else model.b_enc, threshold)
    return _saelens_step(model, bench, **({"lr": STILL} if kind in PENALISED else {}))


def _saelens_step(model: Any, bench: Bench, **rate: float) -> Step:
    training, config = require("sae_lens.training.sae_trainer"), require("sae_lens.config")
    settings = config.SAETrainerConfig(
        total_training_samples=10**6 * bench.setting.batch,
        train_batch_size_samples=bench.setting.batch,
        **({"lr_end": 3e-5} | rate),  # the tenth of lr that its runner sets
        device=bench.device,
        autocast=bench.autocast,
    )
    batches, forced = bench.batches(), _silent(bench, settings.dead_feature_window, grouped=hasattr(model, "n_groups"))
    trainer = training.SAETrainer(settings, model, data_provider=batches)

    def step() -> object:
        trainer.n_forward_passes_since_fired.copy_(forced)
        done = trainer.step(next(batches))
        trainer.n_training_steps += 1
        return done

    return step


def dictionary_learning(kind: str, bench: Bench) -> Step:
    """dictionary_learning's trainer of an architecture."""
    at, (module, name) = bench.setting, DICTIONARY_LEARNING[kind]
    sizes: dict[str, Any] = {"lr": STILL} if kind in PENALISED else {"k": at.l0}
    if kind == "matryoshka":
        sizes["group_fractions"] = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    make = getattr(require(f"dictionary_learning.trainers.{module}"), name)
    trainer = make(10**6, at.width, at.columns, layer=0, lm_name="none", device=bench.device, **sizes)
    batches, done = bench.batches(), iter(range(10**6))

    def step() -> object:
        with torch.autocast(torch.device(bench.device).type, torch.bfloat16, enabled=bench.autocast):
            return trainer.update(next(done), next(batches))

    if kind in PENALISED:
        coder = trainer.ae
        encoder = coder.W_enc if kind == "jumprelu" else coder.encoder.weight.T
        bias = {"relu": lambda: coder.encoder.bias, "gated": lambda: coder.gate_bias, "jumprelu": lambda: coder.b_enc}
        begin_at_l0(bench, encoder, bias[kind](), float(coder.threshold[0].detach()) if kind == "jumprelu" else 0.0)
        return step
    forced, auxiliary = bench.dead(at.columns) * trainer.dead_feature_threshold, trainer.get_auxiliary_loss

    def with_dead(residual: Tensor, acts: Tensor) -> Tensor:
        # it counts this batch's firing before it asks who is dead
        trainer.num_tokens_since_fired.copy_(forced)
        loss: Tensor = auxiliary(residual, acts)
        return loss

    trainer.get_auxiliary_loss = with_dead
    return step


def sparsify(bench: Bench) -> Step:
    """sparsify TopK with Adam and its auxiliary loss (alpha 1/32); on a GPU its forward always runs in bf16."""
    at, library = bench.setting, require("sparsify")
    coder = library.SparseCoder(at.width, library.SparseCoderConfig(num_latents=at.columns, k=at.l0), bench.device)
    optimizer = torch.optim.Adam(coder.parameters(), lr=2e-4)
    batches, dead = bench.batches(), bench.dead(at.columns)
    since_fired = torch.zeros(at.columns, dtype=torch.long, device=bench.device)
    fired = torch.zeros(at.columns, dtype=torch.bool, device=bench.device)

    def step() -> object:
        x = next(batches)
        coder.set_decoder_norm_to_unit_norm()
        variance = (x - x.mean(0)).pow(2).sum()
        out = coder(x, dead_mask=dead, total_variance=variance)
        fired[out.latent_indices.flatten()] = True
        shown = float(out.fvu.detach()), float(out.auxk_loss.detach())
        (out.fvu + out.auxk_loss / 32).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        since_fired.add_(len(x))
        since_fired[fired] = 0
        fired.zero_()
        return shown

    return step


def _silent(bench: Bench, window: int, grouped: bool = True) -> Tensor:
    """Steps since each column fired, beyond `window` for the dead: whole groups, or columns of a vector dictionary."""
    at = bench.setting
    dead = bench.dead(at.n_groups).repeat_interleave(at.rank) if grouped else bench.dead(at.columns)
    return dead.float() * (window + 1)


def require(module: str) -> Any:
    """Import a peer's module; UsageError with the command that installs it when it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise UsageError(f"{package} is not installed; pip install -c constraints.txt -e '.[peers]'") from None
        raise UsageError(f"{package} cannot be imported: {str(error).splitlines()[0]}") from error


#: architectures of groups, and those where a penalty decides how many columns are on
GROUPED, PENALISED = ("sasa", "bsf", "grassmannian", "grouplasso"), ("relu", "gated", "jumprelu", "grouplasso")
#: architecture -> how sae-lens's classes of it begin
SAELENS = {
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "abstopk": "AbsTopK",
    "matryoshka": "MatryoshkaBatchTopK",
    "relu": "Standard",
    "gated": "Gated",
    "jumprelu": "JumpReLU",
}
#: architecture -> dictionary_learning's module and trainer of it
DICTIONARY_LEARNING = {
    "topk": ("top_k", "TopKTrainer"),
    "batchtopk": ("batch_top_k", "BatchTopKTrainer"),
    "matryoshka": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"),
    "relu": ("standard", "StandardTrainer"),
    "gated": ("gdm", "GatedSAETrainer"),
    "jumprelu": ("jumprelu", "JumpReluTrainer"),
}
#: contenders of every sweep but "architectures": name -> builder, those of OURS first
COMMON: dict[str, Callable[[Bench], Step]] = {
    "sasa": partial(ours, "sasa"),
    "sasa decoder": partial(ours, "sasa", penalty="decoder", nuclear=100.0, penalise="all"),
    "sasa torch": partial(ours, "sasa", compiled=False),
    "topk": partial(ours, "topk"),
    "batchtopk": partial(ours, "batchtopk"),
    "abstopk": partial(ours, "topk", signed=True),
    "published": published,
    "restated": restated,
    "sae-lens topk": partial(saelens, "topk"),
    "sae-lens batchtopk": partial(saelens, "batchtopk"),
    "dictionary_learning topk": partial(dictionary_learning, "topk"),
    "sparsify topk": sparsify,
}
MORE = ("matryoshka", "bsf", "relu", "gated", "jumprelu", "grassmannian", "grouplasso")
CONTENDERS = (
    COMMON
    | {name: partial(ours, name) for name in MORE}
    | {f"sae-lens {kind}": partial(saelens, kind) for kind in SAELENS}
    | {f"dictionary_learning {kind}": partial(dictionary_learning, kind) for kind in DICTIONARY_LEARNING}
)
OURS = ("sasa", "sasa decoder", "sasa torch", "topk", "batchtopk", "abstopk", *MORE)
#: architecture -> who has it, ours first
ARCHITECTURES = {
    name: tuple(other for other in CONTENDERS if other.rpartition(" ")[2] == name)
    for name in ("sasa", "topk", "batchtopk", "abstopk", *MORE)
}
ARCHITECTURES["sasa"] += ("published", "restated")
#: ours whose codes are never a dense (B, K r) tensor
SPARSE = (*OURS[:6], "bsf", "grassmannian", "relu", "jumprelu")
