"""Where training of E3 ends from other starts, and what the gate makes of C6's window.

Is a feature that is not found the fault of the objective or of training? The first seed is trained without splits from
the random start ("plain"), from every feature in its group ("truth"), the same at a tenth of the rate ("truth, slow"),
and from two features to a group wherever their dimensions add to 9 ("merged": r = 10 has room for both, and half of the
groups are spare). The objective after training, on held-out rows, decides. With one feature on in a row (the quick
profile) C2 says that the merged start cannot be worse.

The gauge ||D_k||_F = sqrt(r) leaves the objective as it is, but not the gate: a group that holds d directions with gain
g has a code of norm g sqrt(d / r) ||z||, so groups of few directions, and those the penalty has shrunk, lose rows to
others. So the random start with splits and the truth are trained without it too ("no gauge"). And
a penalty that has its whole weight before features are told apart sees their mixtures, whose eigenvalues are smaller:
where it is large, the recipe is also trained for LONG times the steps with the penalty warmed up over all ("long").

C6 gives the best map of a group on the rows where it is on, Sigma_k = E[h h^T 1{k on}]. Where the gate reads the norm
of the shrunken code, fewer rows choose a shrunken group, which lowers Sigma_k and shrinks it further. `gated_window`
follows that from the planted maps, with no training, to its end:

    sigma_i = E[||V_i h||^2 1{i on}] / d_i,    M_i = (1 - lam / (2 sigma_i))_+ V_i^T V_i,    gate, and again.
"""

import dataclasses
import hashlib
import json
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from figures.rank_recovery_world import DIMS, RANK, make_job, recovery
from figures.registry import Context
from sasa_theory import saelens
from sasa_theory.files import write_json
from sasa_theory.models import SASA
from sasa_theory.models.base import reconstruction_error
from sasa_theory.models.nuclear import map_nuclear_norm
from sasa_theory.training import Job, Run, Trainer, fit_all
from sasa_theory.training.runs import describe
from sasa_theory.training.trainer import STATE
from synthetic import World

#: coefficient from which the recipe is also trained for longer, and how many times the steps
LONG_FROM, LONG = 100.0, 4
#: iterations after which gains no longer move, and rows that they are measured on, for each feature
ROUNDS, GATE_ROWS = 40, 400


class Planted(SASA):
    """A SASA whose first weights hold subspaces that are given: `places` has (first column, frame) of each."""

    places: "list[tuple[int, Tensor]]" = []  # noqa: RUF012 (replaced, never changed)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, rows: "Float[Tensor, 'n D'] | None" = None) -> None:
        """Random as ever, but small next to the frames."""
        super().initialise(generator, rows)
        if not self.places:
            return
        self.W_dec.mul_(1e-2)
        self.W_enc.mul_(1e-2)
        for column, frame in self.places:
            part = slice(column, column + len(frame))
            self.W_dec[part], self.W_enc[:, part] = frame, frame.T


def planted_places(world: World, merged: bool, rank: int = RANK) -> "list[tuple[int, Tensor]]":
    """Each feature in a group of its own, or, merged, the features of dimensions d and 9 - d in one."""
    frames = world.frames()
    if not merged:
        return [(rank * i, frame) for i, frame in enumerate(frames)]
    pools = {d: [frame for frame in frames if len(frame) == d] for d in DIMS}
    small = [d for d in DIMS if 2 * d <= max(DIMS)]
    pairs = [pair for d in small for pair in zip(pools[d], pools[max(DIMS) + 1 - d], strict=True)]
    return [place for k, (a, b) in enumerate(pairs) for place in ((rank * k, a), (rank * k + len(a), b))]


def train_from(places: "list[tuple[int, Tensor]]", start: str | bool, world: World, one: Job, context: Context) -> Run:
    """The job from a given start; `start` says which one."""
    model = Planted(world.width, **one.settings)
    model.places = places
    return train_model(model, start, world, one, context)


def train_model(model: SASA, start: str | bool, world: World, one: Job, context: Context) -> Run:
    """The job with a model of its own making, kept and resumed like any run; `start` says in its name which one."""
    text = json.dumps([describe(world, one), "planted", start], sort_keys=True)
    place = context.out / "runs" / hashlib.sha256(text.encode()).hexdigest()[:16]
    done = place / "planted.json"
    if not done.exists():
        source = world.batches(one.training.batch_size, context.device, stream=f"train:{one.training.seed}")
        place.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(model, source, one.training, out=place, device=context.device, deadline=context.deadline)
        trainer.fit(resume=(place / STATE).exists())
        write_json(done, {"start": start})
    return Run(place, saelens.load(place).to(context.device), [], 0.0)


@torch.no_grad()
def objective(model: Any, world: World, lam: float, rows: int) -> float:
    """mean ||h - hhat||^2 + lam sum_k ||M_k||_* on held-out rows, every group charged."""
    x = next(world.batches(rows, model.blocks()[1].device, stream="eval"))
    return float(reconstruction_error(x, model(x)) + lam * map_nuclear_norm(*model.blocks()).sum())


def from_starts(size: dict[str, Any], world: World, coefficient: float, rows: int, context: Context) -> list[Any]:
    """The first seed trained from every start (module docstring): its objective and what it has found."""
    seed = context.seeds[0]
    splitting = make_job(size, "map", coefficient, seed)
    plain = make_job(size, "map", coefficient, seed, splits=0)
    slow = dataclasses.replace(plain, training=dataclasses.replace(plain.training, lr=plain.training.lr / 10))
    jobs = {"random": splitting, "plain": plain, "random, no gauge": ungauged(splitting)}
    if coefficient >= LONG_FROM:
        steps = LONG * size["steps"]
        late = dataclasses.replace(splitting.training, steps=steps, penalty_warmup_steps=steps)
        jobs["random, long"] = dataclasses.replace(splitting, training=late)
    runs = fit_all(world, list(jobs.values()), out=context.out, device=context.device, deadline=context.deadline)
    made = dict(zip(jobs, runs, strict=True))
    for name, job in {"truth": plain, "truth, slow": slow, "truth, no gauge": ungauged(plain)}.items():
        made[name] = train_from(planted_places(world, False), False, world, job, context)
    made["merged"] = train_from(planted_places(world, True), True, world, plain, context)
    lam = plain.settings["nuclear"]
    return [
        {
            "start": name,
            "coefficient": coefficient,
            "objective": objective(one.model, world, lam, rows),
            **recovery(one.model, world, rows),
        }
        for name, one in made.items()
    ]


def ungauged(job: Job) -> Job:
    """The job without the gauge."""
    return dataclasses.replace(job, settings={**job.settings, "gauge": False})


@torch.no_grad()
def gated_window(world: World, lam: float, gauge: bool, rank: int = RANK) -> dict[str, list[float]]:
    """C6's maps under the gate's own choice of rows, followed to the end (module docstring).

    Returns per dimension, ascending, the share of features whose map is not zero: "open" where every row of a feature
    has its group on, "gated" at the end; and "kept", the share of a feature's rows on which its group is on there.
    lam in units of the world.
    """
    frames, features = world.frames(), len(world.dims)
    batch = world.sample(GATE_ROWS * features // round(world.statistics().expected_active), 0)
    model = SASA(world.width, features, rank, round(world.statistics().expected_active))
    for weights in (model.W_dec, model.W_enc):
        weights.zero_()
    model.b_dec.copy_(world.bias)
    energy = torch.stack([(batch.x @ frame.T).square().sum(dim=1) / len(frame) for frame in frames], dim=1)
    active = batch.active
    on = active
    held = []
    for _ in range(ROUNDS):
        sigma = (energy * on).mean(dim=0)
        gain = (1 - lam / (2 * sigma.clamp_min(1e-12))).clamp_min(0)
        held.append(gain > 0)
        for i, frame in enumerate(frames):
            part = slice(rank * i, rank * i + len(frame))
            size = (rank / len(frame)) ** 0.5 if gauge else gain[i].sqrt().clamp_min(1e-6)
            model.W_dec[part], model.W_enc[:, part] = size * frame, gain[i] / size * frame.T
        row, unit, _ = model.encode(batch.x).pairs()
        on = torch.zeros_like(active)
        on[row, unit] = True
        on &= held[-1]
    dims = torch.tensor(world.dims)
    kept = (on & active).sum(dim=0) / active.sum(dim=0).clamp_min(1)
    shares = {"open": held[0].float(), "gated": held[-1].float(), "kept": kept}
    return {name: [float(share[dims == d].mean()) for d in sorted(set(world.dims))] for name, share in shares.items()}
