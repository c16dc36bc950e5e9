"""The evaluation view is what the backbone's image processor makes."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.pixels import flat, noise
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DINOv3ViTImageProcessor,
    EfficientNetImageProcessor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
    TimmWrapperImageProcessor,
    ViTImageProcessor,
)

from stml_semi.data.views import augment, eval_view, eval_views, normalization, view_rng, view_size
from stml_semi.runtime.errors import BadInput

_TIMM: dict[str, Any] = {
    "input_size": [3, 96, 96],
    "mean": [0.1, 0.2, 0.3],
    "std": [0.5, 0.6, 0.7],
    "crop_pct": 0.9,
}
_SMALL = {"height": 32, "width": 48}
PROCESSORS: dict[str, tuple[Any, tuple[int, int]]] = {
    "vit": (ViTImageProcessor(), (224, 224)),
    "vit small": (ViTImageProcessor(size=_SMALL), (32, 48)),
    "dinov2": (
        BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}),
        (56, 56),
    ),
    "dinov3": (DINOv3ViTImageProcessor(size=_SMALL), (32, 48)),
    "convnext": (ConvNextImageProcessor(size={"shortest_edge": 64}), (64, 64)),
    "convnext 384": (ConvNextImageProcessor(size={"shortest_edge": 384}), (384, 384)),
    "clip": (CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 24}), (32, 24)),
    "siglip": (SiglipImageProcessor(size=_SMALL), (32, 48)),
    "efficientnet": (EfficientNetImageProcessor(size=_SMALL), (32, 48)),
    "timm": (TimmWrapperImageProcessor(_TIMM), (96, 96)),
    "other rescaling": (
        ViTImageProcessor(size=_SMALL, rescale_factor=1 / 127.5, image_mean=[1, 1, 1]),
        (32, 48),
    ),
    "no normalization": (ViTImageProcessor(size=_SMALL, do_normalize=False), (32, 48)),
    "no rescaling": (ViTImageProcessor(size=_SMALL, do_rescale=False, image_mean=[9, 8, 7]), (32, 48)),
    "bare pixels": (ViTImageProcessor(size=_SMALL, do_rescale=False, do_normalize=False), (32, 48)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_view_size_is_what_the_processor_makes(name):
    processor, size = PROCESSORS[name]
    assert view_size(processor) == size
    picture = Image.fromarray(noise(90, 130).permute(1, 2, 0).numpy())
    assert tuple(eval_view(picture, processor).shape) == (3, *size)


@pytest.mark.parametrize("name", PROCESSORS)
def test_normalization_on_the_device_is_what_the_processor_does(name):
    processor, (height, width) = PROCESSORS[name]
    mean, std = normalization(processor)
    assert mean.dtype == std.dtype == torch.float32
    assert tuple(mean.shape) == tuple(std.shape) == (3,)
    color = flat((255, 77, 3), max(height, width))
    seen = eval_view(Image.fromarray(color.permute(1, 2, 0).numpy()), processor)
    ours = (color / 255 - mean[:, None, None]) / std[:, None, None]
    middle = height // 2, width // 2
    assert torch.allclose(ours[:, middle[0], middle[1]], seen[:, middle[0], middle[1]].float(), rtol=1e-5, atol=1e-5)


def test_training_views_in_the_processors_size_equal_the_evaluation_view():
    processor = ViTImageProcessor(size=_SMALL)
    mean, std = normalization(processor)
    view = augment(noise(32, 48), preset="none", size=view_size(processor), rng=view_rng(0, 0, 0, 0))
    ours = (view / 255 - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(
        ours, eval_view(Image.fromarray(noise(32, 48).permute(1, 2, 0).numpy()), processor), atol=1e-5
    )


@pytest.mark.parametrize("name", ["vit small", "dinov2", "convnext", "timm"])
def test_batched_evaluation_views_are_identical(name):
    processor, size = PROCESSORS[name]
    shapes = [(40, 40), (90, 130), (40, 40), (33, 61), (40, 40), (200, 50)] * 8
    pictures = [Image.fromarray(noise(*s, i).permute(1, 2, 0).numpy()) for i, s in enumerate(shapes)]
    together = eval_views(pictures, processor)
    assert together.dtype == torch.float32
    assert tuple(together.shape) == (len(pictures), 3, *size)
    assert torch.equal(together, torch.stack([eval_view(picture, processor) for picture in pictures]))
    assert torch.equal(eval_views(pictures[:1], processor), together[:1])


def test_processors_without_a_fixed_size_are_refused():
    for processor in (
        CLIPImageProcessor(do_center_crop=False, size={"shortest_edge": 32}),
        ViTImageProcessor(do_resize=False),
    ):
        with pytest.raises(
            ValueError, match=r"--backbone: .*Processor\) keeps the size or the shape of images.*: set --image-size"
        ):
            view_size(processor)


def test_processors_that_do_more_to_colors_are_refused():
    def squares(images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.from_numpy(np.array(images)).permute(2, 0, 1)[None].float() ** 2}

    with pytest.raises(ValueError, match="--backbone: function does more to colors"):
        normalization(squares)


def test_a_processor_that_makes_patches_is_refused():
    with pytest.raises(BadInput, match="it makes no image of channels, height and width"):
        view_size(Siglip2ImageProcessor())
