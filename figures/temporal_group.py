"""E6: one group for all dates. Which one tells weekdays, months and years from other words, and how does it hold them?

The group is the one whose norm has the largest AUC for words of all three categories against everything else, on even
templates; on odd ones its AUC is read for each category. Its coordinates at the words it fires on are shown in their
first two principal components, and the class means of weekdays and of months are fitted by circles there. Its norm at
every token of a few fixed sentences shows where in a text it is on.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sasa_theory.concepts import circular_fit, class_means, concept
from sasa_theory.concepts.scores import unit_scores

#: texts along which the norms of groups are shown
SENTENCES = (
    "The meeting on Monday was moved to Thursday because the hall was closed.",
    "She was born in March 1921 and left the city in October 1945.",
    "Every Sunday in July and August the band plays two songs by the river.",
)


def measure(
    model: Any, at_word: dict[str, np.ndarray], others: "Tensor", even: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """The group for dates, its AUCs, principal components and circles.

    at_word  category -> (templates, words, D) states at the word.
    others   (n, D) states of other tokens, and whether each is of an even template.
    """
    rows, kind, is_even = [others.float()], ["other"] * len(others), [even]
    for name, states in at_word.items():
        templates, words, width = states.shape
        rows.append(torch.from_numpy(states.reshape(-1, width)).float())
        kind += [name] * (templates * words)
        is_even.append(np.repeat(np.arange(templates) % 2 == 0, words))
    x, kinds, selection = torch.cat(rows), np.array(kind), np.concatenate(is_even)
    scores = unit_scores(model, x.split(4096))
    dated = np.isin(kinds, list(at_word))
    unit = int(np.argmax(scores.aucs(dated, selection)))
    column = {
        name: float(scores.aucs(kinds == name, ~selection & ((kinds == name) | ~dated))[unit]) for name in at_word
    }
    codes = {}
    for name, states in at_word.items():
        values = unit_codes(model, unit, torch.from_numpy(states).flatten(0, 1).float())
        codes[name] = values.reshape(*states.shape[:2], -1)
    return {
        "unit": unit,
        "auc": {"all": float(scores.aucs(dated, ~selection)[unit]), **column},
        "firing_share": {name: float((value != 0).any(-1).mean()) for name, value in codes.items()},
        "components": _components(codes),
        "rings": {name: fit(codes[name], concept(name), rng) for name in at_word if name in ("weekday", "month")},
    }


def unit_codes(model: Any, unit: int, rows: Tensor) -> np.ndarray:
    """One unit's coefficients on every row, zero where it is off: (n, D) states -> (n, r)."""
    out = np.zeros((len(rows), model.rank))
    with torch.no_grad():
        row, units, values = model.encode(rows).pairs()
    mine = units == unit
    out[row[mine].numpy()] = values[mine].double().numpy()
    return out


def fit(x: np.ndarray, of: Any, rng: np.random.Generator) -> dict[str, Any] | None:
    """Circular fit of (templates, words, D) states or codes in the words' order; None where there is no plane."""
    if x.shape[-1] < 2 or not np.abs(class_means(x)).sum() > 0:
        return None
    found = circular_fit(class_means(x), rng)
    centre = x.mean(axis=1, keepdims=True)
    cloud = (x - centre) @ found.basis
    return {
        "r2": found.r2,
        "p_value": found.p_value,
        "exact": found.exact,
        "plane_share": found.plane_share,
        "plane": found.plane.round(5).tolist(),
        "cloud": cloud.round(4).tolist(),
        "words": list(of.words),
    }


def profiles(language_model: Any, hook: str, model: Any, units: dict[str, int]) -> list[dict[str, Any]]:
    """Norm of some units' codes at every token of the fixed sentences: {"tokens", "norms": {label: [...]}}."""
    skipped = len(language_model.prefix)
    out = []
    for text in language_model.activations(list(SENTENCES), hook):
        rows = text.rows[skipped:].float()
        norms = {
            label: np.linalg.norm(unit_codes(model, unit, rows), axis=1).round(4).tolist()
            for label, unit in units.items()
        }
        tokens = [language_model.tokenizer.decode([int(token)]) for token in text.tokens[skipped:]]
        out.append({"tokens": tokens, "norms": norms})
    return out


def _components(codes: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """The first two principal components of the coefficients at the words the group fires on, word means included."""
    flat = {name: value.reshape(-1, value.shape[-1]) for name, value in codes.items()}
    firing = {name: (value != 0).any(axis=1) for name, value in flat.items()}
    on = np.concatenate([flat[name][firing[name]] for name in flat])
    if len(on) < 3 or on.shape[1] < 2:
        return None
    centre = on.mean(axis=0)
    _, sigma, directions = np.linalg.svd(on - centre, full_matrices=False)
    energy = np.square(sigma)
    if energy.sum() == 0:
        return None
    points = {}
    for name, value in flat.items():
        plane = (value - centre) @ directions[:2].T
        n_words = codes[name].shape[1]
        word = np.arange(len(value)) % n_words
        means = [plane[firing[name] & (word == w)].mean(axis=0).tolist() for w in range(n_words)
                 if (firing[name] & (word == w)).any()]  # fmt: skip
        names = [concept(name).words[w] for w in range(n_words) if (firing[name] & (word == w)).any()]
        points[name] = {"cloud": plane[firing[name]].round(4).tolist(), "means": means, "words": names}
    return {"shares": (energy[:2] / energy.sum()).tolist(), "points": points}
