"""Damaged images of every common format; the same ones on every machine with the same Pillow."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

_PER_FORMAT = 40


class Case(NamedTuple):
    name: str
    data: bytes


def corpus() -> Iterator[Case]:
    """Some 450 files: whole, cut short, with flipped bits, zeroed stretches, foreign headers, absurd sizes."""
    whole = _whole()
    for number, (name, data) in enumerate(whole.items()):
        rng = np.random.default_rng(number)
        yield Case(f"{name} whole", data)
        for other, foreign in whole.items():
            if other != name:
                yield Case(f"{name} with the head of {other}", foreign[:16] + data[16:])
        for change in range(_PER_FORMAT):
            yield Case(f"{name} change {change}", _damaged(data, rng, change % 5))
    yield from _absurd(whole)


def _whole() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = {
        "JPEG": ("JPEG", image, {}),
        "JPEG progressive, turned": ("JPEG", image, {"progressive": True, "exif": exif}),
        "JPEG CMYK": ("JPEG", image.convert("CMYK"), {}),
        "PNG": ("PNG", image, {}),
        "PNG palette": ("PNG", image.quantize(16), {"transparency": 0}),
        "GIF": ("GIF", image, {"save_all": True, "append_images": [image.rotate(90)]}),
        "WEBP": ("WEBP", image, {}),
        "TIFF": ("TIFF", image, {"compression": "tiff_lzw"}),
        "BMP": ("BMP", image, {}),
    }
    return {name: _encoded(*form) for name, form in forms.items()}


def _encoded(kind: str, image: Image.Image, options: dict) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _damaged(data: bytes, rng: np.random.Generator, way: int) -> bytes:
    values = np.frombuffer(data, np.uint8).copy()
    if way == 0:  # Cut short.
        return data[: rng.integers(0, len(data))]
    if way == 1:  # Bits flipped anywhere.
        places = rng.integers(0, len(values), rng.integers(1, 9))
        values[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    elif way == 2:  # Bytes of the head replaced: sizes, offsets and markers are there.
        places = rng.integers(0, min(len(values), 80), rng.integers(1, 6))
        values[places] = rng.integers(0, 256, len(places))
    elif way == 3:  # A stretch of zeros, as lost blocks of a disk leave it.
        start = rng.integers(0, len(values))
        values[start : start + rng.integers(1, 200)] = 0
    else:  # A piece moved or doubled.
        cut, length = rng.integers(0, len(values)), rng.integers(1, 100)
        return data[:cut] + data[cut : cut + length] * int(rng.integers(0, 4)) + data[cut + length :]
    return values.tobytes()


def _absurd(whole: dict[str, bytes]) -> Iterator[Case]:
    """Sizes that would fill the memory, one that is large and may be true, and files without content."""
    yield from (Case(f"{n} zero bytes", bytes(n)) for n in (0, 1, 100, 100_000))
    for width, height in ((65_535, 65_535), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 5), (4_000, 4_000)):
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + head
        png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        yield Case(f"PNG {width} x {height}", png + whole["PNG"][33:])
        bmp = bytearray(whole["BMP"])
        bmp[18:26] = struct.pack("<II", width, height)
        yield Case(f"BMP {width} x {height}", bytes(bmp))
        yield Case(f"PPM {width} x {height}", b"P6 %d %d 255\n" % (width, height) + bytes(100))
        if max(width, height) < 2**16:
            gif = bytearray(whole["GIF"])
            gif[6:10] = struct.pack("<HH", width, height)
            yield Case(f"GIF {width} x {height}", bytes(gif))
            jpeg = bytearray(whole["JPEG"])
            frame = jpeg.index(b"\xff\xc0")
            jpeg[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
            yield Case(f"JPEG {width} x {height}", bytes(jpeg))
