"""What a stream's `path` column may open.

Whoever wrote a stream is not trusted: it may come from the hub, and nobody reads a million rows. Its paths open files
below the folder of the table (after links are followed; none where the stream is a hub's) and the hub's own storage.
With --allow-urls they also open web addresses, each within limits of size and time. Everything else (devices, pipes,
absolute paths and `../` that lead out of the folder, other protocols) makes a bad image, listed with this reason.

A list on this machine that is opened as a table is the user's own: its paths may lead anywhere, to regular files.
"""

import os
import re
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib import error, request

from stml_semi.data.images import MAX_FILE_BYTES, REFUSED
from stml_semi.runtime.names import to_utf8

_HUB = re.compile(r"((zip|tar|gzip|bz2|xz|zstd)://[^:]*::)*hf://.+")
"""Files of the hub, and members of archives there."""
_WEB = re.compile(r"https?://.+", re.IGNORECASE)
_MAX_URL_BYTES = 2**26
_MAX_URL_SECONDS = 60.0
_SILENCE_SECONDS = 10.0
_READ_BYTES = 2**16


class Reach(NamedTuple):
    """What paths of one stream may open."""

    folder: Path | None
    """Of the table; None if it is not on this machine."""
    urls: bool
    """Whether web addresses are opened."""


def fetched(path: str, reach: Reach) -> dict[str, Any]:
    """The image that a stream names, as an `ImageTable` holds it: a path for files on this machine, else the bytes.

    Raises:
        OSError: the hub or the network fails.
    """
    if _HUB.fullmatch(path):
        return _of_hub(path)
    if _WEB.fullmatch(path):
        return _of_web(path) if reach.urls else _refused(path, "URLs are opened with --allow-urls only")
    if "://" in path or "::" in path:
        return _refused(path, "of addresses, only hf:// and, with --allow-urls, http(s):// are opened")
    if reach.folder is None:
        return _refused(path, "a stream of the hub opens no files of this machine")
    full, folder = os.path.join(reach.folder, path), os.path.realpath(reach.folder)
    try:
        inside = os.path.commonpath([folder, os.path.realpath(full)]) == folder
    except ValueError:  # A zero byte, or another drive.
        inside = False
    if inside:
        return {"bytes": None, "path": to_utf8(full)}
    return _refused(path, f"leads out of the stream's folder {folder}; keep its table above its images")


def _refused(path: str, reason: str) -> dict[str, Any]:
    return {"bytes": b"", "path": to_utf8(f"{REFUSED}{path[:200]}: {reason}")}


def _of_hub(path: str) -> dict[str, Any]:
    import fsspec

    with fsspec.open(path, "rb") as file:
        content: bytes = file.read(MAX_FILE_BYTES + 1)  # pyright: ignore[reportAttributeAccessIssue]
    return _refused(path, "too large") if len(content) > MAX_FILE_BYTES else {"bytes": content, "path": None}


def _of_web(url: str) -> dict[str, Any]:
    started, content = time.monotonic(), bytearray()
    try:
        with request.urlopen(url, timeout=_SILENCE_SECONDS) as answer:
            # One piece at a time, however small: reading a full block would wait for a server that sends byte by byte.
            while piece := answer.read1(_READ_BYTES):
                content += piece
                if len(content) > _MAX_URL_BYTES:
                    return _refused(url, f"larger than {_MAX_URL_BYTES // 2**20} MiB")
                if time.monotonic() - started > _MAX_URL_SECONDS:
                    return _refused(url, f"takes longer than {_MAX_URL_SECONDS:g} seconds")
    except error.HTTPError as problem:
        return _refused(url, f"HTTP status {problem.code}")
    except TimeoutError:
        return _refused(url, f"sends nothing for {_SILENCE_SECONDS:g} seconds")
    except ValueError as problem:
        return _refused(url, str(problem))
    return {"bytes": bytes(content), "path": None}
