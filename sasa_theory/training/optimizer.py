"""Adam as the trainer uses it: torch's own fused kernel, over weights that lie column by column."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sasa_theory.training.settings import TrainSettings


def make_optimizer(parameters: "Iterable[nn.Parameter]", settings: TrainSettings) -> torch.optim.Optimizer:
    """Adam or AdamW with the settings' rate and betas, over the parameters that are trained."""
    trained = [p for p in parameters if p.requires_grad]
    if settings.optimizer == "adamw":
        decay = settings.weight_decay
        return torch.optim.AdamW(trained, settings.lr, betas=settings.betas, weight_decay=decay, fused=True)
    return torch.optim.Adam(trained, settings.lr, betas=settings.betas, fused=True)


def step(optimizer: torch.optim.Optimizer) -> None:
    """optimizer.step(), the same to the bit; on a CPU it sees the transpose of a matrix that lies column by column.

    The fused kernel there first makes a transposed copy of such a matrix's gradient, which costs as much as the update.
    """
    columns = [
        p
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None and p.device.type == "cpu" and p.dim() == 2 and not p.is_contiguous()
    ]
    _transpose(optimizer, columns)
    try:
        optimizer.step()
    finally:
        _transpose(optimizer, columns)


def _transpose(optimizer: torch.optim.Optimizer, matrices: "list[nn.Parameter]") -> None:
    """Transpose weights, gradients and moments in place, as views."""
    for p in matrices:
        gradient, p.grad = p.grad, None  # a parameter refuses a gradient of another shape
        p.data = p.data.T
        p.grad = None if gradient is None else gradient.T
        for name, held in optimizer.state.get(p, {}).items():
            if isinstance(held, Tensor) and held.dim() == 2:
                optimizer.state[p][name] = held.T
