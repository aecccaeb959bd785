"""The table of memory in docs/text.md is the one that the configurations' sizes give."""

from pathlib import Path

import pytest

from figures.language.estimate import estimate
from figures.language.memory import MODELS, Sized, table, weights_of
from figures.language.study import Study
from figures.registry import Context

pytestmark = pytest.mark.lm


def test_the_documented_table_is_what_the_sizes_give():
    text = (Path(__file__).parents[3] / "docs/text.md").read_text(encoding="utf-8")
    assert table() in text, "write the output of python -m figures.language.memory to docs/text.md"


def test_weights_are_those_of_the_named_models():
    found = {name: weights_of(name) for name in MODELS}
    assert found["gpt2"] == (768, 124_439_808)  # the base model, whose head is tied
    assert found["mistralai/Mistral-7B-v0.1"] == (4096, 7_241_732_096 - 32_000 * 4096)  # less the head of the whole
    assert found["gemma3-270m"] == (640, 268_098_176)
    assert Sized("gpt2-l7", 768).job("sasa", 60, 0, lr=1e-3).settings["n_groups"] == 2048


def test_an_estimate_counts_what_the_chosen_figures_need(tmp_path, tiny_language_model):
    """Nothing for no figure; evaluation, splicing, prompts and clusters with those that have them."""
    tiny_language_model("gpt2", tmp_path / "model", blocks=8, positions=128)
    (tmp_path / "text.txt").write_text("w1 w2 w3 " * 2000)
    options = {"config": "gpt2-l7", "model": str(tmp_path / "model"), "text": str(tmp_path / "text.txt")}
    study = Study.open(Context("quick", (0,), tmp_path / "out", options=options))
    made = study.configuration
    nothing = estimate(study, [])
    assert (nothing.dictionaries, nothing.tokens_run, nothing.training, nothing.reading) == (0, 0, 0, 0)
    trained, causal, clusters = (estimate(study, [name]) for name in ("matched-budget", "causal", "feature-clusters"))
    assert trained.dictionaries == trained.together == 6 * len(made.l0) * len(made.seeds)
    assert trained.tokens_run == made.train_tokens // made.batch_size * made.batch_size
    assert trained.training > 0 and trained.reading > 0 and trained.scaled == 0
    assert causal.reading == 0 and causal.scaled > 0 and clusters.reading > 0 and clusters.scaled > 0
    parameters = 6 * 2 * made.columns * 16
    assert trained.host > 16 * parameters and trained.gpu == 0
    both = estimate(study, ["matched-budget", "causal"])
    assert both.dictionaries == trained.dictionaries, "the middle L0 is trained once"
    assert "hours" in both.lines()[3]
