import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stml_semi.losses import neighborhoods
from stml_semi.losses.neighborhoods import expanded_lengths, neighborhood_overlap, rerank
from stml_semi.losses.relations import calibrated_sigma, pooled_affinity


def random_lists(total, k, seed):
    """Each image itself, then k - 1 different others."""
    generator = torch.Generator().manual_seed(seed)
    others = torch.rand(total, total, generator=generator).fill_diagonal_(2).argsort(1, descending=True)
    return others[:, :k]


def by_definition(lists, expand):
    counts = torch.zeros(len(lists), len(lists))
    for i in range(len(lists)):
        for friend in lists[i, :expand]:
            for member in lists[friend]:
                counts[i, member] += 1
    counts /= counts.norm(dim=1, keepdim=True)
    return counts @ counts.T


@given(st.integers(4, 25), st.integers(2, 4), st.integers(1, 4), st.integers(0, 99))
def test_overlap_is_the_cosine_of_expanded_neighborhoods(total, k, expand, seed):
    lists = random_lists(total, k, seed)
    assert lists[:, 0].tolist() == list(range(total))
    positions = torch.randint(total, (6,), generator=torch.Generator().manual_seed(seed))
    overlap = neighborhood_overlap(lists, positions, expand=expand)
    torch.testing.assert_close(overlap, by_definition(lists, expand)[positions][:, positions])
    torch.testing.assert_close(overlap, overlap.T)
    torch.testing.assert_close(overlap.diagonal(), torch.ones(6))


@given(st.integers(5, 25), st.integers(2, 5), st.integers(1, 3), st.integers(0, 99))
def test_reranked_lists_hold_the_same_images_likest_first(total, k, expand, seed):
    lists = random_lists(total, k, seed)
    overlap = by_definition(lists, expand)
    lengths = expanded_lengths(lists, expand=expand, rows=torch.arange(total))
    found = rerank(lists, lengths, expand=expand, rows=torch.arange(total))
    for i in range(total):
        assert sorted(found[i].tolist()) == sorted(lists[i, 1:].tolist())
        alike = overlap[i, found[i]]
        assert (alike[:-1] >= alike[1:] - 1e-6).all()
    some = torch.tensor([3, 0, 3])
    assert torch.equal(rerank(lists, lengths, expand=expand, rows=some), found[some])


def test_neighborhoods_tell_clusters_apart_that_distances_do_not():
    """A chain of images from one end of a class to the other: its ends are as far apart as two classes are."""
    steps = torch.linspace(0, 1.2, 10)
    arc = torch.stack([steps.cos(), steps.sin()], 1)
    x = torch.block_diag(arc, arc)
    lists = (x @ x.T).topk(5).indices
    lists = torch.cat([torch.arange(20)[:, None], lists[lists != torch.arange(20)[:, None]].view(20, 4)], 1)
    overlap = neighborhood_overlap(lists, torch.arange(20), expand=5)
    same = torch.block_diag(torch.ones(10, 10), torch.ones(10, 10)).bool()
    assert overlap[~same].max() == 0
    assert overlap[same].mean() > 0.4


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_sigma_gives_an_average_pair_the_wanted_similarity(spread):
    x = torch.randn(1, 16) + spread * torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    sigma = calibrated_sigma(x, seed=3)
    affinity = pooled_affinity(x, torch.zeros(500, 500), sigma=sigma)
    pairs = 2 * affinity[~torch.eye(500, dtype=torch.bool)]
    assert pairs.median() == pytest.approx(0.05, rel=0.05)
    assert calibrated_sigma(7 * x, seed=3) == pytest.approx(sigma)
    assert calibrated_sigma(x, seed=3) == sigma


def test_sigma_of_images_that_coincide_stays_positive():
    assert calibrated_sigma(torch.ones(10, 4), seed=0) > 0


@given(st.integers(4, 25), st.integers(2, 4), st.integers(1, 4), st.integers(0, 99))
def test_accelerators_count_the_same_members_in_blocks(total, k, expand, seed):
    lists = random_lists(total, k, seed)
    positions = torch.randint(total, (7,), generator=torch.Generator().manual_seed(seed))
    members = neighborhoods._members(lists, positions, expand)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighborhoods, "_COLUMNS", 5)
        assert torch.equal(neighborhoods._common_in_blocks(members), neighborhoods._common_sparse(members))
