"""Which files a source names: the path of that very name, or what matches it as a pattern.

A path that exists is that path, whatever characters its name has. Libraries that take names for patterns get none.
"""

import fnmatch
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stml_semi.runtime.errors import BadInput

if TYPE_CHECKING:
    from datasets import IterableDataset
    from datasets.data_files import DataFilesDict


def exists(source: str) -> bool:
    return os.path.exists(os.path.expanduser(source))


def is_pattern(source: str) -> bool:
    return glob.has_magic(source) and not exists(source)


def matching(source: str) -> Iterator[Path]:
    """The path of that name, if there is one; else what matches the pattern, in order: `*`, `?`, `[a-z]`, `**`.

    Folders in a pattern are names where they exist: in `scans [2024]/*.tar` only the star is a pattern.
    """
    path = Path(source).expanduser()
    if exists(source):
        yield path
    elif glob.has_magic(source):
        anchor = Path(path.anchor)
        yield from dict.fromkeys(_expanded(anchor, path.relative_to(anchor).parts))


def _expanded(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if os.path.lexists(folder / part):
        yield from _expanded(folder / part, rest)
    elif part == "**":
        for inside in _below(folder, {_identity(above) for above in folder.resolve().parents}):
            yield from _expanded(inside, rest)
    elif glob.has_magic(part):
        for inside in _visible(folder, hidden=part.startswith(".")):
            if fnmatch.fnmatchcase(inside.name, part):
                yield from _expanded(inside, rest)


def _below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """A folder and those below it. Links are followed; a folder that they reach again, or one above, is left out."""
    if _identity(folder) in seen:
        return
    seen.add(_identity(folder))
    yield folder
    for inside in _visible(folder):
        if inside.is_dir():
            yield from _below(inside, seen)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _visible(folder: Path, *, hidden: bool = False) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if hidden or not p.name.startswith(".")) if folder.is_dir() else []
    except PermissionError:
        raise BadInput(f"{folder}: may not be read, and a pattern leads through it; change its permissions") from None


def data_files(files: list[Path]) -> "DataFilesDict":
    """Files as `datasets` takes them without looking for patterns in their names; known by name, size and time.

    Raises:
        BadInput: a name that it cannot open.
    """
    from datasets.data_files import DataFilesDict, DataFilesList

    for file in files:
        if "::" in str(file):
            raise BadInput(f"{file}: '::' in its path means an archive to the library that reads it; rename the folder")
    names, stamps = [str(file) for file in files], [_stamp(file) for file in files]
    return DataFilesDict({"train": DataFilesList(names, [*stamps])})


def _stamp(file: Path) -> tuple[str, str]:
    status = file.stat()
    return str(status.st_size), str(status.st_mtime_ns)


def streamed(files: list[Path]) -> "IterableDataset":
    """Parquet or jsonl files, one after the other."""
    from datasets import IterableDataset, NamedSplit

    known, split = data_files(files), NamedSplit("train")
    if files[0].suffix.lower() == ".parquet":
        # A shard is read ahead as a whole: let it be a row group, of which a file has many.
        return IterableDataset.from_parquet(known, split=split).reshard()  # pyright: ignore[reportArgumentType]
    return IterableDataset.from_json(known, split=split)  # pyright: ignore[reportArgumentType]
