import pytest
import torch

from stml_semi.losses.balance import Balancer, differentiate


def terms(seed: int = 0, labeled_scale: float = 1000.0):
    """Two losses on embeddings that come out of one parameter, as in training."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 4, generator=generator).requires_grad_()
    proxies = torch.randn(3, 4, generator=generator).requires_grad_()
    f_l = torch.randn(5, 6, generator=generator) @ weight
    f_u = torch.randn(7, 6, generator=generator) @ weight
    labeled_value = labeled_scale * (f_l @ proxies.T).square().mean()
    unlabeled_value = f_u.square().mean()
    return weight, proxies, (f_l, labeled_value), (f_u, unlabeled_value)


def test_surrogate_has_the_gradient_of_the_weighted_sum():
    weight, proxies, (f_l, labeled_value), (f_u, unlabeled_value) = terms()
    expected = torch.autograd.grad(labeled_value + 30 * unlabeled_value, [weight, proxies], retain_graph=True)
    labeled = differentiate(labeled_value, [f_l], [proxies])
    unlabeled = differentiate(unlabeled_value, [f_u])
    balanced = Balancer("fixed", 30.0)(labeled, unlabeled)
    balanced.surrogate.backward()
    torch.testing.assert_close(weight.grad, expected[0])
    torch.testing.assert_close(proxies.grad, expected[1])
    torch.testing.assert_close(balanced.loss, labeled_value.detach() + 30 * unlabeled_value.detach())
    assert balanced.unlabeled_weight == 30


@pytest.mark.parametrize("balance", ["unit", "ratio"])
@pytest.mark.parametrize("labeled_scale", [1e-3, 1.0, 1e4])
def test_gradient_norms_stand_in_the_wanted_ratio(balance, labeled_scale):
    balancer = Balancer(balance, 0.3)
    for _ in range(3):  # The running norms are exact from the first step on as long as the norms do not change.
        _, proxies, (f_l, labeled_value), (f_u, unlabeled_value) = terms(labeled_scale=labeled_scale)
        balanced = balancer(differentiate(labeled_value, [f_l], [proxies]), differentiate(unlabeled_value, [f_u]))
        gradients = torch.autograd.grad(balanced.surrogate, [f_l, f_u])
        assert balanced.grad_ratio.item() == pytest.approx(0.3, rel=1e-4)
        assert (gradients[1].norm() / gradients[0].norm()).item() == pytest.approx(0.3, rel=1e-4)
        if balance == "unit":
            assert gradients[0].norm().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("balance", ["unit", "ratio", "fixed"])
def test_trust_is_a_share_of_the_weight_beside_labels(balance):
    _, proxies, (f_l, labeled_value), (f_u, unlabeled_value) = terms()
    labeled, unlabeled = differentiate(labeled_value, [f_l], [proxies]), differentiate(unlabeled_value, [f_u])
    whole, half, none = (Balancer(balance, 0.3)(labeled, unlabeled, trust) for trust in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half.grad_ratio, whole.grad_ratio / 2)
    torch.testing.assert_close(half.unlabeled_weight, whole.unlabeled_weight / 2)
    assert none.grad_ratio == 0
    alone, doubted = (Balancer(balance, 0.3)(None, unlabeled, trust) for trust in (1.0, 0.5))
    assert alone.unlabeled_weight == doubted.unlabeled_weight  # Nothing else would train.


def test_unit_scale_is_the_same_with_and_without_the_unlabeled_term():
    balancer = Balancer("unit", 0.3)
    _, proxies, (f_l, labeled_value), _ = terms()
    alone = balancer(differentiate(labeled_value, [f_l], [proxies]), None)
    assert torch.autograd.grad(alone.surrogate, f_l)[0].norm().item() == pytest.approx(1, rel=1e-4)
    assert alone.unlabeled_weight == 0
    assert alone.grad_ratio == 0


def test_unlabeled_alone_is_the_bare_loss():
    weight, _, _, (f_u, unlabeled_value) = terms()
    expected = torch.autograd.grad(unlabeled_value, weight, retain_graph=True)[0]
    balanced = Balancer("fixed", 0.3)(None, differentiate(unlabeled_value, [f_u]))
    torch.testing.assert_close(torch.autograd.grad(balanced.surrogate, weight)[0], expected)
    assert balanced.loss == unlabeled_value.detach()


def test_running_norm_follows_and_is_part_of_the_state():
    balancer = Balancer("ratio", 1.0)
    weights = []
    for scale in [1.0] * 5 + [100.0] * 60:
        _, proxies, (f_l, labeled_value), (f_u, unlabeled_value) = terms(labeled_scale=scale)
        labeled = differentiate(labeled_value, [f_l], [proxies])
        weights.append(balancer(labeled, differentiate(unlabeled_value, [f_u])).unlabeled_weight.item())
    assert weights[-1] == pytest.approx(100 * weights[0], rel=0.01)
    assert weights[5] < weights[-1] / 4  # One step does not overturn it.
    assert balancer.state_dict()["updates"].tolist() == [65, 65]


def test_a_vanished_gradient_does_not_divide_by_zero():
    f_l, f_u = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    balanced = Balancer("unit", 0.3)(differentiate((0 * f_l).sum(), [f_l]), differentiate(f_u.sum(), [f_u]))
    assert torch.isfinite(balanced.surrogate)
