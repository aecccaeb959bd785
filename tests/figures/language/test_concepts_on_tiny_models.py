"""The figures of concepts from text to picture, on tiny random models of three architectures; nothing is downloaded."""

import json

import numpy as np
import pytest
import torch

from figures import Context, figures, load_all
from sasa_theory.concepts import CONCEPTS, concept, templates

pytestmark = pytest.mark.lm

KINDS = ("gpt2", "mistral", "gemma3")
NAMES = ("concepts", "feature-clusters", "temporal")


def make_model(kind, directory):
    """A random model of three blocks whose tokenizer knows the concepts' words; GPT-2's puts no BOS in front."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    known = [word for name in CONCEPTS for word in (*concept(name).words, *concept(name).others)]
    known += [word for text in templates() for word in text.split()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<bos>", "<eos>", "<unk>", *known]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind != "gpt2":
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)
    shared = {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    llama = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 4, "sliding_window": 8, "max_position_embeddings": 32}  # fmt: skip
    config = {
        "gpt2": lambda: hf.GPT2Config(n_embd=16, n_layer=3, n_head=4, n_positions=32, **shared),
        "mistral": lambda: hf.MistralConfig(**llama, **shared),
        "gemma3": lambda: hf.Gemma3TextConfig(
            **llama, query_pre_attn_scalar=4, layer_types=["sliding_attention"] * 2 + ["full_attention"], **shared
        ),
    }[kind]()
    torch.manual_seed(3)  # transformers draws its weights from the global generator
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return [word for word in vocabulary if not word.startswith("<")]


@pytest.mark.parametrize("kind", KINDS)
def test_from_text_to_pictures(kind, tmp_path):
    load_all()
    words = make_model(kind, tmp_path / "model")
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
