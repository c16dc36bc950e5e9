"""Tables in several files: a folder of them, a pattern such as `data/*.parquet`, or names that differ in numbers alone.

Importing this module is cheap: pyarrow and datasets are imported by the functions that need them.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from stml_semi.data.sources.named_files import is_pattern, matching
from stml_semi.data.sources.request import SourceRequest, listed
from stml_semi.data.sources.table_files import READERS

# What lies beside the tables of a data set and says what they are.
_ABOUT = {"dataset_info.json", "dataset_infos.json", "state.json"}
_SHARDS = {*READERS, ".tar"}


def table_shards_of(request: SourceRequest, source: str) -> list[Path]:
    """Files that make up one table; empty if the user named something else.

    A pattern says itself what belongs together. In a folder, files do whose names differ in numbers alone.

    Raises:
        BadInput: the files are no tables, of different kinds, or of different tables.
    """
    if is_pattern(source):
        return _matched(request, source)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return []
    from stml_semi.data.images import readable_extensions

    with os.scandir(folder) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    kinds = {os.path.splitext(entry.name)[1].lower() for entry in entries}
    if kinds & readable_extensions() or any(os.path.isdir(entry.path) for entry in entries):
        return []
    tables = sorted(Path(e.path) for e in entries if Path(e.name).suffix.lower() in READERS and e.name not in _ABOUT)
    if len(names := {_without_numbers(path.name): path.name for path in reversed(tables)}) > 1:
        first = min(names.values())
        raise request.error(
            f"holds several tables ({listed(sorted(names.values()))}); name one, as in {folder / first}, or a pattern "
            f"of those that are one, as in '{folder}/*{Path(first).suffix}'"
        )
    return tables


def _matched(request: SourceRequest, pattern: str) -> list[Path]:
    found = list(matching(pattern))
    if not found:
        raise request.error("the pattern matches nothing; check it, or name a folder or file")
    kinds = sorted({"folders" if path.is_dir() else path.suffix.lower() or "files without a suffix" for path in found})
    if len(kinds) > 1 or kinds[0] not in READERS:
        raise request.error(
            f"the pattern matches {listed(kinds)}, such as {found[0]}; let it match tables of one kind or tar shards, "
            f"as in 'data/*.parquet' and 'data/*.tar', or name a folder"
        )
    return found


def first_shards(sources: Sequence[str]) -> list[str]:
    """For each source, the first one that is a shard of the same table; itself if there is no other.

    Joined by commas, files of one folder whose names differ in numbers alone are one table: `train-0.csv,train-1.csv`.
    """
    firsts: dict[str, str] = {}
    return [firsts.setdefault(_table_name(source), source) for source in sources]


def _table_name(source: str) -> str:
    path = Path(source).expanduser()
    return str(path.parent / _without_numbers(path.name)) if path.suffix.lower() in _SHARDS else source


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)
