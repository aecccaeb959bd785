"""Words of a concept in tokenised text: every tokenizer gives what a regular expression finds in the text."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.concepts.matching import match, token_forms
from sasa_theory.concepts.templates import CONCEPTS, Concept, concept
from synthetic.errors import UsageError

TOY = Concept("toy", ("red", "blue", "northeast"), False, ambiguous=("orange", "Blue"))
PIECES = ["red", "Red", "blue", "Blue", "orange", "northeast", "north", "redness", "infrared", "and", ",", "(", "east"]


class Pieces:
    """A tokenizer of pieces of at most `longest` characters; a space belongs to the piece after it, as in GPT-2."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.names: list[str] = []

    def __call__(self, text, add_special_tokens=False):
        cut = [
            part[i : i + self.longest]
            for part in re.findall(r" ?\w+| ?[^\w\s]", text)
            for i in range(0, len(part), self.longest)
        ]
        for name in cut:
            if name not in self.names:
                self.names.append(name)
        return {"input_ids": [self.names.index(name) for name in cut]}

    def decode(self, ids):
        return "".join(self.names[i] for i in ids)


class Words(Pieces):
    """A tokenizer of whole words that keeps no spaces, as the tiny test models have."""

    def __call__(self, text, add_special_tokens=False):
        for name in text.split():
            if name not in self.names:
                self.names.append(name)
        return {"input_ids": [self.names.index(name) for name in text.split()]}

    def decode(self, ids):
        return " ".join(self.names[i] for i in ids)


@settings(deadline=None, max_examples=60)
@given(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=25), longest=st.integers(2, 12))
def test_matches_are_those_of_a_regular_expression(pieces, longest):
    text = " " + " ".join(pieces)
    tokenizer = Pieces(longest)
    ids = np.array(tokenizer(text)["input_ids"])
    found = match(TOY, tokenizer, ids, np.zeros(len(ids)), np.arange(len(ids)))
    words = re.findall(r"\b(?:red|Red|blue|northeast|Northeast)\b", text)
    assert found.positive.sum() == len(words) == sum(found.counts.values())
    # the token of a word is its last: what is decoded up to there ends with the word
    for end in np.flatnonzero(found.positive):
        assert re.search(r"\b(red|blue|northeast)$", tokenizer.decode(ids[: end + 1]), re.IGNORECASE)
    assert not (found.positive & found.ignored).any()
    ambiguous = re.findall(r"\b(?:orange|Blue)\b", text)
    assert found.ignored.any() or not ambiguous


def test_words_that_a_tokenizer_splits_are_named_and_found():
    tokenizer = Pieces(4)
    ids = np.array(tokenizer("the red northeast wind")["input_ids"])
    found = match(TOY, tokenizer, ids, np.zeros(len(ids)), np.arange(len(ids)))
    assert found.split == ("northeast",)
    assert found.counts == {"red": 1, "northeast": 1}
    assert found.ignored.sum() == len(token_forms(tokenizer, "northeast")[0]) - 1


def test_a_word_is_not_matched_across_contexts_or_dropped_rows():
    tokenizer = Pieces(4)
    ids = np.array(tokenizer(" northeast")["input_ids"])
    whole = match(TOY, tokenizer, ids, np.zeros(len(ids)), np.arange(len(ids)))
    assert whole.positive.sum() == 1
    dropped = match(TOY, tokenizer, ids, np.zeros(len(ids)), np.array([0, *range(2, len(ids) + 1)]))
    other = match(TOY, tokenizer, ids, np.array([0] + [1] * (len(ids) - 1)), np.arange(len(ids)))
    assert not dropped.positive.any()
    assert not other.positive.any()


def test_a_tokenizer_without_spaces_and_unknown_words():
    tokenizer = Words(1)
    ids = np.array(tokenizer("red and redness and orange")["input_ids"])
    found = match(TOY, tokenizer, ids, np.zeros(len(ids)), np.arange(len(ids)))
    assert found.positive.tolist() == [True, False, False, False, False]
    assert found.ignored.tolist() == [False, False, False, False, True]
    with pytest.raises(UsageError, match="expected as many"):
        match(TOY, tokenizer, ids, np.zeros(2), np.arange(len(ids)))


@pytest.mark.parametrize("name", CONCEPTS)
def test_shipped_concepts_are_complete(name):
    of = concept(name)
    assert len(set(of.words)) == len(of.words) >= 4
    assert len(set(of.templates)) == len(of.templates) >= 16
    assert len(of.others) >= 16
    assert not set(of.others) & set(of.words)
    assert all(text.endswith(" {word}") and text.count("{") == 1 for text in of.templates)
