"""The tables and findings of figure E2."""

from typing import Any

import numpy as np

from figures.registry import spread, table
from figures.splitting_recipe import SIGNED, VECTORS
from sasa_theory.statistics import THRESHOLD

LABELS = {
    "relu": "ReLU (l1)",
    "topk": "TopK",
    "abstopk": "AbsTopK",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "gated": "Gated",
    "matryoshka": "Matryoshka",
    "sasa": "SASA",
    "bsf": "BSF",
    "grassmannian": "Grassmannian BSF",
    "grouplasso": "group-lasso BSF",
}
REFERENCES = "references"


def label(model: str) -> str:
    """A model's name as it is shown."""
    return LABELS.get(model, model.replace("sasa", "SASA"))


def mean(seeds: list[dict[str, Any]], quantity: str) -> list[float | None]:
    """Per dimension, the mean over the seeds that have a value; None where none has."""
    columns = zip(*(one[quantity] for one in seeds), strict=True)
    return [float(np.mean(held)) if (held := [v for v in c if v is not None]) else None for c in columns]


def tables(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """For every energy and budget: fit and budget, units per feature, recovered energy; then coverings and laws."""
    out = []
    for energy, budgets in numbers["results"].items():
        for budget, trained in budgets.items():
            models = {**trained, **numbers[REFERENCES][energy]} if budget == "columns" else trained
            where = f"energy {energy}, budget {budget}"
            out += [_fit(models, where), _units(models, numbers["dims"], where), _recovered(models, numbers, where)]
        out.append(_coverings({**budgets["columns"], **numbers[REFERENCES][energy]}, numbers, energy))
    return [*out, _laws(numbers["laws"])]


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _fit(models: dict[str, Any], where: str) -> dict[str, Any]:
    rows = []
    for name, seeds in models.items():
        settled = [one["settled"] for one in seeds if "settled" in one]
        rows.append(
            [
                label(name),
                spread([1 - one["unexplained"] for one in seeds], 3),
                spread([one["l0_columns"] for one in seeds], 1),
                spread([one["l0_units"] for one in seeds], 1),
                spread([one["bits"] for one in seeds], 0),
                spread([one["dead_share"] for one in seeds], 2),
                spread([float(np.mean(one["counted"])) for one in seeds], 2),
                spread(settled, 2) if settled else None,
            ]
        )
    columns = ["dictionary", "explained variance", "L0 (columns)", "L0 (units)", "bits a row", "dead share"]
    note = (
        "Mean ± standard deviation over seeds. Bits: log2 C(n, active) and the fewest a coefficient needs. Last "
        "column: unexplained variance at the end over that where the learning rate began to fall; well below 1: "
        "training was not at its plateau. K-lines and K-subspaces have one active unit on rows with one feature."
    )
    return table(f"Fit: {where}", [*columns, "features counted", "late change"], rows, note)


def _units(models: dict[str, Any], dims: list[int], where: str) -> dict[str, Any]:
    rows = []
    for name, seeds in models.items():
        pairs = zip(mean(seeds, "units"), mean(seeds, "excess_units"), strict=True)
        spanning = [v for v in mean(seeds, "spanning_groups") if v is not None]
        row = [label(name), *(f"{_cell(a, 1)} ({_cell(b, 1)})" for a, b in pairs)]
        rows.append([*row, f"{spanning[0]:.1f} to {spanning[-1]:.1f}" if spanning else None])
    note = (
        "Fewest units carrying 90 % of the energy put into V_i when i is active (in brackets: of the energy in excess "
        "of what they put there when i is silent), mean over features with at least half their energy recovered. Last "
        "column: fewest units whose union spans 90 % of V_i, smallest to largest d spanned. No published counts known."
    )
    columns = ["dictionary", *(f"d = {d}" for d in dims), "units that span"]
    return table(f"Units per feature: {where}", columns, rows, note)


def _recovered(models: dict[str, Any], numbers: dict[str, Any], where: str) -> dict[str, Any]:
    rows = []
    for name, seeds in models.items():
        pairs = zip(mean(seeds, "recovered"), mean(seeds, "alone"), strict=True)
        above, binding = (sum(one[key] for one in seeds) for key in ("above_ceiling", "binding"))
        row = [label(name), *(f"{_cell(a, 2)} ({_cell(b, 2)})" for a, b in pairs)]
        rows.append([*row, f"{above:.0f} of {binding:.0f}" if binding else "does not bind"])
    note = (
        "Share of the energy in V_i recovered when i is active (in brackets: on clean points of i alone, which A3 is "
        "about). Last column: features above A3's ceiling beyond a one-sided 99.9 % interval, of those it binds."
    )
    columns = ["dictionary", *(f"d = {d}" for d in numbers["dims"]), "above A3's ceiling"]
    return table(f"Recovered energy: {where}", columns, rows, note)


def _coverings(models: dict[str, Any], numbers: dict[str, Any], energy: str) -> dict[str, Any]:
    rows: list[list[Any]] = []
    for case, (k, eps) in enumerate(numbers["cases"]):
        rows.append([f"k = {k}, eps = {eps:g}", "floor (A2)", *(f"{n:,}" for n in numbers["floors"][case])])
        for name, seeds in models.items():
            held = [one["covering"][case] for one in seeds]
            atoms, covered = mean(held, "atoms"), mean(held, "covered")
            cells = [
                f"{a:.1f}" if a is not None and c == 1 else f"∞ ({c:.2f})" for a, c in zip(atoms, covered, strict=True)
            ]
            rows.append(["", label(name), *cells])
    note = (
        "L^(k)(eps): fewest columns such that every sampled unit vector of V_i lies within eps of the span of k "
        "of them, greedy; ∞: some point of some feature is not covered, in brackets the share that is. The sample "
        "under-estimates, greed over-estimates; for k >= d a basis would do."
    )
    columns = ["case", "dictionary", *(f"d = {d}" for d in numbers["dims"])]
    return table(f"Covering numbers: energy {energy}, budget columns", columns, rows, note)


def _laws(laws: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for energy, budgets in laws.items():
        for budget, models in budgets.items():
            for name, found in models.items():
                rows.append([energy, budget, label(name), *(c for q in found.values() for c in _law(q))])
    note = (
        f"log count = a + rate d against a + exponent log d over d = 2 ... 16, one run per d and seed, 95 % bootstrap "
        f"intervals. Decided at a lead of {THRESHOLD:g} in AICc over the other law and over no growth (D4). First by "
        "the published rule, then by excess energy."
    )
    columns = ["rate per dimension", "exponent", "decision (lead)"]
    return table("Growth of units per feature", ["energy", "budget", "dictionary", *columns, *columns], rows, note)


def _law(found: dict[str, Any]) -> list[str | None]:
    if "lead" not in found:
        return [None, None, found["decision"]]
    lines = [found[kind] for kind in ("exponential", "polynomial")]
    slopes = [f"{v['slope']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" for v in lines]
    return [*slopes, f"{found['decision']} ({found['lead']:.1f})"]


def findings(numbers: dict[str, Any], decided: bool) -> list[dict[str, str]]:
    """What the matched-column runs with energy "total" say; a quick run decides nothing."""
    return [_splitting(numbers, decided), _covering(numbers, decided), _collinear(numbers, decided)]


def _splitting(numbers: dict[str, Any], decided: bool) -> dict[str, str]:
    """Supported: every vector dictionary spends more than a basis on most features, and growth is exponential.

    A basis is d atoms for codes of either sign, and 2 d for non-negative ones, which need both directions of each.
    With a budget of at least 16 columns nothing forces them to (A2 is void), so splitting without the exponential law
    needs an assumption, and no splitting refutes the second half of the sentence.
    """
    active = numbers["active"]["columns"]
    dims, laws = numbers["dims"], numbers["laws"]["total"]["columns"]
    said, splits, exponential = [], [], []
    for name in VECTORS:
        counts = mean(numbers["results"]["total"]["columns"][name], "excess_units")
        held = [(d, n) for d, n in zip(dims, counts, strict=True) if n is not None and d > 1]
        basis = 1 if name in SIGNED else 2
        splits.append(bool(held) and sum(n > basis * d for d, n in held) > len(held) / 2)
        exponential.append(laws[name]["excess_units"]["decision"] == "exponential")
        if held:
            said.append(f"{label(name)} {held[-1][1]:.0f} at d = {held[-1][0]}")
    forced = "supported" if all(splits) and all(exponential) else "needs an assumption" if any(splits) else "refuted"
    groups = mean(numbers["results"]["total"]["columns"]["sasa"], "excess_units")
    largest = [(d, n) for d, n in zip(dims, groups, strict=True) if n is not None][-1:]
    text = (
        f"energy total, {active} active columns, units per feature by excess energy: "
        f"{', '.join(said) or 'none counted'}; "
        f"beyond a basis (d, or 2 d for non-negative codes) at most d in {sum(splits)} of {len(splits)} vector "
        f"dictionaries, growth decided exponential in "
        f"{sum(exponential)}; SASA {', '.join(f'{n:.1f} groups at d = {d}' for d, n in largest) or 'none counted'}. "
        f"With {active} active columns nothing forces splitting: A2 and A3 need a budget below d"
    )
    return {"sentence": "splitting", "status": forced if decided else "undecided", "text": text}


def _covering(numbers: dict[str, Any], decided: bool) -> dict[str, str]:
    """Over vector dictionaries, cases with k < d in which every point is covered: how often L > d."""
    more = same = never = 0
    for seeds in (numbers["results"]["total"]["columns"][name] for name in VECTORS):
        for case, (k, _) in enumerate(numbers["cases"]):
            held = [one["covering"][case] for one in seeds]
            for d, atoms, whole in zip(numbers["dims"], mean(held, "atoms"), mean(held, "whole"), strict=True):
                if k < d:
                    covered = atoms is not None and whole == 1
                    never += not covered
                    more += covered and atoms > d
                    same += covered and atoms <= d
    text = (
        f"vector dictionaries, k < d: more than d atoms in {more}, exactly d in {same} of the cases in which all "
        f"sampled directions are covered; not covered by any number of its atoms in {never}"
    )
    status = "undecided" if not decided or more + same == 0 else "supported" if same == 0 else "needs an assumption"
    return {"sentence": "covering", "status": status, "text": text}


def _collinear(numbers: dict[str, Any], decided: bool) -> dict[str, str]:
    """Largest |cosine| of two atoms of one feature, at the smallest and largest d that has one."""
    said, near = [], []
    for name in VECTORS:
        cosines = mean(numbers["results"]["total"]["columns"][name], "cosine")
        held = [(d, c) for d, c in zip(numbers["dims"], cosines, strict=True) if c is not None and d > 1]
        if held:
            said.append(f"{label(name)} {held[0][1]:.2f} at d = {held[0][0]}, {held[-1][1]:.2f} at d = {held[-1][0]}")
            near += [c > 0.9 for _, c in held]
    text = f"largest |cosine| inside V_i of two atoms that carry it: {'; '.join(said) or 'none'}"
    status = "undecided" if not decided or not near else "supported" if all(near) else "needs an assumption"
    return {"sentence": "collinear", "status": status, "text": text}
