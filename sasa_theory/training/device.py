"""What a training step on a GPU needs so that the host never waits: a watch on the loss, and a recorded step.

Unmeasured: written and tested on machines without a GPU, apart from the tests marked `gpu`.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from synthetic.errors import UsageError


class LossWatch:
    """Remembers on the device whether any loss was not finite, and from then on keeps the optimiser from stepping.

    `observe` after each loss, before the optimiser's step; `failed` waits for the device, so ask at log lines and
    checkpoints. The weights are then still those before the first bad loss: torch's fused optimisers skip a step, on
    the device, when their `found_inf` is 1 (the protocol of torch.amp.GradScaler). Whatever else changes the weights
    after a step (`post_step`) leaves weights that did not move where they are, up to rounding.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: "torch.device | str") -> None:
        if not all(group.get("fused") for group in optimizer.param_groups):
            raise UsageError("a loss can be watched on the device with a fused optimiser only; make it with fused=True")
        self._bad = torch.zeros((), dtype=torch.float32, device=device)
        optimizer.found_inf = self._bad  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]

    @torch.no_grad()
    def observe(self, loss: "Float[Tensor, '']") -> None:
        """Take note of one step's loss (the mean over processes, so that all stop)."""
        self._bad.copy_(torch.maximum(self._bad, loss.isfinite().logical_not().float()))

    def failed(self) -> bool:
        """Whether a loss since the start was not finite."""
        return bool(self._bad)


def capture(
    step: Callable[..., "tuple[Tensor, ...]"], *examples: Tensor, state: Iterable[Tensor] = (), warm_up: int = 3
) -> Callable[..., "tuple[Tensor, ...]"]:
    """`step` recorded as one CUDA graph: a small step costs a launch, not one for each of its kernels.

    step      a whole training step: takes tensors (batch, learning rate, penalty scale, dead mask, ...), gives tensors,
              asks the device for nothing, and uses the same shapes and addresses each time; gradients are zeroed or set
              to None in it, the optimiser has capturable=True and a tensor for its learning rate.
    examples  inputs of the shapes to come; the returned function copies its arguments into buffers of their shape.
    state     every tensor that a step changes (weights, moments, counters): put back after the `warm_up` runs, which
              Triton and the libraries need before a recording, whether it succeeds or not.

    The outputs are the recorded buffers, overwritten by the next call. Raises UsageError off a GPU.
    """
    if not examples or not all(tensor.is_cuda for tensor in examples):
        raise UsageError("a step can be recorded on a CUDA device only; give example inputs that lie there")
    held = [(tensor, tensor.detach().clone()) for tensor in state]
    inputs = [tensor.detach().clone() for tensor in examples]
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = step(*inputs)
    finally:
        with torch.no_grad():
            for tensor, before in held:
                tensor.copy_(before)

    def replay(*arguments: Tensor) -> tuple[Tensor, ...]:
        for buffer, argument in zip(inputs, arguments, strict=True):
            buffer.copy_(argument, non_blocking=True)
        graph.replay()
        return outputs

    return replay
