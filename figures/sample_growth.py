"""Samples to a held-out target against d, when routing is unknown: at one active unit, at matched columns, relative.

Data, budgets, methods and the search stand in `sample_growth_recipe`. Figure `samples` asks the same of one known
slice; here several features share the rows, and three comparisons stand side by side, because the answer depends on
which is made:

- one active unit a feature, one target for all: the number of atoms that part A asks for is drawn. A line that no
  sample has pulled towards itself is of no use (D3), so the samples cannot be far fewer than the atoms.
- as many active columns as SASA has: nothing forces more than a basis, and the bound is void.
- near the best of the method's own class at a fixed number of atoms: what is left of the growth when the target does
  not ask for more atoms. Classical methods only, which need no training.

Runs that never reached the target are censored (triangles, at the largest n), and enter the laws as such. A law is
decided at D4's lead in AICc.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from figures.registry import Context, Figure, figures, table
from figures.sample_growth_recipe import (
    ATOMS,
    CLOSE,
    COUNT,
    FITTED,
    NOISE,
    STUDIES,
    TARGET,
    VECTORS,
    WIDTH,
    Search,
    atoms_needed,
    fitted_searches,
    model_settings,
    train_settings,
    trained_search,
    truth_error,
)
from sasa_theory.statistics import THRESHOLD, Line, growth_law
from synthetic.errors import DataError

LABELS = {
    "topk": "TopK",
    "abstopk": "AbsTopK",
    "batchtopk": "BatchTopK, decoder at one unit",
    "relu": "ReLU (l1), decoder",
    "lines": "K-lines",
    "sasa": "SASA",
    "ksubspaces": "K-subspaces",
    "pca": "PCA, all directions",
}
COLOURS = {
    "topk": "#d55e00",
    "abstopk": "#e69f00",
    "batchtopk": "#8c564b",
    "relu": "#cc79a7",
    "lines": "#666666",
    "sasa": "#0072b2",
    "ksubspaces": "#56b4e9",
    "pca": "#444444",
}
#: panel: its (budget, target) series
PANELS: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "unit",
        f"one active unit, {TARGET:.0%} unexplained",
        tuple((name, "unit", "absolute") for name in ("lines", *VECTORS, "ksubspaces", "sasa")),
    ),
    (
        "columns",
        f"d active columns, {TARGET:.0%} unexplained",
        (
            *((name, "columns", "absolute") for name in ("topk", "abstopk", "batchtopk")),
            ("sasa", "unit", "absolute"),
            ("pca", "dense", "absolute"),
        ),
    ),
    (
        "relative",
        f"{CLOSE:.0%} of the class's own best",
        (("lines", "unit", "relative"), ("ksubspaces", "unit", "relative"), ("pca", "dense", "relative")),
    ),
)
Series = tuple[str, str, str]
#: the lines are followed no further
LAST_BOUND = 7


def run(context: Context) -> dict[str, Any]:
    """Find the samples every method needs in every comparison and fit both laws (module docstring)."""
    study = STUDIES[context.profile]
    cells = [(*key, d, seed) for key, dims in study.dims.items() for seed in context.seeds for d in reversed(dims)]
    fitted = [cell for cell in cells if cell[:2] in FITTED]
    trained = [cell for cell in cells if cell[:2] not in FITTED]
    workers = 1 if context.device.startswith("cuda") else -1
    found: list[Search] = [
        search
        for searches in Parallel(n_jobs=workers)(delayed(fitted_searches)(*cell, study) for cell in fitted)
        for search in searches
    ]
    found += Parallel(n_jobs=workers, batch_size=1)(
        delayed(trained_search)(*cell, study, context.out, context.device, context.deadline) for cell in trained
    )
    runs = [asdict(search) | {"seen": [list(pair) for pair in search.seen]} for search in found]
    rng = np.random.default_rng(context.seeds[0])
    laws = {"/".join(key): law_of(series(runs, key), rng) for key in _keys(runs)}
    truth = [[d, truth_error(d)] for d in sorted({r["d"] for r in runs})]
    numbers = {
        "runs": runs,
        "laws": laws,
        "atoms": [[d, atoms_needed(d)] for d in range(2, LAST_BOUND + 1)],
        "exact": [[d, COUNT * d] for d in range(2, 13)],
        "truth": truth,
    }
    return {
        "numbers": numbers,
        "tables": [_run_table(runs, truth), _law_table(laws)],
        "findings": [finding(laws, decided=context.profile != "quick")],
        "settings": {
            "world": {"width": WIDTH, "features": COUNT, "noise": NOISE, "one feature on": True},
            "atoms": ATOMS,
            "models": {f"{name}/{budget}": model_settings(name, budget, 4) for name, budget, *_ in trained},
            "training": train_settings(study.steps, context.seeds[0]).as_dict(),
            "sizes": list(study.sizes),
        },
    }


def _keys(runs: Sequence[dict[str, Any]]) -> list[Series]:
    return list(dict.fromkeys((r["name"], r["budget"], r["target"]) for r in runs))


def series(runs: Sequence[dict[str, Any]], key: Series) -> list[dict[str, Any]]:
    """The runs of one method, budget and target."""
    return [r for r in runs if (r["name"], r["budget"], r["target"]) == key]


def law_of(runs: Sequence[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    """Both laws of one series as JSON (D4); without lines where too few runs reached the target."""
    d, n = (np.array([r[key] for r in runs], dtype=float) for key in ("d", "n"))
    off = np.array([r["censored"] for r in runs])
    short = {"runs": len(runs), "censored": int(off.sum()), "dims": [int(d.min()), int(d.max())]}
    try:
        found = growth_law(d, n, off, rng=rng)
    except DataError as error:
        return {**short, "decision": "undecided", "reason": str(error)}

    def line(law: Line) -> dict[str, float]:
        return {"intercept": law.intercept, "slope": law.slope, "low": law.low, "high": law.high}

    return {
        **short,
        "decision": found.decision,
        "lead": found.lead,
        "ahead": "exponential" if found.difference > 0 else "polynomial",
        "exponential": line(found.exponential),
        "polynomial": line(found.polynomial),
    }


def verdict(law: dict[str, Any]) -> str:
    """The decision, its lead in AICc, and the slope of the law ahead with its interval."""
    if "lead" not in law:
        return "undecided (too few runs arrived)"
    line = law[law["ahead"]]
    what = "rate" if law["ahead"] == "exponential" else "exponent"
    lead = (
        f"by {law['lead']:.1f}" if law["decision"] != "undecided" else f"({law['ahead']} ahead, lead {law['lead']:.1f})"
    )
    return f"{law['decision']} {lead}, {what} {line['slope']:.2f} [{line['low']:.2f}, {line['high']:.2f}]"


def _run_table(runs: Sequence[dict[str, Any]], truth: Sequence[Sequence[float]]) -> dict[str, Any]:
    dims = sorted({r["d"] for r in runs})
    rows: list[list[Any]] = []
    for name, budget, target in _keys(runs):
        row: list[Any] = [LABELS[name], budget, target]
        for d in dims:
            here = [r for r in series(runs, (name, budget, target)) if r["d"] == d]
            if not here:
                row.append(None)
                continue
            sign = "> " if any(r["censored"] for r in here) else "<= " if any(r["first"] for r in here) else ""
            logs = [math.log(r["n"]) for r in here]
            row.append(f"{sign}{math.exp(np.mean(logs)):.3g} ({math.exp(min(logs)):.3g} to {math.exp(max(logs)):.3g})")
        late = [r["late"] for r in series(runs, (name, budget, target)) if r["late"] is not None]
        rows.append([*row, f"{np.mean(late):.2f} ({min(late):.2f} to {max(late):.2f})" if late else None])
    rows.append(
        ["atoms needed (A3)", "unit", "absolute", *(atoms_needed(d) if d <= LAST_BOUND else None for d in dims), None]
    )
    rows.append(["rows of general position (D1)", "", "", *(COUNT * d for d in dims), None])
    rows.append(["planted truth", "unit", "absolute", *(f"0 ({error:.3f} left)" for _, error in truth), None])
    note = (
        "Geometric mean over seeds (range). >: some never reached the target and count with the largest n tried; <=: "
        "some had reached it at the smallest. A3's atoms are of codes of either sign; codes of one sign need more. The "
        "planted truth needs no samples: in brackets what it leaves unexplained. Late change: unexplained variance of "
        "the deciding run at the end over that where its learning rate began to fall (range over d and seeds); well "
        "below 1: not at its plateau, and longer training may need fewer samples. The paper publishes no such numbers."
    )
    columns = ["method", "budget", "target", *(f"d = {d}" for d in dims), "late change"]
    return table("Samples needed", columns, rows, note)


def _law_table(laws: dict[str, dict[str, Any]]) -> dict[str, Any]:
    rows = []
    for key, law in laws.items():
        name, budget, target = key.split("/")
        lines = [law.get(kind) for kind in ("exponential", "polynomial")]
        slopes = [f"{v['slope']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" if v else None for v in lines]
        d = f"{law['dims'][0]} to {law['dims'][1]}"
        rows.append([LABELS[name], budget, target, d, law["runs"], law["censored"], *slopes, verdict(law)])
    columns = ["method", "budget", "target", "d", "runs", "censored", "rate per dimension", "exponent", "decision"]
    note = (
        f"95 % bootstrap intervals; decided at a lead of {THRESHOLD:g} in AICc over the other law and no growth (D4). "
        "Published: exponential for vector dictionaries, polynomial for SASA, with neither a rate nor an exponent."
    )
    return table("Growth of the samples needed", columns, rows, note)


def finding(laws: dict[str, dict[str, Any]], decided: bool) -> dict[str, str]:
    """The sentence holds at one active unit; it needs that assumption when matched columns do not show it."""

    def decisions(budget: str, names: Sequence[str]) -> list[str]:
        keys = [f"{name}/{budget}/absolute" for name in names]
        return [laws[key]["decision"] for key in keys if key in laws]

    single = decisions("unit", ("lines", *VECTORS))
    free = decisions("columns", VECTORS)
    group = decisions("unit", ("sasa",))
    if not decided or not single or not free or not group:
        status = "undecided"
    elif "polynomial" in single or "exponential" in group:
        status = "refuted"
    elif "undecided" in single or "undecided" in group:
        status = "undecided"
    else:
        status = "supported" if set(free) == {"exponential"} else "needs an assumption"
    said = [
        f"{text}: " + "; ".join(f"{LABELS[k[0]]} {verdict(laws['/'.join(k)])}" for k in keys if "/".join(k) in laws)
        for _, text, keys in PANELS
    ]
    text = "samples with unknown routing. " + ". ".join(said)
    return {"sentence": "samples", "status": status, "text": text}


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Samples against d, a panel for each comparison, with the atoms of A3 and the rows of D1."""
    from matplotlib.figure import Figure as Picture

    numbers = result["numbers"]
    picture = Picture(figsize=(17, 6.4), layout="constrained")
    axes = picture.subplots(1, len(PANELS), sharey=True)
    for ax, (panel, title, keys) in zip(axes, PANELS, strict=True):
        for key in keys:
            if here := series(numbers["runs"], key):
                _draw_series(ax, key[0], here, numbers["laws"]["/".join(key)])
        if panel == "unit":
            d, atoms = zip(*numbers["atoms"], strict=True)
            ax.fill_between(d, 1, atoms, color="0.8", alpha=0.6, lw=0, label="fewer rows than atoms needed (A3)")
        if panel != "relative":
            d, rows = zip(*numbers["exact"], strict=True)
            ax.plot(d, rows, color="black", lw=1, ls="-.", label=f"D1: {COUNT} d rows span the features")
        ax.set(yscale="log", xlabel="dimension d of a feature", title=title)
        ax.grid(alpha=0.25)
        ax.legend(fontsize=8, loc="upper right", framealpha=0.9)
    axes[0].set_ylabel("rows to the held-out target")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(1, high * (high / low) ** 0.45)  # room for the legends
    return {"figure": picture}


def _draw_series(ax: Any, name: str, runs: Sequence[dict[str, Any]], law: dict[str, Any]) -> None:
    colour, rng = COLOURS[name], np.random.default_rng(0)
    for off, marker in ((False, "o"), (True, "^")):
        here = [r for r in runs if r["censored"] == off]
        d = np.array([r["d"] for r in here]) + rng.uniform(-0.08, 0.08, len(here))
        ax.scatter(d, [r["n"] for r in here], s=20, marker=marker, alpha=0.6, color=colour, lw=0)
    text = f"{LABELS[name]}: {law['decision']}" + (f", {law['censored']} censored" if law["censored"] else "")
    if "lead" not in law:
        ax.plot([], [], color=colour, label=text)
        return
    d = np.linspace(law["dims"][0], law["dims"][1], 200)
    line = law[law["ahead"]]
    curve = np.exp(line["intercept"] + line["slope"] * (d if law["ahead"] == "exponential" else np.log(d)))
    law_text = f"$e^{{{line['slope']:.2f}d}}$" if law["ahead"] == "exponential" else f"$d^{{\\,{line['slope']:.2f}}}$"
    style = "-" if law["decision"] != "undecided" else "--"
    ax.plot(d, curve, color=colour, lw=1.6, ls=style, label=f"{text}, {law_text}")


figures.register("sample-growth")(
    Figure(
        name="sample-growth",
        title="Samples to a target with unknown routing: at one unit, at matched columns, relative",
        run=run,
        draw=draw,
        budget={"quick": 60.0, "standard": 10 * 60.0, "paper": 2 * 3600.0},
    )
)
