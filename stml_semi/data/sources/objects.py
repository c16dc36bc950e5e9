"""Sources that a Python program holds in memory, as files that all of a run can open, also when it is resumed."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stml_semi.data.sources.columns import IMAGE_COLUMNS
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.files import replacing, sha256

if TYPE_CHECKING:
    from datasets import Dataset

Source = Any
"""A name, path or hub id; a `datasets.Dataset`; a frame of pandas or polars; an iterable of paths or (path, label)."""


def as_spec(source: Source, flag: str) -> str | None:
    """What the command line would call a source: objects are written to a table in the cache of `datasets`.

    The same content is the same file, so that a resumed run and all processes of a run find it.

    Args:
        source: as `Source`.
        flag: the argument it was given for, for error messages.

    Raises:
        BadInput: the object is none of these, or empty.
    """
    if source is None or isinstance(source, str):
        return source
    if isinstance(source, os.PathLike):
        return os.fspath(source)
    table = _as_dataset(source, flag)
    if not len(table):
        raise BadInput(f"{flag}: holds no images")
    from datasets.config import HF_DATASETS_CACHE

    folder = Path(HF_DATASETS_CACHE) / "stml_semi" / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    with _no_bars(), replacing(folder / "written.parquet") as written:
        table.to_parquet(written)
        path = folder / f"{sha256(written)[:32]}.parquet"
        if not path.exists():
            os.link(written, path)
    return str(path)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


def _as_dataset(source: Any, flag: str) -> "Dataset":
    """
    Raises:
        BadInput: neither a data set, nor a frame, nor a list of paths.
    """
    from datasets import Dataset, DatasetDict

    if isinstance(source, Dataset):
        return source
    if isinstance(source, DatasetDict):
        raise BadInput(
            f"{flag}: holds the splits {', '.join(map(str, source))}; give one of them, such as data['train']"
        )
    if (maker := getattr(Dataset, f"from_{type(source).__module__.partition('.')[0]}", None)) is not None:
        return _with_whole_paths(maker(source))
    if isinstance(source, Iterable) and not isinstance(source, bytes):
        return _from_rows(list(source), flag)
    raise BadInput(f"{flag}: a {type(source).__name__} is no source: {_TAKEN}")


_TAKEN = "give a name or path, a datasets.Dataset, a data frame, a list of paths, or a list of (path, label)"


def _from_rows(rows: list[Any], flag: str) -> "Dataset":
    from datasets import Dataset

    if all(isinstance(row, str | os.PathLike) for row in rows):
        return Dataset.from_dict({"image": [os.path.abspath(row) for row in rows]})
    if all(isinstance(row, tuple | list) and len(row) == 2 and isinstance(row[0], str | os.PathLike) for row in rows):
        paths, labels = [os.path.abspath(path) for path, _ in rows], [str(label) for _, label in rows]
        return Dataset.from_dict({"image": paths, "label": labels})
    odd = next(row for row in rows if not isinstance(row, str | os.PathLike))
    raise BadInput(f"{flag}: a list that holds {type(odd).__name__} {odd!r:.60} is no source: {_TAKEN}")


def _with_whole_paths(table: "Dataset") -> "Dataset":
    """Relative paths, which a program means from its working folder, made absolute: the table is written elsewhere."""
    texts = [name for name, feature in table.features.items() if "string" in str(getattr(feature, "dtype", ""))]
    first = {name: next(itertools.islice(table[name], 1), None) for name in texts} if len(table) else {}
    for name, value in first.items():
        # Pairs have columns of any name; a class may be called like a folder, hardly like a file.
        exists = os.path.exists if name in IMAGE_COLUMNS else os.path.isfile
        if isinstance(value, str) and not os.path.isabs(value) and exists(value):
            whole = [None if path is None else os.path.abspath(path) for path in table[name]]
            table = table.remove_columns(name).add_column(name, whole)  # pyright: ignore[reportCallIssue]
    return table
