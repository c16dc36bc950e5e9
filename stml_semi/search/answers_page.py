"""The answers of a search as one self-contained HTML page with pictures."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, ImageSource, read_image
from stml_semi.runtime.errors import BadInput
from stml_semi.search.index import Index
from stml_semi.search.query import Answer, open_indexed

_SIDE = 160


class Shown(NamedTuple):
    """A picture of the page."""

    uri: str | None
    """None if it cannot be read."""
    text: str


class Section(NamedTuple):
    """A query and its answers."""

    query: Shown
    hits: list[Shown]


def write_page(path: str, folder: str, answers: Sequence[Answer], images: Sequence[str]) -> None:
    """Writes the page.

    Args:
        path: the HTML file.
        folder: the index.
        answers: in the order of `search`.
        images: the picture files among the queries; the other queries are rows of the index.

    Raises:
        BadInput: the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    index = Index.open(folder)
    table = open_indexed(index)
    sections = []
    for i, answer in enumerate(answers):
        row = None if i < len(images) else int(answer.query.rsplit(" ", 1)[1].rstrip(")"))
        uri = _thumbnail({"bytes": None, "path": images[i]}) if row is None else _thumbnail_of_row(table, row)
        hits = [
            Shown(_thumbnail_of_row(table, hit.row), f"{hit.similarity:.3f} {hit.image} (row {hit.row})")
            for hit in answer.hits
        ]
        sections.append(Section(Shown(uri, answer.query), hits))
    environment = Environment(
        loader=PackageLoader("stml_semi", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("search/answers.html").render(
        title=f"{index.info.data}, {index.info.num_rows:,} pictures", model=index.info.model, sections=sections
    )
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--html {path}: {error.strerror or error}; name a file that can be written") from None


def _thumbnail_of_row(table: ImageTable | None, row: int) -> str | None:
    return None if table is None else _thumbnail(table.source(row))


def _thumbnail(source: ImageSource) -> str | None:
    """A small picture as a data URI; None if it cannot be read."""
    try:
        image = read_image(source)
    except BadImage:
        return None
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
