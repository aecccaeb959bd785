"""Named settings of a study of one language model: what is read, how much, and which dictionaries are trained on it.

A file configurations/NAME.json holds the fields of `Configuration`; one with "based_on" changes some of another's.
`load_configuration` takes the name of one that comes with the program, or a file of your own.
"""

import dataclasses
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sasa_theory.activations.gather import NORM_LIMIT
from sasa_theory.files import read_json
from sasa_theory.training import TrainSettings
from synthetic.errors import DataError, UsageError, unknown

#: dictionaries of every study, at equal columns and L0
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu", "abstopk", "sasa")
#: whom the paper compares SASA with
BASELINES = ("topk", "batchtopk", "matryoshka")


@dataclass(frozen=True)
class Configuration:
    """What a study reads and trains; raises UsageError for values that cannot be met.

    Sizes count columns: a SASA of `columns` and `l0` has columns / group_rank groups, l0 / group_rank of them active.
    """

    name: str
    title: str
    model: str
    """Hugging Face id or directory, or gemma3-270m"""
    hook: str
    columns: int
    group_rank: int
    l0: tuple[int, ...]
    train_tokens: int
    """rows each dictionary is trained on, in one pass where there are as many"""
    tokens: int
    """rows of the store (every 20th context is held out); not used without a store"""
    text: str = ""
    """where the text was published; "" where the user must give one"""
    stored: bool = True
    """False: the language model runs beside the training, and nothing is kept on disk"""
    dtype: str = "float32"
    """of the language model's weights"""
    context: int = 128
    keep_special: bool = False
    prepend_bos: bool = False
    """begin contexts with BOS although the tokenizer puts none there"""
    norm_limit: float | None = NORM_LIMIT
    batch_size: int = 1024
    seeds: tuple[int, ...] = (0, 1)
    ablation_seeds: int = 2
    """how many of the seeds the figure `ablation` uses"""
    normalise: str = "mean_scalar"
    learning_rates: tuple[float, ...] = (1e-3,)
    """tried for each architecture, on half of the tokens and a seed of their own; one is taken as it is"""
    penalty: str = "map"
    nuclear: float | None = None
    """SASA's coefficient in normalised units; None: a tenth of the energy a column carries on average"""
    evaluation_tokens: int = 50_000
    spliced_tokens: int = 8192
    training: Mapping[str, Any] = field(default_factory=dict)
    """settings of TrainSettings for all dictionaries"""
    of: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """architecture -> {"model": settings, "training": settings}"""

    def __post_init__(self) -> None:
        for name in ("l0", "seeds", "learning_rates"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name):
                raise UsageError(f"configuration {self.name}: {name} is empty; give at least one value")
        if self.columns % self.group_rank:
            raise UsageError(
                f"configuration {self.name}: columns {self.columns} is no multiple of group_rank {self.group_rank}"
            )
        for l0 in self.l0:
            if l0 % self.group_rank or not 0 < l0 <= self.columns:
                raise UsageError(
                    f"configuration {self.name}: l0 {l0} must be a multiple of group_rank {self.group_rank}, from "
                    f"{self.group_rank} to {self.columns}"
                )
        if self.train_tokens < 4 * self.batch_size:
            raise UsageError(
                f"configuration {self.name}: train_tokens {self.train_tokens} gives fewer than four batches of "
                f"{self.batch_size}"
            )
        for name in self.of:
            if name not in ARCHITECTURES:
                raise unknown(f"architecture in configuration {self.name}", name, ARCHITECTURES)

    @property
    def middle_l0(self) -> int:
        """The L0 at which figures that show one show it."""
        return self.l0[(len(self.l0) - 1) // 2]

    def reduced(self) -> "Configuration":
        """The same with few tokens, columns and seeds: shows that everything runs, and measures nothing."""
        columns = min(self.columns, 64 * self.group_rank)
        tokens = min(self.tokens, 24_000)
        return dataclasses.replace(
            self,
            columns=columns,
            l0=tuple(l0 for l0 in self.l0 if l0 <= columns // 2)[:1] or (self.group_rank,),
            seeds=self.seeds[:1],
            tokens=tokens,
            train_tokens=min(self.train_tokens, 20_000),
            batch_size=min(self.batch_size, 256),
            learning_rates=self.learning_rates[len(self.learning_rates) // 2 :][:1],
            evaluation_tokens=min(self.evaluation_tokens, 1000),
            spliced_tokens=min(self.spliced_tokens, 512),
        )

    def settings(self, architecture: str, l0: int, width: int) -> dict[str, Any]:
        """The architecture's sizes at this L0, for activations of `width` dimensions."""
        groups, active = self.columns // self.group_rank, l0 // self.group_rank
        if architecture == "sasa":
            # E||x||^2 = D after normalisation; THEORY.md C6 compares the coefficient with a direction's energy
            nuclear = 0.1 * width / self.columns if self.nuclear is None else self.nuclear
            sizes: dict[str, Any] = {
                "n_groups": groups,
                "group_rank": self.group_rank,
                "active_groups": active,
                "penalty": self.penalty,
                "nuclear": round(nuclear, 6),
                "aux_groups": active,
            }
        elif architecture == "jumprelu":
            sizes = {"n_latents": self.columns, "target_l0": float(l0), "aux_latents": l0}
        else:
            sizes = {"n_latents": self.columns, "active_latents": l0, "aux_latents": l0}
        return {**sizes, **self.of.get(architecture, {}).get("model", {})}

    def train_settings(self, architecture: str, seed: int, *, lr: float, tokens: int | None = None) -> TrainSettings:
        """How a dictionary is trained on `tokens` rows (default: all)."""
        steps = (self.train_tokens if tokens is None else tokens) // self.batch_size
        chosen: dict[str, Any] = {
            "steps": max(1, steps),
            "batch_size": self.batch_size,
            "lr": lr,
            "normalise": self.normalise,
            # from data points, which share the mean's direction on a residual stream, the first codes overshoot many
            # times over, and a good part of a short training goes into coming back
            "initialise": "random",
            "warmup_steps": min(100, steps // 10),
            "dead_window": 100 * self.batch_size,
            "log_every": max(1, steps // 40),
            "checkpoint_every": max(200, steps // 4),
            "seed": seed,
            **self.training,
            **self.of.get(architecture, {}).get("training", {}),
        }
        return TrainSettings(**chosen)

    def fixed_rate(self, architecture: str) -> float | None:
        """The learning rate where the configuration names one, None where several are to be tried."""
        named = self.of.get(architecture, {}).get("training", {}).get("lr")
        if named is not None:
            return float(named)
        return self.learning_rates[0] if len(self.learning_rates) == 1 else None


def configurations() -> list[str]:
    """Names of the configurations that come with the program."""
    folder = importlib.resources.files("figures.language") / "configurations"
    return sorted(item.name.removesuffix(".json") for item in folder.iterdir() if item.name.endswith(".json"))


def load_configuration(name: str) -> Configuration:
    """The configuration of this name, or of a JSON file of the user's own.

    Raises UsageError for an unknown name, a field that does not exist and values that cannot be met, DataError for a
    file that is no JSON object.
    """
    values = _values(name)
    known = {item.name for item in dataclasses.fields(Configuration)}
    for key in values:
        if key not in known:
            raise unknown(f"field of configuration {name}", key, known)
    values["name"] = Path(name).stem
    missing = {
        item.name for item in dataclasses.fields(Configuration) if item.default is item.default_factory
    } - values.keys()
    if missing:
        raise UsageError(f"configuration {name} lacks {', '.join(sorted(missing))}")
    return Configuration(**values)


def _values(name: str) -> dict[str, Any]:
    if name in configurations():
        file = importlib.resources.files("figures.language") / "configurations" / f"{name}.json"
        values = json.loads(file.read_text(encoding="utf-8"))
    elif Path(name).is_file():
        values = read_json(Path(name))
    else:
        raise unknown("configuration", name, configurations())
    if not isinstance(values, dict):
        raise DataError(f"{name} holds a {type(values).__name__}; expected a JSON object of a configuration's fields")
    base = values.pop("based_on", None)
    return {**_values(str(base)), **values} if base is not None else values
