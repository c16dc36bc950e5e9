"""A whole image as a view of another shape: cropped, padded or squashed."""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Framing(NamedTuple):
    """What becomes of an image whose shape is not that of views."""

    fit: Literal["crop", "pad", "squash"]
    """Its middle, all of it between bars, or all of it distorted."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """RGB color of the bars."""


SQUASH = Framing("squash")


def frame(pixels: Tensor, size: tuple[int, int], framing: Framing = SQUASH) -> Tensor:
    """A whole image as a view.

    Args:
        pixels: (3, H, W) uint8; left as it is.
        size: height and width of the view.
        framing: what becomes of an image of another shape.

    Returns:
        (3, *size) uint8.
    """
    height, width = pixels.shape[1:]
    tall, wide = height * size[1], width * size[0]
    if framing.fit == "squash" or tall == wide:
        return resize(pixels, size)
    if framing.fit == "crop":
        inner = (max(1, round(wide / size[1])), width) if tall > wide else (height, max(1, round(tall / size[0])))
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        return resize(pixels[:, top : top + inner[0], left : left + inner[1]], size)
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    view = torch.tensor(framing.fill, dtype=torch.uint8)[:, None, None].repeat(1, *size)
    view[:, top : top + inner[0], left : left + inner[1]] = resize(pixels, inner)
    return view


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 to (3, *size), antialiased."""
    if tuple(pixels.shape[1:]) == tuple(size):
        return pixels.clone()
    # Whole and channels-last, resizing needs no conversion on either side; numpy copies such parts fastest.
    part = torch.from_numpy(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()[None])).permute(0, 3, 1, 2)
    return F.interpolate(part, size=size, mode="bilinear", antialias=True)[0]
