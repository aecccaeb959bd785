"""The few pictures the README shows, copied into docs/ with the numbers each was drawn from."""

from pathlib import Path
from typing import Any

from sasa_lab.profiles import PROFILES
from sasa_lab.results import read_result, result_file
from sasa_theory.files import write_bytes, write_json
from synthetic.errors import UsageError

#: figures the README shows
SHOWN = ("manifolds",)
#: lists of more values than this are left out of the copy of a result
LARGEST_LIST = 200


def copy_documents(out: Path, docs: Path) -> list[Path]:
    """Copy each shown figure as docs/NAME.png with docs/NAME.result.json; returns what was written.

    The largest profile at hand is taken. Raises UsageError when a figure was not run.
    """
    written = []
    for name in SHOWN:
        files = [file for profile in reversed(PROFILES) if (file := result_file(out, name, profile)).is_file()]
        picture = files[0].with_name("figure.png") if files else None
        if picture is None or not picture.is_file():
            raise UsageError(f"figure {name!r} has no picture under {out}; run `sasa-lab figure {name}` first")
        written.append(write_bytes(docs / f"{name}.png", picture.read_bytes()))
        written.append(write_json(docs / f"{name}.result.json", without_arrays(read_result(files[0]))))
    return written


def without_arrays(value: Any) -> Any:
    """A result with its long lists (points of a picture) replaced by a sentence that says so."""
    if isinstance(value, dict):
        return {key: without_arrays(entry) for key, entry in value.items()}
    if isinstance(value, list):
        if _size(value) > LARGEST_LIST and not any(isinstance(entry, dict) for entry in value):
            return f"{len(value)} entries left out here"
        return [without_arrays(entry) for entry in value]
    return value


def _size(value: Any) -> int:
    return sum(map(_size, value)) if isinstance(value, list) else 1
