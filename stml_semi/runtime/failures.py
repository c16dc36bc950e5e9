"""Failures of the machine that explain themselves: memory or disk that runs out, processes that die."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput, RunFailed, one_line


@contextmanager
def explained(rows: int, micro_batch_size: int | None) -> Iterator[None]:
    """Within this context failures of the machine become a `RunFailed` that says what to do.

    Args:
        rows: images and views in this process's share of a step.
        micro_batch_size: as configured.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(rows, micro_batch_size) from None
        if is_disk_full(error):
            raise RunFailed(
                "the disk is full: free some space, then continue with --resume; checkpoints written before are whole"
            ) from None
        if distributed.is_lost_process(error):
            raise LostProcess from None
        if died := dead_worker(error):
            raise died from None
        raise


@contextmanager
def writing(flag: str, path: Path) -> Iterator[None]:
    """Explains why an output cannot be written.

    Raises:
        RunFailed: the disk is full.
        BadInput: it may not be written, or something of another kind is in its place.
    """
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        if is_disk_full(error):
            raise RunFailed(
                f"{flag} {path}: the disk is full: free some space, then run the same command again"
            ) from None
        if _is_unwritable(error, path):
            raise BadInput(f"{flag} {path}: cannot be written ({one_line(error)}): choose another path") from None
        raise


def _is_unwritable(error: Exception, path: Path) -> bool:
    """Whether an error is about a path that is written, not about one that is read meanwhile."""
    if not isinstance(error, OSError):
        return "\0" in str(path) and "null byte" in str(error)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return True
    places = {place for start in (path.absolute(), Path(os.path.realpath(path))) for place in (start, *start.parents)}
    return any(Path(name).absolute().parent in places for name in (error.filename, error.filename2) if name)


class LostProcess(RunFailed):
    """The others of a run whose process died or hangs."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this run died or no longer answers (its own message, if it had time for one, is above; "
            "the system kills what takes too much memory without any): continue with --resume"
        )
        # One of two processes is alive to say so, whichever died.
        self.everywhere = distributed.rank() > 1


def dead_worker(error: BaseException) -> RunFailed | None:
    """What to say when a decoding process died: PyTorch tells the main thread so, wherever that is."""
    if not (found := re.match(r"DataLoader worker \(pid.*\d\) (.+?)\.? *(?:It is|$)", str(error))):
        return None
    return RunFailed(
        f"a decoding process {found[1]}: the system ends those for which it has no memory. Fewer --num-workers take "
        "less, and --num-workers 0 decodes in this process; a run goes on with --resume"
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether nothing more can be written: no space, a quota, a limit on the size of files."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, SafetensorError) and any(f"os error {n}" in str(error) for n in (27, 28, 122))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or the system had no memory left, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def out_of_memory(rows: int, micro_batch_size: int | None) -> RunFailed:
    """The error for a step that did not fit.

    Args:
        rows: images and views in this process's share of a step.
        micro_batch_size: as configured.
    """
    now = min(micro_batch_size or rows, rows)
    if now <= 1:
        return RunFailed("out of memory even with --micro-batch-size 1: lower --image-size or take a smaller backbone")
    fitting = 1 << ((now - 1).bit_length() - 1)
    return RunFailed(
        f"out of memory with {now} images in one forward pass: add --micro-batch-size {fitting} (the results stay the "
        f"same), and --resume to keep what was saved"
    )
