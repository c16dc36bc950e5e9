import os
import warnings

import numpy as np
import pytest
import torch
from helpers.encoded_images import as_array, attempt, difference, encode, photo, turned_exif
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from stml_semi.data.images import (
    BadImage,
    ImageSource,
    read_image,
    read_pixels,
    readable_extensions,
)


def test_bytes_win_over_the_path_and_a_path_is_read(tmp_path):
    photo().save(tmp_path / "a.png")
    assert difference(read_image({"bytes": None, "path": str(tmp_path / "a.png")}), photo()) == 0
    other = encode(photo().rotate(180))
    other["path"] = str(tmp_path / "a.png")
    assert difference(read_image(other), photo().rotate(180)) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow reads no WebP")
    transpose = Image.Transpose
    upright = [
        None,
        transpose.FLIP_LEFT_RIGHT,
        transpose.ROTATE_180,
        transpose.FLIP_TOP_BOTTOM,
        transpose.TRANSPOSE,
        transpose.ROTATE_270,
        transpose.TRANSVERSE,
        transpose.ROTATE_90,
    ][orientation - 1]
    expected = photo() if upright is None else photo().transpose(upright)
    source = encode(photo(), kind, exif=turned_exif(orientation))
    assert read_image(source).size == expected.size
    assert difference(read_image(source), expected) < 16
    assert tuple(read_pixels(source).shape) == (3, expected.height, expected.width)


def test_transparency_lies_on_white():
    rgba = photo().convert("RGBA")
    rgba.putalpha(Image.new("L", rgba.size, 0))
    assert as_array(read_image(encode(rgba))).min() == 255
    rgba.putalpha(Image.new("L", rgba.size, 128))
    half = as_array(read_image(encode(rgba)))
    assert abs(half - (as_array(photo()) * 128 / 255 + 255 * 127 / 255)).max() <= 1
    gray = Image.merge("LA", [Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 0)])
    assert as_array(read_image(encode(gray))).min() == 255


def test_transparent_colors_without_alpha_channel_lie_on_white():
    palette = Image.new("P", (4, 2), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for source in (encode(palette, transparency=0), encode(palette, "GIF", transparency=0)):
        pixels = as_array(read_image(source))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[0, 1].tolist() == [40, 50, 60]
    solid = encode(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    assert as_array(read_image(solid)).min() == 255


def test_palette_gray_bilevel_and_cmyk():
    flat = Image.new("RGB", (8, 8), (200, 100, 50))
    assert difference(read_image(encode(flat.quantize(4))), flat) <= 1
    gray = Image.linear_gradient("L").resize((16, 16))
    assert difference(read_image(encode(gray)), gray.convert("RGB")) == 0
    assert difference(read_image(encode(gray.convert("1"))), gray.convert("1").convert("RGB")) == 0
    for kind in ("JPEG", "TIFF"):
        cmyk = encode(flat.convert("CMYK"), kind)
        assert difference(read_image(cmyk), flat) < 6
        assert (read_pixels(cmyk).permute(1, 2, 0).numpy() == np.asarray(read_image(cmyk))).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_deep_gray_keeps_its_levels(kind):
    levels = np.array([[0, 257 * 10, 257 * 100, 65535]], dtype=np.uint16)
    pixels = as_array(read_image(encode(Image.fromarray(levels), kind)))
    assert pixels[0, :, 0].tolist() == [0, 10, 100, 255]
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, np.nan]], dtype=np.float32), [0, 100, 0]),
        (np.array([[0, 7, 255]], dtype=np.int32), [0, 7, 255]),
        (np.array([[0, 2570, 65535]], dtype=np.int32), [0, 10, 255]),
    ],
)
def test_float_and_integer_pictures_use_the_range_that_holds_them(values, expected):
    pixels = as_array(read_image(encode(Image.fromarray(values), "TIFF")))
    assert pixels[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_show_their_first_frame(kind):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow reads no WebP")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    source = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert difference(read_image(source), frames[0]) < 8


def test_orientation_is_also_found_in_xmp():
    source = encode(photo(), "JPEG", xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>')
    assert read_image(source).size == (24, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_equal_the_image(kind, mode):
    source = encode(photo(61, 47).convert(mode), kind)
    pixels = read_pixels(source)
    assert pixels.dtype == torch.uint8
    assert tuple(pixels.shape) == (3, 47, 61)
    assert (pixels.permute(1, 2, 0).numpy() == as_array(read_image(source))).all()


def test_pixels_are_channels_last_and_writable():
    for kind in ("JPEG", "PNG"):
        pixels = read_pixels(encode(photo(), kind))
        assert pixels.permute(1, 2, 0).is_contiguous()
        pixels[0, 0, 0] = 7
        assert pixels[0, 0, 0] == 7


def bad_sources(folder) -> dict[str, ImageSource]:
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    (folder / "text.jpg").write_text("no image at all")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "broken.jpg").symlink_to(folder / "gone.jpg")
    jpeg, png = encode(photo(), "JPEG")["bytes"] or b"", encode(photo())["bytes"] or b""
    (folder / "half.png").write_bytes(png[: len(png) // 2])

    def path(name: str) -> ImageSource:
        return {"bytes": None, "path": str(folder / name)}

    return {
        "no image: neither bytes nor a path": {"bytes": None, "path": None},
        "no such file": path("broken.jpg"),
        "empty file": path("empty.jpg"),
        "not a regular file": path("folder.jpg"),
        "not a regular": path("pipe.jpg"),
        "not an image": path("text.jpg"),
        "truncated": path("half.png"),
        "trunc": {"bytes": jpeg[:-60], "path": None},
        "empty": {"bytes": b"", "path": None},
        "null": path("a\0b.jpg"),
        "too large": {"bytes": b"P6 20000 20000 255\n", "path": None},
        "too narrow": encode(Image.new("1", (9000, 3))),
        "file name too long": path("x" * 5000),
    }


def test_every_bad_picture_is_a_bad_image_with_a_short_reason(tmp_path):
    for reason, source in bad_sources(tmp_path).items():
        for read in (read_image, read_pixels):
            with pytest.raises(BadImage) as caught:
                read(source)
            assert reason in str(caught.value)
            assert len(str(caught.value)) < 120
            assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path):
    photo().save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(BadImage, match="permission denied"):
        read_image({"bytes": None, "path": str(tmp_path / "a.png")})


def test_jpegs_that_announce_absurd_sizes_are_not_decoded():
    data = bytearray(encode(photo(), "JPEG")["bytes"] or b"")
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(BadImage, match=r"too large \(.*(65535 x 65535|4294836225) pixels"):
        read_pixels({"bytes": bytes(data), "path": None})


def test_large_files_are_not_read(tmp_path, monkeypatch):
    photo().save(tmp_path / "a.png")
    monkeypatch.setattr("stml_semi.data.images.MAX_FILE_BYTES", 10)
    with pytest.raises(BadImage, match="too large"):
        read_image({"bytes": None, "path": str(tmp_path / "a.png")})


def test_pillow_does_not_warn_through(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40 - 1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read_image(encode(photo()))
    assert not seen


def test_metadata_that_cannot_be_read_does_not_cost_the_picture():
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + b"\x01\x12\xff" * 20
    source = encode(photo(), "JPEG", exif=exif)
    assert difference(read_image(source), photo()) < 16
    assert tuple(read_pixels(source).shape) == (3, 24, 40)


_SEEDS = {kind: encode(photo(), kind)["bytes"] or b"" for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "TGA", "PPM")}
_SEEDS["turned"] = encode(photo(), "JPEG", exif=turned_exif(6))["bytes"] or b""


@settings(max_examples=300)
@given(
    kind=st.sampled_from(sorted(_SEEDS)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    keep=st.floats(0, 1),
    head=st.booleans(),
)
@example(kind="JPEG", edits=[], keep=0.5, head=False)
def test_damaged_bytes_give_a_picture_or_bad_image(kind, edits, keep, head):
    data = bytearray(_SEEDS[kind])
    for place, value in edits:  # Headers break in more ways than pixels do.
        data[int(place * (min(len(data), 64 if head else 10**9) - 1))] = value
    source: ImageSource = {"bytes": bytes(data[: max(1, round(keep * len(data)))]), "path": None}
    picture = attempt(read_image, source)
    pixels = attempt(read_pixels, source)
    if isinstance(picture, BadImage):
        assert 0 < len(str(picture)) < 120
        assert str(pixels) == str(picture)
    else:
        assert picture.mode == "RGB"
        assert tuple(pixels.shape) == (3, picture.height, picture.width)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_random_bytes_give_a_picture_or_bad_image(data):
    picture = attempt(read_image, {"bytes": data, "path": None})
    assert isinstance(picture, (BadImage, Image.Image))
    assert str(picture)


def test_extensions_are_those_of_readable_formats():
    extensions = readable_extensions()
    assert {".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".bmp"} <= extensions
    assert not {".eps", ".pdf", ".mpg", ".h5", ".csv"} & extensions
