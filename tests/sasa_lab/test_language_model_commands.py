"""From text to a report at the command line, on a tiny random language model: nothing is downloaded."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.lm

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A directory with a random GPT-2 of two blocks and a word-level tokenizer."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    directory = tmp_path_factory.mktemp("model")
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"bos_token": "<eos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": len(vocabulary)}
    torch.manual_seed(0)  # transformers draws its weights from the global generator
    hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(directory)
    return directory


@pytest.fixture
def words(model, here) -> list:
    """`sasa-lab activations` for 600 tokens of made-up text (stored are whole contexts of 16, so 608)."""
    drawn = np.random.default_rng(0).choice(WORDS, (40, 30))
    Path("text.txt").write_text("\n".join(" ".join(line) for line in drawn))
    return ["activations", "--model", model, "--text", "text.txt", "--out", "store", "--context", 16, "--tokens", 600]


def test_text_to_store_to_dictionary_to_report(lab, words):
    stored = lab(*words, "--hook", "blocks.1.hook_resid_pre")
    assert stored.status == 0 and "608 tokens stored in store" in stored.out, stored.err
    again = lab(*words, "--hook", "blocks.1.hook_resid_pre")
    assert again.status == 0 and "0 tokens run" in again.out
    sizes = {"sasa": ["n_groups=8", "group_rank=2", "active_groups=2"], "topk": ["n_latents=16", "active_latents=4"]}
    for architecture, chosen in sizes.items():
        data = ["--store", "store"]
        trained = lab("train", "--arch", architecture, *data, "--set", *chosen, "--steps", 5, "--batch-size", 64)
        assert trained.status == 0, trained.err
        done = lab("evaluate", trained.out.split()[-1], *data, "--rows", 30)
        assert done.status == 0 and "explained_variance_normalised" in done.out, done.err
    assert Path("results/report.html").read_text().count("evaluate/") >= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--hook", "blocks.2.hook_resid_pre"], ["blocks.2.hook_resid_pre", "0 to 1"]),
        (["--hook", "blocks.1.hook_resid_pree"], ["hook_resid_pree"]),
        (["--hook", "blocks.1.hook_resid_pre", "--tokens", "0"], ["tokens is 0"]),
        (["--hook", "blocks.1.hook_resid_pre", "--context", "33"], ["context is 33", "32"]),
        (["--hook", "blocks.1.hook_resid_pre", "--text", "empty.txt"], ["empty.txt", "no text"]),
        (["--hook", "blocks.1.hook_resid_pre", "--text", "nowhere.txt"], ["nowhere.txt"]),
        (["--hook", "blocks.1.hook_resid_pre", "--model", "./nowhere"], ["nowhere"]),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_store(lab, words, change, said):
    Path("empty.txt").write_text(" \n")
    done = lab(*words, *change)
    assert done.status == 2 and done.err.startswith("sasa-lab: error: ") and done.err.count("\n") == 1, done.err
    assert all(word in done.err for word in said), done.err
    assert not Path("store").exists()
