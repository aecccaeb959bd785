"""The yardsticks on a world they solve exactly, and the worlds they are measured on."""

import numpy as np
import pytest

from figures.yardsticks import REFERENCES, TRUTH, references
from sasa_theory.evaluation import ExplainedVariance, Subspaces
from sasa_theory.evaluation import run as feed
from synthetic import World

SPEC = {"width": 12, "features": [{"manifold": "subspace", "dim": [2, 3], "count": 2}], "frames": "orthogonal"}


@pytest.fixture(scope="module")
def made():
    world = World.from_spec({**SPEC, "support": {"law": "exact", "active": 2}})
    return world, references(world, 3, 40, 600, 0)


def test_the_truth_explains_everything_and_holds_each_feature_alone(made):
    world, models = made
    assert tuple(models) == REFERENCES
    truth, own = models[TRUTH]
    assert own is world
    got = feed(truth, world, 2000, [ExplainedVariance(), Subspaces(world.frames(), truth.blocks()[1])])
    assert got["explained_variance"].explained_variance == pytest.approx(1, abs=1e-6)
    assert got["subspaces"].matched_capture == pytest.approx(np.ones(4), abs=1e-6)


def test_clusterings_are_measured_on_one_feature_a_row_and_pca_has_the_active_columns(made):
    world, models = made
    for name in ("K-lines", "K-subspaces"):
        model, own = models[name]
        assert own.support.active == 1 and own.statistics().total_energy == pytest.approx(1)
        assert feed(model, own, 2000, [ExplainedVariance()])["explained_variance"].explained_variance > 0.8
    assert models["PCA"][0].n_units == 2 * 3
    assert models["K-lines"][0].n_units == 40 and models["K-subspaces"][0].n_units == len(world.dims)
