"""`data prepare`: an official archive becomes one parquet table per split, images as their encoded bytes.

Killed at any moment, it goes on where it was: rows are written in parts, each renamed into place when it is whole, and
a table appears only when all of its parts are there. While a table is put together, its images are on disk twice; in
the end they are there once, whatever was killed in between.
"""

import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stml_semi.data.benchmarks.archives import LAYOUTS, Row, find_archive
from stml_semi.data.benchmarks.data_root import ROOT_VARIABLE, data_root, num_classes, read_archive
from stml_semi.data.benchmarks.facts import BENCHMARKS
from stml_semi.data.benchmarks.hub_copies import open_copy
from stml_semi.runtime.errors import BadInput, one_line
from stml_semi.runtime.files import replacing, write_text

HUB = "hub"
"""In place of an archive: the copy on the Hugging Face hub, where there is a trustworthy one."""
PART_ROWS = 1000
# Rows that are read together when one of them is wanted.
_GROUP_ROWS = 100
_UNPACKED, _UNPACKING, _UNPACKED_FROM = ".unpacked", ".unpacking", ".unpacked-from"
_ARCHIVES = (".tgz", ".tar.gz", ".tar", ".tar.xz", ".tar.bz2", ".zip")

Report = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and out of how much."""


class Prepared(NamedTuple):
    """One table."""

    path: Path
    images: int
    classes: int
    new: bool
    """False if it was there already, made from the same lists."""


def prepare(name: str, given: list[str], root: str | None, report: Report) -> list[Prepared]:
    """Checks the archive of a benchmark and writes its tables into `<root>/<name>`.

    Args:
        name: of a benchmark that does not ship with the package.
        given: one folder with the extracted archive; or archives (and single files such as cars_annos.mat) that are
            unpacked together, into a folder that is deleted in the end; or `hub`.
        root: of all benchmarks, None for $STML_DATA.
        report: for a progress bar.

    Raises:
        BadInput: no such benchmark or source, an archive that is damaged or not the official one, another number of
            images than there should be, or a data root that cannot be written.
    """
    if name not in LAYOUTS:
        raise BadInput(f"data prepare {name}: name one of {', '.join(LAYOUTS)}")
    place = data_root(root)
    if place is None:
        raise BadInput(f"data prepare {name}: say where to put it with --data-root or ${ROOT_VARIABLE}")
    if not given:
        raise BadInput(f"data prepare {name}: name the archive, or the folder it was extracted to, with --source")
    sources = [] if given == [HUB] else [Path(source).expanduser() for source in given]
    for source in sources:
        if not source.exists():
            raise BadInput(f"--source {source}: no such file or folder; check the path")
    folder = place / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not sources:
            copy = open_copy(name)
            return [
                _finish(folder / f"{split}.parquet", rows, copy.read, report, what=f"{name}:{split}")
                for split, rows in copy.splits.items()
            ]
        if len(sources) == 1 and sources[0].is_dir():
            return _prepare_splits(name, sources[0], folder, sources, report)
        return _prepare_packed(name, folder, sources, report)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise BadInput(f"data prepare {name}: {where}{error.strerror or error}; nothing is lost, try again") from None


def _prepare_packed(name: str, folder: Path, sources: list[Path], report: Report) -> list[Prepared]:
    """From archives, which are unpacked for the time being. That the tables are there is noted before anything is
    deleted: a preparation that was killed while it deleted has only this left to do."""
    unpacked, prepared_from = folder / _UNPACKED, folder / ".prepared-from"
    fingerprint = _fingerprint(sources)
    done = _finished_tables(name, folder) if _says(prepared_from, fingerprint) else None
    if done is None:
        _unpack(sources, unpacked, fingerprint, report)
        try:
            done = _prepare_splits(name, unpacked, folder, sources, report)
        except BadInput:
            _delete_unpacked(folder)
            raise
        (folder / _UNPACKED_FROM).replace(prepared_from)
    _delete_unpacked(folder)
    return done


def _finished_tables(name: str, folder: Path) -> list[Prepared] | None:
    """The tables that an earlier preparation finished, unless one of them was deleted since."""
    from pyarrow import parquet

    done = []
    for split, known in BENCHMARKS[name].splits.items():
        path = folder / f"{split}.parquet"
        if path.is_file():
            labels = parquet.read_table(path, columns=["label"])["label"]
            shutil.rmtree(_parts_of(path), ignore_errors=True)
            done.append(Prepared(path, len(labels), len(labels.unique()), new=False))
        elif not known.optional:
            return None
    return done


def _prepare_splits(name: str, archive: Path, folder: Path, sources: list[Path], report: Report) -> list[Prepared]:
    tables = (_prepare_split(name, split, archive, folder, sources, report) for split in BENCHMARKS[name].splits)
    return [table for table in tables if table]


def _prepare_split(
    name: str, split: str, archive: Path, folder: Path, sources: list[Path], report: Report
) -> Prepared | None:
    found = find_archive(LAYOUTS[name], archive, split)
    if found.folder is None:
        if BENCHMARKS[name].splits[split].optional:
            return None
        shown = f"--source {' --source '.join(map(str, sources))}"
        lacking = ", ".join(os.path.relpath(path, archive) for path in found.missing)
        raise BadInput(f"{shown}: not the whole official archive of {name}: it lacks {lacking}")
    try:
        rows = read_archive(name, split, found.folder)
    except BadInput as error:
        raise BadInput(f"--source {' --source '.join(map(str, sources))}: {error}") from None
    top = found.folder
    path = folder / f"{split}.parquet"
    return _finish(path, rows, lambda row: (top / row.path).read_bytes(), report, what=f"{name}:{split}")


def _finish(path: Path, rows: list[Row], read: Callable[[Row], bytes], report: Report, *, what: str) -> Prepared:
    new = _write_table(path, rows, read, report, what=what)
    return Prepared(path, len(rows), num_classes(rows), new)


def _unpack(sources: list[Path], folder: Path, fingerprint: str, report: Report) -> None:
    """All sources in one folder; the folder appears when it is complete."""
    stamp = folder.with_name(_UNPACKED_FROM)
    if folder.is_dir() and _says(stamp, fingerprint):
        return
    for source in sources:
        if source.is_dir():
            raise BadInput(f"--source {source}: one folder, or files only")
    _delete_unpacked(folder.parent)
    partial = folder.with_name(_UNPACKING)
    partial.mkdir()
    for source in sources:
        if not source.name.lower().endswith(_ARCHIVES):
            shutil.copy(source, partial)
            continue
        try:
            _unpack_one(source, partial, report)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
            problem = one_line(error)
            shutil.rmtree(partial, ignore_errors=True)
            raise BadInput(f"--source {source}: damaged ({problem}); download it again") from None
    write_text(stamp, fingerprint)
    partial.rename(folder)


def _delete_unpacked(folder: Path) -> None:
    """The name goes first, so that what a killed deletion leaves is not taken for a complete archive."""
    unpacked, unpacking = folder / _UNPACKED, folder / _UNPACKING
    (folder / _UNPACKED_FROM).unlink(missing_ok=True)
    for left in (unpacked, unpacking):
        shutil.rmtree(left, ignore_errors=True)


def _fingerprint(files: list[Path]) -> str:
    """Of what would be unpacked, so that it is not unpacked again."""
    seen = hashlib.sha256()
    for path in files:
        known = path.stat()
        seen.update(os.fsencode(path.resolve()) + f" {known.st_size} {known.st_mtime_ns}\n".encode())
    return seen.hexdigest()


def _says(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text() == text


def _unpack_one(source: Path, folder: Path, report: Report) -> None:
    """Progress is in bytes of the packed file."""
    size = source.stat().st_size
    what = f"unpacking {source.name}"
    if source.suffix.lower() == ".zip":
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            for i, member in enumerate(members, 1):
                archive.extract(member, folder)  # Leaves out what would lead outside of the folder.
                report(what, i * size // len(members), size)
        return
    with open(source, "rb") as file, tarfile.open(fileobj=file) as archive:
        for member in archive:
            archive.extract(member, folder, filter="data")  # Refuses what leads outside of the folder.
            report(what, file.tell(), size)


def _write_table(path: Path, rows: list[Row], read: Callable[[Row], bytes], report: Report, *, what: str) -> bool:
    """Writes a table, unless one of the same rows is there. Returns whether it did."""
    from pyarrow import parquet

    key, parts = _digest(rows), _parts_of(path)
    if path.is_file() and (parquet.read_schema(path).metadata or {}).get(b"rows") == key.encode():
        report(what, len(rows), len(rows))
        shutil.rmtree(parts, ignore_errors=True)  # Of a preparation that was killed when it had finished the table.
        return False
    if parts.is_dir() and not (parts / key).is_file():  # Left by other lists.
        shutil.rmtree(parts)
    parts.mkdir(exist_ok=True)
    (parts / key).touch()
    schema = _schema(key)
    files = []
    for start in range(0, len(rows), PART_ROWS):
        files.append(parts / f"{start:09d}.parquet")
        if not files[-1].is_file():
            _atomically(files[-1], schema, _tables(rows[start : start + PART_ROWS], read, schema))
        report(what, min(start + PART_ROWS, len(rows)), len(rows))
    _atomically(path, schema, (group for file in files for group in _groups(file)))
    shutil.rmtree(parts)
    return True


def _parts_of(table: Path) -> Path:
    return table.with_suffix(".parts")


def _schema(key: str) -> Any:
    """Readable by `datasets` as images; marked with the rows it is made of."""
    from datasets import Features, Image, Value

    schema = Features({"image": Image(), "label": Value("string"), "query": Value("bool")}).arrow_schema
    return schema.with_metadata({**(schema.metadata or {}), b"rows": key.encode()})


def _tables(rows: list[Row], read: Callable[[Row], bytes], schema: Any) -> Iterator[Any]:
    import pyarrow

    for start in range(0, len(rows), _GROUP_ROWS):
        part = rows[start : start + _GROUP_ROWS]
        images = [{"bytes": read(row), "path": row.path} for row in part]
        columns = {"image": images, "label": [row.label for row in part], "query": [row.query for row in part]}
        yield pyarrow.Table.from_pydict(columns, schema=schema)


def _groups(file: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            yield table.read_row_group(group)


def _atomically(path: Path, schema: Any, tables: Iterator[Any]) -> None:
    """A parquet file that is either whole or not there."""
    from pyarrow import parquet

    # Images are compressed already.
    with (
        replacing(path, durable=True) as partial,
        parquet.ParquetWriter(partial, schema, compression="none") as writer,
    ):
        for table in tables:
            writer.write_table(table.cast(schema))


def _digest(rows: list[Row]) -> str:
    seen = hashlib.sha256()
    for row in rows:
        seen.update(f"{row.path}\t{row.label}\t{row.query}\n".encode())
    return seen.hexdigest()
