"""The fast ways of reading: the same pixels, and the same reasons where there are none."""

import numpy as np
import pytest
import torch
from helpers.encoded_images import as_array, attempt, difference, encode, photo, turned_exif

from stml_semi.data.images import BadImage, ImageSource, raw, read_image, read_pixels


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 40}, {"subsampling": 0}])
def test_the_faster_decoder_gives_the_same_pixels(options, monkeypatch):
    pytest.importorskip("simplejpeg")
    source = encode(photo(61, 47), "JPEG", **options)
    fast = read_pixels(source)
    monkeypatch.setattr("stml_semi.data.images.simplejpeg", None)
    assert torch.equal(fast, read_pixels(source))


def same(source: ImageSource) -> bool:
    """Whether the fast ways of `read_pixels` do what Pillow alone does."""
    picture, pixels = attempt(read_image, source), attempt(read_pixels, source)
    if isinstance(picture, BadImage):
        return str(picture) == str(pixels)
    return bool(np.array_equal(as_array(picture), pixels.permute(1, 2, 0).numpy()))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True, "comment": b"hello"}, {"icc_profile": b"x" * 40, "restart_marker_rows": 1}]
)
def test_every_byte_of_a_jpeg_header_may_break(options):
    data = encode(photo(19, 17), "JPEG", **options)["bytes"] or b""
    for place in range(data.rindex(b"\xff\xda") + 12):
        for value in (0, 0xE1, 0xFF):
            assert same({"bytes": data[:place] + bytes([value]) + data[place + 1 :], "path": None}), (place, value)


def test_exif_is_found_wherever_it_stands_in_the_header():
    data = encode(photo(), "JPEG")["bytes"] or b""
    body = turned_exif(6).tobytes()
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    starts = [place for place in range(2, data.index(b"\xff\xda") + 1) if data[place] == 0xFF and data[place + 1]]
    assert len(starts) > 7
    for start in starts:
        source: ImageSource = {"bytes": data[:start] + segment + data[start:], "path": None}
        assert same(source)
        assert tuple(read_pixels(source).shape) == (3, 40, 24)


def test_raw_pictures_are_read_as_pillow_reads_them():
    data = raw(photo(31, 17))
    assert (read_pixels({"bytes": data, "path": None}).permute(1, 2, 0).numpy() == as_array(photo(31, 17))).all()
    assert difference(read_image({"bytes": data, "path": None}), photo(31, 17)) == 0
    with pytest.raises(BadImage, match="trunc"):
        read_pixels({"bytes": data[:-5], "path": None})
    with pytest.raises(BadImage, match="too narrow"):
        read_pixels({"bytes": b"P6 1 5000 255\n" + bytes(15000), "path": None})


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("at_least", "size"), [(38, (51, 38)), (39, (101, 76)), (151, (201, 151)), (152, (401, 302))])
def test_large_jpegs_may_come_smaller(at_least, size, orientation, monkeypatch):
    source = encode(photo(401, 302), "JPEG", exif=turned_exif(orientation))
    enough = lambda *sides: min(sides) >= at_least  # noqa: E731
    image = read_image(source, enough=enough)
    assert image.size == (size if orientation == 1 else size[::-1])
    pixels = read_pixels(source, enough=enough)
    assert (pixels.permute(1, 2, 0).numpy() == as_array(image)).all()
    monkeypatch.setattr("stml_semi.data.images.simplejpeg", None)
    assert torch.equal(pixels, read_pixels(source, enough=enough))
    png = encode(photo(401, 302), "PNG")
    assert read_image(png, enough=lambda *sides: True).size == (401, 302)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_what_is_enough_is_asked_of_the_upright_picture(orientation):
    source = encode(photo(400, 300), "JPEG", exif=turned_exif(orientation))
    asked = set[tuple[int, int]]()
    for read in (read_image, read_pixels):
        read(source, enough=lambda height, width: bool(asked.add((height, width))))
    upright = [(38, 50), (75, 100), (150, 200)]
    assert sorted(asked) == ([(width, height) for height, width in upright] if orientation == 6 else upright)
