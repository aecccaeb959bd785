"""Training straight from a language model, without a store: `LiveActivations` is a Dataset like any other.

The documents are run again and again. Contexts are taken in blocks; a block's kept rows are shuffled together and
handed out in batches, and the few left over at its end are not used. A stream's place is therefore (block, batch),
with the place in the text at which the block begins: going back to it walks past the documents before (reading, not
tokenising them) and runs one block. Every 20th context is for "eval", the others for "train", as in a store.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory.activations.gather import (
    NORM_LIMIT,
    REFERENCE_TOKENS,
    Chunk,
    TokenFilter,
    hidden_chunks,
    median_norm,
    take_tokens,
)
from sasa_theory.activations.language_model import BEGINNING, Context, LanguageModel, Place
from sasa_theory.activations.store import EVAL_EVERY, SEEDS, parse_stream
from sasa_theory.activations.text import Texts, as_texts
from synthetic.errors import DataError, UsageError
from synthetic.source import State

#: contexts shuffled together
BLOCK = 256


class LiveActivations:
    """The residual stream of `model` at `hook` on `texts`, as a Dataset.

    norm_limit    tokens whose norm is beyond this many medians are left out (None: none).
    keep_special  keep BOS and other special tokens, which are left out otherwise.
    Raises UsageError for a wrong hook or text.
    """

    def __init__(
        self,
        model: LanguageModel,
        texts: "Texts | Iterable[str]",
        hook: str,
        *,
        norm_limit: float | None = NORM_LIMIT,
        keep_special: bool = False,
        block: int = BLOCK,
    ) -> None:
        model.find_hook(hook)
        self.model, self.hook, self.texts = model, hook, as_texts(texts)
        self.norm_limit, self.keep_special, self.block, self.width = norm_limit, keep_special, block, model.width
        self._filter: TokenFilter | None = None

    def fingerprint(self) -> str:
        """16 hex digits that differ whenever model, hook, text or settings differ (the model by its name)."""
        model = self.model
        parts = (model.name, model.dtype, model.autocast, model.context, self.hook, self.norm_limit, self.block)
        kept = ("special kept",) * self.keep_special + ("BOS prepended",) * model.prepend_bos
        return hashlib.sha256(repr((*parts, *kept, self.texts.identity)).encode()).hexdigest()[:16]

    def batches(
        self, size: int, device: "torch.device | str" = "cpu", stream: str = "train", *, seed: int = 0
    ) -> "LiveStream":
        """An endless stream of (size, D) float32 batches; "train:3" shuffles each block in another order."""
        return LiveStream(self, size, device, stream, seed)

    def filter(self) -> TokenFilter:
        """Which tokens are kept; the median norm is found on the first call."""
        if self._filter is None:
            largest = float("inf")
            if self.norm_limit is not None:
                first = take_tokens(hidden_chunks(self.model, self.hook, self.texts), REFERENCE_TOKENS)
                largest = self.norm_limit * median_norm(self.model, first)
            special = torch.tensor(sorted(self.model.special), dtype=torch.long)
            self._filter = TokenFilter(special, largest, self.keep_special)
        return self._filter


class LiveStream:
    """A Source over `LiveActivations` (see its `batches`)."""

    def __init__(self, data: LiveActivations, size: int, device: "torch.device | str", stream: str, seed: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"batch size is {size!r}; expected a positive integer")
        self.name, self.order = parse_stream(stream)
        self.data, self.size, self.stream, self.seed = data, size, stream, seed
        self.device, self.width = torch.device(device), data.width
        self._epoch = self._block = self._batch = 0
        self._place: Place | None = None
        self._rows: Tensor | None = None
        self._groups: Iterator[list[Context]] | None = None

    def __iter__(self) -> "LiveStream":
        return self

    def __next__(self) -> "Float[Tensor, 'size D']":
        ends = 0
        while self._rows is None or (self._batch + 1) * self.size > len(self._rows):
            if self._rows is not None:
                self._block, self._batch, self._place = self._block + 1, 0, None
                self._rows = None  # or two blocks are in memory while the next is shuffled
            self._rows = self._next_block()
            if self._rows is None:
                ends += 1
                if ends == 2:  # a whole pass without a batch
                    raise UsageError(
                        f"no block of {self.data.block} contexts of {self.data.texts.description} gives a batch of "
                        f"{self.size} rows for the stream {self.stream!r}; take smaller batches or more text"
                    )
                self._epoch, self._block, self._batch, self._place = self._epoch + 1, 0, 0, None
        start = self._batch * self.size
        self._batch += 1
        return self._rows[start : start + self.size].to(self.device)

    def state_dict(self) -> State:
        """Where the stream stands: pass over the text, block of contexts, batch in it; and what it is a stream of.

        "place" is where the block begins in the text (`Place`), None where that is not known yet.
        """
        return {
            "epoch": self._epoch,
            "block": self._block,
            "batch": self._batch,
            "place": None if self._place is None else list(self._place),
            "stream": self.stream,
            "seed": self.seed,
            "size": self.size,
            "data": self.data.fingerprint(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go to where `state` was taken; raises UsageError when it is another stream's state.

        A state without a place (older checkpoints have none) is found by tokenising the text up to it.
        """
        here = self.state_dict()
        for key in ("stream", "seed", "size", "data"):
            if state.get(key) != here[key]:
                raise UsageError(f"the saved position is for {key} {state.get(key)!r}, this is {here[key]!r}")
        self._epoch, self._block, self._batch = (int(state[key]) for key in ("epoch", "block", "batch"))
        place = state.get("place")
        self._place = None if place is None else Place(*place)
        self._groups = self._rows = None

    def _next_block(self) -> "Float[Tensor, 'n D'] | None":
        """The kept rows of the current block, shuffled; None at the end of the text."""
        if self._groups is None:
            before = 0 if self._place is not None else self._block * self.data.block
            found = self.data.model.contexts(self.data.texts, self._place or BEGINNING)
            contexts = islice((c for c in found if self._mine(c.number)), before, None)
            self._groups = iter(lambda: list(islice(contexts, self.data.block)), [])
        if (group := next(self._groups, None)) is None:
            self._groups = None
            return None
        self._place = group[0].place
        chunk = Chunk.of(group, self.data.model.run_contexts(group, self.data.hook))
        keep, _ = self.data.filter().keep(chunk.tokens, torch.linalg.vector_norm(chunk.rows, dim=1))
        kept = keep.nonzero()[:, 0]
        words = [self.seed, SEEDS[self.name], self.order, self._epoch, self._block]
        rows = chunk.rows[kept[torch.from_numpy(np.random.default_rng(words).permutation(len(kept)))]]
        if not bool(torch.isfinite(rows).all()):
            raise DataError(f"hidden states of {self.data.model.name} at {self.data.hook} hold NaN or Inf")
        return rows

    def _mine(self, number: int) -> bool:
        return (number % EVAL_EVERY == EVAL_EVERY - 1) == (self.name == "eval")
