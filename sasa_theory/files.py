"""Files that are whole or absent: written under a temporary name, synced, then renamed.

A reader never sees half a file, and a full disk leaves the old file as it was with one clear error.
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from synthetic.errors import DataError, LabError, UsageError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit sync it and rename it to `path`.

    On any exception the temporary file is removed and `path` is untouched. Raises LabError when the disk is full or
    the place is not writable.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_directory(target.parent)
    except OSError as error:
        raise _explained(error, target) from error
    except Exception as error:
        # safetensors reports a full disk in its own exception type
        if "No space left" in str(error):
            raise _explained(OSError(errno.ENOSPC, str(error)), target) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_with(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write(temporary path)` and move the result to `path` atomically; returns `path`."""
    with replacing(path) as temporary:
        write(temporary)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` (UTF-8) to `path` atomically."""
    return write_with(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path` atomically."""
    return write_with(path, lambda file: file.write_bytes(data))


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as strict JSON (no NaN) to `path` atomically; raises UsageError for what JSON cannot hold."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"cannot write {path}: {error}; only finite numbers, strings, lists and dicts") from error
    return write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raises UsageError when it is missing and DataError when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory; expected a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error})") from error


def _explained(error: OSError, target: Path) -> LabError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LabError(f"the disk is full: could not write {target}; nothing was changed. Free some space, run again")
    return LabError(f"could not write {target}: {error.strerror or error}")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
