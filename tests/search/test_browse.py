"""The browse page from the side of whoever would misuse it; tests/test_browser.py looks at it as people do."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import call
from helpers.pictures import write_pictures
from helpers.real_runs import ROOT
from PIL import Image

from stml_semi.data.images import BadImage
from stml_semi.search.browse.finder import MAX_BYTES, Finder
from stml_semi.search.browse.server import PageServer, is_loopback, serve
from stml_semi.search.embed import embed_source
from stml_semi.search.index import Index


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images and their index; one image is none, and holds what nobody shall see."""
    folder = tmp_path_factory.mktemp("browse")
    for seed in range(3):
        write_pictures(folder / "photos" / str(seed), 4, seed=seed)
    (folder / "photos" / "1" / "secret.png").write_text("the secret")
    embed_source("tiny-resnet", str(folder / "photos"), str(folder / "index"), num_workers=0)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serve(Finder(str(folder / "index"), None, k=3), "127.0.0.1", 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


class Reply:
    def __init__(self, server: PageServer, method: str, path: str, body: Any = None, **headers: str | None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Host": f"127.0.0.1:{server.server_port}", **names}.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None and "Content-Length" not in names:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        self.status, self.headers, self.body = response.status, response.headers, response.read()
        connection.close()

    @property
    def error(self) -> str:
        return json.loads(self.body)["error"]


def upload(server: PageServer, body: bytes, kind: str = "image/png", path: str = "/search", **headers: str) -> Reply:
    return Reply(server, "POST", path, body, Content_Type=kind, **headers)


def png(width: int = 24, height: int = 24) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


def test_an_uploaded_picture_gets_its_neighbors_and_leaves_nothing(folder, server):
    before = sorted(path for path in folder.rglob("*"))
    reply = upload(server, (folder / "photos" / "2" / "1.png").read_bytes())
    assert reply.status == 200
    hits = json.loads(reply.body)["hits"]
    assert [hit["name"].split("/")[0] for hit in hits] == ["2", "2", "2"]
    assert hits[0]["name"] == "2/1.png"
    assert hits[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert str(folder).encode() not in reply.body
    more = Reply(server, "GET", f"/row/{hits[0]['row']}")
    assert hits[0]["row"] not in [hit["row"] for hit in json.loads(more.body)["hits"]]
    assert sorted(path for path in folder.rglob("*")) == before


def test_a_request_says_how_many_neighbors_it_wants(folder, server):
    assert [len(json.loads(Reply(server, "GET", f"/row/0{query}").body)["hits"]) for query in ("", "?k=5")] == [3, 5]
    body = (folder / "photos" / "2" / "1.png").read_bytes()
    reply = Reply(server, "POST", "/search?k=7", body, Content_Type="image/png")
    assert len(json.loads(reply.body)["hits"]) == 7
    for wrong in ("?k=0", "?k=201", "?k=x", "?k=1&k=2", "?n=3", "?k=" + 9 * "9", "?k=1,2", "?rows=", "?k=2&"):
        reply = Reply(server, "GET", f"/row/0{wrong}")
        assert (reply.status, reply.error) == (400, "k is a number from 1 to 200")


def test_several_images_are_searched_for_by_their_mean(folder, server):
    hits = json.loads(Reply(server, "GET", "/row/0,11?k=5").body)["hits"]
    index = Index.open(str(folder / "index"))
    part = index.part(0)
    places = {int(row): place for place, row in enumerate(part.rows)}
    mean = part.embeddings[[places[0], places[11]]].mean(0)
    cosines = torch.cosine_similarity(part.embeddings, mean[None])
    order = [int(part.rows[place]) for place in cosines.argsort(descending=True)]
    assert [hit["row"] for hit in hits] == [row for row in order if row not in (0, 11)][:5]
    assert hits[0]["similarity"] == pytest.approx(float(cosines[places[hits[0]["row"]]]), abs=1e-5)
    # An upload that is a row of the index counts like this row; only the rows are left out.
    image = Path(index.images([0])[0]).read_bytes()
    reply = Reply(server, "POST", "/search?rows=11&k=6", image, Content_Type="image/png")
    both = [hit["row"] for hit in json.loads(reply.body)["hits"]]
    assert sorted(both) == sorted([0, *[hit["row"] for hit in hits]])
    for wrong, status, said in [
        ("0,99", 404, "the index has no row 99"),
        (",".join(map(str, range(21))), 400, "at most 20 images make a query"),
    ]:
        reply = Reply(server, "GET", f"/row/{wrong}")
        assert (reply.status, reply.error) == (status, said)
        assert upload(server, image, path=f"/search?rows={wrong}").error == said


def test_neighbors_of_one_class_alone(folder, server):
    assert b'<option value="1">1</option>' in Reply(server, "GET", "/").body
    hits = json.loads(Reply(server, "GET", "/row/0?k=9&class=2").body)["hits"]
    assert [hit["name"].split("/")[0] for hit in hits] == ["2"] * 4
    every = json.loads(Reply(server, "GET", "/row/0?k=20").body)["hits"]
    assert hits == [hit for hit in every if hit["name"].startswith("2/")]
    body = (folder / "photos" / "0" / "1.png").read_bytes()
    (first, *_) = json.loads(upload(server, body, path="/search?k=2&class=1").body)["hits"]
    assert first["name"].startswith("1/")
    reply = Reply(server, "GET", "/row/0?class=3")
    assert (reply.status, reply.error) == (404, "there is no class 3")
    assert Reply(server, "GET", "/row/0?class=1,2").status == 400


def test_what_has_no_classes_has_no_choice_of_them(tmp_path):
    write_pictures(tmp_path / "photos", 4)
    embed_source("tiny-resnet", str(tmp_path / "photos"), str(tmp_path / "index"), num_workers=0)
    with serve(Finder(str(tmp_path / "index"), None, k=3), "127.0.0.1", 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        assert b"Class" not in Reply(running, "GET", "/").body
        assert Reply(running, "GET", "/row/0?class=0").error == "there is no class 0"
        running.shutdown()


def test_pictures_are_served_by_row_and_only_as_pictures(server):
    reply = Reply(server, "GET", "/picture/0")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "image/webp")
    assert Image.open(io.BytesIO(reply.body)).size == (24, 24)
    head = Reply(server, "HEAD", "/picture/0")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["Content-Length"]) == len(reply.body)
    secret = Reply(server, "GET", "/picture/8")  # What the index has as an image, but is none.
    assert secret.status == 404
    assert "cannot be read" in secret.error
    assert b"the secret" not in secret.body


@pytest.mark.parametrize(
    "path",
    [
        *("/../../../../etc/passwd", "/picture/../../etc/passwd", "/picture/%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
        *("//etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/etc/passwd", "*"),
        *("/picture//etc/passwd", "/picture/0/../../x", "/picture/-1", "/picture/99", "/picture/1e3", "/picture/٣"),
        *(
            "/picture/999999999999999999999",
            "/row/8",
            "/row/99",
            "/row/0x1",
            "/page.html",
            "/style.css/..",
            "/picture/",
        ),
    ],
)
def test_no_address_becomes_a_path(server, path):
    reply = Reply(server, "GET", path.encode().decode("latin-1") if path.isascii() else "/picture/%D9%A3")
    assert reply.status == 404
    assert b"root:" not in reply.body
    assert reply.error


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"no image", "image/png", 422, "not an image"),
        (b"", "image/png", 422, "empty file; this page takes JPEG"),
        (png()[:60], "image/png", 422, ""),
        (png(), "text/html", 415, "not an image"),
        (png(), "multipart/form-data; boundary=x", 415, "not an image"),
        (png(9000, 9000), "image/png", 422, "too large (9000 x 9000 pixels take 0.57 GB of memory, at most 0.35)"),
        (png(300, 1), "image/png", 422, "too narrow"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml", 422, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/eps", 422, "not an image"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_reason(server, body, kind, status, said):
    reply = upload(server, body, kind)
    assert reply.status == status
    assert said in reply.error


def test_size_is_checked_before_anything_is_kept(server):
    reply = upload(server, bytes(MAX_BYTES + 1))
    assert reply.status == 413
    assert "at most 20 are taken" in reply.error
    for length in (None, "-1", "1e3", "٣".encode().decode("latin-1")):
        assert Reply(server, "POST", "/search", None, Content_Length=length).status == 411
    connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=60)
    host = f"Host: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: {MAX_BYTES}\r\n\r\nonly this"
    connection.sendall(f"POST /search HTTP/1.1\r\n{host}".encode())
    connection.shutdown(socket.SHUT_WR)
    assert b"400" in connection.recv(4096).splitlines()[0]
    connection.close()
    assert upload(server, png()).status == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/search", "POST"),
        ("PUT", "/search", "POST"),
        ("POST", "/", "GET, HEAD"),
        ("DELETE", "/row/0", "GET, HEAD"),
    ],
)
def test_other_methods_are_named(server, method, path, allow):
    reply = Reply(server, method, path)
    assert (reply.status, reply.headers["Allow"]) == (405, allow)
    assert f"{method} is not allowed here" in reply.error


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": None}, 403),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "[::1]:{port}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
    ],
)
def test_other_sites_cannot_use_it(server, headers, status):
    headers = {name: value and value.format(port=server.server_port) for name, value in headers.items()}
    assert Reply(server, "GET", "/picture/0", **headers).status == status
    assert Reply(server, "POST", "/search", png(), Content_Type="image/png", **headers).status == status


def test_a_link_to_the_page_works_and_the_page_runs_nothing_foreign(server):
    reply = Reply(server, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")
    assert reply.status == 200
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    page = reply.body.decode()
    assert not re.search(r"https?://| style=| on[a-z]+=|<script>|<style>", page)
    for address in re.findall(r'(?:src|href)="(/[^"]*)"', page):
        assert Reply(server, "GET", address).status == 200


def test_an_index_without_its_pictures_still_answers(folder, tmp_path):
    embed_source("tiny-resnet", str(folder / "photos" / "0"), str(tmp_path / "index"), num_workers=0)
    text = (tmp_path / "index" / "index.json").read_text()
    (tmp_path / "index" / "index.json").write_text(text.replace(str(folder), str(tmp_path / "moved")))
    finder = Finder(str(tmp_path / "index"), None, k=2)
    assert len(finder.by_rows([0])) == 2
    with pytest.raises(LookupError):
        finder.thumbnail(0)
    with pytest.raises(BadImage):
        finder.by_picture(b"")
    with serve(finder, "127.0.0.1", 0) as server:
        assert "indexed images have moved or are gone" in server.pages["/"].body.decode()


def test_who_can_reach_it():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [
        *(True, True, True, False, False)
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--index", "nothing"], "--index nothing: holds no index"),
        (["--index", "{index}", "--model", "missing"], "--model missing: "),
        (["--index", "{index}", "--host", "no such host"], "--host no such host --port 8765: "),
        (["--index", "{index}", "--port", "{port}"], "choose another port"),
    ],
)
def test_what_cannot_start_is_one_line(monkeypatch, capsys, folder, server, flags, said):
    values = {"index": folder / "index", "port": server.server_port}
    code, out, err = call(monkeypatch, capsys, "browse", *(flag.format(**values) for flag in flags))
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(folder: Path):
    command = [sys.executable, str(ROOT / "cli.py"), "browse", "--index", str(folder / "index"), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # A suite that a script started in the background ignores Ctrl+C, and so would what it starts.
    running = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/ \(Ctrl\+C ends it\)\n", line)[1])  # type: ignore[index]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/picture/3")
            assert connection.getresponse().status == 200
            connection.close()
            running.send_signal(signal.SIGINT)
            assert running.communicate(timeout=60) == ("", "")
        finally:
            running.kill()
    assert running.returncode == 0
