import os

import pytest
import torch

from stml_semi.config import TrainConfig
from stml_semi.runtime.errors import BadInput
from stml_semi.training.launch import make_accelerator


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_model_is_not_split_over_processes(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(BadInput, match=f"ACCELERATE_USE_{name}.*accelerate config"):
        make_accelerator(TrainConfig(labeled="x"))
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "false")
    make_accelerator(TrainConfig(labeled="x"))


def test_deterministic_algorithms_are_asked_for(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    make_accelerator(TrainConfig(labeled="x"))
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        make_accelerator(TrainConfig(labeled="x", deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
