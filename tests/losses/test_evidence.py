import pytest
import torch

from stml_semi.losses.evidence import (
    PairEvidence,
    Surroundings,
    Weights,
    affinity,
    fit,
    trust,
    whitening,
)
from stml_semi.losses.neighborhoods import neighborhood_overlap
from stml_semi.neighbors import nearest_neighbors


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_whitened_directions_have_equal_variance_and_leave_the_weak_ones_out():
    scales = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.01])
    x = random(4000, 5) * scales + torch.tensor([9.0, 0, 0, 0, 0])
    unit = torch.nn.functional.normalize(x, dim=1)
    found = whitening(x, 3)
    torch.testing.assert_close(found.mean, unit.mean(0))
    placed = (unit - found.mean) @ found.directions
    assert placed.shape == (4000, 3)
    torch.testing.assert_close(placed.T @ placed / 4000, torch.eye(3), atol=0.05, rtol=0)
    torch.testing.assert_close(found(x), torch.nn.functional.normalize(placed, dim=1))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_few_images_have_few_directions(rows):
    found = whitening(random(rows, 8), 128)(random(3, 8, seed=1))
    assert found.shape == (3, 1)
    assert found.isfinite().all()


def test_evidence_is_the_overlap_and_the_similarity_beyond_that_of_the_surroundings():
    unit = torch.nn.functional.normalize(random(80, 6), dim=1)
    near = nearest_neighbors(unit, 7)
    every = torch.arange(80)
    table = Surroundings(unit, torch.cat([every[:, None], near.indices], 1), near.similarities.mean(1))
    rows, others = torch.tensor([3, 70, 3]), torch.tensor([[5, 9], [3, 3], [70, 1]])
    found = table.evidence(rows, others, expand=3)
    for i, row in enumerate(rows):
        for j, other in enumerate(others[i]):
            pair = neighborhood_overlap(table.neighborhoods, torch.stack([row, other]), expand=3)[0, 1]
            torch.testing.assert_close(found.overlap[i, j], pair)
            scale = (table.similarity[row] + table.similarity[other]) / 2
            torch.testing.assert_close(found.nearness[i, j], unit[row] @ unit[other] - scale)


def test_regression_finds_the_odds():
    overlap, nearness = torch.rand(40_000, generator=torch.Generator().manual_seed(1)), random(40_000, seed=2)
    true = Weights(-2.0, 3.0, 1.5)
    chance = torch.rand(40_000, generator=torch.Generator().manual_seed(3))
    found = fit(PairEvidence(overlap, nearness), chance < true.probability(overlap, nearness))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(true), atol=0.15, rtol=0)


def test_evidence_never_speaks_against_a_pair_by_being_strong():
    overlap, nearness = torch.rand(500, generator=torch.Generator().manual_seed(1)), random(500, seed=2)
    found = fit(PairEvidence(overlap, nearness), (nearness > 0) & (overlap < 0.7))
    assert found.overlap == 0
    assert found.nearness > 1


def test_separable_and_hopeless_pairs_have_finite_weights():
    ones = torch.linspace(0, 1, 50)
    sure = fit(PairEvidence(ones, ones), ones > 0.5)
    assert all(abs(weight) < 1e3 for weight in sure)
    none = fit(PairEvidence(ones, ones), ones > 2)
    assert none.probability(torch.ones(1), torch.ones(1)) < 0.01


def test_affinity_is_the_sharpened_probability():
    unit = torch.nn.functional.normalize(random(4, 3), dim=1)
    similarity, overlap = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.rand(4, 4)
    weights = Weights(-1.0, 2.0, 3.0)
    found = affinity(weights, unit, similarity, overlap)
    odds = -1 + 2 * overlap[0, 2] + 3 * (unit[0] @ unit[2] - 0.2)
    torch.testing.assert_close(found[0, 2], torch.sigmoid(2 * odds))


def test_trust_is_the_right_share_of_the_pull():
    assert trust(torch.tensor([1.0, 0.0])) == 1
    assert trust(torch.full((5,), 0.25)) == pytest.approx(0.25)
    assert trust(torch.zeros(3)) == 0
