"""What others may hand to an exported model, found out by trying its image processor."""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from stml_semi.data.images import to_rgb
from stml_semi.data.views import eval_view

# Deep gray (I;16, I, F) is not among them: Pillow cuts it off at 255 when a processor converts it to RGB.
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")


class Inputs(NamedTuple):
    """What gives the embeddings of training without being converted before."""

    modes: tuple[str, ...] = ("RGB",)
    """Of opened images, upright ones."""
    paths: bool = False
    """Whether sentence-transformers opens files; it drops transparency before any processor can see it."""
    backend: str | None = None
    """torchvision or pil, if there are two: what they resize differs by a gray level."""


def find_inputs(processor: Any) -> Inputs:
    """
    Args:
        processor: of the trained model.
    """
    processor = for_any_image(processor)
    modes = tuple(mode for mode in _MODES if _is_served(processor, _sample(mode)))
    # The class of timm's models has neither.
    return Inputs(modes, hasattr(processor, "backend"), getattr(processor, "backend", None))


def for_any_image(processor: Any) -> Any:
    """The processor for people who hand it gray, transparent or palette images; of RGB ones it makes the same."""
    if not hasattr(processor, "do_convert_rgb"):  # timm's own has no such step.
        return processor
    processor = copy.deepcopy(processor)
    processor.do_convert_rgb = True
    return processor


def _sample(mode: str) -> Image.Image:
    """Colors under every degree of transparency, where the mode has either."""
    ramp = np.linspace(0, 255, 64 * 64 * 4).reshape(4, 64, 64).transpose(1, 2, 0).astype(np.uint8)
    image = Image.fromarray(ramp)
    return image.convert("RGB").convert(mode) if mode in ("CMYK", "P") else image.convert(mode)


def _is_served(processor: Any, image: Image.Image) -> bool:
    try:
        return torch.equal(eval_view(image, processor), eval_view(to_rgb(image), processor))
    except (RuntimeError, TypeError, ValueError):  # Refused, in the words of torch or of the processor.
        return False
