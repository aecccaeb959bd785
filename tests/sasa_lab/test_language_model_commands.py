"""From text to a report at the command line, on a tiny random language model: nothing is downloaded."""

import json
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
    # 16 bfloat16 numbers and 24 bytes a row, said before anything is run
    assert stored.out.startswith("600 tokens to run: about ") and "disk: 0.00 GB; memory: about" in stored.out
    again = lab(*words, "--hook", "blocks.1.hook_resid_pre")
    assert again.status == 0 and "0 tokens run" in again.out and "to run" not in again.out
    sizes = {"sasa": ["n_groups=8", "group_rank=2", "active_groups=2"], "topk": ["n_latents=16", "active_latents=4"]}
    for architecture, chosen in sizes.items():
        data = ["--store", "store"]
        trained = lab("train", "--arch", architecture, *data, "--set", *chosen, "--steps", 5, "--batch-size", 64)
        assert trained.status == 0 and "5 steps, 320 tokens: about 0.1 minutes; memory: about" in trained.out, (
            trained.err
        )
        done = lab("evaluate", trained.out.split()[-1], *data, "--rows", 30)
        assert done.status == 0 and "explained_variance_normalised" in done.out, done.err
    assert Path("results/report.html").read_text().count("evaluate/") >= 2


def test_a_dictionary_trained_beside_the_model_needs_no_store(lab, words, model):
    data = ["--model", model, "--hook", "blocks.1.hook_resid_pre", "--text", "text.txt", "--context", 16]
    sizes = ["--set", "n_groups=8", "group_rank=2", "active_groups=2", "--steps", 6, "--batch-size", 64]
    trained = lab("train", "--arch", "sasa", *data, *sizes)
    assert trained.status == 0 and not Path("store").exists(), trained.err
    again = lab("train", "--arch", "sasa", *data, *sizes)
    assert again.out.split()[-1] == trained.out.split()[-1]
    assert "6 steps, 384 tokens: about" in trained.out and "6 steps, " not in again.out
    for wrong, said in ((["--model", model], "--hook"), ([*data, "--world", "smoke"], "got several")):
        done = lab("train", "--arch", "sasa", *wrong)
        assert done.status == 2 and said in done.err, done.err


def test_tokens_are_chosen_beside_the_model_as_for_a_store(lab, words, model):
    """--prepend-bos, --keep-special and --norm-limit of `train` give the dataset of that name."""
    from sasa_theory.activations import LanguageModel, LiveActivations, read_text

    hook, texts = "blocks.1.hook_resid_pre", read_text(["text.txt"])
    data = ["--model", model, "--hook", hook, "--text", "text.txt", "--context", 16]
    sizes = ["--set", "n_groups=8", "group_rank=2", "active_groups=2", "--steps", 2, "--batch-size", 64]
    with_bos = LanguageModel(model, context=16, prepend_bos=True)
    asked = LiveActivations(with_bos, texts, hook, norm_limit=None, keep_special=True)
    for words, expected in (
        ([], LiveActivations(LanguageModel(model, context=16), texts, hook)),
        (["--prepend-bos", "--keep-special", "--norm-limit", "inf"], asked),
    ):
        done = lab("train", "--arch", "sasa", *data, *sizes, *words)
        assert done.status == 0, done.err
        run = json.loads((Path(done.out.split()[-1]) / "run.json").read_text())
        assert run["data"] == expected.fingerprint()
    # the model on a device of its own: another name of the CPU, so that it is moved there and its rows back
    elsewhere = lab("train", "--arch", "sasa", *data, *sizes, "--out", "other", "--model-device", "cpu:0")
    plain = lab("train", "--arch", "sasa", *data, *sizes)
    assert elsewhere.status == 0, elsewhere.err
    weights = [Path(one.out.split()[-1]) / "sae_weights.safetensors" for one in (elsewhere, plain)]
    assert weights[0] != weights[1] and weights[0].read_bytes() == weights[1].read_bytes()
    wrong = lab("train", "--arch", "sasa", *data, *sizes, "--norm-limit", 0)
    assert wrong.status == 2 and "--norm-limit is 0" in wrong.err


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


@pytest.fixture
def tiny(model, words) -> Path:
    """A configuration of a study of that model, and more text: all its figures that need no words run in seconds."""
    drawn = np.random.default_rng(0).choice(WORDS, (600, 30))
    Path("text.txt").write_text("\n".join(" ".join(line) for line in drawn))
    settings = {
        "title": "a random GPT-2",
        "model": str(model),
        "hook": "blocks.1.hook_resid_pre",
        "context": 16,
        "columns": 48,
        "group_rank": 4,
        "l0": [4, 12],
        "tokens": 900,
        "train_tokens": 320,
        "batch_size": 32,
        "norm_limit": None,
        "learning_rates": [0.001, 0.01],
        "evaluation_tokens": 300,
        "spliced_tokens": 64,
    }
    Path("tiny.json").write_text(json.dumps(settings))
    return Path("tiny.json")


TRAINED = ("matched-budget", "token-budget", "ablation")


@pytest.mark.parametrize("stored", [True, False])
def test_a_study_from_text_to_report(lab, tiny, stored):
    Path("tiny.json").write_text(json.dumps({**json.loads(tiny.read_text()), "stored": stored}))
    begun = lab("study", tiny, "--text", "text.txt", "--estimate")
    assert begun.status == 0 and "hours" in begun.out and "memory" in begun.out, begun.err
    assert not list(Path("results").rglob("*"))  # nothing was gathered or trained
    done = lab("study", tiny, "--text", "text.txt", "--figure", *TRAINED)
    assert done.status == 0, done.out
    assert Path("results/tiny/stores").exists() == stored
    for name in TRAINED:
        result = json.loads(Path(f"results/tiny/{name}/standard/result.json").read_text())
        assert result["tables"]
    numbers = json.loads(Path("results/tiny/matched-budget/standard/result.json").read_text())["numbers"]
    assert len(numbers["results"]) == 6 * 2 * 2
    assert all(set(tried) == {"0.001", "0.01"} for tried in numbers["tuning"].values())
    again = lab("study", tiny, "--text", "text.txt", "--estimate")
    assert "dictionaries to train: none" in again.out, again.err
    report = Path("results/tiny/report.html").read_text()
    assert "matched L0" in report and "Half the tokens" in report


def test_a_study_that_cannot_be_is_one_sentence(lab, tiny):
    for words, said in (
        (["gemma3-270m-l12"], ["did you mean 'gemma3-270m-l11'"]),
        ([tiny], ["names no text", "--text"]),
        ([tiny, "--text", "text.txt", "--figure", "causl"], ["did you mean 'causal'"]),
        ([tiny, "--text", "nowhere.txt"], ["nowhere.txt"]),
    ):
        done = lab("study", *words)
        assert done.status == 2 and done.err.count("\n") == 1 and all(word in done.err for word in said), done.err
    for change, said in (
        ({"columns": 50}, "multiple of group_rank"),
        ({"l0": [5]}, "l0 5"),
        ({"colums": 3}, "columns"),
    ):
        Path("wrong.json").write_text(json.dumps({**json.loads(tiny.read_text()), **change}))
        done = lab("study", "wrong.json", "--text", "text.txt")
        assert done.status == 2 and said in done.err, done.err
