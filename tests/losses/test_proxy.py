import pytest
import torch

from stml_semi.losses.proxy import LabeledLoss, ProxyAnchor, labeled_losses


@pytest.mark.parametrize("name", sorted(labeled_losses()))
def test_every_offered_loss_trains(name):
    torch.manual_seed(0)
    loss = LabeledLoss(name, num_classes=8, embedding_dim=16)
    embeddings = torch.randn(32, 16, requires_grad=True)
    value = loss(embeddings, torch.arange(32) % 8)
    value.backward()
    assert value.ndim == 0
    assert value.dtype == torch.float32
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()
    assert embeddings.grad.abs().max() > 0


def test_the_losses_that_the_documentation_names_are_there():
    named = {"proxy_anchor", "proxy_nca", "softtriple", "arcface", "cosface", "multi_similarity", "triplet_margin"}
    assert named <= labeled_losses().keys()


def test_proxy_anchor_has_the_settings_of_its_paper():
    loss = LabeledLoss("proxy_anchor", num_classes=5, embedding_dim=4).loss
    assert isinstance(loss, ProxyAnchor)
    assert (loss.margin, loss.alpha) == (0.1, 32)


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], [3, 3, 3, 3, 3, 3]])
def test_proxy_anchor_equals_the_library_s(labels):
    from pytorch_metric_learning.losses import ProxyAnchorLoss

    torch.manual_seed(0)
    theirs = ProxyAnchorLoss(num_classes=5, embedding_size=16, margin=0.1, alpha=32)
    torch.manual_seed(0)
    ours = ProxyAnchor(5, 16)
    assert torch.equal(ours.proxies, theirs.proxies)
    gradients = []
    for loss in (ours, theirs):
        x = (3 * torch.randn(6, 16, generator=torch.Generator().manual_seed(1))).requires_grad_()
        value = loss(x, torch.tensor(labels))
        value.backward()
        assert x.grad is not None
        gradients.append((value.detach(), x.grad, loss.proxies.grad))
    torch.testing.assert_close(*gradients)


def test_float32_under_autocast():
    loss = LabeledLoss("proxy_anchor", num_classes=4, embedding_dim=8)
    embeddings, labels = torch.randn(8, 8), torch.arange(8) % 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(embeddings, labels)
    torch.testing.assert_close(value, loss(embeddings, labels), rtol=0, atol=0)


def test_unknown_name_suggests_the_closest():
    with pytest.raises(ValueError, match="--labeled-loss proxy_ancor: no such loss; did you mean 'proxy_anchor'"):
        LabeledLoss("proxy_ancor", num_classes=4, embedding_dim=8)
