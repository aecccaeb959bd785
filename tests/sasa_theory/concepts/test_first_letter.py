"""Words, prompts and states of first-letter prompts on tiny random models with real kinds of tokenizers."""

import numpy as np
import pytest
import torch

from sasa_theory.activations import LanguageModel
from sasa_theory.concepts.first_letter import LETTERS, LINE, WordStates, word_states, words
from synthetic.errors import DataError, UsageError

pytestmark = pytest.mark.lm

KINDS = ("gpt2", "mistral")
HOOK = "blocks.1.hook_resid_pre"


def corpus():
    """Six words of each of four letters, often enough that BPE makes each of them one token; rarer ones stay split."""
    rng = np.random.default_rng(0)
    syllables = ["ba", "lo", "mi", "ru", "ten", "vis", "kol"]
    common = [first + "".join(rng.choice(syllables, 2)) + ending for first in "ctmz" for ending in "aeiouy"]
    rare = [first + "".join(rng.choice(syllables, 3)) + "q" for first in "ctmz"]
    lines = [f"{LINE.format(word=word)} {word[0].upper()}" for word in common] * 30
    return [*lines, *(LINE.format(word=word) for word in rare)]


def bpe_tokenizer(kind):
    """GPT-2: byte-level BPE, no BOS. Mistral: BPE with the word marker of SentencePiece, BOS in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = ["<bos>", "<eos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "gpt2" else list("\n:▁" + LETTERS + LETTERS.upper())
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, min_frequency=3, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_language_model):
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, directory in made.items():
        tiny_language_model(kind, directory, tokenizer=bpe_tokenizer(kind), blocks=2, positions=256)
    return {kind: LanguageModel(path, context=100) for kind, path in made.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_single_tokens_in_the_prompt(models, kind):
    tokenizer = models[kind].tokenizer
    found = words(tokenizer, per_letter=5)
    assert np.bincount(found.letter, minlength=26)[[LETTERS.index(c) for c in "ctmz"]].tolist() == [5] * 4
    for text, number, letter in zip(found.text, found.ids, found.letter, strict=True):
        assert text.isalpha() and text[0].lower() == LETTERS[letter] and len(text) >= 3
        ids = tokenizer(f"\n {text} has the first letter:", add_special_tokens=False)["input_ids"]
        assert ids.count(number) == 1
        assert tokenizer.convert_ids_to_tokens(int(number)).lstrip("▁Ġ") == text
    assert len({text.lower() for text in found.text} | {"has", "the", "first", "letter"}) == len(found.text) + 4
    assert sum(found.left_out.values()) > 0
    more = words(tokenizer, per_letter=6)
    assert set(found.text) <= set(more.text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_that_of_the_words_own_prompt(models, kind, monkeypatch):
    """Every row equals the last state of the text that ends in the word; examples are of the word's own part."""
    lm = models[kind]
    chosen = words(lm.tokenizer)
    pages = []
    real = LanguageModel.contexts
    monkeypatch.setattr(LanguageModel, "contexts", lambda self, texts: pages.extend(texts) or real(self, texts))
    states = word_states(lm, HOOK, chosen, np.random.default_rng(5), examples=2, train=0.5)
    monkeypatch.undo()
    place = {text: i for i, text in enumerate(chosen.text)}
    measured = []
    for page in pages:
        lines = page.split("\n")[1:]
        on_page = [place[line.split()[0]] for line in lines]
        assert len(set(on_page)) == len(on_page) and len({bool(states.train[i]) for i in on_page}) == 1
        for number in range(2, len(lines)):
            text = "\n".join(["", *lines[:number]]) + "\n " + chosen.text[on_page[number]]
            (own,) = lm.activations([text], HOOK)
            torch.testing.assert_close(
                torch.from_numpy(states.rows[on_page[number]]), own.rows[-1], rtol=1e-4, atol=1e-5
            )
            assert states.examples[on_page[number]] == number
            measured.append(on_page[number])
    assert sorted(measured) == list(range(len(chosen.text)))
    for letter in set(chosen.letter.tolist()):
        own = states.train[chosen.letter == letter]
        assert own.sum() == round(0.5 * len(own))


def test_states_survive_a_file(models, tmp_path):
    lm = models["gpt2"]
    states = word_states(lm, HOOK, words(lm.tokenizer, 3), np.random.default_rng(0))
    again = WordStates.load(states.save(tmp_path / "states.npz"))
    assert again.text == states.text
    for name in ("letter", "train", "rows", "examples"):
        assert np.array_equal(getattr(again, name), getattr(states, name))
    assert [file.name for file in tmp_path.iterdir()] == ["states.npz"]
    (tmp_path / "states.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="gather them again"):
        WordStates.load(tmp_path / "states.npz")


def test_bad_input_is_named(models, tmp_path):
    lm = models["mistral"]
    chosen = words(lm.tokenizer, 3)
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match=r"holds .* lines"):
        word_states(lm, HOOK, chosen, rng, examples=40)
    with pytest.raises(UsageError, match="train is 1"):
        word_states(lm, HOOK, chosen, rng, train=1.0)
    with pytest.raises(UsageError, match="0 to 1"):
        word_states(lm, "blocks.9.hook_resid_pre", chosen, rng)
    with pytest.raises(UsageError, match="no token that is a word"):
        words(lm.tokenizer, shortest=30)
