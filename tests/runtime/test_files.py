"""Files that are whole or not there, and logs that lose nothing to a torn line or an odd name."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from stml_semi.runtime import files
from stml_semi.runtime.files import (
    append_json_lines,
    read_json_lines,
    replacing,
    scratch_beside,
    write_json_lines,
    write_text,
)

ODD = [
    "a title\u2028 and a subtitle",
    "next\u0085line",
    "carriage\rreturn",
    "tab\there",
    "pict\udce9.png",
    "\x1b[31mred",
]


def test_names_of_any_kind_come_back(tmp_path):
    lines = [{"image": name} for name in ODD]
    write_json_lines(tmp_path / "log.jsonl", lines[:3])
    append_json_lines(tmp_path / "log.jsonl", lines[3:])
    assert read_json_lines(tmp_path / "log.jsonl") == lines
    assert (tmp_path / "log.jsonl").read_bytes().count(b"\n") == len(lines)


@given(
    lines=st.lists(st.dictionaries(st.text(max_size=3), st.text(), max_size=3), min_size=1, max_size=4), data=st.data()
)
def test_a_torn_line_costs_itself_alone(lines, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    append_json_lines(path, lines)
    whole = path.read_bytes()
    last = len(json.dumps(lines[-1], ensure_ascii=False).encode()) + 1
    kept = data.draw(st.integers(len(whole) - last, len(whole)))
    path.write_bytes(whole[:kept])
    there = lines if kept >= len(whole) - 1 else lines[:-1]
    assert read_json_lines(path) == there
    append_json_lines(path, [{"after": "it"}])
    assert read_json_lines(path) == [*there, {"after": "it"}]


def test_no_file_no_lines(tmp_path):
    assert read_json_lines(tmp_path / "log.jsonl") == []


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "page.html"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    """Not what a living one, or another machine, is about to write."""
    path = tmp_path / "a [1].bin"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = files._host()
    names = [f"{host}.{ended.pid}", f"{host}.{os.getppid()}", "elsewhere.1", "elsewhere.2"]
    left = [tmp_path / f".{path.name}.{name}.partial" for name in names]
    for file in left:
        file.touch()
    os.utime(left[3], (0, 0))
    with replacing(path) as partial:
        partial.write_text("new")
    assert [file.exists() for file in left] == [False, True, True, False]
    assert path.read_text() == "new"


def test_a_scratch_folder_goes_and_so_does_one_that_a_kill_left(tmp_path):
    with scratch_beside(tmp_path / "model") as scratch:
        (scratch / "weights").write_text("half")
        left = scratch.with_name(scratch.name.replace(f".{os.getpid()}.", f".{2**22 + 1}."))
        scratch.rename(left)
        scratch.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [left.name]
    scratch.mkdir()
    (scratch / "of a process of the same number").touch()
    with scratch_beside(tmp_path / "model") as scratch:
        assert list(tmp_path.iterdir()) == [scratch]
        assert not list(scratch.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_pipe_or_link_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through it")
    assert os.read(reader, 100) == b"through it"
    os.close(reader)
    assert pipe.is_fifo()
    link = tmp_path / "link"
    link.symlink_to("file")
    write_text(link, "behind it")
    assert link.is_symlink()
    assert (tmp_path / "file").read_text() == "behind it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_what_safetensors_writes_follows_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "scores.safetensors") as partial:
            save_file({"a": torch.zeros(1)}, partial)
        (tmp_path / "model" / "part").mkdir(parents=True)
        save_file({"a": torch.zeros(1)}, tmp_path / "model" / "part" / "a.safetensors")
        files.share(tmp_path / "model")
    finally:
        os.umask(before)
    for file in ("scores.safetensors", "model/part/a.safetensors"):
        assert (tmp_path / file).stat().st_mode & 0o777 == mode
    assert [file.name for file in tmp_path.rglob("*.mode")] == []
