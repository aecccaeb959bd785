"""The consolidation figure: surfaces at known points, findings from made-up results, its picture from the file."""

import json

import numpy as np
import pytest

import figures.consolidation as fig
from figures import Context, figures, load_all


@pytest.fixture
def small(monkeypatch):
    for name, value in (("GRID", 11), ("SOFT_GRID", 4), ("SPLIT_ROUNDS", 3), ("RELEASED_LAMS", 3)):
        monkeypatch.setitem(getattr(fig, name), "quick", value)


def test_the_result_is_drawn_from_the_file_alone(small, tmp_path):
    load_all()
    measured = figures["consolidation"].run(Context("quick", (0,), tmp_path))
    read_back = json.loads(json.dumps(measured, allow_nan=False))
    (picture,) = figures["consolidation"].draw(read_back).values()
    picture.savefig(tmp_path / "picture.png")
    for shown in read_back["tables"]:
        assert all(len(row) == len(shown["columns"]) for row in shown["rows"]), shown["title"]
    statuses = {one["sentence"]: one["status"] for one in read_back["findings"]}
    assert statuses == {
        "consolidation": "needs an assumption",
        "soft-routing": "needs an assumption",
        "uniqueness": "supported",
        "released-variant": "refuted",
    }


def test_surfaces_are_zero_for_one_group_and_for_orthogonal_parts():
    shared = np.array(fig._shared(11)["extra"])
    assert shared.min() > -1e-6
    assert np.abs(shared[:, -1]).max() < 1e-6  # share 1: one group
    assert abs(shared[-1, 0]) < 1e-6  # 90 degrees, a direction each
    assert shared[-1, 5] > 1 and shared[0, 0] > 1
    random = np.array(fig._random(11)["extra"])
    assert random.min() > -1e-6
    assert np.abs(random[:, [0, -1]]).max() < 1e-6
    assert random[0, 5] > 90  # two copies, nearly twice the penalty


def findings(split=1.0, best=0.52, identified=1e-8, found=(1.0, 0.3, 0.0)):
    results = fig._findings(
        {"way": {"ratio": [split, 1.2]}},
        {"example": {"best": best, "single": 0.55}, "ratio": [[0.9, 1.0]]},
        [{"ratios": [0.5, 0.1]}],
        {"lams": [1.1], "map": [[0.44, 0.0, 0.0]], "unit encoder": [list(found)], "free encoder": [[1.0, 1.0, 1.0]]},
        {"maps": identified, "read off": 1e-12, "read off D": 2.0},
    )
    return {one["sentence"]: one["status"] for one in results}


def test_findings_follow_the_numbers():
    assert findings(split=0.99)["consolidation"] == "refuted"
    assert findings(best=0.56)["soft-routing"] == "undecided"
    assert findings(identified=0.1)["uniqueness"] == "refuted"
    assert findings(found=(0.44, 0.0, 0.0))["released-variant"] == "undecided"
