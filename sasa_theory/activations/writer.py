"""Writes a store shard by shard, so that a kill at any moment loses at most the shard in hand.

The writer is told with each append how far its source has been read (`mark`, any growing count: contexts of text,
batches of a world). Opened again on an unfinished store it says the mark after the last whole shard; a caller that
goes on from there ends with the same bytes as one that was never stopped.
"""

import dataclasses
import fcntl
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from sasa_theory.activations.layout import (
    COLUMNS,
    MANIFEST,
    QUANTILES,
    Manifest,
    Shard,
    check_shard,
    map_shard,
    read_manifest,
    require_dtype,
)
from sasa_theory.files import write_with
from synthetic.errors import DataError, LabError, UsageError

log = logging.getLogger(__name__)

#: rows per shard are chosen so that a shard is about this large (bytes)
SHARD_BYTES = 64 << 20


class StoreWriter:
    """Appends rows to the store at `path`, beginning it or going on where it stopped.

    width       D.
    meta        where the rows come from; JSON values. An existing store must have been begun with the same.
    dtype       "bfloat16", "float16" or "float32".
    shard_rows  a shard is closed by the append that brings it to this many rows (default: about 64 MiB).

    Going on verifies the shards that are there and drops those from the first damaged one on (logged).
    Raises UsageError for another store's directory, LabError while another process writes it.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        *,
        meta: dict[str, Any],
        dtype: str = "bfloat16",
        shard_rows: int | None = None,
    ) -> None:
        self._dtype = require_dtype(dtype)
        rows = shard_rows if shard_rows is not None else max(1, SHARD_BYTES // (width * self._dtype.itemsize))
        if width < 1 or rows < 1:
            raise UsageError(f"width {width} and shard_rows {rows} must be positive")
        self.path = Path(path)
        self.shard_rows = rows
        meta = {**json.loads(json.dumps(meta)), "shard_rows": rows}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the store {path}: {error.strerror or error}") from error
        self._lock = _lock(self.path)
        try:
            self.manifest = self._begin(Manifest(width, dtype, meta))
        except BaseException:
            self._lock.close()
            raise
        self._clear()

    # ---- state -------------------------------------------------------------------------------------------------

    @property
    def mark(self) -> int:
        """How far the source had been read after the last whole shard (0 for a new store): go on from here."""
        return self.manifest.shards[-1].mark if self.manifest.shards else 0

    @property
    def place(self) -> list[int] | None:
        """The place given with the append that closed the last whole shard, None where none was."""
        return self.manifest.shards[-1].place if self.manifest.shards else None

    @property
    def rows(self) -> int:
        """Rows on disk and in hand."""
        return self.manifest.rows + self._pending_rows

    # ---- writing -----------------------------------------------------------------------------------------------

    def append(
        self,
        rows: "Float[Tensor, 'n D']",
        *,
        mark: int,
        place: Sequence[int] | None = None,
        tokens: "Int[Tensor, ' n'] | None" = None,
        positions: "Int[Tensor, ' n'] | None" = None,
        documents: "Int[Tensor, ' n'] | None" = None,
        contexts: "Int[Tensor, ' n'] | None" = None,
        dropped: dict[str, int] | None = None,
    ) -> None:
        """Add n rows; the source has now been read up to `mark`, and `dropped` counts what was left out by reason.

        place  integers with which the source finds the mark without being read from its beginning.
        Columns that are not given are zero. Raises UsageError for a wrong shape, DataError for NaN or Inf and for
        values beyond the range of the dtype, naming shard and row; LabError when the disk is full.
        """
        width = self.manifest.width
        if rows.ndim != 2 or rows.shape[1] != width or not rows.is_floating_point():
            raise UsageError(
                f"rows are {rows.dtype} of shape {tuple(rows.shape)}; expected floats of shape (n, {width})"
            )
        stored = rows.detach().to("cpu", self._dtype)
        self._require_finite(rows, stored)
        columns = {"tokens": tokens, "positions": positions, "documents": documents, "contexts": contexts}
        part = {name: _column(name, values, len(rows)) for name, values in columns.items()}
        # norms of what is stored, so that they are those a reader sees
        part["norms"] = torch.linalg.vector_norm(stored.float(), dim=1)
        self._parts.append({"rows": stored, **part})
        self._pending_rows += len(rows)
        self._pending_mark = mark
        self._place = None if place is None else list(place)
        self._dropped.update(dropped or {})
        if self._pending_rows >= self.shard_rows:
            self._close_shard()

    def note(self, **facts: Any) -> None:
        """Record facts about the source at once, so that a later writer finds them in `manifest.notes`."""
        self._commit(dataclasses.replace(self.manifest, notes={**self.manifest.notes, **facts}))

    def finish(self) -> Manifest:
        """Write what is in hand, the norm quantiles and the mark of completion; the store's manifest.

        Raises LabError when the store would be empty.
        """
        if self._pending_rows:
            self._close_shard()
        shards = self.manifest.shards
        if not shards:
            raise LabError(f"no rows were written to {self.path}; the source was empty or everything was dropped")
        if self._pending_mark > shards[-1].mark:  # tokens that were dropped after the last row
            dropped = dict(Counter(shards[-1].dropped) + self._dropped)
            shards = (*shards[:-1], dataclasses.replace(shards[-1], mark=self._pending_mark, dropped=dropped))
        norms = np.concatenate([map_shard(self.path / shard.name)["norms"] for shard in shards])
        quantiles = {f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(norms, QUANTILES), strict=True)}
        self._commit(dataclasses.replace(self.manifest, shards=shards, complete=True, norm_quantiles=quantiles))
        self._clear()
        return self.manifest

    def close(self) -> None:
        """Let go of the store; rows that are in no shard yet are given up (a later writer makes them again)."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside ------------------------------------------------------------------------------------------------

    def _begin(self, fresh: Manifest) -> Manifest:
        if not (self.path / MANIFEST).exists():
            strangers = [p.name for p in self.path.iterdir() if not p.name.startswith((".", "shard-"))]
            if strangers:
                raise UsageError(f"{self.path} holds other files ({strangers[0]}, ...); choose an empty directory")
            fresh.write(self.path)
            return fresh
        found = read_manifest(self.path)
        wanted = {"width": fresh.width, "dtype": fresh.dtype, **fresh.meta}
        there = {"width": found.width, "dtype": found.dtype, **found.meta}
        for key in sorted(wanted.keys() | there.keys()):
            if wanted.get(key) != there.get(key):
                raise UsageError(
                    f"the store {self.path} was begun with {key} = {there.get(key)!r}, not {wanted.get(key)!r}; "
                    "choose another directory or remove this one"
                )
        for stale in self.path.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        shards = _whole(self.path, found.shards)
        return dataclasses.replace(found, shards=shards, complete=found.complete and len(shards) == len(found.shards))

    def _close_shard(self) -> None:
        merged = {name: torch.cat([part[name] for part in self._parts]) for name in ("rows", *COLUMNS)}
        data = save(merged)
        name = f"shard-{len(self.manifest.shards):05d}.safetensors"
        write_with(self.path / name, lambda file: file.write_bytes(data))
        digest = hashlib.sha256(data).hexdigest()
        shard = Shard(name, self._pending_rows, len(data), digest, self._pending_mark, dict(self._dropped), self._place)
        shards = (*self.manifest.shards, shard)
        self._commit(dataclasses.replace(self.manifest, shards=shards, complete=False, norm_quantiles={}))
        self._clear()

    def _commit(self, manifest: Manifest) -> None:
        manifest.write(self.path)
        self.manifest = manifest

    def _clear(self) -> None:
        self._parts: list[dict[str, Tensor]] = []
        self._pending_rows = 0
        self._pending_mark = self.mark
        self._place = self.place
        self._dropped: Counter[str] = Counter()

    def _require_finite(self, rows: Tensor, stored: Tensor) -> None:
        finite = torch.isfinite(stored).all(dim=1)
        if bool(finite.all()):
            return
        bad = int((~finite).nonzero()[0, 0])
        place = f"shard {len(self.manifest.shards)} of {self.path}, row {self._pending_rows + bad}"
        if bool(torch.isfinite(rows[bad]).all()):
            raise DataError(
                f"{place}: a value of {float(rows[bad].abs().max()):g} does not fit {self.manifest.dtype} "
                f"(largest {torch.finfo(self._dtype).max:g}); use dtype bfloat16 or float32"
            )
        raise DataError(f"{place} holds NaN or Inf; nothing of this shard was written")


def _whole(directory: Path, shards: tuple[Shard, ...]) -> tuple[Shard, ...]:
    for i, shard in enumerate(shards):
        try:
            check_shard(directory, shard)
        except DataError as error:
            log.warning("%s; going on after %d of %d shards", error, i, len(shards))
            return shards[:i]
    return shards


def _lock(directory: Path) -> IO[bytes]:
    """An advisory lock that the system lets go of when the process ends, however it ends."""
    handle = open(directory / ".lock", "wb")  # noqa: SIM115
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise LabError(f"another process is writing the store {directory}; wait for it or choose another") from None
    return handle


def _column(name: str, values: Tensor | None, n: int) -> Tensor:
    if values is None:
        return torch.zeros(n, dtype=torch.int32)
    if values.shape != (n,) or values.is_floating_point():
        raise UsageError(f"{name} are {values.dtype} of shape {tuple(values.shape)}; expected ({n},) integers")
    limit = torch.iinfo(torch.int32)
    if n and not limit.min <= int(values.min()) <= int(values.max()) <= limit.max:
        raise UsageError(f"{name} go beyond 32-bit integers")
    return values.detach().to("cpu", torch.int32)
