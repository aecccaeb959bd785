"""The driver on real worlds: exact row counts, sources with and without truth, plain JSON out, clear errors."""

import json

import numpy as np
import pytest
import torch

from sasa_theory import evaluation
from sasa_theory.models.registry import build
from synthetic.errors import DataError, UsageError
from synthetic.world import World

SPEC = {
    "width": 16,
    "frames": "orthogonal",
    "bias": 2.0,
    "features": [{"manifold": "circle"}, {"manifold": "sphere"}, {"manifold": "disk"}],
    "support": {"law": "exact", "active": 1},
}


def planted_model(world: World, n_groups: int, active: int = 1, turned: bool = False):
    """A SASA whose first groups are the planted frames (or, for a twin, frames turned by 45 degrees), the rest zero."""
    rank = max(world.dims)
    model = build("sasa", width_in=world.width, n_groups=n_groups, group_rank=rank, active_groups=active)
    spare = torch.linalg.svd(torch.cat(world.frames()), full_matrices=True)[2][sum(world.dims) :]
    blocks = torch.zeros(n_groups, rank, world.width)
    for k, frame in enumerate(world.frames()):
        rows = (frame + spare[: len(frame)]) / 2**0.5 if turned else frame
        blocks[k, : len(frame)] = rows
    with torch.no_grad():
        model.W_dec.copy_(blocks.reshape(-1, world.width))
        model.W_enc.copy_(model.W_dec.T)
        model.b_dec.copy_(torch.zeros(world.width) if world.bias is None else world.bias)
    return model.train()


def values(report: dict) -> dict:
    return {name: {key: entry["value"] for key, entry in part.items()} for name, part in report["metrics"].items()}


def test_a_planted_model_scores_perfectly_and_the_report_is_plain_json():
    world = World.from_spec(SPEC)
    model = planted_model(world, n_groups=5)
    report = evaluation.evaluate(model, world, 3001, batch_size=500)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["rows"] == 3001  # the last batch is cut
    assert model.training
    numbers = values(report)
    assert numbers["explained_variance"]["explained_variance"] == pytest.approx(1, abs=1e-10)
    assert numbers["explained_variance"]["rows"] == 3001
    assert numbers["cosine"]["cosine"] == pytest.approx(1)
    assert numbers["l0"]["l0_units"] == 1
    assert numbers["dead"]["dead_share"] == pytest.approx(2 / 5)
    assert numbers["ranks"]["rank90"] == [2, 3, 2, 0, 0]
    assert numbers["ranks"]["mean_rank90"] == pytest.approx(7 / 3)
    assert numbers["owners"]["owners"] == [1, 1, 1]
    assert numbers["owners"]["unowned"] == [0, 0, 0]
    assert numbers["feature_energy"]["units_per_feature"] == [1, 1, 1]
    assert numbers["feature_energy"]["features_counted"] == 3
    assert numbers["feature_energy"]["recovered"] == pytest.approx([1, 1, 1], abs=1e-9)
    assert sum(numbers["feature_energy"]["active_rows"]) == 3001
    assert numbers["subspaces"]["best_capture"] == pytest.approx([1, 1, 1], abs=1e-5)
    assert numbers["subspaces"]["spanning_units"] == [1, 1, 1]
    assert numbers["subspaces"]["features_per_unit"] == [1, 1, 1, 0, 0]
    assert numbers["subspaces"]["rank_error"] == 0
    assert all(
        entry["better"] in ("higher", "lower", "neither")
        for part in report["metrics"].values()
        for entry in part.values()
    )


def test_a_twin_with_turned_frames_does_not_pass():
    world = World.from_spec(SPEC)
    numbers = values(evaluation.evaluate(planted_model(world, 5, turned=True), world, 2000))
    assert numbers["subspaces"]["best_capture"] == pytest.approx([0.5, 0.5, 0.5], abs=1e-4)
    assert numbers["subspaces"]["spanning_units"] == [None, None, None]
    # the projection onto a line turned by 45 degrees leaves half of the amplitude in V: 1 - (1/2)^2
    assert numbers["feature_energy"]["recovered"] == pytest.approx([0.75] * 3, abs=1e-4)
    assert numbers["explained_variance"]["explained_variance"] == pytest.approx(0.5, abs=1e-3)


def test_owners_are_counted_on_single_points_also_where_rows_mix_features():
    world = World.from_spec({**SPEC, "support": {"law": "exact", "active": 2}, "noise": 0.01})
    model = planted_model(world, 4, active=2)
    owners = evaluation.count_owners(model, world, 700, batch_size=300)
    np.testing.assert_array_equal(owners.points, 700)
    np.testing.assert_array_equal(owners.owners, 1)
    assert owners.counts.argmax(axis=1).tolist() == [0, 1, 2]
    assert values(evaluation.evaluate(model, world, 500))["owners"]["points"] == [1000] * 3
    # a dictionary of single directions splits every feature
    latents = build("topk", width_in=16, n_latents=400, active_latents=1)
    with torch.no_grad():
        latents.b_dec.copy_(world.bias)
    assert (evaluation.count_owners(latents, world, 700).owners_any > 10).all()


def test_a_stream_with_truth_needs_the_world_named_and_gives_the_same_numbers():
    world = World.from_spec(SPEC)
    model = planted_model(world, 4)
    whole = evaluation.evaluate(model, world, 1000, batch_size=250)
    named = evaluation.evaluate(model, world.batches(250, stream="eval"), 1000, world=world, batch_size=250)
    assert named == whole
    blind = evaluation.evaluate(model, world.batches(250, stream="eval"), 1000)
    told = {"feature_energy", "subspaces", "owners", "factor_recovery"}
    assert set(whole["metrics"]) - set(blind["metrics"]) == told
    assert blind["metrics"]["explained_variance"] == whole["metrics"]["explained_variance"]
    other = evaluation.evaluate(model, world.batches(250, stream="train"), 1000)
    assert other["metrics"]["explained_variance"] != whole["metrics"]["explained_variance"]


def test_a_plain_iterable_is_used_up_and_results_state_the_rows_they_saw():
    model = build("topk", width_in=12, n_latents=4, active_latents=1, signed=True)
    batches = [torch.randn(40, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    assert evaluation.evaluate(model, batches, 1000)["rows"] == 120
    assert evaluation.evaluate(model, iter(batches), 70)["rows"] == 70
    result = evaluation.run(model, batches, 70, [evaluation.Sparsity()])["l0"]
    assert (result.rows, result.l0) == (70, 1)


def test_bad_requests_are_refused_with_a_sentence():
    model = build("topk", width_in=12, n_latents=4, active_latents=1)
    good = torch.ones(5, 12)
    with pytest.raises(UsageError, match="n_rows"):
        evaluation.evaluate(model, [good], 0)
    with pytest.raises(UsageError, match=r"expected \(batch, 12\)"):
        evaluation.evaluate(model, [torch.ones(5, 7)], 5)
    with pytest.raises(DataError, match=r"row 5.*row 2"):
        broken = good.clone()
        broken[2, 0] = torch.nan
        evaluation.evaluate(model, [good, broken], 10)
    with pytest.raises(DataError, match="ended"):
        evaluation.evaluate(model, [], 5)
    with pytest.raises(UsageError, match="different names"):
        evaluation.run(model, [good], 5, [evaluation.Cosine(), evaluation.Cosine()])
