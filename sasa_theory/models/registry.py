"""Architectures by name: `build("sasa", width_in=64, n_groups=64, group_rank=4, active_groups=1)`."""

import inspect
from typing import Any

from sasa_theory.models.base import SparseModel
from synthetic.errors import UsageError, unknown
from synthetic.registry import Registry

#: every architecture by its name; a user's own registers with `@architectures.register("name")`
architectures: Registry[type[SparseModel]] = Registry("architecture")


def build(name: str, **settings: Any) -> SparseModel:
    """The architecture `name` with the given settings.

    Raises UsageError for an unknown name (saying the nearest), an unknown setting or a missing one.
    """
    cls = architectures[name]
    parameters = [p for p in inspect.signature(cls.__init__).parameters.values() if p.name != "self"]
    known = [p.name for p in parameters]
    for key in settings:
        if key not in known:
            raise unknown(f"setting of architecture {name!r}", key, known)
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in settings]
    if missing:
        raise UsageError(f"architecture {name!r} needs {', '.join(missing)}; give it as a keyword")
    return cls(**settings)
