"""Where `embed` and `search` cannot write or read: one line with the fix, and nothing left behind."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import call
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


@pytest.mark.parametrize("name", ["part-00000.keys", "part-00000.safetensors", "bad_images.jsonl"])
def test_a_folder_in_place_of_a_file_of_an_index(monkeypatch, capsys, photos, index, name):
    for file in {name, "part-00000.safetensors"}:
        (index / file).unlink(missing_ok=True)
    (index / name).mkdir()
    check(call(monkeypatch, capsys, *embed(photos, index)), f"Is a directory: '{index / name}'")


@pytest.mark.parametrize("name", ["index.json", "part-00000.safetensors", "part-00000.ids.jsonl"])
def test_what_may_not_be_read_is_not_called_damaged(monkeypatch, capsys, index, name):
    opened = Path.open

    def refusing(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refusing)
    monkeypatch.setattr(Path, "read_bytes", lambda self: self.open("rb").read())
    said = call(monkeypatch, capsys, "search", "--index", index, "--row", 0)
    check(said, f"{name} may not be read (permission denied); make it readable with chmod")
    assert "delete" not in said[2]


def test_what_a_killed_embed_left_goes_with_the_next(photos, index):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = os.uname().nodename.replace(".", "-")
    left = [index / f".part-0000{n}.safetensors.{host}.{gone.pid}.partial" for n in (0, 7)]
    for path in left:
        path.write_bytes(b"half of it")
    embed_source("tiny-resnet", str(photos), str(index), num_workers=0)
    assert not any(path.exists() for path in left)
    assert len(list(Index.open(index).parts())) == 1
