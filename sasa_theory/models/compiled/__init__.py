"""The training step of the gated architectures, compiled for a CPU: same loss and gradients as the plain path, sooner.

Of the plain step's six dense products one is needed, the encoder's forward, 2 B D K r flops, and that one only to find
out which units win. So it is taken in int8, a quarter of the time; the units that may have won, by a margin of the
rounding errors, are computed again exactly, and a row whose margin leaves a doubt is computed in full. What follows
touches each row's units that are on: decode, and, unit by unit while its blocks are in cache, both weight gradients and
the nuclear norm's; then clipping, Adam and the gauge in one pass over the weights.

    screen.py       every product, in int8 or float32, chunk by chunk (models/rounding.py: how far off int8 may be)
    gate.py         which units win                          loops: gate_loops.py, best_loops.py, level_loops.py
    step.py         loss, gradients, update                  loops: gradient_loops.py, nuclear_loops.py, update_loops.py
    compile.py      how the loops are compiled
    workspace.py    buffers that live from step to step

`training.Trainer` takes it where `compiled_step` gives one; the plain path is `model.loss` and autograd.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sasa_theory.models.base import SparseModel
    from sasa_theory.models.compiled.step import CompiledStep


def compiled_step(model: "SparseModel", optimizer: "torch.optim.Optimizer") -> "CompiledStep | None":
    """The compiled step of a model, or None where the plain path has to do: see `CompiledStep.of`."""
    try:
        from sasa_theory.models.compiled.step import CompiledStep
    except ImportError:  # pragma: no cover - numba is a dependency; a machine without it takes the plain path
        return None
    return CompiledStep.of(model, optimizer)
