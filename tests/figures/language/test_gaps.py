"""What SASA lacks: the ablation's parts, the CE gap and their intervals, on errors that are made up."""

from types import SimpleNamespace

import numpy as np
import pytest

from figures.language.ablation import SLOWER, finding, parts_of_gap
from figures.language.blocks import BLOCK, explained_more, with_interval
from figures.language.configuration import load_configuration
from figures.language.matched_budget import ce_gap
from sasa_theory.evaluation.splice import SpliceTokens

BLOCKS, VARIANCE = 400, 2.0
#: unexplained share of each variant
LEFT = {
    ("dictionary", "topk"): 0.20,
    ("dictionary", "abstopk"): 0.21,
    ("rank", "4"): 0.30,
    ("rank", "4" + SLOWER): 0.28,
    ("rank", "2"): 0.22,
    ("recipe", "five splits"): 0.26,
    ("map", "r=4, 0.1"): 0.25,
    ("map", "r=3, 0.1"): 0.10,
}


def made_up(left: dict[tuple[str, str], float]) -> dict[tuple[str, str], np.ndarray]:
    """Squared errors on every block, with a noise of a tenth that all variants share in part."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=BLOCKS)
    noise = {key: 1 + 0.1 * (shared + 0.1 * rng.normal(size=BLOCKS)) for key in left}
    return {key: share * BLOCK * VARIANCE * noise[key] for key, share in left.items()}


def gap_of(left: dict[tuple[str, str], float]) -> dict:
    return parts_of_gap(made_up(left), VARIANCE, "4", np.random.default_rng(1))


def test_the_parts_add_up_and_other_ranks_do_not_count():
    gap = gap_of(LEFT)
    assert gap["best_recipe"] == "map r=4, 0.1"  # not rank 2 or 3, which are other architectures
    parts = sum(gap[part]["value"] for part in ("signs", "blocks", "recipe"))
    assert parts == pytest.approx(gap["all"]["value"])
    for part, expected in {"signs": -0.01, "blocks": -0.04, "recipe": -0.05, "all": -0.10, "best": -0.05}.items():
        low, high = gap[part]["interval"]
        assert gap[part]["value"] == pytest.approx(expected, abs=0.005) and low <= gap[part]["value"] <= high


@pytest.mark.parametrize(
    ("sasa", "best", "status"),
    [(0.30, 0.25, "refuted"), (0.30, 0.20, "needs an assumption"), (0.205, 0.20, "supported")],
)
def test_the_finding_says_what_the_recipe_makes_up_for(sasa, best, status):
    gap = gap_of({**LEFT, ("rank", "4"): sasa, ("map", "r=4, 0.1"): best, ("rank", "4" + SLOWER): 0.31})
    told = finding({"gap": gap, "model": "m", "tokens": 1000, "l0": 36, "rank": 4})
    assert told["status"] == status and with_interval(gap["blocks"]) in told["text"]


def test_more_explained_is_positive_and_its_interval_shrinks_with_blocks():
    errors = made_up(LEFT)
    ours, theirs = errors["dictionary", "topk"], errors["rank", "4"]
    wide = explained_more(ours[:20], theirs[:20], VARIANCE, np.random.default_rng(0))
    narrow = explained_more(ours, theirs, VARIANCE, np.random.default_rng(0))
    assert narrow["value"] > 0 and np.ptp(narrow["interval"]) < np.ptp(wide["interval"])
    same = explained_more(ours, ours, VARIANCE, np.random.default_rng(0))
    assert same == {"value": 0.0, "interval": (0.0, 0.0)}


def test_the_ce_gap_pairs_contexts():
    """Contexts differ by ten times what separates the dictionaries: paired, the gap is known all the same."""
    rng = np.random.default_rng(0)
    contexts = np.repeat(np.arange(40), 25)
    hard = rng.normal(5, 1, 40)[contexts]
    spliced = {"topk": 0.10, "batchtopk": 0.20, "matryoshka": 0.30, "sasa": 0.15}

    def tokens(loss: float) -> SpliceTokens:
        noise = 0.01 * rng.normal(size=len(contexts))
        zeros = np.zeros(len(contexts))
        return SpliceTokens(contexts, hard, hard + 5, hard + 3, hard + loss + noise, zeros, zeros, zeros)

    study = SimpleNamespace(configuration=load_configuration("gemma3-270m-l11"))
    scores = {
        (name, 32, seed): SimpleNamespace(tokens=tokens(loss)) for name, loss in spliced.items() for seed in (0, 1)
    }
    got = ce_gap(scores, study, 32, rng)
    low, high = got["ce_at_l0"]["interval"]
    assert got["best_ce"] == "topk" and got["ce_at_l0"]["value"] == pytest.approx(-0.01, abs=1e-3)
    assert low > -0.012 and high < -0.008 and low < high
