"""Certificates of trained dictionaries: their costs are the training losses, optimal models have nothing to gain."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sasa_theory import certificates, saelens
from sasa_theory.bounds_groups import slice_map, slice_value
from sasa_theory.models import build
from sasa_theory.models.base import SparseModel
from sasa_theory.models.normaliser import Normaliser
from synthetic.errors import UsageError
from synthetic.world import World

WORLD = {
    "width": 12,
    "features": [{"manifold": "circle"}, {"manifold": "sphere"}, {"manifold": "helix"}],
    "support": {"law": "exact", "active": 1},
}


def trained(model: SparseModel, coefficient: float | None = None) -> certificates.Trained:
    return certificates.Trained(model.eval(), Normaliser.identity(model.width_in), coefficient)


def random_sasa(active: int = 2, rank: int = 2, **settings: object) -> SparseModel:
    model = build("sasa", width_in=12, n_groups=6, group_rank=rank, active_groups=active, **settings)
    model.initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.b_dec.copy_(torch.linspace(-0.1, 0.1, 12))
    return model


def set_map(model: SparseModel, group: int, map_: np.ndarray) -> None:
    """Give a group the symmetric map of rank at most r."""
    values, vectors = np.linalg.eigh(map_)
    half = torch.tensor(vectors[:, -model.rank :] * np.sqrt(np.maximum(values[-model.rank :], 0)), dtype=torch.float32)
    block = slice(group * model.rank, (group + 1) * model.rank)
    with torch.no_grad():
        model.W_enc[:, block] = half
        model.W_dec[block] = half.T


def test_costs_of_maps_are_the_training_loss() -> None:
    model = random_sasa(nuclear=0.05, penalise="active", aux_groups=0)
    x, fresh = (next(World.from_spec(WORLD).batches(400, stream=name)) for name in ("train", "eval"))
    report = certificates.certify_maps(trained(model), x, fresh, 0.05, seconds=1)
    with torch.no_grad():
        loss, fresh_loss = model.loss(x), model.loss(fresh)
    assert report.trained == pytest.approx(float(loss.total), rel=1e-5)
    assert report.held_out_trained_error == pytest.approx(float(fresh_loss.parts["reconstruction"]), rel=1e-5)
    everything = build("sasa", **{**model.settings(), "penalise": "all"})
    everything.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert report.trained + report.unused == pytest.approx(float(everything.loss(x).total), rel=1e-5)
    assert report.bound <= report.best <= report.same_rank <= report.trained
    assert report.suboptimality == (report.trained - report.best, report.trained - report.bound)


def test_at_one_group_per_row_the_optimum_is_the_closed_form_of_each_group() -> None:
    lam = 0.02
    model, world = random_sasa(active=1, rank=4), World.from_spec(WORLD)
    x = next(world.batches(600, stream="train"))
    z = x.double().numpy() - model.b_dec.double().detach().numpy()
    index = model.encode(x).index
    assert index is not None
    owner = index[:, 0].numpy()
    sigmas = [z[owner == k].T @ z[owner == k] / len(z) for k in range(6)]
    report = certificates.certify_maps(trained(model), x, x, lam, seconds=5)
    assert report.best == pytest.approx(sum(slice_value(sigma, lam) for sigma in sigmas), rel=1e-4)
    assert report.best - report.bound <= 1e-3 * report.energy


def test_optimal_maps_have_nothing_to_gain() -> None:
    lam = 0.02
    world = World.from_spec({**WORLD, "features": [{"manifold": "sphere"}]})
    x = next(world.batches(500, stream="train"))
    model = build("sasa", width_in=12, n_groups=2, group_rank=3, active_groups=1)
    with torch.no_grad():
        model.W_enc.zero_()
    z = x.double().numpy()
    set_map(model, 0, slice_map(z.T @ z / len(z), lam))
    report = certificates.certify_maps(trained(model), x, x, lam, seconds=2)
    least, most = report.suboptimality
    assert report.used_groups == 1 and report.rank_trained == 3
    assert -1e-9 <= least <= most <= 1e-4 * report.energy


def test_maps_that_are_no_linear_maps_are_refused() -> None:
    x = torch.randn(20, 12)
    model = random_sasa(encoder_bias=True)
    with torch.no_grad():
        model.b_enc.fill_(0.1)
    with pytest.raises(UsageError, match="encoder biases"):
        certificates.certify_maps(trained(model), x, x, 0.1, 1)
    with pytest.raises(UsageError, match="no groups"):
        certificates.certify_maps(trained(build("topk", width_in=12, n_latents=8, active_latents=2)), x, x, 0.1, 1)
    with pytest.raises(UsageError, match="--lam"):
        certificates.certify_maps(trained(random_sasa()), x, x, 0.0, 1)


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_costs_of_codes_are_half_the_training_loss(architecture: str) -> None:
    model = build(architecture, width_in=12, n_latents=30, coefficient=0.1, aux_latents=0)
    model.initialise(torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.W_dec.mul_(torch.linspace(0.5, 1.5, 30)[:, None])  # the l1 term counts a_j ||d_j||
    x = next(World.from_spec(WORLD).batches(300, stream="eval"))
    report, psi = certificates.certify_codes(trained(model), x, 0.05)
    parts = model.loss(x).parts
    reconstruction = parts["gate" if architecture == "gated" else "reconstruction"]
    assert 2 * report.cost == pytest.approx(float(reconstruction + parts["sparsity"]), rel=1e-5)
    assert report.psi == pytest.approx(psi.mean()) and len(psi) == report.rows == 300
    assert report.largest_duality_gap <= 1e-6
    assert 0 < report.gap <= report.gap_at_most


def test_with_an_orthonormal_decoder_the_best_codes_are_soft_thresholds() -> None:
    lam = 0.2
    model = build("relu", width_in=12, n_latents=12)
    with torch.no_grad():
        model.W_dec.copy_(torch.eye(12))
        model.W_enc.copy_(torch.eye(12))
        model.b_enc.fill_(-lam)  # relu(h - lam) is the best code: no amortisation gap
    x = next(World.from_spec(WORLD).batches(300, stream="eval"))
    report, psi = certificates.certify_codes(trained(model), x, lam)
    h = x.double().numpy()
    assert psi == pytest.approx(np.where(h > lam, lam * h - lam**2 / 2, h**2 / 2).sum(1), abs=1e-6)
    assert report.gap == pytest.approx(0, abs=1e-6)
    assert report.l0 == pytest.approx(report.best_l0, abs=0.05)


def test_no_decoder_is_below_the_floor_and_a_good_one_is_near() -> None:
    lam, world = 0.3, World.from_spec({**WORLD, "features": [{"manifold": "circle"}, {"manifold": "helix"}]})
    model = build("relu", width_in=12, n_latents=32)
    angles = 2 * math.pi * torch.arange(32) / 32
    with torch.no_grad():  # 32 rays evenly spaced on the circle: half as good as 32 lines
        model.W_dec.copy_(torch.stack([angles.cos(), angles.sin()], dim=1) @ world.frames()[0])
    (floor,) = certificates.floors(trained(model), world, lam, 1000)
    assert (floor.feature, floor.d) == (0, 2) and floor.radius == pytest.approx(1, abs=1e-6)
    assert floor.tiled < floor.floor < floor.psi
    assert floor.over < 3 * (floor.psi - floor.tiled)
    assert floor.psi - floor.tiled < 1e-2


def test_a_checkpoint_without_training_state_names_no_coefficient(tmp_path: Path) -> None:
    model = build("relu", width_in=12, n_latents=8, coefficient=0.1)
    saelens.save(model, tmp_path)
    loaded = certificates.load(tmp_path)
    assert loaded.coefficient is None and not loaded.grouped
    assert torch.equal(loaded.model.W_dec, model.W_dec)
