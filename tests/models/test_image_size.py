"""Backbones and image processors for another size, rectangles too, and processors that keep the shape of images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tr
from helpers.backbones import VIT, processor, timm_folder, vit
from PIL import Image

from stml_semi.data.views import eval_view, normalization, view_size
from stml_semi.models.backbone import Backbone, open_backbone
from stml_semi.models.image_size import resize
from stml_semi.models.pooling import resolve_pooling
from stml_semi.runtime.errors import BadInput
from stml_semi.sharing.load import load

# ------------------------------------------------------------------ rectangles


@pytest.mark.parametrize(
    ("native", "side", "size"),
    [
        ((32, 72), 144, (64, 144)),  # 4 x 9 patches are 36, and no 6 x 6.
        ((32, 64), 32, (16, 32)),
        ((32, 64), 64, (32, 64)),
        ((64, 32), 128, (128, 64)),
        ((32, 72), 40, (16, 40)),  # 17.8 rows: whole patches, so that the model sees all of them.
    ],
)
def test_a_rectangle_keeps_its_shape(native, side, size):
    resized = resize(Backbone(vit(native), processor(*native)), side)
    assert view_size(resized.processor) == size
    assert list(resized.model.config.image_size) == list(size)
    assert resolve_pooling("auto", resized.model, size) == ("cls", 1, 32)


def test_positions_of_a_rectangle_are_resampled_on_its_own_grid():
    model = vit((32, 64))
    ramp = torch.arange(8.0).repeat(4, 1).reshape(1, 32, 1)  # 4 x 8 patches, each knows its column.
    model.embeddings.position_embeddings.data = torch.cat([torch.full((1, 1, 1), 9.0), ramp], 1).expand(-1, -1, 32)
    found = resize(Backbone(model, processor(32, 64)), 128).model.embeddings.position_embeddings[0, :, 0]
    assert found[0] == 9
    grid = found[1:].reshape(8, 16)
    torch.testing.assert_close(grid, grid[:1].expand(8, -1))  # No column has come into another.
    torch.testing.assert_close(grid[0, 2:-2], torch.linspace(0.75, 6.25, 12), atol=0.1, rtol=0)


def test_square_models_take_rectangles_where_they_can():
    torch.manual_seed(0)
    dino = tr.Dinov2Model(tr.Dinov2Config(**VIT, image_size=32)).eval()
    resized = resize(Backbone(dino, processor(16, 32)), 64)
    assert view_size(resized.processor) == (32, 64)
    assert resized.model.config.image_size == 64
    assert resolve_pooling("auto", resized.model, (32, 64))[:2] == ("cls", 1)
    clip = tr.CLIPVisionModel(tr.CLIPVisionConfig(**VIT, image_size=32)).eval()
    resized = resize(Backbone(clip, processor(16, 32)), 64)
    with pytest.raises(BadInput, match=r"fails on two RGB images of 32 x 64 px .*64 x 64 in its preprocessor_config"):
        resolve_pooling("auto", resized.model, (32, 64))


def test_relative_positions_of_beit_keep_the_rows_of_its_class_token():
    torch.manual_seed(0)
    config = tr.BeitConfig(**VIT, image_size=32, use_relative_position_bias=True)
    beit = tr.BeitModel(config, add_pooling_layer=False).eval()
    name = next(key for key in beit.state_dict() if key.endswith("relative_position_bias_table"))
    with torch.no_grad():
        beit.get_parameter(name).zero_()[-3:] = 5
    found = resize(Backbone(beit, processor()), 64).model.get_parameter(name)
    assert len(found) == 15 * 15 + 3
    assert (found[-3:] == 5).all()
    assert (found[:-3] == 0).all()


# ------------------------------------------------------------------ image processors


def folder_with(folder: Path, model: Any, made: Any, **edit: Any) -> str:
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    settings = {**json.loads(file.read_text()), **edit}
    file.write_text(json.dumps({key: value for key, value in settings.items() if value != "left out"}))
    return str(folder)


SHAPELESS: dict[str, tuple[Any, dict[str, Any]]] = {
    "no resize": (processor(), {"do_resize": False}),
    "shortest edge": (processor(), {"size": {"shortest_edge": 32}}),
    "longest edge": (tr.CLIPImageProcessor(size={"longest_edge": 32}, do_center_crop=False), {}),
    "longest edge of a ViT": (processor(), {"size": {"longest_edge": 32}}),
    "both edges": (processor(), {"size": {"shortest_edge": 32, "longest_edge": 64}}),
    "at most": (processor(), {"size": {"max_height": 32, "max_width": 32}}),
}


@pytest.mark.parametrize("name", SHAPELESS)
def test_image_size_gives_every_processor_one_size(tmp_path, name):
    made, edit = SHAPELESS[name]
    backbone = open_backbone(folder_with(tmp_path / "m", vit(), made, **edit))
    with pytest.raises(BadInput, match=r"--backbone: its image processor \(\w+\) .*: set --image-size, and images"):
        view_size(backbone.processor)
    for side in (32, 48):
        model, found = resize(backbone, side)
        assert view_size(found) == (side, side)
        assert resolve_pooling("auto", model, (side, side)) == ("cls", 1, 32)
        normalization(found)
        # A wide image is cropped, not squeezed: what is at its sides is out of the view.
        image = Image.new("RGB", (300, 100), "red")
        image.paste("blue", (100, 0, 200, 100))
        assert eval_view(image, found)[0].max() < 0
        backbone = open_backbone(str(tmp_path / "m"))


@pytest.mark.parametrize("name", SHAPELESS)
def test_what_takes_no_image_size_is_told_what_to_edit(tmp_path, name):
    made, edit = SHAPELESS[name]
    with pytest.raises(BadInput, match=r"^--model .*: .*\"do_resize\": true.* in its preprocessor_config\.json$"):
        load(folder_with(tmp_path / "m", vit(), made, **edit))


@pytest.mark.parametrize("architecture", ["tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_timm_models_take_another_size(tmp_path, architecture):
    """What is saved opens with that size, and embeds the same."""
    backbone = resize(open_backbone(timm_folder(tmp_path / "m", architecture)), 128)
    assert view_size(backbone.processor) == (128, 128)
    backbone.model.save_pretrained(tmp_path / "larger")
    again = open_backbone(str(tmp_path / "larger"))
    assert view_size(again.processor) == (128, 128)
    pixels = eval_view(Image.new("RGB", (90, 60), "red"), again.processor)[None]
    assert torch.equal(pixels[0], eval_view(Image.new("RGB", (90, 60), "red"), backbone.processor))
    with torch.no_grad():
        found, expected = (model(pixels).last_hidden_state for model in (again.model, backbone.model))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("architecture", "side"), [("vit_tiny_patch16_224", 8), ("swin_tiny_patch4_window7_224", 128)])
def test_timm_models_that_do_not_take_it_say_so(tmp_path, architecture, side):
    backbone = open_backbone(timm_folder(tmp_path / "m", architecture))
    with pytest.raises(BadInput, match=rf"^--image-size {side}: {architecture} does not take it \(.*flag out"):
        resize(backbone, side)


def test_one_channel_is_refused(tmp_path):
    backbone = open_backbone(folder_with(tmp_path / "m", vit(num_channels=1), processor()))
    with pytest.raises(BadInput, match="takes images of 1 channel, not RGB: take another backbone"):
        resolve_pooling("auto", backbone.model, view_size(backbone.processor))
    with pytest.raises(BadInput, match="^--model .*takes images of 1 channel, not RGB: take another model"):
        load(tmp_path / "m")


def test_without_a_size_the_size_of_the_model_is_named(tmp_path):
    backbone = open_backbone(folder_with(tmp_path / "m", vit(), processor(), size="left out"))
    with pytest.raises(BadInput, match=r"fails on two RGB images of 224 x 224 px .*: set --image-size 32"):
        resolve_pooling("auto", backbone.model, view_size(backbone.processor))
    model, found = resize(backbone, 32)
    assert resolve_pooling("auto", model, view_size(found)) == ("cls", 1, 32)


def test_a_std_of_zero_names_the_file(tmp_path):
    backbone = open_backbone(folder_with(tmp_path / "m", vit(), processor(), image_std=[0.0, 0.0, 0.0]))
    with pytest.raises(BadInput, match=r"image_std.*preprocessor_config\.json"):
        normalization(backbone.processor)
