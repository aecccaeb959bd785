"""Figure samples on made-up runs: laws, findings and drawing follow from the numbers."""

import json
import math

import numpy as np
import pytest

import figures.samples as samples
from figures import figures, load_all

GROWTH = {"lines": "e", "topk": "e", "relu": "e", "subspace": "p", "sasa": "p"}


def made_up(growth=GROWTH, limit=math.inf):
    """Runs of every method under a planted law, three at each d, with 5 % scatter."""
    rng = np.random.default_rng(3)
    runs = []
    for name, law in growth.items():
        for d in (2, 3, 4, 5, 6, 8) * 3:
            n = (math.exp(0.9 * d) if law == "e" else 2 * d) * math.exp(0.05 * rng.standard_normal())
            panel = "direct" if name in ("lines", "subspace") else "trained"
            runs.append({"panel": panel, "name": name, "d": d, "n": min(n, limit), "censored": bool(n > limit)})
    return runs


def judged(runs):
    rng = np.random.default_rng(0)
    return {name: samples._decide([r for r in runs if r["name"] == name], rng) for name in samples._names(runs)}


@pytest.mark.parametrize(
    ("changed", "status"),
    [({}, "supported"), ({"sasa": "e"}, "refuted"), ({"relu": "p"}, "refuted")],
)
def test_the_finding_follows_the_decisions(changed, status):
    runs = made_up(GROWTH | changed)
    finding = samples._finding(judged(runs), runs)
    assert finding["status"] == status and finding["sentence"] == "samples"


def test_a_method_that_was_not_trained_or_never_arrived_leaves_it_undecided():
    runs = [r for r in made_up() if r["name"] != "relu"]
    assert samples._finding(judged(runs), runs)["status"] == "undecided"
    late = [r | {"censored": True} if r["name"] == "relu" else r for r in made_up()]
    laws = judged(late)
    assert laws["relu"]["decision"] == "undecided" and "reason" in laws["relu"]
    assert samples._finding(laws, late)["status"] == "undecided"


def test_it_draws_from_the_result_alone_censored_runs_included():
    runs = made_up(limit=300.0)
    laws = judged(runs)
    assert laws["topk"]["censored"] == 3  # d = 8 only: exp(0.9 * 6) = 221 < 300 < exp(0.9 * 8)
    errors = samples._errors(3, np.random.default_rng(0))
    tables = [samples._law_table(laws), samples._run_table(runs), samples._error_table(errors)]
    result = json.loads(json.dumps({"numbers": {"runs": runs, "laws": laws, "errors": errors}, "tables": tables}))
    picture = samples.draw(result)["figure"]
    assert len(picture.axes) == 3
    labels = [text.get_text() for text in picture.axes[1].get_legend().get_texts()]
    assert any("censored" in label and "TopK" in label for label in labels)
    assert "> 300" in next(row for row in result["tables"][1]["rows"] if row[0] == samples.LABELS["topk"])


def test_it_is_registered_with_its_budgets():
    load_all()
    assert figures["samples"].budget["quick"] <= 60 and figures["samples"].budget["standard"] <= 1200
