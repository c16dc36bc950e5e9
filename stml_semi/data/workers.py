"""Decoding processes: how many there are, and what comes back from them."""

import atexit
import gc
import multiprocessing
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from stml_semi.runtime import distributed
from stml_semi.runtime.errors import RunFailed

T = TypeVar("T")

MADE_AHEAD = 2
"""Items that each worker makes before they are asked for."""


def default_num_workers(local_world_size: int) -> int:
    """Decoding processes per training process of this machine: the cores that are left, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores // local_world_size - 1, 8), 0)


def resolve_num_workers(num_workers: int | None) -> int:
    """Decoding processes of this training process: what was configured, or the default."""
    return default_num_workers(distributed.local_world_size()) if num_workers is None else num_workers


def decode_ahead(
    dataset: Dataset[T], items: Iterable[int] | None = None, *, num_workers: int, pin_memory: bool = False
) -> Iterator[T]:
    """Items of a dataset in order, made ahead by worker processes.

    Args:
        dataset: what the workers evaluate; pickled once.
        items: which items, default all.
        num_workers: processes; 0 works in this one.
        pin_memory: for tensors that go to a GPU.

    Raises:
        RunFailed: raised by the dataset in a worker; the message is its own.
    """
    guarded = _Guarded(dataset)
    loader = DataLoader(
        guarded,
        batch_size=None,
        sampler=range(len(guarded)) if items is None else items,
        num_workers=num_workers,
        prefetch_factor=MADE_AHEAD if num_workers else None,
        pin_memory=pin_memory,
        collate_fn=_as_is,
        worker_init_fn=_prepare_worker,
        # Or it would draw a seed for its workers, who use none, from the generator that others count on.
        generator=torch.Generator(),
    )
    for item in _with_an_end(loader):
        if isinstance(item, _Failure):
            raise RunFailed(item.message)
        yield cast(T, _each_part(item, _received))


def _with_an_end(loader: DataLoader[T]) -> Iterator[T]:
    """The items of a loader, whose workers end with this process at the latest.

    They ignore SIGTERM. After an error whose traceback holds the loader, Python would wait for them forever.
    """
    others = set(multiprocessing.active_children())
    items = iter(loader)
    _workers.update(set(multiprocessing.active_children()) - others)
    _end_workers_at_exit()
    yield from items


_workers: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


@cache
def _end_workers_at_exit() -> None:
    atexit.register(_end_workers)


def _end_workers() -> None:
    left = [worker for worker in _workers if worker.is_alive()]
    if left:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would take their end for a failure.
    for worker in left:
        worker.kill()


class _Failure(NamedTuple):
    """What a worker returns in place of an item: an exception would arrive wrapped into the worker's traceback."""

    message: str


class _Guarded(Dataset[T | _Failure], Generic[T]):
    def __init__(self, dataset: Dataset[T]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # pyright: ignore[reportArgumentType] - asked for only where all items are wanted

    def __getitem__(self, index: int) -> T | _Failure:
        try:
            item = self.dataset[index]
        except RunFailed as error:
            return _Failure(str(error))
        return item if get_worker_info() is None else _each_part(item, _sent)


class _ByValue(NamedTuple):
    """What a worker sends in place of a tensor for which there is no shared memory."""

    values: NDArray[Any]


def _sent(part: Any) -> Any:
    # PyTorch would do so in a thread, where a failure loses the item and the run waits for it forever.
    if isinstance(part, Tensor):
        try:
            return part.share_memory_()
        except RuntimeError:
            return _ByValue(part.numpy())
    return part


def _received(part: Any) -> Any:
    if isinstance(part, _ByValue):
        _say_that_shared_memory_is_full()
        return torch.from_numpy(part.values)
    return part


@cache
def _say_that_shared_memory_is_full() -> None:
    print(
        "warning: shared memory (/dev/shm) is full, and images go through a pipe, which is slower: give the container "
        "more of it (docker run --shm-size 8g), or take fewer --num-workers",
        file=sys.stderr,
    )


def _each_part(item: Any, change: Callable[[Any], Any]) -> Any:
    """A named tuple with its parts changed; something else is one part."""
    if isinstance(item, tuple) and hasattr(item, "_fields") and not isinstance(item, _ByValue):
        return type(item)(*map(change, item))
    return change(item)


def _prepare_worker(worker: int) -> None:
    # What a worker inherits is not its to clean up: an ONNX session, say, waits for its threads, which are not here.
    gc.freeze()
    # A signal to the whole process group (torchrun, Slurm) must not end the workers of a run that will save.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _as_is(batch: Any) -> Any:
    return batch
