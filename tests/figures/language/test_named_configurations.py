"""The published configurations, settings and all, on tiny random models of their architectures (profile quick)."""

import json

import numpy as np
import pytest
import torch

from figures import Context, figures, load_all
from figures.language import causal
from figures.language.causal_prompts import NEUTRAL
from figures.language.causal_prompts import TEMPLATES as PROMPTS
from figures.language.configuration import configurations, load_configuration
from figures.language.study import Study
from sasa_lab.commands.study import FIGURES
from sasa_theory.concepts import CONCEPTS, concept, templates
from sasa_theory.concepts.first_letter import LETTERS, LINE

pytestmark = pytest.mark.lm

#: name -> architecture, and blocks enough for its hook
MODELS = {
    "gpt2-l7": ("gpt2", 8),
    "gpt2-l7-no-bos": ("gpt2", 8),
    "mistral-l19": ("mistral", 20),
    "mistral-l8": ("mistral", 9),
}


def test_all_but_the_offline_model_are_here():
    assert set(configurations()) == {*MODELS, "gemma3-270m-l11"}


@pytest.mark.parametrize("name", MODELS)
def test_a_named_configuration_runs_from_text_to_result(name, tmp_path, tiny_language_model):
    load_all()
    kind, blocks = MODELS[name]
    made = load_configuration(name)
    tiny_language_model(kind, tmp_path / "model", blocks=blocks, positions=made.context)
    drawn = np.random.default_rng(0).choice([f"w{i}" for i in range(60)], 48_000)
    (tmp_path / "text.txt").write_text(" ".join(drawn))
    options = {"config": name, "model": str(tmp_path / "model"), "text": str(tmp_path / "text.txt")}
    context = Context("quick", (0,), tmp_path / "out", options=options)
    result = figures["matched-budget"].run(context)
    assert not (tmp_path / "out/stores").exists()  # nothing is stored
    sasa = next(one for one in result["numbers"]["results"] if one["architecture"] == "sasa")
    runs = [json.loads(file.read_text()) for file in (tmp_path / "out/runs").glob("*/run.json")]
    trained = {run["architecture"]: run for run in runs}
    assert np.isfinite(sasa["explained_variance"]) and sasa["ce"] is not None
    settings = trained["sasa"]["model"]
    assert settings["penalty"] == "decoder" and settings["nuclear"] == made.nuclear and settings["aux_groups"] == 512
    assert trained["sasa"]["training"]["optimizer"] == "adamw" and trained["sasa"]["training"]["lr"] == 2e-4
    assert trained["topk"]["training"]["lr"] == 4e-4 and trained["topk"]["training"]["normalise"] == "layer_norm"
    # BOS is in front of every context, and spliced (or left) as it is trained on (or not)
    left = result["numbers"]["left"].get("special", 0)
    assert left == 0 if made.keep_special else left > 0


def every_word():
    """The concepts' words, those of all prompts, letters, and thirty more words of each of four letters."""
    known = [word for name in CONCEPTS for word in (*concept(name).words, *concept(name).others)]
    prompts = [*templates(), LINE, *(one for of in PROMPTS.values() for one in of)]
    known += [word for text in prompts for word in text.split()]
    made = [f"{first}{a}{b}o" for first in "btmz" for a in "aeiou" for b in "klmnrs"]
    return list(dict.fromkeys([*known, *NEUTRAL, *LETTERS.upper(), *made]))


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_language_model):
    """Options of gpt2-l7 with fewer tokens, on a tiny GPT-2 that has every word of the figures, and its text."""
    import transformers

    folder = tmp_path_factory.mktemp("gpt2-l7")
    words = every_word()
    tiny_language_model("gpt2", folder / "model", words, blocks=8, positions=64)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    vocabulary = transformers.AutoTokenizer.from_pretrained(folder / "model").get_vocab()
    with torch.no_grad():
        for word, number in vocabulary.items():  # or no letter could be told from the states
            if word[0].lower() in "btmz":
                model.transformer.wte.weight[number, "btmz".index(word[0].lower())] += 30
    model.save_pretrained(folder / "model")
    drawn = np.random.default_rng(0).choice(words, (160, 189))
    (folder / "text").mkdir()
    for i, line in enumerate(drawn):
        (folder / "text" / f"{i:04}.txt").write_text(" ".join(line))
    sizes = {"context": 64, "train_tokens": 2048, "batch_size": 128, "evaluation_tokens": 600, "spliced_tokens": 256}
    settings = {"based_on": "gpt2-l7", "model": str(folder / "model"), "columns": 144, "l0": [30], **sizes}
    (folder / "small.json").write_text(json.dumps(settings))
    return {"config": str(folder / "small.json"), "text": str(folder / "text")}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One directory for all figures, so that each dictionary is trained once."""
    return tmp_path_factory.mktemp("out")


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_of_a_published_configuration_runs_from_text_to_picture(name, small, out, monkeypatch):
    load_all()
    monkeypatch.setattr(causal, "FEWEST", 1)  # a random model answers by chance only
    result = figures[name].run(Context("quick", (0,), out, options=small))
    result = json.loads(json.dumps(result, allow_nan=False))
    assert result["tables"] and result["settings"]["configuration"]["prepend_bos"]
    for stem, picture in figures[name].draw(result).items():
        picture.savefig(out / f"{name}-{stem}.png")
    numbers = result["numbers"]
    if name == "causal":
        assert numbers["answered"] >= 1 and numbers["entries"] and np.isfinite(numbers["clean"]["class"])
    if name == "absorption":
        assert numbers["gpt2"] is False and set(numbers["letters"]) == set("btmz") and numbers["comparisons"]
        assert {cell["units"] for cell in numbers["cells"]} == {"columns", "groups"}


def test_the_model_may_feed_the_training_from_a_device_of_its_own(small, tmp_path):
    """Another name of the CPU stands for a second GPU: a model of its own there, and the same rows here."""
    chosen = ({"model_device": "cpu:0"}, {})
    beside, alone = (Study.open(Context("quick", (0,), tmp_path, options={**small, **more})) for more in chosen)
    assert str(beside.data.model.device) == "cpu:0" and beside.data.model is not beside.language_model
    assert alone.data.model is alone.language_model
    assert beside.data.fingerprint() == alone.data.fingerprint()
    here, there = (next(study.data.batches(64)) for study in (alone, beside))
    assert here.device == there.device == torch.device("cpu") and torch.equal(here, there)
