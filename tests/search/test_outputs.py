"""Where `embed` and `search` cannot write or read: one line with the fix, and nothing left behind."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import call
from helpers.indexes import whole
from helpers.pictures import write_pictures

from stml_semi.search.embed import embed_source
from stml_semi.search.index import Index


@pytest.fixture
def photos(tmp_path):
    write_pictures(tmp_path / "photos", 4)
    return tmp_path / "photos"


@pytest.fixture
def index(photos, tmp_path):
    embed_source("tiny-resnet", str(photos), str(tmp_path / "index"), num_workers=0)
    return tmp_path / "index"


def embed(photos: Path, output: object) -> list[object]:
    return ["embed", "--model", "tiny-resnet", "--data", photos, "--output", output, "--num-workers", 0]


def make_odd_places(folder: Path) -> dict[str, str]:
    """Places where no output can be, as they are typed."""
    (folder / "file").write_text("a text")
    (folder / "loop").symlink_to("loop")
    places = {"below a file": folder / "file" / "x", "a loop": folder / "loop", "below a loop": folder / "loop" / "x"}
    return {name: str(path) for name, path in places.items()} | {
        "too long": str(folder / ("n" * 300)),
        "null": f"{folder}/a\0b",
        "not ours": "/proc/x",
    }


def check(said: tuple[int, str, str], text: str, code: int = 2) -> None:
    assert said[0] == code, said[2]
    lines = [line for line in said[2].splitlines() if not line.startswith("embed ")]  # Progress.
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert text in lines[0]


def test_an_index_goes_to_no_odd_place(monkeypatch, capsys, tmp_path, photos):
    for output in make_odd_places(tmp_path).values():
        said = call(monkeypatch, capsys, *embed(photos, output))
        check(said, "cannot be written (")
        assert "choose another path" in said[2]
    check(call(monkeypatch, capsys, *embed(photos, tmp_path / "file")), "file: is a file; choose another folder")
    assert (tmp_path / "file").read_text() == "a text"


def test_a_page_of_answers_goes_to_no_odd_place(monkeypatch, capsys, tmp_path, index):
    places = make_odd_places(tmp_path)
    del places["a loop"]
    for output in (*places.values(), ".", str(tmp_path), str(tmp_path / "no" / "x.html")):
        said = call(monkeypatch, capsys, "search", "--index", index, "--row", 0, "--html", output)
        check(said, "cannot be written (")
        assert "error: --html " in said[2]


def test_a_full_disk_leaves_the_page_that_was_there(monkeypatch, capsys, tmp_path, index):
    page = tmp_path / "answers.html"
    page.write_text("the page of before")
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        said = call(monkeypatch, capsys, "search", "--index", index, "--row", 0, "--html", page)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    check(said, "the disk is full: free some space", 1)
    assert page.read_text() == "the page of before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.html", "index", "photos"]


@pytest.mark.parametrize("name", ["images.lance", "images.lance/_versions"])
def test_a_file_in_place_of_a_folder_of_an_index(monkeypatch, capsys, photos, index, name):
    shutil.rmtree(index / name)
    (index / name).write_text("a text")
    said = call(monkeypatch, capsys, *embed(photos, index))
    check(said, "cannot be written (" if name == "images.lance" else "images.lance cannot be read (")
    check(call(monkeypatch, capsys, "search", "--index", index, "--row", 0), "images.lance cannot be read (")


def test_a_folder_in_place_of_a_file_of_an_index(monkeypatch, capsys, photos, index):
    (photos / "broken.png").write_bytes(b"no image")
    (index / "bad_images.jsonl").mkdir()
    said = call(monkeypatch, capsys, *embed(photos, index))
    check(said, f"Is a directory: '{index / 'bad_images.jsonl'}'")


def test_an_index_that_may_not_be_read_is_not_called_damaged(monkeypatch, capsys, index):
    opened = Path.open

    def refusing(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == "index.json":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refusing)
        patch.setattr(Path, "read_bytes", lambda self: self.open("rb").read())
        said = call(monkeypatch, capsys, "search", "--index", index, "--row", 0)
    check(said, "index.json may not be read (permission denied); make it readable with chmod")

    def denied(*_: object, **__: object) -> None:
        raise OSError("LanceError(IO): Generic error: Permission denied (os error 13), /rust/object_store.rs:157:42")

    monkeypatch.setattr("lance.dataset", denied)
    said = call(monkeypatch, capsys, "search", "--index", index, "--row", 0)
    check(said, "images.lance may not be read (permission denied); make it readable with chmod")


@pytest.mark.parametrize("size", [500, 5000])
def test_a_full_disk_stops_embed_and_loses_nothing(monkeypatch, capsys, photos, index, size):
    write_pictures(photos / "more", 40, seed=3)
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        said = call(monkeypatch, capsys, *embed(photos, index))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    check(said, "the disk is full: free some space, then run the same command again", 1)
    assert len(whole(Index.open(index)).rows) == 4
    embed_source("tiny-resnet", str(photos), str(index), num_workers=0)
    assert len(whole(Index.open(index)).rows) == 44


def test_what_a_killed_embed_left_goes_with_the_next(photos, index):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = os.uname().nodename.replace(".", "-")
    left = [index / f".{name}.{host}.{gone.pid}.partial" for name in ("index.json", "embeddings.npy")]
    for path in left:
        path.write_bytes(b"half of it")
    embed_source("tiny-resnet", str(photos), str(index), num_workers=0)
    assert not any(path.exists() for path in left)
    assert len(whole(Index.open(index)).rows) == 4
