"""Data parallel through torch.distributed (torchrun); with one process every function here does nothing.

Each process trains on rows of its own; gradients and running statistics are averaged after each step, so all hold
the same weights, and the first writes the checkpoint. The mean of the gradients is the joint batch's for every loss
that is a mean over rows; what is chosen per batch (BatchTopK's entries, the groups that SASA's penalty charges) is
chosen per process.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def world_size() -> int:
    """Number of processes."""
    return torch.distributed.get_world_size() if _running() else 1


def rank() -> int:
    """Number of this process."""
    return torch.distributed.get_rank() if _running() else 0


def is_first() -> bool:
    """Whether this process writes files."""
    return rank() == 0


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values."""
    if _running():
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)


def agree(number: int, device: torch.device) -> int:
    """The largest number any process gives: all stop at one step though a signal reaches them at different ones."""
    if not _running():
        return number
    largest = torch.tensor(number, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def wait() -> None:
    """Until every process is here: torchrun kills all once one has ended, so none may leave while the first writes."""
    if _running():
        torch.distributed.barrier()


def average_gradients(model: nn.Module) -> None:
    """Mean gradient over processes (a parameter that got none on one process counts as zero there)."""
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
