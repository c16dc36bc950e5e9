"""The student that is exported where validation classes choose it."""

import copy

import torch
from torch import Tensor, nn


class BestStudent(nn.Module):
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

    def keep_if_better(self, student: nn.Module, step: int, map_at_r: float) -> None:
        """Keeps a student that is better than all before it."""
        if map_at_r > self.map_at_r:
            self.model.load_state_dict(student.state_dict())
            self.step.fill_(step)
            self.map_at_r.fill_(map_at_r)
