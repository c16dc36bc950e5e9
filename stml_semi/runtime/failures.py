"""Failures that speak: loss terms that are not finite, memory or disk that runs out, processes that die."""

import errno
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from stml_semi.config import TrainConfig
from stml_semi.data.batches.loading import BadPicture
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import RunFailed
from stml_semi.training.objective import Terms


class FiniteWatch:
    """Remembers, on the device and without waiting for it, the first step at which each term was not finite."""

    NAMES = ("labeled_loss", "relaxed_contrastive", "self_distillation", "surrogate")

    def __init__(self, device: torch.device) -> None:
        self.first = torch.full((len(self.NAMES),), -1, device=device)

    def look(self, terms: Terms, step: int) -> None:
        """To be called at every step."""
        broken = ~torch.stack([getattr(terms, name).detach().float() for name in self.NAMES]).isfinite()
        self.first = torch.where(broken & (self.first < 0), step, self.first)

    def broken(self) -> dict[str, int]:
        """Term -> step, of the terms that are not finite. Waits for the device: for logging steps."""
        return {name: step for name, step in zip(self.NAMES, self.first.tolist(), strict=True) if step >= 0}


def report_non_finite(broken: dict[str, int], images: Iterable[str], file: Path | None) -> RunFailed:
    """The error for terms that are not finite; the images of the first bad step are listed in `file`.

    Args:
        broken: from `FiniteWatch.broken`.
        images: what the batch of the first bad step showed.
        file: where to write the list; None on processes that do not write.
    """
    step = min(broken.values())
    terms = [name for name, at in broken.items() if at == step]
    named = [name for name in terms if name != "surrogate"] or ["the gradient of the loss"]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"step": step, "terms": named, "images": list(images)}
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return RunFailed.on_all(
        f"{', '.join(named)} is not finite from step {step} on; the batch's images and the state are in non_finite/ of "
        f"the run folder: look at them, lower --learning-rate, or train with --mixed-precision no"
    )


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
                "the disk is full: free some space, then go on with --resume; checkpoints written before are whole"
            ) from None
        if distributed.is_lost_process(error):
            raise LostProcess from None
        raise


class LostProcess(RunFailed):
    """The others of a run whose process died."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this run died (its own message, if it had time for one, is above; the system kills "
            "what takes too much memory without any): go on with --resume"
        )
        # One of two processes is alive to say so, whichever died.
        self.everywhere = distributed.rank() > 1


def is_disk_full(error: BaseException) -> bool:
    """Whether nothing more can be written: no space, a quota, a limit on the size of files."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, SafetensorError) and any(f"os error {n}" in str(error) for n in (27, 28, 122))


def check_bad(config: TrainConfig, count: int, total: int, pictures: Sequence[BadPicture]) -> None:
    """
    Args:
        config: of the run.
        count: pictures found bad so far.
        total: pictures of all tables.
        pictures: those found now.

    Raises:
        RunFailed: one was found and none is wanted, or more than the share that is allowed.
    """
    allowed = max(1, int(config.max_bad_fraction * total))
    if pictures and config.on_bad_image == "error":
        message = f"{pictures[0].image}: {pictures[0].reason} (--on-bad-image error; `replace` would go on)"
    elif count > allowed:
        message = (
            f"{count} of {total} pictures cannot be read, more than --max-bad-fraction {config.max_bad_fraction:g} "
            f"allows: bad_images.jsonl of the run folder says which and why; repair them or raise it"
        )
    else:
        return
    raise RunFailed.on_all(message)


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
