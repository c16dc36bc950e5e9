"""The step that is exported where validation classes choose it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

BEST = "best."
"""Prefix of `Best` among the tensors of a checkpoint."""


class Best(nn.Module):
    """A copy, in main memory, of the student that did best on the validation classes so far.

    It is part of every checkpoint: a run that goes on knows what it had.
    """

    step: Tensor
    map_at_r: Tensor

    def __init__(self, student: nn.Module) -> None:
        """
        Args:
            student: the bare model, without wrappers.
        """
        super().__init__()
        self.model = copy.deepcopy(student).cpu().requires_grad_(False)
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("map_at_r", torch.tensor(-1.0, dtype=torch.float64))

    def look(self, student: nn.Module, step: int, map_at_r: float) -> None:
        """Keeps a student that is better than all before it."""
        if map_at_r > self.map_at_r:
            self.model.load_state_dict(student.state_dict())
            self.step.fill_(step)
            self.map_at_r.fill_(map_at_r)


def is_validation(line: dict[str, Any]) -> bool:
    """Whether a line of metrics.jsonl is an evaluation that chooses the exported step."""
    return line.get("split") == "validation"


def is_final_test(line: dict[str, Any]) -> bool:
    """Whether a line, of a run with validation classes, is the one test of the student that they chose."""
    return line.get("model") == "student" and not is_validation(line)


def exported_step(lines: Sequence[dict[str, Any]]) -> int | None:
    """The step whose student is exported, as far as metrics.jsonl goes: the best one, or the last without validation.

    None if nothing is logged yet.
    """
    scores = {line["step"]: line["map@r"] for line in lines if is_validation(line) and line["model"] == "student"}
    if scores:
        return max(scores, key=lambda step: (scores[step], -step))
    return max((line["step"] for line in lines), default=None)
