"""Per-block recovery and detection: against loops over rows, and on dictionaries whose numbers are known."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.evaluation import Detection, FactorRecovery, evaluate, oracle_recovery, run
from sasa_theory.evaluation.detection import similarity
from sasa_theory.evaluation.factors import without_best_atoms
from sasa_theory.models import Codes, build
from synthetic import World
from synthetic.errors import UsageError

seeds = st.integers(0, 2**32 - 1)


@dataclass
class Truth:
    """The part of a world's batch that these calculators read."""

    x: torch.Tensor
    index: torch.Tensor
    coords: torch.Tensor


@st.composite
def scenes(draw, one_dimensional: bool = False, ranks=(1, 2, 3)):
    """Random frames, truth and codes with no relation between them, ties and silent units included."""
    g = torch.Generator().manual_seed(draw(seeds))
    dims = draw(st.lists(st.integers(1, 1 if one_dimensional else 3), min_size=2, max_size=4))
    width, n, units, rank = 5, 24, draw(st.integers(1, 5)), draw(st.sampled_from(ranks))
    frames = [torch.linalg.qr(torch.randn(width, d, generator=g, dtype=torch.float64))[0].T for d in dims]
    slots = draw(st.integers(1, len(dims)))
    index = torch.stack([torch.randperm(len(dims), generator=g)[:slots] for _ in range(n)]).sort(1).values
    index[torch.rand(n, slots, generator=g) < 0.3] = -1
    coords = torch.randn(n, slots, max(dims), generator=g, dtype=torch.float64)
    for i, d in enumerate(dims):
        coords[index == i] *= torch.arange(max(dims)) < d
    coords[index < 0] = 0
    decoder = torch.randn(units, rank, width, generator=g, dtype=torch.float64)
    values = torch.randn(n, units, rank, generator=g, dtype=torch.float64)
    values[torch.rand(n, units, generator=g) < 0.5] = 0
    x = torch.randn(n, width, generator=g, dtype=torch.float64)
    return frames, decoder, Codes(None, values, units), Truth(x, index, coords)


def feed(calculator, codes: Codes, truth: Truth, cuts=(0, 24)):
    for start, stop in itertools.pairwise(cuts):
        rows = slice(start, stop)
        part = Truth(truth.x[rows], truth.index[rows], truth.coords[rows])
        calculator.update(part.x, part.x, Codes(None, codes.values[rows], codes.n_units), part)
    return calculator.compute()


def f1(predicted: list[bool], actual: list[bool]) -> float:
    hits = sum(p and a for p, a in zip(predicted, actual, strict=True))
    return 2 * hits / max(1, sum(predicted) + sum(actual))


# ---- per-block recovery --------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(scenes(), st.integers(1, 23))
def test_factor_recovery_is_its_formula(scene, cut):
    """Row by row: contributions of the factor, of its unit (or of the atoms chosen by trying each), their variance."""
    frames, decoder, codes, truth = scene
    found = feed(FactorRecovery(frames, decoder, least=1), codes, truth, (0, cut, 24))
    n, units, rank = 24, *decoder.shape[:2]
    fires = (codes.values != 0).any(2)
    for i, frame in enumerate(frames):
        actual = [bool((truth.index[t] == i).any()) for t in range(n)]
        scores = [f1(fires[:, k].tolist(), actual) for k in range(units)]
        assert found.presence[i] == pytest.approx(max(scores))
        assert scores[found.unit[i]] == pytest.approx(max(scores))
        rows = [t for t in range(n) if actual[t]]
        assert found.active_rows[i] == len(rows)
        if not rows:
            assert math.isnan(found.r2[i])
            continue
        wanted = torch.stack([truth.coords[t][truth.index[t] == i][0][: len(frame)] @ frame for t in rows])
        spread = (wanted - wanted.mean(0)).square().sum()
        if rank > 1:
            left = wanted - codes.values[rows, found.unit[i]] @ decoder[found.unit[i]]
        else:
            left = wanted
            free = set(range(units))
            for _ in range(len(frame)):
                tried = {k: left - codes.values[rows, k] @ decoder[k] for k in free}
                best = min(tried, key=lambda k: float(tried[k].square().sum()), default=None)
                if best is None or tried[best].square().sum() >= left.square().sum():
                    break
                left = tried[best]
                free.remove(best)
        if spread > 1e-9:
            assert found.r2[i] == pytest.approx(float(1 - left.square().sum() / spread), rel=1e-5, abs=1e-5)


def test_planted_blocks_recover_everything_and_lone_atoms_do_not() -> None:
    """True frames gated by the truth: R^2 = 1 with a block each, and with d_i columns each, but not with one column
    too few; a block that serves another factor explains nothing."""
    world = World.from_spec(
        {
            "width": 12,
            "features": [{"manifold": "circle", "count": 3}, {"manifold": "sphere", "count": 2}],
            "support": {"law": "exact", "active": 2},
        }
    )
    batch = world.sample(600, 0)
    blocks = torch.zeros(5, 3, 12, dtype=torch.float64)
    values = torch.zeros(600, 5, 3, dtype=torch.float64)
    for i, frame in enumerate(world.frames()):
        blocks[i, : len(frame)] = frame.double()
    row, slot = (batch.index >= 0).nonzero(as_tuple=True)
    values[row, batch.index[row, slot]] = batch.coords[row, slot].double()
    whole = FactorRecovery(world.frames(), blocks)
    whole.update(batch.x, batch.x, Codes(None, values, 5), batch)
    found = whole.compute()
    assert found.unit.tolist() == [0, 1, 2, 3, 4] and found.presence.tolist() == [1.0] * 5
    assert found.mean_r2 == pytest.approx(1, abs=1e-6)

    def columns(codes: torch.Tensor) -> list[float]:
        calculator = FactorRecovery(world.frames(), blocks.reshape(15, 1, 12))
        calculator.update(batch.x, batch.x, Codes(None, codes.reshape(600, 15, 1), 15), batch)
        return calculator.compute().r2.tolist()

    assert columns(values) == pytest.approx([1.0] * 5, abs=1e-6)
    values[:, :, 0] = 0
    assert all(0.2 < r2 < 0.8 for r2 in columns(values)), "half of a circle, two thirds of a sphere"


def test_no_atom_is_taken_that_makes_it_worse() -> None:
    from scipy import sparse

    wanted = torch.eye(3, dtype=torch.float64).numpy()
    codes = sparse.csr_array([[1.0, 3.0], [0, 0], [0, 0]])
    rest = without_best_atoms(wanted, codes, torch.eye(3, dtype=torch.float64).numpy()[:2], 2)
    assert rest.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    # and none twice, though a second time would lower the error too
    rest = without_best_atoms(3 * wanted[:1], sparse.csr_array([[1.0]]), wanted[:1], 2)
    assert rest.tolist() == [[2, 0, 0]]


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.2]))
def test_the_oracle_is_least_squares_on_the_true_frames(seed, noise):
    world = World.from_spec(
        {
            "width": 16,
            "seed": seed % 1000,
            "features": [{"manifold": "line", "count": 4}, {"manifold": "sphere", "count": 3}],
            "support": {"law": "independent", "rates": 0.25},
            "noise": noise,
            "bias": 1.0,
        }
    )
    batch = world.sample(80, seed % 2**31)
    if batch.index.shape[1] * 3 > 16:
        with pytest.raises(UsageError, match="more than x can tell apart"):
            oracle_recovery(batch, world.bias)
        return
    got = oracle_recovery(batch, world.bias)
    frames, wanted, left = world.frames(), [[] for _ in range(7)], [[] for _ in range(7)]
    for t in range(80):
        on = [int(i) for i in batch.index[t] if i >= 0]
        if not on:
            continue
        basis = torch.cat([frames[i] for i in on]).double()
        c = torch.linalg.lstsq(basis.T, (batch.x[t] - world.bias).double()).solution.split([len(frames[i]) for i in on])
        for slot, i in enumerate(on):
            true = batch.coords[t, slot, : len(frames[i])].double()
            wanted[i].append(true @ frames[i].double())
            left[i].append((true - c[slot]) @ frames[i].double())
    for i in range(7):
        if len(wanted[i]) < 2:
            continue
        m, error = torch.stack(wanted[i]), torch.stack(left[i])
        expected = 1 - error.square().sum() / (m - m.mean(0)).square().sum()
        assert float(got[i]) == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
        assert noise or float(got[i]) == pytest.approx(1, abs=1e-6)


# ---- detection -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(scenes(one_dimensional=True), st.integers(1, 23))
def test_detection_counts_are_those_of_a_loop(scene, cut):
    frames, decoder, codes, truth = scene
    truth.coords[3] = 0  # drawn active, but of magnitude 0: not on
    found = feed(Detection(frames, decoder), codes, truth, (0, cut, 24))
    table = similarity(decoder, torch.cat(frames))
    totals = dict.fromkeys(("precision", "recall", "f1", "accuracy"), 0.0)
    for k in range(len(decoder)):
        i = int(table[k].argmax())
        pairs = [
            (
                bool(codes.values[t, k].any()),
                any(int(f) == i and bool(c.any()) for f, c in zip(truth.index[t], truth.coords[t], strict=True)),
            )
            for t in range(24)
        ]
        tp, fp, fn, tn = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
        p, r = tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn) if tp + fn else 0.0
        totals["precision"] += p / len(decoder)
        totals["recall"] += r / len(decoder)
        totals["f1"] += (2 * p * r / (p + r) if p + r else 0.0) / len(decoder)
        totals["accuracy"] += (tp + tn) / 24 / len(decoder)
    for name, value in totals.items():
        assert getattr(found, name) == pytest.approx(value), name
    # MCC by trying every matching
    small, large = sorted(table.shape)
    wide = table if table.shape[0] == small else table.T
    best = max(
        sum(float(wide[a, b]) for a, b in enumerate(chosen)) for chosen in itertools.permutations(range(large), small)
    )
    assert found.mcc == pytest.approx(best / small)
    assert found.uniqueness == len({int(table[k].argmax()) for k in range(len(decoder))}) / len(decoder)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(1, 3), seeds, st.booleans())
def test_similarity_is_the_cosine_with_the_nearest_direction_of_the_span(width, rank, seed, dependent):
    g = torch.Generator().manual_seed(seed)
    decoder = torch.randn(3, rank, width, generator=g, dtype=torch.float64)
    if dependent and rank > 1:
        decoder[:, 1] = 2 * decoder[:, 0]
    decoder[2] = 0
    directions = torch.nn.functional.normalize(torch.randn(4, width, generator=g, dtype=torch.float64), dim=1)
    got = similarity(decoder, directions)
    for k, i in itertools.product(range(3), range(4)):
        projector = torch.linalg.pinv(decoder[k]) @ decoder[k]
        assert float(got[k, i]) == pytest.approx(float((projector @ directions[i]).norm()), abs=1e-8)
        if rank == 1 and k < 2:
            cosine = torch.nn.functional.cosine_similarity(decoder[k, 0], directions[i], dim=0).abs()
            assert float(got[k, i]) == pytest.approx(float(cosine), abs=1e-12)


def test_the_planted_dictionary_detects_perfectly_and_a_shuffled_one_does_not() -> None:
    spec = {
        "width": 24,
        "features": [{"manifold": "sign", "count": 16, "nonnegative": True}],
        "frames": "orthogonal",
        "support": {"law": "independent", "rates": 0.2},
    }
    world = World.from_spec(spec)
    model = build("relu", width_in=24, n_latents=16)
    with torch.no_grad():
        model.W_dec.copy_(torch.cat(world.frames()))
        model.W_enc.copy_(model.W_dec.T)
        model.b_enc.fill_(-0.5)
    metrics = evaluate(model, world, 2000)["metrics"]["detection"]
    values = {name: entry["value"] for name, entry in metrics.items()}
    perfect = {"f1": 1, "precision": 1, "recall": 1, "accuracy": 1, "mcc": 1, "uniqueness": 1, "rows": 2000}
    assert values == pytest.approx(perfect, abs=1e-6)
    with torch.no_grad():
        model.W_enc.copy_(model.W_dec.T.roll(1, dims=1))
    shuffled = run(model, world, 2000, [Detection(world.frames(), model.blocks()[1])])["detection"]
    assert shuffled.mcc == pytest.approx(1) and shuffled.f1 == pytest.approx(0.2, abs=0.05)


def test_features_of_several_dimensions_are_refused() -> None:
    with pytest.raises(UsageError, match="single directions"):
        Detection([torch.eye(3)[:2]], torch.ones(2, 1, 3))
    with pytest.raises(UsageError, match="width 3, the model 4"):
        Detection([torch.eye(3)[:1]], torch.ones(2, 1, 4))


def test_very_many_features_leave_detection_alone(monkeypatch) -> None:
    """Numbers for every pair of feature and unit are left out where they would not fit; the rest is the same."""
    from sasa_theory.evaluation import driver

    spec = {
        "width": 8,
        "features": [{"manifold": "sign", "count": 10, "nonnegative": True}],
        "support": {"law": "independent", "rates": 0.2},
    }
    world, model = World.from_spec(spec), build("topk", width_in=8, n_latents=12, active_latents=2)
    full = evaluate(model, world, 300)["metrics"]
    monkeypatch.setattr(driver, "MOST_PAIRS", 100)
    lean = evaluate(model, world, 300)["metrics"]
    assert set(full) - set(lean) == {"feature_energy", "subspaces", "owners"}
    assert all(full[name] == lean[name] for name in lean)
