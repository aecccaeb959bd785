"""Words of a concept placed in sentences, so that only the word differs between two prompts.

A prompt ends with its word: a causal model's state at the last token then depends on the template before it and on
the word alone, and whatever would follow cannot matter.
"""

import functools
import importlib.resources
import json
from dataclasses import dataclass

from synthetic.errors import unknown


@dataclass(frozen=True)
class Concept:
    """Words of one kind in their natural order; `cyclic` when the last is followed by the first."""

    name: str
    words: tuple[str, ...]
    cyclic: bool


@functools.cache
def _data() -> dict:
    file = importlib.resources.files("sasa_theory.concepts") / "words.json"
    return json.loads(file.read_text(encoding="utf-8"))


def concept(name: str) -> Concept:
    """The shipped concept `name` ("weekday", "month", "other"); raises UsageError for an unknown one."""
    kinds = {key: value for key, value in _data().items() if key != "templates"}
    if name not in kinds:
        raise unknown("concept", name, kinds)
    return Concept(name, tuple(kinds[name]["words"]), bool(kinds[name]["cyclic"]))


def templates() -> tuple[str, ...]:
    """The shipped sentence beginnings, each ending in "{word}"."""
    return tuple(_data()["templates"])


def prompts(of: Concept) -> list[str]:
    """Every template with every word, template-major: prompt t * n_words + w."""
    return [template.format(word=word) for template in templates() for word in of.words]
