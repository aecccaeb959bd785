"""E4: six dictionaries of one width at matched L0 on a language model, and at matched bits.

Trained over one pass of the same rows, in the same order, at learning rates chosen alike (study.py). Measured on
held-out rows: explained variance, cosine, L0, silent units, ranks, the decoder's mean largest cosine, and the bits of
a code (evaluation/description.py), because r s columns in s groups say less than r s free columns. With the
reconstruction in place of the hidden states: CE and KL scores (evaluation/splice.py).

SASA is compared with the best of the paper's three baselines (TopK, BatchTopK, Matryoshka) at each L0, and at SASA's
number of bits with what that dictionary reaches there (a straight line between its measured points in bits). Intervals:
blocks of held-out rows (or contexts) drawn again, seeds averaged; the seeds' spread stands beside them.
"""

import itertools
import math
from typing import Any

import numpy as np
import torch

from figures.language.blocks import BLOCK, BlockErrors, explained_more, whole_blocks, with_interval
from figures.language.configuration import ARCHITECTURES, BASELINES
from figures.language.matched_budget_draw import draw, tables
from figures.language.study import NEEDS, OPTIONS, Study, decided
from figures.registry import Context, Figure, figures
from sasa_theory.evaluation import Calculator, Cosine, DeadShare, ExplainedVariance, Sparsity
from sasa_theory.evaluation import run as measure
from sasa_theory.evaluation.description import description_length
from sasa_theory.evaluation.splice import SpliceResult, splice_scores
from sasa_theory.evaluation.subspaces import UnitRanks, decoder_cosine
from sasa_theory.models.base import SparseModel
from sasa_theory.models.normaliser import NormalisedModel
from sasa_theory.resampling import bootstrap

#: rows whose bits are counted
DESCRIBED = 4096
#: explained variance and CE score within this count as equal
MARGIN = 0.01


def run(context: Context) -> dict[str, Any]:
    """Train, measure, splice in (module docstring)."""
    study = Study.open(context)
    made = study.configuration
    wanted = [(name, l0, seed) for seed in made.seeds for l0 in made.l0 for name in ARCHITECTURES]
    trained = dict(zip(wanted, study.runs(wanted), strict=True))
    measured = {key: of_model(one.model, study) for key, one in trained.items()}
    spliced = splice_scores(
        study.language_model,
        made.hook,
        study.eval_contexts(made.spliced_tokens),
        {" ".join(map(str, key)): one.model for key, one in trained.items()},
        ordinary=study.ordinary(),
    )
    scores = dict(zip(trained, spliced.values(), strict=True))
    for key, numbers in measured.items():
        got = scores[key]
        numbers |= {
            "ce": got.ce_score,
            "ce_interval": got.ce_interval,
            "kl": got.kl_score,
            "kl_interval": got.kl_interval,
            "loss": got.loss_spliced,
        }
    one = next(iter(scores.values()))
    rng = np.random.default_rng(context.seeds[0])
    results = [
        {"architecture": name, "l0": l0, "seed": seed, "seconds": trained[name, l0, seed].seconds, **numbers}
        for (name, l0, seed), numbers in measured.items()
    ]
    numbers = {
        "model": made.model,
        "hook": made.hook,
        "l0": list(made.l0),
        "results": results,
        "gaps": [gap(measured, study, l0, rng) | ce_gap(scores, study, l0, rng) for l0 in made.l0],
        "clean": one.loss_clean,
        "zero": one.loss_zero,
        "mean": one.loss_mean,
        "predictions": one.predictions,
        "left": one.left,
        "tuning": {
            name: {str(rate): got for rate, got in tried.items() if math.isfinite(got["explained_variance"])}
            for name, tried in study.tuning.items()
        },
        "rates": study.rates,
    }
    for entry in results:
        del entry["block_errors"]
    return {
        "numbers": numbers,
        "tables": tables(numbers),
        "findings": decided(findings(numbers), context),
        "settings": study.settings(),
    }


def of_model(model: "SparseModel | NormalisedModel", study: Study) -> dict[str, Any]:
    """Every number of one dictionary on held-out rows."""
    encoder, decoder = model.blocks()
    calculators: list[Calculator] = [ExplainedVariance(), Cosine(), Sparsity(), DeadShare(), BlockErrors()]
    calculators.append(UnitRanks(encoder, decoder))
    got = measure(model, study.data, whole_blocks(study), calculators, batch_size=BLOCK)
    rows = torch.cat([x for _, x in zip(range(DESCRIBED // BLOCK), _held_out(study), strict=False)])
    described = description_length(model, rows)
    return {
        "explained_variance": got["explained_variance"].explained_variance,
        "variance": got["explained_variance"].variance,
        "cosine": got["cosine"].cosine,
        "measured_l0": got["l0"].l0,
        "dead": got["dead"].dead_share,
        "rank90": got["ranks"].mean_rank90,
        "decoder_cosine": decoder_cosine(decoder).mean_max_absolute,
        "bits": described.bits,
        "unit_bits": described.unit_bits,
        "coefficient_bits": described.coefficient_bits,
        "block_errors": got["block_errors"],
    }


def _held_out(study: Study) -> Any:
    return iter(study.data.batches(BLOCK, study.context.device, stream="eval"))


def gap(measured: dict[tuple[str, int, int], Any], study: Study, l0: int, rng: np.random.Generator) -> dict[str, Any]:
    """SASA's explained variance less the best baseline's, at this L0 and at SASA's bits, with intervals."""
    seeds, l0s = study.configuration.seeds, study.configuration.l0
    variance = measured["sasa", l0, seeds[0]]["variance"]

    def mean(name: str, at: int, key: str) -> float:
        return float(np.mean([measured[name, at, seed][key] for seed in seeds]))

    def errors(name: str, at: int) -> np.ndarray:
        return np.mean([measured[name, at, seed]["block_errors"] for seed in seeds], axis=0)

    best = max(BASELINES, key=lambda name: mean(name, l0, "explained_variance"))
    bits = mean("sasa", l0, "bits")
    at_bits = {}
    for name in BASELINES:
        if (weights := between(bits, [mean(name, at, "bits") for at in l0s])) is not None:
            at_bits[name] = np.sum([w * errors(name, at) for w, at in zip(weights, l0s, strict=True)], axis=0)
    rival = min(at_bits, key=lambda name: float(at_bits[name].sum())) if at_bits else None
    return {
        "l0": l0,
        "best": best,
        "at_l0": explained_more(errors("sasa", l0), errors(best, l0), variance, rng),
        "bits": bits,
        "best_at_bits": rival,
        "at_bits": explained_more(errors("sasa", l0), at_bits[rival], variance, rng) if rival else None,
    }


def ce_gap(
    scores: dict[tuple[str, int, int], SpliceResult], study: Study, l0: int, rng: np.random.Generator
) -> dict[str, Any]:
    """SASA's CE score less that of the best baseline at this L0, seeds averaged, with an interval over contexts."""
    spliced = {
        name: np.mean([scores[name, l0, seed].tokens.spliced for seed in study.configuration.seeds], axis=0)
        for name in (*BASELINES, "sasa")
    }
    tokens = next(iter(scores.values())).tokens
    best = min(BASELINES, key=lambda name: float(spliced[name].sum()))
    _, unit = np.unique(tokens.contexts, return_inverse=True)
    sums = np.zeros((int(unit.max()) + 1, 2))
    np.add.at(sums, unit, np.stack([spliced[best] - spliced["sasa"], tokens.zero - tokens.clean], axis=1))
    total = sums.sum(axis=0)
    interval = bootstrap(sums, lambda drawn: drawn[:, 0] / drawn[:, 1], rng)
    return {"best_ce": best, "ce_at_l0": {"value": float(total[0] / total[1]), "interval": interval}}


def between(value: float, points: list[float]) -> list[float] | None:
    """Weights with which a straight line between the two `points` around `value` gives it; None outside them."""
    order = np.argsort(points)
    for low, high in itertools.pairwise(order):
        if points[low] <= value <= points[high] and points[low] < points[high]:
            share = (value - points[low]) / (points[high] - points[low])
            weights = [0.0] * len(points)
            weights[low], weights[high] = 1 - share, share
            return weights
    return None


def findings(numbers: dict[str, Any]) -> list[dict[str, str]]:
    """Does SASA reconstruct as well, at equal L0 and at equal bits?"""
    gaps = numbers["gaps"]
    equal_l0 = [g["at_l0"] for g in gaps]
    equal_bits = [g["at_bits"] for g in gaps if g["at_bits"] is not None]
    as_well = all(g["value"] >= -MARGIN for g in equal_l0)
    worse = all(g["interval"][1] < -MARGIN for g in equal_l0)
    repaired = bool(equal_bits) and all(g["value"] >= -MARGIN for g in equal_bits)
    status = "supported" if as_well else "needs an assumption" if repaired else "refuted" if worse else "undecided"

    def listed(key: str) -> str:
        return ", ".join(with_interval(g[key]) for g in gaps if g[key] is not None)

    text = (
        (f"{numbers['model']}, not GPT-2 small" if numbers["model"] != "gpt2" else "GPT-2 small")
        + f": SASA's explained variance less the best baseline's at L0 {', '.join(map(str, numbers['l0']))}: "
        + listed("at_l0")
    )
    text += f"; at SASA's bits: {listed('at_bits')}" if equal_bits else "; its bits lie outside what the others spend"
    text += f"; CE score less the best baseline's {listed('ce_at_l0')}"
    return [{"sentence": "matched-budget", "status": status, "text": text}]


figures.register("matched-budget")(
    Figure(
        name="matched-budget",
        title="E4: dictionaries of a language model at matched L0 and matched bits",
        run=run,
        draw=draw,
        budget={"quick": 5 * 60.0, "standard": 3 * 3600.0, "paper": 24 * 3600.0},
        options=OPTIONS,
        needs=NEEDS,
    )
)
