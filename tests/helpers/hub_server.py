"""A hub on the loopback: the part of the Hugging Face hub's protocol that a model's upload and download need."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_loopbackTokenThatMustNeverLeak"


class Hub(ThreadingHTTPServer):
    """Repositories in memory. `failures` maps a part of a request to what happens to it: a status, or "cut"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[tuple[str, str]] = []
        self.stored: dict[str, bytes] = {}
        self.failures: dict[str, list[int | str]] = {}
        self.requests: list[str] = []
        self.bodies: list[bytes] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""

    def head(self, repo: str) -> str:
        return hashlib.sha1(f"{repo}{len(self.commits)}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_POST(self) -> None:
        self._handle("POST")

    def do_GET(self) -> None:
        self._handle("GET")

    def do_HEAD(self) -> None:
        self._handle("HEAD")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        body = self._body()
        hub.requests.append(f"{method} {path}")
        hub.bodies.append(body)
        for part, outcomes in hub.failures.items():
            if part in f"{method} {path}" and outcomes:
                outcome = outcomes.pop(0)
                if outcome == "cut":
                    self.close_connection = True
                    self.connection.close()
                    return
                return self._json({"error": f"made to fail ({outcome})"}, int(outcome))
        if method != "PUT" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if method == "POST":
            return self._post(path, body)
        if method == "PUT":  # Storage checks no login: the address itself is the permission.
            hub.stored[hashlib.sha256(body).hexdigest()] = body
            return self._json({})
        return self._get(path, method)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _post(self, path: str, body: bytes) -> None:
        hub = self.server
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            url = {"url": f"{hub.url}/{repo}"}
            if repo in hub.repos:
                return self._json({"error": "You already created this model repo", **url}, 409)
            hub.repos[repo], hub.private[repo] = {".gitattributes": b""}, asked.get("visibility") == "private"
            return self._json(url)
        if path == "/api/validate-yaml":
            metadata = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            nulls = [key for key, value in metadata.items() if value is None]
            errors = [{"message": f'"{key}" must not be null'} for key in nulls]
            return self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        if path.endswith("/info/lfs/objects/batch"):
            objects = []
            for entry in json.loads(body)["objects"]:
                known = entry["oid"] in hub.stored
                actions = {} if known else {"actions": {"upload": {"href": f"{hub.url}/storage/{entry['oid']}"}}}
                objects.append({**entry, **actions})
            return self._json({"transfer": "basic", "objects": objects})
        repo, action = self._repo(path, "/api/models/")
        if repo is None:
            return self._missing()
        if action.startswith("preupload/"):
            return self._json({"files": [self._mode(repo, entry) for entry in json.loads(body)["files"]]})
        if action.startswith("commit/"):
            self._commit(repo, [json.loads(line) for line in body.splitlines()])
            return self._json({"commitUrl": f"{hub.url}/{repo}/commit/x", "commitOid": hub.head(repo)})
        return self._missing()

    def _mode(self, repo: str, entry: dict[str, Any]) -> dict[str, Any]:
        large = entry["path"].endswith((".safetensors", ".png"))
        held = self.server.repos[repo].get(entry["path"])
        oid = None
        if held is not None:  # As the client does: sha256 of large files, git's own for the others.
            blob = b"blob %d\0" % len(held) + held
            oid = hashlib.sha256(held).hexdigest() if large else hashlib.sha1(blob).hexdigest()
        return {"path": entry["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.server.repos[repo])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert line["key"] == "header", line
        self.server.repos[repo] = files
        self.server.commits.append((repo, lines[0]["value"]["summary"]))

    def _get(self, path: str, method: str) -> None:
        hub = self.server
        repo, action = self._repo(path, "/api/models/")
        if repo is not None:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in hub.repos[repo].items()
            ]
            if action.startswith("tree/"):
                return self._json(entries)
            if action.startswith("xet-write-token/"):  # Content-addressed storage that lets nobody in.
                place = {"X-Xet-Cas-Url": hub.url, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": "4102444800"}
                body = {"casUrl": hub.url, "accessToken": "x", "exp": 4102444800}
                return self._answer(json.dumps(body).encode(), 200, place, send=True)
            siblings = [{"rfilename": entry["path"]} for entry in entries]
            info = {"_id": "1", "id": repo, "modelId": repo, "sha": hub.head(repo), "siblings": siblings}
            return self._json({**info, "private": hub.private[repo], "tags": [], "downloads": 0, "likes": 0})
        repo, action = self._repo(path, "/")
        name = "/".join(action.split("/")[2:])
        if repo is None or not action.startswith("resolve/") or name not in hub.repos[repo]:
            return self._missing()
        content = hub.repos[repo][name]
        self._answer(
            content,
            200,
            {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": hub.head(repo)},
            send=method == "GET",
        )

    def _repo(self, path: str, prefix: str) -> tuple[str | None, str]:
        parts = path.removeprefix(prefix).split("/")
        repo = "/".join(parts[:2])
        return (repo, "/".join(parts[2:])) if path.startswith(prefix) and repo in self.server.repos else (None, "")

    def _missing(self) -> None:
        self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, send=True)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"}, send=True)

    def _answer(self, content: bytes, status: int, headers: dict[str, str], *, send: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if send and self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
