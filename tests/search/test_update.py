"""An index is brought up to date with its images: it becomes what a new index of them would be."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from helpers.command_line import call
from helpers.pictures import write_pictures
from PIL import Image
from pyarrow import parquet

from stml_semi.runtime.errors import BadInput
from stml_semi.search.answers_page import write_page
from stml_semi.search.browse.finder import Finder
from stml_semi.search.embed import Embedded, embed_source
from stml_semi.search.index import FORMATS, Format, Index
from stml_semi.search.query import search


@pytest.fixture
def photos(tmp_path):
    write_pictures(tmp_path / "photos", 9)
    return tmp_path / "photos"


def embed(data: Path, output: Path, *, part_size: int = 16384, format: Format = "safetensors") -> Embedded:
    return embed_source("tiny-resnet", str(data), str(output), format=format, num_workers=0, part_size=part_size)


def replace(path: Path, color: str = "red") -> None:
    Image.new("RGB", (24, 24), color).save(path)


def counts(made: Embedded) -> tuple[int, int, int, int]:
    return made.num_embedded, made.num_new, made.num_changed, made.num_gone


def assert_as_new(data: Path, folder: Path, tmp_path: Path, **settings) -> None:
    """An index is what a new one of its images would be."""
    shutil.rmtree(tmp_path / "as new", ignore_errors=True)
    embed(data, tmp_path / "as new", **settings)
    found, expected = Index.open(folder), Index.open(tmp_path / "as new")
    assert found.info == expected.info
    names = [
        sorted(path.name for path in index.folder.iterdir() if "bad" not in path.name) for index in (found, expected)
    ]
    assert names[0] == names[1]
    for number in range(expected.info.num_parts):
        keys = found.keys(number), expected.keys(number)
        assert keys[0] is not None
        assert keys[1] is not None
        assert np.array_equal(keys[0], keys[1])
        own, other = found.part(number), expected.part(number)
        assert (own.rows.tolist(), list(own.images)) == (other.rows.tolist(), list(other.images))
        # Another number of images in a forward pass rounds otherwise.
        torch.testing.assert_close(own.embeddings, other.embeddings, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("part_size", [2, 16384])
def test_a_replaced_and_a_renamed_image(monkeypatch, capsys, photos, tmp_path, format, part_size):
    index = tmp_path / "index"
    assert counts(embed(photos, index, format=format, part_size=part_size)) == (9, 9, 0, 0)
    replace(photos / "2.png")
    (photos / "6.png").rename(photos / "6b.png")
    flags = ["--model", "tiny-resnet", "--data", photos, "--num-workers", 0, "--part-size", part_size]
    code, out, err = call(monkeypatch, capsys, "embed", *flags, "--format", format, "--output", index)
    assert code == 0, err
    assert out == f"{index}: 9 images, 7 of them embedded before, 1 changed, 1 new, 1 gone\n"
    assert_as_new(photos, index, tmp_path, format=format, part_size=part_size)
    assert search(str(index), [str(photos / "2.png")], k=1)[0].hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert counts(embed(photos, index, format=format, part_size=part_size)) == (0, 0, 0, 0)


def test_size_and_modification_time_are_not_all_that_tells(photos, tmp_path):
    """Images without compression have one size, and `cp -p` brings their times along."""
    for path in photos.iterdir():
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    embed(photos, tmp_path / "index")
    path, before = photos / "4.bmp", (photos / "4.bmp").stat()
    replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert counts(embed(photos, tmp_path / "index")) == (1, 0, 1, 0)
    assert_as_new(photos, tmp_path / "index", tmp_path)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_rows_that_move_are_not_embedded_again(photos, tmp_path, count):
    index = tmp_path / "index"
    embed(photos, index, part_size=3)
    for number in range(count):
        replace(photos / f"+{number}.png")  # Before all others: every row moves.
    assert counts(embed(photos, index, part_size=3)) == (count, count, 0, 0)
    assert_as_new(photos, index, tmp_path, part_size=3)
    for number in range(count):
        (photos / f"+{number}.png").unlink()
    (photos / "8.png").unlink()
    assert counts(embed(photos, index, part_size=3)) == (0, 0, 0, count + 1)
    assert_as_new(photos, index, tmp_path, part_size=3)


def test_images_inside_a_table_are_known_by_their_bytes(photos, tmp_path):
    images = [{"bytes": path.read_bytes()} for path in sorted(photos.iterdir())]
    source = tmp_path / "table.parquet"

    def write(images: list[dict[str, bytes]]) -> None:
        parquet.write_table(pyarrow.table({"image": images}), source)

    write(images[1:])
    embed(source, tmp_path / "index", part_size=3)
    write(images)
    assert counts(embed(source, tmp_path / "index", part_size=3)) == (1, 1, 0, 0)
    replace(photos / "5.png")
    write([*images[:5], {"bytes": (photos / "5.png").read_bytes()}, *images[6:]])
    assert counts(embed(source, tmp_path / "index", part_size=3)) == (1, 0, 1, 0)
    assert_as_new(source, tmp_path / "index", tmp_path, part_size=3)
    write(images[:4])
    assert counts(embed(source, tmp_path / "index", part_size=3)) == (0, 0, 0, 5)


def test_what_becomes_readable_or_unreadable(photos, tmp_path):
    good = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(b"no image")
    index = tmp_path / "index"
    made = embed(photos, index, part_size=2)
    assert (made.num_embedded, made.num_bad) == (8, 1)
    assert embed(photos, index, part_size=2).num_bad == 1
    (photos / "3.png").write_bytes(good)
    (photos / "7.png").write_bytes(b"no image")
    (photos / "8.png").unlink()
    made = embed(photos, index, part_size=2)
    assert (made.num_embedded, made.num_changed, made.num_gone, made.num_bad) == (1, 2, 1, 1)
    (line,) = map(json.loads, (index / "bad_images.jsonl").read_text().splitlines())
    assert line == {"row": 7, "image": str(photos / "7.png"), "reason": "not an image"}
    assert_as_new(photos, index, tmp_path, part_size=2)


def test_nothing_is_written_where_nothing_changed(photos, tmp_path):
    index = tmp_path / "index"
    embed(photos, index, part_size=2)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in index.iterdir()}
    assert embed(photos, index, part_size=2).num_embedded == 0
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in index.iterdir()} == before
    replace(photos / "4.png")
    embed(photos, index, part_size=2)
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in index.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} >= {"part-00002.safetensors"}
    assert after["part-00001.safetensors"] == before["part-00001.safetensors"]


@pytest.mark.parametrize("step", ["write", "take", "remove"])
@pytest.mark.parametrize("calls", [0, 1, 2])
def test_an_interrupted_update_goes_on(monkeypatch, photos, tmp_path, step, calls):
    index = tmp_path / "index"
    embed(photos, index, part_size=2)
    for number in (0, 4):
        replace(photos / f"{number}.png")
    for number in (1, 7, 8):
        (photos / f"{number}.png").unlink()
    do, left = getattr(Index, step), [calls]

    def killed(self, *arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return do(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Index, step, killed)
        with pytest.raises(KeyboardInterrupt):
            embed(photos, index, part_size=2)
    if step == "write":  # Until all is there, the old one is in place.
        assert len(search(str(index), rows=[8], k=20)[0].hits) == 8
    made = embed(photos, index, part_size=2)
    assert made.num_embedded == (0 if step == "take" else made.num_embedded) <= 2
    assert_as_new(photos, index, tmp_path, part_size=2)
    assert embed(photos, index, part_size=2).num_embedded == 0


def test_an_update_that_is_killed_and_outdated(monkeypatch, photos, tmp_path):
    """The images change again before an update that was killed is run again."""
    index = tmp_path / "index"
    embed(photos, index, part_size=2)
    take, left = Index.take, [2]

    def killed(self, number, other):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        take(self, number, other)

    replace(photos / "+.png")
    (photos / "5.png").write_bytes(b"no image")
    with monkeypatch.context() as patch:
        patch.setattr(Index, "take", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(photos, index, part_size=2)
    replace(photos / "3.png")
    replace(photos / "5.png", "blue")
    assert embed(photos, index, part_size=2).num_bad == 0
    assert_as_new(photos, index, tmp_path, part_size=2)


def test_an_index_without_keys_is_made_again(photos, tmp_path):
    """As version 0.1.0 wrote them."""
    index = tmp_path / "index"
    embed(photos, index, part_size=4)
    for path in index.glob("*.keys"):
        path.unlink()
    assert embed(photos, index, part_size=4).num_embedded == 9
    assert_as_new(photos, index, tmp_path, part_size=4)


def test_a_changed_image_is_not_shown_as_the_one_that_was_embedded(photos, tmp_path):
    index = str(tmp_path / "index")
    embed(photos, tmp_path / "index")
    answers = search(index, rows=[0], k=8)
    replace(photos / "2.png")
    finder = Finder(index, None, k=1)
    with pytest.raises(LookupError, match="changed since it was embedded; run the same `embed` command again"):
        finder.thumbnail(2)
    assert finder.thumbnail(3).data
    write_page(str(tmp_path / "page.html"), index, answers)
    assert (tmp_path / "page.html").read_text().count("no image") == 1


@pytest.mark.parametrize("format", ["safetensors", "npy"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_names_that_are_missing_are_told_with_the_fix(photos, tmp_path, format, damage):
    folder = tmp_path / "index"
    embed(photos, folder, format=format)
    names = folder / "part-00000.ids.jsonl"
    text = names.read_text()
    names.write_text(text[: len(text) // 2] if damage == "cut" else text.replace('"image"', '"imaga"', 1))
    with pytest.raises(BadInput, match=r"ids\.jsonl has \d of 9 names: delete part-00000\.\* and run"):
        search(str(folder), rows=[0], k=8)
    for path in folder.glob("part-00000.*"):
        path.unlink()
    embed(photos, folder, format=format)
    assert_as_new(photos, folder, tmp_path, format=format)
