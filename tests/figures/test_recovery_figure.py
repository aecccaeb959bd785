"""Joint recovery: its worlds, its changes of the recipe, its finding, and a tiny run through JSON and drawing."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import parallel_config

import figures.recovery as recovery
import figures.recovery_full as recovery_full
from figures import Context, figures
from figures.rank_recovery_world import make_world
from figures.recovery_full import full_job, full_table
from figures.recovery_starts import NoisyGate, block_pca_start
from sasa_theory.models import SASA
from sasa_theory.models.compiled import compiled_step
from synthetic.placement import mutual_coherence

TINY = {
    "size": {"spec": "rank-recovery-192", "width": 48, "count": 1, "active": 1, "steps": 4, "batch": 64},
    "variants": ("recipe", "start on K-subspaces", "gate noise 1", "splits once", "coherence 0.7"),
    "loads": (0.75,),
    "active": (1,),
    "ratios": (1.0,),
    "shares": (0.1,),
    "phase": {"steps": 4, "seeds": 1},
    "check": (1.5, 1.0),
    "fresh": (3,),
    "full": (0,),
}
SIZE = recovery.PLANS["standard"]["size"]


@settings(deadline=None, max_examples=10)
@given(load=st.floats(0.5, 3), active=st.integers(1, 6))
def test_worlds_have_the_load_and_unit_energy_a_feature(load, active):
    world = make_world(recovery.loaded(SIZE, load, active, 10))
    assert sum(world.dims) / world.width == pytest.approx(load, rel=0.02)
    assert world.statistics().total_energy / active == pytest.approx(1, rel=1e-5)


def test_the_standard_world_and_the_flat_one_have_the_load_of_e3():
    for world in (make_world(SIZE), recovery.flat_world(SIZE)):
        assert sum(world.dims) / world.width == pytest.approx(1.5)
        assert world.support.active == SIZE["active"]
    assert set(recovery.flat_world(SIZE).dims) == {recovery.FLAT}


def test_sigma_d_is_the_smallest_eigenvalue_of_a_features_slice():
    """lam = share sigma_d with sigma_d = p / d, against rows of the world."""
    world = recovery.flat_world(SIZE)
    batch = world.sample(60_000, 0)
    frame = world.frames()[0].double()
    z = batch.x.double() @ frame.T
    on = batch.active[:, 0]
    sigma = torch.linalg.eigvalsh(z[on].T @ z[on] / len(z))[0]
    job = recovery.flat_job(SIZE, 2.0, 1.0, 10, 0, True)
    inside = job.settings["nuclear"]
    assert inside == pytest.approx(float(sigma), rel=0.1)  # the other feature on the row adds (s - 1) / D
    assert job.settings["group_rank"] == 8


def test_every_variant_changes_the_recipe_and_only_splits_part_with_from_without():
    base = recovery.variant_job(SIZE, "recipe", 0, True)
    for name in recovery.VARIANTS:
        with_splits, without = (recovery.variant_job(SIZE, name, 0, splits) for splits in (True, False))
        assert with_splits.training.splits > 0 == without.training.splits
        assert dict(with_splits.settings) == dict(without.settings)
        changed = (dict(with_splits.settings), with_splits.training) != (dict(base.settings), base.training)
        elsewhere = {"start", "noise", "world"} & set(recovery.VARIANTS[name])
        assert changed == (name != "recipe" and not elsewhere), name


def test_variants_of_coherence_have_it():
    for name, change in recovery.VARIANTS.items():
        if "world" in change:
            world = make_world({**SIZE, **change["world"]})
            found = mutual_coherence(torch.cat(world.frames()), world.dims)[0]
            assert f"coherence {found:.1f}" == name


def test_block_pca_starts_in_features_where_rows_hold_one_each():
    world = make_world({**TINY["size"], "frames": "orthogonal"})
    starts = block_pca_start(next(world.batches(1600, stream="train:0")), 8, 10, 0)
    assert starts.shape == (8, 10, world.width)
    assert torch.allclose(starts @ starts.mT, torch.eye(10).expand(8, -1, -1), atol=1e-5)
    for start in starts:
        held = [float((start @ frame.T).square().sum()) / len(frame) for frame in world.frames()]
        assert max(held) == pytest.approx(1, abs=1e-5)  # a feature, whole


def noisy(noise):
    model = NoisyGate(24, n_groups=12, group_rank=3, active_groups=2, nuclear=0.01)
    model.initialise(torch.Generator().manual_seed(0))
    model.gate_noise = noise
    return model


def chosen(loss):
    return loss.codes.index.sort(dim=1).values


def test_gate_noise_ends_with_the_warm_up_is_repeatable_and_leaves_the_codes_clean():
    x = torch.randn(200, 24, generator=torch.Generator().manual_seed(1))
    model, plain = noisy(1.0), SASA.loss(noisy(0.0), x, None, 0.5)
    first, again = model.loss(x, None, 0.0), model.loss(x, None, 0.0)
    assert torch.equal(first.codes.index, again.codes.index)
    moved = [(chosen(model.loss(x, None, scale)) != chosen(plain)).float().mean() for scale in (0.0, 0.9, 1.0)]
    assert moved[0] > moved[1] > moved[2] == 0
    values = model.pre_activations(x).unflatten(1, (12, 3))
    assert torch.equal(first.codes.values, values.gather(1, first.codes.index[..., None].expand(-1, -1, 3)))
    with torch.no_grad():  # a split is judged without noise, and so is everything outside training
        assert torch.equal(chosen(model.loss(x, None, 0.0)), chosen(plain))
    assert torch.equal(model.encode(x).index.sort(dim=1).values, chosen(plain))


def test_the_noisy_gate_is_not_trained_by_the_compiled_step():
    assert compiled_step(noisy(1.0), torch.optim.Adam(noisy(1.0).parameters())) is None


def cell(variant, splits, found, seed=0):
    return {"variant": variant, "splits": splits, "seed": seed, "found": found}


def test_the_finding_asks_every_seed_to_reach_the_goal():
    def status(shares, decided=True):
        cells = [cell("recipe", True, share, i) for i, share in enumerate(shares)] + [cell("recipe", False, 0.6)]
        return recovery.finding(cells, [], [], [], decided)["status"]

    assert status([0.95, 1.0]) == "needs an assumption"
    assert status([0.94, 1.0]) == "undecided"
    assert status([1.0], decided=False) == "undecided"
    text = recovery.finding(
        [cell("recipe", True, 1.0), cell("recipe", False, 0.6), cell("wide", False, 0.7)], [], [], [], True
    )
    assert "best without splits: wide, 70%" in text["text"]
    full = [{"groups": 256, "recipe": recipe, "found": share} for recipe, share in ((True, 0.9), (False, 0.6))]
    ended = recovery.finding([cell("recipe", True, 1.0), cell("recipe", False, 0.6)], [], full, [], True)
    assert ended["status"] == "undecided"  # the published size is asked for too
    assert "published size, K = 256: 90% with the recipe, 60% without" in ended["text"]


def test_the_reference_trains_without_penalty_revival_and_splits_and_only_groups_differ():
    plain, recipe, wide = (full_job(*at, 10.0, 0) for at in ((256, False), (256, True), (512, True)))
    assert (plain.settings["nuclear"], plain.settings["aux_groups"], plain.training.splits) == (0, 0, 0)
    assert recipe.settings["nuclear"] > 0 and recipe.settings["aux_groups"] > 0 and recipe.training.splits > 0
    assert wide.settings["n_groups"] == 512 and wide.training == recipe.training
    assert (recipe.training.steps, recipe.training.batch_size) == (1200, 1024)
    row = full_table([{"groups": k, "recipe": r, "found": 1.0, "capture": 1.0, "rank_error": 0.0, "dead_share": 0.5}
                      for k in (256, 512) for r in (False, True)], 0.95)["rows"][2]  # fmt: skip
    assert row == [512, "as the reference", 1, "0.63", "1.00", "1.00", "0.00", 319, "256"]


def test_tiny_run_round_trip_and_drawing(tmp_path, monkeypatch):
    monkeypatch.setitem(recovery.PLANS, "standard", TINY)
    monkeypatch.setattr(recovery, "ROWS", 100)
    monkeypatch.setitem(recovery.SIZES, "standard", TINY["size"])
    monkeypatch.setattr(recovery_full, "SIZE", TINY["size"])
    monkeypatch.setattr(recovery, "SIZE", TINY["size"])
    for module in (recovery, recovery_full):
        monkeypatch.setattr(module, "GROUPS", (8, 16))
    monkeypatch.setattr(recovery_full, "REFERENCE", {8: (0.5, 1), 16: (0.5, 2)})
    with parallel_config(backend="sequential"):
        measured = figures["recovery"].run(Context("standard", (0,), tmp_path))
        again = figures["recovery"].run(Context("standard", (0,), tmp_path))
    assert again["numbers"] == measured["numbers"]
    read_back = json.loads(json.dumps(measured, allow_nan=False))
    assert len(read_back["numbers"]["ablation"]) == 2 + 2 + 2 + 1 + 2
    assert all(len(read_back["numbers"][name]) == 1 for name in ("by_load", "by_rank"))
    assert {one["world"] for one in read_back["numbers"]["fresh"]} == {"E3"}  # one size, not two of a kind
    assert [one["start"] for one in read_back["numbers"]["check"]] == ["recipe", "no gauge", "long", "truth"]
    truth = next(one for one in read_back["numbers"]["yardsticks"] if one["name"] == "planted truth")
    assert truth["found"] == 1
    assert all(len(row) == len(t["columns"]) for t in read_back["tables"] for row in t["rows"])
    figures["recovery"].draw(read_back)["figure"].savefig(tmp_path / "picture.png", dpi=40)
