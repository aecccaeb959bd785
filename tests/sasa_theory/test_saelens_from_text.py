"""The whole path on tiny random models: text, store, training, evaluation, export, and SAELens on the same rows.

Run with a Python that has sae-lens: `python -m pytest -m saelens tests/sasa_theory`.
"""

import json

import numpy as np
import pytest
import torch

from figures import Context, load_all
from figures.language.blocks import BLOCK, whole_blocks
from figures.language.study import Study
from sasa_lab.report import write_report
from sasa_lab.results import read_result, result_file
from sasa_lab.running import run_figures
from sasa_theory import saelens
from sasa_theory.activations import ActivationStore, write_activations
from sasa_theory.evaluation import ExplainedVariance
from sasa_theory.evaluation import run as measure
from sasa_theory.training import TrainSettings, fit

pytestmark = pytest.mark.saelens

HOOK, ROWS = "blocks.1.hook_resid_post", 600
SIZES = {
    "sasa": {"n_groups": 12, "group_rank": 3, "active_groups": 2},
    "topk": {"n_latents": 36, "active_latents": 6},
    "abstopk": {"n_latents": 36, "active_latents": 6},
    "batchtopk": {"n_latents": 36, "active_latents": 6},
    "matryoshka": {"n_latents": 36, "active_latents": 6},
    "jumprelu": {"n_latents": 36},
}


@pytest.fixture(scope="module", params=["gpt2", "mistral"])
def store(request, tmp_path_factory, tiny_language_model):
    folder = tmp_path_factory.mktemp(request.param)
    tiny_language_model(request.param, folder / "model", blocks=2)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice([f"w{i}" for i in range(60)], rng.integers(5, 60))) for _ in range(400)]
    write_activations(str(folder / "model"), HOOK, texts, folder / "store", 6000, context=16, workers=1)
    return ActivationStore(folder / "store")


@pytest.mark.parametrize("normalise", ["layer_norm", "mean_scalar"])
@pytest.mark.parametrize("name", list(SIZES))
def test_saelens_explains_as_much_of_the_store_as_we_do(store, tmp_path, name, normalise):
    from sae_lens import SAE

    cap = 3.0 if normalise == "mean_scalar" else None
    training = TrainSettings(steps=60, batch_size=128, lr=3e-3, normalise=normalise, outlier_cap=cap)
    run = fit(store, name, SIZES[name], training, out=tmp_path / "out")
    ours = measure(run.model, store.batches(100, stream="eval"), ROWS, [ExplainedVariance()])["explained_variance"]
    saelens.register()
    theirs = SAE.load_from_disk(saelens.save(run.model, tmp_path / "exported"), device="cpu")
    also = SAE.load_from_disk(run.directory, device="cpu")  # a run's own directory is an export already
    for sae in (theirs, also):
        calculator, source = ExplainedVariance(), store.batches(100, stream="eval")
        with torch.no_grad():
            for _ in range(ROWS // 100):
                x = next(source)
                calculator.update(x, sae(x), run.model.encode(x))
        got = calculator.compute()
        assert got.rows == ours.rows
        assert got.explained_variance == pytest.approx(ours.explained_variance, abs=2e-5)
        assert got.variance == pytest.approx(ours.variance)
    assert ours.explained_variance > 0.1, "a dictionary that explains nothing would not test its scale"


def test_saelens_explains_as_much_as_the_report_of_a_study_says(tmp_path, tiny_language_model):
    """Text, store, dictionaries, result and report; each dictionary exported, reloaded, and read on the same rows."""
    from sae_lens import SAE

    load_all()
    tiny_language_model("gpt2", tmp_path / "model", blocks=2)
    drawn = np.random.default_rng(0).choice([f"w{i}" for i in range(60)], (500, 40))
    (tmp_path / "text.txt").write_text("\n".join(" ".join(line) for line in drawn))
    settings = {
        "title": "tiny",
        "model": str(tmp_path / "model"),
        "hook": HOOK,
        "context": 16,
        "columns": 36,
        "group_rank": 3,
        "l0": [6],
        "tokens": 18_000,
        "train_tokens": 6400,
        "batch_size": 128,
        "norm_limit": None,
        "seeds": [0],
        "learning_rates": [0.003],
        "evaluation_tokens": ROWS,
        "spliced_tokens": 128,
    }
    (tmp_path / "tiny.json").write_text(json.dumps(settings))
    options = {"config": str(tmp_path / "tiny.json"), "text": str(tmp_path / "text.txt")}
    context = Context("standard", (0,), tmp_path / "out", options=options)
    assert run_figures(["matched-budget"], context, force=False) == {}
    assert "matched L0" in write_report(context.out).read_text()
    results = read_result(result_file(context.out, "matched-budget", "standard"))["numbers"]["results"]
    saelens.register()
    study = Study.open(context)
    for told in results:
        (run,) = study.runs([(told["architecture"], told["l0"], told["seed"])])
        exported = saelens.save(run.model, tmp_path / "exported" / told["architecture"])
        sae = SAE.load_from_disk(exported, device="cpu")
        calculator, source = ExplainedVariance(), study.data.batches(BLOCK, stream="eval")
        with torch.no_grad():
            for _ in range(whole_blocks(study) // BLOCK):
                x = next(source)
                calculator.update(x, sae(x), run.model.encode(x))
        assert calculator.compute().explained_variance == pytest.approx(told["explained_variance"], abs=2e-5)
    assert len(results) == 6 and max(told["explained_variance"] for told in results) > 0.1
