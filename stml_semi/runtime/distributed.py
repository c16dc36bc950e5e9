"""Processes: who holds which rows of the global batch, and how rows come together again.

The only file that imports torch.distributed. Without a process group everything is the identity.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from stml_semi.runtime.errors import BadInput

T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number on this machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if dist.is_initialized() else 0


def share(total: int, *, rank: int, world_size: int) -> slice:
    """The contiguous rows of `total` that a process works on; sizes differ by one at most."""
    return slice(total * rank // world_size, total * (rank + 1) // world_size)


def gather(local: Tensor, total: int) -> Tensor:
    """All processes' shares in rank order: (share, ...) -> (total, ...), with gradient.

    Every process computes the same loss from the result. The backward pass hands each process the gradient of its own
    rows times the number of processes, which undoes the mean that DistributedDataParallel takes over them: gradients
    equal those of one process with the whole batch. (`Accelerator.gather` carries no gradient.)

    Args:
        local: this process's rows, as many as its `share(total)`.
        total: rows over all processes.
    """
    if world_size() == 1:
        return local
    return cast(Tensor, _Gather.apply(local, total))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, total: int) -> Tensor:
        world = world_size()
        shares = [share(total, rank=r, world_size=world) for r in range(world)]
        ctx.own, ctx.world = shares[rank()], world
        assert len(local) == ctx.own.stop - ctx.own.start, (local.shape, ctx.own)
        # Shares differ by one row at most, and collectives want equal shapes: pad, gather, cut.
        longest = -(-total // world)
        padded = local.new_zeros((longest, *local.shape[1:]))
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        return torch.cat([part[: s.stop - s.start] for part, s in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0][ctx.own] * ctx.world, None


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Averages gradients of parameters that no wrapper looks after (proxies), so that processes cannot drift apart."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
            parameter.grad /= world_size()


def is_lost_process(error: BaseException) -> bool:
    """Whether an error means that another process is gone, rather than that this one failed."""
    if isinstance(error, dist.DistError):
        return True
    gone = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, RuntimeError) and "gloo" in str(error) and any(text in str(error) for text in gone)


def together(step: Callable[[], T]) -> T:
    """Runs a step on every process; if one of them finds bad input, all raise its error, and none waits for it.

    Raises:
        BadInput: this process's own, else the first one that another process found.
    """
    result = problem = None
    try:
        result = step()
    except BadInput as error:
        problem = error
    problems = gather_objects(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    first = next((text for text in problems if text is not None), None)
    if first is not None:
        raise BadInput(first)
    return cast(T, result)


def from_main(step: Callable[[], T]) -> T:
    """Runs a step on the main process alone, and gives every process the small object that it returns.

    What is in the run folder is read so: other machines may not see it, or not yet.

    Raises:
        BadInput: of the step, on all.
    """
    found = [together(lambda: step() if rank() == 0 else None)]
    if world_size() > 1:
        dist.broadcast_object_list(found, src=0)
    return cast(T, found[0])


def tensors_from_main(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The main process's tensors by name, on the CPU of every process.

    Args:
        tensors: on the CPU; those of other processes are not looked at.
        device: of the model, over which they are sent.
    """
    if world_size() == 1:
        return tensors
    outline = from_main(lambda: [(name, value.shape, value.dtype) for name, value in tensors.items()])
    received = {}
    for name, shape, dtype in outline:
        sent = tensors[name].to(device) if rank() == 0 else torch.empty(shape, dtype=dtype, device=device)
        if sent.numel():
            dist.broadcast(sent, src=0)
        received[name] = tensors[name] if rank() == 0 else sent.cpu()
    return received


def gather_objects(value: Any) -> list[Any]:
    """Every process's small object, in rank order, on every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
