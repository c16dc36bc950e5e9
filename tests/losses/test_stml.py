import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stml_semi.losses.distances import pairwise_distances, pairwise_squared_distances, relative_distances
from stml_semi.losses.relations import contextual_affinity
from stml_semi.losses.stml import relaxed_contrastive, stml_loss


def batch(seed: int, rows: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    f, g, t = (torch.randn(rows, d, generator=generator) for d in (8, 12, 12))
    affinity = contextual_affinity(t, torch.arange(rows), sigma=3.0, topk=4).affinity
    return f.requires_grad_(), g.requires_grad_(), affinity


def by_definition(f, g, affinity, delta):
    """Equations 5 to 8 in float64, with loops."""
    n = len(f)

    def relative(e):
        d = torch.stack([torch.stack([(a - b).norm() for b in e]) for a in e])
        return d / d.mean(1, keepdim=True)

    def contrastive(d):
        total = f.new_zeros(())
        for i in range(n):
            for j in range(n):
                if i != j:
                    w = affinity[i, j]
                    total = total + w * d[i, j] ** 2 + (1 - w) * torch.relu(delta - d[i, j]) ** 2
        return total / (n * (n - 1))

    d_f, d_g = relative(f), relative(g)
    target = torch.softmax(-d_g.detach(), 1)
    divergence = (target * (target.log() - torch.log_softmax(-d_f, 1))).sum(1).mean()
    return (contrastive(d_f) + contrastive(d_g)) / 2, divergence


@given(st.integers(0, 10_000), st.sampled_from([0.7, 1.0, 1.3]))
@settings(max_examples=10)
def test_equals_the_definition_with_its_gradient(seed, delta):
    f, g, affinity = batch(seed, rows=9)
    loss = stml_loss(f, g, affinity, delta=delta)
    f64, g64 = f.detach().double().requires_grad_(), g.detach().double().requires_grad_()
    contrastive, divergence = by_definition(f64, g64, affinity.double(), delta)
    torch.testing.assert_close(loss.relaxed_contrastive.double(), contrastive, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(loss.self_distillation.double(), divergence, rtol=1e-4, atol=1e-7)
    ours = torch.autograd.grad(loss.total, [f, g])
    theirs = torch.autograd.grad(contrastive + divergence, [f64, g64])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-6)


@given(st.integers(0, 10_000), st.floats(0.01, 100))
@settings(max_examples=20)
def test_has_no_scale_and_no_origin(seed, scale):
    f, g, affinity = batch(seed)
    first = stml_loss(f, g, affinity, delta=1.0).total
    moved = stml_loss(f * scale + scale, g * scale, affinity, delta=1.0).total
    torch.testing.assert_close(first, moved, rtol=1e-3, atol=1e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_duplicates_leave_gradients_finite_and_bounded(seed):
    f, g, affinity = batch(seed)
    with torch.no_grad():
        f[1], g[1] = f[0], g[0]
        f[5:8], g[5:8] = f[4], g[4]
    gradients = torch.autograd.grad(stml_loss(f, g, affinity, delta=1.0).total, [f, g])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert all(gradient.abs().max() < 1 for gradient in gradients)


def test_a_collapsed_batch_is_finite():
    f, g, affinity = torch.ones(6, 4, requires_grad=True), torch.ones(6, 5, requires_grad=True), torch.rand(6, 6)
    loss = stml_loss(f, g, affinity, delta=1.0)
    gradients = torch.autograd.grad(loss.total, [f, g])
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_alike_pairs_are_pulled_and_unlike_pairs_pushed_up_to_delta():
    distances = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    alike, unlike = torch.ones(2, 2), torch.zeros(2, 2)
    assert relaxed_contrastive(distances, alike, delta=1.0) == pytest.approx(0.25)
    assert relaxed_contrastive(distances, unlike, delta=1.0) == pytest.approx(0.25)
    assert relaxed_contrastive(distances, unlike, delta=0.5) == 0


def test_self_distillation_teaches_f_only():
    f, g, affinity = batch(3)
    distillation = stml_loss(f, g, affinity, delta=1.0).self_distillation
    gradients = torch.autograd.grad(distillation, [f, g], allow_unused=True)
    assert gradients[0].abs().max() > 0
    assert gradients[1] is None


def test_normalize_option_ignores_the_length_of_rows():
    f, g, affinity = batch(4)
    lengths = torch.linspace(0.5, 2, len(f))[:, None]
    first = stml_loss(f, g, affinity, delta=1.0, normalize=True).total
    torch.testing.assert_close(first, stml_loss(f * lengths, g, affinity, delta=1.0, normalize=True).total)
    assert not torch.isclose(first, stml_loss(f * lengths, g, affinity, delta=1.0).total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_island_under_autocast(dtype):
    f, g, affinity = batch(5)
    expected = stml_loss(f, g, affinity, delta=1.0).total
    with torch.autocast("cpu", dtype=dtype):
        loss = stml_loss(f, g, affinity, delta=1.0).total
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_wrong_shapes_are_refused():
    f, g, affinity = batch(6)
    with pytest.raises(ValueError, match="must share N"):
        stml_loss(f, g[:-1], affinity, delta=1.0)
    with pytest.raises(ValueError, match="at least two"):
        stml_loss(f[:1], g[:1], affinity[:1, :1], delta=1.0)


@given(st.integers(0, 10_000), st.floats(0, 50))
@settings(max_examples=30)
def test_distances_against_float64(seed, offset):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(15, 6, generator=generator) + offset
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(pairwise_distances(x).double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pairwise_squared_distances(x).double(), exact.square(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(relative_distances(x).mean(1), torch.ones(15))
