import copy

import pytest
import torch
from torch import nn

from stml_semi.config import TrainConfig
from stml_semi.data.views import normalization, view_size
from stml_semi.models.adaptation import add_lora, checkpoint_blocks, depths, find_blocks, freeze_prefix, merged
from stml_semi.models.backbone import open_backbone
from stml_semi.models.embedder import Embedder
from stml_semi.models.keyed_noise import row_keys
from stml_semi.models.pooling import resolve_pooling
from stml_semi.models.teacher import Teacher
from stml_semi.training.optimizer import decayed_parameters, make_optimizer

VITS = ["vit", "deit", "dinov2", "dinov3", "clip", "siglip"]
BLOCKS = dict.fromkeys([*VITS, "swin", "resnet", "convnext"], 2) | {"timm": 4}


def opened(folder):
    torch.manual_seed(0)
    return open_backbone(str(folder))


def embedder_of(backbone):
    size = view_size(backbone.processor)
    pool = resolve_pooling("auto", backbone.model, size)
    torch.manual_seed(1)
    return Embedder(backbone.model, pool, normalization(backbone.processor), embedding_dim=6, auxiliary_dim=10)


def pixels_of(backbone, count=4):
    size = view_size(backbone.processor)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("kind", "count"), BLOCKS.items())
def test_the_blocks_of_every_kind_of_backbone_are_found(make_backbone, kind, count):
    backbone = opened(make_backbone(kind)).model
    blocks = find_blocks(backbone)
    assert len(blocks) == count
    found = depths(backbone)
    assert set(range(count + 1)) <= set(found.values()) <= set(range(count + 2))
    assert list(found.values()) == sorted(found.values())


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="leave out --train-layers"):
        find_blocks(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_only_the_last_blocks_train(make_backbone, kind):
    backbone = opened(make_backbone(kind)).model
    freeze_prefix(backbone, "last:1")
    for name, depth in depths(backbone).items():
        assert backbone.get_parameter(name).requires_grad == (depth >= 2), name
    freeze_prefix(backbone, "last:0")
    assert not any(p.requires_grad for p in backbone.parameters())


def test_more_blocks_than_there_are_is_an_error(make_backbone):
    with pytest.raises(ValueError, match="--train-layers last:3: this backbone has 2 blocks; take last:2 or all"):
        freeze_prefix(opened(make_backbone("vit")).model, "last:3")


@pytest.mark.parametrize("kind", VITS)
def test_low_rank_updates_start_at_zero_train_alone_and_merge_exactly(make_backbone, kind):
    backbone = opened(make_backbone(kind))
    plain_names = set(backbone.model.state_dict())
    embedder, pixels = embedder_of(backbone), pixels_of(backbone)
    before = embedder(pixels).f.detach()
    add_lora(backbone.model, 2)
    torch.testing.assert_close(embedder(pixels).f, before)
    trained = [name for name, p in backbone.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    for name in trained:
        nn.init.normal_(backbone.model.get_parameter(name), std=0.3)
    moved = embedder(pixels).f.detach()
    assert (moved - before).abs().max() > 1e-3
    served = merged(backbone.model)
    assert set(served.state_dict()) == plain_names
    embedder.backbone = served
    torch.testing.assert_close(embedder(pixels).f, moved, rtol=1e-4, atol=1e-5)


def test_low_rank_updates_keep_to_the_blocks_that_train(make_backbone):
    backbone = opened(make_backbone("vit")).model
    freeze_prefix(backbone, "last:1")
    add_lora(backbone, 2)
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith(find_blocks(backbone)[-1]) for name in trained)


def test_low_rank_updates_of_a_convolutional_network_are_refused(make_backbone):
    with pytest.raises(ValueError, match="--lora-rank: ResNetModel has no linear layers"):
        add_lora(opened(make_backbone("resnet")).model, 2)


@pytest.mark.parametrize("kind", ["vit_dropout", "resnet", "swin", "timm"])
def test_checkpointed_blocks_change_neither_values_nor_gradients(make_backbone, kind):
    whole = opened(make_backbone(kind))
    parts = opened(make_backbone(kind))
    checkpoint_blocks(parts.model)
    results = []
    for backbone in (whole, parts):
        embedder, pixels = embedder_of(backbone).train(), pixels_of(backbone)
        f, g = embedder(pixels, row_keys(0, 5, torch.arange(len(pixels))))
        (f.sin().sum() + g.cos().sum()).backward()
        results.append((f.detach(), {n: p.grad for n, p in embedder.named_parameters() if p.grad is not None}))
    (f_whole, whole_grads), (f_parts, part_grads) = results
    torch.testing.assert_close(f_parts, f_whole)
    assert part_grads.keys() == whole_grads.keys()
    for name, grad in whole_grads.items():
        torch.testing.assert_close(part_grads[name], grad, rtol=1e-4, atol=1e-6, msg=name)


def test_checkpointed_blocks_keep_less(make_backbone):
    kept = {}
    for way in ("whole", "parts"):
        backbone = opened(make_backbone("vit"))
        if way == "parts":
            checkpoint_blocks(backbone.model)
        embedder, sizes = embedder_of(backbone).train(), []

        def pack(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            embedder(pixels_of(backbone))
        kept[way] = sum(sizes)
    assert kept["parts"] < kept["whole"] / 2


def test_layer_decay_slows_early_blocks(make_backbone):
    embedder = embedder_of(opened(make_backbone("vit")))
    config = TrainConfig(labeled="x", learning_rate=1e-3, layer_decay=0.5)
    proxy = nn.Parameter(torch.zeros(3, 6))
    optimizer = make_optimizer(config, embedder, [proxy])
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    last = len(find_blocks(embedder.backbone)) + 1
    for name, depth in depths(embedder.backbone).items():
        assert rates[id(embedder.backbone.get_parameter(name))] == pytest.approx(1e-3 * 0.5 ** (last - depth))
    assert rates[id(embedder.head_f.weight)] == pytest.approx(1e-3)
    assert rates[id(proxy)] == pytest.approx(0.1)
    assert len(rates) == len(list(embedder.parameters())) + 1


def test_the_teacher_shares_what_is_frozen(make_backbone):
    backbone = opened(make_backbone("vit"))
    freeze_prefix(backbone.model, "last:1")
    embedder = embedder_of(backbone)
    teacher = Teacher(embedder, momentum=0.9)
    start = copy.deepcopy(teacher.model.state_dict())
    for name, p in embedder.named_parameters():
        assert (teacher.model.get_parameter(name) is p) == (not p.requires_grad), name
        if p.requires_grad:
            p.data += 1
    teacher.update(embedder)
    for name, p in teacher.model.named_parameters():
        moved = 0.1 if embedder.get_parameter(name).requires_grad else 0.0
        torch.testing.assert_close(p.data - start[name], torch.full_like(p, moved), rtol=1e-4, atol=1e-5)


def test_compiled_steps_give_the_same_numbers_and_names(make_backbone):
    plain, compiled = (embedder_of(opened(make_backbone("vit"))).train() for _ in range(2))
    compiled.compile_steps()
    pixels = pixels_of(opened(make_backbone("vit")))
    assert list(plain.state_dict()) == list(compiled.state_dict())
    for embedder in (plain, compiled):
        f, g = embedder(pixels)
        (f.sin().sum() + g.cos().sum()).backward()
    torch.testing.assert_close(compiled(pixels).f, plain(pixels).f, rtol=1e-4, atol=1e-5)
    for (name, a), (_, b) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", [*VITS, "swin", "resnet", "convnext"])
def test_weight_decay_is_for_weights_alone(make_backbone, kind):
    embedder = embedder_of(opened(make_backbone(kind)))
    decayed = decayed_parameters(embedder)
    kept = {name for name, parameter in embedder.named_parameters() if parameter.ndim > 1} - decayed
    assert all(name.endswith("weight") for name in decayed)
    assert {"head_f.weight", "head_g.weight"} <= decayed
    # Tokens, positions and tables of relative positions; a probe that pools is a token.
    assert all(any(word in name for word in ("token", "position", "embedding", "probe")) for name in kept)
    assert kept or kind in ("resnet", "convnext")
