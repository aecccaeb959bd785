"""One loop trains every architecture on any source of rows.

    rows -> normaliser -> model.loss -> backward -> clip -> Adam -> model.post_step -> firing statistics

and, between a few of the steps where it is asked for, merged groups are split (split_groups.py).

The state of a run (weights, moments, normaliser, firing window, position in the data, step) is one file, so a run that
was stopped, by a signal, a time limit or a power cut, goes on from its last checkpoint and ends bit for bit where the
straight run ends (same machine and thread count). Beside it lies the export in raw units, a SAELens directory; it is
written before the state, so a state never counts steps that its export lacks.

Every architecture reconstructs h - b_dec, and all start alike: b_dec is the mean of the first (normalised) rows, so no
dictionary spends units on a constant.
"""

import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sasa_theory import parallel, saelens
from sasa_theory.files import write_text
from sasa_theory.models.base import Loss, SparseModel
from sasa_theory.models.compiled import compiled_step
from sasa_theory.models.normaliser import Context, NormalisedModel, Normaliser
from sasa_theory.training.device import LossWatch
from sasa_theory.training.firing import FiringTracker
from sasa_theory.training.optimizer import make_optimizer, step
from sasa_theory.training.recorded import RecordedStep, worth_recording
from sasa_theory.training.settings import TrainSettings
from sasa_theory.training.signals import signals
from sasa_theory.training.split_groups import rows_needed, split_groups
from sasa_theory.training.state import load_state, save_state
from synthetic.errors import DataError, Interrupted, LabError, UsageError
from synthetic.source import PlainSource, Source, as_source, require_rows

STATE, LOG = "trainer_state.safetensors", "log.jsonl"
#: rows from which the normaliser is fitted and a decoder started on data (more if it has more columns)
FIT_ROWS = 16_384
#: rows whose mean b_dec starts from when neither of these is asked for
MEAN_ROWS = 1024
#: what stops a run when no signal does; above every signal's number
TIME_UP = 1000


class Trainer:
    """Train `model` on `source` (any iterator of (batch, D) tensors).

    out       directory for checkpoints, log and export; None: nothing is written, nothing can be resumed.
    device    where model and batches go.
    deadline  time.monotonic() value after which the run saves itself and raises Interrupted.
    progress  tqdm bar on stderr (None: when stderr is a terminal).

    The model's initial weights are drawn here, from `settings.seed`. Raises UsageError for a source of another width,
    or for splits of a model that has no groups.
    """

    def __init__(
        self,
        model: SparseModel,
        source: "Source | Iterable[Tensor]",
        settings: TrainSettings,
        *,
        out: str | Path | None = None,
        device: "torch.device | str" = "cpu",
        deadline: float | None = None,
        progress: bool | None = None,
    ) -> None:
        self.source = as_source(source)
        if self.source.width != model.width_in:
            raise UsageError(f"the data have width {self.source.width}, the model {model.width_in}; they must be equal")
        if settings.splits:
            rows_needed(model)  # raises for a model without groups to split
        self.device = torch.device(device)
        self.model, self.settings = model.to(self.device), settings
        self.out = Path(out) if out is not None else None
        self.deadline, self.progress = deadline, progress
        self.firing = FiringTracker(model.n_units, settings.dead_window, settings.dead_threshold, self.device)
        self.optimizer = make_optimizer(model.parameters(), settings)
        self.compiled = compiled_step(model, self.optimizer)
        #: on a GPU, where looking at each loss would make the host wait
        self.watch = LossWatch(self.optimizer, self.device) if self.device.type == "cuda" else None
        self.recorded: RecordedStep | None = None
        if worth_recording(model, settings.batch_size, self.device):
            self.recorded = RecordedStep(self._learn, model, self.optimizer)
        self.normaliser = Normaliser.identity(model.width_in).to(self.device)
        self.step = 0
        self._log: list[str] = []
        self._rows: Iterator[Tensor] = self.source

    @property
    def state_file(self) -> Path | None:
        """Where the state lies, or would lie."""
        return self.out / STATE if self.out is not None else None

    def fit(self, resume: bool = False) -> "SparseModel | NormalisedModel":
        """Train to the last step and return the model in raw units.

        `resume` continues from the checkpoint in `out` (UsageError when there is none, or when it is of another model,
        data or settings). Raises Interrupted after saving when stopped, DataError for NaN or Inf in the data.
        """
        self.begin(resume)
        with signals() as stopped:
            bar = tqdm(
                total=self.settings.steps,
                initial=self.step,
                desc=f"train {self.model.architecture}" + (f" -> {self.out}" if self.out else ""),
                disable=None if self.progress is None else not self.progress,
                unit="step",
                leave=False,
            )
            with bar:
                while self.step < self.settings.steps:
                    saved = self.advance()
                    bar.update()
                    if reason := parallel.agree(self._reason_to_stop(stopped), self.device):
                        if not saved:
                            self.save()
                        raise Interrupted(self._farewell(reason))
        return self.result()

    def begin(self, resume: bool = False) -> None:
        """Draw the first weights, or go to where the checkpoint in `out` stands; raises as `fit`."""
        if resume:
            self._restore()
        elif self.state_file is not None and self.state_file.exists():
            raise UsageError(f"{self.out} already holds a training state; resume it, or give another directory")
        else:
            self._start()

    def advance(self) -> bool:
        """One step on the next batch, and a checkpoint where one is due; True when there was one."""
        self._train_step()
        due = self.step == self.settings.steps or self.step % self.settings.checkpoint_every == 0
        if due:
            self.save()
        return due

    def result(self) -> "SparseModel | NormalisedModel":
        """The model in raw units, as it stands."""
        self.model.eval()
        if self.normaliser.kind == "none":
            return self.model
        return NormalisedModel(self.model, self.normaliser)

    # ---- one step --------------------------------------------------------------------------------------------

    def _train_step(self) -> None:
        settings, model = self.settings, self.model
        try:
            x = next(self._rows)
        except StopIteration:
            raise DataError(
                f"the data ended after {self.step} of {settings.steps} steps; give more rows or fewer steps"
            ) from None
        if self.step == 0 or x.ndim != 2 or x.shape[1] != model.width_in:
            require_rows(x, model.width_in, f"batch {self.step}")
        x = x.to(self.device, torch.float32, non_blocking=True)
        z, context = self.normaliser.apply(x)
        dead, rate, scale = self.firing.dead(), settings.rate(self.step), settings.penalty_scale(self.step)
        if self.recorded is not None:
            loss = self.recorded(z, dead, rate, scale)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self._learn(z, dead, scale, x)
        self.firing.update(loss.codes)
        self.step += 1
        if self.step % settings.log_every == 0 or self.step == settings.steps:
            self._require_finite()
            self._write_log(json.dumps(self._line(loss, x, z, context)))
        if settings.splits_after(self.step):
            self._split()

    def _learn(self, z: Tensor, dead: "Tensor | None", penalty_scale: float, x: "Tensor | None" = None) -> Loss:
        """Loss, gradients and update of a normalised batch; DataError, about its raw rows x, where nothing watches."""
        settings, model = self.settings, self.model
        compiled = self.compiled
        loss = None if compiled is None else compiled.gradients(z, dead, penalty_scale)
        if loss is None:
            compiled, autocast = None, settings.autocast and self.device.type == "cuda"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
                loss = model.loss(z, dead, penalty_scale)
        total = parallel.mean(loss.total)  # so that all processes end at one step
        if self.watch is not None:
            self.watch.observe(total)
        elif not math.isfinite(float(total.detach())):  # before the weights see it, while the batch is at hand
            require_rows(z if x is None else x, model.width_in, f"batch {self.step}")
            raise DataError(f"the loss is not finite at step {self.step} though the data are; lower the learning rate")
        if compiled is not None:
            parallel.average_gradients(model)
            compiled.update(settings.clip_norm)
            model.observe(loss)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            loss.total.backward()
            parallel.average_gradients(model)
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], settings.clip_norm)
            step(self.optimizer)
            model.post_step(loss)
        parallel.average_buffers(model)
        return loss

    def _split(self) -> None:
        """Split merged groups on the rows that come next; every process gets the first one's weights."""
        model, seed = self.model, self.settings.seed
        rows = self._peek(rows_needed(model)).to(self.device)
        z, _ = self.normaliser.apply(rows)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + self.step)
        split_groups(model, z, generator, self.settings.penalty_scale(self.step))
        parallel.broadcast(model.state_dict().values())

    @torch.no_grad()
    def _line(self, loss: Loss, x: Tensor, z: Tensor, context: Context) -> dict[str, Any]:
        """One line of the log; no clock in it, so that a resumed run writes the straight run's log."""
        dead = self.firing.dead()
        xhat = loss.xhat.float()
        return {
            "step": self.step,
            "rows": self._rows_seen(),
            "lr": self.settings.rate(self.step - 1),
            "loss": float(loss.total),
            **{f"loss_{name}": float(part) for name, part in loss.parts.items()},
            "explained_variance_normalised": _explained(z, xhat),
            "explained_variance_raw": _explained(x, self.normaliser.invert(xhat, context)),
            "l0": float(loss.codes.l0().float().mean()),
            "l0_units": float(loss.codes.l0_units().float().mean()),
            "dead_share": None if dead is None else float(dead.float().mean()),
        }

    def _require_finite(self) -> None:
        """What the watch saw since the start: the weights stopped moving before the first bad loss."""
        if self.watch is not None and self.watch.failed():
            raise DataError(
                f"a loss up to step {self.step} was not finite: the data hold NaN or Inf, or the learning rate is too "
                "high; nothing was trained or saved from there on"
            )

    def _rows_seen(self) -> int:
        return self.step * self.settings.batch_size * parallel.world_size()

    def _write_log(self, line: str) -> None:
        """Add a line, where a user can follow it; `save` writes the whole file again, synced."""
        self._log.append(line)
        if self.out is None or not parallel.is_first():
            return
        try:
            with open(self.out / LOG, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise LabError(
                f"could not write {self.out / LOG}: {error.strerror}; the last checkpoint is whole"
            ) from error

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _reason_to_stop(self, stopped: list[int]) -> int:
        """The signal that came, TIME_UP, or 0; the last step is never late, but a signal there still stops a sweep."""
        if stopped:
            return stopped[0]
        return TIME_UP if self.step < self.settings.steps and self._late() else 0

    def _farewell(self, reason: int) -> str:
        why = "time limit" if reason == TIME_UP else f"signal {reason}"
        where = f"state saved in {self.out}" if self.out else "no directory was given, nothing is saved"
        return f"stopped by {why} at step {self.step} of {self.settings.steps}; {where}"

    # ---- start, stop, resume ---------------------------------------------------------------------------------

    def _start(self) -> None:
        """Fit the normaliser on the first rows, draw the weights, put the rows back."""
        settings, model = self.settings, self.model
        columns = model.n_units * model.rank if settings.initialise == "data" else 0
        rows = self._peek(max(FIT_ROWS, columns) if settings.normalise != "none" or columns else MEAN_ROWS)
        require_rows(rows, model.width_in, "the first batches")
        self.normaliser = Normaliser.fit(settings.normalise, rows, settings.outlier_cap).to(self.device)
        z, _ = self.normaliser.apply(rows.to(self.device))
        mean = z.mean(dim=0)
        model.initialise(
            torch.Generator().manual_seed(settings.seed), z - mean if settings.initialise == "data" else None
        )
        with torch.no_grad():
            model.b_dec.copy_(mean)
        model.begin(z)
        parallel.broadcast([*model.state_dict().values(), self.normaliser.mean, self.normaliser.scale])
        if self.out is not None and parallel.is_first():
            write_text(self.out / LOG, "")  # lines of a run that was killed before its first checkpoint go

    def _peek(self, n: int) -> Tensor:
        """At least `n` rows (or all there are) that all processes read next; their sources stay where they were."""
        state = None if isinstance(self.source, PlainSource) else self.source.state_dict()
        batches: list[Tensor] = []
        while sum(map(len, batches)) * parallel.world_size() < n:
            try:
                batches.append(next(self._rows))
            except StopIteration:
                break
        if state is None:
            self._rows = itertools.chain(batches, self._rows)
        else:
            self.source.load_state_dict(state)
        batches = parallel.joint(batches)
        if not batches:
            raise UsageError("the data have no rows; give an iterator of (batch, D) tensors")
        for i, batch in enumerate(batches):
            require_rows(batch, self.model.width_in, f"batch {i}")
        return torch.cat(batches).float()

    def save(self) -> None:
        """Write state, log and export; nothing happens without an `out` directory."""
        if self.out is None:
            return
        self._require_finite()
        for name, tensor in self.model.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise DataError(f"{name} is not finite at step {self.step}; nothing was saved. Lower the learning rate")
        sources = parallel.gather(self.source.state_dict())
        if parallel.is_first():
            self._write(self.out, sources)
        parallel.wait()

    def _write(self, out: Path, sources: list[dict[str, Any]]) -> None:
        state = {
            "step": self.step,
            "architecture": self.model.architecture,
            "model_settings": self.model.settings(),
            "settings": self.settings.as_dict(),
            "model": self.model.state_dict(),
            "optimizer": {str(i): s for i, s in self.optimizer.state_dict()["state"].items()},
            "normaliser": self.normaliser.state(),
            "firing": self.firing.state_dict(),
            "sources": sources,
            "log_lines": len(self._log),
        }
        # the state last: it never counts log lines or steps that the files beside it lack
        write_text(out / LOG, "".join(line + "\n" for line in self._log))
        training = {"steps_done": self.step, "rows": self._rows_seen(), **self.settings.as_dict()}
        saelens.save(self.result(), out, metadata={"sasa_lab_training": training})
        self.model.train()
        save_state(out / STATE, state)

    def _restore(self) -> None:
        if self.state_file is None or self.out is None:
            raise UsageError("nothing to resume: the trainer has no directory")
        state = load_state(self.state_file)
        here = {
            "architecture": self.model.architecture,
            "model_settings": json.loads(json.dumps(self.model.settings())),
            "settings": self.settings.as_dict(),
        }
        for key, value in here.items():
            if state[key] != value:
                raise UsageError(f"{self.out} was trained with {key} {state[key]}, not {value}; resume with the same")
        if len(state["sources"]) != parallel.world_size():
            raise UsageError(f"{self.out} ran on {len(state['sources'])} processes, not {parallel.world_size()}")
        self.normaliser = Normaliser.from_state(state["normaliser"]).to(self.device)
        self.model.load_state_dict(state["model"])
        moments = {int(i): s for i, s in state["optimizer"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        for parameter, held in self.optimizer.state.items():
            # the fused kernel walks moments and weights side by side in memory, so they need one layout
            for name in ("exp_avg", "exp_avg_sq"):
                held[name] = torch.empty_like(parameter).copy_(held[name])
        self.firing.load_state_dict(state["firing"])
        self.source.load_state_dict(state["sources"][parallel.rank()])
        self.step = int(state["step"])
        log = self.out / LOG
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        self._log = lines[: state["log_lines"]]
        if parallel.is_first():
            write_text(log, "".join(line + "\n" for line in self._log))


def _explained(x: Tensor, xhat: Tensor) -> float:
    """1 - sum||x - xhat||^2 / sum||x - mean||^2 of one batch."""
    x, xhat = x.double(), xhat.double()
    total = (x - x.mean(dim=0)).square().sum()
    return float(1 - (x - xhat).square().sum() / total.clamp_min(1e-300))
