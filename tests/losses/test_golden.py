"""Our functions reproduce the authors' program: affinity and its parts, both losses, gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stml_semi.losses.relations import contextual_affinity
from stml_semi.losses.stml import stml_loss

FILES = sorted((Path(__file__).parent / "golden").glob("*.npz"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request):
    with np.load(request.param) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}


def test_all_golden_files_are_here():
    assert len(FILES) == 4


@pytest.mark.parametrize("part", ["pairwise", "mutual", "contextual", "affinity"])
def test_affinity(golden, part):
    ours = contextual_affinity(
        golden["teacher_g"], golden["index"], sigma=float(golden["sigma"]), topk=int(golden["topk"])
    )
    off_diagonal = ~torch.eye(len(golden["index"]), dtype=torch.bool)
    torch.testing.assert_close(
        getattr(ours, part)[off_diagonal], golden[part][off_diagonal], rtol=1e-4, atol=1e-6, check_dtype=False
    )


def test_losses_and_gradients(golden):
    f, g = golden["student_f"].requires_grad_(), golden["student_g"].requires_grad_()
    loss = stml_loss(f, g, golden["affinity"], delta=float(golden["delta"]))
    torch.testing.assert_close(loss.total.detach(), golden["loss"], rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.relaxed_contrastive.detach(), golden["relaxed_contrastive"], rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.self_distillation.detach(), golden["self_distillation"], rtol=1e-4, atol=0)
    loss.total.backward()
    for ours, theirs in ((f.grad, golden["grad_f"]), (g.grad, golden["grad_g"])):
        assert ours is not None
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
