"""Tiny random models of three architectures, made-up text, and a tokenizer that counts what it is given."""

import numpy as np
import pytest

KINDS = ("gpt2", "mistral", "gemma3")
WORDS = [f"w{i}" for i in range(60)]
CONTEXT = 12


@pytest.fixture(scope="session")
def directories(tmp_path_factory, tiny_language_model):
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, directory in made.items():
        tiny_language_model(kind, directory, WORDS)
    return made


@pytest.fixture(scope="session")
def models(directories):
    from sasa_theory.activations import LanguageModel

    return {kind: LanguageModel(path, context=CONTEXT) for kind, path in directories.items()}


@pytest.fixture(scope="session")
def sentences():
    """`sentences(seed, n, longest)`: n texts of fewer than `longest` words."""

    def made(seed, n, longest=40):
        generator = np.random.default_rng(seed)
        return [" ".join(generator.choice(WORDS, generator.integers(1, longest))) for _ in range(n)]

    return made


class Counted:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.characters = tokenizer, 0

    def __call__(self, text, **options):
        self.characters += len(text)
        return self.tokenizer(text, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture
def counted(models, monkeypatch):
    """The tiny Mistral and the tokenizer that counts for it, in pieces of at most 97 characters."""
    lm = models["mistral"]
    monkeypatch.setattr("sasa_theory.activations.language_model.PIECE", 97)
    monkeypatch.setattr(lm, "tokenizer", Counted(lm.tokenizer))
    return lm, lm.tokenizer
