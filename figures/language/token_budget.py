"""Half the tokens: how many tokens SASA and the vector dictionaries need for the same reconstruction.

Each dictionary is trained anew, schedule and all, on 1/8, 1/4, 1/2 and all of the study's tokens (a curve read off one
run would show its learning rate's decay), at the middle L0. The tokens with which SASA reaches a baseline's final
explained variance, and a baseline SASA's, are read off a straight line in the logarithm of the tokens; where a curve
never gets there, the ratio is a bound. The interval draws seeds and blocks of held-out rows again.
"""

from typing import Any

import numpy as np

from figures.language.blocks import BLOCK, BlockErrors, whole_blocks
from figures.language.configuration import BASELINES
from figures.language.study import NEEDS, OPTIONS, Study, decided
from figures.registry import Context, Figure, figures, table
from sasa_theory.evaluation import ExplainedVariance
from sasa_theory.evaluation import run as measure

PARTS = (8, 4, 2, 1)
NAMES = (*BASELINES, "sasa")
RESAMPLES = 1000


def run(context: Context) -> dict[str, Any]:
    """Train on every part of the tokens, and find where the curves meet."""
    study = Study.open(context)
    made = study.configuration
    tokens = [made.train_tokens // part for part in PARTS]
    keys = [(name, n, seed) for name in NAMES for n in tokens for seed in made.seeds]
    jobs = [study.job(name, made.middle_l0, seed, tokens=n) for name, n, seed in keys]
    errors: dict[tuple[str, int, int], np.ndarray] = {}
    variance = 0.0
    for key, one in zip(keys, study.fit(jobs), strict=True):
        got = measure(
            one.model, study.data, whole_blocks(study), [ExplainedVariance(), BlockErrors()], batch_size=BLOCK
        )
        errors[key] = np.array(got["block_errors"])
        variance = got["explained_variance"].variance * got["explained_variance"].rows
    rng = np.random.default_rng(context.seeds[0])
    curves = {name: curve(errors, variance, name, tokens, list(made.seeds), None) for name in NAMES}
    ratios = {name: _ratio(errors, variance, name, tokens, list(made.seeds), rng) for name in BASELINES}
    numbers = {
        "model": made.model,
        "hook": made.hook,
        "l0": made.middle_l0,
        "tokens": tokens,
        "seeds": [
            {
                "architecture": name,
                "tokens": n,
                "seed": seed,
                "explained_variance": 1 - errors[name, n, seed].sum() / variance,
            }
            for name, n, seed in keys
        ],
        "curves": {name: values.tolist() for name, values in curves.items()},
        "ratios": ratios,
    }
    return {
        "numbers": numbers,
        "tables": _tables(numbers),
        "findings": decided(findings(numbers), context),
        "settings": study.settings(),
    }


def curve(
    errors: dict[tuple[str, int, int], np.ndarray],
    variance: float,
    name: str,
    tokens: list[int],
    seeds: list[int],
    blocks: np.ndarray | None,
) -> np.ndarray:
    """Explained variance against tokens, mean over `seeds` (drawn again perhaps) on blocks counted `blocks` times."""
    out = []
    for n in tokens:
        held = np.mean([errors[name, n, seed] for seed in seeds], axis=0)
        out.append(1 - float(held.sum() if blocks is None else held @ blocks) / variance)
    return np.array(out)


def tokens_to(target: float, tokens: list[int], values: np.ndarray) -> tuple[float, str]:
    """Tokens at which a rising curve reaches `target`: a straight line in log tokens; beyond its ends a bound.

    The second says which: "" for a value, "<" or ">" for a bound.
    """
    best = np.maximum.accumulate(values)
    if target <= best[0]:
        return float(tokens[0]), "<"
    if target > best[-1]:
        return float(tokens[-1]), ">"
    i = int(np.searchsorted(best, target))
    share = (target - best[i - 1]) / (best[i] - best[i - 1])
    return float(np.exp(np.log(tokens[i - 1]) + share * np.log(tokens[i] / tokens[i - 1]))), ""


def _ratio(
    errors: dict[tuple[str, int, int], np.ndarray],
    variance: float,
    name: str,
    tokens: list[int],
    seeds: list[int],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Tokens SASA needs for the baseline's final value, as a share of all; and the baseline for SASA's."""

    def once(ours: list[int], theirs: list[int], blocks: np.ndarray | None) -> list[tuple[float, str]]:
        sasa = curve(errors, variance, "sasa", tokens, ours, blocks)
        other = curve(errors, variance, name, tokens, theirs, blocks)
        found = tokens_to(other[-1], tokens, sasa), tokens_to(sasa[-1], tokens, other)
        return [(value / tokens[-1], bound) for value, bound in found]

    n_blocks = len(errors["sasa", tokens[-1], seeds[0]])
    draws = []
    for _ in range(RESAMPLES):
        ours, theirs = ([seeds[i] for i in rng.integers(len(seeds), size=len(seeds))] for _ in range(2))
        blocks = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks)).astype(float)
        draws.append([value for value, _ in once(ours, theirs, blocks)])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return {
        key: {"value": value, "bound": bound, "interval": [float(low[i]), float(high[i])]}
        for i, (key, (value, bound)) in enumerate(zip(("sasa", "other"), once(seeds, seeds, None), strict=True))
    }


def _tables(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    from figures.language.concepts_draw import LABELS

    rows = [[LABELS[name], *(round(value, 4) for value in values)] for name, values in numbers["curves"].items()]
    ratios = [
        [LABELS[name], _shown(of["sasa"]), _range(of["sasa"]), _shown(of["other"]), _range(of["other"]), ".5 of 300 M"]
        for name, of in numbers["ratios"].items()
    ]
    return [
        table(
            "Explained variance against tokens",
            ["dictionary", *(f"{n:,} tokens" for n in numbers["tokens"])],
            rows,
            f"L0 {numbers['l0']}, mean over seeds; every entry is a run of its own.",
        ),
        table(
            "Tokens for the other's final value, as a share of all",
            ["baseline", "SASA for the baseline's", "95 %", "the baseline for SASA's", "95 %", "published (SASA)"],
            ratios,
            "Below 1: fewer tokens. A bound where the curve does not reach the value, or has passed it at the start.",
        ),
    ]


def _shown(one: dict[str, Any]) -> str:
    return f"{one['bound']}{' ' if one['bound'] else ''}{one['value']:.2f}"


def _range(one: dict[str, Any]) -> str:
    return f"{one['interval'][0]:.2f} to {one['interval'][1]:.2f}"


def findings(numbers: dict[str, Any]) -> list[dict[str, str]]:
    """Does SASA reach the baselines' final reconstruction with half the tokens?"""
    shares = [of["sasa"] for of in numbers["ratios"].values()]
    if all(one["bound"] != ">" and one["interval"][1] <= 0.5 for one in shares):
        status = "supported"
    elif all(one["bound"] == ">" or one["interval"][0] > 0.5 for one in shares):
        status = "refuted"
    else:
        status = "undecided"
    told = ", ".join(f"{name} {_shown(of['sasa'])} [{_range(of['sasa'])}]" for name, of in numbers["ratios"].items())
    text = (
        f"{numbers['model']}, L0 {numbers['l0']}: share of the tokens with which SASA reaches the final value of {told}"
    )
    return [{"sentence": "half-tokens", "status": status, "text": text}]


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Explained variance against tokens, a line for each dictionary and a point for each seed."""
    from matplotlib.figure import Figure as Picture

    from figures.language.concepts_draw import COLOURS, LABELS

    numbers = result["numbers"]
    picture = Picture(figsize=(8, 5.4), layout="constrained")
    ax = picture.subplots()
    for name, values in numbers["curves"].items():
        ax.plot(
            numbers["tokens"], values, "-", color=COLOURS[name], label=LABELS[name], lw=2.4 if name == "sasa" else 1.5
        )
        mine = [one for one in numbers["seeds"] if one["architecture"] == name]
        ax.plot([o["tokens"] for o in mine], [o["explained_variance"] for o in mine], "o", color=COLOURS[name], ms=4)
    ax.set(xscale="log", xlabel="training tokens", ylabel="explained variance of held-out rows (higher better)")
    ax.set_xticks(numbers["tokens"], [f"{n / 1000:,.0f}k" for n in numbers["tokens"]])
    ax.minorticks_off()
    ax.grid(alpha=0.2)
    ax.legend(frameon=False)
    ax.set_title(f"{numbers['model']}, {numbers['hook']}, L0 {numbers['l0']}")
    return {"figure": picture}


figures.register("token-budget")(
    Figure(
        name="token-budget",
        title="Half the tokens: reconstruction against training tokens",
        run=run,
        draw=draw,
        budget={"quick": 5 * 60.0, "standard": 3600.0, "paper": 24 * 3600.0},
        options=OPTIONS,
        needs=NEEDS,
    )
)
