"""Tiny random language models, which every test of activations, concepts and studies makes alike."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

#: kinds of architectures a tiny model can have
KINDS = ("gpt2", "mistral", "gemma3")
WORDS = tuple(f"w{i}" for i in range(60))


def word_tokenizer(kind: str, words: Sequence[str]) -> Any:
    """One token for each word; a BOS in front, but for GPT-2's, as the real one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<bos>", "<eos>", "<unk>", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind != "gpt2":
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return tokenizer


def make_language_model(
    kind: str,
    directory: Path,
    words: Sequence[str] = WORDS,
    *,
    tokenizer: Any = None,
    blocks: int = 3,
    positions: int = 32,
) -> None:
    """Write a random causal model of `kind` (width 16) and its tokenizer (default: a token a word) to a directory."""
    import torch
    import transformers as hf

    tokenizer = tokenizer or word_tokenizer(kind, words)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)
    shared = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    llama = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": blocks, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": positions}  # fmt: skip
    layers = ["sliding_attention"] * (blocks - 1) + ["full_attention"]
    config = {
        "gpt2": lambda: hf.GPT2Config(n_embd=16, n_layer=blocks, n_head=4, n_positions=positions, **shared),
        "mistral": lambda: hf.MistralConfig(sliding_window=8, **llama, **shared),
        "gemma3": lambda: hf.Gemma3TextConfig(
            sliding_window=8, query_pre_attn_scalar=4, layer_types=layers, **llama, **shared
        ),
    }[kind]()
    torch.manual_seed(3)  # transformers draws its weights from the global generator
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # beyond initialisation, so that every part of a block matters
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(directory)


@pytest.fixture(scope="session")
def tiny_language_model() -> Callable[..., None]:
    """`make_language_model`."""
    return make_language_model
