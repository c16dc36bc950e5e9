"""What the paths of a stream open, and what they do not."""

import io
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from helpers import miniature

from stml_semi.data.batches.live_images import live_images
from stml_semi.data.images import BadImage, encoded
from stml_semi.data.sources import reach
from stml_semi.data.sources.open_unlabeled import open_unlabeled
from stml_semi.data.sources.reach import Reach, fetched

IMAGE = miniature.jpeg(0, 0)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A table's folder, with an image in it, one beside it, and links."""
    folder = tmp_path / "table"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.jpg").write_bytes(IMAGE)
    (tmp_path / "secret.jpg").write_bytes(IMAGE)
    (folder / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "in.jpg").symlink_to(folder / "images" / "a.jpg")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    return folder


def read(path: str, folder: Path | None, *, urls: bool = False) -> bytes | str:
    """The bytes that a path opens, or why it opens none."""
    found = fetched(path, Reach(folder, urls))
    try:
        return encoded({"bytes": found["bytes"], "path": found["path"]})
    except BadImage as problem:
        return str(problem)


def test_files_below_the_folder_are_opened(folder):
    for path in ("images/a.jpg", "./images/../images/a.jpg", "in.jpg", str(folder / "images/a.jpg")):
        assert read(path, folder) == IMAGE


@pytest.mark.parametrize(
    "path",
    [
        "../secret.jpg",
        "images/../../secret.jpg",
        "out.jpg",
        "up/secret.jpg",
        "zero.jpg",
        "/dev/zero",
        "/etc/passwd",
        "a\0",
    ],
)
def test_what_leads_out_is_refused(path, folder):
    assert "leads out of the stream's folder" in str(read(path, folder))
    assert "opens no files of this machine" in str(read(path, None))


def test_a_pipe_is_no_image(folder):
    assert read("pipe.jpg", folder) == "not a regular file"


@pytest.mark.parametrize(
    "path",
    [
        *("file:///dev/zero", "FILE:///dev/zero", "local:///dev/zero", "file:/dev/zero::", "ftp://a/b.jpg"),
        *("zip://a.jpg::file:///tmp/a.zip", "filecache::hf://datasets/a/b/c.jpg", "memory://a", "s3://a/b.jpg"),
        *("simplecache::file:///etc/passwd", "zip://a::file:///x::hf://b"),
    ],
)
@pytest.mark.parametrize("urls", [False, True])
def test_other_addresses_are_refused(path, urls, folder):
    assert "only hf:// and, with --allow-urls, http(s):// are opened" in str(read(path, folder, urls=urls))


@pytest.mark.parametrize("path", ["hf://datasets/a/b/c.jpg", "zip://c.jpg::hf://datasets/a/b/c.zip"])
def test_the_storage_of_the_hub_is_opened(path, monkeypatch):
    asked = []

    def opening(path, mode):
        asked.append(path)
        return io.BytesIO(IMAGE)

    monkeypatch.setattr("fsspec.open", opening)
    assert read(path, None) == IMAGE
    assert asked == [path]


@pytest.fixture
def web() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if "gone" in self.path else 302 if "away" in self.path else 200)
            if "away" in self.path:
                self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            self.wfile.write(IMAGE)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_web_is_opened_by_the_flag_within_limits(web, monkeypatch):
    assert "URLs are opened with --allow-urls only" in str(read(f"{web}/a.jpg", None))
    assert read(f"{web}/a.jpg", None, urls=True) == IMAGE
    assert "HTTP status 404" in str(read(f"{web}/gone.jpg", None, urls=True))
    assert "HTTP status 302" in str(read(f"{web}/away.jpg", None, urls=True))
    monkeypatch.setattr(reach, "_MAX_URL_BYTES", len(IMAGE) - 1)
    assert "larger than" in str(read(f"{web}/a.jpg", None, urls=True))
    monkeypatch.setattr(reach, "_MAX_URL_BYTES", len(IMAGE))
    monkeypatch.setattr(reach, "_MAX_URL_SECONDS", -1.0)
    assert "takes longer than" in str(read(f"{web}/a.jpg", None, urls=True))


def test_a_stream_lists_what_it_did_not_open(folder, web, tmp_path):
    paths = ["images/a.jpg", "file:///dev/zero", "../secret.jpg", f"{web}/a.jpg"]
    (folder / "table.jsonl").write_text("".join(json.dumps({"path": path}) + "\n" for path in paths))
    options = {"stream": True, "image_column": None, "data_root": None, "seed": 0}
    for allow_urls, bad in ((False, 3), (True, 2)):
        stream = open_unlabeled(str(folder / "table.jsonl"), **options, allow_urls=allow_urls)
        table = live_images(stream, seed=0, pool_size=10, folder=tmp_path / f"pool{bad}").draw(0, None).table
        reasons = {}
        for row in range(4):
            try:
                encoded(table.source(row))
            except BadImage as problem:
                reasons[table.describe(row)] = str(problem)
        assert len(reasons) == bad
        assert reasons[f"{folder}/table.jsonl[1]"].startswith("refused: file:///dev/zero: of addresses, only hf://")
