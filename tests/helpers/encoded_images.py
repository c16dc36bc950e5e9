"""Encoded images that tests read, and what they compare."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from stml_semi.data.images import BadImage, ImageSource


def photo(width: int = 40, height: int = 24) -> Image.Image:
    """A smooth image whose four corners differ: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options) -> ImageSource:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def turned_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def as_array(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(abs(as_array(a) - as_array(b)).max())


def attempt(read: Callable[[ImageSource], Any], source: ImageSource) -> Any:
    try:
        return read(source)
    except BadImage as error:
        return error
