"""The tiling figure, reduced to seconds: its result is complete, honest about a broken floor, and can be drawn."""

import json

import pytest

from figures import tiling
from figures.registry import Context

pytestmark = pytest.mark.filterwarnings("ignore:.*joblib.*")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tiling, "DIMS", (2, 3))
    monkeypatch.setitem(tiling.LOADS, "quick", (1, 2, 3, 4, 5))
    monkeypatch.setitem(tiling.POINTS, "quick", 60)
    monkeypatch.setitem(tiling.HELD_OUT, "quick", 200)
    monkeypatch.setitem(tiling.DESCENT, "quick", 1)
    # worker processes import the module afresh; here everything runs in this one
    monkeypatch.setattr(tiling, "_found", lambda cells, profile, seed: [_row(*cell, seed) for cell in cells])


def _row(d, n_atoms, signed, seed):
    return tiling._best_found(d, n_atoms, signed, 60, 200, 1, seed)


def test_a_result_is_plain_json_and_is_drawn_from_it_alone(small, tmp_path):
    result = json.loads(json.dumps(tiling.run(Context("quick", (0,), tmp_path))))
    assert [panel["d"] for panel in result["numbers"]["panels"]] == [2, 3]
    for panel in result["numbers"]["panels"]:
        for row in panel["signed"] + panel["non-negative"]:
            assert row["best"] == min(row["found"].values())
            assert row["best"] + 5 * row["error"] > row["floor"]
    assert result["findings"][0]["sentence"] == "tiling"
    assert result["findings"][0]["status"] == "supported"
    picture = tiling.draw(result)["figure"]
    assert [ax.get_title()[:7] for ax in picture.axes[:2]] == ["$d = 2$", "$d = 3$"]


@pytest.mark.parametrize(("best", "status"), [(0.5, "refuted"), (2.0, "supported"), (4.0, "undecided")])
def test_the_finding_follows_the_numbers(best, status):
    row = {"n_atoms": 4, "floor": 1e-3, "best": best * 1e-3, "error": 1e-5}
    panels = [{"d": 2, "signed": [row], "non-negative": [], "trained": []}]
    exponents = [{"fitted": -2.0, "law": -2.0}]
    assert tiling._finding(panels, exponents)["status"] == status


def test_a_trained_model_below_the_floor_refutes(monkeypatch):
    row = {"n_atoms": 4, "floor": 1e-3, "best": 2e-3, "error": 1e-5}
    sae = {"d": 2, "n_atoms": 4, "best_codes": 1e-4, "error": 1e-6}
    panels = [{"d": 2, "signed": [row], "non-negative": [], "trained": [sae]}]
    assert tiling._finding(panels, [{"fitted": -2.0, "law": -2.0}])["status"] == "refuted"


@pytest.mark.slow
def test_trained_autoencoders_are_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(tiling, "DIMS", (2,))
    monkeypatch.setitem(tiling.TRAINED_LOADS, "quick", (4,))
    monkeypatch.setitem(tiling.STEPS, "quick", 200)
    saes, names = tiling._trained(Context("quick", (0, 1), tmp_path))
    assert len(saes) == len(names) == 2
    for sae in saes:
        assert sae["best_codes"] <= sae["own_codes"] + 1e-6
        assert sae["longest"] == pytest.approx(1, abs=1e-5)
