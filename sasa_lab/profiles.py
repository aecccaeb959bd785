"""How much to run: the seeds of each profile, the time all figures together may take, and which figures fit.

The budget of a single figure stands in its own module (`figures.registry.Figure.budget`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from figures.registry import Figure

Profile = Literal["quick", "standard", "paper"]
PROFILES: tuple[Profile, ...] = ("quick", "standard", "paper")

SEEDS: dict[str, tuple[int, ...]] = {"quick": (0,), "standard": (0, 1, 2), "paper": (0, 1, 2)}
#: seconds that `reproduce` may take on 2 CPU cores; "paper" runs on a GPU in units that resume
TOTAL: dict[str, float] = {"quick": 600.0, "standard": 7200.0, "paper": math.inf}


@dataclass(frozen=True)
class Plan:
    """What `reproduce` runs, and what it leaves for `sasa-lab figure NAME`, each with the reason."""

    run: "list[Figure]"
    left: "list[tuple[Figure, str]]"


def plan(figures: "Iterable[Figure]", profile: str, total: float | None = None) -> Plan:
    """Choose the figures that need nothing, cheapest first, while the sum of their budgets stays within `total`."""
    total = TOTAL[profile] if total is None else total
    chosen: list[Figure] = []
    left: list[tuple[Figure, str]] = []
    ready: list[Figure] = []
    for figure in figures:
        if profile not in figure.budget:
            left.append((figure, f"has no {profile} profile"))
        elif figure.needs:
            left.append((figure, f"needs {figure.needs}"))
        else:
            ready.append(figure)
    spent = 0.0
    for figure in sorted(ready, key=lambda figure: (figure.budget[profile], figure.name)):
        spent += figure.budget[profile]
        if spent <= total:
            chosen.append(figure)
        else:
            left.append((figure, f"does not fit into the {total / 60:.0f} minutes of profile {profile}"))
    return Plan(chosen, left)
