"""Which images a folder holds: read by listing directories alone, and remembered where that took long.

A directory's time of change moves whenever an entry comes, goes or is renamed. So a remembered listing is taken only
where device, number and time of the directory are those of then, one directory at a time: what changed is read again,
the rest is not. Opening a million images a second time costs one look at each directory.
"""

import contextlib
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from stml_semi.runtime.files import replacing

_WORTH_KEEPING = 20_000
"""Listings with fewer images than this are read faster than they are remembered."""
_CLOCK_NS = 2_000_000_000
"""Times of change this young are not trusted: file systems round them, so another change may have the same one."""
_PATIENCE = 1.0
"""Seconds after which progress is told."""


class Listing(NamedTuple):
    """What is directly in a directory."""

    identity: tuple[int, int]
    """Device and number."""
    changed: int
    """Time of change in nanoseconds; 0 if it cannot be trusted."""
    files: list[str]
    """Names of images, sorted."""
    folders: list[str]
    """Names of directories, and of links to some, sorted."""
    skipped: dict[str, int]
    """Lowercase extension -> number of files that are not read; "" for those without one."""


class FolderIndex:
    """The images of a folder, for as long as it is open; a context manager, which keeps what took long to find."""

    def __init__(self, folder: str | Path) -> None:
        from stml_semi.data.images import readable_extensions

        self.folder, self.extensions = Path(folder), readable_extensions()
        self._known: dict[str, Listing] | None = None
        self._seen: dict[str, Listing] = {}
        self._num_read = 0
        self._progress = _Progress(str(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._progress.stop()
        if kind is None and self._num_read >= _WORTH_KEEPING:
            self._keep()

    def folders(self) -> list[Path]:
        """Directories in the folder, by name."""
        return [self.folder / name for name in self._listing(str(self.folder)).folders]

    def files(self, folder: Path, *, deep: bool = True, outside: Path | None = None) -> Iterator[str]:
        """Image files in a folder, in order of their names. A folder that links reach twice is read once.

        Args:
            folder: this index's, or one below it.
            deep: whether directories below count.
            outside: a directory that is left out, if links lead there.

        Raises:
            OSError: a directory that cannot be listed.
        """
        seen = {_identity(os.stat(outside))} if outside else set()
        todo = [str(folder)]
        while todo:
            current = todo.pop()
            listing = self._listing(current)
            if listing.identity in seen:
                continue
            seen.add(listing.identity)
            yield from (os.path.join(current, name) for name in listing.files)
            if deep:
                todo += [os.path.join(current, name) for name in reversed(listing.folders)]

    def skipped(self) -> Counter[str]:
        """Files in all directories that were listed so far, that are not read because of their kind, by extension."""
        once = {listing.identity: listing for listing in self._seen.values()}
        total = Counter[str]()
        for listing in once.values():
            total.update(listing.skipped)
        return total

    def _listing(self, folder: str) -> Listing:
        if folder not in self._seen:
            status = os.stat(folder)
            known = self._remembered().get(folder)
            if known is None or (known.identity, known.changed) != (_identity(status), status.st_mtime_ns):
                known = self._read(folder, status)
                self._num_read += len(known.files)
            self._seen[folder] = known
            self._progress.advance(len(known.files))
        return self._seen[folder]

    def _read(self, folder: str, status: os.stat_result) -> Listing:
        trusted = status.st_mtime_ns < time.time_ns() - _CLOCK_NS
        files, folders, skipped = [], [], Counter[str]()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                extension = os.path.splitext(name)[1].lower()
                picture = extension in self.extensions
                # Where a link called like an image leads is asked when it is read: asking costs a look at each file.
                if _is_folder(entry, follow=not picture):
                    folders.append(name)
                elif picture:
                    files.append(name)
                else:
                    skipped[extension] += 1
        changed = status.st_mtime_ns if trusted else 0
        return Listing(_identity(status), changed, sorted(files), sorted(folders), dict(skipped))

    # ------------------------------------------------------------------ what is remembered

    def _place(self) -> Path:
        from datasets import config

        # Extensions are part of the name: another Pillow may know other formats.
        words = [str(self.folder.absolute()), str(self.folder), *sorted(self.extensions)]
        key = hashlib.sha256("\0".join(words).encode(errors="surrogateescape")).hexdigest()
        return Path(config.HF_DATASETS_CACHE) / "stml-semi-folders" / f"{key[:32]}.arrow"

    def _remembered(self) -> dict[str, Listing]:
        if self._known is None:
            self._known = {}
            with contextlib.suppress(OSError, ValueError, KeyError):  # Not there, or not whole: it is read anew.
                self._known = _load(self._place())
        return self._known

    def _keep(self) -> None:
        place = self._place()
        with contextlib.suppress(OSError):  # A cache that cannot be written costs time, not results.
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as partial:
                _save(partial, self._seen)


def _save(path: Path, listings: dict[str, Listing]) -> None:
    import pyarrow
    from pyarrow import feather

    rows = [(folder, listing) for folder, listing in listings.items() if listing.changed]
    names = dict.fromkeys(("files", "folders", "skipped"), pyarrow.list_(pyarrow.binary()))
    table = {
        "folder": pyarrow.array([os.fsencode(folder) for folder, _ in rows], pyarrow.binary()),
        "device": pyarrow.array([listing.identity[0] for _, listing in rows], pyarrow.uint64()),
        "number": pyarrow.array([listing.identity[1] for _, listing in rows], pyarrow.uint64()),
        "changed": pyarrow.array([listing.changed for _, listing in rows], pyarrow.int64()),
    }
    for name, kind in names.items():
        table[name] = pyarrow.array([[os.fsencode(n) for n in getattr(listing, name)] for _, listing in rows], kind)
    counts = [list(listing.skipped.values()) for _, listing in rows]
    table["num_skipped"] = pyarrow.array(counts, pyarrow.list_(pyarrow.int64()))
    feather.write_feather(pyarrow.table(table), path, compression="lz4")


def _load(path: Path) -> dict[str, Listing]:
    from pyarrow import feather

    table = feather.read_table(path)
    names = ("folder", "device", "number", "changed", "files", "folders", "skipped", "num_skipped")
    columns = [table[name].to_pylist() for name in names]
    return {
        os.fsdecode(folder): Listing(
            (device, number),
            changed,
            _decoded(files),
            _decoded(folders),
            dict(zip(_decoded(skipped), counts, strict=True)),
        )
        for folder, device, number, changed, files, folders, skipped, counts in zip(*columns, strict=True)
    }


def _decoded(names: list[bytes]) -> list[str]:
    return [os.fsdecode(name) for name in names]


def _is_folder(entry: os.DirEntry[str], *, follow: bool) -> bool:
    with contextlib.suppress(OSError):  # A link to itself.
        return entry.is_dir(follow_symlinks=follow)
    return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class _Progress:
    """On standard error, once it takes long: how many were found is known, how many there are is not."""

    def __init__(self, folder: str) -> None:
        self.what, self.found, self.started, self.said = f"indexing {folder}", 0, time.monotonic(), 0.0
        self.enabled = int(os.environ.get("RANK", 0)) == 0  # One process of a run talks.
        self.bar: Any = None

    def advance(self, count: int) -> None:
        self.found += count
        now = time.monotonic() - self.started
        if not self.enabled or now < _PATIENCE:
            return
        if sys.stderr.isatty():
            self._bar().update(0, completed=self.found)
        elif now > 2 * self.said:  # Ever more rarely.
            self.said = now
            from stml_semi.runtime.terminal_text import visible

            print(f"{visible(self.what)}: {self.found:,} images after {now:.0f}s", file=sys.stderr)

    def _bar(self) -> Any:
        if self.bar is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            from stml_semi.runtime.terminal_text import PlainConsole

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed:,}"))
            self.bar = Progress(*columns, TimeElapsedColumn(), console=PlainConsole(stderr=True))
            self.bar.add_task(self.what, total=None)
            self.bar.start()
        return self.bar

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
