"""Files that are whole or not there, and lines of JSON."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields the name of a temporary file beside `path`, which takes its place when the block ends without an error.

    A process that is killed here, or a full disk, leaves what was there before; what such a process had begun is
    removed by the next one that writes the file. A link stays, and so does a device or a pipe: they
    are written to, not replaced.

    Args:
        path: the file.
        durable: bring the data to the disk before the rename.
    """
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    partial = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.partial")
    remove_abandoned(path.parent, glob.escape(path.name))
    try:
        yield partial
        share(partial)
        if durable:
            flush(partial)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, on the same disk, which is removed in the end.

    What a killed process left is removed by the next one that works on `path`.
    """
    folder = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.partial")
    remove_abandoned(path.parent, glob.escape(path.name))
    shutil.rmtree(folder, ignore_errors=True)  # In a container, a killed process may have had the same number.
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def share(path: Path) -> None:
    """Gives a file, or all that is in a folder, the permissions of any new one: safetensors shuts others out.

    What a new file may be is found by making one: the umask of a process cannot be read without changing it, and a
    folder may have rules of its own.
    """
    files = [inner for inner in path.rglob("*") if inner.is_file()] if path.is_dir() else [path]
    private = [file for file in files if not file.stat().st_mode & 0o077]
    if not private:
        return
    probe = private[0].with_name(f"{private[0].name}.mode")
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in private:
        file.chmod(mode)


_ABANDONED_SECONDS = 24 * 3600.0
"""After this a temporary file of another machine, whose processes cannot be seen from here, counts as left behind."""


def _host() -> str:
    return platform.node().replace(".", "-") or "unknown"


def remove_abandoned(folder: Path, name: str = "*") -> None:
    """Removes temporary files and folders whose writer is gone.

    Args:
        folder: where they are.
        name: of the files that they would have become, as a pattern.
    """
    for left in folder.glob(f".{name}.*.partial"):
        import psutil  # Hardly ever needed.

        host, pid = left.name.split(".")[-3:-1]
        with contextlib.suppress(OSError):
            mine = host == _host() and pid.isdecimal()
            age = time.time() - left.stat().st_mtime
            if age > _ABANDONED_SECONDS or (mine and not psutil.pid_exists(int(pid))):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a file in one go. Names in it that are not UTF-8 are written as JSON escapes them, for JSON to read."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def flush(path: Path) -> None:
    """Brings a file or folder to the disk, so that a rename never outruns the data it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Digest of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------ lines of JSON


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without those that a killed process or a full disk left unfinished; [] without a file."""
    if not path.is_file():
        return []
    lines = []
    # Only "\n" ends a line: `splitlines` would also cut at characters that JSON leaves as they are (U+2028).
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]  # Half of a number is a number.


def write_json_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a log in one go."""
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines(map(_json_line, lines))


def append_json_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Adds lines to a log; what a killed process left unfinished stays a line of its own."""
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(b"".join(map(_json_line, lines)))


def _json_line(line: Mapping[str, Any]) -> bytes:
    """One line, readable by people; a name that is not UTF-8 is escaped."""
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(line).encode() + b"\n"
