"""Figure `causal` on tiny random models of real architectures, through their own tokenizer, blocks and head."""

import json

import numpy as np
import pytest
import torch

from figures.language.causal import measure
from figures.language.causal_draw import draw
from figures.language.causal_prompts import NEUTRAL, TEMPLATES
from sasa_theory.activations import LanguageModel
from sasa_theory.concepts import concept
from sasa_theory.models import SASA, TopK

pytestmark = pytest.mark.lm

KINDS, HOOK = ("gpt2", "mistral", "gemma3"), "blocks.1.hook_resid_pre"


def words():
    """The words of the prompts."""
    texts = [t.format(word=w) for of in TEMPLATES for t in TEMPLATES[of] for w in (*concept(of).words, *NEUTRAL)]
    return sorted(
        {word for text in texts for word in text.split()} | {w for of in TEMPLATES for w in concept(of).words}
    )


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, tiny_language_model):
    out = {}
    for kind in KINDS:
        directory = tmp_path_factory.mktemp(f"causal-{kind}")
        tiny_language_model(kind, directory, words())
        out[kind] = LanguageModel(directory, context=32)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_what_it_says_in_a_real_architecture(loaded, kind, tmp_path):
    """A dictionary whose groups hold all of a state does all that another word's state does."""
    lm = loaded[kind]
    models = {"topk": [TopK(16, n_latents=32, active_latents=3)], "sasa": [SASA(16, 8, 2, 8)]}
    models["topk"][0].initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():  # eight groups of two axes, all on: the identity
        models["sasa"][0].W_dec.copy_(torch.eye(16))
        models["sasa"][0].W_enc.copy_(torch.eye(16))
    numbers = measure(lm, HOOK, models, 2, np.random.default_rng(0), draws=2, screening=(16, 16))
    json.dumps(numbers, allow_nan=False)
    assert numbers["of"] == 3 * 19 and not numbers["missing"], "all words are one token here"
    whole = {
        e["site"]: e for e in numbers["entries"] if (e["concept"], e["model"], e["units"]) == ("both", "sasa", "all")
    }
    for site in ("word", "onward"):
        for key in ("share_shift", "restored_class", "restored_right"):
            assert whole[site][key]["value"] == pytest.approx(1.0, abs=1e-3), (site, key)
        assert whole[site]["moved"]["value"] == pytest.approx(numbers["ceiling"][site]["move.moved"])
    for stem, picture in draw({"numbers": numbers}).items():
        picture.savefig(tmp_path / f"{stem}.png", dpi=40)
