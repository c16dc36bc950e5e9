"""A decoded image is bounded in bytes: small files that unpack to gigabytes are refused before they are decoded."""

import ctypes
import io
import multiprocessing
import struct
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.encoded_images import encode, photo, turned_exif
from PIL import Image, TiffImagePlugin

from stml_semi.data import pixel_memory
from stml_semi.data.images import BadImage, ImageSource, read_image, read_pixels
from stml_semi.data.pixel_memory import MAX_DECODED_BYTES, needed_bytes


def png(side: int, bits: int, color: int) -> bytes:
    """The beginning of a PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, color, 0, 0, 0))
    head += chunk(b"PLTE", bytes(3)) + chunk(b"tRNS", bytes(1)) if color == 3 else b""
    return head + chunk(b"IDAT", b"")


@pytest.mark.parametrize(
    ("bits", "color", "side", "needed"),
    [(16, 0, 13000, "1.69"), (8, 6, 13000, "2.70"), (8, 6, 9000, "1.30"), (8, 4, 12000, "2.30"), (8, 3, 12000, "1.87")],
)
def test_small_files_that_unpack_to_gigabytes(bits, color, side, needed):
    data = png(side, bits, color)
    assert len(data) < 100
    for read in (read_image, read_pixels):
        with pytest.raises(BadImage, match=rf"\({side} x {side} pixels take {needed} GB of memory, at most 1.25\)"):
            read({"bytes": data, "path": None})


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_jpeg_of_all_that_pillow_takes_still_fits():
    """Baseline; the coefficients of a progressive one take as much again."""
    data = bytearray(encode(photo(), "JPEG")["bytes"] or b"")
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 13300, 13300)
    with Image.open(io.BytesIO(bytes(data))) as image:
        assert needed_bytes(image) <= MAX_DECODED_BYTES
    data = bytearray(encode(photo(), "JPEG", progressive=True)["bytes"] or b"")
    at = data.index(b"\xff\xc2")
    data[at + 5 : at + 9] = struct.pack(">HH", 13300, 13300)
    for read in (read_image, read_pixels):
        with pytest.raises(BadImage, match="too large"):
            read({"bytes": bytes(data), "path": None})


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("L", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("P", "GIF", {"transparency": 3}),
        ("RGB", "PNG", {"exif": turned_exif(6)}),
        ("RGBA", "PNG", {"exif": turned_exif(6)}),
        ("LA", "PNG", {}),
        ("I;16", "PNG", {"exif": turned_exif(6)}),
        ("I;16", "TIFF", {}),
        ("I", "TIFF", {}),
        ("F", "TIFF", {}),
        ("CMYK", "TIFF", {"compression": "tiff_lzw", "strip_size": 2**30}),
        ("CMYK", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
        ("RGBA", "WEBP", {"quality": 10, "method": 0}),
        ("RGB", "DDS", {}),
    ],
)
def test_what_is_needed_is_known_before(mode, kind, options, fresh_process):
    side = 1024
    image = photo(side, side).convert("L" if mode in "I;16F" else mode).convert(mode)
    source = encode(image, kind, **options)
    with Image.open(io.BytesIO(source["bytes"] or b"")) as opened:
        needed = needed_bytes(opened)
    del image, opened
    for read in (read_image, read_pixels):
        # The last term: rows that are converted together.
        assert fresh_process.submit(_peak, read, source).result() <= needed + 6 * 2**20


@pytest.fixture(scope="module")
def fresh_process():
    """One without the threads and the torn heap of other tests, in which a block that grows leaves holes behind."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield process


def _peak(read: Callable[[ImageSource], object], source: ImageSource) -> int:
    """Bytes that reading an image takes beyond what is there before."""
    getattr(Image, "core").clear_cache()  # noqa: B009 (not in its stubs)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    before = _memory("VmRSS")
    read(source)
    return _memory("VmHWM") - before


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def test_a_tiff_whose_tiles_are_huge():
    with Image.open(io.BytesIO(encode(photo(), "TIFF", compression="tiff_lzw")["bytes"] or b"")) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        assert needed_bytes(image) < 100_000
        image.tag_v2[322] = image.tag_v2[323] = 40000
        assert needed_bytes(image) > MAX_DECODED_BYTES


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_bands_make_no_difference(monkeypatch, kind):
    values = np.random.default_rng(0).integers(0, 60000, (37, 11)).astype(kind)
    source = encode(Image.fromarray(values), "TIFF")
    whole = np.asarray(read_image(source))
    monkeypatch.setattr(pixel_memory, "_BAND_PIXELS", 25)
    np.testing.assert_array_equal(np.asarray(read_image(source)), whole)
    np.testing.assert_array_equal(read_pixels(source).permute(1, 2, 0), whole)
    assert np.ptp(whole) > 200
