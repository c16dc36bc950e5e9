"""Failures that speak: loss terms that are not finite, and memory that runs out."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from stml_semi.errors import RunFailed
from stml_semi.objective import Terms


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
    error = RunFailed(
        f"{', '.join(named)} is not finite from step {step} on; the batch's images and the state are in non_finite/ of "
        f"the run folder: look at them, lower --learning-rate, or train with --mixed-precision no"
    )
    error.everywhere = True
    return error


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
