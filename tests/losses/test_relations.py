import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stml_semi.losses.relations import contextual_affinity


def by_definition(teacher, index, sigma, topk):
    """Section 3.2 of the paper with loops and sets."""
    t = torch.nn.functional.normalize(teacher.double(), dim=1)
    n = len(t)
    pairwise = torch.exp(-torch.cdist(t, t).square() / sigma)
    ranking = torch.where(index[:, None] == index[None, :], 1.0, pairwise)
    ranked = ranking.topk(topk).indices.tolist()
    mutual = [{j for j in range(n) if j in ranked[i] and i in ranked[j]} for i in range(n)]
    overlap = torch.zeros(n, n, dtype=torch.double)
    for i in range(n):
        for j in mutual[i]:
            overlap[i, j] = len(mutual[i] & mutual[j]) / len(mutual[i])
    expanded = torch.stack([overlap[ranked[i][: round(topk / 2)]].mean(0) for i in range(n)])
    contextual = (expanded + expanded.T) / 2
    return pairwise, contextual, (pairwise + contextual) / 2


@given(st.integers(0, 10_000), st.integers(6, 40), st.integers(2, 6), st.integers(1, 3))
@settings(max_examples=40)
def test_equals_the_definition(seed, images, neighbors, views):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(images * views, 8, generator=generator)
    index = torch.arange(images).repeat(views)
    topk = min(neighbors * views, len(index))
    ours = contextual_affinity(teacher, index, sigma=2.0, topk=topk)
    pairwise, contextual, affinity = by_definition(teacher, index, 2.0, topk)
    torch.testing.assert_close(ours.pairwise.double(), pairwise, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.contextual.double(), contextual, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.affinity.double(), affinity, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_symmetric_bounded_and_blind_to_scale_and_order(seed):
    generator = torch.Generator().manual_seed(seed)
    teacher, index = torch.randn(24, 6, generator=generator), torch.arange(12).repeat(2)
    first = contextual_affinity(teacher, index, sigma=3.0, topk=6).affinity
    torch.testing.assert_close(first, first.T)
    assert first.min() >= 0
    assert first.max() <= 1 + 1e-6
    scaled = contextual_affinity(teacher * 7, index, sigma=3.0, topk=6).affinity
    torch.testing.assert_close(first, scaled, rtol=1e-4, atol=1e-5)
    order = torch.randperm(24, generator=generator)
    shuffled = contextual_affinity(teacher[order], index[order], sigma=3.0, topk=6).affinity
    torch.testing.assert_close(first[order][:, order], shuffled, rtol=1e-4, atol=1e-5)


def test_views_of_one_image_are_neighbors_whatever_the_teacher_says():
    teacher = torch.eye(8)
    teacher[1] = -teacher[0]  # As far apart as two embeddings can be.
    index = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    relations = contextual_affinity(teacher, index, sigma=1.0, topk=2)
    assert relations.mutual[0, 1] == 1
    assert relations.pairwise[0, 1] == pytest.approx(torch.exp(torch.tensor(-4.0)).item())


def test_an_image_drawn_more_often_than_topk_times_stays_finite():
    teacher = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([7] * 8 + [1, 2, 3, 4])
    relations = contextual_affinity(teacher, index, sigma=3.0, topk=3)
    assert all(torch.isfinite(part).all() for part in relations)


def test_no_gradient_and_float32_from_half_precision():
    teacher = torch.randn(10, 4, dtype=torch.bfloat16, requires_grad=True)
    relations = contextual_affinity(teacher, torch.arange(10), sigma=3.0, topk=3)
    assert relations.affinity.dtype == torch.float32
    assert not relations.affinity.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0.0, "topk": 2}, "sigma must be positive"),
        ({"sigma": 1.0, "topk": 0}, "topk must be between 1 and the 5 rows"),
        ({"sigma": 1.0, "topk": 6}, "topk must be between 1 and the 5 rows"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        contextual_affinity(torch.randn(5, 3), torch.arange(5), **arguments)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"index \(N,\)"):
        contextual_affinity(torch.randn(5, 3), torch.arange(4), sigma=1.0, topk=2)
