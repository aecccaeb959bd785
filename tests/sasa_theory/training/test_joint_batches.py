"""Two processes on half of each batch hold, step after step, the weights of one process on the whole batches."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sasa_theory import parallel
from sasa_theory.models import build
from sasa_theory.training import Trainer, TrainSettings
from synthetic.errors import DataError

PROCESSES, SIZE, STEPS, WIDTH = 2, 32, 6, 12
GROUPS = {"n_groups": 48, "group_rank": 2, "active_groups": 2}
LATENTS = {"n_latents": 80, "active_latents": 3}
#: architecture and settings; what is chosen from the whole batch stands last
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "sasa": ("sasa", {**GROUPS, "encoder_bias": True}),
    "sasa, all charged": ("sasa", {**GROUPS, "nuclear": 0.02, "penalise": "all"}),
    "topk": ("topk", LATENTS),
    "abstopk": ("abstopk", LATENTS),
    "bsf": ("bsf", GROUPS),
    "jumprelu, steered": ("jumprelu", {"n_latents": 80, "target_l0": 4.0, "initial_threshold": 1.5, "bandwidth": 0.5}),
    "sasa, active charged": ("sasa", {**GROUPS, "nuclear": 0.02}),
    "sasa, active decoders charged": ("sasa", {**GROUPS, "nuclear": 0.02, "penalty": "decoder"}),
    "batchtopk": ("batchtopk", LATENTS),
    "matryoshka": ("matryoshka", LATENTS),
}
CASES = [(name, path) for name in MODELS for path in ("plain", "compiled")]
#: JumpReLU has no compiled step
CASES = [case for case in CASES if case[1] == "plain" or MODELS[case[0]][0] != "jumprelu"]
#: dead after three batches of eight without firing, so that the auxiliary loss trains from the fourth step on
SETTINGS = {
    "steps": STEPS,
    "batch_size": SIZE,
    "lr": 3e-3,
    "penalty_warmup_steps": 2,
    "clip_norm": 1.0,
    "normalise": "mean_scalar",
    "initialise": "data",
    "dead_window": 3 * PROCESSES * SIZE,
    "dead_threshold": 0.03,
}


def trained(name: str, path: str, batches: list[torch.Tensor], size: int, **changes: Any) -> Trainer:
    """A run to its end."""
    architecture, settings = MODELS[name]
    model = build(architecture, width_in=WIDTH, **settings)
    run = Trainer(model, iter(batches), TrainSettings(**{**SETTINGS, "batch_size": size, **changes}), progress=False)
    assert (run.compiled is not None) >= (path == "compiled")
    if path == "plain":
        run.compiled = None
    run.fit()
    return run


def end(run: Trainer) -> dict[str, Any]:
    """What the run ends with."""
    return {
        "weights": {key: value.detach().clone() for key, value in run.model.state_dict().items()},
        "gradients": {key: p.grad.clone() for key, p in run.model.named_parameters() if p.grad is not None},
        "normaliser": run.normaliser.state(),
        "counts": run.firing.counts(),
        "dead": run.firing.dead(),
    }


def rows() -> torch.Tensor:
    """Batches whose halves lie in different subspaces, at different scales: each process uses units of its own."""
    generator = torch.Generator().manual_seed(0)
    x = 0.05 * torch.randn(STEPS, PROCESSES * SIZE, WIDTH, generator=generator)
    x[:, :SIZE, : WIDTH // 2] += torch.randn(STEPS, SIZE, WIDTH // 2, generator=generator)
    x[:, SIZE:, WIDTH // 2 :] += 3 * torch.randn(STEPS, SIZE, WIDTH // 2, generator=generator)
    return x


def main(rank: int, folder: Path) -> None:
    """One of the two processes: every case in turn."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    halves = [x.chunk(PROCESSES)[rank] for x in rows()]
    ends: dict[Any, Any] = {case: end(trained(*case, halves, SIZE)) for case in CASES}
    late = [half.clone() for _ in range(5) for half in halves]
    if rank == 1:
        late[-3][5, 0] = torch.nan
    try:  # the start looks at 1024 rows of all, 16 batches of each
        trained("topk", "compiled", late, SIZE, steps=len(late), normalise="none", initialise="random")
    except DataError as error:
        ends["error"] = str(error)
    torch.save(ends, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, Any]]]:
    """What each process ends with, case by case."""
    folder = tmp_path_factory.mktemp("joint")
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(PROCESSES)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_two_processes_are_one_on_the_joint_batch(both, case):
    first, second = (results[case] for results in both)
    whole = end(trained(*case, list(rows()), PROCESSES * SIZE))
    assert whole["dead"] is not None and whole["dead"].any()  # else the auxiliary loss was not tried
    assert first["counts"].tolist() == second["counts"].tolist() == whole["counts"].tolist()
    for key in ("mean", "scale"):
        assert torch.equal(first["normaliser"][key], whole["normaliser"][key])
        assert torch.equal(second["normaliser"][key], whole["normaliser"][key])
    for key, value in whole["weights"].items():  # of order 1: rows of the decoder have length 1
        assert torch.equal(first["weights"][key], second["weights"][key]), key
        torch.testing.assert_close(first["weights"][key], value, rtol=0, atol=1e-6)
    assert set(first["gradients"]) == set(whole["gradients"])
    for key, value in whole["gradients"].items():
        assert torch.equal(first["gradients"][key], second["gradients"][key]), key
        assert (first["gradients"][key] - value).norm() < 1e-6 * value.norm(), key


@pytest.mark.slow
def test_both_processes_end_when_one_meets_nan(both):
    """Neither waits for the other, and the one whose data it is says so."""
    at = 5 * STEPS - 3
    assert f"the loss is not finite at step {at}" in both[0]["error"]
    assert f"batch {at} holds NaN or Inf (first at row 5)" in both[1]["error"]


@pytest.mark.parametrize("name", list(MODELS)[-4:])
def test_the_two_halves_would_choose_otherwise(name):
    """The cases above can fail: groups fire on one half alone, and the largest entries lie in one half."""
    run = trained(name, "plain", list(rows()), PROCESSES * SIZE)
    z, _ = run.normaliser.apply(rows()[-1])
    on = run.model.loss(z).codes.dense().ne(0).any(dim=2)
    first, second = on.chunk(PROCESSES)
    if name.startswith("sasa"):
        assert (first.any(dim=0) != second.any(dim=0)).any()
    else:
        assert first.sum() != second.sum()


def test_without_processes_everything_stays_as_it_is():
    mask, value = torch.tensor([True, False]), torch.tensor(3.0)
    assert parallel.any_process(mask) is mask
    assert parallel.mean(value) is value and parallel.least(value) is value
    assert parallel.gather(mask) == [mask] and parallel.joint([value]) == [value]


@given(values=st.lists(st.floats(0, width=32), max_size=50), n=st.integers(1, 60))
def test_nth_largest_is_the_sorted_one(values, n):
    """Infinity, denormal numbers and equal ones included."""
    found = float(parallel.nth_largest(torch.tensor(values, dtype=torch.float32), n))
    assert found == (sorted(values)[-n] if n <= len(values) else 0.0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
