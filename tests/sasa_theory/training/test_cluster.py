"""A sweep on a Dask cluster of two local worker processes gives the runs of one process, and says what failed."""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from joblib import parallel_config

from sasa_theory.training import Job, TrainSettings, fit_all
from sasa_theory.training import runs as shared
from synthetic import World
from synthetic.errors import DataError, Interrupted, LabError

distributed = pytest.importorskip("distributed", reason="needs the extra cluster (dask)")
pytestmark = pytest.mark.slow

SETTINGS = {"n_latents": 20, "active_latents": 2}


def jobs(count: int, **settings: float) -> list[Job]:
    return [
        Job("topk", SETTINGS, TrainSettings(steps=6, batch_size=32, log_every=2, seed=seed, **settings))
        for seed in range(count)
    ]


@pytest.fixture(scope="module")
def client() -> Iterator[object]:
    """A client of two worker processes with one thread each."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as found,
    ):
        yield found


@pytest.fixture
def out(client, tmp_path, monkeypatch) -> Iterator[str]:
    """A directory given relative to one that the workers were not started in; joblib sends its jobs to them."""
    monkeypatch.chdir(tmp_path)
    with parallel_config(backend="dask"):
        yield "sweep"


@pytest.fixture
def world() -> World:
    return World.from_spec("smoke")


def test_four_runs_on_two_workers_are_the_sequential_ones(out, world, monkeypatch):
    with monkeypatch.context() as here:
        here.setattr(shared, "Trainer", None)  # nothing is trained in this process
        many = fit_all(world, jobs(4), out=out)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = fit_all(world, jobs(4), out="one", workers=1)
    finally:
        torch.set_num_threads(threads)
    x = world.sample(20, 0).x
    for a, b in zip(many, one, strict=True):
        assert a.directory.name == b.directory.name
        assert a.log == b.log
        assert torch.equal(a.model(x), b.model(x))
    assert not torch.equal(many[0].model(x), many[1].model(x))


def test_a_run_that_fails_says_which_and_why(out, world):
    words = r"topk in .*sweep/runs/\w+: the loss is not finite .* lower the learning rate"
    with pytest.raises(DataError, match=words) as failure:
        fit_all(world, [*jobs(2), *jobs(2, lr=1e30)], out=out)
    assert failure.value.__cause__ is None and failure.value.__suppress_context__  # no worker's traceback
    until = time.monotonic() + 120
    while True:  # the others can be had, once the workers that still train them are done
        try:
            assert len(fit_all(world, jobs(2), out=out)) == 2
            return
        except LabError as error:
            assert "another process is training the run" in str(error) and time.monotonic() < until
        time.sleep(0.5)


def test_a_time_limit_reaches_the_workers(out, world):
    with pytest.raises(Interrupted, match="time limit at step 1 of 6; state saved in"):
        fit_all(world, jobs(2), out=out, deadline=time.monotonic() - 1)


def test_runs_that_cannot_be_seen_from_here_are_an_error(out, world, monkeypatch):
    """Workers that write to disks of their own."""

    def nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr(shared, "_train", nothing)
    with pytest.raises(LabError, match="give an out that all machines share"):
        fit_all(world, jobs(2), out=out)


def test_a_worker_that_dies_is_replaced(out, world, tmp_path):
    class DeadlyOnce(World):
        """A world that ends the first process that draws from it."""

        def batches(self, *arguments: Any, **options: Any) -> Any:
            try:
                (tmp_path / "died").touch(exist_ok=False)
            except FileExistsError:
                return super().batches(*arguments, **options)
            os._exit(3)

    world.__class__ = DeadlyOnce
    assert len(fit_all(world, jobs(2), out=out)) == 2
    assert (tmp_path / "died").exists()


def test_a_cluster_without_workers_is_an_error(world, tmp_path):
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
        parallel_config(backend="dask", client=client, wait_for_workers_timeout=1),
        pytest.raises(LabError, match="no worker after 1 seconds"),
    ):
        fit_all(world, jobs(2), out=tmp_path)


def test_a_process_of_joblibs_own_that_dies_is_one_sentence(world, tmp_path):
    class Deadly(World):
        """A world that ends every process that draws from it."""

        def batches(self, *_: Any, **__: Any) -> Any:
            os._exit(3)

    world.__class__ = Deadly
    with pytest.raises(LabError, match=r"(?s)workers were lost: .* call again"):
        fit_all(world, jobs(2), out=tmp_path, workers=2)
