"""Every world and every job of the paper profiles of the synthetic figures can be built; nothing is trained."""

import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator

import pytest

import figures.planted_absorption as absorption
import figures.published_benchmarks as published
import figures.recovery as recovery
import figures.sample_growth_recipe as growth
import figures.splitting as splitting
from figures.planted_absorption_recipe import cells_of, world_of
from figures.planted_absorption_recipe import job as absorption_job
from figures.published_recipe import FACTORS, MANIFOLD, SYNTHSAEBENCH, manifold_job, synth_job
from figures.splitting_recipe import MODELS, VECTORS, job
from sasa_lab.profiles import SEEDS
from sasa_theory.models import SparseModel, build
from sasa_theory.training import Job
from synthetic import World
from synthetic.source import Dataset

Planned = Iterator[tuple[Dataset, list[Job]]]
SEED = SEEDS["paper"][0]


def split() -> Planned:
    study = splitting.STUDIES["paper"]
    worlds = {energy: study.size.world(energy) for energy, _ in study.cells}
    for energy, budget in study.cells:
        names = VECTORS if budget in ("bits", "units") else MODELS
        yield worlds[energy], [splitting._job(name, study.size, budget, SEED) for name in names]
    for steps in study.lengths:
        size = dataclasses.replace(study.size, steps=steps)
        yield worlds["total"], [job(name, size, "columns", SEED) for name in splitting.LENGTHENED]


def benchmarks() -> Planned:
    study = published.STUDIES["paper"]
    cells = [(model, budget, n) for budget in study.budgets for model in MANIFOLD[budget] for n in study.factors]
    yield World.from_spec(FACTORS), [manifold_job(*cell, SEED) for cell in cells]
    lengths = itertools.product(study.synth, study.detections)
    jobs = [synth_job(model, study.width, length, SEED, study.lr) for model, length in lengths]
    yield World.from_spec(SYNTHSAEBENCH), jobs


def hierarchies() -> Planned:
    study = absorption.STUDIES["paper"]
    for dim, budget, depths in study.cells:
        for depth in depths:
            world = world_of(depth, dim)
            names = [model for own, model in cells_of(dim) if own == budget]
            yield world, [absorption_job(model, world, budget, study.training, SEED) for model in names]


def samples() -> Planned:
    study = growth.STUDIES["paper"]
    training = growth.train_settings(study.steps, SEED)
    for (name, budget), dims in study.dims.items():
        for d in dims:
            rows = growth.FiniteRows(study.sizes[-1], d, SEED, study.sizes[-1])
            trained = (name, budget) not in growth.FITTED
            yield rows, [Job(*growth.model_settings(name, budget, d), training)] if trained else []


def ranks() -> Planned:
    size = recovery.SIZES["paper"]
    yield recovery.make_world(size), [recovery.make_job(size, kind, 10.0, SEED) for kind in ("map", "decoder")]


def ablation() -> Planned:
    plan = recovery.PLANS["paper"]
    size, steps = plan["size"], plan["phase"]["steps"]
    both = (False, True)
    jobs = [recovery.variant_job(size, name, SEED, splits) for name in recovery.VARIANTS for splits in both]
    yield recovery.make_world(size), jobs
    for load, active in itertools.product(plan["loads"], plan["active"]):
        own = recovery.loaded(size, load, active, steps)
        yield recovery.make_world(own), [recovery.variant_job(own, "recipe", SEED, splits) for splits in both]
    grid = itertools.product(plan["ratios"], plan["shares"])
    yield recovery.flat_world(size), [recovery.flat_job(size, *at, steps, SEED, True) for at in grid]


@pytest.mark.parametrize("planned", [split, benchmarks, hierarchies, samples, ranks, ablation])
def test_the_paper_profile_can_be_built(planned: Callable[[], Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparseModel, "initialise", lambda *_: None)  # weights of this size take their time
    weighed = functools.cache(recovery.feature_energy)  # and so does the shipped world, for every job
    for module in (recovery, sys.modules[recovery.make_job.__module__]):
        monkeypatch.setattr(module, "feature_energy", weighed)
    seen = set()
    for dataset, jobs in planned():
        for one in jobs:
            assert one.training.steps >= 4000
            described = json.dumps([dataset.width, one.architecture, one.settings], sort_keys=True)
            if described in seen:
                continue
            seen.add(described)
            model = build(one.architecture, width_in=dataset.width, **one.settings)
            if one.training.splits:
                assert model.rank > 1
    assert seen
