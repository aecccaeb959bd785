"""A language model's states at words, for the question "with which letter does the word begin?" (Chanin et al. 2024).

The prompt shows some words with their first letters and ends in the word asked about:

    ... tartan has the first letter: T
     mirth

The state is taken at the word's own token, where the model already knows the letter and nothing has said it. In a
causal model that state does not depend on what follows, so one context serves many words: the word on line i of

     tartan has the first letter: T
     mirth has the first letter: M
     ...

stands after i examples, and is measured from the line number `examples` on. (SAEBench runs one prompt with ten examples
for each word.) Words are tokens of the model's vocabulary, so nothing is assumed of how a tokenizer splits words.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from sasa_theory.activations.language_model import Context, LanguageModel
from sasa_theory.arguments import require_count
from sasa_theory.files import write_with
from synthetic.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
#: one line of a prompt; a word never follows the line before without this line's end and a space
LINE = "\n {word} has the first letter:"
#: what a vocabulary puts in front of a token that begins a word (SentencePiece, byte-level BPE)
MARKERS = "\u2581\u0120"
#: at most this many words are measured in one context, so that the number of examples varies little
MEASURED = 10
#: contexts whose states are held at once
GROUP = 64


@dataclass(frozen=True)
class Words:
    """Words that are one token each in a prompt, and why others of the vocabulary were left out.

    text (n) words as the tokenizer spells them; ids (n,) tokens; letter (n,) 0 ... 25; left_out reason -> how many.
    """

    text: tuple[str, ...]
    ids: "Int[np.ndarray, ' n']"
    letter: "Int[np.ndarray, ' n']"
    left_out: dict[str, int]


def words(tokenizer: Any, per_letter: int = 200, shortest: int = 3) -> Words:
    """The first `per_letter` words of each letter in the order of the vocabulary (a BPE's order: frequent ones first).

    A word is a token of at least `shortest` letters a-z, A-Z and nothing else that stands alone, as this one token, in
    a line of the prompt; of spellings that differ in capitals the first counts. Raises UsageError for counts below 1,
    and when the vocabulary has no such word.
    """
    require_count("per_letter", per_letter)
    require_count("shortest", shortest)
    found: dict[str, list[tuple[str, int]]] = {letter: [] for letter in LETTERS}
    left_out: Counter[str] = Counter()
    seen = {"has", "the", "first", "letter"}  # a line holds these tokens in any case
    candidates = [
        (word, number)
        for token, number in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        if len(word := token.lstrip(MARKERS)) >= shortest and word.isascii() and word.isalpha()
    ]
    for start in range(0, len(candidates), 1024):
        part = [entry for entry in candidates[start : start + 1024] if len(found[entry[0][0].lower()]) < per_letter]
        if not part:  # and a tokenizer takes no empty list
            continue
        lines = tokenizer([LINE.format(word=word) for word, _ in part], add_special_tokens=False)["input_ids"]
        for (word, number), ids in zip(part, lines, strict=True):
            kept = found[word[0].lower()]
            if len(kept) >= per_letter:
                continue
            if ids.count(number) != 1:
                left_out["another token, or several, where a word begins"] += 1
            elif word.lower() in seen:
                left_out["in other capitals already, or part of the prompt"] += 1
            else:
                seen.add(word.lower())
                kept.append((word, number))
    chosen = [(word, number, LETTERS.index(letter)) for letter, kept in found.items() for word, number in kept]
    if not chosen:
        raise UsageError(
            f"the tokenizer has no token that is a word of {shortest} or more letters; first-letter prompts need a "
            "vocabulary with words"
        )
    beyond = len(candidates) - len(chosen) - left_out.total()
    left_out[f"beyond the first {per_letter} of their letter"] = beyond
    text, ids, letter = zip(*chosen, strict=True)
    return Words(text, np.array(ids), np.array(letter), dict(left_out))


@dataclass(frozen=True)
class WordStates:
    """States at words: rows (n, D) float32 in raw units, letter (n,) 0 ... 25, and which words are for training.

    text (n) the words, examples (n,) how many were shown before each.
    """

    text: tuple[str, ...]
    letter: "Int[np.ndarray, ' n']"
    train: "Bool[np.ndarray, ' n']"
    rows: "Float[np.ndarray, 'n D']"
    examples: "Int[np.ndarray, ' n']"

    def save(self, path: str | Path) -> Path:
        """Write to an .npz file, whole or not at all."""

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.savez(
                    file,
                    text=np.array(self.text),
                    letter=self.letter,
                    train=self.train,
                    rows=self.rows,
                    examples=self.examples,
                )

        return write_with(path, write)

    @classmethod
    def load(cls, path: str | Path) -> "WordStates":
        """Read what `save` wrote; raises DataError for any other file."""
        try:
            with np.load(path) as file:
                return cls(tuple(file["text"].tolist()), *(file[k] for k in ("letter", "train", "rows", "examples")))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path} does not hold words' states ({error}); remove it to gather them again") from error


def word_states(
    language_model: LanguageModel,
    hook: str,
    chosen: Words,
    rng: np.random.Generator,
    *,
    examples: int = 5,
    train: float = 0.7,
) -> WordStates:
    """The states of all words at `hook`, each after at least `examples` examples of its own half of the words.

    A share `train` of each letter's words, drawn by `rng`, is for training; examples never cross the two parts. Raises
    UsageError for a share outside (0, 1), an unknown hook, and a context too short for `examples` lines and one more.
    """
    require_count("examples", examples, 0)
    if not 0 < train < 1:
        raise UsageError(f"train is {train}; expected a share strictly between 0 and 1")
    language_model.find_hook(hook)
    n_train = np.array([round(train * count) for count in np.bincount(chosen.letter, minlength=len(LETTERS))])
    order = rng.permutation(len(chosen.letter))
    place = np.empty(len(order), dtype=int)  # of each word among those of its letter, shuffled
    for letter in range(len(LETTERS)):
        own = order[chosen.letter[order] == letter]
        place[own] = np.arange(len(own))
    training = place < n_train[chosen.letter]
    rows = np.empty((len(order), language_model.width), dtype=np.float32)
    before = np.empty(len(order), dtype=int)
    lines = min(_lines_that_fit(language_model, chosen), examples + MEASURED)
    if lines <= examples:
        raise UsageError(
            f"a context of {language_model.context} tokens holds {lines} lines; {examples} examples and a word need "
            f"{examples + 1}: give a longer context or fewer examples"
        )
    pages = [page for part in (training, ~training) for page in _pages(order[part[order]], examples, lines, rng)]
    for start in range(0, len(pages), GROUP):
        group = pages[start : start + GROUP]
        contexts = [_context(language_model, chosen, page) for page, _ in group]
        hidden = language_model.run_contexts(contexts, hook)
        for (page, first), context, states in zip(group, contexts, hidden, strict=True):
            at = _places(context.ids.tolist(), [int(chosen.ids[word]) for word in page])
            rows[page[first:]] = states[torch.tensor(at[first:])].numpy()
            before[page[first:]] = np.arange(first, len(page))
        log.info("states at words: %d of %d contexts", min(start + GROUP, len(pages)), len(pages))
    return WordStates(chosen.text, chosen.letter, training, rows, before)


def _pages(
    part: "Int[np.ndarray, ' m']", examples: int, lines: int, rng: np.random.Generator
) -> "Iterator[tuple[np.ndarray, int]]":
    """(words of one context, where the measured ones begin): each word of the part is measured once."""
    step = lines - examples
    for start in range(0, len(part), step):
        measured = part[start : start + step]
        others = np.setdiff1d(part, measured)
        shown = rng.choice(others, size=min(examples, len(others)), replace=False)
        yield np.concatenate([shown, measured]), len(shown)


def _lines_that_fit(language_model: LanguageModel, chosen: Words) -> int:
    text = [_line(word) for word in chosen.text]
    lengths = [len(ids) for ids in language_model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    return (language_model.context - len(language_model.prefix)) // max(lengths)


def _line(word: str) -> str:
    return f"{LINE.format(word=word)} {word[0].upper()}"


def _context(language_model: LanguageModel, chosen: Words, page: "Int[np.ndarray, ' m']") -> Context:
    made = list(language_model.contexts(["".join(_line(chosen.text[word]) for word in page)]))
    return made[0]


def _places(ids: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """Where each token stands, found one after another; DataError when the text has been split differently."""
    places, start = [], 0
    for token in tokens:
        try:
            start = ids.index(token, start) + 1
        except ValueError:
            raise DataError(f"token {token} of a word is not in its prompt; the tokenizer split it otherwise") from None
        places.append(start - 1)
    return places
