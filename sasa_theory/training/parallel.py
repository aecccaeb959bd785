"""Data parallel through torch.distributed (torchrun); with one process every function here does nothing.

Each process trains on rows of its own; gradients and running statistics are averaged after each step, so all hold
the same weights, and the first writes the checkpoint.
"""

from typing import Any

import torch
from torch import nn


def world_size() -> int:
    """Number of processes."""
    return torch.distributed.get_world_size() if _running() else 1


def rank() -> int:
    """Number of this process."""
    return torch.distributed.get_rank() if _running() else 0


def is_first() -> bool:
    """Whether this process writes files."""
    return rank() == 0


def broadcast(model: nn.Module) -> None:
    """Give every process the first one's weights and buffers."""
    if _running():
        for tensor in model.state_dict().values():
            torch.distributed.broadcast(tensor, 0)


def average_gradients(model: nn.Module) -> None:
    """Mean gradient over processes: that of the joint batch, as every loss is a mean over rows."""
    if not _running():
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def average_buffers(model: nn.Module) -> None:
    """Mean of the running statistics (thresholds, coefficients) over processes."""
    if not _running():
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            torch.distributed.all_reduce(buffer)
            buffer /= world_size()


def gather_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Every process's source state, in order."""
    if not _running():
        return [state]
    states: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(states, state)
    return states


def _running() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
