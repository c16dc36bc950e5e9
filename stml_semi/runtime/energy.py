"""What the GPUs of this machine have used, where their driver counts it."""

import torch


def gpu_joules() -> float | None:
    """Energy that the visible GPUs have used since their driver was loaded, by NVML; None where that is not known.

    Needs `nvidia-ml-py`, and GPUs of the Volta generation or later. What processors use is not counted: their counters
    are open to administrators only, and overflow within the hour.
    """
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        names = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(name) for name in names]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1000
    except (AttributeError, pynvml.NVMLError):  # Not made by NVIDIA, or too old to count.
        return None
