"""Weights between frozen and trained."""

import pytest
import torch
from torch import nn

from stml_semi.data.views import normalization, view_size
from stml_semi.models.adaptation import add_lora, freeze_prefix, merged
from stml_semi.models.backbone import open_backbone
from stml_semi.models.embedder import Embedder
from stml_semi.models.interpolation import interpolate, serve_features, start_of
from stml_semi.models.pooling import resolve_pooling


def embedder_of(folder, prepare=lambda backbone: None):
    torch.manual_seed(0)
    backbone = open_backbone(str(folder))
    prepare(backbone.model)
    pool = resolve_pooling("auto", backbone.model, view_size(backbone.processor))
    return Embedder(backbone.model, pool, normalization(backbone.processor), embedding_dim=6, auxiliary_dim=10).eval()


def trained(embedder):
    """As if it was trained: all that trains, and statistics, have moved."""
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, embedder.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
        for module in filter(lambda m: isinstance(m, nn.BatchNorm2d), embedder.modules()):
            module.running_mean += 1
            module.running_var *= 3
            module.num_batches_tracked += 7
    return {name: value.clone() for name, value in embedder.state_dict().items()}


def test_both_ends_are_exact_and_statistics_are_interpolated(make_backbone):
    embedder = embedder_of(make_backbone("resnet"))
    before = {name: value.clone() for name, value in embedder.state_dict().items()}
    start = start_of(embedder)
    after = trained(embedder)
    assert not any("head" in name for name in start)
    ends = [interpolate(start, after, alpha) for alpha in (0.0, 1.0)]
    half = interpolate(start, after, 0.5)
    assert set(half) == set(before)
    for name, value in after.items():
        assert ends[1][name].equal(value)
        if name.startswith("backbone.") and value.is_floating_point():
            assert ends[0][name].equal(before[name])
            torch.testing.assert_close(half[name], (before[name] + value) / 2)
        else:  # Counts of batches, and heads whose start is not given.
            assert half[name].equal(value)
    assert any(name.endswith("running_var") for name in start)


def test_frozen_layers_are_left_alone_and_cost_nothing(make_backbone):
    embedder = embedder_of(make_backbone("vit"), lambda backbone: freeze_prefix(backbone, "last:1"))
    start = start_of(embedder)
    assert set(start) == {
        name for name, p in embedder.named_parameters() if p.requires_grad and name.startswith("backbone.")
    }
    assert 0 < len(start) < len([name for name, _ in embedder.backbone.named_parameters()])


def test_low_rank_updates_are_interpolated_as_their_merged_weights(make_backbone):
    embedder = embedder_of(make_backbone("vit"), lambda backbone: add_lora(backbone, 2))
    before, start = merged(embedder.backbone).state_dict(), start_of(embedder)
    state = trained(embedder)
    after = merged(embedder.backbone).state_dict()
    for alpha in (0.0, 0.25, 1.0):
        embedder.load_state_dict(interpolate(start, state, alpha))
        between = merged(embedder.backbone).state_dict()
        for name, value in between.items():
            torch.testing.assert_close(value, torch.lerp(before[name], after[name], alpha), rtol=1e-5, atol=1e-6)
    assert not all(before[name].equal(after[name]) for name in after)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_features_are_served_as_they_are(make_backbone, kind):
    embedder = embedder_of(make_backbone(kind))
    pixels = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        features = embedder.features(pixels)
        serve_features(embedder)
        assert embedder(pixels).f.equal(features)
