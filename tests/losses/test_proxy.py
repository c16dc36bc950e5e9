import pytest
import torch

from stml_semi.losses.proxy import LabeledLoss, labeled_losses


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
    assert (loss.margin, loss.alpha) == (0.1, 32)


def test_float32_under_autocast():
    loss = LabeledLoss("proxy_anchor", num_classes=4, embedding_dim=8)
    embeddings, labels = torch.randn(8, 8), torch.arange(8) % 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(embeddings, labels)
    torch.testing.assert_close(value, loss(embeddings, labels), rtol=0, atol=0)


def test_unknown_name_suggests_the_closest():
    with pytest.raises(ValueError, match="--labeled-loss proxy_ancor: no such loss; did you mean 'proxy_anchor'"):
        LabeledLoss("proxy_ancor", num_classes=4, embedding_dim=8)
