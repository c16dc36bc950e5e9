"""Tables as JSON: one object per line, one list of objects, or columns as pandas writes them.

Importing this module is cheap: pyarrow and datasets are imported by the functions that need them.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stml_semi.data.image_table import image_dataset
from stml_semi.data.sources.columns import IMAGE_COLUMNS, Columns
from stml_semi.data.sources.csv_tables import encoding_of, not_decodable
from stml_semi.data.sources.request import Damaged

if TYPE_CHECKING:
    from datasets import Dataset

# Records that are asked for the names of their columns: the first ones may lack some.
_LOOKED_AT = 1000


def read_json(path: Path) -> Columns:
    """Columns of text. Numbers that are whole are written as such: 1.0 is 1."""
    from datasets import Value

    features: dict[str, Any] = {}
    for record in itertools.islice(_records(path), _LOOKED_AT):
        for name, value in record.items():
            if features.get(name) is None or isinstance(features[name], Value):
                features[name] = value if isinstance(value, (list, dict)) else Value("string")

    def read(columns: list[str]) -> "Dataset":
        import pyarrow

        values: dict[str, list[str | None]] = {name: [] for name in columns}
        for number, record in enumerate(_records(path), 1):
            for name, column in values.items():
                column.append(_text(record.get(name), name, number))
        return image_dataset(pyarrow.table({k: pyarrow.array(v, pyarrow.string()) for k, v in values.items()}))

    return Columns(features, read, path.parent)


def _text(value: Any, column: str, number: int) -> str | None:
    if isinstance(value, (list, dict)):
        kind = "a list" if isinstance(value, list) else "an object"
        raise Damaged(f"record {number} holds {kind} in column '{column}'; give one text or number")
    if value is None or value != value:  # NaN, which json.dumps writes for a missing value, differs from itself.
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    encoding = encoding_of(path)
    try:
        with open(path, encoding=encoding) as file:
            records = _lines(file) if _is_lines(file) else iter(_whole(file))
            for number, record in enumerate(records, 1):
                if not isinstance(record, dict):
                    raise Damaged(f"record {number} is no object of named values: {json.dumps(record)[:80]}")
                yield record
    except UnicodeError:
        raise not_decodable(path, encoding) from None


def _is_lines(file: Any) -> bool:
    """Whether every line is a record: the first one is a whole, and not the only one. Goes back to the beginning."""
    filled = (line for line in file if not line.isspace())
    first, second = next(filled, ""), next(filled, None)
    file.seek(0)
    try:
        return isinstance(json.loads(first), dict) and second is not None
    except json.JSONDecodeError:
        return second is not None and second.lstrip().startswith("{") and first.lstrip().startswith("{")


def _lines(file: Any) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if not line.isspace():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise Damaged(f"line {number} is no JSON: {error.msg} at character {error.pos + 1}") from None


def _whole(file: Any) -> list[Any]:
    """The records of a file that is one value."""
    try:
        text = file.read()
        value = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise Damaged(f"{error}; give one object per line, or one list of objects") from None
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise Damaged("is no table; give one object per line, or one list of objects")
    return _from_object(value)


def _from_object(value: dict[str, Any]) -> list[Any]:
    """One record, or the columns or the records that an object holds.

    `to_json` of pandas makes columns of `{row: value}`, `to_dict("list")` columns of lists; many tools, and pandas with
    `orient="table"`, put the list of records beside what else they know.
    """
    plain = [name for name, part in value.items() if not isinstance(part, (list, dict))]
    if any(name.lower() in IMAGE_COLUMNS for name in plain):
        return [value]
    if value and all(isinstance(part, dict) for part in value.values()):
        keys = next(iter(value.values())).keys()
        if all(part.keys() == keys for part in value.values()):
            return [{name: part[key] for name, part in value.items()} for key in keys]
    lengths = {len(part) if isinstance(part, list) else None for part in value.values()}
    if len(value) > 1 and len(lengths) == 1 and None not in lengths:
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    lists = [part for part in value.values() if isinstance(part, list) and part and isinstance(part[0], dict)]
    if len(lists) == 1:
        return lists[0]
    if plain:
        return [value]
    raise Damaged(
        f"is one object of {', '.join(list(value)[:10])}; give one object per image and line, or one list of such "
        f"objects (pandas: to_json(orient='records'))"
    )
