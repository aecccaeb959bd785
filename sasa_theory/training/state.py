"""The trainer's own checkpoint: one safetensors file from which training goes on bit for bit.

Tensors of any nested state are stored under "a/b/c" names, everything else as JSON in the file's header, so a state is
one file, written atomically, and never unpickled.
"""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sasa_theory.files import write_with
from synthetic.errors import DataError, UsageError

FORMAT = 1


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a nested dict of tensors and JSON values to `path`, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    # one entry: safetensors writes several in an order of its own, and equal states should be equal files
    header = {"state": json.dumps({"format": FORMAT, **plain})}
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_with(path, lambda file: safetensors.torch.save_file(owned, str(file), metadata=header))


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; raises UsageError when it is missing, DataError when it is damaged."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist; there is nothing to resume")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        values = json.loads(header["state"])
        found = values.pop("format", header.get("format"))  # earlier files had it beside the state
        if str(found) != str(FORMAT):
            raise DataError(f"{path} has format {found!r}; this version reads {FORMAT}")
        return _join(values, tensors)
    except (safetensors.SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise DataError(f"{path} is not a whole training state ({error}); delete it to start again") from error


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, dict):
        return {str(k): _split(v, f"{name}/{k}" if name else str(k), tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_split(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$tensor"}:
            return tensors[value["$tensor"]]
        return {k: _join(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_join(v, tensors) for v in value]
    return value
