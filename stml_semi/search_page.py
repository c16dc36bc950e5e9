"""The answers of a search as one self-contained HTML page with pictures."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from stml_semi.data.images import BadImage, read_image
from stml_semi.data.tables import ImageTable
from stml_semi.index import Index
from stml_semi.search import Answer, open_indexed

_SIDE = 160
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; background: #fff; color: #222 }
h1 { font-size: 1.2rem } section { display: flex; flex-wrap: wrap; gap: 12px; margin: 1.5rem 0 }
figure { margin: 0; width: 168px } figcaption { overflow-wrap: anywhere; font-size: 12px; color: #555 }
img, .none { display: block; width: 160px; height: 160px; object-fit: contain; background: #f3f3f3; padding: 4px }
.none { color: #999; text-align: center; line-height: 160px } .query img { background: #dde8ff }
"""


def write_page(path: str, folder: str, answers: Sequence[Answer], images: Sequence[str]) -> None:
    """Writes the page.

    Args:
        path: the HTML file.
        folder: the index.
        answers: in the order of `search`.
        images: the picture files among the queries; the other queries are rows of the index.

    Raises:
        ValueError: the file cannot be written.
    """
    index = Index.open(folder)
    table = open_indexed(index)
    sections = []
    for i, answer in enumerate(answers):
        file = _thumbnail_of_file(images[i]) if i < len(images) else None
        row = None if i < len(images) else int(answer.query.rsplit(" ", 1)[1].rstrip(")"))
        query = file if row is None else _thumbnail(table, row)
        figures = [_figure(query, f"query: {answer.query}", "query")]
        for rank, hit in enumerate(answer.hits, 1):
            text = f"{rank}. {hit.similarity:.3f} {hit.image} (row {hit.row})"
            figures.append(_figure(_thumbnail(table, hit.row), text))
        sections.append(f"<section>{''.join(figures)}</section>")
    title = html.escape(f"{index.info.data}, {index.info.num_rows:,} pictures")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>Nearest pictures by cosine, model {html.escape(index.info.model)}</p>"
        f"{''.join(sections)}</html>\n"
    )
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--html {path}: {error.strerror or error}; name a file that can be written") from None


def _figure(picture: str | None, text: str, kind: str = "") -> str:
    shown = f'<img src="{picture}" alt="">' if picture else '<div class="none">no picture</div>'
    return f'<figure class="{kind}">{shown}<figcaption>{html.escape(text)}</figcaption></figure>'


def _thumbnail(table: ImageTable | None, row: int) -> str | None:
    if table is None:
        return None
    try:
        return _encoded(read_image(table.source(row)))
    except BadImage:
        return None


def _thumbnail_of_file(path: str) -> str | None:
    try:
        return _encoded(read_image({"bytes": None, "path": path}))
    except BadImage:
        return None


def _encoded(image: Image.Image) -> str:
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
