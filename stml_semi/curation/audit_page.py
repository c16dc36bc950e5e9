"""What an audit found as one self-contained HTML page with images."""

import os
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple

from stml_semi.curation.audit import Audit, Finding, Problem, worst
from stml_semi.data.image_table import ImageTable
from stml_semi.runtime.failures import writing
from stml_semi.runtime.files import write_text
from stml_semi.runtime.templates import render
from stml_semi.search.answers_page import image_uri

_WORDS: dict[Problem, tuple[str, str, str]] = {
    "label": ("Labels in doubt: nearer to the mean of another class", "nearer to", "by"),
    "two classes": ("Near-duplicates in two classes", "also in", "cosine"),
    "evaluated": ("Near-duplicates of evaluation images", "evaluated as", "cosine"),
}


class _Shown(NamedTuple):
    uri: str | None
    label: str
    name: str


class _Pair(NamedTuple):
    image: _Shown
    other: _Shown
    score: float


class _Part(NamedTuple):
    title: str
    said: str
    score: str
    pairs: list[_Pair]


def write_page(path: str, audit: Audit, model: str, count: int) -> None:
    """Writes the page: each image beside the one that it is confused with.

    Args:
        path: the HTML file.
        audit: what was found.
        model: that the images were compared by.
        count: findings of each problem that are shown.

    Raises:
        BadInput: the file cannot be written.
        RunFailed: the disk is full.
    """
    shown = worst(audit.findings, count)
    labeled = audit.tables[0]
    values = {
        "title": f"{PurePath(labeled.name).name}, {audit.num_images:,} images",
        "kind": "audit",
        "model": Path(model).name if os.path.isabs(model) else model,
        "parts": [_Part(*_WORDS[kind], [_pair(audit, one) for one in found]) for kind, found in shown.items()],
    }
    with writing("--html", Path(path)):
        write_text(Path(path), render("curation/audit.html", values))


def _pair(audit: Audit, one: Finding) -> _Pair:
    others = audit.tables[1] if one.problem == "evaluated" else audit.tables[0]
    image = _shown(audit.tables[0], one.row, one.label, one.image)
    return _Pair(image, _shown(others, one.other_row, one.other, one.other_image), one.score)


def _shown(table: ImageTable, row: int, label: str, name: str) -> _Shown:
    # The last parts of a path: the page need not tell how the disk is laid out.
    return _Shown(image_uri(partial(table.source, row)), label, "/".join(PurePath(name).parts[-2:]))
