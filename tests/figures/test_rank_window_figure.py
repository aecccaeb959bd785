"""The rank window's figure on a few steps, and its ranks on models whose maps are the best ones."""

import json
import math

import numpy as np
import pytest
import torch

import figures.rank_window as window
from figures import Context, figures
from sasa_theory.bounds import slice_map
from sasa_theory.evaluation.rank_window import planted_windows, trained_ranks, window_world
from sasa_theory.models import SASA
from sasa_theory.training import Run

DIMS, WIDTH, NOISE, RANK = (2, 3), 8, 0.02, 4


def best_model(lam: float) -> tuple[SASA, object]:
    """A SASA whose groups hold the best maps of the planted second moments, cut to its rank."""
    world = window_world(DIMS, WIDTH, NOISE, seed=0)
    model = SASA(WIDTH, len(DIMS), RANK, 1)
    with torch.no_grad():
        for i, (d, frame) in enumerate(zip(DIMS, world.frames(), strict=True)):
            v = frame.double().numpy()
            values, vectors = np.linalg.eigh(slice_map((v.T @ v / d + NOISE * np.eye(WIDTH)) / len(DIMS), lam))
            top, gains = vectors[:, -RANK:].T, values[-RANK:]
            rows = slice(RANK * i, RANK * (i + 1))
            model.W_enc[:, rows] = torch.from_numpy((top * np.sqrt(gains.clip(0))[:, None]).T)
            model.W_dec[rows] = torch.from_numpy(top * np.sqrt(gains.clip(0))[:, None])
    return model, world


@pytest.mark.parametrize("place", ["below", "inside", "above"])
def test_best_maps_have_the_rank_that_the_window_says(place, tmp_path):
    windows = planted_windows(DIMS, NOISE)
    low, high = windows[0].low, min(w.high for w in windows)
    lam = {"below": low / 4, "inside": math.sqrt(low * high), "above": 0.99 * max(w.high for w in windows)}[place]
    model, world = best_model(lam)
    ranks = [one.rank for one in trained_ranks(Run(tmp_path, model, [], 0.0), world)]
    # above: the larger feature is lost first, the smaller one's gain is under what counts as zero for a trained map
    assert ranks == {"below": [RANK, RANK], "inside": list(DIMS), "above": [0, 0]}[place]


def test_exact_ranks_fall_with_the_penalty_and_cross_the_window():
    world = window_world(DIMS, WIDTH, NOISE, seed=1)
    low, high = planted_windows(DIMS, NOISE)[1]
    (_, ranks) = window._exact_ranks(world, 20_000, np.array([low / 10, math.sqrt(low * high), 2 * high]), 0)
    assert ranks == [WIDTH, DIMS[1], 0]


def test_the_figure_draws_what_it_measured(tmp_path, monkeypatch):
    small = {"dims": (1, 2), "width": 4, "groups": 2, "rank": 2, "steps": 10, "penalties": 2}
    monkeypatch.setitem(window.SIZES, "standard", small)
    result = figures["rank-window"].run(Context("standard", (0,), tmp_path))
    result = json.loads(json.dumps(result, allow_nan=False))
    assert {one["penalty"] for one in result["numbers"]["trained"]} == {"map", "decoder"}
    assert [finding["sentence"] for finding in result["findings"]] == ["rank-window"]
    assert len(result["tables"][0]["rows"]) == 4
    picture = figures["rank-window"].draw(result)["figure"]
    assert len(picture.axes) == 4
