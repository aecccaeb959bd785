"""Absorption in planted hierarchies: who carries a parent once its child is on, against depth and dimension?

Worlds, dictionaries and their tuning stand in `planted_absorption_recipe`, the definition of absorption in
`sasa_theory.evaluation.absorption`; neither a probe nor a threshold on activations plays a part. What a reader should
know:

- A budget of as many units as features are on in the mean is too small for rows with more of them on. There a parent
  is dropped ("lost") or folded into the units of its children ("absorbed"); the planted dictionary with a Top-s gate
  can only drop. Read both shares together, and beside the explained variance.
- A group of rank d can hold one feature. Where it holds parts of a parent and of its child, the parent is not
  absorbed, for its own unit still carries it: that is "shared", C2's merging, and no virtue.
- TopK, AbsTopK, SASA and BSF turn on as many units in every row, though rows hold from none to many features; the
  others spend theirs where they are needed. What groups do shows against the former, not against BatchTopK.
- At d = 1 groups are single columns, and SASA is AbsTopK with a nuclear norm: what differs there is no merit of groups.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from figures.planted_absorption_recipe import (
    GROUPS,
    MODELS,
    VECTORS,
    Training,
    budget_of,
    cells_of,
    job,
    recipe,
    world_of,
)
from figures.planted_absorption_references import REFERENCES, TRUTH, references
from figures.registry import Context, Figure, figures, spread, table
from figures.splitting_draw import COLOURS, DASHES
from figures.splitting_recipe import description_bits
from figures.splitting_tables import label
from figures.tuning import late_change
from sasa_theory.evaluation import Absorption, Calculator, DeadShare, ExplainedVariance, Sparsity
from sasa_theory.evaluation import run as feed
from sasa_theory.models.base import SparseModel
from sasa_theory.models.normaliser import NormalisedModel
from sasa_theory.training import Run, fit_all
from synthetic import World
from synthetic.errors import Interrupted

#: whom the paper's sentence names
RIVALS = ("topk", "batchtopk", "matryoshka")
#: a smaller difference of absorbed shares is none
VISIBLE = 0.02
#: they define the budget of bits, so their runs are shown under it too
GROUPED = ("sasa", "bsf", TRUTH)
SHOWN = {"sasa, rank 2 d": "#56b4e9"}


@dataclass(frozen=True)
class Study:
    """What a profile runs: (dimension, budget, depths) cells, how long, and the rows each model is measured on."""

    cells: tuple[tuple[int, str, tuple[int, ...]], ...]
    training: Training
    rows: int


STUDIES = {
    "quick": Study(((1, "columns", (1, 3)),), Training(300, 256), 3000),
    "standard": Study(
        ((1, "columns", (1, 2, 3, 4)), (3, "columns", (1, 4)), (3, "bits", (4,))), Training(1000, 256), 6000
    ),
    "paper": Study(
        ((1, "columns", (1, 2, 3, 4)), (3, "columns", (1, 2, 3, 4)), (3, "bits", (1, 2, 3, 4))),
        Training(8000, 2048),
        50_000,
    ),
}
Measures = dict[str, Any]


def run(context: Context) -> dict[str, Any]:
    """Train every dictionary on every world and say what became of the parents (module docstring)."""
    study = STUDIES[context.profile]
    runs: list[Measures] = []
    for dim, budget, depths in study.cells:
        for depth in depths:
            world = world_of(depth, dim)
            cells = [(model, seed) for b, model in cells_of(dim) if b == budget for seed in context.seeds]
            jobs = [job(model, world, budget, study.training, seed) for model, seed in cells]
            trained = fit_all(world, jobs, out=context.out, device=context.device, deadline=context.deadline)
            where: Measures = {"dim": dim, "budget": budget, "depth": depth}
            for (name, seed), got in zip(cells, _measured(world, trained, study.rows, context), strict=True):
                runs.append({**where, "model": name, "seed": seed, **got})
            if budget == "columns":
                for name, model in references(world, context.seeds[0]).items():
                    runs.append({**where, "model": name, "seed": None, **measure(model, world, study.rows)})
    numbers = {"runs": runs, "panels": [[dim, budget, list(depths)] for dim, budget, depths in study.cells]}
    return {
        "numbers": numbers,
        "tables": tables(numbers),
        "findings": [finding(runs, decided=context.profile != "quick")],
        "settings": {
            "worlds": [world_of(depth, dim).spec() for dim, budget, depths in study.cells for depth in depths],
            "training": asdict(study.training),
            "rows": study.rows,
            "budgets": {f"d = {dim}, {b}": budget_of(world_of(1, dim), b) for dim, b, _ in study.cells},
            "recipe": {key: recipe()[key] for key in ("training", "seed", "chosen")},
        },
    }


def _measured(world: World, trained: Sequence[Run], rows: int, context: Context) -> Iterator[Measures]:
    """The measures of every run, in order; on a CPU several at a time."""
    if context.device.startswith("cuda"):
        yield from (_measure_run(world, one, rows, context.deadline) for one in trained)
        return
    from joblib import Parallel, delayed

    tasks = (delayed(_measure_run)(world, one, rows, context.deadline) for one in trained)
    yield from Parallel(n_jobs=-1)(tasks)


def _measure_run(world: World, trained: Run, rows: int, deadline: float | None) -> Measures:
    if deadline is not None and time.monotonic() > deadline:
        raise Interrupted("time is up; the same command goes on, its models are kept")
    got = measure(trained.model, world, rows)
    return {**got, "settled": late_change(trained), "run": trained.directory.name}


def measure(model: "SparseModel | NormalisedModel", world: World, rows: int) -> Measures:
    """Fit, budget and absorption of one model; by_children pools over absorbed pairs."""
    calculators: list[Calculator] = [
        ExplainedVariance(),
        Sparsity(),
        DeadShare(),
        Absorption(model.blocks()[1], world.support.parent),
    ]
    got = feed(model, world, rows, calculators)
    found, l0 = got["planted_absorption"], got["l0"]
    pairs = np.where(found.counted, found.rows_with_child * np.nan_to_num(found.absorbed), 0)
    by_children = float((pairs * np.nan_to_num(found.by_children)).sum() / pairs.sum()) if pairs.sum() else None
    return {
        "explained": got["explained_variance"].explained_variance,
        "l0": l0.l0,
        "bits": description_bits(model.n_units, l0.l0_units, l0.l0),
        "dead": got["dead"].dead_share,
        "absorbed": found.absorbed_share,
        "lost": found.lost_share,
        "units": found.mean_units,
        "units_with_child": found.mean_units_with_child,
        "shared": found.shared_share,
        "by_children": by_children,
        "counted": found.parents_counted / max(1, int((found.rows_with_child > 0).sum())),
    }


def of(runs: Sequence[Measures], model: str, dim: int, budget: str, depth: int) -> list[Measures]:
    """The seeds of one model in one cell; groups have the same runs under both budgets."""
    budget = "columns" if model in GROUPED else budget
    cell = (model, dim, budget, depth)
    return [r for r in runs if (r["model"], r["dim"], r["budget"], r["depth"]) == cell]


def values(seeds: Sequence[Measures], key: str) -> list[float]:
    """A measure over the seeds that have it."""
    return [one[key] for one in seeds if one.get(key) is not None]


def names(runs: Sequence[Measures], dim: int, budget: str) -> list[str]:
    """The models of one panel, in order."""
    own = [r["model"] for r in runs if (r["dim"], r["budget"]) == (dim, budget)]
    return list(dict.fromkeys([*own, *(GROUPED if budget == "bits" else ())]))


def tables(numbers: Measures) -> list[dict[str, Any]]:
    """For every dimension and budget: what became of the parents, and the fit."""
    out, runs = [], numbers["runs"]
    for dim, budget, depths in numbers["panels"]:
        shares, fits = [], []
        for model in names(runs, dim, budget):
            cells = [of(runs, model, dim, budget, depth) for depth in depths]
            shares.append([_name(model), *map(_parents, cells), _shown(cells[-1], "by_children", 2)])
            fits.append([_name(model), *map(_fit, cells)])
        columns = ["dictionary", *(f"depth {depth}" for depth in depths)]
        where = f"d = {dim}, budget {budget}"
        note = (
            "Of (row, parent) pairs with a child on: absorbed / lost; then main units on rows without a child -> units "
            "carrying 90 % on rows with one; then the share of parents that share a main unit with a child. Mean ± "
            "standard deviation over seeds. Last column: of absorbed pairs at the last depth, those carried by a "
            "child's main units. The paper gives no count by definition."
        )
        out.append(table(f"What becomes of parents: {where}", [*columns, "by children"], shares, note))
        note = (
            "Explained variance; L0 in columns; bits a row; share of parents counted (half of it carried without "
            "children); late change: unexplained variance at the end over that where the learning rate began to fall."
        )
        out.append(table(f"Fit: {where}", columns, fits, note))
    return out


def _shown(seeds: Sequence[Measures], key: str, digits: int) -> str | None:
    return spread(values(seeds, key), digits)


def _mean(seeds: Sequence[Measures], key: str, digits: int) -> str:
    held = values(seeds, key)
    return f"{np.mean(held):.{digits}f}" if held else "-"


def _parents(seeds: Sequence[Measures]) -> str | None:
    if not values(seeds, "absorbed"):
        return None
    units = " -> ".join(_mean(seeds, key, 1) for key in ("units", "units_with_child"))
    return f"{_shown(seeds, 'absorbed', 2)} / {_shown(seeds, 'lost', 2)}; {units}; {_mean(seeds, 'shared', 2)}"


def _fit(seeds: Sequence[Measures]) -> str:
    asked = (("explained", 3), ("l0", 1), ("bits", 0), ("counted", 2), ("settled", 2))
    return "; ".join(_mean(seeds, key, digits) for key, digits in asked)


def _name(model: str) -> str:
    return "Planted truth, Top-s" if model == TRUTH else label(model)


def finding(runs: Sequence[Measures], decided: bool) -> dict[str, str]:
    """SASA against the paper's three rivals at matched L0: every seed below every seed of the rival, or above."""
    below = above = same = 0
    said = []
    for dim in dict.fromkeys(r["dim"] for r in runs):
        depths = sorted({r["depth"] for r in runs if r["dim"] == dim})
        for depth in depths:
            ours = values(of(runs, "sasa", dim, "columns", depth), "absorbed")
            for rival in RIVALS:
                theirs = values(of(runs, rival, dim, "columns", depth), "absorbed")
                apart = ours and theirs and abs(float(np.mean(ours) - np.mean(theirs))) >= VISIBLE
                if apart and max(ours) < min(theirs):
                    below += 1
                elif apart and min(ours) > max(theirs):
                    above += 1
                else:
                    same += 1
        cells = {model: of(runs, model, dim, "columns", depths[-1]) for model in ("sasa", "abstopk", *RIVALS)}
        parts = [
            f"{label(model)} {_mean(cell, 'absorbed', 2)} absorbed, {_mean(cell, 'lost', 2)} lost, explained variance "
            f"{_mean(cell, 'explained', 2)}"
            for model, cell in cells.items()
        ]
        said.append(f"d = {dim}, depth {depths[-1]}: {'; '.join(parts)}")
    status = "undecided"
    if decided and below + above:
        status = "supported" if below > above + same else "refuted" if above > below + same else "needs an assumption"
    text = (
        f"planted hierarchies at matched L0, SASA against TopK, BatchTopK and Matryoshka over depths and dimensions: "
        f"absorbs less in {below} comparisons, more in {above}, no visible difference in {same}. {'. '.join(said)}"
    )
    return {"sentence": "absorption", "status": status, "text": text}


QUANTITIES = (
    ("absorbed", "absorbed: carried by other units"),
    ("lost", "lost: carried by none"),
    ("units", "main units, without a child (with: dotted)"),
    ("shared", "parents sharing a unit with a child"),
)


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Absorbed, lost, units and sharing against depth; a column for each dimension and budget."""
    from matplotlib.figure import Figure as Picture

    numbers = result["numbers"]
    panels, runs = numbers["panels"], numbers["runs"]
    picture = Picture(figsize=(4.2 + 3.6 * len(panels), 13), layout="constrained")
    axes = picture.subplots(len(QUANTITIES), len(panels), squeeze=False)
    for column, (dim, budget, depths) in enumerate(panels):
        for ax, (key, text) in zip(axes[:, column], QUANTITIES, strict=True):
            for model in names(runs, dim, budget):
                _line(ax, runs, model, (dim, budget, depths), key)
                if key == "units":
                    _line(ax, runs, model, (dim, budget, depths), "units_with_child")
            ax.set(title=text if column == 0 else "", xticks=depths, xlim=(0.7, 4.3))
            if key == "units":
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter("{x:g}")
            else:
                ax.set_ylim(-0.03, 1.03)
            ax.grid(alpha=0.25)
        axes[0, column].set_title(f"d = {dim}, budget {budget}\n{axes[0, column].get_title()}")
        axes[-1, column].set_xlabel("generations below the root")
    picture.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    picture.suptitle("A parent whose child is on: who carries it (bars: range over seeds)")
    return {"figure": picture}


def _line(ax: Any, runs: Sequence[Measures], model: str, panel: tuple[int, str, list[int]], key: str) -> None:
    dim, budget, depths = panel
    held = [(depth, v) for depth in depths if (v := values(of(runs, model, dim, budget, depth), key))]
    if not held:
        return
    shift = 0.02 * (MODELS.index(model) - len(MODELS) / 2) if model in MODELS else 0
    mean = np.array([np.mean(v) for _, v in held])
    ends = [[m - min(v), max(v) - m] for m, (_, v) in zip(mean, held, strict=True)]
    style: dict[str, Any] = {"color": SHOWN.get(model) or COLOURS[model], "lw": 2 if model in GROUPS else 1.2}
    style |= {"ls": ":"} if key == "units_with_child" else {"ls": DASHES.get(model, "-")}
    marker = "" if model in REFERENCES else "o" if model in VECTORS else "s"
    x = [depth + shift for depth, _ in held]
    bars = np.maximum(np.array(ends).T, 0)  # a mean can leave its range by a rounding
    ax.errorbar(x, mean, bars, marker=marker, ms=4, elinewidth=0.7, label=_name(model), **style)


figures.register("planted-absorption")(
    Figure(
        name="planted-absorption",
        title="Absorption in planted hierarchies, by definition, against depth and dimension",
        run=run,
        draw=draw,
        budget={"quick": 60.0, "standard": 10 * 60.0, "paper": 3 * 3600.0},
        needs="" if recipe.is_made() else "its tuning (python -m figures.planted_absorption_recipe)",
    )
)
