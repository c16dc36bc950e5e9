"""What a run ran on: versions, hardware, the command, energy. For the report and for `doctor`."""

import importlib.metadata
import os
import platform
import shlex
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("stml-semi", "torch", "transformers", "accelerate", "datasets", "timm", "pytorch-metric-learning", "peft")


def versions() -> dict[str, str]:
    """Name -> version of Python and of the packages that results may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def best_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Memory of the machine, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def free_shared_memory() -> int:
    """Bytes that processes may still share as files in memory; very many where the system has no bound."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return sys.maxsize


def hardware() -> dict[str, str]:
    """What computes here, a few words each."""
    memory = memory_bytes()
    found = {"processor": f"{_processor()}, {cores()} cores"}
    if memory is not None:
        found["memory"] = f"{memory / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        places = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found["GPU"] = ", ".join(f"{place.name} ({place.total_memory / 2**30:.0f} GiB)" for place in places)
    elif torch.backends.mps.is_available():
        found["GPU"] = "Apple (MPS)"
    else:
        found["GPU"] = "none"
    found["system"] = f"{platform.system()} {platform.release()}"
    return found


def describe_start(*, processes: int, first_step: int) -> dict[str, Any]:
    """One sitting of a run, as run.json keeps it."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "first_step": first_step,
        "processes": processes,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "versions": versions(),
        "hardware": hardware(),
    }


def cpu_has_bf16() -> bool:
    """Whether the processor has instructions for bf16, where the system tells."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(_cpuinfo().split()))


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _processor() -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


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
