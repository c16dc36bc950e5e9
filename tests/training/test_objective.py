import torch

from stml_semi.config import TrainConfig
from stml_semi.losses.relations import contextual_affinity, pooled_affinity
from stml_semi.training.objective import Objective, Unlabeled


def part(overlap):
    generator = torch.Generator().manual_seed(0)
    f, g, target = (torch.randn(12, d, generator=generator) for d in (8, 16, 16))
    return Unlabeled(f.requires_grad_(), g.requires_grad_(), target, torch.arange(12) % 6, 0.7, overlap=overlap)


def objective():
    return Objective(TrainConfig(unlabeled="x", num_neighbors=2, num_views=2, unlabeled_batch_size=6), num_classes=0)


def test_neighborhoods_of_the_pool_are_what_relations_are_made_of():
    overlap = torch.rand(12, 12, generator=torch.Generator().manual_seed(1))
    overlap = (overlap + overlap.T) / 2
    unlabeled = part(overlap)
    found, other = objective()(None, unlabeled), objective()(None, part(1 - overlap))
    assert unlabeled.target is not None
    torch.testing.assert_close(found.affinity, pooled_affinity(unlabeled.target, overlap, sigma=0.7))
    assert found.relaxed_contrastive != other.relaxed_contrastive


def test_without_them_those_within_the_batch_are():
    unlabeled = part(None)
    assert unlabeled.target is not None
    found = objective()(None, unlabeled).affinity
    expected = contextual_affinity(unlabeled.target, unlabeled.image_index, sigma=0.7, topk=4).affinity
    torch.testing.assert_close(found, expected)
