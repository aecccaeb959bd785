"""Held-out rows of a study with their tokens, documents and places: what concepts are looked for in.

Held out are every 20th context, and all contexts beyond the end of a store. Words of a concept are rare in both, so
`with_words` adds contexts that hold one; tokens of the concept are then more frequent than in the text as it is.
Rows that are in no store are kept in a nameless file below OUT: a million rows of 4,096 would take 16 GB of memory.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from figures.language.study import Study
from sasa_theory.activations.gather import Chunk
from sasa_theory.activations.language_model import Context
from sasa_theory.activations.store import EVAL_EVERY
from sasa_theory.concepts import Concept
from sasa_theory.concepts.matching import match

#: rows read at a time
PART = 4096
#: contexts run, and rows of theirs held in memory, at a time
RUN = 64
#: tokens of text, from its beginning, that are searched for words
SEARCHED = 4_000_000


@dataclass(frozen=True)
class HeldOut:
    """Rows that no dictionary was trained on; the columns have one entry a row.

    rows  start, end -> the activations of these rows, float32.
    """

    tokens: "Int[np.ndarray, ' n']"
    contexts: "Int[np.ndarray, ' n']"
    positions: "Int[np.ndarray, ' n']"
    documents: "Int[np.ndarray, ' n']"
    rows: Callable[[int, int], Tensor]

    def __len__(self) -> int:
        return len(self.tokens)

    def parts(self, device: "torch.device | str" = "cpu") -> "Iterator[Float[Tensor, 'B D']]":
        """The activations, in order, in parts."""
        for start in range(0, len(self), PART):
            yield self.rows(start, min(start + PART, len(self))).to(device)

    def and_then(self, more: "HeldOut") -> "HeldOut":
        """These rows and then those."""
        n = len(self)

        def rows(start: int, end: int) -> Tensor:
            here = [self.rows(start, min(end, n))] if start < n else []
            return torch.cat([*here, more.rows(max(start - n, 0), end - n)] if end > n else here)

        return HeldOut(
            np.concatenate([self.tokens, more.tokens]),
            np.concatenate([self.contexts, more.contexts]),
            np.concatenate([self.positions, more.positions]),
            np.concatenate([self.documents, more.documents]),
            rows,
        )


def held_out(study: Study, tokens: int) -> HeldOut:
    """The first `tokens` rows of every 20th context: of the store, or of a pass of the model where there is none."""
    if not study.is_stored:
        return _run(study, study.eval_contexts(tokens))
    numbers = study.store.split("eval")[:tokens].astype(np.int64)
    column = study.store.column
    return HeldOut(
        column("tokens", numbers),
        column("contexts", numbers),
        column("positions", numbers),
        column("documents", numbers),
        lambda start, end: study.store.rows(numbers[start:end]),
    )


def with_words(study: Study, concepts: Sequence[Concept], each: int, seen: HeldOut) -> HeldOut | None:
    """Rows of further held-out contexts, so that with `seen` about `each` contexts hold a word of each concept.

    The contexts added for a concept are spread over the text. None where no context is needed, or left.
    """
    known = set(np.unique(seen.contexts).tolist())
    found = [item for item in _unseen(study) if item.number not in known]
    if not found:
        return None
    chunk = Chunk.of(found, [torch.empty(len(item.ids), 0) for item in found])
    tokens, places, positions = (column.numpy() for column in (chunk.tokens, chunk.contexts, chunk.positions))
    chosen: set[int] = set()
    tokenizer = study.language_model.tokenizer
    for of in concepts:
        have = match(of, tokenizer, seen.tokens, seen.contexts, seen.positions).positive
        wanted = each - len(np.unique(seen.contexts[have]))
        if wanted <= 0:
            continue
        holding = np.unique(places[match(of, tokenizer, tokens, places, positions).positive])
        spread = np.linspace(0, len(holding) - 1, min(wanted, len(holding))).round().astype(int)
        chosen.update(holding[spread].tolist())
    contexts = [item for item in found if item.number in chosen]
    return _run(study, contexts) if contexts else None


def _unseen(study: Study) -> Iterator[Context]:
    """Held-out contexts (module docstring) among the first SEARCHED tokens of the text."""
    end = (
        int(study.store.column("contexts", range(len(study.store) - 1, len(study.store)))[0])
        if study.is_stored
        else None
    )
    tokens = 0
    for item in study.language_model.contexts(study.texts):
        tokens += len(item.ids)
        if tokens > SEARCHED:
            return
        if item.number % EVAL_EVERY == EVAL_EVERY - 1 or (end is not None and item.number > end):
            yield item


def _run(study: Study, contexts: list[Context]) -> HeldOut:
    """The kept rows of these contexts, from a pass of the model, on disk (module docstring)."""
    hook = study.configuration.hook
    columns: list[list[np.ndarray]] = [[], [], [], []]
    study.context.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=study.context.out) as file:
        for start in range(0, len(contexts), RUN):
            group = contexts[start : start + RUN]
            chunk = Chunk.of(group, study.language_model.run_contexts(group, hook, batch_tokens=4096))
            keep, _ = study.ordinary().keep(chunk.tokens, torch.linalg.vector_norm(chunk.rows, dim=1))
            chunk.rows[keep].numpy().tofile(file)
            for kept, column in zip(
                columns, (chunk.tokens, chunk.contexts, chunk.positions, chunk.documents), strict=True
            ):
                kept.append(column[keep].numpy())
        tokens, places, positions, documents = (np.concatenate(parts) for parts in columns)
        # the map outlives the file's handle
        on_disk = np.memmap(file, np.float32, "r", shape=(len(tokens), chunk.rows.shape[1]))
    return HeldOut(
        tokens, places, positions, documents, lambda start, end: torch.from_numpy(np.array(on_disk[start:end]))
    )
