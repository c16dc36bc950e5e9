"""An index is brought up to date with its images: it becomes what a new index of them would be."""

import datetime
import json
import os
import random
import re
import shutil
from pathlib import Path

import lance
import pyarrow
import pytest
import torch
from helpers.command_line import call
from helpers.indexes import whole
from helpers.pictures import write_pictures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from stml_semi.search.answers_page import write_page
from stml_semi.search.browse.finder import Finder
from stml_semi.search.embed import Embedded, embed_source
from stml_semi.search.index import Index
from stml_semi.search.query import search
from stml_semi.search.update import Update


@pytest.fixture
def photos(tmp_path):
    write_pictures(tmp_path / "photos", 9)
    return tmp_path / "photos"


def embed(data: Path, output: Path, *, part_size: int = 16384) -> Embedded:
    return embed_source("tiny-resnet", str(data), str(output), num_workers=0, part_size=part_size)


def replace(path: Path, color: str = "red") -> None:
    Image.new("RGB", (24, 24), color).save(path)


def counts(made: Embedded) -> tuple[int, int, int, int]:
    return made.num_embedded, made.num_new, made.num_changed, made.num_gone


def assert_as_new(data: Path, folder: Path, tmp_path: Path, **settings) -> None:
    """An index is what a new one of its images would be."""
    shutil.rmtree(tmp_path / "as new", ignore_errors=True)
    embed(data, tmp_path / "as new", **settings)
    found, expected = Index.open(folder), Index.open(tmp_path / "as new")
    assert found.info._replace(version=0) == expected.info._replace(version=0)
    assert found.bad_images.exists() == expected.bad_images.exists()
    if found.bad_images.exists():
        assert found.bad_images.read_text() == expected.bad_images.read_text()
    columns = ["row", "image", "label", "name_key", "content_key", "reason"]
    assert found.table.to_table(columns).sort_by("row") == expected.table.to_table(columns).sort_by("row")
    # Another number of images in a forward pass rounds otherwise.
    torch.testing.assert_close(whole(found).embeddings, whole(expected).embeddings, rtol=0, atol=1e-5)


@pytest.mark.parametrize("part_size", [2, 16384])
def test_a_replaced_and_a_renamed_image(monkeypatch, capsys, photos, tmp_path, part_size):
    index = tmp_path / "index"
    assert counts(embed(photos, index, part_size=part_size)) == (9, 9, 0, 0)
    replace(photos / "2.png")
    (photos / "6.png").rename(photos / "6b.png")
    flags = ["--model", "tiny-resnet", "--data", photos, "--num-workers", 0, "--part-size", part_size]
    code, out, err = call(monkeypatch, capsys, "embed", *flags, "--output", index)
    assert code == 0, err
    assert out == f"{index}: 9 images, 7 of them embedded before, 1 changed, 1 new, 1 gone\n"
    assert_as_new(photos, index, tmp_path, part_size=part_size)
    assert search(str(index), [str(photos / "2.png")], k=1)[0].hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert counts(embed(photos, index, part_size=part_size)) == (0, 0, 0, 0)


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


def test_the_same_image_several_times_in_a_table(photos, tmp_path):
    images = [{"bytes": path.read_bytes()} for path in sorted(photos.iterdir())]
    source = tmp_path / "table.parquet"
    for chosen, embedded in (([0, 0, 1, 0], 4), ([1, 0, 0, 2], 1), ([2, 0, 0, 0, 0, 1, 1], 3), ([1, 0], 0)):
        parquet.write_table(pyarrow.table({"image": [images[i] for i in chosen]}), source)
        assert embed(source, tmp_path / "index", part_size=3).num_embedded == embedded
        assert_as_new(source, tmp_path / "index", tmp_path)


def test_a_label_that_changes_needs_no_forward_pass(photos, tmp_path):
    images = [{"bytes": path.read_bytes()} for path in sorted(photos.iterdir())]
    for labels in ("aabbccddd", "aabbccdde"):
        parquet.write_table(pyarrow.table({"image": images, "label": [*labels]}), tmp_path / "table.parquet")
        made = embed(tmp_path / "table.parquet", tmp_path / "index")
    assert made.num_embedded == 0
    assert Index.open(tmp_path / "index").table.to_table()["label"].to_pylist() == [*labels]


@given(seed=st.integers(0, 2**32))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changes_in_any_order(photos, tmp_path, seed):
    rng = random.Random(seed)
    shutil.rmtree(tmp_path / "index", ignore_errors=True)
    for _ in range(3):
        for name in rng.sample("abcdefghijkl", 4):
            path = photos / f"{name}.png"
            if path.exists() and rng.random() < 0.5:
                path.unlink()
            elif rng.random() < 0.2:
                path.write_bytes(b"no image")
            else:
                replace(path, f"#{rng.randrange(2**24):06x}")
        embed(photos, tmp_path / "index", part_size=rng.randint(1, 5))
        assert_as_new(photos, tmp_path / "index", tmp_path)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_nothing_is_written_where_nothing_changed(photos, tmp_path):
    index = tmp_path / "index"
    (photos / "3.png").write_bytes(b"no image")
    embed(photos, index, part_size=2)
    before = files(index)
    assert embed(photos, index, part_size=2).num_embedded == 0
    assert files(index) == before


@pytest.mark.parametrize("step", ["write", "finish", "delete", "drop_columns", "add_columns", "save_info"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_update_goes_on(monkeypatch, photos, tmp_path, step, after):
    """Before or after each thing that it does."""
    index = tmp_path / "index"
    embed(photos, index, part_size=2)
    for number in (0, 4):
        replace(photos / f"{number}.png")
    for number in (1, 7, 8):
        (photos / f"{number}.png").unlink()
    owner = {"write": Update, "finish": Update, "save_info": Index}.get(step, lance.LanceDataset)
    do = getattr(owner, step)

    def killed(self, *arguments, **named):
        if after:
            do(self, *arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed)
        with pytest.raises(KeyboardInterrupt):
            embed(photos, index, part_size=1)
    # Until all is there, the old one is in place.
    finished = after and step in ("finish", "save_info")
    assert len(search(str(index), rows=[2], k=20)[0].hits) == (5 if finished else 8)
    made = embed(photos, index, part_size=2)
    assert made.num_embedded == (0 if step not in ("write",) else 1 if after else 2)
    assert_as_new(photos, index, tmp_path, part_size=2)
    assert embed(photos, index, part_size=2).num_embedded == 0


def test_an_update_that_is_killed_and_outdated(monkeypatch, photos, tmp_path):
    """The images change again before an update that was killed is run again."""
    index = tmp_path / "index"
    embed(photos, index, part_size=2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    replace(photos / "+.png")
    (photos / "5.png").write_bytes(b"no image")
    with monkeypatch.context() as patch:
        patch.setattr(Update, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(photos, index, part_size=2)
    replace(photos / "3.png")
    replace(photos / "5.png", "blue")
    assert embed(photos, index, part_size=2).num_bad == 0
    assert_as_new(photos, index, tmp_path, part_size=2)


def test_an_index_that_is_open_stays_as_it_was(photos, tmp_path):
    embed(photos, tmp_path / "index")
    opened = Index.open(tmp_path / "index")
    names = whole(opened).images
    for path in sorted(photos.iterdir())[:4]:
        path.unlink()
    embed(photos, tmp_path / "index")
    assert whole(opened).images == names
    assert len(whole(Index.open(tmp_path / "index")).images) == 5


def test_many_small_updates_leave_few_files(photos, tmp_path):
    for number in range(12):
        replace(photos / f"new {number}.png", f"#{number:02x}0000")
        embed(photos, tmp_path / "index")
    assert len(Index.open(tmp_path / "index").table.get_fragments()) <= 2
    assert_as_new(photos, tmp_path / "index", tmp_path)


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


def test_the_other_columns_of_a_table_come_along(photos, tmp_path):
    images = [{"bytes": path.read_bytes()} for path in sorted(photos.iterdir())]
    columns: dict[str, list[object]] = {
        "image": [*images],
        "price": [float("nan"), *map(float, range(8))],
        "Maker Name": [None, *"abcdabcd"],
        "shot.at": [datetime.datetime(2026, 12, day + 1) for day in range(9)],
        "row": [*range(100, 109)],  # Ours is another.
        "tags": [["a"]] * 9,
    }
    source, index = tmp_path / "table.parquet", tmp_path / "index"

    def write() -> Embedded:
        parquet.write_table(pyarrow.table(columns), source)
        made = embed(source, index, part_size=4)
        table = Index.open(index).table.to_table().sort_by("row")
        assert table["row"].to_pylist() == [*range(len(columns["image"]))]
        assert set(table.column_names) - {
            "name_key",
            "content_key",
            "reason",
            "embedding",
            "label",
            "image",
            "row",
        } == {re.sub(r"\W", "_", name) for name in columns if name not in ("image", "row", "tags")}
        for name in set(columns) - {"image", "row", "tags"}:
            assert repr(table[re.sub(r"\W", "_", name)].to_pylist()) == repr(columns[name])
        return made

    write()
    before = files(index)
    assert counts(write()) == (0, 0, 0, 0)
    assert files(index) == before
    columns["price"][3] = 50.0
    assert counts(write()) == (0, 0, 0, 0)
    columns["sold"] = [number % 2 == 0 for number in range(9)]
    columns["price"] = [str(price) for price in columns["price"]]
    del columns["Maker Name"]
    for values in columns.values():
        del values[2]
    assert counts(write()) == (0, 0, 0, 1)
    (answer,) = search(
        str(index), rows=[0], where="sold AND CAST(price AS DOUBLE) > 2 AND shot_at < TIMESTAMP '2026-12-08 00:00:00'"
    )
    assert {hit.row for hit in answer.hits} == {2, 3, 5} & {
        row
        for row in range(8)
        if columns["sold"][row] and float(columns["price"][row]) > 2  # type: ignore[arg-type]
    }


def test_columns_of_a_csv_and_their_names(photos, tmp_path):
    lines = [f"photos/{number}.png,{'wren' if number < 4 else 'owl'},{number}" for number in range(9)]
    (tmp_path / "list.csv").write_text("\n".join(["file,species,Size (cm)", *lines]))
    embed_source("tiny-resnet", str(tmp_path / "list.csv"), str(tmp_path / "index"), format="parquet", num_workers=0)
    table = parquet.read_table(tmp_path / "index" / "embeddings.parquet").sort_by("row")
    assert table["Size_cm"].to_pylist() == [str(number) for number in range(9)]
    assert table["label"].to_pylist() == [*4 * ["wren"], *5 * ["owl"]]
    (answer,) = search(str(tmp_path / "index"), rows=[0], where="Size_cm = '5'")
    assert [hit.row for hit in answer.hits] == [5]


@pytest.mark.parametrize(
    "name", ["", "_", "_rowid", "_rowaddr", 'a"b`c', "a.b", "名前", "EMBEDDING", "content_key", "x" * 300]
)
def test_columns_may_be_called_anything(photos, tmp_path, name):
    images = [{"bytes": path.read_bytes()} for path in sorted(photos.iterdir())]
    source, index = tmp_path / "table.parquet", tmp_path / "index"
    for values in (range(9), range(1, 10)):
        parquet.write_table(pyarrow.table({"image": images, name: [*values], f"{name}?": [*values]}), source)
        embed(source, index)
    assert len(search(str(index), rows=[0], k=20, where="row < 5")[0].hits) == 4
    assert_as_new(source, index, tmp_path)
    called = re.sub(r"\W+", "_", name).strip("_")
    if called and called != "content_key":
        table = Index.open(index).table.to_table().sort_by("row")
        assert table[called].to_pylist() == [*range(1, 10)]
        assert len(search(str(index), rows=[0], where=f"`{called}` > 7")[0].hits) == 2
