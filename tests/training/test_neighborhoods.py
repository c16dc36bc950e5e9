import numpy as np
import pytest
import torch

from stml_semi.config import TrainConfig
from stml_semi.losses.neighborhoods import expanded_lengths, rerank
from stml_semi.training.neighborhoods import find_neighborhoods, most_relevant


def test_the_images_nearest_to_the_labeled_ones_stay():
    labeled = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    pool = torch.tensor([[-1.0, 0.0], [0.9, 0.1], [0.7, 0.7], [0.0, -1.0], [0.1, 2.0]])
    assert most_relevant(pool, labeled, share=0.4).tolist() == [1, 4]
    assert most_relevant(pool, labeled, share=0.41).tolist() == [1, 2, 4]


@pytest.mark.parametrize("relations", ["pool", "batch"])
def test_neighborhoods_of_a_pool(relations):
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(unlabeled="x", relations=relations, pool_neighbors=12, sigma=2.0)
    found = find_neighborhoods(config, np.arange(60) * 3, x, 0)
    similarity = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    nearest = similarity.fill_diagonal_(-2).topk(11).indices
    assert found.sigma == 2.0
    if relations == "batch":
        assert torch.equal(found.neighbors, nearest[:, :4])
        assert found.compared.shape == (60, 0)
    else:
        assert torch.equal(found.compared, torch.cat([torch.arange(60)[:, None], nearest], 1))
        lengths = expanded_lengths(found.compared, expand=5, rows=torch.arange(60))
        likest = rerank(found.compared, lengths, expand=5, rows=torch.arange(60))
        assert torch.equal(found.neighbors, likest[:, :5])


def test_companions_are_enough_for_a_batch_whatever_is_compared():
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(unlabeled="x", unlabeled_batch_size=40, num_neighbors=10, pool_neighbors=4)
    found = find_neighborhoods(config, np.arange(60), x, 0)
    assert found.neighbors.shape == (60, 9)


def test_a_tiny_pool_has_as_many_neighbors_as_there_are():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    found = find_neighborhoods(TrainConfig(unlabeled="x", unlabeled_batch_size=5), np.arange(6), x, 0)
    assert found.compared.shape == (6, 6)
    assert found.neighbors.shape == (6, 4)
