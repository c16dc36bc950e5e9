"""Decoding processes."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stml_semi.data import workers
from stml_semi.data.workers import decode_ahead
from stml_semi.runtime.failures import dead_worker


class Finalized:
    """Part of a cycle, so that only the garbage collector ends it; says in which process that was."""

    def __init__(self, told: int) -> None:
        self.told, self.myself = told, self

    def __del__(self) -> None:
        os.write(self.told, f"{os.getpid()}\n".encode())


class Collects(Dataset[int]):
    """Its items collect garbage, and are their process."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        gc.collect()
        return os.getpid()


def test_a_worker_leaves_what_it_inherits_alone():
    read, told = os.pipe()
    gc.disable()  # So that it is still there when the worker starts.
    try:
        Finalized(told)
        processes = set(decode_ahead(Collects(), num_workers=1))
    finally:
        gc.enable()
    gc.collect()
    os.close(told)
    with os.fdopen(read) as file:
        assert file.read().split() == [str(os.getpid())]
    assert processes.isdisjoint({os.getpid()})


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_global_generator_alone(num_workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len(list(decode_ahead(Collects(), num_workers=num_workers))) == 2
    assert torch.equal(torch.get_rng_state(), before)


class Numbers(NamedTuple):
    values: Tensor
    names: list[str]


class Counts(Dataset[Numbers]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Numbers:
        return Numbers(torch.full((1000,), index), [str(index)])


def test_without_shared_memory_items_arrive_all_the_same(monkeypatch, capfd):
    """As in a container with 64 MB of it: PyTorch loses the item, and waits for it forever."""
    workers._say_that_shared_memory_is_full.cache_clear()

    def full(self: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)
    found = list(decode_ahead(Counts(), num_workers=2))
    assert [item.names for item in found] == [[str(i)] for i in range(6)]
    assert all(torch.equal(item.values, torch.full((1000,), i)) for i, item in enumerate(found))
    assert capfd.readouterr().err.count("docker run --shm-size") == 1


class Dies(Counts):
    def __getitem__(self, index: int) -> Numbers:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_is_killed_is_explained():
    with pytest.raises(RuntimeError) as error:
        list(decode_ahead(Dies(), num_workers=2))
    assert "a decoding process" in str(dead_worker(error.value))  # It is one of these two messages.
    killed = "DataLoader worker (pid 123) is killed by signal: Bus error. It is possible that"
    assert "a decoding process is killed by signal: Bus error: the system" in str(dead_worker(RuntimeError(killed)))
    exited = "DataLoader worker (pid(s) 1, 2) exited unexpectedly"
    assert "a decoding process exited unexpectedly: the system" in str(dead_worker(RuntimeError(exited)))
    assert dead_worker(RuntimeError("shapes do not match")) is None


def test_an_error_with_a_traceback_ends_the_workers():
    program = """
from test_workers import Collects
from stml_semi.data.workers import decode_ahead
items = decode_ahead(Collects(), num_workers=1)
next(items)
raise KeyError("inside")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.endswith("KeyError: 'inside'\n")
