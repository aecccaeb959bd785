"""The driver: exact row counts, sources with and without truth, plain JSON out, clear errors."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sasa_theory import evaluation
from sasa_theory.models.base import SparseModel
from sasa_theory.models.codes import Codes
from synthetic.errors import DataError, UsageError

WIDTH, FEATURES = 12, 3


class TopGroup(SparseModel):
    """One active group per row, by norm."""

    architecture = "test_top_group"

    def encode(self, x: Tensor) -> Codes:
        p = self.pre_activations(x).reshape(len(x), self.n_units, self.rank)
        index = p.norm(dim=-1).argmax(dim=1, keepdim=True)
        return Codes(index, p.gather(1, index[..., None].expand(-1, -1, self.rank)), self.n_units)


@dataclass(frozen=True)
class Truth:
    x: Tensor
    index: Tensor
    coords: Tensor


class Planted:
    """A world of three orthogonal planes, one active per row, away from the origin."""

    width = WIDTH

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self._frames = list(torch.linalg.qr(torch.randn(WIDTH, 6, generator=g))[0].T.split([2, 2, 2]))
        self.bias = torch.ones(WIDTH)
        self.opened: list[tuple[int, str]] = []

    def frames(self) -> list[Tensor]:
        return self._frames

    def fingerprint(self) -> str:
        return "planted"

    def batches(self, size: int, device: torch.device | str = "cpu", stream: str = "train") -> "Stream":
        self.opened.append((size, stream))
        return Stream(self, size)


class Stream:
    width = WIDTH

    def __init__(self, world: Planted, size: int) -> None:
        self.world, self.size, self.generator = world, size, torch.Generator().manual_seed(1)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Tensor:
        return self.batch().x

    def batch(self) -> Truth:
        index = torch.randint(FEATURES, (self.size, 1), generator=self.generator)
        coords = torch.randn(self.size, 1, 2, generator=self.generator)
        x = torch.einsum("nj,njD->nD", coords[:, 0], torch.stack(self.world.frames())[index[:, 0]]) + self.world.bias
        return Truth(x, index, coords)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def planted_model(world: Planted) -> TopGroup:
    """Its groups are the planted frames, two spare groups are silent."""
    model = TopGroup(WIDTH, FEATURES + 2, 2)
    with torch.no_grad():
        blocks = torch.stack([*world.frames(), *[torch.zeros(2, WIDTH)] * 2]).reshape(-1, WIDTH)
        model.W_dec.copy_(blocks)
        model.W_enc.copy_(blocks.T)
        model.b_dec.copy_(world.bias)
    return model


def test_a_planted_model_scores_perfectly_and_the_report_is_plain_json():
    world = Planted()
    model = planted_model(world).train()
    report = evaluation.evaluate(model, world, 3001, batch_size=500)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["rows"] == 3001  # the last batch is cut
    assert world.opened == [(500, "eval")]
    assert model.training
    numbers = {name: {key: entry["value"] for key, entry in part.items()} for name, part in report["metrics"].items()}
    assert numbers["explained_variance"]["explained_variance"] == pytest.approx(1, abs=1e-10)
    assert numbers["explained_variance"]["rows"] == 3001
    assert numbers["cosine"]["cosine"] == pytest.approx(1)
    assert numbers["l0"]["l0"] == 2
    assert numbers["l0"]["l0_units"] == 1
    assert numbers["dead"]["dead_share"] == pytest.approx(2 / 5)
    assert numbers["ranks"]["mean_rank90"] == 2
    assert numbers["owners"]["owners"] == [1, 1, 1]
    assert sum(numbers["owners"]["points"]) == 3001
    assert numbers["feature_energy"]["units_per_feature"] == [1, 1, 1]
    assert numbers["feature_energy"]["features_counted"] == 3
    assert numbers["subspaces"]["best_capture"] == pytest.approx([1, 1, 1])
    assert numbers["subspaces"]["rank_error"] == 0
    assert all(
        entry["better"] in ("higher", "lower", "neither")
        for part in report["metrics"].values()
        for entry in part.values()
    )


def test_a_stream_with_truth_needs_the_world_named_and_gives_the_same_numbers():
    world = Planted()
    model = planted_model(world)
    whole = evaluation.evaluate(model, world, 1000, batch_size=250)
    assert evaluation.evaluate(model, Stream(world, 250), 1000, world=world) == whole
    blind = evaluation.evaluate(model, Stream(world, 250), 1000)
    assert set(whole["metrics"]) - set(blind["metrics"]) == {"feature_energy", "subspaces", "owners"}
    assert blind["metrics"]["explained_variance"] == whole["metrics"]["explained_variance"]


def test_a_plain_iterable_is_used_up_and_results_state_the_rows_they_saw():
    model = TopGroup(WIDTH, 4, 1)
    batches = [torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    assert evaluation.evaluate(model, batches, 1000)["rows"] == 120
    assert evaluation.evaluate(model, iter(batches), 70)["rows"] == 70
    result = evaluation.run(model, batches, 70, [evaluation.Sparsity()])["l0"]
    assert (result.rows, result.l0) == (70, 1)


def test_bad_requests_are_refused_with_a_sentence():
    model = TopGroup(WIDTH, 4, 1)
    good = torch.ones(5, WIDTH)
    with pytest.raises(UsageError, match="n_rows"):
        evaluation.evaluate(model, [good], 0)
    with pytest.raises(UsageError, match=r"expected \(batch, 12\)"):
        evaluation.evaluate(model, [torch.ones(5, 7)], 5)
    with pytest.raises(DataError, match=r"row 5.*row 2"):
        broken = good.clone()
        broken[2, 0] = torch.nan
        evaluation.evaluate(model, [good, broken], 10)
    with pytest.raises(DataError, match="ended"):
        evaluation.evaluate(model, [], 5)
    with pytest.raises(UsageError, match="different names"):
        evaluation.run(model, [good], 5, [evaluation.Cosine(), evaluation.Cosine()])
