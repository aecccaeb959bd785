"""The figure of the path: its numbers on a small run, and its finding from made-up results."""

import json
import math

import numpy as np
import pytest

import figures.descent as fig
from figures import Context, figures, load_all
from sasa_theory.geometry import sphere


def untrained(d, n_latents, *rest):
    rng = np.random.default_rng(0)
    return sphere(n_latents, d, rng), rng.standard_normal((50, d))


@pytest.fixture
def small(monkeypatch):
    for name, value in (("ENDS", {2: 9, 3: 6}), ("DESCENTS", (5,)), ("TRAINED", ((2, 6),)), ("POINTS", 60)):
        monkeypatch.setitem(getattr(fig, name), "quick", value)
    monkeypatch.setattr(fig, "trained_dictionary", untrained)
    monkeypatch.setattr(fig, "_normal", lambda: {"slope": -0.05650})


def test_the_result_is_drawn_from_the_file_alone(small, tmp_path):
    load_all()
    measured = figures["descent"].run(Context("quick", (0,), tmp_path))
    read_back = json.loads(json.dumps(measured, allow_nan=False))
    (picture,) = figures["descent"].draw(read_back).values()
    picture.savefig(tmp_path / "picture.png")
    for shown in read_back["tables"]:
        assert all(len(row) == len(shown["columns"]) for row in shown["rows"]), shown["title"]
    plane, space = read_back["numbers"]["paths"]
    assert len(plane["risk"]) == 7 * fig.PARTS + 1
    assert plane["gaps"][0] == pytest.approx(45)
    assert space["gaps"][0] == pytest.approx(math.degrees(math.acos(1 / math.sqrt(3))))
    assert plane["covering"][0] == pytest.approx(45)  # two lines at right angles are the best two
    for path in (plane, space):
        assert all(least <= gap + 1e-9 for least, gap in zip(path["covering"], path["gaps"], strict=True))


def finding(rise=0.0, slope=-0.05, excess=1.7, one_way=4):
    limit, floor = fig._limit(), fig._floor(3, 2)
    risk = [limit + excess * (floor - limit) * (1.1 - 0.01 * i) for i in range(fig.PARTS + 1)]
    risk[3] += rise
    path = {"d": 2, "risk": risk, "floor": [floor, floor]}
    descent = {"end": limit + excess * (floor - limit), "floor": floor}
    split = {"splits": 4, "one way": one_way, "both ways": 2}
    return fig._finding([path], [{"slope": slope}], [descent], [split])["status"]


def test_the_finding_needs_every_part_of_the_sentence():
    assert finding() == "supported"
    assert finding(rise=1e-4) == "supported"  # not monotone, and still below the start of the move
    assert finding(rise=1e-2) == "refuted"
    assert finding(slope=0.0) == "refuted"
    assert finding(excess=5.0) == "refuted"
    assert finding(one_way=3) == "refuted"
