"""From text to a store: `write_activations`, what `sasa-lab activations` runs.

Contexts are taken in chunks of a fixed number of tokens; a chunk is the unit of work of a process, and chunks are
written in order, so the store is the same whatever the number of processes and however often it was stopped.
Dropped by default, and counted: special tokens (BOS), and tokens whose norm is beyond `norm_limit` times the median
(attention sinks), the median taken over the other tokens of the first 8,192.
"""

import logging
import math
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sasa_theory.activations.language_model import BEGINNING, Context, LanguageModel, Place
from sasa_theory.activations.processes import one_thread, parallel_hidden
from sasa_theory.activations.text import Texts, as_texts
from sasa_theory.activations.writer import StoreWriter
from synthetic.errors import DataError, Interrupted, UsageError

log = logging.getLogger(__name__)

#: tokens that a process works on at a time
CHUNK_TOKENS = {"cpu": 1024, "cuda": 32768}
#: tokens over which the median norm is taken
REFERENCE_TOKENS = 8192
#: default for the largest norm kept, in medians: in Gemma-3-270M attention sinks have 3.8 to 28 medians in all blocks
#: that have them (1, 5 to 15), other tokens below 2.9, but for block 1, where ordinary tokens reach 18
NORM_LIMIT = 3.0
#: share of the tokens beyond that limit from which they are no few sinks and a warning is due
MANY = 0.01


@dataclass(frozen=True)
class Gathered:
    """What `write_activations` did: rows in the store, tokens run now and per second, dropped and norms of the store.

    tokens_run counts every token that went through the model in this call, dropped ones included.
    """

    path: Path
    rows: int
    tokens_run: int
    seconds: float
    dropped: dict[str, int]
    norm_quantiles: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_run / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class TokenFilter:
    """Which tokens are kept: none of `special` (all of them if `keep_special`), no other of norm above `largest`."""

    special: "Int[Tensor, ' k']"
    largest: float
    keep_special: bool = False

    def keep(
        self, tokens: "Int[Tensor, ' n']", norms: "Float[Tensor, ' n']"
    ) -> "tuple[Bool[Tensor, ' n'], dict[str, int]]":
        """A mask of the tokens to keep, and how many are dropped for which reason."""
        special = torch.isin(tokens, self.special)
        large = ~special & (norms > self.largest) & torch.isfinite(norms)  # Inf is an error, not a sink
        special = special & (not self.keep_special)
        counts = {"special": int(special.sum()), "norm": int(large.sum())}
        return ~(special | large), {reason: n for reason, n in counts.items() if n}


@dataclass(frozen=True)
class Chunk:
    """A run of contexts with their hidden states, one row a token."""

    rows: "Float[Tensor, 'n D']"
    tokens: "Int[Tensor, ' n']"
    positions: "Int[Tensor, ' n']"
    documents: "Int[Tensor, ' n']"
    contexts: "Int[Tensor, ' n']"
    place: Place
    """of its first context"""

    @staticmethod
    def of(contexts: list[Context], hidden: list[Tensor]) -> "Chunk":
        lengths = torch.tensor([len(item.ids) for item in contexts])
        return Chunk(
            torch.cat(hidden),
            torch.cat([item.ids for item in contexts]),
            torch.cat([torch.arange(n) for n in lengths.tolist()]),
            torch.tensor([item.document for item in contexts]).repeat_interleave(lengths),
            torch.tensor([item.number for item in contexts]).repeat_interleave(lengths),
            contexts[0].place,
        )


def write_activations(
    model: "LanguageModel | str",
    hook: str,
    texts: "Texts | Iterable[str]",
    out: str | Path,
    tokens: int,
    *,
    dtype: str = "bfloat16",
    context: int = 128,
    device: str = "cpu",
    workers: int = 1,
    keep_special: bool = False,
    norm_limit: float | None = NORM_LIMIT,
    shard_rows: int | None = None,
    progress: bool = True,
) -> Gathered:
    """Run `texts` through `model` and store at least `tokens` rows of `hook` in `out` (whole contexts).

    A store that is unfinished, or has fewer rows than now asked for, is gone on with; one that has enough is left as
    it is. On the CPU each of the `workers` processes has one thread (several load the model again). Text that ends
    early gives a smaller store and a warning. `model` may be a name, a directory or a LanguageModel; `context` and
    `device` are for the first two.

    Raises UsageError for a wrong hook, text or existing store, DataError for NaN, LabError for a full disk,
    Interrupted on Ctrl-C; whole shards are kept in every case.
    """
    if tokens < 1 or workers < 1:
        raise UsageError(f"tokens is {tokens} and workers {workers}; expected positive integers")
    if norm_limit is not None and not norm_limit > 0:
        raise UsageError(f"norm_limit is {norm_limit}; expected a positive multiple of the median norm, or None")
    texts = as_texts(texts)
    lm = model if isinstance(model, LanguageModel) else LanguageModel(model, device=device, context=context)
    if workers > 1 and lm.device.type != "cpu":
        raise UsageError(f"workers is {workers} and the device {lm.device}; several workers are for the CPU only")
    lm.find_hook(hook)
    meta = {
        "model": lm.name,
        "model_dtype": lm.dtype,
        "autocast": lm.autocast,
        "hook": hook,
        "context": lm.context,
        "text": texts.description,
        "text_identity": texts.identity,
        "keep_special": keep_special,
        "norm_limit": norm_limit,
        **({"prepend_bos": True} if lm.prepend_bos else {}),
    }
    started, run = time.monotonic(), 0
    with StoreWriter(out, lm.width, meta=meta, dtype=dtype, shard_rows=shard_rows) as writer:
        if not (writer.manifest.complete and writer.rows >= tokens):
            try:
                with one_thread(lm.device):
                    run = _fill(writer, lm, hook, texts, tokens, workers, keep_special, norm_limit, progress)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"stopped; {writer.manifest.rows} rows are in {out}. The same command goes on from there"
                ) from None
        manifest = writer.manifest
    if manifest.rows < tokens:
        log.warning("the text ended after %d rows, %d were asked for", manifest.rows, tokens)
    large = manifest.dropped.get("norm", 0)
    if large > MANY * (manifest.rows + large):
        log.warning(
            "%d of %d tokens have a norm beyond %g medians and were left out: too many for attention sinks; "
            "raise the norm limit to keep them",
            large,
            manifest.rows + large,
            norm_limit,
        )
    seconds = time.monotonic() - started
    return Gathered(Path(out), manifest.rows, run, seconds, manifest.dropped, manifest.norm_quantiles)


def hidden_chunks(
    model: LanguageModel,
    hook: str,
    texts: Iterable[str],
    *,
    start: int = 0,
    place: Place = BEGINNING,
    workers: int = 1,
) -> Generator[Chunk, None, None]:
    """The documents' contexts run at `hook`, chunk by chunk in order, from the chunk that holds context `start` on.

    Chunks begin at the same contexts wherever one starts, so a context is always run beside the same others and its
    rows are the same to the last bit.

    place  of a context before `start`, from which the text is tokenised (all documents before are only walked past).
    """
    size = max(1, CHUNK_TOKENS.get(model.device.type, 1024) // model.context)
    first = start - start % size
    if place.number > first:  # chunks were smaller when it was written down
        place = BEGINNING
    contexts = islice(model.contexts(texts, place), first - place.number, None)
    groups = iter(lambda: list(islice(contexts, size)), [])
    if workers > 1:
        results = parallel_hidden(model, hook, groups, workers)
    else:
        results = ((group, model.run_contexts(group, hook)) for group in groups)
    for group, hidden in results:
        yield Chunk.of(group, hidden)


def take_tokens(chunks: Iterator[Chunk], tokens: int) -> Iterator[Chunk]:
    """The next chunks until they hold `tokens` tokens; the rest stay in the iterator."""
    seen = 0
    while seen < tokens and (chunk := next(chunks, None)) is not None:
        seen += len(chunk.rows)
        yield chunk


@dataclass(frozen=True)
class Pace:
    """Tokens a second: tokenised, and run by a language model to a hook."""

    tokenised: float
    run: float


def measure_pace(model: LanguageModel, hook: str, texts: Iterable[str], tokens: int = 512) -> Pace:
    """Time `model` on the first `tokens` tokens of the text (one context at least), run once before that.

    Raises UsageError for a text without a token.
    """
    contexts, seen, began = [], 0, time.perf_counter()
    for item in model.contexts(texts):
        contexts.append(item)
        seen += len(item.ids)
        if seen >= tokens:
            break
    if not contexts:
        raise UsageError("the text holds no tokens; name one with words in it")
    read = time.perf_counter()
    model.run_contexts(contexts[:1], hook)
    ran = time.perf_counter()
    model.run_contexts(contexts, hook)
    return Pace(seen / (read - began), seen / (time.perf_counter() - ran))


def median_norm(model: LanguageModel, chunks: Iterable[Chunk]) -> float:
    """Median norm of the tokens that are not special, NaN left aside (the writer names it).

    Raises DataError when there are none.
    """
    special = torch.tensor(sorted(model.special), dtype=torch.long)
    norms = torch.cat([_norms(chunk.rows)[~torch.isin(chunk.tokens, special)] for chunk in chunks])
    median = float(norms.nanmedian()) if len(norms) else math.nan
    if not math.isfinite(median):
        raise DataError(f"no median norm: the first tokens at this hook of {model.name} are all special, NaN or Inf")
    return median


# ---- inside ----------------------------------------------------------------------------------------------------


def _fill(
    writer: StoreWriter,
    model: LanguageModel,
    hook: str,
    texts: Texts,
    tokens: int,
    workers: int,
    keep_special: bool,
    norm_limit: float | None,
    progress: bool,
) -> int:
    from tqdm import tqdm

    run, held, place = 0, [], Place(*(writer.place or ()))
    with closing(hidden_chunks(model, hook, texts, start=writer.mark, place=place, workers=workers)) as chunks:
        if norm_limit is not None and "median_norm" not in writer.manifest.notes:
            held = list(take_tokens(chunks, REFERENCE_TOKENS))
            if not held:
                raise UsageError(f"{texts.description} holds no tokens; name a text with words in it")
            writer.note(median_norm=median_norm(model, held))
        largest = math.inf if norm_limit is None else norm_limit * writer.manifest.notes["median_norm"]
        chosen = TokenFilter(torch.tensor(sorted(model.special), dtype=torch.long), largest, keep_special)
        with tqdm(total=tokens, initial=min(writer.rows, tokens), unit="tok", disable=not progress) as bar:
            for chunk in chain(held, chunks):
                before, run = writer.rows, run + len(chunk.rows)
                _append(writer, chunk, chosen, tokens)
                bar.update(writer.rows - before)
                if writer.rows >= tokens:
                    break
    writer.finish()
    return run


def _append(writer: StoreWriter, chunk: Chunk, chosen: TokenFilter, tokens: int) -> None:
    """Append the chunk's contexts that the store does not hold, until it holds `tokens` rows."""
    numbers, starts = np.unique(chunk.contexts.numpy(), return_index=True)
    held = writer.mark
    for number, start, end in zip(numbers, starts, [*starts[1:], len(chunk.rows)], strict=True):
        if number < held or writer.rows >= tokens:
            continue
        part = slice(start, end)
        rows, ids = chunk.rows[part], chunk.tokens[part]
        keep, dropped = chosen.keep(ids, _norms(rows))
        writer.append(
            rows[keep],
            mark=int(number) + 1,
            place=chunk.place,
            tokens=ids[keep],
            positions=chunk.positions[part][keep],
            documents=chunk.documents[part][keep],
            contexts=chunk.contexts[part][keep],
            dropped=dropped,
        )


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1)
