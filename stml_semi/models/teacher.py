"""The teacher: an exponential moving average of the student."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_FUSED: Any = torch  # One operation for all parameters: these have no public names.


class Teacher(nn.Module):
    """A copy of the student that follows it slowly and never learns by gradient.

    Parameters and floating-point buffers are averaged, integer buffers copied, all matched by name.
    (`torch.optim.swa_utils.AveragedModel` leaves `num_batches_tracked` wrong, and a loop over `state_dict` costs ten
    times the few fused operations used here.)
    """

    def __init__(self, student: nn.Module, *, momentum: float) -> None:
        """
        Args:
            student: the bare model, without wrappers; the teacher starts as its exact copy.
            momentum: share of the teacher that stays at each update, 0..1.
        """
        super().__init__()
        self.momentum = momentum
        self._pairs: _Pairs | None = None
        # What never changes is shared: a frozen backbone is in memory once.
        frozen = {id(p): p for p in student.parameters() if not p.requires_grad}
        self.model: Any = copy.deepcopy(student, frozen).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Always in evaluation mode."""
        return super().train(False)

    def forward(self, pixels: Tensor):
        """Embeddings of the averaged model, without gradient."""
        with torch.no_grad():
            return self.model(pixels)

    @torch.no_grad()
    def update(self, student: nn.Module, moved: Tensor | None = None) -> None:
        """teacher = momentum x teacher + (1 - momentum) x student. To be called after the optimizer's step.

        Args:
            student: the model it was copied from.
            moved: () 1 if the optimizer took its step, 0 if not: then the teacher stays as well. Default: 1.
        """
        if self._pairs is None:
            # Walking the modules costs more than averaging them: done once, when both are on their device.
            self._pairs = _pairs(self.model, student)
        own, other = self._pairs.own_floats, self._pairs.student_floats
        if moved is None:
            _FUSED._foreach_lerp_(own, other, 1 - self.momentum)
        else:
            difference = _FUSED._foreach_sub(other, own)
            _FUSED._foreach_mul_(difference, moved * (1 - self.momentum))
            _FUSED._foreach_add_(own, difference)
        for own, other in zip(self._pairs.own_others, self._pairs.student_others, strict=True):
            own.copy_(other)


class _Pairs(NamedTuple):
    own_floats: list[Tensor]
    student_floats: list[Tensor]
    own_others: list[Tensor]
    student_others: list[Tensor]


def _pairs(teacher: nn.Module, student: nn.Module) -> _Pairs:
    own = dict(teacher.named_parameters()) | dict(teacher.named_buffers())
    other = dict(student.named_parameters()) | dict(student.named_buffers())
    assert own.keys() == other.keys(), "teacher and student must be the same model"
    moving = [name for name in own if own[name] is not other[name]]
    floats = [name for name in moving if own[name].is_floating_point()]
    others = [name for name in moving if not own[name].is_floating_point()]
    return _Pairs(
        [own[name] for name in floats],
        [other[name] for name in floats],
        [own[name] for name in others],
        [other[name] for name in others],
    )
