"""A path that exists is that path, also where its name reads like a pattern, a list or a weight."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.source_helpers import encoded, level, open_labeled, open_unlabeled, refusal, save, saved

from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.named_files import data_files, matching
from stml_semi.data.sources.open_unlabeled import open_unlabeled as open_stream
from stml_semi.data.sources.streams import ImageStream, StreamSource
from stml_semi.runtime.errors import BadInput


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)
    monkeypatch.setattr("stml_semi.data.sources.table_files._IN_MEMORY_BYTES", 0)


@pytest.fixture(params=["[x]", "x*", "scans [2024]", "a,b=0.5"])
def folder(request, tmp_path) -> Path:
    """Three images, gray levels 1 to 3, in each form; in folders that the name matches as a pattern lie others."""
    for name, levels in (("x", (101, 102, 103)), ("scans 2", (104, 105, 106)), (request.param, (1, 2, 3))):
        write(tmp_path / name, levels)
    return tmp_path / request.param


def write(folder: Path, levels: tuple[int, ...]) -> None:
    classes = [f"k{value % 2}" for value in levels]
    paths = [
        str(save(folder / f"images/{name}/{value}.png", value)) for name, value in zip(classes, levels, strict=True)
    ]
    lines = pd.DataFrame({"image": paths, "label": classes})
    lines.to_csv(folder / "t.csv", index=False)
    lines.to_json(folder / "t.jsonl", orient="records", lines=True)
    pd.DataFrame({"image": list(map(encoded, levels)), "label": classes}).to_parquet(folder / "t.parquet")
    saved(list(levels)).save_to_disk(folder / "saved")
    with tarfile.open(folder / "t.tar", "w") as archive:
        for value, name in zip(levels, classes, strict=True):
            for kind, content in (("png", encoded(value)), ("cls", name[1:].encode())):
                member = tarfile.TarInfo(f"{value}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def levels_of(table: ImageTable) -> list[int]:
    return sorted(level(table, row) for row in range(len(table)))


@pytest.mark.parametrize("name", ["t.parquet", "t.tar", "*.tar", "t.jsonl", "t.csv", "images", "saved"])
def test_tables_shards_and_folders(folder, name):
    assert levels_of(open_labeled(folder / name)) == [1, 2, 3]
    assert levels_of(open_unlabeled(folder / name)) == [1, 2, 3]
    joined = f"{folder / name},{folder.parent / 'scans 2' / name}"
    assert levels_of(open_unlabeled(joined)) == [1, 2, 3, 104, 105, 106]


@pytest.mark.parametrize("name", ["t.parquet", "t.tar", "t.jsonl", "*.tar", "t*.parquet"])
def test_streams(folder, name):
    stream = open_stream(str(folder / name), stream=True, image_column=None, data_root=None, seed=0)
    assert isinstance(stream, ImageStream)
    (source,) = stream.sources
    assert isinstance(source, StreamSource)
    contents = [encoded_image(row[source.column]) for row in source.dataset]
    assert sorted(contents) == sorted(map(encoded, (1, 2, 3)))


def encoded_image(value: Any) -> bytes:
    content = value["bytes"] if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else Path(content).read_bytes()


def test_patterns(tmp_path):
    for name in ("[a]/1.tar", "[a]/2.tar", "[a]/.3.tar", "a/4.tar", "b/[c]/5.tar", "b/c/6.tar", "b/d/e/7.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path)

    def found(pattern: str) -> str:
        return "".join(path.name[0] for path in matching(f"{tmp_path}/{pattern}"))

    assert found("[a]/*.tar") == "12"
    assert found("[a]/[23].tar") == "2"
    assert found("[a]/.*.tar") == "."
    assert found("*/[c]/*.tar") == "5"
    assert found("b/[c-d]/*.tar") == "6"
    assert found("**/*.tar") == "124567"
    assert found("b/**/?.tar") == "567"
    assert found("[b]/**/**/7.tar") == "7"
    assert found("[a]") == "["
    assert found("[b]") == "b"
    assert found("gone/*.tar") == found("*/gone.tar") == found("gone") == ""


def test_a_pattern_without_a_match_is_told(tmp_path):
    save(tmp_path / "a/1.png")
    assert "the pattern matches nothing" in refusal(open_labeled, f"{tmp_path}/b/*.tar")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()

    def refuse(folder: Path) -> Iterator[Path]:
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied")
        return (folder / name for name in os.listdir(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(BadInput, match="closed: may not be read"):
        list(matching(f"{tmp_path}/**/*.tar"))


def test_names_with_two_colons_are_refused_where_a_library_takes_them_apart(tmp_path):
    (tmp_path / "a::b").mkdir()
    (tmp_path / "a::b/t.parquet").touch()
    with pytest.raises(BadInput, match="'::' in its path"):
        data_files([tmp_path / "a::b/t.parquet"])
