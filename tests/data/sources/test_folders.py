"""The index of a folder: what is remembered, and when it is not believed."""

import os
from pathlib import Path

import pytest

from stml_semi.data.sources import folders
from stml_semi.data.sources.folders import FolderIndex

LONG_AGO = 1_600_000_000


@pytest.fixture
def birds(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(folders, "_WORTH_KEEPING", 4)
    for name in ("robin", "wren"):
        (tmp_path / "birds" / name / "young").mkdir(parents=True)
        for i in range(3):
            (tmp_path / "birds" / name / f"{i}.jpg").touch()
    (tmp_path / "birds" / "wren" / "young" / "9.png").touch()
    age(tmp_path / "birds")
    return tmp_path / "birds"


def age(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            os.utime(path, (LONG_AGO, LONG_AGO))


def index(folder: Path) -> list[str]:
    with FolderIndex(folder) as opened:
        return [os.path.relpath(file, folder) for file in opened.files(folder)]


@pytest.fixture
def listed(monkeypatch, tmp_path) -> list[str]:
    """Names of the directories that were listed."""
    names: list[str] = []
    scandir = os.scandir

    def spy(path):
        if tmp_path / "cache" not in Path(path).parents:  # The memory, which is searched for leftovers.
            names.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr("stml_semi.data.sources.folders.os.scandir", spy)
    return names


def test_a_folder_is_listed_once_and_then_only_where_it_changed(birds, listed):
    first = index(birds)
    assert len(first) == 7
    assert listed == ["birds", "robin", "young", "wren", "young"]
    listed.clear()
    assert index(birds) == first
    assert listed == []
    (birds / "wren" / "3.jpg").touch()
    (birds / "robin" / "0.jpg").unlink()
    (birds / "robin" / "0.txt").touch()
    assert set(index(birds)) == set(first) - {"robin/0.jpg"} | {"wren/3.jpg"}
    assert sorted(listed) == ["robin", "wren"]


def test_what_is_skipped_is_remembered_with_the_rest(birds, listed):
    for name in ("a.HEIC", "b.heic", "c\udce9.p\udce9", "d"):
        (birds / "robin" / name).touch()
    age(birds)
    listed.clear()
    for _ in range(2):
        with FolderIndex(birds) as opened:
            assert len(list(opened.files(birds))) == 7
            assert opened.skipped() == {".heic": 2, ".p\udce9": 1, "": 1}
    assert len(listed) == 5  # Once each.


def test_another_folder_of_the_same_name_and_age_is_another_folder(birds):
    assert len(index(birds)) == 7
    birds.rename(birds.with_name("old"))
    birds.mkdir()
    for i in range(5):
        (birds / f"{i}.jpg").touch()
    age(birds)
    assert index(birds) == [f"{i}.jpg" for i in range(5)]


def test_a_directory_that_just_changed_is_not_remembered(birds, listed):
    (birds / "robin" / "3.jpg").touch()
    index(birds)
    listed.clear()
    index(birds)
    assert listed == ["robin"]


def test_a_damaged_memory_is_made_anew(birds, tmp_path, listed):
    first = index(birds)
    (file,) = (tmp_path / "cache" / "stml-semi-folders").iterdir()
    file.write_bytes(file.read_bytes()[:200])
    listed.clear()
    assert index(birds) == first
    assert len(listed) == 5
    listed.clear()
    assert index(birds) == first
    assert listed == []


def test_a_memory_that_cannot_be_written_changes_nothing(birds, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert len(index(birds)) == 7


def test_links_called_like_pictures_are_pictures_and_loops_end(birds):
    (birds / "robin" / "link.jpg").symlink_to(birds / "wren" / "0.jpg")
    (birds / "robin" / "loop").symlink_to(birds)
    (birds / "robin" / "itself").symlink_to(birds / "robin" / "itself")
    assert len(index(birds)) == 8
