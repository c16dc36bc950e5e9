"""What decoding an image takes in memory, known before it is decoded, and conversions that take little.

A file of a few kilobytes may unpack to gigabytes. Pixels are no measure of that: how many bytes one takes depends on
the mode, on the decoder, and on what the image has to become to be RGB.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

MAX_DECODED_BYTES = 1_250_000_000
"""178 million pixels of RGB, where Pillow draws its own line; fewer of what takes more."""
MAX_ASPECT = 256
"""Longest side over shortest: resizing the shortest side of a narrower strip would fill the memory."""
RGB_BYTES = 4 + 3
"""Per pixel: Pillow's RGB image has four bytes, and an array of it three."""

# Per pixel, what decoders hold beside the image, as measured.
_DECODERS = {"WEBP": 12, "AVIF": 12}
_IN_PYTHON = 9
_BAND_PIXELS = 2**17


def needed_bytes(image: Image.Image) -> int:
    """At most this much memory is in use while an opened image is decoded and becomes an RGB array."""
    width, height = image.size
    own = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    rgb = 0 if image.mode == "RGB" else 4
    if image.mode[0] in "IF":
        rgb += 1  # Gray of 8 bits comes first.
    elif image.has_transparency_data:
        rgb += 4 + 1  # White, and the mask.
    turned = own if orientation(image) != 1 else 0
    return width * height * (own + max(_decoder_bytes(image), turned + rgb + 3)) + _tiff_buffer(image)


def size_problem(width: int, height: int, needed: int, most: int = MAX_DECODED_BYTES) -> str | None:
    """Why an image is not decoded, in a few words; None if it is.

    Args:
        width: pixels.
        height: pixels.
        needed: bytes of memory, of `needed_bytes`.
        most: bytes that it may need.
    """
    if min(width, height) < 1:
        return "no pixels"
    if needed > most:
        return f"too large ({width} x {height} pixels take {needed / 1e9:.2f} GB of memory, at most {most / 1e9:g})"
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"too narrow ({width} x {height} pixels)"
    return None


def _decoder_bytes(image: Image.Image) -> int:
    bands = len(image.getbands())
    if image.format in ("JPEG", "MPO"):  # Coefficients of all scans.
        return 2 * bands if image.info.get("progressive") else 0
    if image.format == "JPEG2000":  # Integers, and a tile on top of them.
        return 5 * bands + 2
    in_python = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
    return _IN_PYTHON if in_python else _DECODERS.get(image.format or "", 0)


def _tiff_buffer(image: Image.Image) -> int:
    """A strip or tile, of whatever size the file says, in libtiff."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return 0
    width, height = image.size
    tile, rows = int(tags.get(322, width)), int(tags.get(323, min(int(tags.get(278, height)), height)))
    bits = tags.get(258, 8)
    return tile * rows * max(4, sum(bits) // 8 if isinstance(bits, tuple) else bits // 8)


def orientation(image: Image.Image) -> int:
    """What EXIF says: 1 is upright."""
    with contextlib.suppress(Exception):
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    return 1


def rgb_array(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) of an RGB image; Pillow's own way to an array holds it three times."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, band in _bands(image):
        pixels[top : top + band.height] = np.asarray(band)
    return pixels


def gray_levels(image: Image.Image) -> Image.Image:
    """Deep gray (16 or 32 bit, float) as 8 bit; Pillow's own conversion cuts off everything above 255."""
    if image.mode.startswith("I;16"):
        white = 2.0**16 - 1
    else:  # The mode does not tell how deep the image is: the narrowest usual range that holds it.
        peak = max(float(_values(band).max()) for _, band in _bands(image))
        usual = (1.0,) if image.mode == "F" else ()
        white = next((w for w in (*usual, 2.0**8 - 1, 2.0**16 - 1) if peak <= w), peak)
    levels = np.empty((image.height, image.width), np.uint8)
    for top, band in _bands(image):
        levels[top : top + band.height] = np.clip(np.rint(_values(band) * (255 / white)), 0, 255)
    return Image.fromarray(levels)


def _values(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Some rows at a time, with the number of the first."""
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))
