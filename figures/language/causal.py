"""E7: does the model use what a group holds? Remove it, restore it, move it along the ring, and read the next token.

Prompts such as "After Monday comes" (see causal_prompts) are answered by the model; at the word, and at the word and
all tokens after it, what a dictionary's units hold of the state (their contribution, or all of the state in their
subspace; see `concepts.interventions`) is

    removed    the probability of any weekday, and of the right one, falls by a share of what a neutral word's whole
               state takes away (the ceiling)
    restored   put into a neutral word's state, it brings back a share of the same
    moved      replaced by that of the weekday two on, or half way round, it shifts the answer's log-odds by a share of
               what the other word's whole state does

for the best group of SASA, and the best latent and the best r latents of each baseline, all chosen by F1 on templates
of other sentences (`figures.language.concepts`), and for all units of a dictionary together. Controls, for SASA:
another group that is on at the word, the runner-up of the screening, and random vectors of the same norm, of half and
of a quarter of it. A large random vector breaks everything, so a group is also compared with random vectors that move
the rest of the distribution as far (interpolated between norms). Means are over prompts that the model answers,
intervals are bootstrap over these prompts with the dictionaries of all seeds averaged first.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from figures.language.causal_draw import draw, tables
from figures.language.causal_measure import (
    SITES,
    Scene,
    ceilings,
    effects,
    on_share,
    random_effects,
    rival_effects,
)
from figures.language.causal_prompts import TEMPLATES, prompt_sets
from figures.language.concepts import in_templates
from figures.language.configuration import ARCHITECTURES
from figures.language.study import NEEDS, OPTIONS, Study, decided
from figures.registry import Context, Figure, figures
from sasa_theory.activations import LanguageModel
from sasa_theory.activations.continuation import Continuation
from sasa_theory.concepts import concept
from sasa_theory.concepts.interventions import KINDS, Part
from sasa_theory.concepts.scores import unit_scores
from sasa_theory.resampling import percentile_interval, resample_counts

logger = logging.getLogger(__name__)

#: prompts that must be answered for anything to be measured
FEWEST = 4
#: random vectors per prompt; templates and words of the screening, by profile
DRAWS = {"quick": 2, "standard": 8, "paper": 32}
SCREENING = {"quick": (8, 6), "standard": (16, 16), "paper": (64, 64)}
#: random controls and the share of the part's norm that they have, the smallest first
RANDOM = {"random/4": 0.25, "random/2": 0.5, "random": 1.0}
#: per prompt numbers of one detector, site and kind of part
Values = dict[str, np.ndarray]


def run(context: Context) -> dict[str, Any]:
    """Intervene with every dictionary at the middle L0."""
    study = Study.open(context)
    made = study.configuration
    trained = study.runs([(name, made.middle_l0, seed) for name in ARCHITECTURES for seed in made.seeds])
    models: dict[str, list[Any]] = {}
    for (name, _), one in zip([(name, seed) for name in ARCHITECTURES for seed in made.seeds], trained, strict=True):
        models.setdefault(name, []).append(one.model)
    numbers = measure(
        study.language_model,
        made.hook,
        models,
        made.group_rank,
        np.random.default_rng(context.seeds[0]),
        draws=DRAWS[context.profile],
        screening=SCREENING[context.profile],
    )
    numbers["l0"] = made.middle_l0
    return {
        "numbers": numbers,
        "tables": tables(numbers),
        "findings": decided(findings(numbers), context),
        "settings": {**study.settings(), "random_draws": DRAWS[context.profile]},
    }


def measure(
    language_model: LanguageModel,
    hook: str,
    models: Mapping[str, Sequence[Any]],
    rank: int,
    rng: np.random.Generator,
    *,
    draws: int = 8,
    screening: tuple[int, int] = (16, 16),
) -> dict[str, Any]:
    """All interventions with the given dictionaries, {architecture: one model a seed}, as the numbers of a result.

    "entries" is empty when the tokenizer leaves too few prompts, or the model answers too few.
    """
    chosen, unfit = screen(language_model, hook, models, rank, rng, screening)
    sets, missing = prompt_sets(language_model, tuple(of for of in TEMPLATES if of not in unfit))
    rest = Continuation(language_model, hook)
    scenes = [Scene(rest, one) for one in sets]
    numbers: dict[str, Any] = {
        "rank": rank,
        "prompts": [_prompts(scene) for scene in scenes],
        "missing": [*(f"{of}: {why}" for of, why in unfit.items()), *missing],
        "answered": sum(int(_answered(scene).sum()) for scene in scenes),
        "of": sum(scene.n for scene in scenes),
        "entries": [],
    }
    if numbers["answered"] < FEWEST:
        return numbers
    answered = np.concatenate([_answered(scene) for scene in scenes])
    names = np.concatenate([[s.prompts.concept] * s.n for s in scenes])
    clean = {key: np.concatenate([s.clean.values[key] for s in scenes]) for key in ("class", "right", "rest")}
    top = {site: [ceilings(scene, site) for scene in scenes] for site in SITES}
    ceiling = {site: _flat(top[site]) for site in SITES}
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))

    found: dict[tuple[str, str, str, str], list[Values]] = {}
    for (name, seed, label), units in chosen.items():
        for kind in KINDS if label != "all" else KINDS[:1]:
            parts = [Part(models[name][seed], tuple(units[s.prompts.concept]), kind) for s in scenes]
            for site in SITES:
                values = _flat([effects(s, site, part) for s, part in zip(scenes, parts, strict=True)])
                values["on"] = np.concatenate([on_share(s, part) for s, part in zip(scenes, parts, strict=True)])
                found.setdefault((name, label, kind, site), []).append(values)
                if (name, label) == ("sasa", "one"):
                    for control, made in _controls(scenes, site, parts, draws, generator).items():
                        found.setdefault((name, control, kind, site), []).append(made)
        logger.info("causal: %s, %s, seed %d done", name, label, seed)
    means = {key: _average(per_seed) for key, per_seed in found.items()}

    for subset in ("both", *sorted(set(names))):
        kept = answered & ((names == subset) | (subset == "both"))
        if kept.sum() < FEWEST:
            continue
        resamples = Resamples(kept, rng)
        for (name, label, part, site), values in means.items():
            entry = _entry(values, clean, ceiling[site], resamples)
            for key in ("class", "right"):
                entry[f"seeds_{key}"] = [
                    float(one[f"remove.{key}"][kept].mean()) for one in found[name, label, part, site]
                ]
            noise = [means["sasa", control, part, site] for control in RANDOM if ("sasa", control, part, site) in means]
            if noise and (name, label) == ("sasa", "one"):
                entry["specific"] = _specific(values, noise, clean, ceiling[site], resamples)
            numbers["entries"].append(
                {"concept": subset, "model": name, "units": label, "part": part, "site": site, **entry}
            )
    return numbers | {
        "clean": {key: float(clean[key][answered].mean()) for key in ("class", "right")},
        "ceiling": {site: {k: float(v[answered].mean()) for k, v in ceiling[site].items()} for site in SITES},
        "units": [
            {"model": name, "seed": seed, "units": label, "concept": of, "chosen": list(listed)}
            for (name, seed, label), units in chosen.items()
            for of, listed in units.items()
            if label != "all"
        ],
    }


def screen(
    language_model: LanguageModel,
    hook: str,
    models: Mapping[str, Sequence[Any]],
    rank: int,
    rng: np.random.Generator,
    sizes: tuple[int, int],
) -> tuple[dict[tuple[str, int, str], dict[str, tuple[int, ...]]], dict[str, str]]:
    """(architecture, seed, "one" | "several" | "runner-up" | "all") -> concept -> units, by F1 on even templates.

    And concept -> why units for it cannot be chosen with this tokenizer.
    """
    concepts = [concept(name) for name in TEMPLATES]
    place = in_templates(language_model, hook, concepts, *sizes, rng)
    chosen: dict[tuple[str, int, str], dict[str, tuple[int, ...]]] = {}
    for name, seeds in models.items():
        for seed, model in enumerate(seeds):
            scores = unit_scores(model, place.rows.parts(language_model.device))
            for of, halves in place.halves.items():
                if isinstance(halves, str):
                    continue
                chosen.setdefault((name, seed, "all"), {})[of] = tuple(range(model.n_units))
                best = halves.choose(scores, 1).by_f1
                chosen.setdefault((name, seed, "one"), {})[of] = best
                if name != "sasa":  # one group has the columns of `rank` latents
                    chosen.setdefault((name, seed, "several"), {})[of] = halves.choose(scores, rank).by_f1
                    continue
                order = np.argsort(-scores.best_f1s(halves.positive, halves.selection), kind="stable")
                second = next(int(unit) for unit in order if unit != best[0])
                chosen.setdefault((name, seed, "runner-up"), {})[of] = (second,)
    return chosen, {of: halves for of, halves in place.halves.items() if isinstance(halves, str)}


def findings(numbers: dict[str, Any]) -> list[dict[str, str]]:
    """Removing the group's subspace at the word: its share of the ceiling, against random vectors as harmful.

    Supported: more than half of the ceiling, and more than those; needs an assumption: only the latter.
    """
    if not numbers["entries"]:
        text = f"the model answers {numbers['answered']} of {numbers['of']} prompts; {'; '.join(numbers['missing'])}"
        return [{"sentence": "causal", "status": "undecided", "text": text.strip("; ")}]
    entry = {
        (e["units"], e["site"]): e
        for e in numbers["entries"]
        if (e["concept"], e["model"], e["part"]) == ("both", "sasa", "subspace")
    }
    group, noise = entry["one", "word"], entry["random", "word"]
    share, lead, rest, ceiling = (
        group["share_class"],
        group["specific"]["class"],
        group["rest"],
        numbers["ceiling"]["word"],
    )
    if numbers["clean"]["class"] - ceiling["neutral.class"] < 0.05:
        status = "undecided"  # even a neutral word's whole state leaves the concept where it is
    elif lead["interval"][0] > 0:
        status = "supported" if share["interval"][0] > 0.5 else "needs an assumption"
    else:
        status = "refuted" if share["interval"][1] < 0.5 else "undecided"
    text = (
        f"of {numbers['answered']} prompts answered, removing the SASA group's subspace at the word takes "
        f"{_text(share)} of what a neutral word's state takes from the concept's probability, and "
        f"{_text(group['share_right'])} of the right answer's; it moves the rest of the distribution by "
        f"{rest['value']:.2f} nats (neutral word {ceiling['neutral.rest']:.2f}). Random vectors of the same norm take "
        f"{_text(noise['share_class'])} and move the rest by {noise['rest']['value']:.2f}; less those that move it as "
        f"far, the group takes {_text(lead)}. Another word's part put in shifts the answer by "
        f"{_text(group['share_shift'])} of what that word's whole state does"
    )
    return [{"sentence": "causal", "status": status, "text": text}]


def _controls(
    scenes: list[Scene], site: str, parts: list[Part], draws: int, generator: torch.Generator
) -> dict[str, Values]:
    """What removing something else does: random vectors, and another group that is on at the word."""
    pairs = list(zip(scenes, parts, strict=True))
    out = {
        label: _flat([{"remove": random_effects(s, site, part, draws, generator, size)} for s, part in pairs])
        for label, size in RANDOM.items()
    }
    return out | {"other": _flat([{"remove": rival_effects(s, site, part)} for s, part in pairs])}


class Resamples:
    """Means and ratios of means over the kept prompts, with bootstrap intervals that share their resamples."""

    def __init__(self, kept: np.ndarray, rng: np.random.Generator) -> None:
        self.kept = kept
        self.counts = np.vstack([np.ones(int(kept.sum())), resample_counts(int(kept.sum()), rng)])

    def totals(self, row: np.ndarray) -> np.ndarray:
        """The sum over kept prompts, first as they are, then in every resample."""
        return self.counts @ row[self.kept]

    def mean(self, row: np.ndarray) -> dict[str, Any]:
        return self.summary(self.totals(row) / self.kept.sum())

    def share(self, part: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
        total = self.totals(whole)
        return self.summary(np.divide(self.totals(part), total, out=np.full_like(total, np.nan), where=total != 0))

    def summary(self, values: np.ndarray) -> dict[str, Any]:
        """The value and its interval; one that says nothing where the ceiling does nothing at all."""
        low, high = percentile_interval(values[1:])
        if not np.isfinite([values[0], low, high]).all():
            return {"value": 0.0, "interval": [-1e9, 1e9]}
        return {"value": float(values[0]), "interval": [low, high]}


def _entry(values: Values, clean: Values, ceiling: Values, resamples: Resamples) -> dict[str, Any]:
    """Means and intervals over the kept prompts of everything that was measured."""
    mean, share = resamples.mean, resamples.share
    out: dict[str, Any] = {"rest": mean(values["remove.rest"])}
    for key in ("class", "right"):
        removed, most = values[f"remove.{key}"], ceiling[f"neutral.{key}"]
        out[key] = mean(removed)
        out[f"share_{key}"] = share(clean[key] - removed, clean[key] - most)
        if f"restore.{key}" in values:
            out[f"restored_{key}"] = share(values[f"restore.{key}"] - most, clean[key] - most)
    if "move.shift" in values:
        out["share_shift"] = share(values["move.shift"], ceiling["move.shift"])
        out["shift"], out["moved"] = mean(values["move.shift"]), mean(values["move.moved"])
        out["on"] = float(values["on"][resamples.kept].mean())
    return out


def _specific(
    values: Values, noise: list[Values], clean: Values, ceiling: Values, resamples: Resamples
) -> dict[str, Any]:
    """Share of the ceiling that the part takes, less what random vectors take that move the rest as far.

    Between norms the share is interpolated in the KL of the rest, from (0, 0) on; beyond the largest it stays.
    """
    rest = [resamples.totals(one["remove.rest"]) for one in (values, *noise)]
    out = {}
    for key in ("class", "right"):
        fall = [resamples.totals(clean[key] - one[f"remove.{key}"]) for one in (values, *noise)]
        zero = np.zeros_like(fall[0])
        x = np.maximum.accumulate(np.stack([zero, *rest[1:]], axis=1), axis=1)
        y = np.stack([zero, *fall[1:]], axis=1)
        like = np.array([np.interp(at, *curve) for at, *curve in zip(rest[0], x, y, strict=True)])
        whole = resamples.totals(clean[key] - ceiling[f"neutral.{key}"])
        lead = fall[0] - like
        out[key] = resamples.summary(np.divide(lead, whole, out=np.full_like(lead, np.nan), where=whole != 0))
    return out


def _answered(scene: Scene) -> np.ndarray:
    """Whether the right answer is the likeliest of the concept's words, for each prompt."""
    found: np.ndarray = scene.clean.log_words.argmax(axis=1) == scene.prompts.right.numpy()
    return found


def _prompts(scene: Scene) -> dict[str, Any]:
    one = scene.prompts
    return {
        "concept": one.concept,
        "template": one.template,
        "words": len(one.words),
        "left_out": one.left_out,
        "answered": int(_answered(scene).sum()),
        "likeliest": int((scene.likeliest() == one.answers).sum()),
        "class": float(scene.clean.values["class"].mean()),
        "right": float(scene.clean.values["right"].mean()),
    }


def _flat(scenes: "Sequence[Mapping[str, Mapping[str, np.ndarray]]]") -> Values:
    """{action: {measure: prompts}} of every scene -> {"action.measure": all prompts}."""
    return {
        f"{action}.{name}": np.concatenate([scene[action][name] for scene in scenes])
        for action in scenes[0]
        for name in scenes[0][action]
    }


def _average(per_seed: list[Values]) -> Values:
    return {key: np.mean([one[key] for one in per_seed], axis=0) for key in per_seed[0]}


def _text(entry: dict[str, Any]) -> str:
    return f"{entry['value']:.2f} ({entry['interval'][0]:.2f} to {entry['interval'][1]:.2f})"


figures.register("causal")(
    Figure(
        name="causal",
        title="E7: removing, restoring and moving what a group holds",
        run=run,
        draw=draw,
        budget={"quick": 120.0, "standard": 40 * 60.0, "paper": 60 * 60.0},
        options=OPTIONS,
        needs=NEEDS,
    )
)
