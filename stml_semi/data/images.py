"""Bytes or a path -> RGB. Whatever is wrong with a picture comes out as `BadImage` with a short reason.

Training and evaluation share one decoder, so they see the same pixels. torchvision's JPEG decoder would save
about a tenth of the time of a view, but it is deprecated, prints to stderr, and knows fewer kinds of JPEG.
"""

import contextlib
import functools
import io
import os
import stat
import warnings
from typing import TypedDict

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 178_956_970
"""Pictures beyond this are taken for decompression bombs, as Pillow does by default."""
MAX_ASPECT = 256
"""Longest side over shortest: resizing the shortest side of a narrower strip would fill the memory."""
MAX_FILE_BYTES = 2**30

# Formats that only name a file type without decoding it, or hand the file to another program.
_UNSUITABLE = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MIC", "MPEG", "WMF"}

ImageSource = TypedDict("ImageSource", {"bytes": bytes | None, "path": str | None})  # noqa: UP013 (shadows bytes)
"""What `datasets.Image(decode=False)` yields: encoded bytes, or else the path of a file."""


class BadImage(ValueError):
    """A picture that cannot be used; the message is the reason, a few words."""


def read_image(source: ImageSource) -> Image.Image:
    """The picture as RGB: turned upright (EXIF), transparency on white, first frame of an animation.

    Raises:
        BadImage: the file cannot be read, is no picture, is damaged or absurdly large.
    """
    return _decode(_encoded(source))


def read_pixels(source: ImageSource) -> Tensor:
    """The same picture as (3, H, W) uint8, channels-last in memory: resizing is fastest on that.

    Raises:
        BadImage: as `read_image`.
    """
    return torch.from_numpy(np.array(read_image(source))).permute(2, 0, 1)


@functools.cache
def readable_extensions() -> frozenset[str]:
    """Lowercase file name extensions, with their dot, of the formats that are decoded here."""
    formats = set(_formats())
    return frozenset(ext.lower() for ext, name in Image.registered_extensions().items() if name in formats)


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _UNSUITABLE)


def _encoded(source: ImageSource) -> bytes:
    """The encoded picture; a path is read only where there are no bytes."""
    data, path = source["bytes"], source["path"]
    if data is None:
        if not path:
            raise BadImage("neither bytes nor a path")
        data = _read_file(path)
    if not data:
        raise BadImage("empty file")
    return data


def _read_file(path: str) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # A pipe would block the reader forever.
            raise BadImage("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise BadImage(f"file of {status.st_size / 2**30:.1f} GiB is too large")
        with open(path, "rb") as file:
            return file.read()
    except BadImage:
        raise
    except (OSError, MemoryError, ValueError) as error:  # ValueError: a path with a zero byte.
        raise BadImage(_reason(error)) from None


def _decode(data: bytes) -> Image.Image:
    # Pillow warns of odd metadata and large sizes, once per file and worker: nothing a user could act on.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_formats())
            if problem := _size_problem(*image.size):
                raise BadImage(problem)
            image.load()
            return to_rgb(image)
        except BadImage:
            raise
        except Exception as error:  # Decoders raise nearly everything on damaged files.
            raise BadImage(_reason(error)) from None


def _size_problem(width: int, height: int) -> str | None:
    if min(width, height) < 1:
        return "no pixels"
    if width * height > MAX_PIXELS:
        return f"too large ({width} x {height} pixels)"
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"too narrow ({width} x {height} pixels)"
    return None


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode as upright RGB, transparency on white."""
    with contextlib.suppress(Exception):  # Damaged metadata is no reason to lose good pixels.
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        return _gray_levels(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray_levels(image: Image.Image) -> Image.Image:
    """Deep gray (16 or 32 bit, float) as 8 bit; Pillow's own conversion cuts off everything above 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
    if image.mode.startswith("I;16"):
        white = 2.0**16 - 1
    else:  # The mode does not tell how deep the picture is: the narrowest usual range that holds it.
        peak = values.max()
        usual = (1.0,) if image.mode == "F" else ()
        white = next((w for w in (*usual, 2.0**8 - 1, 2.0**16 - 1) if peak <= w), peak)
    return Image.fromarray(np.clip(np.rint(values * (255 / white)), 0, 255).astype(np.uint8))


def _reason(error: BaseException) -> str:
    """A few words for bad_images.jsonl."""
    match error:
        case UnidentifiedImageError():
            return "not an image"
        case FileNotFoundError():
            return "no such file"
        case PermissionError():
            return "permission denied"
        case Image.DecompressionBombError():
            return "too large (decompression bomb)"
        case MemoryError():
            return "does not fit into memory"
        case OSError(strerror=str(text)) if text:
            return text.lower()
    text = " ".join(str(error).split()) or type(error).__name__
    return "truncated" if "truncated" in text else f"damaged: {text[:100]}"
