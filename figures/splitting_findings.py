"""What figure E2 says about the paper's sentences; dictionaries off their budget (`splitting_tables`) are left out."""

from typing import Any

from figures.splitting_recipe import SIGNED, VECTORS
from figures.splitting_tables import label, mean, off_budget

Models = dict[str, list[dict[str, Any]]]


def findings(numbers: dict[str, Any], decided: bool) -> list[dict[str, str]]:
    """The status is that of matched columns and energy "total"; the other cells are told. A quick run decides none."""
    return [_splitting(numbers, decided), _covering(numbers, decided), _collinear(numbers, decided)]


def _vectors(numbers: dict[str, Any], energy: str, budget: str) -> Models:
    """The vector dictionaries of a cell that meet its budget."""
    cell = numbers["results"][energy][budget]
    return {name: cell[name] for name in VECTORS if not off_budget(numbers, budget, name, cell[name])}


def _beyond(models: Models, dims: list[int]) -> list[bool]:
    """Whether each spends more than a basis on more than half of the d > 1 that have a feature counted.

    A basis is d atoms for codes of either sign, and 2 d for non-negative ones, which need both directions of each.
    """
    out = []
    for name, seeds in models.items():
        held = [(d, n) for d, n in zip(dims, mean(seeds, "excess_units"), strict=True) if n is not None and d > 1]
        basis = 1 if name in SIGNED else 2
        out.append(bool(held) and sum(n > basis * d for d, n in held) > len(held) / 2)
    return out


def _status(beyond: list[bool], exponential: list[bool]) -> str:
    """With a budget of d columns or more nothing forces splitting (A2 is void): without the exponential law the
    sentence needs an assumption, and no splitting refutes its second half."""
    if not beyond:
        return "undecided"
    return "supported" if all(beyond) and all(exponential) else "needs an assumption" if any(beyond) else "refuted"


def _splitting(numbers: dict[str, Any], decided: bool) -> dict[str, str]:
    """Supported: every vector dictionary spends more than a basis on most features, and growth is exponential."""
    dims, said = numbers["dims"], []
    status = "undecided"
    for energy, budgets in numbers["results"].items():
        for budget in budgets:
            models = _vectors(numbers, energy, budget)
            beyond = _beyond(models, dims)
            laws = numbers["laws"][energy][budget]
            exponential = [laws[name]["excess_units"]["decision"] == "exponential" for name in models]
            text = f"energy {energy}, budget {budget}"
            if budget in numbers["active"]:
                text += f" ({numbers['active'][budget]} active columns)"
            text += f": beyond a basis in {sum(beyond)} of {len(beyond)} vector dictionaries"
            if left := [label(name) for name in VECTORS if name not in models]:
                text += f" (off budget: {', '.join(left)})"
            text += f", growth decided exponential in {sum(exponential)}"
            if energy == "total":
                text += f" ({_largest(models, dims)})"
            said.append(text)
            if (energy, budget) == ("total", "columns"):
                status = _status(beyond, exponential)
    groups = mean(numbers["results"]["total"]["columns"]["sasa"], "excess_units")
    largest = [(d, n) for d, n in zip(dims, groups, strict=True) if n is not None][-1:]
    ours = ", ".join(f"{n:.1f} groups at d = {d}" for d, n in largest) or "none counted"
    stays, lengths = _by_length(numbers)
    text = (
        "units per feature by excess energy against a basis, d, or 2 d for codes that are not negative. "
        f"{'; '.join(said)}; SASA, matched columns: {ours}. {lengths}With at least d active columns nothing forces "
        "splitting: A2 and A3 need a budget below d"
    )
    return {"sentence": "splitting", "status": status if decided and stays else "undecided", "text": text}


def _largest(models: Models, dims: list[int]) -> str:
    """The count of every dictionary at the largest d that has one."""
    said = []
    for name, seeds in models.items():
        held = [(d, n) for d, n in zip(dims, mean(seeds, "excess_units"), strict=True) if n is not None]
        said += [f"{label(name)} {n:.0f} at d = {d}" for d, n in held[-1:]]
    return ", ".join(said) or "none counted"


def _by_length(numbers: dict[str, Any]) -> tuple[bool, str]:
    """Whether the first seed's status stays from the length of the tables on, and a sentence about all lengths."""
    trained = numbers["lengths"]
    if not trained:
        return True, ""
    on = _vectors(numbers, "total", "columns")
    said, statuses = [], []
    for length, steps in enumerate(trained["steps"]):
        beyond = _beyond({name: [trained["models"][name][length]] for name in on}, numbers["dims"])
        exponential = [trained["laws"][name][length]["decision"] == "exponential" for name in on]
        said.append(f"{steps:,} steps: beyond a basis in {sum(beyond)}, exponential in {sum(exponential)}")
        if steps >= trained["tables"]:
            statuses.append(_status(beyond, exponential))
    left = {name: [one["unexplained"] for one in trained["models"][name]] for name in on}
    most = max(on, key=lambda name: left[name][-2] / left[name][-1])
    last = " to ".join(f"{steps:,}" for steps in trained["steps"][-2:])
    stays = len(set(statuses)) == 1
    text = (
        f"Seed {trained['seed']} by length of training (energy total, matched columns), {len(on)} vector dictionaries, "
        f"{'; '.join(said)}; from {last} steps unexplained variance falls by "
        f"{1 - left[most][-1] / left[most][-2]:.0%} at most ({label(most)}); from the {trained['tables']:,} steps of "
        f"the tables on the conclusion {'stays' if stays else 'changes: ' + ', '.join(statuses)}. "
    )
    return stays, text


def _covering(numbers: dict[str, Any], decided: bool) -> dict[str, str]:
    """Over vector dictionaries, cases with k < d in which every point is covered: how often L > d."""
    counts = {}
    for budget in numbers["results"]["total"]:
        more = same = never = 0
        for seeds in _vectors(numbers, "total", budget).values():
            for case, (k, _) in enumerate(numbers["cases"]):
                held = [one["covering"][case] for one in seeds]
                for d, atoms, whole in zip(numbers["dims"], mean(held, "atoms"), mean(held, "whole"), strict=True):
                    if k < d:
                        covered = atoms is not None and whole == 1
                        never += not covered
                        more += covered and atoms > d
                        same += covered and atoms <= d
        counts[budget] = more, same, never
    told = [
        f"budget {budget}: more than d atoms in {more}, at most d in {same}, not covered by any number in {never}"
        for budget, (more, same, never) in counts.items()
    ]
    text = f"vector dictionaries, energy total, cases of k < d. {'; '.join(told)}"
    more, same, _ = (sum(count) for count in zip(*counts.values(), strict=True))
    status = "undecided" if not decided or more + same == 0 else "supported" if same == 0 else "needs an assumption"
    return {"sentence": "covering", "status": status, "text": text}


def _collinear(numbers: dict[str, Any], decided: bool) -> dict[str, str]:
    """Largest |cosine| of two atoms of one feature beside A5's, at the smallest and largest d that has one."""
    said, near = [], []
    for budget in numbers["results"]["total"]:
        here = []
        for name, seeds in _vectors(numbers, "total", budget).items():
            pairs = zip(numbers["dims"], mean(seeds, "cosine"), mean(seeds, "least_cosine"), strict=True)
            held = [(d, c, a) for d, c, a in pairs if c is not None and d > 1]
            ends = [f"{c:.2f} (A5: {a:.2f}) at d = {d}" for d, c, a in (held[0], held[-1])] if held else []
            here += [f"{label(name)} {', '.join(ends)}"] if held else []
            near += [c > 0.9 for _, c, _ in held if budget == "columns"]
        said.append(f"budget {budget}: {'; '.join(here) or 'none'}")
    text = f"energy total, largest |cosine| inside V_i of two atoms that carry it, and A5's bound. {'. '.join(said)}"
    status = "undecided" if not decided or not near else "supported" if all(near) else "needs an assumption"
    return {"sentence": "collinear", "status": status, "text": text}
