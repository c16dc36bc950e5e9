from typing import Any

import pytest
import torch

from stml_semi.runtime.exact import exact_float32

CUDNN: Any = torch.backends.cudnn
BACKENDS = torch.backends.cuda.matmul, CUDNN.conv, CUDNN.rnn


def state() -> list[object]:
    return [torch.get_float32_matmul_precision(), *(backend.fp32_precision for backend in BACKENDS)]


@pytest.fixture(autouse=True)
def restored():
    with exact_float32():
        pass
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [False, True])
def test_every_switch_is_exact_within_and_as_before_after(precision, convolutions):
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions
    before = state()
    with exact_float32():
        assert state() == ["highest", "ieee", "ieee", "ieee"]
        assert not torch.backends.cudnn.allow_tf32
    assert state() == before


def test_an_error_leaves_the_switches_as_they_were():
    torch.set_float32_matmul_precision("medium")
    before = state()
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert state() == before


def test_newer_switches_that_disagree_with_the_older_are_kept():
    CUDNN.conv.fp32_precision = "tf32"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with exact_float32():
        assert [backend.fp32_precision for backend in BACKENDS] == ["ieee", "ieee", "ieee"]
    assert CUDNN.conv.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    CUDNN.conv.fp32_precision = "none"
