"""What the browse page's server sends."""

import json
from http import HTTPStatus
from typing import NamedTuple

from stml_semi.runtime.templates import PAGE_STYLE, read_asset, render
from stml_semi.search.browse.finder import FORMATS, MAX_BYTES, Finder, ShownHit


class Answer(NamedTuple):
    """What goes back."""

    body: bytes
    kind: str
    status: HTTPStatus = HTTPStatus.OK


def neighbors_answer(hits: list[ShownHit]) -> Answer:
    """Neighbors, nearest first."""
    return json_answer({"hits": [hit._asdict() for hit in hits]})


def json_answer(values: object, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """Anything that JSON can say."""
    return Answer(json.dumps(values).encode(), "application/json", status)


def fixed_pages(finder: Finder) -> dict[str, Answer]:
    """Everything that is served beside answers, in memory from the start."""
    page = render(
        "search/browse/page.html",
        {
            "title": finder.title,
            "kind": "browse",
            "k": finder.k,
            "counts": sorted({finder.k, 10, 20, 50, 100}),
            "classes": finder.classes,
            "samples": finder.samples,
            "has_pictures": finder.table is not None,
            "max_bytes": MAX_BYTES,
            "formats": ", ".join(FORMATS),
            "num_rows": finder.index.info.num_rows,
        },
    )
    style = read_asset(PAGE_STYLE) + read_asset("search/browse/style.css")
    return {
        "/": Answer(page.encode(errors="backslashreplace"), "text/html; charset=utf-8"),
        "/style.css": Answer(style, "text/css; charset=utf-8"),
        "/script.js": Answer(read_asset("search/browse/script.js"), "text/javascript; charset=utf-8"),
    }
