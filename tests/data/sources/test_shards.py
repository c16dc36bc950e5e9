"""Webdataset tar shards as a source."""

from pathlib import Path

import pytest
from helpers import miniature

from stml_semi.data.images import read_image
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.sources.shards import shards_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def shards(tmp_path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        miniature.write_shard(folder / f"train-{number:05d}.tar", [(number, i) for i in range(6)])
    return folder


def test_a_folder_a_pattern_and_a_file(shards):
    for spec, count in ((shards, 12), (shards / "train-*.tar", 12), (shards / "train-00001.tar", 6)):
        table = open_source(str(spec), flag="--labeled", labels="required")
        assert len(table) == count
        assert table.classes == ("0", "1", "2")
        assert table.labels is not None
        assert table.labels.tolist() == [0, 1, 2] * (count // 3)
        assert read_image(table.source(count - 1)).size == (24, 24)
        assert table.source(count - 1)["bytes"] == miniature.jpeg(1, 5)
        unlabeled = open_source(str(spec), flag="--unlabeled", labels="ignored")
        assert unlabeled.labels is None
        assert len(unlabeled) == count


def test_labels_that_are_missing_and_damage_are_told(shards, tmp_path):
    miniature.write_shard(tmp_path / "plain.tar", [(0, i) for i in range(4)], with_labels=False)
    assert len(open_source(f"{tmp_path}/plain.tar", flag="--unlabeled", labels="ignored")) == 4
    with pytest.raises(ValueError, match=r"--labeled .*plain.tar: no label column among image .images., jpg"):
        open_source(f"{tmp_path}/plain.tar", flag="--labeled", labels="required")
    (tmp_path / "torn.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match=r"--unlabeled .*torn.tar: cannot be read, check the file: ") as caught:
        open_source(f"{tmp_path}/torn.tar", flag="--unlabeled", labels="ignored")
    assert "\n" not in str(caught.value)


def test_a_folder_with_pictures_is_a_folder(shards):
    assert len(shards_of(str(shards))) == 2
    miniature.write(shards, {"a.jpg": miniature.jpeg(0, 0)})
    assert shards_of(str(shards)) == []
    assert len(open_source(str(shards), flag="--unlabeled", labels="ignored")) == 1
    assert shards_of("kanji") == shards_of("nowhere/*.tar") == []
