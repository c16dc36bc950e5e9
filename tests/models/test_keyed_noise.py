import copy

import pytest
import torch
from torch import nn

from stml_semi.data.views import normalization, view_size
from stml_semi.models.backbone import open_backbone
from stml_semi.models.embedder import Embedder
from stml_semi.models.keyed_noise import KeyedNoise, is_random, row_keys, uniform
from stml_semi.models.pooling import resolve_pooling


def test_numbers_are_uniform_and_belong_to_key_and_call():
    keys = row_keys(0, 5, torch.arange(200))
    drawn = uniform(keys, 1, 1000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = torch.histc(drawn, 20, 0, 1) / drawn.numel()
    torch.testing.assert_close(counts, torch.full((20,), 0.05), rtol=0, atol=2e-3)
    correlation = torch.corrcoef(torch.cat([drawn[:50], uniform(keys, 2, 1000)[:50]])) - torch.eye(100)
    assert correlation.abs().max() < 0.2
    torch.testing.assert_close(uniform(keys[7:9], 1, 1000), drawn[7:9], rtol=0, atol=0)
    assert not torch.equal(uniform(row_keys(0, 6, torch.arange(200)), 1, 10), drawn[:, :10])
    assert not torch.equal(uniform(row_keys(1, 5, torch.arange(200)), 1, 10), drawn[:, :10])


def test_dropout_keeps_its_rate_and_mean():
    with KeyedNoise(row_keys(0, 0, torch.arange(64))):
        dropped = nn.functional.dropout(torch.ones(64, 500), 0.3)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_scale_of_dropout_is_not_rounded(inplace):
    def dropped(dtype):
        with KeyedNoise(row_keys(0, 0, torch.arange(4))):
            return nn.functional.dropout(torch.full((4, 300), 3.0, dtype=dtype), 0.1, inplace=inplace)

    assert torch.equal(dropped(torch.bfloat16), dropped(torch.float32).bfloat16())


RANDOM = {
    "vit": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "dinov2": {"hidden_dropout_prob": 0.1, "drop_path_rate": 0.3},
    "swin": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "drop_path_rate": 0.3},
    "convnext": {"drop_path_rate": 0.4},
}


def embedder_with_noise(folder, settings, micro_batch_size=None) -> Embedder:
    model, processor = open_backbone(str(folder))
    torch.manual_seed(0)
    noisy = type(model)(type(model.config)(**{**model.config.to_dict(), **settings}))
    noisy.load_state_dict(model.state_dict(), strict=False)
    for name, parameter in noisy.named_parameters():
        if "layer_scale" in name:  # At its tiny initial value no one would notice a dropped path.
            torch.nn.init.ones_(parameter)
    size = view_size(processor)
    torch.manual_seed(1)
    return Embedder(
        noisy,
        resolve_pooling("auto", noisy, size),
        normalization(processor),
        embedding_dim=6,
        auxiliary_dim=9,
        micro_batch_size=micro_batch_size,
    ).train()


@pytest.mark.parametrize("kind", RANDOM)
def test_any_split_of_a_batch_drops_the_same(make_backbone, kind):
    whole = embedder_with_noise(make_backbone(kind), RANDOM[kind])
    split = copy.deepcopy(whole)
    split.micro_batch_size = 3
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    keys = row_keys(0, 3, torch.arange(8))
    assert whole.is_random
    outputs = []
    for embedder in (whole, split):
        f, g = embedder(pixels, keys)
        (f.sin().sum() + g.cos().sum()).backward()
        outputs.append(f)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[0][5:], whole(pixels[5:], keys[5:]).f, rtol=1e-4, atol=1e-5)
    for (name, a), (_, b) in zip(whole.named_parameters(), split.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)
    other = whole(pixels, row_keys(0, 4, torch.arange(8))).f
    assert not torch.allclose(outputs[0], other, atol=1e-3)
    quiet = whole.eval()(pixels, keys).f
    torch.testing.assert_close(quiet, whole(pixels).f, rtol=0, atol=0)
    assert not torch.allclose(quiet, outputs[0], atol=1e-3)


def test_models_without_noise_are_recognized(make_backbone):
    for kind in ("resnet", "vit", "dinov2", "clip", "timm"):
        assert not is_random(open_backbone(str(make_backbone(kind))).model), kind
    for kind in RANDOM:
        assert is_random(embedder_with_noise(make_backbone(kind), RANDOM[kind]).backbone), kind
