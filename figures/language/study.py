"""One language model, one hook, one text, and the dictionaries that all its figures share.

    study = Study.open(context)            # options config=NAME text=PATH[,PATH...] [store=DIR]
    study.data                             # rows: a store, written on first use, or the running model
    study.runs([("sasa", 32, 0), ...])     # (architecture, L0 in columns, seed): trained once, found again by all

All dictionaries of one seed see the same batches in the same order, each batch read once (`fit_together`), or once a
pass where memory does not hold them all. Their learning rates are chosen alike: on half of the tokens, at the middle
L0, with a seed of their own, by explained variance on held-out rows.
"""

import dataclasses
import functools
import hashlib
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures.language.configuration import ARCHITECTURES, Configuration, load_configuration
from figures.registry import Context
from sasa_theory.activations import ActivationStore, LanguageModel, LiveActivations, Texts, read_text, write_activations
from sasa_theory.activations.gather import TokenFilter
from sasa_theory.activations.language_model import Context as TextContext
from sasa_theory.activations.layout import MANIFEST
from sasa_theory.activations.store import EVAL_EVERY
from sasa_theory.evaluation import ExplainedVariance, Sparsity
from sasa_theory.evaluation import run as measure
from sasa_theory.evaluation.splice import ordinary_tokens
from sasa_theory.files import read_json, write_json
from sasa_theory.training import Job, Run, fit_together
from sasa_theory.training.cost import DENSE, PER_PARAMETER, free_bytes, parameters, split_to_fit
from sasa_theory.training.runs import directory
from synthetic.errors import UsageError, unknown
from synthetic.source import Dataset

logger = logging.getLogger(__name__)

#: options of every figure on a language model
OPTIONS = {
    "config": "settings of the study: a name such as gemma3-270m-l11, or a JSON file",
    "text": "files, directories or hf:DATASET, separated by commas (default: the configuration's)",
    "store": "an existing store of the same model and hook (default: one is written under OUT/stores)",
    "model": "another place of the model's weights (default: the configuration's)",
    "model_device": "where the model runs beside the training, cuda:1 say (default: where the dictionaries are)",
}
NEEDS = "a language model and text (options config and text)"
#: seed of the runs that choose learning rates; never shown
TUNING_SEED = 1000
#: an L0 within this factor of the one asked for is met
NEAR = 1.25


def decided(findings: list[dict[str, str]], context: Context) -> list[dict[str, str]]:
    """The findings; in profile quick, which measures nothing, each is undecided whatever its numbers."""
    return [{**one, "status": "undecided"} for one in findings] if context.profile == "quick" else findings


class Study:
    """The shared parts of the figures on one language model (module docstring)."""

    def __init__(self, configuration: Configuration, context: Context) -> None:
        self.configuration, self.context = configuration, context

    @classmethod
    def open(cls, context: Context) -> "Study":
        """The study that the options name; profile "quick" reduces it to a few thousand tokens.

        Raises UsageError for a missing or unknown configuration.
        """
        if "config" not in context.options:
            raise UsageError("this figure needs --option config=NAME, such as gemma3-270m-l11, and --option text=PATH")
        configuration = load_configuration(context.options["config"])
        if model := context.options.get("model"):
            configuration = dataclasses.replace(configuration, model=model)
        return cls(configuration.reduced() if context.profile == "quick" else configuration, context)

    # ---- model, text, rows -----------------------------------------------------------------------------------

    @functools.cached_property
    def language_model(self) -> LanguageModel:
        """The model, loaded on first use."""
        return self._load(self.context.device)

    def _load(self, device: str) -> LanguageModel:
        made = self.configuration
        return LanguageModel(
            made.model, dtype=made.dtype, device=device, context=made.context, prepend_bos=made.prepend_bos
        )

    @functools.cached_property
    def texts(self) -> Texts:
        """The text that the option or the configuration names."""
        named = self.context.options.get("text") or self.configuration.text
        if not named:
            raise UsageError(
                f"configuration {self.configuration.name} names no text; give --text PATH (a figure alone: --option "
                "text=PATH); docs/text.md says what"
            )
        return read_text(named.split(","))

    @functools.cached_property
    def data(self) -> Dataset:
        """Rows to train and evaluate on: the store, or the model itself where the configuration keeps none."""
        made = self.configuration
        if self.is_stored:
            return self.store
        elsewhere = self.context.options.get("model_device", self.context.device)
        return LiveActivations(
            self.language_model if elsewhere == self.context.device else self._load(elsewhere),
            self.texts,
            made.hook,
            norm_limit=made.norm_limit,
            keep_special=made.keep_special,
        )

    @functools.cached_property
    def store(self) -> ActivationStore:
        """The store, written first where it is not there or holds too few rows."""
        made = self.configuration
        if given := self.context.options.get("store"):
            store = ActivationStore(given)
            asked = {"model": made.model, "hook": made.hook, "context": made.context, "keep_special": made.keep_special}
            for key, value in {**asked, "prepend_bos": made.prepend_bos or None}.items():
                if store.meta.get(key) != value:
                    raise UsageError(
                        f"store {given} holds {key} {store.meta.get(key)!r}, the configuration asks for {value!r}"
                    )
            return store
        place = self.store_directory()
        write_activations(
            self.language_model,
            made.hook,
            self.texts,
            place,
            made.tokens,
            workers=2 if self.context.device == "cpu" else 1,
            keep_special=made.keep_special,
            norm_limit=made.norm_limit,
            progress=sys.stderr.isatty(),
        )
        return ActivationStore(place)

    def store_directory(self) -> Path:
        """Where the study's own store is, or will be."""
        made = self.configuration
        words = (made.model, made.hook, made.context, made.keep_special, made.norm_limit, self.texts.identity)
        bos = ("BOS prepended",) * made.prepend_bos
        return self.context.out / "stores" / hashlib.sha256(repr((*words, *bos)).encode()).hexdigest()[:16]

    @property
    def is_stored(self) -> bool:
        """Whether the rows come from a store, not from the running model."""
        return self.configuration.stored or "store" in self.context.options

    @property
    def at_hand(self) -> bool:
        """Whether `data` can be opened without gathering anything first."""
        if "store" in self.context.options or not self.is_stored:
            return True
        place = self.store_directory()
        return (place / MANIFEST).exists() and ActivationStore(place, verify=False).complete

    @property
    def width(self) -> int:
        """Dimensions of the rows, D."""
        return self.data.width if self.at_hand else self.language_model.width

    def stored_rows(self) -> int:
        """Rows that are in the store already."""
        if given := self.context.options.get("store"):
            return len(ActivationStore(given))
        place = self.store_directory()
        return len(ActivationStore(place, verify=False)) if (place / MANIFEST).exists() else 0

    def ordinary(self) -> TokenFilter:
        """Which tokens are kept as rows, and so which ones a dictionary is answerable for."""
        data = self.data
        return data.filter() if isinstance(data, LiveActivations) else ordinary_tokens(self.language_model, self.store)

    def eval_contexts(self, tokens: int) -> list[TextContext]:
        """Held-out contexts (every 20th, which no dictionary was trained on), in order, of at least `tokens` tokens.

        Raises UsageError when the text holds none.
        """
        found: list[TextContext] = []
        seen = 0
        for item in self.language_model.contexts(self.texts):
            if item.number % EVAL_EVERY == EVAL_EVERY - 1:
                found.append(item)
                seen += len(item.ids)
                if seen >= tokens:
                    break
        if not found:
            raise UsageError(f"{self.texts.description} is shorter than {EVAL_EVERY} contexts; give more text")
        return found

    # ---- dictionaries ----------------------------------------------------------------------------------------

    def job(
        self,
        architecture: str,
        l0: int,
        seed: int,
        *,
        lr: float | None = None,
        tokens: int | None = None,
        **changes: Any,
    ) -> Job:
        """One dictionary to train; `lr` defaults to the tuned rate, `changes` are settings of the model.

        Raises UsageError for an unknown architecture.
        """
        if architecture not in ARCHITECTURES:
            raise unknown("architecture of a study", architecture, ARCHITECTURES)
        made = self.configuration
        rate = self.rates[architecture] if lr is None else lr
        return Job(
            architecture,
            {**made.settings(architecture, l0, self.width), **changes},
            made.train_settings(architecture, seed, lr=rate, tokens=tokens),
        )

    def runs(self, wanted: Sequence[tuple[str, int, int]]) -> list[Run]:
        """The dictionaries (architecture, L0 in columns, seed), in order."""
        return self.fit([self.job(*one) for one in wanted])

    def fit(self, jobs: Sequence[Job]) -> list[Run]:
        """The runs of `jobs`, in order, trained on this study's rows."""
        context = self.context
        return fit_together(
            self.data, jobs, out=context.out, device=context.device, deadline=context.deadline, room=self.room()
        )

    def room(self, free: float | None = None) -> float:
        """Bytes for dictionaries in training: nine tenths of what is `free` (now), less the arrays of a step."""
        of_step = 4 * DENSE * self.configuration.batch_size * self.configuration.columns
        return 0.9 * (free_bytes(self.context.device) if free is None else free) - of_step

    def passes(self, jobs: Sequence[Job], free: float | None = None) -> list[list[Job]]:
        """The passes in which these jobs of one seed are trained."""
        sizes = [PER_PARAMETER * parameters(job.settings, self.width) for job in jobs]
        return split_to_fit(jobs, sizes, self.room(free))

    @functools.cached_property
    def rates(self) -> dict[str, float]:
        """The learning rate of each architecture: of those that met the L0, the one of largest explained variance.

        L0 is met within a factor of NEAR (it is exact but for a steered one); where none did, the nearest is taken.
        """
        l0 = self.configuration.middle_l0
        chosen = {}
        for name, tried in self.tuning.items():
            off = {rate: abs(math.log(max(got["l0"], 1e-9) / l0)) for rate, got in tried.items()}
            near = [rate for rate in tried if off[rate] <= math.log(NEAR)]
            best = (
                max(near, key=lambda rate: tried[rate]["explained_variance"])
                if near
                else min(off, key=lambda r: off[r])
            )
            chosen[name] = best
        return chosen

    @functools.cached_property
    def tuning(self) -> dict[str, dict[float, dict[str, float]]]:
        """architecture -> {learning rate: held-out explained variance and L0}; nan and the L0 where none was tried.

        Kept in a file beside the runs, as all figures of a study read it.
        """
        made, tried, kept = self.configuration, self.tuning_jobs(), self._tuning_file()
        if not kept.exists():
            runs = self.fit([job for *_, job in tried])
            calculators = [ExplainedVariance, Sparsity]
            found = [
                measure(run.model, self.data, made.evaluation_tokens, [one() for one in calculators]) for run in runs
            ]
            measured = [
                {"explained_variance": got["explained_variance"].explained_variance, "l0": got["l0"].l0}
                for got in found
            ]
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, {"runs": [run.directory.name for run in runs], "measured": measured})
        out: dict[str, dict[float, dict[str, float]]] = {name: {} for name in ARCHITECTURES}
        for (name, rate, _), got in zip(tried, read_json(kept)["measured"], strict=True):
            out[name][rate] = got
        for name in ARCHITECTURES:
            if (fixed := made.fixed_rate(name)) is not None:
                out[name] = {fixed: {"explained_variance": math.nan, "l0": float(made.middle_l0)}}
        return out

    def is_tuned(self) -> bool:
        """Whether `rates` can be read without training or gathering anything."""
        return self.at_hand and self._tuning_file().exists()

    def tuning_jobs(self) -> list[tuple[str, float, Job]]:
        """Architecture, rate and job of every run that chooses the rates."""
        made = self.configuration
        return [
            (name, lr, self.job(name, made.middle_l0, TUNING_SEED, lr=lr, tokens=made.train_tokens // 2))
            for name in ARCHITECTURES
            if made.fixed_rate(name) is None
            for lr in made.learning_rates
        ]

    def _tuning_file(self) -> Path:
        """Where what the tuning runs gave is kept."""
        runs = [directory(self.data, job, self.context.out).name for *_, job in self.tuning_jobs()]
        name = hashlib.sha256(repr((runs, self.configuration.evaluation_tokens)).encode()).hexdigest()[:16]
        return self.context.out / "tuning" / f"{name}.json"

    def settings(self) -> dict[str, Any]:
        """What was run, for a result file."""
        return {
            "configuration": dataclasses.asdict(self.configuration),
            "text": self.texts.description,
            "data": self.data.fingerprint(),
            "rates": self.rates,
        }
