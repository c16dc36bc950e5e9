"""Images to label as one self-contained HTML page, on which one types the labels and takes them away as labels.csv."""

import hashlib
import os
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple

from stml_semi.curation.suggest import Suggestions
from stml_semi.data.image_table import ImageTable
from stml_semi.runtime.failures import writing
from stml_semi.runtime.files import write_text
from stml_semi.runtime.names import to_utf8
from stml_semi.runtime.templates import render
from stml_semi.search.answers_page import image_uri
from stml_semi.search.index import Index
from stml_semi.search.query import indexed_source, open_indexed


class _Shown(NamedTuple):
    row: int
    uri: str | None
    file: str
    """As labels.csv names it."""
    name: str


class _Card(NamedTuple):
    image: _Shown
    nearest: str
    cosine: float
    similar: list[_Shown]


def write_page(path: str, folder: str, found: Suggestions, files: dict[int, str]) -> None:
    """Writes the page.

    Args:
        path: the HTML file.
        folder: the index.
        found: of `suggest`.
        files: of `image_files`.

    Raises:
        BadInput: the file cannot be written.
        RunFailed: the disk is full.
    """
    index = Index.open(folder)
    table = open_indexed(index)
    cards = [
        _Card(
            _shown(index, table, one.row, files),
            one.nearest_class,
            one.cosine,
            [_shown(index, table, hit.row, files) for hit in one.similar if hit.row in files],
        )
        for one in found.suggestions
        if one.row in files
    ]
    # What was typed is kept by the browser under this name: the same page again goes on, another one starts anew.
    known = "\n".join(card.image.file for card in cards)
    values = {
        "title": f"{PurePath(index.info.data).name}, {found.num_images:,} images",
        "kind": "suggest",
        "model": Path(index.info.model).name if os.path.isabs(index.info.model) else index.info.model,
        "cards": cards,
        "classes": found.classes,
        "labeled": found.labeled_files,
        "num_labeled": found.num_labeled,
        "key": hashlib.sha256(known.encode()).hexdigest()[:16],
    }
    with writing("--html", Path(path)):
        write_text(Path(path), render("curation/suggest.html", values))


def _shown(index: Index, table: ImageTable | None, row: int, files: dict[int, str]) -> _Shown:
    file = to_utf8(files[row])
    uri = None if table is None else image_uri(partial(indexed_source, index, table, row))
    return _Shown(row, uri, file, "/".join(PurePath(file).parts[-2:]))
