"""One module per figure or table of the paper; importing a module registers its figure."""

import importlib
import pkgutil

from figures.registry import Context, Figure, figures, table

__all__ = ["Context", "Figure", "figures", "load_all", "table"]


def load_all() -> None:
    """Import every figure module so that its figure is registered."""
    for module in pkgutil.walk_packages(__path__, prefix=f"{__name__}."):
        importlib.import_module(module.name)
