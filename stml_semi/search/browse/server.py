"""`browse`: a page on this machine where one drops an image and sees its neighbors.

The standard library's server is enough for one person at one machine, and nothing else has to be installed or kept up
to date. What it serves is a fixed list: no part of an address ever becomes a path. Other sites that the browser visits
cannot use it: their requests are known by Host (DNS rebinding), Origin and Sec-Fetch-Site, and are refused.
"""

import contextlib
import io
import ipaddress
import re
import socket
import socketserver
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from stml_semi.data.images import BadImage
from stml_semi.runtime.errors import BadInput
from stml_semi.search.browse.answers import Answer, fixed_pages, json_answer, neighbors_answer
from stml_semi.search.browse.connections import Arriving, Room
from stml_semi.search.browse.finder import FORMATS, MAX_BYTES, MOST_AVERAGED, MOST_NEIGHBORS, Finder

_SECONDS = 30.0
"""For a whole request to arrive, and for its answer to be taken."""
_CONNECTIONS = 256
"""At once: a thread each."""
_UPLOADED_BYTES = 256 * 2**20
"""Of all uploads that are there in part or in full."""
_PART = 2**16
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_ROW = re.compile(r"/picture/(\d{1,12})|/row/(\d{1,12}(?:,\d{1,12})*)", re.ASCII)
_OPTIONS = re.compile(r"(k|rows|class)=(\d{1,12}(?:,\d{1,12})*)", re.ASCII)


class Refused(Exception):
    """A request that is not answered; the message is for the person at the page."""

    def __init__(self, status: HTTPStatus, message: str, *, allow: str = "") -> None:
        super().__init__(message)
        self.status, self.allow = status, allow


class PageServer(ThreadingHTTPServer):
    """Serves one index until it is shut down."""

    daemon_threads = True
    request_queue_size = _CONNECTIONS
    """Of the system: where it is full, clients try again only after a second."""
    seconds = _SECONDS

    def __init__(self, finder: Finder, host: str, port: int) -> None:
        """
        Args:
            finder: answers.
            host: address or name to listen on.
            port: 0 takes any free one.

        Raises:
            OSError: the address cannot be listened on.
        """
        self.finder, self.host = finder, host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.pages = fixed_pages(finder)
        self.places, self.uploads = Room(_CONNECTIONS), Room(_UPLOADED_BYTES)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without the name look-up of the base class, which may take seconds and is not needed."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is a place for a new connection."""
        return self.places.take(request)

    def shutdown_request(self, request: Any) -> None:
        """Gives back the place of a connection, however it ended."""
        self.places.leave(request)
        super().shutdown_request(request)

    @property
    def url(self) -> str:
        """Where the page is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_port}/"

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server.

        A name that somebody else's DNS server resolves to this machine does not: only numbers, localhost, and the name
        that was asked for.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in ("localhost", self.host.lower()):
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def serve(finder: Finder, host: str, port: int) -> PageServer:
    """A server that listens; `serve_forever` answers.

    Raises:
        BadInput: the address cannot be listened on.
    """
    try:
        return PageServer(finder, host, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(
            f"--host {host} --port {port}: {reason}; choose another port, or --port 0 for any free one"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Options(NamedTuple):
    k: int | None
    """Neighbors; None if the request does not say."""
    rows: list[int]
    """Of the index, averaged with an upload."""
    label: int | None
    """Number of the class that neighbors are of."""


def _options(query: str) -> _Options:
    """What a request asks for beside its path.

    Raises:
        Refused: it is not what the page sends.
    """
    found = [_OPTIONS.fullmatch(part) for part in query.split("&")] if query else []
    given = {part[1]: part[2] for part in found if part}
    k = given.get("k", "1")
    label = given.get("class", "0")
    if len(given) < len(found) or "," in k + label or not 1 <= int(k) <= MOST_NEIGHBORS:
        raise Refused(HTTPStatus.BAD_REQUEST, f"k is a number from 1 to {MOST_NEIGHBORS}")
    return _Options(
        int(k) if "k" in given else None,
        _rows(given["rows"]) if "rows" in given else [],
        int(label) if "class" in given else None,
    )


def _rows(text: str) -> list[int]:
    rows = list(dict.fromkeys(map(int, text.split(","))))
    if len(rows) > MOST_AVERAGED:
        raise Refused(HTTPStatus.BAD_REQUEST, f"at most {MOST_AVERAGED} images make a query")
    return rows


class _Handler(BaseHTTPRequestHandler):
    server: PageServer  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version, sys_version = "stml-semi", ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(Arriving(self.connection, self.server.seconds))

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # Whoever hangs up wants no answer.
            super().handle()

    def _respond(self) -> None:
        allow = ""
        try:
            answer = self._answer()
        except Refused as error:
            answer, allow = json_answer({"error": str(error)}, error.status), error.allow
        except BadInput as error:  # Of an index that was damaged since it was opened.
            answer = json_answer({"error": self._without_folder(str(error))}, HTTPStatus.INTERNAL_SERVER_ERROR)
        except Exception:
            traceback.print_exc()
            text = "this request failed; the terminal where the page was started shows why"
            answer = json_answer({"error": text}, HTTPStatus.INTERNAL_SERVER_ERROR)
        self.connection.settimeout(self.server.seconds)  # For all of what is sent, not for each part.
        self.send_response(answer.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if allow:
            self.send_header("Allow", allow)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _respond

    def _answer(self) -> Answer:
        asked = urlsplit(self.path)
        path = asked.path if self.path.startswith("/") else ""
        self._check_sender(path)
        if path == "/search":
            self._check_method("POST")
            return self._search(_options(asked.query))
        known = _ROW.fullmatch(path)
        if not known and path not in self.server.pages:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        self._check_method("GET", "HEAD")
        if not known:
            return self.server.pages[path]
        with self.server.places.working(self.connection):
            return self._of_rows(known[1], known[2], _options(asked.query))

    def _of_rows(self, picture: str | None, rows: str, options: _Options) -> Answer:
        try:
            if picture is None:
                return neighbors_answer(self.server.finder.by_rows(_rows(rows), options.k, options.label))
            return Answer(*self.server.finder.thumbnail(int(picture)))
        except LookupError as error:
            raise Refused(HTTPStatus.NOT_FOUND, str(error)) from None

    def _check_sender(self, path: str) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self.server.knows(hosts[0]):
            raise Refused(HTTPStatus.FORBIDDEN, f"this page is at {self.server.url} only")
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        followed = path == "/" and self.headers.get("Sec-Fetch-Mode") == "navigate"
        if (origin and urlsplit(origin).netloc != hosts[0]) or (site not in ("none", "same-origin") and not followed):
            raise Refused(HTTPStatus.FORBIDDEN, "other sites cannot use this page")

    def _check_method(self, *methods: str) -> None:
        if self.command not in methods:
            allow = ", ".join(methods)
            raise Refused(
                HTTPStatus.METHOD_NOT_ALLOWED, f"{self.command} is not allowed here, only {allow}", allow=allow
            )

    def _search(self, options: _Options) -> Answer:
        kind = self.headers.get_content_type()
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,15}", length, re.ASCII):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the size of the file is missing")
        if int(length) > MAX_BYTES:
            self._discard(int(length))
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the file has {int(length) / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20} are taken",
            )
        places, uploads = self.server.places, self.server.uploads
        try:
            data = self._read(int(length))
            if not kind.startswith("image/"):
                raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"not an image ({', '.join(FORMATS)})")
            with places.working(self.connection), uploads.working(self.connection):
                finder = self.server.finder
                return neighbors_answer(finder.by_picture(data, options.rows, options.k, options.label))
        except LookupError as error:
            raise Refused(HTTPStatus.NOT_FOUND, str(error)) from None
        except BadImage as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        finally:
            uploads.leave(self.connection)

    def _read(self, length: int) -> bytes:
        data = bytearray()
        try:
            while left := length - len(data):
                if not self.server.uploads.take(self.connection, min(left, _PART)):
                    self._discard(left)
                    raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many files arrive at once; try again")
                if not (part := self.rfile.read(min(left, _PART))):
                    raise ConnectionAbortedError
                data += part
        except TimeoutError:
            text = f"the file did not arrive within {self.server.seconds:g} seconds"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, text) from None
        except ConnectionError:
            raise Refused(HTTPStatus.BAD_REQUEST, "the file did not arrive whole") from None
        return bytes(data)

    def _discard(self, length: int) -> None:
        """Browsers read an answer only after they have sent a file; what is far too large is cut off all the same."""
        left = min(length, 10 * MAX_BYTES)
        try:
            while left > 0 and (part := self.rfile.read(min(left, _PART))):
                left -= len(part)
        except OSError:  # The sender was too slow, or is gone: it gets the same answer.
            return

    def _without_folder(self, message: str) -> str:
        """A message without where the index is: the page need not tell how the disk is laid out."""
        folder = self.server.finder.index.folder
        return message.replace(str(folder), folder.name) if folder.is_absolute() else message

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal belongs to whoever started the page."""
