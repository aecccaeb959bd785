"""The published configurations, settings and all, on tiny random models of their architectures (profile quick)."""

import json

import numpy as np
import pytest

from figures import Context, figures, load_all
from figures.language.configuration import configurations, load_configuration

pytestmark = pytest.mark.lm

#: name -> architecture, and blocks enough for its hook
MODELS = {
    "gpt2-l7": ("gpt2", 8),
    "gpt2-l7-no-bos": ("gpt2", 8),
    "mistral-l19": ("mistral", 20),
    "mistral-l8": ("mistral", 9),
}


def test_all_but_the_offline_model_are_here():
    assert set(configurations()) == {*MODELS, "gemma3-270m-l11"}


@pytest.mark.parametrize("name", MODELS)
def test_a_named_configuration_runs_from_text_to_result(name, tmp_path, tiny_language_model):
    load_all()
    kind, blocks = MODELS[name]
    made = load_configuration(name)
    tiny_language_model(kind, tmp_path / "model", blocks=blocks, positions=made.context)
    drawn = np.random.default_rng(0).choice([f"w{i}" for i in range(60)], 48_000)
    (tmp_path / "text.txt").write_text(" ".join(drawn))
    options = {"config": name, "model": str(tmp_path / "model"), "text": str(tmp_path / "text.txt")}
    context = Context("quick", (0,), tmp_path / "out", options=options)
    result = figures["matched-budget"].run(context)
    assert not (tmp_path / "out/stores").exists()  # nothing is stored
    sasa = next(one for one in result["numbers"]["results"] if one["architecture"] == "sasa")
    runs = [json.loads(file.read_text()) for file in (tmp_path / "out/runs").glob("*/run.json")]
    trained = {run["architecture"]: run for run in runs}
    assert np.isfinite(sasa["explained_variance"]) and sasa["ce"] is not None
    settings = trained["sasa"]["model"]
    assert settings["penalty"] == "decoder" and settings["nuclear"] == made.nuclear and settings["aux_groups"] == 512
    assert trained["sasa"]["training"]["optimizer"] == "adamw" and trained["sasa"]["training"]["lr"] == 2e-4
    assert trained["topk"]["training"]["lr"] == 4e-4 and trained["topk"]["training"]["normalise"] == "layer_norm"
    # BOS is in front of every context, and spliced (or left) as it is trained on (or not)
    left = result["numbers"]["left"].get("special", 0)
    assert left == 0 if made.keep_special else left > 0
