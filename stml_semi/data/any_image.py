"""Images as programs hold them: paths, bytes, PIL images, arrays, tensors."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stml_semi.data.images import BadImage, read_image, to_rgb
from stml_semi.runtime.errors import BadInput

OneImage = str | Path | bytes | Image.Image | NDArray[Any] | Tensor
"""A path, an encoded image, or a decoded one."""
_TAKEN = "give a path, the bytes of a file, a PIL image, an array (H, W, 3) or a tensor (3, H, W)"


def is_one(images: Any) -> bool:
    """Whether it is one image; arrays and tensors with a dimension more are many."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim in (2, 3)
    return isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)


def name_of(image: OneImage, number: int) -> str:
    """How messages call an image."""
    return str(image) if isinstance(image, str | os.PathLike) else f"image {number}"


def open_image(image: Any, name: str) -> Image.Image:
    """An image as RGB, as training sees it.

    Args:
        image: as `OneImage`.
        name: for the message of an error.

    Raises:
        TypeError: it is none of these.
        BadInput: it cannot be read.
    """
    try:
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            raise BadImage("an address, not a file; download it first")
        if isinstance(image, str | os.PathLike):
            return read_image({"bytes": None, "path": os.fspath(image)})
        if isinstance(image, bytes | bytearray | memoryview):
            return read_image({"bytes": bytes(image), "path": None})
        if isinstance(image, np.ndarray | Tensor):
            image = _from_pixels(image)
    except BadImage as error:
        raise BadInput(f"{name}: {error}") from None
    if isinstance(image, Image.Image):
        return to_rgb(image)
    raise TypeError(f"{name}: a {type(image).__name__} is no image; {_TAKEN}")


def _from_pixels(pixels: NDArray[Any] | Tensor) -> Image.Image:
    """
    Raises:
        BadImage: a shape or type that says nothing of an image.
    """
    if isinstance(pixels, Tensor):
        if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
            raise BadImage(f"a tensor of shape {tuple(pixels.shape)}; (3, H, W) or (1, H, W) is wanted")
        if pixels.is_floating_point():
            low, high = pixels.aminmax()
            if not (float(low) >= 0 and float(high) <= 1):
                raise BadImage("a tensor of numbers beyond 0..1, perhaps normalized; give it as it was before")
            pixels = (pixels * 255).round().to(torch.uint8)
        pixels = pixels.permute(1, 2, 0).cpu().numpy()
        pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    if pixels.dtype != np.uint8:
        raise BadImage(f"an array of {pixels.dtype}; uint8 is wanted")
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,), (4,)) or 0 in pixels.shape:
        raise BadImage(f"an array of shape {pixels.shape}; (H, W), (H, W, 3) or (H, W, 4) is wanted")
    return Image.fromarray(pixels)
