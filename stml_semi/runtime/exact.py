"""Float32 that is float32, whatever PyTorch's switches say."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within this context float32 products and convolutions are not rounded to TF32 or bfloat16 on the way.

    Recent GPUs convolve in TF32 unless told otherwise: ten bits of mantissa, which moves embeddings by 1e-4. Products
    follow `torch.set_float32_matmul_precision`, which others in this process may have called. What autocast runs in
    half precision stays so.
    """
    switches = _switches()
    before = [_read(switch) for switch in switches]
    if before == [switch.exact for switch in switches]:
        yield
        return
    for switch in switches:
        switch.turn(switch.exact)
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            if value is not None:
                switch.turn(value)


class _Switch(NamedTuple):
    read: Callable[[], Any]
    turn: Callable[[Any], Any]
    exact: Any


def _switches() -> list[_Switch]:
    """The older switches first: they move the newer ones, and cannot be read where the two disagree."""
    backends: Any = torch.backends
    switches = [
        _Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        _Switch(partial(getattr, backends.cudnn, "allow_tf32"), partial(setattr, backends.cudnn, "allow_tf32"), False),
    ]
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # Since torch 2.9.
        cuda = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
        switches += [
            _Switch(partial(getattr, owner, "fp32_precision"), partial(setattr, owner, "fp32_precision"), "ieee")
            for owner in (*cuda, backends.mkldnn.matmul, backends.mkldnn.conv)
        ]
    return switches


def _read(switch: _Switch) -> Any:
    try:
        return switch.read()
    except RuntimeError:
        return None
