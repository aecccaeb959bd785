"""Explained variance, cosine, L0, dead units: invariances, direct formulas, and how results describe themselves."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory import evaluation
from sasa_theory.evaluation import base, covering, planted, reconstruction, subspaces
from sasa_theory.models.codes import Codes
from synthetic.errors import LabError, UsageError

modest = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)
NO_CODES = Codes(None, torch.zeros(0, 1, 1), 1)


def rows(seed: int, n: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    spread = torch.rand(width, generator=g, dtype=torch.float64) * 3 + 0.1
    x = torch.randn(n, width, generator=g, dtype=torch.float64) * spread + torch.randn(width, generator=g)
    return x, x + 0.4 * torch.randn(n, width, generator=g, dtype=torch.float64)


def explained(x: torch.Tensor, xhat: torch.Tensor, cuts: list[int] | None = None) -> float:
    calculator = evaluation.ExplainedVariance()
    for part, other in zip(x.tensor_split(cuts or []), xhat.tensor_split(cuts or []), strict=True):
        calculator.update(part, other, NO_CODES)
    return calculator.compute().explained_variance


def formula(x: torch.Tensor, xhat: torch.Tensor) -> float:
    return 1 - float((x - xhat).square().sum() / (x - x.mean(dim=0)).square().sum())


@modest
@given(seed=seeds, n=st.integers(2, 60), width=st.integers(1, 9), data=st.data())
def test_explained_variance_is_its_formula_however_the_rows_are_cut(seed, n, width, data):
    x, xhat = rows(seed, n, width)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=5)))  # empty batches and batches of one included
    assert explained(x, xhat, cuts) == pytest.approx(formula(x, xhat), rel=1e-11)


@modest
@given(
    seed=seeds, n=st.integers(2, 40), width=st.integers(1, 6), scale=st.floats(1e-5, 1e5), shift=st.floats(-1e5, 1e5)
)
def test_explained_variance_does_not_see_a_common_scale_or_shift(seed, n, width, scale, shift):
    x, xhat = rows(seed, n, width)
    cuts = [n // 2]
    expected = explained(x, xhat)
    assert explained(scale * x, scale * xhat, cuts) == pytest.approx(expected, rel=1e-9)
    # float64 rows near 1e5 still hold the difference to 1e-11; second moments minus squared means would not
    assert explained(x + shift, xhat + shift, cuts) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_explained_variance_fixed_points_and_the_wrong_formula():
    x, xhat = rows(0, 500, 7)
    assert explained(x, x) == 1.0
    assert explained(x, x.mean(dim=0).expand_as(x)) == pytest.approx(0, abs=1e-12)
    assert explained(x, 2 * x.mean(dim=0) - x) == pytest.approx(-3)
    # averaging squares per dimension, then the ratios, weighs dimensions equally: a different number
    per_dimension = 1 - ((x - xhat).square().sum(0) / (x - x.mean(0)).square().sum(0)).mean()
    assert abs(explained(x, xhat) - float(per_dimension)) > 0.05


def test_normalised_units_are_reported_beside_raw_ones():
    x, _ = rows(2, 300, 5)
    scale = torch.rand(300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 9 + 1
    normal = x / scale
    codes = Codes(None, 0.9 * normal[:, None], 1)  # xhat' = .9 x'
    calculator = evaluation.ExplainedVariance(units=lambda batch, codes: (normal, codes.values[:, 0]))
    calculator.update(x, 0.9 * normal * scale, codes)
    result = calculator.compute()
    assert result.explained_variance == pytest.approx(formula(x, 0.9 * x))
    assert result.explained_variance_normalised == pytest.approx(formula(normal, 0.9 * normal))
    assert abs(result.explained_variance - result.explained_variance_normalised) > 1e-4


def test_equal_rows_have_no_explained_variance():
    with pytest.raises(LabError, match="equal"):
        explained(torch.ones(5, 3), torch.ones(5, 3))
    with pytest.raises(LabError, match="before it saw any row"):
        evaluation.ExplainedVariance().compute()
    with pytest.raises(UsageError, match="shape"):
        explained(torch.ones(5, 3), torch.ones(5, 2))


@modest
@given(seed=seeds, n=st.integers(2, 40), width=st.integers(1, 6), cut=st.integers(0, 40), scale=st.floats(1e-3, 1e3))
def test_cosine_is_the_mean_of_row_cosines(seed, n, width, cut, scale):
    x, xhat = rows(seed, n, width)
    x[0] = 0
    calculator = evaluation.Cosine()
    for part, other in zip(x.tensor_split([cut]), (scale * xhat).tensor_split([cut]), strict=True):
        calculator.update(part, other, NO_CODES)
    expected = torch.nn.functional.cosine_similarity(x, xhat, dim=1).nan_to_num().mean()
    assert calculator.compute().cosine == pytest.approx(float(expected), abs=1e-9)


@st.composite
def gated_codes(draw):
    units, slots, rank, n = (draw(st.integers(1, top)) for top in (9, 4, 3, 20))
    g = torch.Generator().manual_seed(draw(seeds))
    slots = min(slots, units)
    index = torch.stack([torch.randperm(units, generator=g)[:slots] for _ in range(n)])
    values = torch.randn(n, slots, rank, generator=g)
    values[torch.rand(values.shape, generator=g) < 0.2] = 0  # single zero coefficients
    empty = torch.rand(n, slots, generator=g) < 0.3
    index[empty], values[empty] = -1, 0
    return Codes(index, values, units)


@modest
@given(codes=gated_codes(), cut=st.integers(0, 20))
def test_sparsity_and_dead_share_count_the_dense_codes_nonzeros(codes, cut):
    dense = codes.dense()
    sparse_sum = {}
    for kind in ("gated", "dense"):
        sparsity, dead = evaluation.Sparsity(), evaluation.DeadShare()
        for part in (slice(0, cut), slice(cut, None)):
            index = codes.index[part] if kind == "gated" else None
            piece = Codes(index, (codes.values if kind == "gated" else dense)[part], codes.n_units)
            x = torch.zeros(len(piece.values), 2)
            sparsity.update(x, x, piece)
            dead.update(x, x, piece)
        sparse_sum[kind] = (sparsity.compute(), dead.compute())
    for first, second in zip(sparse_sum["gated"], sparse_sum["dense"], strict=True):
        assert base.describe(first) == base.describe(second)
    sparsity, dead = sparse_sum["gated"]
    n = len(dense)
    assert sparsity.l0 == pytest.approx(int((dense != 0).sum()) / n)
    assert sparsity.l0_units == pytest.approx(int((dense != 0).any(dim=2).sum()) / n)
    assert sparsity.l0_max == int((dense != 0).sum(dim=(1, 2)).max())
    fired = (dense != 0).any(dim=2).any(dim=0)
    assert dead.dead_share == pytest.approx(float((~fired).double().mean()))
    assert (dead.units, dead.rows) == (codes.n_units, n)


RESULTS = [
    value
    for module in (reconstruction, planted, subspaces, covering)
    for name, value in vars(module).items()
    if name.endswith("Result") and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda cls: cls.__name__)
def test_every_number_of_every_result_says_its_direction_unit_and_meaning(result):
    assert result.__dataclass_params__.frozen
    for item in dataclasses.fields(result):
        assert item.metadata["better"] in ("higher", "lower", "neither")
        assert item.metadata["unit"]
        assert item.metadata["meaning"]


def test_results_describe_themselves_in_plain_json():
    x, xhat = rows(1, 20, 3)
    calculator = evaluation.ExplainedVariance()
    calculator.update(x, xhat, NO_CODES)
    described = evaluation.describe(calculator.compute())
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["explained_variance"]["better"] == "higher"
    assert described["mean_squared_error"]["better"] == "lower"
    assert described["explained_variance_normalised"]["value"] is None
    assert base.plain({"a": np.array([1.0, math.inf]), 2: (np.int64(3), torch.tensor([math.nan]))}) == {
        "a": [1.0, None],
        "2": [3, [None]],
    }
