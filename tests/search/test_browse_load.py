"""The browse page among slow, greedy and vanishing clients, and with an index that is damaged while it is shown."""

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from helpers.pictures import write_pictures
from PIL import Image

from stml_semi.data.images import BadImage
from stml_semi.runtime.errors import BadInput
from stml_semi.search.browse import finder as finder_module
from stml_semi.search.browse.connections import Room
from stml_semi.search.browse.finder import Finder
from stml_semi.search.browse.server import PageServer, serve
from stml_semi.search.embed import embed_source


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browse")
    write_pictures(folder / "photos", 4)
    embed_source("tiny-resnet", str(folder / "photos"), str(folder / "index"), num_workers=0)
    return Finder(str(folder / "index"), None, k=3)


@contextmanager
def serving(finder: Finder, *, seconds: float = 30.0, places: int = 256, uploads: int = 2**28) -> Iterator[PageServer]:
    with serve(finder, "127.0.0.1", 0) as server:
        server.seconds, server.places, server.uploads = seconds, Room(places), Room(uploads)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 24), "teal").save(file, "PNG")
    return file.getvalue()


def ask(server: PageServer, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("POST" if body is not None else "GET", path, body, {"Content-Type": "image/png"})
    response = connection.getresponse()
    reply = response.status, response.read()
    connection.close()
    return reply


def connect(server: PageServer, start: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=20)
    connection.sendall(start)
    return connection


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def post(length: int) -> bytes:
    head = f"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
    return head.encode()


SLOW = (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", post(5_000_000))
"""How a slow client begins: not at all, in the middle of its headers, in the middle of its file."""


@pytest.mark.parametrize("start", SLOW)
def test_one_byte_now_and_then_does_not_put_off_the_end_of_a_request(finder, start):
    with serving(finder, seconds=0.4) as server:
        connection, began = connect(server, start), time.monotonic()
        connection.settimeout(0.05)
        answer = None
        while answer is None and time.monotonic() < began + 5:
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                connection.sendall(b"a" if start else b"")
            except ConnectionError:
                answer = b""
        connection.close()
        assert answer is not None, "still connected"
        assert 0.3 < time.monotonic() - began < 3
        if start == SLOW[2] and answer:
            assert b" 408 " in answer.splitlines()[0]
        assert eventually(lambda: server.places.used == server.uploads.used == 0)


def test_100_slow_clients_hold_up_nobody(finder):
    with serving(finder) as server, ExitStack() as stack:
        for number in range(100):
            stack.enter_context(connect(server, SLOW[number % 3] + b"a" * (number % 2)))
        began = time.monotonic()
        for _ in range(5):
            assert ask(server, "/")[0] == ask(server, "/row/1")[0] == ask(server, "/search", png())[0] == 200
        assert time.monotonic() - began < 5
        assert server.places.used >= 100


def test_more_slow_clients_than_places_lose_them_to_others(finder):
    with serving(finder, places=10) as server, ExitStack() as stack:
        slow = [stack.enter_context(connect(server, SLOW[number % 3])) for number in range(30)]
        for _ in range(3):
            assert ask(server, "/")[0] == ask(server, "/picture/1")[0] == ask(server, "/search", png())[0] == 200
        assert slow[0].recv(10) == b""
        assert server.places.used <= 10


def test_a_connect_does_not_wait_for_the_system_to_try_again(finder):
    # The server accepts nobody here: all of them wait in the backlog of the system.
    with serve(finder, "127.0.0.1", 0) as server, ExitStack() as stack:
        began = time.monotonic()
        for _ in range(100):
            stack.enter_context(connect(server))
        assert time.monotonic() - began < 0.9


def test_all_uploads_together_take_bounded_memory(finder):
    with serving(finder, uploads=4 * 2**16) as server, ExitStack() as stack:
        greedy = stack.enter_context(connect(server, post(10 * 2**16) + bytes(3 * 2**16)))
        assert eventually(lambda: server.uploads.used == 4 * 2**16)
        assert ask(server, "/search", png())[0] == 200
        assert server.uploads.used <= 4 * 2**16
        assert greedy.recv(10) == b""  # It has been cut off.
        status, body = ask(server, "/search", bytes(5 * 2**16))
        assert (status, json.loads(body)["error"]) == (503, "too many files arrive at once; try again")
        assert ask(server, "/search", png())[0] == 200


def test_who_waits_for_the_server_is_not_cut_off():
    room = Room(2)
    ours, theirs = socket.socketpair()
    others = [socket.socket() for _ in range(2)]
    assert room.take(ours)
    with room.working(ours):
        assert room.take(others[0])
        assert room.take(others[1])  # In the place of the first.
        assert room.used == 2
        ours.send(b"x")
        assert theirs.recv(1) == b"x"
        with room.working(others[1]):
            assert not room.take(others[0])
        assert room.used == 2
    assert room.take(others[0])  # In the place of whoever has waited longer.
    room.leave(others[0])
    room.leave(others[0])
    assert room.used == 1
    for connection in (ours, theirs, *others):
        connection.close()


def test_few_images_are_decoded_at_once(monkeypatch, finder):
    now, most, lock = 0, 0, threading.Lock()

    def read_image(*args: object, **kwargs: object) -> Image.Image:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        raise BadImage("damaged")

    monkeypatch.setattr(finder, "_decoders", threading.BoundedSemaphore(2))
    monkeypatch.setattr(finder_module, "read_image", read_image)
    with serving(finder) as server:
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(ask(server, "/search", png())[0])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [422] * 8
    assert most == 2


def test_a_slow_decoder_holds_up_no_rows(monkeypatch, finder):
    going_on = threading.Event()

    def read_image(*args: object, **kwargs: object) -> Image.Image:
        going_on.wait(10)
        raise BadImage("damaged")

    monkeypatch.setattr(finder_module, "read_image", read_image)
    with serving(finder) as server:
        thread = threading.Thread(target=ask, args=(server, "/search", png()))
        thread.start()
        assert ask(server, "/row/0")[0] == 200
        assert not going_on.is_set()
        going_on.set()
        thread.join()


def test_an_index_that_was_damaged_meanwhile_is_said_without_its_folder(monkeypatch, capsys, finder):
    (part,) = (finder.index.folder / "images.lance" / "data").iterdir()
    data = part.read_bytes()
    with serving(finder) as server:
        part.write_bytes(b"torn")
        status, body = ask(server, "/row/1")
        part.write_bytes(data)
        error = json.loads(body)["error"]
        assert status == 500
        assert "--index index: images.lance cannot be read" in error
        assert "embed again into another folder" in error
        assert str(finder.index.folder.parent) not in error

        def encode(*args: object) -> torch.Tensor:
            raise BadInput("the model: 1 of 1 embeddings is not finite")

        monkeypatch.setattr(finder.retriever, "encode", encode)
        assert ask(server, "/search", png()) == (500, b'{"error": "the model: 1 of 1 embeddings is not finite"}')
        status, body = ask(server, "/row/4")
        assert (status, json.loads(body)["error"]) == (404, "the index has no row 4")
        assert ask(server, "/row/1")[0] == 200
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [
        (
            OSError("Couldn't deserialize thrift:\nno data"),
            404,
            "row 1 cannot be read (Couldn't deserialize thrift: no data)",
        ),
        (RuntimeError("a fault"), 500, "this request failed; the terminal where the page was started shows why"),
    ],
)
def test_an_image_that_fails_is_an_error_of_that_image(monkeypatch, capsys, finder, failure, status, said):
    def source(table: object, row: int) -> object:
        if row == 1:
            raise failure
        return original(row)

    original = finder.table.source
    monkeypatch.setattr(type(finder.table), "source", source)
    with serving(finder) as server:
        got, body = ask(server, "/picture/1")
        assert got == status
        assert said in json.loads(body)["error"]
        assert ask(server, "/picture/0")[0] == ask(server, "/row/1")[0] == 200
    assert ("RuntimeError: a fault" in capsys.readouterr().err) == (status == 500)


def test_who_hangs_up_leaves_nothing_on_the_terminal(capsys, finder):
    with serving(finder) as server:
        for start in (b"GET /picture/0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", post(100_000) + b"only this", SLOW[1]):
            connection = connect(server, start)
            # Not closed but reset: what is sent to it fails.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
        assert ask(server, "/")[0] == 200
        assert eventually(lambda: server.places.used == 0)
    assert capsys.readouterr().err == ""
