"""E4: first-letter absorption of every dictionary of a study, against L0, with columns and with groups as units.

The metric is SAEBench's in raw units (`concepts.letter_absorption`); words, states and probes are the same for all
dictionaries, so that differences are taken word by word. The published numbers are of GPT-2 small before block 7: they
stand beside ours where the study is of GPT-2, and are marked as another model's where it is not.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from figures.language.absorption_draw import PUBLISHED, draw, name_of, tables
from figures.language.configuration import ARCHITECTURES, BASELINES
from figures.language.study import NEEDS, OPTIONS, Study, decided
from figures.registry import Context, Figure, figures
from sasa_theory.concepts.first_letter import WordStates, word_states, words
from sasa_theory.concepts.letter_absorption import (
    Kind,
    LetterAbsorption,
    LetterProbes,
    letter_absorption,
    letter_interval,
    letter_probes,
)

logger = logging.getLogger(__name__)

#: words of each letter, by profile
PER_LETTER = {"quick": 24, "standard": 200, "paper": 400}
#: SAEBench speaks of absorption when this many letters count
ENOUGH_LETTERS = 20
#: absorption can be read where the main units' F1 is at least this share of the ground-truth probes'
READABLE = 0.5
GPT2 = ("gpt2", "openai-community/gpt2")
NUMBERS = ("fraction", "full")


@dataclass(frozen=True)
class Dictionary:
    """A trained dictionary of the study, in raw units."""

    architecture: str
    l0: int
    seed: int
    model: Any


def run(context: Context) -> dict[str, Any]:
    """Absorption of all dictionaries of the study; words' states are kept under OUT/first-letter."""
    study = Study.open(context)
    made = study.configuration
    wanted = [(name, l0, seed) for name in ARCHITECTURES for l0 in made.l0 for seed in made.seeds]
    dictionaries = [Dictionary(*key, run.model) for key, run in zip(wanted, study.runs(wanted), strict=True)]
    states, left_out = _states(study)
    rng = np.random.default_rng(0)
    numbers = measure(dictionaries, states, letter_probes(states, rng), rng)
    numbers |= {"model": made.model, "hook": made.hook, "gpt2": made.model in GPT2, "left_out": left_out}
    return {
        "numbers": numbers,
        "tables": tables(numbers),
        "findings": decided([finding(numbers)], context),
        "settings": {**study.settings(), "words_per_letter": PER_LETTER[context.profile]},
    }


def _states(study: Study) -> tuple[WordStates, dict[str, int]]:
    """The states at words, gathered once for a model, hook and number of words."""
    made, per_letter = study.configuration, PER_LETTER[study.context.profile]
    described = repr((made.model, made.dtype, made.hook, made.context, per_letter, made.prepend_bos))
    place = study.context.out / "first-letter" / f"{hashlib.sha256(described.encode()).hexdigest()[:16]}.npz"
    chosen = words(study.language_model.tokenizer, per_letter)
    if place.is_file():
        return WordStates.load(place), chosen.left_out
    states = word_states(study.language_model, made.hook, chosen, np.random.default_rng(0))
    states.save(place)
    return states, chosen.left_out


def measure(
    dictionaries: Sequence[Dictionary], states: WordStates, probes: LetterProbes, rng: np.random.Generator
) -> dict[str, Any]:
    """All dictionaries' absorption as the numbers of a result; seeds of one architecture and L0 stand together."""
    results: dict[tuple[str, Kind, int], list[LetterAbsorption]] = {}
    for one in dictionaries:
        for kind in _kinds(one.architecture):
            got = letter_absorption(one.model, states, probes, kind)
            results.setdefault((one.architecture, kind, one.l0), []).append(got)
            logger.info(
                "absorption: %s, L0 %d, seed %d, %s: %.3f", one.architecture, one.l0, one.seed, kind, got.fraction
            )
    counted = [one.letter for one in next(iter(results.values()))[0].letters if one.counted]
    cells = []
    for (architecture, kind, l0), seeds in results.items():
        cell: dict[str, Any] = {"architecture": architecture, "units": kind, "l0": l0}
        for name in NUMBERS:
            cell[name] = [_number(getattr(one, name)) for one in seeds]
            interval = letter_interval(_words(seeds, name), rng) if len(counted) > 1 else None
            cell[f"{name}_interval"] = interval
        for name in ("main_units", "main_f1"):
            cell[name] = [_number(getattr(one, name)) for one in seeds]
        cells.append(cell)
    return {
        "cells": cells,
        "comparisons": _comparisons(results, rng) if len(counted) > 1 else [],
        "letters": "".join(counted),
        "probe_f1": {letter.letter: letter.probe_f1 for letter in next(iter(results.values()))[0].letters},
        "l2": probes.l2,
        "words": {"train": int(states.train.sum()), "test": int((~states.train).sum())},
        "judged": sum(len(one.fraction) for one in next(iter(results.values()))[0].letters if one.counted),
        "examples": float(states.examples.mean()),
        "against": _against(states, probes),
    }


def _against(states: WordStates, probes: LetterProbes) -> float:
    """Share of found held-out words whose state points away from their letter's probe, a <= 0: never absorbed."""
    place = np.searchsorted(probes.letters, states.letter).clip(max=len(probes.letters) - 1)
    asked = ~states.train & (probes.letters[place] == states.letter) & probes.found[np.arange(len(place)), place]
    total = (states.rows[asked] * probes.directions[place[asked]]).sum(axis=1)
    return float((total <= 0).mean()) if asked.any() else 0.0


def _kinds(architecture: str) -> tuple[Kind, ...]:
    return ("columns", "groups") if architecture == "sasa" else ("columns",)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _words(seeds: Sequence[LetterAbsorption], name: str) -> list[np.ndarray]:
    """Each counted letter's numbers word by word, averaged over seeds."""
    together = zip(*(one.letters for one in seeds), strict=True)
    return [
        np.mean([getattr(one, name) for one in letter], axis=0).astype(float)
        for letter in together
        if letter[0].counted
    ]


def _comparisons(
    results: dict[tuple[str, Kind, int], list[LetterAbsorption]], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """SASA less each rival at the same L0, word by word: mean and interval over letters and words."""
    out = []
    for (architecture, kind, l0), ours in results.items():
        for rival in BASELINES if architecture == "sasa" else ():
            theirs = results.get((rival, "columns", l0))
            if theirs is None:
                continue
            told = min(float(np.mean([one.main_f1 for one in seeds])) for seeds in (ours, theirs))
            truth = np.mean([letter.probe_f1 for letter in ours[0].letters if letter.counted])
            readable = bool(told >= READABLE * truth)
            entry: dict[str, Any] = {"units": kind, "l0": l0, "rival": rival, "readable": readable}
            for name in NUMBERS:
                apart = [a - b for a, b in zip(_words(ours, name), _words(theirs, name), strict=True)]
                entry[name] = float(np.mean([letter.mean() for letter in apart]))
                entry[f"{name}_interval"] = letter_interval(apart, rng)
            out.append(entry)
    return out


def finding(numbers: dict[str, Any]) -> dict[str, str]:
    """SASA against the paper's rivals at each L0: less where the whole interval of the difference lies below zero.

    A comparison with a dictionary whose main units hardly tell the letters does not count: what has no unit cannot be
    absorbed from it, and a low number then says nothing.
    """
    said, verdicts = [], []
    for kind in ("columns", "groups"):
        entries = [entry for entry in numbers["comparisons"] if entry["units"] == kind]
        readable = [entry for entry in entries if entry["readable"]]
        less = sum(entry["fraction_interval"][1] < 0 for entry in readable)
        more = sum(entry["fraction_interval"][0] > 0 for entry in readable)
        same = len(readable) - less - more
        verdicts.append("less" if less > more + same else "more" if more > less + same else "open")
        said.append(
            f"{kind} as units: less absorption in {less} comparisons, more in {more}, no clear difference in {same}, "
            f"not readable {len(entries) - len(readable)}"
        )
    shown = []
    for cell in numbers["cells"]:
        values, told = ([v for v in cell[key] if v is not None] for key in ("fraction", "main_f1"))
        if cell["architecture"] in ("sasa", *BASELINES) and values:
            shown.append(f"{name_of(cell)} at L0 {cell['l0']} {np.mean(values):.3f} (F1 {np.mean(told):.2f})")
    letters = len(numbers["letters"])
    status = "undecided"
    if letters >= ENOUGH_LETTERS:
        status = {("less", "less"): "supported", ("more", "more"): "refuted"}.get((verdicts[0], verdicts[1]), status)
        if set(verdicts) == {"less", "more"}:
            status = "needs an assumption"
    truth = np.mean([numbers["probe_f1"][letter] for letter in numbers["letters"]]) if letters else 0.0
    text = (
        f"first-letter absorption on {numbers['model']}, {letters} letters (probes' F1 {truth:.2f}), "
        f"{numbers['judged']} held-out words, SASA against TopK, BatchTopK and Matryoshka at equal L0, readable where "
        f"the main units' F1 is at least {READABLE:g} of the probes': {'; '.join(said)}. Absorption fraction: "
        f"{', '.join(shown)}"
    )
    return {"sentence": "absorption", "status": status, "text": text}


figures.register("absorption")(
    Figure(
        name="absorption",
        title="First-letter absorption against L0",
        run=run,
        draw=draw,
        budget={"quick": 10 * 60.0, "standard": 4 * 3600.0, "paper": 24 * 3600.0},
        options=OPTIONS,
        needs=NEEDS,
    )
)
__all__ = ["PUBLISHED", "Dictionary", "finding", "measure", "run"]
