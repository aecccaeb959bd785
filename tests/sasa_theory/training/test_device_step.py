"""The watch on the loss, and (on a GPU) a recorded step against the same step unrecorded."""

import pytest
import torch

from sasa_theory.models import build
from sasa_theory.training import Trainer, TrainSettings
from sasa_theory.training.device import LossWatch, capture
from synthetic.errors import DataError, UsageError


def test_a_loss_that_is_not_finite_stops_the_optimiser_where_it_was():
    w = torch.randn(5, requires_grad=True)
    optimizer = torch.optim.Adam([w], 0.1, fused=True)
    watch = LossWatch(optimizer, "cpu")

    def step(scale):
        optimizer.zero_grad()
        loss = (scale * w).square().sum()
        loss.backward()
        watch.observe(loss)
        optimizer.step()
        return w.detach().clone()

    before = w.detach().clone()
    good = step(1.0)
    assert not torch.equal(good, before)
    assert not watch.failed()
    assert torch.equal(step(float("nan")), good)
    assert torch.equal(step(1.0), good)  # and stays there until somebody looks
    assert watch.failed()


def test_an_optimiser_that_cannot_skip_is_refused():
    with pytest.raises(UsageError, match="fused"):
        LossWatch(torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1), "cpu")


def test_recording_needs_a_gpu():
    with pytest.raises(UsageError, match="CUDA"):
        capture(lambda x: (x,), torch.zeros(1))


@pytest.mark.gpu
def test_a_recorded_step_ends_where_the_plain_one_does():
    def run(recorded):
        model = build("sasa", width_in=32, n_groups=64, group_rank=4, active_groups=3, nuclear=0.01, penalise="all")
        model.initialise(torch.Generator().manual_seed(0))
        model = model.cuda()
        parameters = [p for p in model.parameters() if p.requires_grad]
        rate = torch.tensor(1e-2, device="cuda")
        optimizer = torch.optim.Adam(parameters, rate, fused=True, capturable=True)

        def step(x, lr):
            rate.copy_(lr)
            optimizer.zero_grad(set_to_none=False)
            loss = model.loss(x)
            loss.total.backward()
            optimizer.step()
            model.post_step(loss)
            return (loss.total.detach(),)

        g = torch.Generator().manual_seed(1)
        rows = torch.randn(6, 128, 32, generator=g).cuda()
        rates = torch.tensor([1e-2, 1e-2, 5e-3, 5e-3, 1e-3, 1e-3], device="cuda")
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            optimizer.state[parameter] = {
                "step": torch.zeros((), device="cuda"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        state = [*model.state_dict().values(), *(t for s in optimizer.state.values() for t in s.values())]
        advance = capture(step, rows[0], rates[0], state=state) if recorded else step
        losses = [float(advance(x, lr)[0]) for x, lr in zip(rows, rates, strict=True)]
        return losses, [p.detach().cpu() for p in parameters]

    plain, recorded = run(False), run(True)
    assert plain[0] == pytest.approx(recorded[0], rel=1e-5)
    for a, b in zip(plain[1], recorded[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_watched_trainer_stops_at_the_next_log_line_with_the_weights_of_before(tmp_path):
    """As on a GPU, where no step looks at its loss: nothing after the bad batch is trained or saved."""
    rows = [torch.randn(64, 8, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    weights = {}
    for bad in (False, True):
        batches = [r.clone() for r in rows]
        if bad:
            batches[25][3, 2] = torch.nan
        model = build("topk", width_in=8, n_latents=12, active_latents=3)
        settings = TrainSettings(steps=30 if bad else 25, batch_size=64, log_every=10, decay_fraction=0.0)
        run = Trainer(model, iter(batches), settings, out=tmp_path / str(bad), progress=False)
        run.compiled, run.watch = None, LossWatch(run.optimizer, "cpu")
        if bad:
            with pytest.raises(DataError, match="up to step 30 was not finite"):
                run.fit()
            assert not run.state_file.exists()
        else:
            run.fit()
        weights[bad] = model.W_enc.detach().clone()
    torch.testing.assert_close(weights[True], weights[False])
