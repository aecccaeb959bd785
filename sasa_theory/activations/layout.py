"""How a store looks on disk: shards of rows and one manifest that lists the whole ones.

    DIR/shard-00000.safetensors   rows (n, D); tokens, positions, documents, contexts (n,) int32; norms (n,) float32
    DIR/manifest.json             width, dtype, where the rows come from, and for each shard its rows and sha256

A shard counts only once the manifest lists it, and both are written under temporary names, synced and renamed, so
after a kill at any moment the manifest names whole shards only. Checksums make a flipped byte an error with a name.
"""

import dataclasses
import hashlib
import json
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory.files import read_json, write_json
from synthetic.errors import DataError, UsageError, unknown

VERSION = 1
MANIFEST = "manifest.json"

#: what rows may be stored as. bfloat16 keeps the range of float32: residual streams overflow float16 (max 65,504)
DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

#: one number per row: token id, position in its context, document and context it comes from, Euclidean norm
COLUMNS = {"tokens": np.int32, "positions": np.int32, "documents": np.int32, "contexts": np.int32, "norms": np.float32}
#: bytes of a stored row beside its D numbers
ROW_BYTES = sum(np.dtype(kind).itemsize for kind in COLUMNS.values())

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Shard:
    """One whole shard: its file name, rows, size in bytes, sha256, the source position after it, tokens dropped.

    place  where to look for that position in the source, None in a store of an earlier version.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    mark: int
    dropped: dict[str, int] = field(default_factory=dict)
    place: list[int] | None = None


@dataclass(frozen=True)
class Manifest:
    """What a store holds.

    width           D.
    dtype           name in DTYPES.
    meta            where the rows come from (model, hook, text, context, ...); a resumed writer must agree on it.
    shards          the whole shards in order.
    complete        False while a writer still has to finish (or was stopped).
    norm_quantiles  quantile of the row norms, as written in QUANTILES -> value; empty until complete.
    notes           what was found out while writing (the median norm that the limit refers to); not compared.
    """

    width: int
    dtype: str
    meta: dict[str, Any]
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    norm_quantiles: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def dropped(self) -> dict[str, int]:
        """Tokens that were not stored, by reason."""
        total: Counter[str] = Counter()
        for shard in self.shards:
            total.update(shard.dropped)
        return dict(sorted(total.items()))

    def write(self, directory: Path) -> None:
        """Write it to `directory` atomically, with a checksum of itself."""
        body = {"version": VERSION, **dataclasses.asdict(self)}
        write_json(directory / MANIFEST, {**body, "checksum": _digest(body)})

    def fingerprint(self) -> str:
        """16 hex digits that differ whenever the stored rows or their source differ."""
        contents = [[shard.rows, shard.sha256] for shard in self.shards]
        return _digest([self.width, self.dtype, self.meta, contents])[:16]


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the store at `directory`.

    Raises UsageError when there is no store or a newer format, DataError when the manifest is damaged.
    """
    file = directory / MANIFEST
    if not directory.exists():
        raise UsageError(f"store {str(directory)!r} does not exist; write one with sasa-lab activations")
    if not file.is_file():
        raise UsageError(f"{str(directory)!r} holds no {MANIFEST}: it is not an activation store, or was never begun")
    body = read_json(file)
    try:
        checksum = body.pop("checksum")
        version = body.pop("version")
        if checksum != _digest({"version": version, **body}):
            raise DataError(f"{file} is damaged: its checksum does not match; write the store again")
        if version != VERSION:
            raise UsageError(f"{file} has format {version}; this program reads format {VERSION}")
        body["shards"] = tuple(Shard(**shard) for shard in body["shards"])
        return Manifest(**body)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise DataError(f"{file} is not a store's manifest ({error}); write the store again") from error


def check_shard(directory: Path, shard: Shard) -> None:
    """Raise DataError, naming the shard, unless its file is there with the recorded size and sha256."""
    file = directory / shard.name
    check_size(file, shard)
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != shard.sha256:
        raise DataError(
            f"{file} is damaged: its sha256 begins {found[:12]}, the manifest says {shard.sha256[:12]}; "
            "run the same sasa-lab activations command again to write it anew"
        )


def check_size(file: Path, shard: Shard) -> None:
    """Raise DataError unless `file` exists with the size the manifest recorded."""
    if not file.is_file():
        raise DataError(f"{file} is missing; run the same sasa-lab activations command again to write it anew")
    if file.stat().st_size != shard.bytes:
        raise DataError(
            f"{file} has {file.stat().st_size} bytes, the manifest says {shard.bytes}; "
            "run the same sasa-lab activations command again to write it anew"
        )


def map_shard(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as read-only memory maps (bfloat16 as uint16).

    safetensors itself reads slices; a shuffled batch needs rows anywhere, so the offsets in its header are used.
    Raises DataError when the header makes no sense.
    """
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 0 < length <= file.stat().st_size - 8:
                raise ValueError(f"header length {length}")
            header = json.loads(stream.read(length))
        kinds = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I32": np.int32}
        return {
            name: np.memmap(
                file, kinds[entry["dtype"]], "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"])
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is not a whole safetensors file ({error})") from error


def to_tensor(array: np.ndarray, dtype: str) -> "Float[Tensor, 'n D']":
    """A copied array of stored rows as a tensor of the store's dtype."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def require_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`; raises UsageError for one that stores do not hold."""
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
