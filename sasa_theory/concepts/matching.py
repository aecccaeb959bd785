"""Which tokens of running text are words of a concept, whatever the tokenizer.

A word is tokenised in its written forms (as it stands and capitalised; after a space, a bracket or nothing), and its
sequences of ids are looked for in consecutive tokens of a context. A hit is kept when the text decoded around it
shows the word standing alone ("second" inside "secondary" is none). The word's LAST token is the concept's token,
because only there has a causal model read the word; its earlier tokens, and ambiguous forms ("May", "orange"), are
left out of every count. Nothing but the tokenizer's own `__call__` and `decode` is used, so any of them will do.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from sasa_theory.concepts.templates import Concept
from synthetic.errors import UsageError


@dataclass(frozen=True)
class Matches:
    """Where a concept stands in a text of n tokens.

    positive  (n,) last tokens of the concept's words.
    ignored   (n,) tokens that count neither way: earlier tokens of its words, and ambiguous forms.
    counts    word -> how often it was found (ambiguous forms left out).
    split     words that are more than one token wherever they stand.
    """

    positive: "Bool[np.ndarray, ' n']"
    ignored: "Bool[np.ndarray, ' n']"
    counts: dict[str, int]
    split: tuple[str, ...]


def match(
    of: Concept,
    tokenizer: Any,
    tokens: "Int[np.ndarray, ' n']",
    contexts: "Int[np.ndarray, ' n']",
    positions: "Int[np.ndarray, ' n']",
) -> Matches:
    """Tokens of a text that are words of a concept (module docstring).

    tokens, contexts, positions: (n,) ids, context numbers and places within it, in the order of the text. A token
    whose neighbour is missing (a dropped row) ends there. Raises UsageError when lengths differ.
    """
    tokens, contexts, positions = (np.asarray(column) for column in (tokens, contexts, positions))
    if not len(tokens) == len(contexts) == len(positions):
        raise UsageError(
            f"{len(tokens)} tokens, {len(contexts)} contexts, {len(positions)} positions; expected as many"
        )
    joined = (contexts[1:] == contexts[:-1]) & (positions[1:] == positions[:-1] + 1)
    words = of.text_words or of.words
    forms = {form: word for word in words for form in _forms(word)}
    ambiguous = set(of.ambiguous)
    positive, ignored = np.zeros(len(tokens), bool), np.zeros(len(tokens), bool)
    counts: Counter[str] = Counter()
    for form in [*forms, *sorted(ambiguous - set(forms))]:
        for ids in token_forms(tokenizer, form):
            for start in _occurrences(ids, tokens, joined):
                end = int(start) + len(ids)
                if not _alone(form, tokenizer, tokens, joined, int(start), end):
                    continue
                if form in ambiguous:
                    ignored[start:end] = True
                elif not positive[end - 1]:
                    ignored[start : end - 1] = True
                    positive[end - 1] = True
                    counts[forms[form]] += 1
    split = tuple(word for word in words if all(len(ids) > 1 for ids in token_forms(tokenizer, word)))
    return Matches(positive & ~ignored, ignored, dict(counts), split)


def token_forms(tokenizer: Any, word: str) -> list[tuple[int, ...]]:
    """The ids of a word after a space, at the start of a text and after a bracket; without doubles and unknown ones."""
    found: list[tuple[int, ...]] = []
    bracket = tokenizer("(", add_special_tokens=False)["input_ids"]
    for text, dropped in ((" " + word, []), (word, []), ("(" + word, bracket)):
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        if list(ids[: len(dropped)]) != dropped:
            continue
        ids = ids[len(dropped) :]
        # a word the tokenizer cannot spell must not match every other unknown word
        if ids and ids not in found and tokenizer.decode(list(ids)).strip() == word:
            found.append(ids)
    return found


def _forms(word: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((word, word[:1].upper() + word[1:])))


def _occurrences(ids: tuple[int, ...], tokens: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """Where the ids stand in a row."""
    length = len(ids)
    if length > len(tokens):
        return np.zeros(0, np.int64)
    # the last token is as a rule the rarest
    starts = np.flatnonzero(tokens[length - 1 :] == ids[-1])
    for offset, token in enumerate(ids[:-1]):
        starts = starts[(tokens[starts + offset] == token) & joined[starts + offset]]
    return starts


def _alone(form: str, tokenizer: Any, tokens: np.ndarray, joined: np.ndarray, start: int, end: int) -> bool:
    """Whether the decoded text continues the word on neither side."""
    before, after = start > 0 and bool(joined[start - 1]), end < len(tokens) and bool(joined[end - 1])
    core = tokens[start:end].tolist()
    if before:
        text = tokenizer.decode([int(tokens[start - 1]), *core]).rstrip()
        if not text.endswith(form) or _continues(text[: -len(form)][-1:]):
            return False
    if after:
        text = tokenizer.decode([*core, int(tokens[end])]).lstrip()
        if not text.startswith(form) or _continues(text[len(form) :][:1]):
            return False
    return True


def _continues(character: str) -> bool:
    return character.isalnum() or character in ("_", "\ufffd")
