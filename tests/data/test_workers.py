"""Decoding processes."""

import gc
import os

import pytest
import torch
from torch.utils.data import Dataset

from stml_semi.data.workers import decode_ahead


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
        workers = set(decode_ahead(Collects(), num_workers=1))
    finally:
        gc.enable()
    gc.collect()
    os.close(told)
    with os.fdopen(read) as file:
        assert file.read().split() == [str(os.getpid())]
    assert workers.isdisjoint({os.getpid()})


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_global_generator_alone(num_workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len(list(decode_ahead(Collects(), num_workers=num_workers))) == 2
    assert torch.equal(torch.get_rng_state(), before)
