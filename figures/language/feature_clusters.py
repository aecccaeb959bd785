"""Splitting on real features: are a dictionary's directions redundant, and over how many units is a concept spread?

Every dictionary at the middle L0, with the same number of columns. A unit's directions are the principal directions of
what it contributes on held-out rows (for a group that is the same in every basis of its columns, C5; directions it
never uses are left out); they are clustered by angle, and a cluster's size is set against its dimensions
(`evaluation.clusters`), beside as many random directions.

The units that carry 50 % and 90 % of a concept's firing are counted on the words of nine concepts in held-out text,
beside random tokens of the same documents: in units, and in columns (a group counts r).
"""

import logging
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from figures.language.concepts import FEWEST, SIZES
from figures.language.concepts_draw import COLOURS, LABELS
from figures.language.configuration import ARCHITECTURES
from figures.language.held_out import HeldOut, held_out, with_words
from figures.language.study import NEEDS, OPTIONS, Study, decided
from figures.registry import Context, Figure, figures, table
from sasa_theory.concepts import CONCEPTS, concept
from sasa_theory.concepts.matching import match
from sasa_theory.concepts.scores import unit_scores
from sasa_theory.evaluation.clusters import FiringMass, decoder_clusters
from sasa_theory.evaluation.planted import decoder_grams
from sasa_theory.evaluation.subspaces import CodeMoments, contribution_directions
from sasa_theory.resampling import bootstrap

logger = logging.getLogger(__name__)

#: directions per cluster, on average
MEAN_SIZES = (4, 8, 16)
SHARES = (0.5, 0.9)
#: a direction is used when it carries this share of its unit's energy
USED = 0.01


def run(context: Context) -> dict[str, Any]:
    """Cluster the directions of every dictionary and count the units behind every concept."""
    study = Study.open(context)
    made = study.configuration
    rng = np.random.default_rng(context.seeds[0])
    concepts = [concept(name) for name in CONCEPTS]
    trained = iter(study.runs([(name, made.middle_l0, seed) for name in ARCHITECTURES for seed in made.seeds]))
    text = held_out(study, made.evaluation_tokens)
    if more := with_words(study, concepts, SIZES[context.profile][0], text):
        text = text.and_then(more)
    tokens = concept_tokens(text, study.language_model.tokenizer, rng)
    clusters: list[dict[str, Any]] = []
    masses: list[dict[str, Any]] = []
    for name in ARCHITECTURES:
        for seed in made.seeds:
            model = next(trained).model
            of = {"architecture": name, "seed": seed}
            clusters += [of | row for row in _clusters(model, text, context.device, rng)]
            masses += [of | row for row in _masses(model, text, tokens, context.device, rng)]
            logger.info("feature-clusters: %s, seed %d measured", name, seed)
    numbers = {
        "architectures": list(ARCHITECTURES),
        "concepts": [name for name in CONCEPTS if name in tokens],
        "rank": made.group_rank,
        "columns": made.columns,
        "l0": made.middle_l0,
        "rows": len(text),
        "tokens": {name: int(on.sum()) for name, (on, _) in tokens.items()},
        "clusters": clusters,
        "masses": masses,
    }
    return {
        "numbers": numbers,
        "tables": _tables(numbers),
        "findings": decided(_findings(numbers), context),
        "settings": study.settings(),
    }


def concept_tokens(text: HeldOut, tokenizer: Any, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Concept -> its tokens, and as many random tokens that are none of its words; rare concepts are left out."""
    out = {}
    for name in CONCEPTS:
        got = match(concept(name), tokenizer, text.tokens, text.contexts, text.positions)
        free = np.flatnonzero(~got.positive & ~got.ignored)
        count = int(got.positive.sum())
        if 2 * FEWEST <= count <= len(free) // 2:
            random = np.zeros(len(text), bool)
            random[rng.choice(free, count, replace=False)] = True
            out[name] = got.positive, random
    return out


def _clusters(model: Any, text: HeldOut, device: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Redundancy of the directions in use, for every mean cluster size, beside random ones."""
    moments = CodeMoments(model.n_units, model.rank, device)
    with torch.no_grad():
        for part in text.parts(device):
            moments.update(model.encode(part))
        found = contribution_directions(model.blocks()[1], moments.value())
    used = found.energies > USED * found.energies.sum(dim=1, keepdim=True)
    rows = found.rows[used].cpu().numpy()
    out = []
    for size in MEAN_SIZES:
        if len(rows) < 2 * size:
            continue
        ours = decoder_clusters(rows, size, rng)
        random = decoder_clusters(rng.standard_normal(rows.shape), size, rng)
        out.append(
            {
                "mean_size": size,
                "directions": len(rows),
                "ratio": ours.ratio,
                "largest": ours.largest,
                "random": random.ratio,
                "random_largest": random.largest,
            }
        )
    return out


def _masses(
    model: Any, text: HeldOut, tokens: dict[str, tuple[np.ndarray, np.ndarray]], device: str, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Units that carry each share of the firing on a concept, of its excess, and of the firing on random tokens."""
    grams = decoder_grams(model.blocks()[1])

    def length(values: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        p = values.double()
        return torch.einsum("pa,pab,pb->p", p, grams[unit], p).clamp_min(0).sqrt()

    scores = unit_scores(model, text.parts(device), length)
    out = []
    for name, (on, random) in tokens.items():
        for kind, (here, there, excess) in {
            "excess": (on, ~on & ~random, True),
            "all": (on, ~on & ~random, False),
            "random": (random, ~on & ~random, True),
        }.items():
            mass = FiringMass(scores, here, there, text.documents)
            for share in SHARES:
                units, error = mass.units(share, rng, excess=excess)
                out.append(
                    {
                        "concept": name,
                        "kind": kind,
                        "share": share,
                        "units": units,
                        "error": error if np.isfinite(error) else None,
                    }
                )
    return out


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _of(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _error(rows: list[dict[str, Any]], key: str = "units") -> float | None:
    """Standard error of the mean over seeds: over documents, and over seeds where there are several."""
    documents = [row["error"] for row in rows if row.get("error") is not None]
    values = [row[key] for row in rows]
    within = float(np.mean(np.square(documents))) if documents else 0.0
    between = float(np.var(values, ddof=1) / len(values)) if len(values) > 1 else 0.0
    return float(np.sqrt(within + between)) if documents or len(values) > 1 else None


def _tables(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    rank = numbers["rank"]
    redundancy = []
    for name in numbers["architectures"]:
        for size in MEAN_SIZES:
            rows = _of(numbers["clusters"], architecture=name, mean_size=size)
            if rows:
                seeds = [row["ratio"] for row in rows]
                redundancy.append(
                    [
                        LABELS[name],
                        size,
                        _mean(rows, "directions"),
                        _mean(rows, "ratio"),
                        f"{min(seeds):.3f} to {max(seeds):.3f}",
                        _mean(rows, "random"),
                        _mean(rows, "largest"),
                        _mean(rows, "random_largest"),
                    ]
                )
    spread = []
    for name in numbers["concepts"]:
        for architecture in numbers["architectures"]:
            for kind in ("excess", "all", "random"):
                cells = []
                for share in SHARES:
                    rows = _of(numbers["masses"], architecture=architecture, concept=name, kind=kind, share=share)
                    units = _mean(rows, "units")
                    cells += [units, _error(rows), units * (rank if architecture == "sasa" else 1)]
                spread.append([name, LABELS[architecture], kind, *cells])
    head = [f"{text} for {share:.0%}" for share in SHARES for text in ("units", "standard error", "columns")]
    return [
        table(
            "Redundancy of decoder directions",
            [
                "dictionary",
                "directions per cluster",
                "directions in use",
                "size over dimension (lower better)",
                "seeds",
                "random directions",
                "most redundant tenth",
                "its random directions",
            ],
            redundancy,
            f"{numbers['columns']} columns, L0 {numbers['l0']}; clusters by K-lines, dimensions for 80 % of the "
            "variance about the origin. Random: as many directions, clustered alike.",
        ),
        table(
            "Units behind a concept (fewer: less spread)",
            ["concept", "dictionary", "firing", *head],
            spread,
            "all: what units contribute at the concept's tokens; excess: above their mean at other tokens; random: the "
            "excess at as many random tokens, which is what chance gives. Standard errors over documents and seeds. "
            f"{numbers['rows']:,} held-out tokens; words of each: "
            + ", ".join(f"{name} {count}" for name, count in numbers["tokens"].items())
            + ".",
        ),
    ]


def _findings(numbers: dict[str, Any]) -> list[dict[str, str]]:
    """Are directions of vector dictionaries more redundant, and concepts spread over more columns, than SASA's?"""
    vectors = [name for name in numbers["architectures"] if name != "sasa"]
    size = MEAN_SIZES[1]
    ratio = {
        name: [row["ratio"] / row["random"] for row in _of(numbers["clusters"], architecture=name, mean_size=size)]
        for name in numbers["architectures"]
    }
    if not numbers["concepts"] or not all(ratio.values()):
        return [{"sentence": "real-splitting", "status": "undecided", "text": "too little text to measure anything"}]
    counts = {name: _units(numbers, name) for name in numbers["architectures"]}
    units = {name: float(np.exp(np.log(count).mean())) for name, count in counts.items()}
    least = min(vectors, key=lambda name: units[name])
    lowest = min(vectors, key=lambda name: np.mean(ratio[name]))
    less_redundant = max(ratio["sasa"]) < min(ratio[lowest])
    fewer_units, fewer_columns = (factor * units["sasa"] < units[least] for factor in (1, numbers["rank"]))
    logs = np.log(counts["sasa"] / counts[least])[:, None]
    low, high = np.exp(
        bootstrap(
            np.hstack([logs, np.ones_like(logs)]), lambda drawn: drawn[:, 0] / drawn[:, 1], np.random.default_rng(0)
        )
    )
    status = "undecided"
    if less_redundant and fewer_units:
        status = "supported" if fewer_columns else "needs an assumption"
    elif not less_redundant and not fewer_units:
        status = "refuted"
    text = (
        f"directions per dimension over those of random directions: SASA {np.mean(ratio['sasa']):.2f}, lowest vector "
        f"dictionary {LABELS[lowest]} {np.mean(ratio[lowest]):.2f}; half of a concept's firing takes "
        f"{units['sasa']:.1f} groups ({numbers['rank'] * units['sasa']:.1f} columns) of SASA and {units[least]:.1f} "
        f"latents of {LABELS[least]} (geometric mean of {len(numbers['concepts'])} concepts; groups for a latent "
        f"{units['sasa'] / units[least]:.2f} [{low:.2f}, {high:.2f}], concepts drawn again)"
    )
    return [{"sentence": "real-splitting", "status": status, "text": text}]


def _units(numbers: dict[str, Any], architecture: str) -> "Float[np.ndarray, ' concepts']":
    """The units that carry half of each concept's excess firing, one at least."""
    counts = [
        _mean(_of(numbers["masses"], architecture=architecture, concept=name, kind="excess", share=0.5), "units")
        for name in numbers["concepts"]
    ]
    return np.maximum(counts, 1.0)


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Redundancy against cluster size; units and columns that carry half of each concept's firing."""
    from matplotlib.figure import Figure as Picture
    from matplotlib.ticker import LogLocator

    numbers = result["numbers"]
    picture = Picture(figsize=(15, 5.6), layout="constrained")
    first, *others = picture.subplots(1, 3, width_ratios=(1, 1.3, 1.3))
    for name in numbers["architectures"]:
        rows = [_of(numbers["clusters"], architecture=name, mean_size=size) for size in MEAN_SIZES]
        held = [(size, row) for size, row in zip(MEAN_SIZES, rows, strict=True) if row]
        if not held:
            continue
        style = {"color": COLOURS[name], "marker": "D" if name == "sasa" else "o", "label": LABELS[name]}
        first.plot([size for size, _ in held], [_mean(row, "ratio") for _, row in held], **style)
        first.plot([s for s, _ in held], [_mean(row, "random") for _, row in held], color=COLOURS[name], ls=":", lw=1)
    first.set(xscale="log", xlabel="directions per cluster", ylabel="directions per dimension (dotted: random ones)")
    first.set_xticks(MEAN_SIZES, [str(size) for size in MEAN_SIZES])
    first.minorticks_off()
    first.legend(frameon=False, fontsize=9)
    names = numbers["concepts"]
    step = 0.8 / len(numbers["architectures"])
    for ax, unit in zip(others, ("units", "columns"), strict=True):
        for j, name in enumerate(numbers["architectures"]):
            factor = numbers["rank"] if unit == "columns" and name == "sasa" else 1
            marker = "D" if name == "sasa" else "o"
            for i, of in enumerate(names):
                y = i - 0.4 + (j + 0.5) * step
                found = _of(numbers["masses"], architecture=name, concept=of, kind="excess", share=0.5)
                value, error = factor * _mean(found, "units"), _error(found)
                if error:
                    low = max(value - 1.96 * factor * error, 0.5)
                    ax.plot([low, value + 1.96 * factor * error], [y, y], color=COLOURS[name], lw=1, alpha=0.6)
                ax.plot(value, y, marker, color=COLOURS[name], ms=6)
        ax.set(xscale="log", xlabel=f"{unit} that carry half of the firing above other tokens'")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(axis="x", color="0.9")
    return {"figure": picture}


figures.register("feature-clusters")(
    Figure(
        name="feature-clusters",
        title="Splitting on real features: redundant directions, units behind a concept",
        run=run,
        draw=draw,
        budget={"quick": 120.0, "standard": 30 * 60.0, "paper": 60 * 60.0},
        options=OPTIONS,
        needs=NEEDS,
    )
)
