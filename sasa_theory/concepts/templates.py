"""Words of a concept placed in sentences, so that only the word differs between two prompts.

A prompt ends with its word: a causal model's state at the last token then depends on the template before it and on
the word alone, and whatever would follow cannot matter.
"""

import functools
import importlib.resources
import json
from dataclasses import dataclass

from synthetic.errors import unknown

#: the concepts that are shipped to be looked for in a dictionary ("other" holds words of none of the calendar's)
CONCEPTS = ("weekday", "month", "season", "year", "number", "colour", "direction", "country", "city")


@dataclass(frozen=True)
class Concept:
    """Words of one kind in their natural order; `cyclic` when the last is followed by the first.

    others      words that fit the same templates and are not of the concept.
    ambiguous   written forms that often mean something else ("May", "orange"): in running text they count neither
                as the concept nor as its absence.
    text_words  words looked for in running text, where they are more than `words`; empty: the same.
    own         the concept's own templates; empty: the shared ones, about dates.
    """

    name: str
    words: tuple[str, ...]
    cyclic: bool
    others: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()
    text_words: tuple[str, ...] = ()
    own: tuple[str, ...] = ()

    @property
    def templates(self) -> tuple[str, ...]:
        """Sentence beginnings, each ending in "{word}"."""
        return self.own or templates()


@functools.cache
def _data() -> dict:
    file = importlib.resources.files("sasa_theory.concepts") / "words.json"
    return json.loads(file.read_text(encoding="utf-8"))


@functools.cache
def concept(name: str) -> Concept:
    """The shipped concept `name` (one of CONCEPTS, or "other"); raises UsageError for an unknown one."""
    kinds = {key: value for key, value in _data().items() if key != "templates"}
    if name not in kinds:
        raise unknown("concept", name, kinds)
    entry = kinds[name]
    first, last = entry.get("text_range", (0, -1))
    return Concept(
        name,
        tuple(entry["words"]),
        bool(entry["cyclic"]),
        others=tuple(entry.get("others", () if name == "other" else kinds["other"]["words"])),
        ambiguous=tuple(entry.get("ambiguous", ())),
        text_words=tuple(str(number) for number in range(first, last + 1)),
        own=tuple(entry.get("templates", ())),
    )


def templates() -> tuple[str, ...]:
    """The shipped sentence beginnings about dates, each ending in "{word}"."""
    return tuple(_data()["templates"])


def prompts(of: Concept) -> list[str]:
    """Every template of the concept with every word, template-major: prompt t * n_words + w."""
    return [template.format(word=word) for template in of.templates for word in of.words]
