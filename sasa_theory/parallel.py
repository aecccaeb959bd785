"""Data parallel through torch.distributed (torchrun); with one process every function here changes nothing.

Each process trains on rows of its own, as many as every other. The mean of the gradients is the joint batch's for a
loss that is a mean over rows; what a model takes from the whole batch (BatchTopK's level, the groups that SASA's
penalty charges, the L0 that steers a coefficient) it asks for here. So all hold the weights that one process would have
on all rows, and the first writes the checkpoint. Every process must make the same calls in the same order.
"""

from collections.abc import Iterable
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

T = TypeVar("T")


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


def gather(value: T) -> list[T]:
    """Every process's value, in order."""
    if not _running():
        return [value]
    values: list[T] = [value] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def joint(batches: list[Tensor]) -> list[Tensor]:
    """Every process's batches, in the order of one process that reads all: each one's first, each one's second, ..."""
    if not _running():
        return batches
    return [batch for turn in zip(*gather([b.cpu() for b in batches]), strict=False) for batch in turn]


# ---- after the backward pass ---------------------------------------------------------------------------------------


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


# ---- what a loss takes from the whole batch ------------------------------------------------------------------------


def any_process(mask: "Bool[Tensor, ' n']") -> "Bool[Tensor, ' n']":
    """Entries that are true on at least one process."""
    if not _running():
        return mask
    counts = mask.int()
    torch.distributed.all_reduce(counts)
    return counts > 0


def mean(value: "Float[Tensor, '...']") -> "Float[Tensor, '...']":
    """Mean over processes; not differentiable."""
    if not _running():
        return value
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total / world_size()


def least(value: "Float[Tensor, '']") -> "Float[Tensor, '']":
    """The smallest value any process gives."""
    if not _running():
        return value
    smallest = value.detach().clone()
    torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
    return smallest


def nth_largest(values: "Float[Tensor, ' m']", n: int) -> "Float[Tensor, '']":
    """The n-th largest of all processes' non-negative float32 values, exactly; 0 where there are fewer than n.

    Such numbers are ordered as their bits are, so four rounds that count what lies above 256 levels find its bits.
    """
    bits = values.float().contiguous().view(torch.int32).long().sort().values
    low = torch.zeros((), dtype=torch.int64, device=values.device)
    for shift in (24, 16, 8, 0):
        levels = low + (torch.arange(256, device=values.device) << shift)
        above = len(bits) - torch.searchsorted(bits, levels)
        if _running():
            torch.distributed.all_reduce(above)
        # the last level that n values reach; level 0 stays where none is
        low = torch.where(above >= n, levels, low).amax()
    return low.int().view(torch.float32)


def _running() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
