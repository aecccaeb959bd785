"""What every architecture owes: parts that add up, one function in training and inference, an honest auxiliary loss."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models import Gated, Grassmannian, JumpReLU, ReLU, SparseModel, build
from sasa_theory.models.base import reconstruction_error
from synthetic.errors import UsageError

VECTORS = ["relu", "topk", "abstopk", "batchtopk", "matryoshka", "jumprelu", "gated"]
BLOCKS = ["sasa", "bsf", "grassmannian", "grouplasso"]
ARCHITECTURES = VECTORS + BLOCKS
SIGNED = ["abstopk", *BLOCKS]


def random_model(name: str, width: int, units: int, active: int, seed: int) -> SparseModel:
    """Random parameters in float64; thresholds around the typical pre-activation."""
    extra = {
        "topk": {"active_latents": active},
        "abstopk": {"active_latents": active},
        "batchtopk": {"active_latents": active},
        "matryoshka": {"active_latents": active},
        "sasa": {"group_rank": 2, "active_groups": active, "nuclear": 0.1},
        "bsf": {"group_rank": 2, "active_groups": active},
        "grassmannian": {"group_rank": 2, "active_groups": active},
        "grouplasso": {"group_rank": 2, "initial_threshold": 0.5},
        "jumprelu": {"initial_threshold": 0.5, "bandwidth": 0.5},
    }.get(name, {})
    units_name = "n_groups" if name in BLOCKS else "n_latents"
    model = build(name, width_in=width, **{units_name: units}, **extra).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    if isinstance(model, Grassmannian):
        model.post_step()  # its encoder follows the decoder
    return model


@st.composite
def sizes(draw):
    """(width, units, active, rows, seed)."""
    units = draw(st.integers(3, 10))
    return (
        draw(st.integers(2, 8)),
        units,
        draw(st.integers(1, units)),
        draw(st.integers(2, 30)),
        draw(st.integers(0, 10**6)),
    )


def rows(n: int, width: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


each = pytest.mark.parametrize("name", ARCHITECTURES)


@each
@settings(max_examples=15, deadline=None)
@given(sizes())
def test_parts_sum_to_total_and_nothing_is_mutated(name, size):
    width, units, active, n, seed = size
    model, x = random_model(name, width, units, active, seed), rows(n, width, seed)
    before, given_rows = copy.deepcopy(model.state_dict()), x.clone()
    dead = torch.arange(units) % 2 == 0
    loss = model.loss(x, dead, penalty_scale=0.7)
    model(x)
    model.reconstruct(x)
    torch.testing.assert_close(torch.stack(list(loss.parts.values())).sum(), loss.total)
    assert torch.equal(x, given_rows)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    torch.testing.assert_close(loss.parts["reconstruction"], (x - loss.xhat).square().sum(1).mean())
    torch.testing.assert_close(loss.xhat, model.decode(loss.codes))


@each
@settings(max_examples=15, deadline=None)
@given(sizes())
def test_training_and_inference_are_one_function(name, size):
    """For BatchTopK at the batch's own threshold (just below its smallest selected value; the gate is strict)."""
    width, units, active, n, seed = size
    model, x = random_model(name, width, units, active, seed), rows(n, width, seed)
    loss = model.loss(x)
    if name in ("batchtopk", "matryoshka"):
        model.threshold.copy_(loss.state["smallest"] * (1 - 1e-9))
    torch.testing.assert_close(model(x), loss.xhat)
    torch.testing.assert_close(model.encode(x).dense(), loss.codes.dense())


@each
@settings(max_examples=15, deadline=None)
@given(sizes(), st.data())
def test_the_auxiliary_loss_reaches_only_dead_units(name, size, data):
    width, units, active, n, seed = size
    model, x = random_model(name, width, units, active, seed), rows(n, width, seed)
    dead = torch.tensor(data.draw(st.lists(st.booleans(), min_size=units, max_size=units)))
    part = model.loss(x, dead).parts["auxiliary"]
    if not dead.any():
        assert float(part) == 0
        return
    part.backward()
    live = (~dead).repeat_interleave(model.rank)
    for key, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        if key == "W_enc":
            assert not parameter.grad[:, live].any()
        elif key in ("W_dec", "b_enc"):
            assert not parameter.grad[live].any()
        else:
            assert not parameter.grad.any(), f"{key} belongs to no dead unit"
    # a unit whose decoder row sees the residual does get a gradient, unless nothing of it is rectified through
    if name in SIGNED:
        assert model.W_dec.grad[~live].any()


@each
def test_the_auxiliary_loss_is_its_formula(name):
    """All units dead and all of them kept: the residual encoded and decoded by the plain weights."""
    model, x = random_model(name, 5, 6, 2, 0), rows(20, 5, 1)
    loss = model.loss(x, torch.ones(6, dtype=torch.bool))
    residual = x - loss.xhat
    pre = residual @ model.W_enc + model.b_enc
    codes = pre if name in SIGNED else pre.relu()
    torch.testing.assert_close(loss.parts["auxiliary"], reconstruction_error(residual, codes @ model.W_dec))
    assert float(model.loss(x, torch.zeros(6, dtype=torch.bool)).parts["auxiliary"]) == 0


@each
def test_settings_build_the_same_model(name):
    model = random_model(name, 5, 6, 2, 0)
    values = json.loads(json.dumps(model.settings()))
    again = build(model.architecture, **values).double()
    again.load_state_dict(model.state_dict())
    assert again.settings() == model.settings()
    x = rows(10, 5, 0)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    with pytest.raises(UsageError, match=r"width_inn.*did you mean 'width_in'"):
        build(model.architecture, **{"width_inn": 5} | values)


@each
@pytest.mark.parametrize("from_data", [True, False])
def test_initialisation(name, from_data):
    """Tied, unit rows; from data the rows point at data points; blocks orthonormal; one generator, one result."""
    model, data = random_model(name, 6, 5, 2, 0).float(), rows(40, 6, 3).float()
    given_rows = data if from_data else None
    model.initialise(torch.Generator().manual_seed(7), given_rows)
    first = model.W_dec.detach().clone()
    model.initialise(torch.Generator().manual_seed(7), given_rows)
    assert torch.equal(model.W_dec, first) and torch.equal(model.W_enc, first.T)
    assert not model.b_enc.any() and not model.b_dec.any()
    gram = first.unflatten(0, (5, model.rank)) @ first.unflatten(0, (5, model.rank)).mT
    torch.testing.assert_close(gram, torch.eye(model.rank).expand_as(gram), rtol=1e-5, atol=1e-5)
    # up to sign: signed blocks come from a QR decomposition
    closest = (first @ torch.nn.functional.normalize(data).T).abs().amax(1)
    if from_data:
        assert (closest[:: model.rank] > 0.999).all(), "the first row of each block is a data point's direction"
        with pytest.raises(UsageError, match="needs as many rows; got 3"):
            model.initialise(torch.Generator(), data[:3])
    else:
        assert closest.min() < 0.99


@settings(max_examples=30, deadline=None)
@given(sizes(), st.none() | st.floats(0.1, 6.0))
def test_jumprelu_straight_through_gradients(size, target):
    """c: -theta/bandwidth, L0: -1/bandwidth, both inside the window |pre - theta| < bandwidth/2; pre only through c.

    Told its L0, the penalty is that of L0 with the coefficient 2 c (L0 / target - 1) / target, of either sign.
    """
    width, units, _, n, seed = size
    model, x = random_model("jumprelu", width, units, 1, seed), rows(n, width, seed)
    assert isinstance(model, JumpReLU)
    model.target_l0 = target
    loss = model.loss(x)
    loss.total.backward()
    with torch.no_grad():
        theta, pre = model.threshold, (x - model.b_dec) @ model.W_enc + model.b_enc
        on = (pre > theta).double()
        to_code = 2 / n * (loss.xhat - x) @ model.W_dec.T
        window = ((pre - theta).abs() < model.bandwidth / 2) / model.bandwidth
        l0 = on.sum(1).mean()
        off = 0.0 if target is None else l0 / target - 1
        coefficient = model.coefficient * (1.0 if target is None else 2 * off / target)
        theta_gradient = -(window * (theta * to_code + coefficient / n)).sum(0)
        torch.testing.assert_close(model.log_threshold.grad, theta * theta_gradient, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(model.W_enc.grad, (x - model.b_dec).T @ (to_code * on), rtol=1e-6, atol=1e-9)
        penalty = l0 if target is None else off**2
        torch.testing.assert_close(loss.parts["sparsity"], model.coefficient * penalty, check_dtype=False)


@settings(max_examples=20, deadline=None)
@given(sizes())
def test_gated_with_open_magnitudes_is_relu(size):
    """r_mag = 0 and b_mag = b_gate: the codes are relu's, and the gate's own reconstruction is the model's."""
    width, units, _, n, seed = size
    gated, x = random_model("gated", width, units, 1, seed), rows(n, width, seed)
    assert isinstance(gated, Gated)
    with torch.no_grad():
        gated.r_mag.zero_()
        gated.b_mag.copy_(gated.b_enc)
    relu = ReLU(width, units).double()
    relu.load_state_dict({k: v for k, v in gated.state_dict().items() if k in relu.state_dict()})
    loss = gated.loss(x)
    torch.testing.assert_close(gated(x), relu(x))
    torch.testing.assert_close(loss.parts["gate"], loss.parts["reconstruction"])


def test_gated_trains_its_gate_with_the_decoder_frozen():
    """The gate's parts leave the decoder alone and reach the gate bias, which the reconstruction cannot."""
    model, x = random_model("gated", 5, 6, 1, 0), rows(40, 5, 1)
    for part, reaches_decoder in (("gate", False), ("sparsity", False), ("reconstruction", True)):
        model.zero_grad()
        model.loss(x).parts[part].backward()
        reached = model.W_dec.grad is not None and bool(model.W_dec.grad.any())
        gate = model.b_enc.grad is not None and bool(model.b_enc.grad.any())
        assert (reached, gate) == (reaches_decoder, not reaches_decoder), part


@pytest.mark.parametrize("name", ["relu", "jumprelu", "gated"])
def test_the_coefficient_finds_the_target_l0(name):
    """A small world of 12 sparse directions; the steered coefficient brings mean L0 to the target."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(12, 8, generator=generator), dim=1)
    model = build(name, width_in=8, n_latents=16, target_l0=3.0)
    model.initialise(generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    seen = []
    for step in range(1500):
        on = torch.rand(256, 12, generator=generator) < 0.2
        x = (on * torch.rand(256, 12, generator=generator)) @ atoms
        loss = model.loss(x)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        model.post_step(loss)
        if step >= 1300:
            seen.append(float(loss.codes.l0().double().mean()))
    assert sum(seen) / len(seen) == pytest.approx(3.0, rel=0.15)
    torch.testing.assert_close(model.W_dec.detach().norm(dim=1), torch.ones(16))


def test_batchtopk_threshold_is_a_running_mean_of_the_smallest_selected():
    model, x = random_model("batchtopk", 5, 8, 2, 0), rows(50, 5, 1)
    smallest = []
    expected = None
    for start in range(0, 50, 10):
        loss = model.loss(x[start : start + 10])
        pre = ((x[start : start + 10] - model.b_dec) @ model.W_enc + model.b_enc).relu()
        smallest.append(float(pre.detach().flatten().sort(descending=True).values[19]))
        assert float(loss.codes.l0().double().mean()) == 2
        model.post_step(loss)
        expected = smallest[-1] if expected is None else 0.99 * expected + 0.01 * smallest[-1]
    assert float(model.threshold) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("sassa", {}, "did you mean 'sasa'"),
        ("topk", {"n_latents": 4}, "needs active_latents"),
        ("topk", {"n_latents": 4, "active_latents": 5}, "only 4 latents"),
        ("batchtopk", {"n_latents": 4, "active_latents": 5}, "only 4 latents"),
        ("sasa", {"n_groups": 3, "group_rank": 2, "active_groups": 4}, "only 3 groups"),
        ("sasa", {"n_groups": 3, "group_rank": 0, "active_groups": 1}, "rank is 0"),
        ("sasa", {"n_groups": 3, "group_rank": 2, "active_groups": 1, "penalty": "mapp"}, "did you mean 'map'"),
        ("relu", {"n_latents": 4, "coefficient": -1.0}, "coefficient is -1.0"),
        ("jumprelu", {"n_latents": 4, "bandwidth": 0.0}, "bandwidth is 0.0"),
        ("gated", {"n_latents": 4, "target_l0": float("nan")}, "target_l0 is nan"),
        ("matryoshka", {"n_latents": 4, "active_latents": 2, "prefixes": [3, 2]}, r"prefixes are \[3, 2\]; expected"),
        ("matryoshka", {"n_latents": 4, "active_latents": 2, "prefixes": [0, 2]}, r"prefixes are \[0, 2\]; expected"),
        ("matryoshka", {"n_latents": 4, "active_latents": 2, "prefixes": [5]}, "n_latents = 4"),
        ("bsf", {"n_groups": 3, "group_rank": 2, "active_groups": 4}, "only 3 groups"),
        (
            "grassmannian",
            {"n_groups": 3, "group_rank": 6, "active_groups": 1},
            "no orthonormal frame of it fits width 5",
        ),
        ("grouplasso", {"n_groups": 3, "group_rank": 2, "initial_threshold": 0.0}, "initial_threshold is 0.0"),
    ],
)
def test_bad_settings_are_one_sentence(name, fields, message):
    with pytest.raises(UsageError, match=message):
        build(name, width_in=5, **fields)
