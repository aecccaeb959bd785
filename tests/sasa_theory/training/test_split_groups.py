"""Merged groups are split and whole ones stay; a resumed run splits as the straight one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sasa_theory.evaluation.subspaces import CodeMoments, capture_matrix, contribution_directions
from sasa_theory.models import SASA, build
from sasa_theory.training import Trainer, TrainSettings
from sasa_theory.training.split_groups import (
    GAIN,
    SLACK,
    fit_mixture,
    mean_loss,
    rows_needed,
    split_groups,
    unit_values,
    whitening,
)
from sasa_theory.training.trainer import STATE
from synthetic import World
from synthetic.errors import Interrupted, UsageError

WIDTH = 24


def world_of(dims, active=1, seed=0, manifold="subspace"):
    features = [{"manifold": manifold, "dim": d} if manifold == "subspace" else {"manifold": manifold} for d in dims]
    support = {"law": "exact", "active": active}
    return World.from_spec({"width": WIDTH, "seed": seed, "features": features, "support": support})


def merged(world, rank, seed):
    """The first two features in group 0, in a basis of no meaning; the others a group each; the last group is spare."""
    model = SASA(WIDTH, n_groups=len(world.dims), group_rank=rank, active_groups=world.support.active)
    generator = torch.Generator().manual_seed(seed)
    frames = world.frames()
    held = [torch.cat(frames[:2]), *frames[2:]]
    with torch.no_grad():
        model.W_enc.mul_(1e-3)
        for k, rows in enumerate(held):
            turn = torch.linalg.qr(torch.randn(len(rows), len(rows), generator=generator)).Q
            part = slice(k * rank, k * rank + len(rows))
            model.W_dec[part] = turn @ rows
            model.W_enc[:, part] = torch.linalg.pinv(turn @ rows)
    return model


def captures(model, world):
    codes = model.encode(world.rows(8000, 3))
    moments = CodeMoments(model.n_units, model.rank)
    moments.update(codes)
    return capture_matrix(world.frames(), contribution_directions(model.blocks()[1], moments.value()))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@settings(deadline=None, max_examples=25)
@given(
    dims=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    slack=st.integers(0, 3),
    seed=st.integers(0, 10_000),
)
def test_two_features_in_a_group_come_apart_whatever_its_basis(dims, slack, seed):
    """With one feature on in a row; where more are, the parts are near enough for training to take them further."""
    world = world_of(dims, 1, seed)
    model = merged(world, max(sum(dims[:2]), *dims) + slack, seed)
    rows = world.rows(512 * len(dims), seed)
    # frames so near each other that the merged group's inverse wins the others' rows too leave more than one spare
    assume(bool((model.encode(rows).counts()[1:-1] > 0).all()))
    before = mean_loss(model, rows, 1.0)
    done = split_groups(model, rows, torch.Generator().manual_seed(seed))
    assert done == [(0, len(dims) - 1)]
    assert mean_loss(model, rows, 1.0) < before + 0.01 * len(dims)
    best = captures(model, world).max(dim=1)
    assert best.values.min() > 0.9
    assert best.indices[0] != best.indices[1]


@settings(deadline=None, max_examples=25)
@given(dims=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 10_000))
def test_a_whole_feature_is_left_alone_bit_for_bit(dims, seed):
    """The false twin: the same group, but its directions are used together."""
    world = world_of([*dims, 1], seed=seed)
    model = SASA(WIDTH, n_groups=len(dims) + 2, group_rank=6, active_groups=1)
    with torch.no_grad():
        model.W_enc.mul_(1e-3)
        for k, frame in enumerate(world.frames()):
            model.W_dec[6 * k : 6 * k + len(frame)] = frame
            model.W_enc[:, 6 * k : 6 * k + len(frame)] = frame.T
    before = weights(model)
    assert split_groups(model, world.rows(512 * len(dims) + 512, seed), torch.Generator().manual_seed(seed)) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_merged_features_stay_where_every_group_is_needed():
    """The weakest group holds a feature of its own: a split would take it, and the loss refuses."""
    world = world_of([2, 3, 2], active=2)
    model = SASA(WIDTH, n_groups=2, group_rank=5, active_groups=2)
    with torch.no_grad():
        model.W_enc.zero_()
        frames = world.frames()
        for column, frame in ((0, frames[0]), (2, frames[1]), (5, frames[2])):
            model.W_dec[column : column + len(frame)] = frame
            model.W_enc[:, column : column + len(frame)] = frame.T
    rows, before = world.rows(2000, 1), weights(model)
    values, on = unit_values(model.encode(rows), 512)
    assert fit_mixture(values, on, torch.Generator().manual_seed(0)).gain[0] > GAIN
    assert split_groups(model, rows, torch.Generator().manual_seed(0)) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), rank=st.integers(2, 6), bias=st.booleans())
def test_untrained_groups_end_with_a_higher_loss_only_by_the_slack(seed, rank, bias):
    world = world_of([3, 2, 1, 4], active=2, seed=seed)
    model = SASA(WIDTH, 5, rank, 2, nuclear=0.01, penalise="all", encoder_bias=bias)
    model.initialise(torch.Generator().manual_seed(seed))
    if bias:
        torch.nn.init.normal_(model.b_enc, std=0.1, generator=torch.Generator().manual_seed(seed))
    rows = world.rows(1500, seed)
    before = mean_loss(model, rows, 1.0)
    done = split_groups(model, rows, torch.Generator().manual_seed(seed))
    after = mean_loss(model, rows, 1.0)
    energy = float(rows.square().sum(dim=1).mean())
    assert after < before + len(done) * SLACK * 4 * energy if done else after == before
    changed = [k for pair in done for k in pair]
    assert len(set(changed)) == len(changed)
    for k in changed:
        block = model.blocks()[1][k].double()
        torch.testing.assert_close(block @ block.T, torch.eye(rank).double(), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), rank=st.integers(1, 5))
def test_whitened_coefficients_have_unit_second_moment(seed, rank):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 200, rank, generator=generator, dtype=torch.float64)
    decoder = torch.randn(3, rank, 9, generator=generator, dtype=torch.float64)
    moment = values.transpose(1, 2) @ values / 200
    w = values @ whitening(moment, decoder)
    held = w.square().mean(dim=1)
    assert torch.allclose(held, held.round(), atol=1e-9)  # 1, or 0 where a direction is left out
    assert held[:, -1].min() > 0.5
    contribution = values @ decoder
    energy = torch.linalg.eigvalsh(contribution.transpose(1, 2) @ contribution / 200)[:, -rank:]
    assert torch.equal(held.round().sum(dim=1), (energy > 0.01 * energy[:, -1:]).sum(dim=1).double())


def test_the_gain_is_the_likelihoods_difference():
    """Against the textbook density, on the covariances that were fitted; the other groups' rows do not matter."""
    generator = np.random.default_rng(0)
    w = np.where(generator.random((400, 1)) < 0.3, generator.normal(size=(400, 3)) * [1.8, 0.05, 0.05], 0)
    w += np.where(w[:, :1] == 0, generator.normal(size=(400, 3)) * [0.05, 1.2, 1.2], 0)
    rows = torch.from_numpy(np.stack([w, generator.normal(size=(400, 3))]))
    on = torch.ones(2, 400, dtype=torch.bool)
    mixture = fit_mixture(rows, on, torch.Generator().manual_seed(0))
    share = 0.3
    density = 0.0
    for part, covariance in ((share, mixture.first[0]), (1 - share, mixture.second[0])):
        if float(covariance[0, 0]) < float(covariance[1, 1]) and part == share:
            part = 1 - share
        elif float(covariance[0, 0]) > float(covariance[1, 1]) and part == 1 - share:
            part = share
        inverse = np.linalg.inv(covariance.numpy())
        size = math.sqrt(np.linalg.det(covariance.numpy()))
        density = density + part * np.exp(-0.5 * np.einsum("ni,ij,nj->n", w, inverse, w)) / size
    expected = float((np.log(density) + 0.5 * np.square(w).sum(axis=1)).mean())
    assert float(mixture.gain[0]) == pytest.approx(expected, abs=0.02)  # its own share is not 0.3 exactly
    assert float(mixture.gain[0]) > 1 > GAIN > float(mixture.gain[1])
    alone = fit_mixture(rows.flip(0)[:1], on[:1], torch.Generator().manual_seed(1))
    assert float(alone.gain[0]) < GAIN


@pytest.mark.parametrize(
    ("architecture", "made"),
    [
        ("topk", {"n_latents": 8, "active_latents": 2}),
        ("sasa", {"n_groups": 8, "group_rank": 1, "active_groups": 2}),
        ("grouplasso", {"n_groups": 8, "group_rank": 2, "target_l0": 2.0}),
    ],
)
def test_models_without_groups_to_split_are_refused(architecture, made):
    model = build(architecture, width_in=WIDTH, **made)
    with pytest.raises(UsageError, match="splits=0"):
        rows_needed(model)
    with pytest.raises(UsageError, match="splits=0"):
        Trainer(model, world_of([2]).batches(8), TrainSettings(steps=1, splits=1))


def test_splits_are_spread_over_the_first_half_and_leave_other_runs_their_names():
    made = TrainSettings(steps=100, splits=4)
    assert [step for step in range(101) if made.splits_after(step)] == [12, 25, 37, 50]
    assert made.as_dict()["splits"] == 4
    assert "splits" not in TrainSettings().as_dict()
    assert not any(TrainSettings(steps=100).splits_after(step) for step in range(101))
    with pytest.raises(UsageError):
        TrainSettings(splits=-1)


class Merged(SASA):
    """A SASA that starts with its first two features in one group."""

    start: "dict[str, torch.Tensor]" = {}  # noqa: RUF012 (replaced, never changed)

    def initialise(self, generator, rows=None):
        super().initialise(generator, rows)
        if self.start:
            self.load_state_dict(self.start)


def test_a_run_stopped_around_its_splits_ends_as_the_straight_one(tmp_path):
    """And a split did happen: without any the two features end in one group."""
    world = world_of([3, 2, 2, 1], active=2, seed=4)

    def trainer(out, splits=3):
        options = TrainSettings(steps=60, batch_size=64, splits=splits, dead_window=300, checkpoint_every=70)
        model = Merged(WIDTH, n_groups=4, group_rank=5, active_groups=2)
        model.start = merged(world, 5, 0).state_dict()
        return Trainer(model, world.batches(64, stream="train:0"), options, out=out)

    straight, without = trainer(tmp_path / "straight"), trainer(None, splits=0)
    for run, apart in ((straight, True), (without, False)):
        run.fit()
        first, second = captures(run.model, world).argmax(dim=1)[:2]
        assert (first != second) == apart
    for step in (9, 10, 11):
        place = tmp_path / str(step)
        first = trainer(place)
        first._late = lambda first=first, step=step: first.step >= step
        with pytest.raises(Interrupted):
            first.fit()
        trainer(place).fit(resume=True)
        assert (place / STATE).read_bytes() == (tmp_path / "straight" / STATE).read_bytes()


def test_a_plain_iterator_keeps_its_rows_in_order():
    """The rows a split looks at come back in their place, also when it looks again before they are used up."""
    batches = [world_of([2, 1]).rows(32, seed) for seed in range(40)]
    run = Trainer(SASA(WIDTH, 3, 2, 1), iter(batches), TrainSettings(steps=30, batch_size=32))
    looked = [run._peek(200)[:32], run._peek(500)[:32], next(run._rows), run._peek(100)[:32], next(run._rows)]
    for got, expected in zip(looked, (0, 0, 0, 1, 1), strict=True):
        assert torch.equal(got, batches[expected])
    assert [float(x.sum()) for x in run._rows] == [float(x.sum()) for x in batches[2:]]
