"""Prompts whose next token follows from one word: "After Monday comes" -> "Tuesday".

A prompt has one concept word in one token; all words of a template give prompts of the same length, which differ at
that token alone, so that states can be exchanged between them. The answer is the next word of the concept, known by its
first token. Words that the tokenizer splits, or whose first token is also another's, are left out and named.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sasa_theory.activations import LanguageModel
from sasa_theory.concepts import concept

#: templates by concept; "{word}" is the concept word, and the answer the word after it
TEMPLATES = {
    "weekday": (
        "After {word} comes",
        "The day after Saturday is Sunday. The day after {word} is",
        "Today is {word}. Tomorrow is",
    ),
    "month": (
        "After {word} comes",
        "The month after November is December. The month after {word} is",
        "This month is {word}. Next month is",
    ),
}
#: words that belong to no concept, put in the same place for the ceiling
NEUTRAL = ("lunch", "work", "school", "television", "music", "water")


@dataclass(frozen=True)
class PromptSet:
    """All prompts of one template.

    words     the words kept, in the concept's order.
    ids       (n, T), one prompt per word, differing at column `place` only.
    neutral   (m, T), the same with words of no concept.
    answers   (n,), the first token of each prompt's right answer.
    classes   (n,), the first token of each kept word as an answer.
    left_out  word -> why it has no prompt.
    """

    concept: str
    template: str
    words: tuple[str, ...]
    ids: "Int[Tensor, 'n T']"
    neutral: "Int[Tensor, 'm T']"
    place: int
    answers: "Int[Tensor, ' n']"
    classes: "Int[Tensor, ' n']"
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def right(self) -> "Int[Tensor, ' n']":
        """Which class is each prompt's right answer."""
        return (self.answers[:, None] == self.classes).int().argmax(dim=1)


def prompt_set(model: LanguageModel, name: str, template: str) -> PromptSet | None:
    """The prompts of a template; None when fewer than four words, or no neutral word, can be used."""
    listed = concept(name).words
    before = template.split("{word}")[0].rstrip()
    after = {word: listed[(i + 1) % len(listed)] for i, word in enumerate(listed)}
    left_out: dict[str, str] = {}
    first: dict[str, int] = {}
    for word in listed:
        token = _answer(model, template, word)
        if token is None or token in first.values():
            left_out[word] = "its first token is not its own"
        else:
            first[word] = token
    texts = {word: template.format(word=word) for word in (*listed, *NEUTRAL)}
    ids = {word: _ids(model, text) for word, text in texts.items()}
    length = len(_ids(model, before))
    single = {word for word in texts if len(_ids(model, f"{before} {word}")) == length + 1}
    frame = {word: (*ids[word][:length], -1, *ids[word][length + 1 :]) for word in single}
    common = Counter(frame[word] for word in listed if word in single).most_common(1)
    usable = {word for word in single if frame[word] == common[0][0]} if common else set()
    for word in listed:
        if word not in usable:
            left_out.setdefault(word, "it is not one token there")
        elif after[word] not in first:
            left_out.setdefault(word, "its answer has no token of its own")
    words = tuple(word for word in listed if word not in left_out)
    neutral = [ids[word] for word in NEUTRAL if word in usable]
    if len(words) < 4 or not neutral:
        return None
    return PromptSet(
        name,
        template,
        words,
        torch.tensor([ids[word] for word in words]),
        torch.tensor(neutral),
        length,
        torch.tensor([first[after[word]] for word in words]),
        torch.tensor(list(first.values())),
        left_out,
    )


def prompt_sets(model: LanguageModel, names: "tuple[str, ...] | None" = None) -> tuple[list[PromptSet], list[str]]:
    """Every template's prompts, and a sentence for each that cannot be used with this tokenizer."""
    found, missing = [], []
    for name in tuple(TEMPLATES) if names is None else names:
        for template in TEMPLATES[name]:
            made = prompt_set(model, name, template)
            if made is None:
                missing.append(f"{name}: {template!r} has too few words in one token")
            else:
                found.append(made)
    return found, missing


def _ids(model: LanguageModel, text: str) -> list[int]:
    tokens: Any = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [*model.prefix, *tokens]


def _answer(model: LanguageModel, template: str, word: str) -> int | None:
    """The first token of `word` where it follows a prompt; None when the tokenizer joins it to the prompt."""
    prompt = _ids(model, template.format(word=word))
    whole = _ids(model, f"{template.format(word=word)} {word}")
    return whole[len(prompt)] if whole[: len(prompt)] == prompt and len(whole) > len(prompt) else None
