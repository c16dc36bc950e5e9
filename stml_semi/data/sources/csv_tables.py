"""Tables as spreadsheets, pandas and scripts write them: csv and tsv.

Importing this module is cheap: pyarrow and datasets are imported by the functions that need them.
"""

import codecs
import contextlib
import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stml_semi.data.image_table import image_dataset
from stml_semi.data.sources.columns import IMAGE_COLUMNS, Columns, check_unique
from stml_semi.data.sources.request import Damaged

if TYPE_CHECKING:
    from datasets import Dataset

_DELIMITERS = ",;\t|"
# Lines in which the one that names the columns is searched for, below comments.
_LOOKED_AT = 200
# Rows whose texts are Python objects at the same time.
_ROWS_TOGETHER = 50_000
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # Before UTF-16, with which it begins.
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class _Head(NamedTuple):
    """How a file is written, from its first lines."""

    names: list[str]
    num_lines: int
    """Lines up to the one that names the columns, and that one."""
    delimiter: str
    padded: bool
    """Whether blanks follow the delimiters."""


def read_csv(path: Path) -> Columns:
    """Columns of text. The first line that is no comment names them; which character separates them is seen there."""
    from datasets import Value

    head = _head(path)

    def read(columns: list[str]) -> "Dataset":
        import pyarrow

        check_unique(path, head.names, columns)
        places = [head.names.index(name) for name in columns]
        schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
        rows, batches = _rows(path, head), []
        while together := list(itertools.islice(rows, _ROWS_TOGETHER)):
            # Everything is text: a class may be called 007 or NA.
            values = [pyarrow.array([row[place] or None for row in together], pyarrow.string()) for place in places]
            batches.append(pyarrow.record_batch(values, schema=schema))
        return image_dataset(pyarrow.Table.from_batches(batches, schema))

    return Columns({name: Value("string") for name in head.names if name}, read, path.parent)


def encoding_of(path: Path) -> str:
    """UTF-8 unless the first bytes say UTF-16 or UTF-32, as Excel's "Unicode text" does."""
    with open(path, "rb") as file:
        start = file.read(4)
    if found := next((name for mark, name in _BOMS if start.startswith(mark)), None):
        return found
    if b"\0" in start[:2]:  # The first character of a table is a plain one.
        return "utf-16-be" if start[:1] == b"\0" else "utf-16-le"
    return "utf-8"


def not_decodable(path: Path, encoding: str) -> Damaged:
    """Names the first line of a text file that is not in its encoding."""
    with open(path, encoding=encoding, errors="replace") as file:
        number, line = next(((n, text) for n, text in enumerate(file, 1) if "\ufffd" in text), (1, ""))
    return Damaged(
        f"line {number} is not {encoding.removesuffix('-sig').upper()} ({line.strip()[:80]}); save it as UTF-8, as "
        f"with `iconv -f cp1252 -t utf-8` or as 'CSV UTF-8' of a spreadsheet"
    )


def _head(path: Path) -> _Head:
    default = "\t" if path.suffix.lower() == ".tsv" else ","
    with _opened(path) as file:
        lines = list(itertools.islice(file, _LOOKED_AT))
    at = 0
    while at < len(lines):
        if separator := re.fullmatch(r"sep=(.)", lines[at].strip("\r\n")):  # How Excel is told what separates columns.
            default = separator[1]
        elif lines[at].strip() and not _is_comment(lines[at:], default):
            break
        at += 1
    else:
        return _Head([], at, default, False)
    delimiter = _delimiter(lines[at:], default)
    # The blanks are seen in the first line, and only there: in a row they may begin the name of a file.
    padded = re.search(re.escape(delimiter) + " +\\S", lines[at]) is not None and delimiter != "\t"
    reader = csv.reader(lines[at:], delimiter=delimiter, skipinitialspace=padded)
    names = next(reader)
    names[0] = names[0].lstrip("#")  # numpy.savetxt makes a comment of the names.
    return _Head([name.strip() for name in names], at + reader.line_num, delimiter, padded)


def _is_comment(lines: list[str], default: str) -> bool:
    """Whether the first line is none that names columns."""
    if not lines[0].startswith("#") or len(lines) < 2:
        return False
    delimiter = _delimiter(lines[1:], default)
    here, after = (
        [name.strip("# \r\n").lower() for name in next(csv.reader(rest, delimiter=delimiter), [])]
        for rest in (lines, lines[1:])
    )
    return len(here) != len(after) or (not set(IMAGE_COLUMNS).isdisjoint(after) and set(IMAGE_COLUMNS).isdisjoint(here))


def _delimiter(lines: list[str], default: str) -> str:
    """What makes most columns of the first row."""
    candidates = [default, *(_DELIMITERS.replace(default, ""))]
    return max(candidates, key=lambda one: len(next(csv.reader(lines, delimiter=one), [])))


def _rows(path: Path, head: _Head) -> Iterator[list[str]]:
    """Every row with something in it, with as many values as there are columns."""
    with _opened(path) as file:
        for _ in range(head.num_lines):
            next(file)
        reader = csv.reader(file, delimiter=head.delimiter, skipinitialspace=head.padded, strict=True)
        count = len(head.names)
        try:
            for row in reader:
                if not any(value.strip() for value in row):
                    continue
                if len(row) < count or any(value.strip() for value in row[count:]):
                    raise csv.Error(
                        f"{len(row)} value{'s' if len(row) > 1 else ''} where the first line names {count} columns "
                        f"({head.delimiter.join(row)[:80]}); a value that holds the separator stands in quotes"
                    )
                yield row
        except csv.Error as error:
            raise Damaged(f"line {head.num_lines + reader.line_num} has {_in_words(error)}") from None


def _in_words(error: csv.Error) -> str:
    text = str(error)
    if "expected after" in text:
        return 'text after a closing quote; inside of quotes a quote is written twice (""), not \\"'
    if "unexpected end of data" in text:
        return "an open quote at the end of the file; close it where it belongs"
    if "field larger" in text:
        return f"a value of more than {csv.field_size_limit():,} characters; a quote may be missing before it"
    return text


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The text of a file with the ends of its lines as they are.

    Raises:
        Damaged: it is in another encoding.
    """
    encoding = encoding_of(path)
    try:
        with open(path, encoding=encoding, newline="") as file:
            yield file
    except UnicodeError:
        raise not_decodable(path, encoding) from None
