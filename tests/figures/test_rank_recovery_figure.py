"""Figure E3: its windows, its measure on planted models, its starts, and a tiny run through JSON and drawing."""

import json

import numpy as np
import pytest
import torch
from joblib import parallel_config

import figures.rank_recovery as e3
import figures.rank_recovery_starts as starts
from figures import Context, figures
from figures.yardsticks import REFERENCES
from sasa_theory.bounds import slice_map
from sasa_theory.models import SASA
from synthetic import World

TINY = {"spec": "rank-recovery-192", "width": 64, "count": 1, "active": 1, "steps": 4, "batch": 64}


def planted_model(world, merged, gain=1.0):
    model = starts.Planted(
        world.width, n_groups=len(world.dims), group_rank=e3.RANK, active_groups=world.support.active
    )
    model.places = [(column, gain**0.5 * frame) for column, frame in starts.planted_places(world, merged)]
    model.initialise(torch.Generator().manual_seed(0))
    return model


def test_the_planted_truth_is_found_with_its_ranks_and_a_merged_one_is_not():
    world = e3.make_world(TINY)
    truth = e3.recovery(planted_model(world, False), world, 8 * e3.ROWS)
    assert truth["found"] == 1 and truth["rank_error"] == 0
    assert truth["spearman"] == pytest.approx(1)
    assert [ranks[0] for ranks in truth["ranks"]] == list(e3.DIMS)
    merged = e3.recovery(planted_model(world, True), world, 8 * e3.ROWS)
    assert merged["most_features_a_group"] == 2
    assert merged["rank_error"] > 1 and merged["found"] <= 0.5


def test_pairs_fit_into_a_group_and_every_feature_has_its_place():
    world = e3.make_world({**TINY, "count": 2})
    places = starts.planted_places(world, True)
    assert sorted(len(frame) for _, frame in places) == sorted(world.dims)
    columns = [column + j for column, frame in places for j in range(len(frame))]
    assert len(set(columns)) == len(columns)
    held = {}
    for column, frame in places:
        held[column // e3.RANK] = held.get(column // e3.RANK, 0) + len(frame)
        assert (column + len(frame) - 1) // e3.RANK == column // e3.RANK
    assert set(held.values()) == {9}


def test_the_objective_is_the_theorems_on_one_feature_a_row():
    """Planted maps with C1's gain cost sum_i tr f(Sigma_i) where features do not overlap."""
    world = World.from_spec({**e3.make_world(TINY).spec(), "frames": "orthogonal", "seed": 3})
    lam, p = 0.02, 1 / len(world.dims)
    model = SASA(world.width, n_groups=8, group_rank=e3.RANK, active_groups=1)
    x = next(world.batches(20_000, stream="eval"))
    expected = 0.0
    with torch.no_grad():
        model.W_dec.zero_()
        model.W_enc.zero_()
        for i, frame in enumerate(world.frames()):
            d = len(frame)
            z = x.double() @ frame.double().T
            sigma = (z.T @ z / len(x)).numpy()  # rows of other features are orthogonal: only its own count
            values, vectors = np.linalg.eigh(slice_map(sigma, lam))
            half = torch.from_numpy((vectors * np.sqrt(values.clip(0))) @ vectors.T).float()
            model.W_dec[10 * i : 10 * i + d] = half @ frame
            model.W_enc[:, 10 * i : 10 * i + d] = (half @ frame).T
            s = np.linalg.eigvalsh(sigma)
            expected += float(np.where(s <= lam / 2, s, lam - lam**2 / (4 * np.maximum(s, 1e-12))).sum())
    got = starts.objective(model, world, lam, 20_000)
    assert got == pytest.approx(expected, rel=1e-3)
    assert p / 8 > lam / 2  # every direction is kept, so the case is not empty


def test_windows_hold_the_coefficients_that_theory_says():
    size = e3.SIZES["paper"]
    assert e3.feature_energy(size["spec"]) == pytest.approx(80652.6 / 8, rel=1e-6)
    found = e3.windows(size)
    low, high = max(w.low for w in found), min(w.high for w in found)
    assert [c for c in e3.COEFFICIENTS if low <= c < high] == [10, 30]
    assert found[0].high > found[-1].high
    # the reduced world gives a feature the same energy, rate and so nearly the same window
    small = e3.windows(e3.SIZES["standard"])
    assert small[-1].high == pytest.approx(found[-1].high, rel=0.05)


def test_the_gate_leaves_c6s_window_alone_where_features_are_orthogonal_and_alone_on_a_row():
    world = World.from_spec({**e3.make_world(TINY).spec(), "frames": "orthogonal"})
    for gauge in (True, False):
        for d in (1, 2):
            lam = 0.8 * e3.windows(TINY)[d - 1].high / e3.feature_energy(TINY["spec"])
            got = starts.gated_window(world, lam, gauge)
            assert got["open"] == got["gated"] == [float(k <= d) for k in e3.DIMS]
            assert got["kept"] == got["gated"]


def test_the_gauge_takes_rows_from_features_of_few_dimensions():
    world = e3.make_world({**TINY, "count": 4, "width": 96, "active": 2})
    gauged, free = (starts.gated_window(world, 1e-4, gauge)["kept"] for gauge in (True, False))
    assert gauged[0] < 0.6 < free[0] and gauged[-1] > 0.95 < free[-1]


def run_of(lam, kind="map", **changed):
    base = {"found": 1.0, "rank_error": 0.1, "spearman": 0.99, "rank_error_found": 0.1}
    return {"penalty": kind, "coefficient": lam, **base, **changed}


def start_of(name, lam, objective, error=0.1, spearman=0.99):
    return {
        "start": name, "coefficient": lam, "objective": objective, "rank_error": error, "spearman": spearman,
        "found": 1.0,
    }  # fmt: skip


def test_the_finding_asks_for_found_features_and_for_ranks():
    window = [[3.0, 80.0]] * 8
    objectives = {"random": 2.0, "plain": 2.5, "truth": 1.0, "truth, slow": 1.0, "truth, no gauge": 1.0}
    starts = [start_of(name, lam, value) for name, value in objectives.items() for lam in (10.0, 30.0)]

    def status(decided=True, starts=starts, **changed):
        trained = [run_of(lam, **changed) for lam in e3.COEFFICIENTS]
        return e3.finding(trained, [*starts, *(dict(s, coefficient=3.0) for s in starts)], window, decided)["status"]

    assert status() == "supported"
    merged = [dict(s, found=0.7) if s["start"] == "plain" else s for s in starts]
    assert status(starts=merged) == "needs an assumption"  # only training with splits finds them
    assert status(decided=False) == "undecided"
    assert status(found=0.7) == "needs an assumption"  # training did not get there, the truth is better and stays
    assert status(rank_error=2.0) == "needs an assumption"
    worse = [dict(s, objective=3.0) if s["start"] == "truth" else s for s in starts]
    assert status(starts=worse, found=0.7) == "undecided"
    assert e3.finding([], [], [[90.0, 95.0]] * 8, True)["status"] == "undecided"
    names = (*objectives, "random, no gauge", "random, long")
    beyond = [*starts, *(start_of(name, 100.0, 1.5) for name in names)]
    split = [[3.0, 110.0]] * 6 + [[3.0, 80.0]] * 2
    text = e3.finding([run_of(lam) for lam in e3.COEFFICIENTS], beyond, split, True)["text"]
    assert "coefficient 100 is in the windows of 6 of 8 dimensions, found (objective): random 100% (1.5000)" in text


def test_tiny_run_round_trip_and_drawing(tmp_path, monkeypatch):
    monkeypatch.setitem(e3.SIZES, "standard", TINY)
    monkeypatch.setattr(e3, "COEFFICIENTS", (0.0, 100.0))
    monkeypatch.setattr(e3, "STARTED", (0.0, 100.0))
    monkeypatch.setattr(e3, "ROWS", 100)
    monkeypatch.setattr(starts, "ROUNDS", 2)
    with parallel_config(backend="sequential"):
        measured = figures["rank-recovery"].run(Context("standard", (0, 1), tmp_path))
        monkeypatch.setattr(starts.Trainer, "fit", lambda *_, **__: pytest.fail("trained again"))
        again = figures["rank-recovery"].run(Context("standard", (0, 1), tmp_path))
    assert again["numbers"] == measured["numbers"]
    read_back = json.loads(json.dumps(measured, allow_nan=False))
    assert [f["sentence"] for f in read_back["findings"]] == ["rank-recovery"]
    assert len(read_back["numbers"]["trained"]) == 2 * 3  # 0, map 100, decoder 100
    names = {"random", "plain", "random, no gauge", "truth", "truth, slow", "truth, no gauge", "merged"}
    assert {s["start"] for s in read_back["numbers"]["starts"] if s["coefficient"] == 0} == names
    assert {s["start"] for s in read_back["numbers"]["starts"] if s["coefficient"] == 100} == {*names, "random, long"}
    assert {one["name"] for one in read_back["numbers"]["yardsticks"]} == set(REFERENCES)
    assert all(len(row) == len(t["columns"]) for t in read_back["tables"] for row in t["rows"])
    figures["rank-recovery"].draw(read_back)["figure"].savefig(tmp_path / "picture.png", dpi=40)


def test_the_command_line_lists_it_and_a_sentence_points_to_it(capsys):
    from sasa_lab.cli import main
    from sasa_lab.sentences import sentences

    assert main(["figure", "list"]) == 0
    assert "rank-recovery: E3" in capsys.readouterr().out
    assert "rank-recovery" in sentences()["rank-recovery"].figures
