"""All that a resume needs, in safetensors and JSON; nothing is pickled.

Random numbers are functions of seed and step, so no generator state is kept.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stml_semi.data.batches.pool import Calibrated, KnownImages, PoolTable
from stml_semi.losses.evidence import Weights
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput, one_line
from stml_semi.runtime.files import flush, sha256, share

_SUMMARY = "state.json"
_FILES = _MODULES, _OPTIMIZER, _POOL = "modules.safetensors", "optimizer.safetensors", "pool.safetensors"
_NEEDED = {"step", "pool_refresh", "pool_sigma", "pool_stream", "scaler", "sha256", "self"}
# Prefixes of the models among the tensors of a checkpoint.
STUDENT, TEACHER, BEST = "embedder.", "teacher.model.", "best."


class TrainState(NamedTuple):
    """The moving parts of a run."""

    modules: dict[str, nn.Module]
    """Bare modules (no wrappers) by name: embedder, teacher, objective."""
    optimizer: torch.optim.Optimizer
    scaler: Any = None
    """GradScaler of fp16 runs."""


def save_checkpoint(folder: Path, step: int, state: TrainState, table: PoolTable | None, *, keep: int) -> Path:
    """Writes folder/step-N under a temporary name, renames it when complete, and deletes all but the last `keep`.

    Returns the checkpoint's path. An error (a full disk, say) leaves earlier checkpoints as they were.
    """
    target = folder / f"step-{step}"
    temporary = folder / f".step-{step}.partial"
    for left in folder.glob(".step-*"):  # Of processes that were killed while saving.
        shutil.rmtree(left)
    temporary.mkdir(parents=True)
    try:
        tensors = {
            f"{module}.{name}": value
            for module, part in state.modules.items()
            for name, value in part.state_dict().items()
        }
        optimizer = state.optimizer.state_dict()["state"]
        files = {
            _MODULES: tensors,
            _OPTIMIZER: {
                f"{i}.{key}": torch.as_tensor(value) for i, values in optimizer.items() for key, value in values.items()
            },
        }
        if table is not None:
            files[_POOL] = {
                "rows": torch.from_numpy(table.rows),
                "neighbors": torch.from_numpy(table.neighbors.astype(np.int32)),
                "compared": torch.from_numpy(table.compared.astype(np.int32)),
            }
            if table.calibrated is not None:
                files[_POOL] |= {"unit": table.calibrated.unit, "similarity": table.calibrated.similarity}
            if (known := table.known) is not None:
                files[_POOL] |= {"known_rows": torch.from_numpy(known.rows)}
                files[_POOL] |= {"known_embeddings": known.embeddings, "known_basis": known.basis}
        for name, content in files.items():
            save_file(
                {key: value.detach().cpu().contiguous().clone() for key, value in content.items()}, temporary / name
            )
        summary = {
            "step": step,
            "pool_refresh": None if table is None else table.refresh,
            "pool_sigma": None if table is None else table.sigma,
            "pool_calibration": None if table is None or table.calibrated is None else _calibration(table.calibrated),
            "pool_stream": None if table is None else table.stream,
            "scaler": None if state.scaler is None else state.scaler.state_dict(),
            "sha256": {name: sha256(temporary / name) for name in files},
        }
        summary["self"] = _digest(summary)
        (temporary / _SUMMARY).write_text(json.dumps(summary, indent=1), encoding="utf-8")
        share(temporary)
        for path in temporary.iterdir():
            flush(path)
        replaced = folder / f".step-{step}.replaced"
        if target.exists():
            target.rename(replaced)
        temporary.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
        flush(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Steps taken when it was written."""
    return int(checkpoint.name.removeprefix("step-"))


def read_module(checkpoint: Path, prefix: str) -> dict[str, Tensor]:
    """One module's tensors of a checkpoint, such as "embedder." or "teacher.model.", named without the prefix.

    Raises:
        BadInput: it cannot be read, or is not what was written.
    """
    with _readable(checkpoint):
        _verify(checkpoint, _MODULES)
        stored = load_file(checkpoint / _MODULES)
    return _below(prefix, stored)


def read_pool(checkpoint: Path) -> PoolTable | None:
    """The pool of a checkpoint, if it has one.

    Raises:
        BadInput: it cannot be read, or is not what was written.
    """
    with _readable(checkpoint):
        summary = _verify(checkpoint, _POOL)
        return _pool_table(summary, {} if summary["pool_refresh"] is None else load_file(checkpoint / _POOL))


@contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    """Whatever is wrong with the files of a checkpoint becomes one line, with the checkpoint before it as the fix."""
    try:
        yield
    except PermissionError as error:  # Nothing is wrong with it: nobody shall delete it.
        raise BadInput(
            f"checkpoint {checkpoint}: {Path(error.filename or checkpoint).name} may not be read; make it readable "
            f"with chmod"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        earlier = [p for p in list_checkpoints(checkpoint.parent) if p != checkpoint]
        fix = f"delete it to use {earlier[-1].name}" if earlier else "no other checkpoint is there, so start anew"
        raise BadInput(f"checkpoint {checkpoint} cannot be read ({one_line(error, 200)}): {fix}") from None


def _verify(checkpoint: Path, *names: str) -> dict[str, Any]:
    """The summary, after comparing it and some files (those that there are) with the sums that it holds.

    Raises:
        OSError, ValueError: something is missing, torn or changed.
    """
    summary = json.loads((checkpoint / _SUMMARY).read_text(encoding="utf-8"))
    if not isinstance(summary, dict) or not summary.keys() >= _NEEDED or summary["self"] != _digest(summary):
        raise ValueError(f"{_SUMMARY} is not what was written")
    for name in names:
        if name in summary["sha256"] and sha256(checkpoint / name) != summary["sha256"][name]:
            raise ValueError(f"{name} is not what was written")
    return summary


def _digest(summary: dict[str, Any]) -> str:
    """Of all that a summary says, but the digest."""
    rest = {key: value for key, value in summary.items() if key != "self"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _pool_table(summary: dict[str, Any], pool: dict[str, Tensor]) -> PoolTable | None:
    if summary["pool_refresh"] is None:
        return None
    rows, neighbors, compared = (pool[n].numpy().astype(np.int64) for n in ("rows", "neighbors", "compared"))
    refresh, sigma = summary["pool_refresh"], summary["pool_sigma"]
    calibrated, facts = None, summary.get("pool_calibration")  # Older checkpoints have none.
    if facts is not None:
        calibrated = Calibrated(Weights(**facts["weights"]), facts["trust"], pool["unit"], pool["similarity"])
    known = None
    if "known_rows" in pool:
        known = KnownImages(pool["known_rows"].numpy(), pool["known_embeddings"], pool["known_basis"])
    return PoolTable(refresh, rows, neighbors, compared, sigma, calibrated, summary["pool_stream"], known)


def _calibration(calibrated: Calibrated) -> dict[str, Any]:
    return {"weights": calibrated.weights._asdict(), "trust": calibrated.trust}


class Restored(NamedTuple):
    """Where a run continues."""

    step: int
    table: PoolTable | None


def load_checkpoint(path: Path, state: TrainState) -> Restored:
    """Restores `state` in place; the main process reads, and all get what it read.

    Raises:
        BadInput: a file is missing, torn or was changed (its name and the previous checkpoint are named), or it
            belongs to another configuration.
    """
    read: dict[str, Tensor] = {}

    def summary_of() -> dict[str, Any]:
        with _readable(path):
            summary = _verify(path, *_FILES)
            for file in _FILES[: 2 if summary["pool_refresh"] is None else 3]:
                read.update({f"{file}/{name}": value for name, value in load_file(path / file).items()})
            _pool_table(summary, _below(f"{_POOL}/", read))  # What is wrong with it shows here.
            return summary

    summary = distributed.from_main(summary_of)
    tensors = distributed.tensors_from_main(read, next(state.modules["embedder"].parameters()).device)
    try:
        for name, module in state.modules.items():
            module.load_state_dict(_below(f"{_MODULES}/{name}.", tensors))
    except RuntimeError as error:
        raise BadInput(
            f"--resume: checkpoint {path} is of another model or loss; use the configuration it was made with "
            f"({' '.join(str(error).split())[:200]})"
        ) from None
    _load_optimizer(state.optimizer, _below(f"{_OPTIMIZER}/", tensors))
    if state.scaler is not None and summary["scaler"] is not None:
        state.scaler.load_state_dict(summary["scaler"])
    return Restored(summary["step"], _pool_table(summary, _below(f"{_POOL}/", tensors)))


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # Fused optimizers walk parameter and moments side by side: both must lie in memory the same way.
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        values.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
