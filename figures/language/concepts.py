"""Which unit holds a concept: the best SASA group against the best latent, and the best r latents, of each baseline.

Nine concepts (weekday ... city) are looked for twice: at the last token of templates ("The old door was painted red"),
among the templates' other tokens and other words in the same place; and in held-out running text, where the tokenizer's
own ids say which tokens are words of the concept (`concepts.matching`). Words of a concept are rare, so held-out
contexts that hold one are added to the text as it is: F1 and precision are for that mixture.

Units and thresholds are chosen on one half (even templates; even documents) and judged on the other
(`concepts.detectors`). Columns are matched: a group has r columns, so r latents stand beside it as well as one.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from figures.language.concepts_draw import draw, tables
from figures.language.configuration import ARCHITECTURES
from figures.language.held_out import HeldOut, held_out, with_words
from figures.language.study import NEEDS, OPTIONS, Study, decided
from figures.registry import Context, Figure, figures
from sasa_theory.activations import LanguageModel
from sasa_theory.concepts import CONCEPTS, Concept, concept
from sasa_theory.concepts.detectors import METRICS, Halves, Judged, average, interval
from sasa_theory.concepts.matching import match, token_forms
from sasa_theory.concepts.scores import UnitScores, unit_scores
from synthetic.errors import UsageError

logger = logging.getLogger(__name__)

#: where concepts are looked for
PLACES = ("text", "templates")
#: a concept with fewer tokens in either half of a place is not judged there
FEWEST = 8
#: held-out contexts added per concept, templates and words used, by profile
SIZES = {"quick": (4, 8, 6), "standard": (48, 16, 16), "paper": (256, 64, 64)}


@dataclass(frozen=True)
class Place:
    """Rows in which concepts are looked for; for each concept its halves, or why it cannot be judged here."""

    name: str
    rows: HeldOut
    halves: dict[str, "Halves | str"]


def run(context: Context) -> dict[str, Any]:
    """Choose and judge detectors of every concept in every dictionary at the middle L0."""
    study = Study.open(context)
    made = study.configuration
    rng = np.random.default_rng(context.seeds[0])
    each, n_templates, n_words = SIZES[context.profile]
    concepts = [concept(name) for name in CONCEPTS]
    trained = study.runs([(name, made.middle_l0, seed) for name in ARCHITECTURES for seed in made.seeds])

    text = held_out(study, made.evaluation_tokens)
    plain = len(text)
    if more := with_words(study, concepts, each, text):
        text = text.and_then(more)
    place, words = in_text(text, concepts, study.language_model.tokenizer, rng)
    places = [place, in_templates(study.language_model, made.hook, concepts, n_templates, n_words, rng)]
    found: dict[tuple[str, str, str, str], list[Judged]] = {}
    units: dict[tuple[str, str, str, str], list[list[int]]] = {}
    runs = iter(trained)
    for name in ARCHITECTURES:
        for _ in made.seeds:
            model = next(runs).model
            for place in places:
                scores = unit_scores(model, place.rows.parts(context.device))
                for key, (judged, chosen) in judge(place, scores, name, made.group_rank).items():
                    found.setdefault(key, []).append(judged)
                    units.setdefault(key, []).append(chosen)
            logger.info("concepts: %s judged", name)
    means = {key: average(judged) for key, judged in found.items()}
    leads = differences(means)
    numbers: dict[str, Any] = {
        "architectures": list(ARCHITECTURES),
        "concepts": list(CONCEPTS),
        "l0": made.middle_l0,
        "rank": made.group_rank,
        "results": [_entry(key, means[key], found[key], units[key]) for key in found],
        "differences": leads,
        "words": words,
        "skipped": {place.name: {k: v for k, v in place.halves.items() if isinstance(v, str)} for place in places},
        "rows": {"text": len(text), "plain": plain, "templates": len(places[1].rows)},
    }
    return {
        "numbers": numbers,
        "tables": tables(numbers),
        "findings": decided(findings(leads, made.group_rank), context),
        "settings": {**study.settings(), "templates": n_templates, "words": n_words, "contexts_per_concept": each},
    }


# ---- where concepts are looked for -------------------------------------------------------------------------------


def in_text(
    text: HeldOut, concepts: list[Concept], tokenizer: Any, rng: np.random.Generator
) -> tuple[Place, list[dict[str, Any]]]:
    """Halves of the running text for every concept, and what was found of its words."""
    halves: dict[str, Halves | str] = {}
    words = []
    for of in concepts:
        got = match(of, tokenizer, text.tokens, text.contexts, text.positions)
        halves[of.name] = _halves(got.positive, text.documents, got.ignored, rng)
        words.append(
            {
                "concept": of.name,
                "found": sum(got.counts.values()),
                "counts": dict(sorted(got.counts.items(), key=lambda item: -item[1])[:12]),
                "split": [word for word in of.words if all(len(ids) > 1 for ids in token_forms(tokenizer, word))],
                "split_in_text": len(got.split),
                "ambiguous": list(of.ambiguous),
            }
        )
    return Place("text", text, halves), words


def in_templates(
    model: LanguageModel, hook: str, concepts: list[Concept], n_templates: int, n_words: int, rng: np.random.Generator
) -> Place:
    """Halves of every concept's prompts; a template is a document, and another concept's prompts are not looked at.

    The tokens before the word are the same for every word of a template and stand there once.
    """
    skipped = len(model.prefix)
    rows: list[torch.Tensor] = []
    owner, document, positive = [], [], []
    for i, of in enumerate(concepts):
        listed = [word for kind in (of.words, of.others) for word in _spread(kind, n_words)]
        is_word = [word in of.words for word in listed]
        texts = [template.format(word=word) for template in _spread(of.templates, n_templates) for word in listed]
        for place, states in enumerate(model.activations(texts, hook)):
            template, word = divmod(place, len(listed))
            # the last word of the list is none of the concept's: its prompt shows the template's own tokens too
            kept = states.rows[skipped:] if word == len(listed) - 1 else states.rows[-1:]
            rows.append(kept.float())
            owner += [i] * len(kept)
            document += [template] * len(kept)
            positive += [False] * (len(kept) - 1) + [is_word[word]]
    x = torch.cat(rows)
    owners, documents, is_positive = np.array(owner), np.array(document), np.array(positive)
    halves = {of.name: _halves(is_positive, documents, owners != i, rng) for i, of in enumerate(concepts)}
    empty = np.zeros(len(x), np.int64)
    return Place("templates", HeldOut(empty, owners, empty, documents, lambda start, end: x[start:end]), halves)


def _spread(items: tuple[str, ...], most: int) -> list[str]:
    """At most `most` of the items, evenly taken, in their order."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))]


def _halves(
    positive: np.ndarray, documents: np.ndarray, ignored: np.ndarray, rng: np.random.Generator
) -> "Halves | str":
    """The two halves, or the sentence that says why there are none."""
    try:
        halves = Halves(positive, documents, ignored, rng=rng)
    except UsageError as error:
        return str(error)
    chosen, judged = halves.counts()
    return halves if min(chosen, judged) >= FEWEST else f"only {chosen} and {judged} tokens of the concept"


# ---- judging -----------------------------------------------------------------------------------------------------


def judge(
    place: Place, scores: UnitScores, architecture: str, rank: int
) -> dict[tuple[str, str, str, str], tuple[Judged, list[int]]]:
    """Detectors of one dictionary: (place, concept, architecture, "one" | "several") -> judged, and their units."""
    out = {}
    for name, halves in place.halves.items():
        if isinstance(halves, str):
            continue
        for kind, size in {"one": 1, "several": rank}.items():
            if kind == "several" and architecture == "sasa":
                continue  # one group has the columns of `rank` latents
            chosen = halves.choose(scores, size)
            out[place.name, name, architecture, kind] = halves.judge(scores, chosen), list(chosen.by_f1)
    return out


def differences(means: Mapping[tuple[str, str, str, str], Judged]) -> list[dict[str, Any]]:
    """SASA's group less each baseline's detector: mean over concepts with its interval, and concepts won and lost.

    Concepts are taken as given; the interval is over documents. A concept is won (lost) when its own 95 % interval lies
    above (below) zero.
    """
    out = []
    for place in PLACES:
        for name in ARCHITECTURES:
            for kind in ("one", "several"):
                shared = [c for c in CONCEPTS if (place, c, name, kind) in means and name != "sasa"]
                for metric in METRICS:
                    pairs = [(means[place, c, "sasa", "one"], means[place, c, name, kind]) for c in shared]
                    draws = [a.draws[metric] - b.draws[metric] for a, b in pairs]
                    values = [a.value[metric] - b.value[metric] for a, b in pairs]
                    kept = [i for i, value in enumerate(values) if np.isfinite(value)]
                    if not kept:
                        continue
                    bounds = [interval(draws[i]) or (-np.inf, np.inf) for i in kept]
                    whole = interval(np.mean([draws[i] for i in kept], axis=0))
                    out.append(
                        {
                            "place": place,
                            "baseline": name,
                            "kind": kind,
                            "metric": metric,
                            "value": float(np.mean([values[i] for i in kept])),
                            "interval": whole,
                            "concepts": len(kept),
                            "won": sum(low > 0 for low, _ in bounds),
                            "lost": sum(high < 0 for _, high in bounds),
                        }
                    )
    return out


def findings(rows: list[dict[str, Any]], rank: int) -> list[dict[str, str]]:
    """Do groups detect concepts of running text better than latents: one at a time, and at the same columns?"""
    f1 = {(row["baseline"], row["kind"]): row for row in rows if row["place"] == "text" and row["metric"] == "f1"}
    if not f1:
        return [{"sentence": "concepts", "status": "undecided", "text": "too few words of any concept were found"}]

    def side(kind: str) -> tuple[str, str, int]:
        """The strongest baseline of this kind in words, and on which side of zero SASA's lead over it lies."""
        name, row = min(((n, row) for (n, k), row in f1.items() if k == kind), key=lambda item: item[1]["value"])
        low, high = row["interval"] or (-1.0, 1.0)
        text = f"{row['value']:+.2f} ({low:+.2f} to {high:+.2f}) against {name}, over {row['concepts']} concepts"
        return name, text, 1 if low > 0 else -1 if high < 0 else 0

    _, one, ahead_of_one = side("one")
    _, several, ahead_of_several = side("several")
    status = {
        (1, 1): "supported",
        (1, 0): "needs an assumption",
        (1, -1): "needs an assumption",
    }.get((ahead_of_one, ahead_of_several), "refuted" if ahead_of_one < 0 else "undecided")
    text = (
        f"F1 of the best SASA group in held-out text, less that of the best latent of the strongest baseline: {one}; "
        f"less that of its best {rank} latents, as many columns: {several}"
    )
    return [{"sentence": "concepts", "status": status, "text": text}]


def _entry(key: tuple[str, str, str, str], mean: Judged, seeds: list[Judged], units: list[list[int]]) -> dict[str, Any]:
    place, name, architecture, kind = key
    metrics = {
        metric: {
            "value": _number(mean.value[metric]),
            "interval": interval(mean.draws[metric]),
            "seeds": [_number(one.value[metric]) for one in seeds],
        }
        for metric in METRICS
    }
    return {"place": place, "concept": name, "architecture": architecture, "kind": kind, "units": units, **metrics}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


figures.register("concepts")(
    Figure(
        name="concepts",
        title="Concepts of a language model: the best group against the best latents",
        run=run,
        draw=draw,
        budget={"quick": 120.0, "standard": 30 * 60.0, "paper": 60 * 60.0},
        options=OPTIONS,
        needs=NEEDS,
    )
)
