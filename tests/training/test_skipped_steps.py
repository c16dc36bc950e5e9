"""fp16 leaves out steps whose gradients overflow: the teacher and the count know of it."""

import math

import pytest
import torch
from torch import nn

from stml_semi.models.teacher import Teacher
from stml_semi.training.optimizer import TakenSteps


def overflowing(skip: set[int], steps: int = 6) -> tuple[nn.Linear, Teacher, TakenSteps, list[float]]:
    """Steps of a small model with a scaler, some with a gradient that overflows."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    teacher = Teacher(model, momentum=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    taken = TakenSteps(optimizer, model.weight)
    moved = []
    for step in range(steps):
        taken.begin()
        scaler.scale(model(torch.ones(2, 4)).square().sum()).backward()
        if step in skip:
            assert model.weight.grad is not None
            model.weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved.append(float(taken.moved()))
        teacher.update(model, taken.moved())
    return model, teacher, taken, moved


@pytest.mark.parametrize("skip", [set(), {0, 1}, {3, 5}])
def test_skipped_steps_are_counted_and_move_no_teacher(skip):
    model, teacher, taken, moved = overflowing(skip)
    assert moved == [float(step not in skip) for step in range(6)]
    assert taken.skipped(6) == len(skip)
    # As if they had not been there at all.
    alone, alike, _, _ = overflowing(set(), 6 - len(skip))
    torch.testing.assert_close(model.weight, alone.weight)
    torch.testing.assert_close(teacher.model.weight, alike.model.weight)


def test_a_step_that_was_taken_moves_the_teacher_as_without_a_scaler():
    students = nn.Linear(4, 3), nn.Linear(4, 3)
    plain, asked = (Teacher(students[0], momentum=0.9) for _ in range(2))
    plain.update(students[1])
    asked.update(students[1], torch.tensor(1.0))
    torch.testing.assert_close(asked.model.weight, plain.model.weight)
