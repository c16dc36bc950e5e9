"""The student that is best on the validation classes so far, and the weights between it and its start."""

import copy

import torch
from torch import Tensor, nn

from stml_semi.models.embedder import Embedder
from stml_semi.models.interpolation import interpolate, start_of


class BestStudent(nn.Module):
    """A copy, in main memory, of the student that did best on the validation classes so far.

    It is part of every checkpoint: a run that goes on knows what it had. So is the start of head f, which is random;
    that of the backbone is opened again.
    """

    step: Tensor
    map_at_r: Tensor

    def __init__(self, student: Embedder) -> None:
        """
        Args:
            student: the bare model before training, without wrappers.
        """
        super().__init__()
        self.backbone_start = start_of(student)
        self.start_f = copy.deepcopy(student.head_f).cpu().requires_grad_(False)
        self.model = copy.deepcopy(student).cpu().requires_grad_(False)
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("map_at_r", torch.tensor(-1.0, dtype=torch.float64))

    def keep_if_better(self, student: nn.Module, step: int, map_at_r: float) -> None:
        """Keeps a student that is better than all before it."""
        if map_at_r > self.map_at_r:
            self.model.load_state_dict(student.state_dict())
            self.step.fill_(step)
            self.map_at_r.fill_(map_at_r)

    def interpolated(self, alpha: float) -> dict[str, Tensor]:
        """A state of the model between its start (0) and the best student (1)."""
        start = self.backbone_start | {f"head_f.{name}": value for name, value in self.start_f.state_dict().items()}
        return interpolate(start, self.model.state_dict(), alpha)
