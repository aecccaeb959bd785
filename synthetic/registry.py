"""Things found by name: manifolds, architectures, figures, claims.

A registry is filled by a decorator, in this package or in a file of the user's own (`--plugin FILE`), so a new
manifold or architecture is one decorated definition and nothing else.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from synthetic.errors import UsageError, unknown

T = TypeVar("T")
_loaded: list[str] = []


class Registry(Generic[T]):
    """Objects of one kind by name; an unknown name raises a UsageError with the nearest valid one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files an object under `name`; a second object under the same name is a UsageError."""

        def add(item: T) -> T:
            if name in self._items:
                raise UsageError(f"{self.kind} {name!r} is already registered; choose another name for yours")
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            raise unknown(self.kind, name, self._items)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._items)


def load_plugin(path: str | Path) -> None:
    """Import a Python file of the user's own so that its decorators register; raises UsageError if it is missing."""
    file = Path(path).resolve()
    if not file.is_file():
        raise UsageError(f"plugin {str(path)!r} is not a file; give the path of a Python file")
    name = f"sasa_lab_plugin_{file.stem}"
    if name in sys.modules:
        if sys.modules[name].__file__ == str(file):
            return
        raise UsageError(f"two plugins are both named {file.name!r}; rename one of them")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"plugin {str(path)!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"plugin {str(path)!r} does not import: {type(error).__name__}: {error}") from error
    _loaded.append(str(file))


def loaded_plugins() -> list[str]:
    """Paths of the plugins loaded so far (worker processes load the same)."""
    return list(_loaded)
