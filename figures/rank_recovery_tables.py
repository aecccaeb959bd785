"""Tables of E3, from the numbers alone."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from figures.rank_recovery_draw import of_kind
from figures.rank_recovery_world import DIMS, FOUND
from figures.registry import spread, table

Numbers = list[dict[str, Any]]


def summary(trained: Numbers, kinds: list[tuple[str, float]], yardsticks: Numbers) -> dict[str, Any]:
    """Recovery of every penalty and coefficient, and of the yardsticks."""
    columns = {
        "explained": "explained variance",
        "dead_share": "dead share",
        "found": f"found (capture >= {FOUND})",
        "capture": "mean capture",
        "rank_error": "|rank error|",
        "spearman": "Spearman",
        "pearson": "Pearson",
        "rank_error_found": "|rank error|, found",
        "spearman_found": "Spearman, found",
        "most_features_a_group": "most features a group",
    }
    rows = []
    for kind, lam in kinds:
        cells = of_kind(trained, kind, lam)
        rows.append([kind if lam else "none", f"{lam:g}", *_spreads(cells, columns)])
    for name in dict.fromkeys(one["name"] for one in yardsticks):
        rows.append([name, None, *_spreads([one for one in yardsticks if one["name"] == name], columns)])
    note = (
        "Mean ± standard deviation over seeds. Ranks: directions carrying 90 % of the energy a group contributes, of "
        "the group matched to each feature; all features, and those found. Coefficients in raw units, as published. "
        "K-lines and K-subspaces on rows with one feature each; PCA and K-lines have units of one direction. Of E3 the "
        "settings are published, no values known."
    )
    return table("Recovery against the coefficient", ["penalty", "coefficient", *columns.values()], rows, note)


def _spreads(cells: Numbers, names: Iterable[str]) -> list[str | None]:
    return [spread([one[name] for one in cells], 2) for name in names]


def by_dimension(trained: Numbers, kinds: list[tuple[str, float]]) -> dict[str, Any]:
    """Rank and capture at each true dimension."""
    rows = []
    for kind, lam in kinds:
        cells = of_kind(trained, kind, lam)
        row: list[Any] = [kind if lam else "none", f"{lam:g}"]
        for i in range(len(DIMS)):
            ranks = [r for one in cells for r in one["ranks"][i]]
            captures = [c for one in cells for c in one["captures"][i]]
            row.append(f"{np.mean(ranks):.1f} ({np.mean(captures):.2f})")
        rows.append(row)
    columns = ["penalty", "coefficient", *(f"d = {d}" for d in DIMS)]
    return table("Learned rank (capture) by true dimension", columns, rows, "Mean over features and seeds.")


def start_table(starts: Numbers) -> dict[str, Any]:
    """The objective that training reaches from each start, and what is found there."""
    columns = {
        "explained": "explained variance",
        "found": f"found (capture >= {FOUND})",
        "rank_error": "|rank error|",
        "spearman": "Spearman",
        "dead_share": "dead share",
        "most_features_a_group": "most features a group",
    }
    rows = [
        [f"{one['coefficient']:g}", one["start"], f"{one['objective']:.4f}", *_spreads([one], columns)]
        for one in starts
    ]
    note = (
        "Penalty map, first seed. Objective: squared error and nuclear penalty on held-out rows, in units of a "
        "feature's energy. Random: the recipe, with splits; long: four times the steps, the penalty warmed up over all "
        "of them; plain: random start without splits; truth: a group each, without splits; slow: a tenth of the rate; "
        "merged: d and 9 - d in one group. The project's first trial: started at the truth all stay found."
    )
    return table(
        "Objective reached from each start", ["coefficient", "start", "objective", *columns.values()], rows, note
    )


def gate_table(gates: Numbers, starts: Numbers) -> dict[str, Any]:
    """C6's prediction, the same under the gate's own choice of rows, and what training from the truth kept."""
    rows = []
    for one in gates:
        start = "truth" if one["gauge"] else "truth, no gauge"
        ends = [got for got in starts if (got["start"], got["coefficient"]) == (start, one["coefficient"])]
        row: list[Any] = [f"{one['coefficient']:g}", "yes" if one["gauge"] else "no"]
        for i in range(len(DIMS)):
            kept = np.mean([np.mean(np.array(got["captures"][i]) >= FOUND) for got in ends])
            row.append(f"{one['open'][i]:.2f} / {one['gated'][i]:.2f} / {kept:.2f}")
        rows.append(row)
    note = (
        "Share of the features of each dimension with a map: C6 on all rows of the feature / C6 on the rows that the "
        "gate gives its group, iterated from the planted maps without training / found after training from the truth."
    )
    columns = ["coefficient", "gauge", *(f"d = {d}" for d in DIMS)]
    return table("C6's window under the gate", columns, rows, note)
