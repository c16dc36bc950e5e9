"""The answers of a search as one self-contained HTML page with images."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, ImageSource
from stml_semi.data.thumbnails import thumbnail
from stml_semi.runtime.failures import writing
from stml_semi.runtime.files import write_text
from stml_semi.runtime.templates import render
from stml_semi.search.duplicates import Group
from stml_semi.search.index import Index
from stml_semi.search.query import Answer, Hit, indexed_source, open_indexed

_SIDE = 160
_MOST_GROUPS, _MOST_HITS, _MOST_SHOWN = 200, 100, 12
"""On a page, which holds its images itself."""


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
    _write(path, Index.open(folder), answers, heading="Nearest images", query="Query")


def write_groups(path: str, folder: str, groups: Sequence[Group]) -> None:
    """Writes the same page of near-duplicates: the largest groups, each with the image to keep first.

    Args:
        path: the HTML file.
        folder: the index.
        groups: of `find_duplicates`.

    Raises:
        BadInput: the file cannot be written.
        RunFailed: the disk is full.
    """
    answers = [
        Answer(group.images[0], group.rows[0], list(map(Hit, group.rows[1:], group.images[1:], group.cosines[1:])))
        for group in groups[:_MOST_GROUPS]
    ]
    more = f": the {_MOST_GROUPS} largest of {len(groups):,} groups" if len(groups) > _MOST_GROUPS else ""
    _write(path, Index.open(folder), answers, heading=f"Near-duplicates{more}", query="Keep")


def write_sections(path: str, folder: str, groups: Sequence[tuple[str, Sequence[int], Sequence[float]]]) -> None:
    """Writes the same page of any groups of images.

    Args:
        path: the HTML file.
        folder: the index.
        groups: title, rows of the index and their cosines, the most typical first.

    Raises:
        BadInput: the file cannot be written.
        RunFailed: the disk is full.
    """
    index = Index.open(folder)
    chosen = [(title, rows[:_MOST_SHOWN], cosines) for title, rows, cosines in groups[:_MOST_GROUPS]]
    named = index.images([row for _, rows, _ in chosen for row in rows])
    answers = [
        Answer(title, None, [Hit(row, named[row], cosine) for row, cosine in zip(rows, cosines, strict=False)])
        for title, rows, cosines in chosen
    ]
    more = f": the {_MOST_GROUPS} largest of {len(groups):,}" if len(groups) > _MOST_GROUPS else ""
    _write(path, index, answers, heading=f"Groups{more}", query=None)


def _write(path: str, index: Index, answers: Sequence[Answer], *, heading: str, query: str | None) -> None:
    """The page; without a name for queries they are titles."""
    table = open_indexed(index)
    sections = [
        Section(
            Shown(None, answer.image)
            if query is None
            else Shown(_of_query(index, table, answer), _called(index, answer.image, answer.row)),
            [
                Shown(_of_row(index, table, hit.row), f"{hit.similarity:.3f} {_called(index, hit.image, hit.row)}")
                for hit in answer.hits[:_MOST_HITS]
            ],
        )
        for answer in answers
    ]
    page = render(
        "search/answers.html",
        {
            "title": f"{Path(index.info.data).name}, {index.info.num_rows:,} images",
            "heading": heading,
            "query": query,
            "kind": "search",
            "model": Path(index.info.model).name if os.path.isabs(index.info.model) else index.info.model,
            "sections": sections,
        },
    )
    with writing("--html", Path(path)):
        write_text(Path(path), page)


def _called(index: Index, image: str, row: int | None) -> str:
    """An image on the page, which may be shown to others: folders of this machine are left out."""
    if os.path.isabs(image):
        inside = os.path.relpath(image, index.info.data) if os.path.isabs(index.info.data) else ""
        image = os.path.basename(image) if not inside or inside.startswith("..") else inside
    return image if row is None else f"{image} (row {row})"


def _of_query(index: Index, table: ImageTable | None, answer: Answer) -> str | None:
    if answer.row is not None:
        return _of_row(index, table, answer.row)
    return image_uri(lambda: {"bytes": None, "path": answer.image})


def _of_row(index: Index, table: ImageTable | None, row: int) -> str | None:
    return None if table is None else image_uri(lambda: indexed_source(index, table, row))


def image_uri(find: Callable[[], ImageSource]) -> str | None:
    """An image for a page; None if it cannot be read."""
    try:
        return thumbnail(find(), _SIDE).uri
    except BadImage:
        return None
