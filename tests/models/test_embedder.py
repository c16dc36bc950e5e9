import copy
from typing import Any

import pytest
import torch
from torch import nn

from stml_semi.data.views import normalization, view_size
from stml_semi.models.backbone import open_backbone
from stml_semi.models.embedder import Embedder, freeze_unused
from stml_semi.models.image_size import resize
from stml_semi.models.pooling import resolve_pooling
from stml_semi.models.teacher import Teacher

POOLING = {
    "resnet": "mean_max",
    "convnext": "mean_max",
    "timm": "mean_max",
    "vit": "cls",
    "deit": "cls",
    "dinov2": "cls",
    "dinov3": "cls",
    "swin": "mean",
    "clip": "pooler",
    "siglip": "pooler",
}


def make_embedder(folder, pooling: Any = "auto", micro_batch_size=None):
    torch.manual_seed(0)
    model, processor = open_backbone(str(folder))
    size = view_size(processor)
    return Embedder(
        model,
        resolve_pooling(pooling, model, size),
        normalization(processor),
        embedding_dim=6,
        auxiliary_dim=10,
        micro_batch_size=micro_batch_size,
    )


def pixels_for(embedder_size, count=4):
    return torch.randint(
        0, 256, (count, 3, *embedder_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("kind", POOLING)
def test_every_kind_of_backbone_embeds_and_learns(make_backbone, kind):
    folder = make_backbone(kind)
    embedder = make_embedder(folder)
    size = view_size(open_backbone(str(folder)).processor)
    assert embedder.pooling.kind == POOLING[kind]
    freeze_unused(embedder, size)
    f, g = embedder(pixels_for(size))
    assert f.shape == (4, 6)
    assert g.shape == (4, 10)
    (f.square().sum() + g.square().sum()).backward()
    trained = [p for p in embedder.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    assert len(trained) > 4


@pytest.mark.parametrize(("kind", "prefix"), [("vit", 1), ("deit", 2), ("dinov2", 1), ("dinov3", 5), ("swin", 0)])
def test_prefix_tokens_are_counted(make_backbone, kind, prefix):
    assert make_embedder(make_backbone(kind), pooling="mean").pooling.num_prefix_tokens == prefix


def test_mean_leaves_the_class_token_out(make_backbone):
    embedder = make_embedder(make_backbone("vit"), pooling="mean")
    pixels = pixels_for((32, 32))
    normalized = (pixels.float() / 255 - embedder.mean) / embedder.std
    tokens = embedder.backbone(pixel_values=normalized).last_hidden_state
    torch.testing.assert_close(embedder.features(pixels), tokens[:, 1:].mean(1))


def test_feature_maps_are_pooled_by_mean_plus_max(make_backbone):
    embedder = make_embedder(make_backbone("resnet")).eval()
    pixels = torch.randn(3, 3, 32, 32)
    features = embedder.backbone(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(embedder.features(pixels), features.mean((2, 3)) + features.amax((2, 3)))


@pytest.mark.parametrize(
    ("kind", "pooling", "message"),
    [
        ("resnet", "cls", "--pooling cls: resnet has no class token"),
        ("vit", "mean_max", "--pooling mean_max is for feature maps"),
        ("vit", "pooler", "--pooling pooler: vit has no pooler; use cls or mean"),
    ],
)
def test_pooling_that_does_not_fit_is_refused(make_backbone, kind, pooling, message):
    with pytest.raises(ValueError, match=message):
        make_embedder(make_backbone(kind), pooling=pooling)


def test_heads_are_orthogonal_without_bias(make_backbone):
    embedder = make_embedder(make_backbone("vit"))
    torch.testing.assert_close(embedder.head_f.weight @ embedder.head_f.weight.T, torch.eye(6), rtol=0, atol=1e-5)
    assert embedder.head_g.bias.abs().max() == 0


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_micro_batches_change_neither_values_nor_gradients(make_backbone, kind):
    whole, split = (make_embedder(make_backbone(kind), micro_batch_size=size) for size in (None, 3))
    pixels = pixels_for((32, 32), 8)
    for embedder in (whole, split):
        f, g = embedder(pixels)
        (f.sin().sum() + g.cos().sum()).backward()
    for (name, a), (_, b) in zip(whole.named_parameters(), split.named_parameters(), strict=True):
        if a.grad is None:
            assert b.grad is None, name
        else:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_batchnorm_keeps_its_statistics_in_training(make_backbone):
    embedder = make_embedder(make_backbone("resnet")).train()
    before = {name: value.clone() for name, value in embedder.named_buffers()}
    together = embedder(pixels_for((32, 32))).f
    alone = torch.cat([embedder(pixel[None]).f for pixel in pixels_for((32, 32))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    for name, value in embedder.named_buffers():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_image_size_resamples_position_embeddings(make_backbone):
    for kind in ("vit", "dinov2", "deit", "clip"):
        model, processor = resize(open_backbone(str(make_backbone(kind))), 48)
        assert view_size(processor) == (48, 48)
        assert model.config.image_size == 48
        tokens = model(pixel_values=torch.zeros(1, 3, 48, 48)).last_hidden_state.shape[1]
        assert tokens - make_embedder(make_backbone(kind)).pooling.num_prefix_tokens == 36


def test_what_is_no_image_backbone_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    with pytest.raises(ValueError, match="--backbone nowhere/at-all: .*hub id"):
        open_backbone("nowhere/at-all")
    with pytest.raises(ValueError, match="--backbone"):
        open_backbone(str(tmp_path))
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not open 'bert' by itself as a model of single images"):
        open_backbone(str(tmp_path))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)


def test_teacher_is_the_exponential_moving_average():
    student = Small()
    teacher = Teacher(student, momentum=0.9)
    expected = {name: value.clone() for name, value in student.state_dict().items()}
    for _ in range(5):
        with torch.no_grad():
            for p in student.parameters():
                p += torch.randn_like(p)
            student.norm.running_mean += 1  # pyright: ignore[reportOperatorIssue]
            student.norm.num_batches_tracked += 1  # pyright: ignore[reportOperatorIssue]
        teacher.update(student)
        for name, value in student.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value if value.is_floating_point() else value.clone()
    for name, value in teacher.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_teacher_never_trains():
    teacher = Teacher(Small(), momentum=0.9)
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    restored = Teacher(Small(), momentum=0.5)
    restored.load_state_dict(copy.deepcopy(teacher.state_dict()))
    torch.testing.assert_close(restored.model.state_dict(), teacher.model.state_dict())
