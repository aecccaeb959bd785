"""Reading JSON specs: every key is asked for by name, type and range, and what nobody asked for is an error.

`read_spec` finds a world's spec: a file, or one of those that ship with the package.
"""

import importlib.resources
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from synthetic.errors import DataError, UsageError, unknown

_REQUIRED: Any = object()


class Fields:
    """The keys of one JSON object.

    Each accessor names a key, its default and its range; `finish` then refuses every key that was not named, with the
    nearest known one. `where` is the place in the spec that messages name.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise UsageError(f"{where} is {value!r}; expected a JSON object")
        self._value = value
        self._known: set[str] = set()
        self.where = where

    def has(self, key: str) -> bool:
        return key in self._value

    def raw(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value as it stands."""
        self._known.add(key)
        if key in self._value:
            return self._value[key]
        if default is _REQUIRED:
            raise UsageError(f"{self.where} lacks {key!r}; add it")
        return default

    def number(
        self,
        key: str,
        default: Any = _REQUIRED,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        above: float = -math.inf,
        below: float = math.inf,
    ) -> float:
        """A finite number with low <= value <= high and above < value < below."""
        value = as_number(self.raw(key, default), f"{self.where}.{key}")
        if not (low <= value <= high and above < value < below):
            wanted = [
                f"{sign} {bound:g}"
                for sign, bound in ((">=", low), (">", above), ("<=", high), ("<", below))
                if math.isfinite(bound)
            ]
            raise UsageError(f"{self.where}.{key} is {value:g}; expected a number {' and '.join(wanted)}")
        return value

    def integer(self, key: str, default: Any = _REQUIRED, *, low: int = 0) -> int:
        """An integer with value >= low."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UsageError(f"{self.where}.{key} is {value!r}; expected an integer >= {low}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise UsageError(f"{self.where}.{key} is {value!r}; expected true or false")
        return value

    def choice(self, key: str, choices: Iterable[str], default: Any = _REQUIRED) -> str:
        value = self.raw(key, default)
        names = list(choices)
        if value not in names:
            raise unknown(f"value of {self.where}.{key}", value, names)
        return value

    def numbers(self, key: str) -> list[float]:
        """A list of finite numbers."""
        value = self.raw(key)
        if not isinstance(value, list):
            raise UsageError(f"{self.where}.{key} is {value!r}; expected a list of numbers")
        return [as_number(item, f"{self.where}.{key}[{i}]") for i, item in enumerate(value)]

    def finish(self) -> None:
        """Raise UsageError when a key is left that no accessor named."""
        for key in self._value:
            if key not in self._known:
                raise unknown(f"key in {self.where}:", key, self._known)


def as_number(value: object, where: str) -> float:
    """`value` as a float; raises UsageError unless it is a finite number (a bool is not)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{where} is {value!r}; expected a finite number")
    return float(value)


def read_spec(name: str | Path) -> Any:
    """What a world's file holds: the path of a JSON file, or the name of a world that ships with the package.

    Raises UsageError for an unknown name, DataError for a file that is not JSON.
    """
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return _read(path)
    shipped = _shipped()
    if str(name) not in shipped:
        raise unknown("world (nor is there a file of that name):", str(name), shipped)
    return json.loads(shipped[str(name)].read_text(encoding="utf-8"))


def world_names() -> list[str]:
    """Names of the worlds that ship with the package."""
    return sorted(_shipped())


def _shipped() -> dict[str, Any]:
    folder = importlib.resources.files("synthetic") / "specs"
    return {item.name.removesuffix(".json"): item for item in folder.iterdir() if item.name.endswith(".json")}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the world {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error})") from None
