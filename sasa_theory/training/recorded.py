"""A training step launched as one CUDA graph: where steps are small, launching their kernels costs more than they do.

The step runs as it is until one of the same shapes has gone before (kernels are compiled and the optimiser has its
moments by then), is recorded with `device.capture`, and is replayed from there on. Where recording fails, a log line
says why and the step goes on running as it is.

Unmeasured: no GPU was at hand; the decisions are tested on a CPU with stand-ins for `capture`, the rest by the tests
marked `gpu`.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sasa_theory import parallel
from sasa_theory.models.base import Loss, SparseModel
from sasa_theory.models.form import unchanged
from sasa_theory.training.device import capture

logger = logging.getLogger(__name__)

#: multiply-adds of the encoder product, B D K r, up to which a step is recorded: in bf16 an H200 needs about 0.1 ms for
#: so many, and the launches of a step's hundred or so kernels about a millisecond
SMALL_STEP = 1 << 34


def worth_recording(model: SparseModel, batch_size: int, device: torch.device) -> bool:
    """Whether a step of `batch_size` rows is small, on a GPU, of one process (collectives are not recorded), and known.

    Known are the models of a gate of fixed size: what a loss of one's own does in Python, a replay would leave out
    without a word.
    """
    work = batch_size * model.width_in * model.n_units * model.rank
    form = model.gated_form()
    known = unchanged(type(model)) and form is not None and form.choice != "level"
    return device.type == "cuda" and parallel.world_size() == 1 and known and work <= SMALL_STEP


class RecordedStep:
    """`step(z, dead, penalty_scale)`, a whole training step that asks the device for nothing, recorded.

    step       gets the penalty scale as a tensor of no dimension, in place of a number.
    optimizer  fused; its learning rate becomes a tensor on the device. A step changes the model's parameters and
               buffers, the optimiser's state and its `found_inf`, and no other tensor that lasts.
    record     `device.capture`, or a stand-in.
    """

    def __init__(
        self,
        step: "Callable[[Tensor, Tensor | None, Any], Loss]",
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        record: Callable[..., "Callable[..., tuple[Tensor, ...]]"] = capture,
    ) -> None:
        self.step, self.model, self.optimizer, self.record = step, model, optimizer, record
        device = next(model.parameters()).device
        self.rate, self.scale = torch.zeros((), device=device), torch.ones((), device=device)
        #: shapes of the last step; how it is replayed, if it was recorded, and into which loss
        self._seen: object = None
        self._replay: Callable[..., tuple[Tensor, ...]] | None = None
        self._loss: Loss | None = None
        self._refused = False

    def __call__(
        self, z: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None", rate: float, penalty_scale: float
    ) -> Loss:
        """One step; the loss of a replayed one lies in buffers that the next step writes over."""
        self.rate.fill_(rate)
        self.scale.fill_(penalty_scale)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate  # again: loading a state put another there
        seen = z.shape, dead is None
        if self._refused or seen != self._seen:
            self._seen, self._replay, self._loss = seen, None, None
            return self.step(z, dead, self.scale)
        given = (z,) if dead is None else (z, dead)
        if self._replay is None:
            self._replay = self._recorded(given)
            if self._replay is None:
                return self.step(z, dead, self.scale)
        self._replay(*given)
        if self._loss is None:
            raise RuntimeError("a recorded step left no loss")
        return self._loss

    def _recorded(self, given: tuple[Tensor, ...]) -> "Callable[..., tuple[Tensor, ...]] | None":
        """The step recorded on these inputs; None, and a line in the log, where that fails."""

        def step(z: Tensor, dead: "Tensor | None" = None) -> tuple[Tensor, ...]:
            self._loss = self.step(z, dead, self.scale)
            return (self._loss.total.detach(),)

        self._capturable(True)
        try:
            return self.record(step, *given, state=list(self._changed()))
        except RuntimeError as error:
            self._capturable(False)
            self._refused, self._loss = True, None
            logger.warning("steps are launched kernel by kernel: recording one as a CUDA graph failed (%s)", error)
            return None

    def _capturable(self, on: bool) -> None:
        for group in self.optimizer.param_groups:
            group["capturable"] = on
        # else torch warns of every step outside of a recording, such as those that warm up
        self.optimizer._warned_capturable_if_run_uncaptured = True

    def _changed(self) -> Iterator[Tensor]:
        yield from self.model.parameters()
        yield from self.model.buffers()
        for held in self.optimizer.state.values():
            yield from (value for value in held.values() if isinstance(value, Tensor))
        found_inf = getattr(self.optimizer, "found_inf", None)
        if found_inf is not None:
            yield found_inf
