"""Reads a store: rows anywhere by memory map, and endless shuffled streams of batches that can be stopped.

Every 20th context belongs to the stream "eval", the others to "train", so no row of one is from a context of the
other, and both cover the whole store (texts stand in the store in the order given, so its tail would be one text).
A store of fewer than 20 contexts gives its last twentieth of rows to "eval".
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sasa_theory.activations.layout import (
    COLUMNS,
    Manifest,
    check_shard,
    check_size,
    map_shard,
    read_manifest,
    to_tensor,
)
from synthetic.errors import DataError, UsageError, unknown
from synthetic.source import State
from synthetic.stream import one_thread

#: one context in this many is for "eval"
EVAL_EVERY = 20

#: the streams, and what tells their shuffling apart
SEEDS = {"train": 0, "eval": 1}


class ActivationStore:
    """Activations on disk: a Dataset of `len(self)` rows of `width` numbers.

    Sizes of all shards are checked on opening; the sha256 of a shard is checked once, when it is first read (about a
    second per GB), unless `verify` is False. Raises UsageError when there is no store at `path`, DataError naming a
    damaged or missing shard.
    """

    def __init__(self, path: str | Path, *, verify: bool = True) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        if not self.manifest.rows:
            raise UsageError(f"store {path} holds no rows yet; run the sasa-lab activations command that began it")
        for shard in self.manifest.shards:
            check_size(self.path / shard.name, shard)
        self.width = self.manifest.width
        self._verify = verify
        self._maps: dict[int, dict[str, np.ndarray]] = {}
        self._starts = np.concatenate([[0], np.cumsum([shard.rows for shard in self.manifest.shards])])
        self._split: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: it opens the files itself, wherever it was started."""
        return {**self.__dict__, "path": self.path.absolute(), "_maps": {}}

    def __len__(self) -> int:
        return self.manifest.rows

    def __repr__(self) -> str:
        state = "" if self.complete else ", unfinished"
        return f"ActivationStore({str(self.path)!r}, {len(self)} rows of {self.width} {self.manifest.dtype}{state})"

    # ---- what it is --------------------------------------------------------------------------------------------

    @property
    def meta(self) -> dict[str, Any]:
        """Where the rows come from: model, hook, text, context, ..."""
        return self.manifest.meta

    @property
    def complete(self) -> bool:
        """False for a store whose writer was stopped; what is there can be read all the same."""
        return self.manifest.complete

    @property
    def norm_quantiles(self) -> dict[str, float]:
        """Quantile -> Euclidean norm of the stored rows; empty for an unfinished store."""
        return self.manifest.norm_quantiles

    @property
    def dropped(self) -> dict[str, int]:
        """Tokens that were left out, by reason."""
        return self.manifest.dropped

    def fingerprint(self) -> str:
        """16 hex digits that differ whenever the rows or their source differ."""
        return self.manifest.fingerprint()

    def verify(self) -> None:
        """Check every shard's sha256 now; raises DataError naming the first damaged one."""
        for shard in self.manifest.shards:
            check_shard(self.path, shard)

    # ---- rows by number ----------------------------------------------------------------------------------------

    def rows(self, index: "Int[np.ndarray | Tensor, ' n'] | range") -> "Float[Tensor, 'n D']":
        """The rows of these numbers in this order, float32.

        Raises UsageError for a number out of range, DataError for a damaged shard and for NaN or Inf in one.
        """
        numbers = self._numbers(index)
        x = to_tensor(self._gather("rows", numbers), self.manifest.dtype).float()
        self._require_finite(x, numbers)
        return x

    def column(self, name: str, index: "Int[np.ndarray | Tensor, ' n'] | range | None" = None) -> np.ndarray:
        """One of tokens, positions, documents, contexts, norms for these rows (None: all)."""
        if name not in COLUMNS:
            raise unknown("column", name, COLUMNS)
        return self._gather(name, self._numbers(range(len(self)) if index is None else index))

    def split(self, stream: str) -> "Int[np.ndarray, ' n']":
        """The row numbers that belong to a stream, increasing. Raises UsageError for an unknown stream."""
        name, _ = parse_stream(stream)
        if not self._split:
            self._split = _split(self.column("contexts"))
        if not len(self._split[name]):
            raise UsageError(f"store {self.path} has {len(self)} rows: too few for the stream {stream!r}")
        return self._split[name]

    def batches(
        self, size: int, device: "torch.device | str" = "cpu", stream: str = "train", *, seed: int = 0
    ) -> "StoreStream":
        """An endless stream of (size, D) float32 batches of "train" or "eval" rows, newly shuffled each epoch.

        "train:3" is the same rows as "train" in another order. Every row comes exactly once per epoch; a batch may
        span two epochs.
        """
        return StoreStream(self, size, device, stream, seed)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _numbers(self, index: "np.ndarray | Tensor | range") -> np.ndarray:
        numbers = np.asarray(index, dtype=np.int64)
        if numbers.ndim != 1 or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self)):
            raise UsageError(f"row numbers must be a list of integers from 0 to {len(self) - 1}")
        return numbers

    def _shard(self, i: int) -> dict[str, np.ndarray]:
        if i not in self._maps:
            shard = self.manifest.shards[i]
            if self._verify:
                check_shard(self.path, shard)
            maps = map_shard(self.path / shard.name)
            if maps["rows"].shape != (shard.rows, self.width):
                raise DataError(f"{self.path / shard.name} holds rows of shape {maps['rows'].shape}, "
                                f"the manifest says {(shard.rows, self.width)}; write the store again")  # fmt: skip
            self._maps[i] = maps
        return self._maps[i]

    def _gather(self, column: str, numbers: np.ndarray) -> np.ndarray:
        # row numbers in increasing order touch each page of the map once
        order = np.argsort(numbers, kind="stable")
        increasing = numbers[order]
        shards, first = np.unique(np.searchsorted(self._starts, increasing, side="right") - 1, return_index=True)
        ends = np.append(first[1:], len(numbers))
        template = self._shard(int(shards[0]) if len(shards) else 0)[column]
        out = np.empty((len(numbers), *template.shape[1:]), template.dtype)
        for i, start, end in zip(shards.tolist(), first.tolist(), ends.tolist(), strict=True):
            out[order[start:end]] = self._shard(i)[column][increasing[start:end] - self._starts[i]]
        return out

    def _require_finite(self, x: Tensor, numbers: np.ndarray) -> None:
        # a sum is NaN or Inf if any part is; only then is it worth looking for the row
        if bool(torch.isfinite(x.sum(dtype=torch.float64))):
            return
        bad = (~torch.isfinite(x).all(dim=1)).nonzero()
        if len(bad):
            number = int(numbers[bad].min())
            i = int(np.searchsorted(self._starts, number, side="right")) - 1
            name, row = self.manifest.shards[i].name, number - int(self._starts[i])
            raise DataError(f"{self.path / name} holds NaN or Inf at row {row}; write the store again")


class StoreStream:
    """A Source of shuffled batches of one store (see `ActivationStore.batches`)."""

    def __init__(self, store: ActivationStore, size: int, device: "torch.device | str", stream: str, seed: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"batch size is {size!r}; expected a positive integer")
        self.store, self.size, self.stream, self.seed = store, size, stream, seed
        self.device = torch.device(device)
        self.width = store.width
        self.rows = store.split(stream)
        self._position = 0
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def __iter__(self) -> "StoreStream":
        return self

    def __next__(self) -> "Float[Tensor, 'size D']":
        with one_thread():
            x = self.store.rows(self.next_rows())
        return x if self.device.type == "cpu" else x.pin_memory().to(self.device, non_blocking=True)

    def next_rows(self) -> "Int[np.ndarray, ' size']":
        """The numbers of the rows that the next batch holds (and step past it)."""
        parts, wanted = [], self.size
        while wanted:
            epoch, offset = divmod(self._position, len(self.rows))
            part = self._permutation(epoch)[offset : offset + wanted]
            parts.append(part)
            wanted -= len(part)
            self._position += len(part)
        return np.concatenate(parts)

    def state_dict(self) -> State:
        """Where the stream stands: rows read so far, and what it is a stream of."""
        return {
            "position": self._position,
            "stream": self.stream,
            "seed": self.seed,
            "store": self.store.fingerprint(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go to where `state` was taken; raises UsageError when it is another store's or stream's state."""
        here = self.state_dict()
        for key in ("stream", "seed", "store"):
            if state.get(key) != here[key]:
                raise UsageError(f"the saved position is for {key} {state.get(key)!r}, this is {here[key]!r}")
        self._position = int(state["position"])

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            name, order = parse_stream(self.stream)
            generator = np.random.default_rng([self.seed, SEEDS[name], order, epoch])
            self._order, self._epoch = generator.permutation(self.rows), epoch
        return self._order


def parse_stream(stream: str) -> tuple[str, int]:
    """Name and order of a stream: "train:3" is ("train", 3). Raises UsageError for an unknown one."""
    name, colon, order = stream.partition(":")
    if name not in SEEDS or (colon and not order.isdecimal()):
        raise unknown("stream", stream, [*SEEDS, "train:1", "eval:1"])
    return name, int(order or 0)


def _split(contexts: np.ndarray) -> dict[str, np.ndarray]:
    """Row numbers of both streams: every EVAL_EVERY-th context, or the last rows when there are too few contexts."""
    n = len(contexts)
    ordinal = np.cumsum(np.concatenate([[False], contexts[1:] != contexts[:-1]]))
    if ordinal[-1] + 1 >= EVAL_EVERY:
        is_eval = ordinal % EVAL_EVERY == EVAL_EVERY - 1
    else:
        is_eval = np.arange(n) >= n - -(-n // EVAL_EVERY) if n > 1 else np.zeros(n, bool)
    kind = np.int32 if n < 2**31 else np.int64
    return {"train": np.flatnonzero(~is_eval).astype(kind), "eval": np.flatnonzero(is_eval).astype(kind)}
