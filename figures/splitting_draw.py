"""The pictures of figure E2: counts, coverings and recovered energy against d, with part A's bounds."""

from typing import Any

from figures.splitting_recipe import BLOCKS, SASAS, VECTORS
from figures.splitting_tables import REFERENCES, label, mean, off_budget, shown

COLOURS = {
    "relu": "#cc79a7",
    "topk": "#d55e00",
    "abstopk": "#e69f00",
    "batchtopk": "#8c564b",
    "jumprelu": "#b8860b",
    "gated": "#9467bd",
    "matryoshka": "#7f7f7f",
    **dict(zip(SASAS, ("#0072b2", "#56b4e9", "#1f4e79", "#8fc1e3", "#7b3294"), strict=True)),
    **dict(zip(BLOCKS, ("#009e73", "#2ca02c", "#98c379"), strict=True)),
    "planted truth": "#000000",
    "PCA": "#444444",
    "K-lines": "#666666",
    "K-subspaces": "#222222",
}
MARKERS = dict.fromkeys(VECTORS, "o") | dict.fromkeys((*SASAS, *BLOCKS), "s")
DASHES = {"planted truth": "-", "PCA": ":", "K-lines": "--", "K-subspaces": "-."}


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """The budget of matched columns as "figure", the others under their names, the covering numbers as "covering"."""
    numbers = result["numbers"]
    pictures = {}
    for budget in dict.fromkeys(budget for budgets in numbers["results"].values() for budget in budgets):
        pictures["figure" if budget == "columns" else f"budget-{budget}"] = _picture(numbers, budget)
    return {**pictures, "covering": _coverings(numbers)}


def _picture(numbers: dict[str, Any], budget: str) -> Any:
    """A column per energy; rows: units by the published rule, by excess energy, and recovered energy."""
    from matplotlib.figure import Figure as Picture

    energies = [energy for energy, budgets in numbers["results"].items() if budget in budgets]
    picture = Picture(figsize=(7.2 * len(energies), 13.5), layout="constrained")
    axes = picture.subplots(3, len(energies), sharex=True, squeeze=False)
    named: dict[str, Any] = {}
    for column, energy in enumerate(energies):
        models = shown(numbers, energy, budget)
        off = {name for name, seeds in models.items() if off_budget(numbers, budget, name, seeds)}
        counts, excess, recovered = axes[:, column]
        for ax, quantity in ((counts, "units"), (excess, "excess_units")):
            for name, seeds in models.items():
                _line(ax, numbers["dims"], mean(seeds, quantity), name, faint=name in off)
            for factor, text in ((1, "a basis, d"), (2, "a basis and its opposite, 2 d")):
                bases = [factor * d for d in numbers["dims"]]
                ax.plot(numbers["dims"], bases, color="0.3", lw=5, alpha=0.3 / factor, label=text)
            ax.set(yscale="log")
            ax.yaxis.set_major_formatter("{x:g}")
        for name, seeds in models.items():
            _line(recovered, numbers["dims"], mean(seeds, "alone"), name, faint=name in off)
        if budget in numbers["ceilings"]:
            ceilings = numbers["ceilings"][budget]
            recovered.fill_between(numbers["dims"], ceilings, 1.02, color="0.75", alpha=0.6, lw=0, label="barred by A3")
        counts.set_title(f"energy {energy}: units per feature, published rule", fontsize=11)
        excess.set_title("units per feature, by excess energy", fontsize=11)
        recovered.set_title("energy recovered of a lone feature", fontsize=11)
        recovered.set(xlabel="dimension d of the feature", ylim=(-0.05, 1.02))
        for ax in axes[:, column]:
            ax.set_xscale("log", base=2)
            ax.set_xticks(numbers["dims"], [str(d) for d in numbers["dims"]])
            ax.minorticks_off()
            ax.grid(alpha=0.25)
            named |= {text: line for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    place = {"loc": "outside lower center", "ncols": 3 * len(energies), "fontsize": 9, "frameon": False}
    picture.legend(named.values(), named.keys(), **place)
    active = numbers["active"].get(budget)
    said = f"Budget: {budget}" + (f", {active} active columns of {numbers['columns']:,}" if active else "")
    picture.suptitle(f"{said} (dotted: off budget)")
    return picture


def _line(ax: Any, dims: list[int], values: list[float | None], name: str, faint: bool = False) -> None:
    held = [(d, v) for d, v in zip(dims, values, strict=True) if v is not None and v > -10]
    style = {"ls": DASHES[name], "lw": 1.8} if name in DASHES else {"marker": MARKERS[name], "ms": 4, "lw": 1.2}
    style |= {"ls": ":"} if faint else {}
    ax.plot([d for d, _ in held], [v for _, v in held], color=COLOURS[name], alpha=0.9, label=label(name), **style)


def _coverings(numbers: dict[str, Any]) -> Any:
    """A panel per (k, eps), matched columns, energy "total": L where all points are covered, and A2's floor."""
    from matplotlib.figure import Figure as Picture

    cases = numbers["cases"]
    models = {**numbers["results"]["total"]["columns"], **numbers[REFERENCES]["total"]}
    rows = (len(cases) + 3) // 4
    picture = Picture(figsize=(17, 4.6 * rows), layout="constrained")
    axes = picture.subplots(rows, min(4, len(cases)), squeeze=False).flat
    named: dict[str, Any] = {}
    for case, ((k, eps), ax) in enumerate(zip(cases, axes, strict=False)):
        floor = numbers["floors"][case]
        ax.fill_between(numbers["dims"], 0.8, floor, color="0.75", alpha=0.6, lw=0, label="barred by A2")
        for name, seeds in models.items():
            held = [one["covering"][case] for one in seeds]
            whole = mean(held, "whole")
            atoms = [a if w == 1 else None for a, w in zip(mean(held, "atoms"), whole, strict=True)]
            _line(ax, numbers["dims"], atoms, name)
        ax.set(yscale="log", ylim=(0.8, 3 * numbers["columns"]), title=f"k = {k}, eps = {eps:g}")
        ax.set_xscale("log", base=2)
        ax.set_xticks(numbers["dims"], [str(d) for d in numbers["dims"]])
        ax.minorticks_off()
        ax.set(xlabel="dimension d of the feature", ylabel="covering number")
        named |= {text: line for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    picture.legend(named.values(), named.keys(), loc="outside lower center", ncols=7, fontsize=9, frameon=False)
    picture.suptitle("Covering numbers of trained dictionaries (a line ends where some direction cannot be covered)")
    return picture
