"""Bytes or a path -> RGB. Whatever is wrong with an image comes out as `BadImage` with a short reason.

Pillow decides what is bad, and reads whatever is out of the ordinary. Training views of flawless JPEG images are
decoded by simplejpeg, where it is installed: the same library underneath and the same pixels, without the detour
through a Pillow image.
"""

import contextlib
import functools
import io
import math
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable
from typing import TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from stml_semi.data.image_kinds import register_plugins
from stml_semi.data.pixel_memory import (
    MAX_DECODED_BYTES,
    RGB_BYTES,
    gray_levels,
    needed_bytes,
    orientation,
    rgb_array,
    size_problem,
)
from stml_semi.runtime.errors import one_line

try:
    import simplejpeg
except ImportError:  # It has no wheel for every machine.
    simplejpeg = None

MAX_FILE_BYTES = 2**30
REFUSED = "refused: "
"""How the path of an image without bytes begins, if it is a reason and no path."""

# Formats that only name a file type without decoding it, or hand the file to another program.
_UNSUITABLE = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MIC", "MPEG", "WMF"}
_RAW = re.compile(rb"P6 ([1-9]\d*) ([1-9]\d*) 255\n")
# Segments of a JPEG's header that leave the image as it is: tables, JFIF, Photoshop's and Adobe's, a comment.
_HARMLESS = frozenset((0xC4, 0xDB, 0xDD, 0xE0, 0xED, 0xEE, 0xFE))
_FRAMES = (0xC0, 0xC2)  # Baseline and progressive.

T = TypeVar("T")

Enough = Callable[[int, int], bool]
"""Whether an image of such a height and width, upright, has all the pixels that are needed."""

ImageSource = TypedDict("ImageSource", {"bytes": bytes | None, "path": str | None})  # noqa: UP013 (shadows bytes)
"""What `datasets.Image(decode=False)` yields: encoded bytes, or else the path of a file."""


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason, a few words."""


def read_image(
    source: ImageSource,
    *,
    enough: Enough | None = None,
    formats: tuple[str, ...] | None = None,
    most: int = MAX_DECODED_BYTES,
) -> Image.Image:
    """The image as RGB: turned upright (EXIF), transparency on white, first frame of an animation.

    Args:
        source: bytes or a path.
        enough: a JPEG may come by a half, quarter or eighth, the smallest that is enough: that saves decoding.
        formats: that are decoded; default: all.
        most: bytes of memory that decoding may take.

    Raises:
        BadImage: the file cannot be read, is no image, is damaged or absurdly large.
    """

    return _decode(encoded(source), lambda image: _smaller(image, enough), formats=formats, most=most)


def read_pixels(source: ImageSource, *, enough: Enough | None = None) -> Tensor:
    """The same image as (3, H, W) uint8, channels-last in memory: resizing is fastest on that.

    Args:
        source: bytes or a path.
        enough: as of `read_image`.

    Raises:
        BadImage: as `read_image`.
    """
    data = encoded(source)
    pixels = _raw_pixels(data)
    if pixels is None and (size := _plain_jpeg_size(data)):
        pixels = _jpeg_pixels(data, size, enough)
    if pixels is None:
        pixels = _decode(data, lambda image: _opened_pixels(image, data, enough))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def raw(image: Image.Image) -> bytes:
    """An RGB image without compression (PPM), which `read_pixels` reads in no time."""
    return b"P6 %d %d 255\n" % image.size + image.tobytes()


def _raw_pixels(data: bytes) -> NDArray[np.uint8] | None:
    """(H, W, 3), if it is what `raw` makes."""
    if not (head := _RAW.match(data[:32])):
        return None
    width, height = int(head[1]), int(head[2])
    if size_problem(width, height, width * height * RGB_BYTES) or len(data) != head.end() + 3 * width * height:
        return None
    return np.frombuffer(data, np.uint8, offset=head.end()).reshape(height, width, 3).copy()


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height, if it is a JPEG of 8-bit colors whose header has nothing that might turn it (Exif, XMP).

    Takes far less time than opening it with Pillow, which is what all others need.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    size, at, pixel_bytes = None, 2, RGB_BYTES
    with contextlib.suppress(struct.error):  # The header ends too soon.
        while True:
            mark, marker, length = struct.unpack_from(">BBH", data, at)
            if mark != 0xFF or length < 2:
                break
            if marker == 0xDA:  # Pixels begin.
                return size if size and not size_problem(*size, size[0] * size[1] * pixel_bytes) else None
            if marker in _FRAMES and size is None:
                bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
                if (bits, channels) != (8, 3):
                    break
                size = width, height
                pixel_bytes += 6 if marker == 0xC2 else 0  # Coefficients of all scans.
            elif marker not in _HARMLESS and data[at + 4 : at + 8] != b"ICC_":
                break
            at += 2 + length
    return None


def _opened_pixels(image: Image.Image, data: bytes, enough: Enough | None) -> NDArray[np.uint8]:
    """(H, W, 3) of an image that Pillow has opened."""
    pixels = None
    if image.format == "JPEG" and image.mode == "RGB" and orientation(image) == 1:
        pixels = _jpeg_pixels(data, image.size, enough)
    return rgb_array(_smaller(image, enough)) if pixels is None else pixels


def _jpeg_pixels(data: bytes, size: tuple[int, int], enough: Enough | None) -> NDArray[np.uint8] | None:
    """(H, W, 3) of a JPEG of that width and height, if simplejpeg is there and finds no fault."""
    if simplejpeg is None:
        return None
    width, height = _scaled(size, _shrinks(size, enough))
    with contextlib.suppress(Exception):  # Whatever is unusual about it is for Pillow to judge.
        pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True, min_height=height, min_width=width)
        if pixels.shape == (height, width, 3):
            return pixels
    return None


def _smaller(image: Image.Image, enough: Enough | None) -> Image.Image:
    """An opened image as upright RGB, a JPEG by a half, quarter or eighth if that is enough."""
    width, height = image.size
    shrinks = _shrinks((height, width) if orientation(image) > 4 else (width, height), enough)
    if shrinks > 1:
        image.draft(None, (image.width // shrinks, image.height // shrinks))
    return to_rgb(image)


def _shrinks(size: tuple[int, int], enough: Enough | None) -> int:
    """By how much a JPEG of that width and height may be smaller: factors that decoding itself can leave out."""
    return next((n for n in (8, 4, 2) if enough and enough(*reversed(_scaled(size, n)))), 1)


def _scaled(size: tuple[int, int], shrinks: int) -> tuple[int, int]:
    """Width and height of a JPEG that is decoded smaller."""
    return math.ceil(size[0] / shrinks), math.ceil(size[1] / shrinks)


@functools.cache
def readable_extensions() -> frozenset[str]:
    """Lowercase file name extensions, with their dot, of the formats that are decoded here."""
    formats = set(_formats())
    return frozenset(ext.lower() for ext, name in Image.registered_extensions().items() if name in formats)


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    register_plugins()
    return tuple(name for name in Image.ID if name not in _UNSUITABLE)


def encoded(source: ImageSource) -> bytes:
    """The encoded image; a path is read only where there are no bytes.

    Raises:
        BadImage: there is nothing, or it cannot be read.
    """
    data, path = source["bytes"], source["path"]
    if data is None:
        if not path:
            raise BadImage("no image: neither bytes nor a path")
        data = _read_file(path)
    if not data:
        raise BadImage(path if path and path.startswith(REFUSED) else "empty file")
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


def _decode(
    data: bytes,
    decode: Callable[[Image.Image], T],
    *,
    formats: tuple[str, ...] | None = None,
    most: int = MAX_DECODED_BYTES,
) -> T:
    # Pillow warns of odd metadata and large sizes, once per file and worker: nothing a user could act on.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=formats or _formats())
            if problem := size_problem(*image.size, needed_bytes(image), most):
                raise BadImage(problem)
            return decode(image)
        except BadImage:
            raise
        except Exception as error:  # Decoders raise nearly everything on damaged files.
            raise BadImage(_reason(error)) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode, decoded, as upright RGB, transparency on white."""
    image.load()
    if orientation(image) != 1:
        with contextlib.suppress(Exception):  # Damaged metadata is no reason to lose good pixels.
            image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        return gray_levels(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


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
            return f"too large ({one_line(error).split(',')[0].lower()})"
        case MemoryError():
            return "does not fit into memory"
        case OSError(strerror=str(text)) if text:
            return text.lower()
    text = one_line(error)
    return "truncated" if "truncated" in text else f"damaged: {text[:100]}"
