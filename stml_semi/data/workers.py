"""Decoding processes: how many there are, and what comes back from them."""

import gc
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from stml_semi.runtime import distributed
from stml_semi.runtime.errors import RunFailed

T = TypeVar("T")


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
        pin_memory=pin_memory,
        collate_fn=_as_is,
        worker_init_fn=_prepare_worker,
        # Or it would draw a seed for its workers, who use none, from the generator that others count on.
        generator=torch.Generator(),
    )
    for item in loader:
        if isinstance(item, _Failure):
            raise RunFailed(item.message)
        yield cast(T, item)


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
            return self.dataset[index]
        except RunFailed as error:
            return _Failure(str(error))


def _prepare_worker(worker: int) -> None:
    # What a worker inherits is not its to clean up: an ONNX session, say, waits for its threads, which are not here.
    gc.freeze()
    # A signal to the whole process group (torchrun, Slurm) must not end the workers of a run that will save.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _as_is(batch: Any) -> Any:
    return batch
