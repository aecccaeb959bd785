"""The figures of concepts from text to picture, on tiny random models of three architectures; nothing is downloaded."""

import json

import numpy as np
import pytest

from figures import Context, figures, load_all
from sasa_theory.concepts import CONCEPTS, concept, templates

pytestmark = pytest.mark.lm

KINDS = ("gpt2", "mistral", "gemma3")
NAMES = ("concepts", "feature-clusters", "temporal")


def known_words():
    """The concepts' words and those of their templates."""
    known = [word for name in CONCEPTS for word in (*concept(name).words, *concept(name).others)]
    return list(dict.fromkeys([*known, *(word for text in templates() for word in text.split())]))


@pytest.mark.parametrize("kind", KINDS)
def test_from_text_to_pictures(kind, tmp_path, tiny_language_model):
    load_all()
    words = known_words()
    tiny_language_model(kind, tmp_path / "model", words)
    drawn = np.random.default_rng(0).choice(words, (500, 120))
    (tmp_path / "text").mkdir()
    for i, line in enumerate(drawn):
        (tmp_path / "text" / f"{i:04}.txt").write_text(" ".join(line))
    settings = {
        "title": "tiny",
        "model": str(tmp_path / "model"),
        "hook": "blocks.1.hook_resid_post",
        "context": 24,
        "columns": 32,
        "group_rank": 2,
        "l0": [4],
        "train_tokens": 3000,
        "tokens": 24000,
        "stored": kind != "mistral",
        "norm_limit": None,
        "seeds": [0],
        "batch_size": 128,
    }
    (tmp_path / "tiny.json").write_text(json.dumps(settings))
    options = {"config": str(tmp_path / "tiny.json"), "text": str(tmp_path / "text")}
    context = Context("quick", (0,), tmp_path / "out", options=options)
    for name in NAMES:
        result = json.loads(json.dumps(figures[name].run(context), allow_nan=False))
        assert result["tables"] and result["findings"]
        for stem, picture in figures[name].draw(result).items():
            picture.savefig(tmp_path / f"{stem}.png")
        if name == "concepts":
            assert not result["numbers"]["skipped"]["templates"]
            found = {row["concept"]: row["found"] for row in result["numbers"]["words"]}
            assert all(count > 0 for count in found.values()), found
