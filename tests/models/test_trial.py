"""What a backbone's output is taken for: channels, class tokens, the model's own pooling; and whether to rely on it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tr
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import nn

from stml_semi.data.views import eval_views, view_size
from stml_semi.models.backbone import open_backbone
from stml_semi.models.pooling import pool_output, resolve_pooling
from stml_semi.runtime.errors import BadInput
from stml_semi.sharing.load import load
from tests.helpers.exports import exported

VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def saved(folder: Path, model: Any, height: int = 32, width: int = 32) -> Path:
    model.save_pretrained(folder)
    tr.ViTImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)
    return folder


def timm_folder(folder: Path, architecture: str, **model_args: Any) -> Path:
    options: dict[str, Any] = {
        "model_args": {"img_size": 64, **model_args},
        "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
    }
    torch.manual_seed(0)
    tr.TimmWrapperModel(tr.TimmWrapperConfig(architecture=architecture, **options)).save_pretrained(folder)
    return folder


def resolved(folder: Path, pooling: Any = "auto"):
    model, processor = open_backbone(str(folder))
    return model, resolve_pooling(pooling, model, view_size(processor))


# ------------------------------------------------------------------ channels


SWINS = {
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)},
    "swinv2_tiny_window8_256": {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)},
}


@pytest.mark.parametrize("architecture", SWINS)
def test_maps_with_channels_last_are_pooled_over_their_places(tmp_path, architecture):
    model, pooling = resolved(timm_folder(tmp_path / "m", architecture, **SWINS[architecture]))
    assert (pooling.kind, pooling.num_features) == ("pooler", 128)
    output = model(pixel_values=torch.randn(2, 3, 64, 64))
    assert output.last_hidden_state.shape == (2, 2, 2, 128)
    torch.testing.assert_close(pool_output(output, pooling), output.last_hidden_state.mean((1, 2)))
    for kind in ("mean", "mean_max"):
        with pytest.raises(BadInput, match=f"--pooling {kind}: .* channels last; use pooler or auto"):
            resolve_pooling(kind, model, (64, 64))


def test_an_export_of_channels_last_serves_what_was_trained(tmp_path, pictures):
    name = "swin_tiny_patch4_window7_224"
    folder = timm_folder(tmp_path / "m", name, **SWINS[name])
    embedder, processor = exported(tmp_path / "export", folder, "auto")
    expected = embedder(eval_views(pictures, processor)).f.detach()
    expected = torch.nn.functional.normalize(expected, dim=1).numpy()
    served = SentenceTransformer(str(tmp_path / "export"), device="cpu").encode(list[Any](pictures))
    assert abs(served - expected).max() < 1e-5
    assert abs(load(tmp_path / "export").encode(pictures) - expected).max() < 1e-5


class Maps(nn.Module):
    """A backbone that gives maps of a fixed shape."""

    def __init__(self, *shape: int, pooled: bool = True, **config: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.name_or_path = "maps"
        self.config = SimpleNamespace(model_type="maps", **config)
        self.shape, self.pooled = shape, pooled

    def forward(self, pixel_values: torch.Tensor) -> Any:
        maps = self.scale * pixel_values.mean() * torch.ones(len(pixel_values), *self.shape)
        return SimpleNamespace(last_hidden_state=maps, pooler_output=maps.mean((1, 2)) if self.pooled else None)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (Maps(4, 4, 24, hidden_size=24), ("pooler", 24)),
        (Maps(24, 4, 4, hidden_size=24), ("mean_max", 24)),
        (Maps(4, 4, 24), ("pooler", 24)),  # It does not say its width: the shape of the image tells.
        (Maps(24, 4, 4), ("mean_max", 24)),
    ],
)
def test_the_channel_axis_is_as_wide_as_the_model_says(backbone, expected):
    assert resolve_pooling("auto", backbone, (32, 32))[::2] == expected


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Maps(4, 4, 24, pooled=False, hidden_size=24), "channels last and has no pooler"),
        (Maps(9, 24, 9), "no axis is known to be the channels"),
    ],
)
def test_maps_that_cannot_be_pooled_are_refused(backbone, message):
    with pytest.raises(BadInput, match=f"--backbone maps: .*{message}"):
        resolve_pooling("auto", backbone, (32, 32))


# ------------------------------------------------------------------ randomness


def test_vitmae_hides_no_patches(tmp_path):
    torch.manual_seed(0)
    mae = tr.ViTMAEModel(tr.ViTMAEConfig(**VIT, mask_ratio=0.75)).eval()
    model, pooling = resolved(saved(tmp_path / "m", mae))
    assert pooling == ("cls", 1, 32)
    pixels = torch.randn(2, 3, 32, 32)
    found = pool_output(model(pixel_values=pixels), pooling)
    assert torch.equal(found, pool_output(model(pixel_values=pixels), pooling))
    mae.config.mask_ratio = 0.0  # All patches, still in random order, which a class token does not see.
    expected = mae(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Noisy(Maps):
    def forward(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=torch.randn(len(pixel_values), *self.shape))


def test_a_backbone_that_is_random_is_refused():
    with pytest.raises(BadInput, match="--backbone maps: is random: .* take another backbone"):
        resolve_pooling("auto", Noisy(24, 4, 4), (32, 32))


def test_a_trial_moves_no_generator(make_backbone):
    model, processor = open_backbone(str(make_backbone("vit")))
    before = torch.get_rng_state()
    resolve_pooling("auto", model.train(), view_size(processor))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_damaged_weights_and_other_sizes_are_explained(make_backbone):
    model, _ = open_backbone(str(make_backbone("vit")))
    with pytest.raises(BadInput, match=r"fails on two RGB images of 48 x 48 px \(.*\): set --image-size 32"):
        resolve_pooling("auto", model, (48, 48))
    with pytest.raises(BadInput, match='"size" 32 x 32 in its preprocessor_config.json'):
        resolve_pooling("auto", model, (48, 48), flag="--model")
    torch.nn.init.constant_(model.layernorm.weight, float("nan"))
    with pytest.raises(BadInput, match="NaN or infinity"):
        resolve_pooling("auto", model, (32, 32))


# ------------------------------------------------------------------ tokens


def swin() -> Any:
    return tr.SwinModel(
        tr.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4)
    )


def vit(height: int, width: int) -> Any:
    config: dict[str, Any] = {**VIT, "image_size": [height, width]}
    return tr.ViTModel(tr.ViTConfig(**config), add_pooling_layer=False)


@pytest.mark.parametrize(
    ("make", "size", "expected"),
    [
        (swin, (32, 32), ("mean", 0)),
        (swin, (32, 64), ("mean", 0)),  # 4 x 8 patches: not 5 x 5 and seven class tokens.
        (swin, (48, 96), ("mean", 0)),
        (lambda: vit(32, 72), (32, 72), ("cls", 1)),
        (lambda: vit(32, 64), (32, 64), ("cls", 1)),
        (lambda: tr.Dinov2Model(tr.Dinov2Config(**VIT)), (16, 64), ("cls", 1)),
        (
            lambda: tr.DINOv3ConvNextModel(tr.DINOv3ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)),
            (64, 96),
            ("cls", 1),
        ),
    ],
)
def test_class_tokens_are_counted_on_the_grid_of_patches(tmp_path, make, size, expected):
    _, pooling = resolved(saved(tmp_path / "m", make(), *size))
    assert pooling[:2] == expected


@pytest.mark.parametrize("prefix", [0, 1])
def test_class_tokens_of_timm_are_those_it_names(tmp_path, prefix):
    args = {"embed_dim": 32, "depth": 1, "num_heads": 2, "class_token": bool(prefix), "global_pool": "avg"}
    args["fc_norm"] = False
    _, pooling = resolved(timm_folder(tmp_path / "m", "vit_tiny_patch16_224", **args))
    assert pooling == ("cls" if prefix else "mean", prefix, 32)


@pytest.mark.parametrize("norm", [True, False])
def test_registers_alone_are_no_class_token(tmp_path, norm):
    args = {"embed_dim": 32, "depth": 1, "num_heads": 2, "fc_norm": norm}
    model, pooling = resolved(timm_folder(tmp_path / "m", "vit_medium_patch16_reg4_gap_256", **args))
    assert pooling == ("pooler", 4, 32)
    output = model(pixel_values=torch.randn(2, 3, 64, 64))
    patches = model.timm_model.fc_norm(output.last_hidden_state[:, 4:].mean(1))
    torch.testing.assert_close(pool_output(output, pooling), patches)
    for kind in ("cls", "mean_max"):
        with pytest.raises(BadInput, match=f"--pooling {kind}.*: .*use mean$"):
            resolve_pooling(kind, model, (64, 64))


def test_a_norm_of_the_mean_belongs_to_the_pooling(tmp_path):
    args = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    model, pooling = resolved(timm_folder(tmp_path / "m", "beit_base_patch16_224", **args))
    assert pooling == ("pooler", 1, 32)
    output = model(pixel_values=torch.randn(2, 3, 64, 64))
    expected = model.timm_model.fc_norm(output.last_hidden_state[:, 1:].mean(1))
    torch.testing.assert_close(pool_output(output, pooling), expected)


def test_tokens_that_fit_no_grid_are_refused():
    with pytest.raises(BadInput, match="gives 23 tokens for 32 x 64 px, which fit no grid of patches"):
        resolve_pooling("auto", Maps(23, 24, pooled=False, hidden_size=24), (32, 64))


# ------------------------------------------------------------------ the kin of CLIP


TEXT: dict[str, Any] = {**{key: VIT[key] for key in list(VIT)[:4]}, "projection_dim": 16}
ALT_TEXT: dict[str, Any] = {**TEXT, "vocab_size": 99, "project_dim": 32}
DECODER: dict[str, Any] = {"reduce_dim": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
KIN: dict[str, Any] = {
    "clip": lambda: tr.CLIPVisionModel(tr.CLIPVisionConfig(**VIT)),
    "chinese_clip": lambda: tr.ChineseCLIPVisionModel(tr.ChineseCLIPVisionConfig(**VIT)),
    "metaclip_2": lambda: tr.MetaClip2VisionModel(tr.MetaClip2VisionConfig(**VIT)),
    "altclip": lambda: tr.AltCLIPVisionModel(tr.AltCLIPVisionConfig(**VIT)),
    "clipseg": lambda: tr.CLIPSegVisionModel(tr.CLIPSegVisionConfig(**VIT)),
    "siglip": lambda: tr.SiglipVisionModel(tr.SiglipVisionConfig(**VIT)),
    "both towers": lambda: tr.MetaClip2Model(tr.MetaClip2Config(vision_config=VIT, text_config=TEXT)),
    "both towers of altclip": lambda: tr.AltCLIPModel(tr.AltCLIPConfig(vision_config=VIT, text_config=ALT_TEXT)),
    "both towers of aimv2": lambda: tr.Aimv2Model(tr.Aimv2Config(vision_config=VIT, text_config=TEXT)),
    "clipseg's segmentation": lambda: tr.CLIPSegForImageSegmentation(
        tr.CLIPSegConfig(vision_config=VIT, text_config=TEXT, extract_layers=[0], **DECODER)
    ),
}


@pytest.mark.parametrize("name", KIN)
def test_the_kin_of_clip_is_pooled_as_clip(tmp_path, name):
    torch.manual_seed(0)
    original = KIN[name]().eval()
    tower = getattr(original, "clip", original)  # CLIPSeg's lies two levels down.
    model, pooling = resolved(saved(tmp_path / "m", original))
    assert (pooling.kind, pooling.num_features) == ("pooler", 32)
    pixels = torch.randn(2, 3, 32, 32)
    expected = getattr(tower, "vision_model", tower)(pixel_values=pixels).pooler_output
    torch.testing.assert_close(pool_output(model(pixel_values=pixels), pooling), expected)


BLIP = tr.BlipConfig(vision_config=VIT, text_config=TEXT)
XCLIP = tr.XCLIPVisionConfig(**VIT, num_frames=2)
VIDEO: dict[str, Any] = {**VIT, "num_frames": 2}


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("blip_vision_model", lambda: tr.BlipModel(BLIP)),
        ("xclip_vision_model", lambda: tr.XCLIPVisionModel(XCLIP)),
        ("timesformer", lambda: tr.TimesformerModel(tr.TimesformerConfig(**VIDEO))),
    ],
)
def test_what_no_export_could_open_is_refused_by_its_name(tmp_path, kind, make):
    folder = saved(tmp_path / "m", make())
    with pytest.raises(
        BadInput, match=f"^--model .*: transformers does not open '{kind}' .*such as facebook/dinov2-small"
    ):
        open_backbone(str(folder), flag="--model")


def test_an_export_of_a_twin_opens_by_itself(tmp_path):
    for name in ("altclip", "vitmae"):
        source = KIN[name]() if name in KIN else tr.ViTMAEModel(tr.ViTMAEConfig(**VIT))
        exported(tmp_path / name, saved(tmp_path / f"{name} before", source), "auto")
        images: Any = [Image.new("RGB", (40, 30), color) for color in ("red", "navy")]
        served = SentenceTransformer(str(tmp_path / name), device="cpu").encode(images)
        assert abs(served - load(tmp_path / name).encode(images)).max() < 1e-5
