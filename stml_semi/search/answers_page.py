"""The answers of a search as one self-contained HTML page with pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, ImageSource
from stml_semi.data.thumbnails import thumbnail
from stml_semi.runtime.failures import writing
from stml_semi.runtime.files import write_text
from stml_semi.runtime.templates import render
from stml_semi.search.index import Index
from stml_semi.search.query import Answer, indexed_source, open_indexed

_SIDE = 160


class Shown(NamedTuple):
    """An image of the page."""

    uri: str | None
    """None if it cannot be read."""
    text: str


class Section(NamedTuple):
    """A query and its answers."""

    query: Shown
    hits: list[Shown]


def write_page(path: str, folder: str, answers: Sequence[Answer]) -> None:
    """Writes the page.

    Args:
        path: the HTML file.
        folder: the index.
        answers: of `search`.

    Raises:
        BadInput: the file cannot be written.
        RunFailed: the disk is full.
    """
    index = Index.open(folder)
    table = open_indexed(index)
    sections = [
        Section(
            Shown(_of_query(index, table, answer), answer.query),
            [
                Shown(_of_row(index, table, hit.row), f"{hit.similarity:.3f} {hit.image} (row {hit.row})")
                for hit in answer.hits
            ],
        )
        for answer in answers
    ]
    page = render(
        "search/answers.html",
        {
            "title": f"{index.info.data}, {index.info.num_rows:,} pictures",
            "kind": "search",
            "model": index.info.model,
            "sections": sections,
        },
    )
    with writing("--html", Path(path)):
        write_text(Path(path), page)


def _of_query(index: Index, table: ImageTable | None, answer: Answer) -> str | None:
    if answer.row is not None:
        return _of_row(index, table, answer.row)
    return _uri(lambda: {"bytes": None, "path": answer.image})


def _of_row(index: Index, table: ImageTable | None, row: int) -> str | None:
    return None if table is None else _uri(lambda: indexed_source(index, table, row))


def _uri(find: Callable[[], ImageSource]) -> str | None:
    try:
        return thumbnail(find(), _SIDE).uri
    except BadImage:
        return None
