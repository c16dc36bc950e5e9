"""What accelerate is told before a run, and what it may not be told."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradScalerKwargs, InitProcessGroupKwargs

from stml_semi.config import TrainConfig
from stml_semi.runtime.errors import BadInput

# Some work is done by one process while the others wait: a stream's next pool, the digest of a cache, hashing.
_PATIENCE = timedelta(hours=3)

# At PyTorch's 65,536 half of the first steps overflow. What is small enough is doubled every 200 steps.
_SCALE = GradScalerKwargs(init_scale=1024.0, growth_interval=200)

_SPLITS_THE_MODEL = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a run; all processes call this together.

    Raises:
        BadInput: accelerate is configured to split the model.
    """
    for variable, name in _SPLITS_THE_MODEL.items():
        if os.environ.get(variable, "false").lower() in ("1", "true", "yes"):
            raise BadInput(
                f"accelerate is configured to use {name} ({variable}), which splits a model over processes: here each "
                "holds all of it. Run `accelerate config` again without it, or `accelerate launch --multi_gpu`"
            )
    if config.deterministic:
        _use_deterministic_algorithms()
    # Buffers are alike in all processes as long as BatchNorm keeps its statistics.
    wrapper = DistributedDataParallelKwargs(broadcast_buffers=config.batchnorm == "batch")
    handlers = [wrapper, InitProcessGroupKwargs(timeout=_PATIENCE), _SCALE]
    return Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=handlers)


def _use_deterministic_algorithms() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Read when the first product runs on a GPU.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
