"""Queries and their nearest neighbors as one image."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import read_image
from stml_semi.neighbors import nearest_neighbors

GAP = 6
RIGHT, WRONG, INK, PAPER = "#1a7f37", "#b42318", "#1f2328", "#ffffff"


class ModelNeighbors(NamedTuple):
    """What one model finds for some queries."""

    title: str
    rows: NDArray[np.int64]
    """(Q, K) of the table, nearest first."""
    right: NDArray[np.bool_]
    """(Q, K) whether they are of the query's class."""


def find(
    table: ImageTable, embeddings: Tensor, queries: NDArray[np.int64], k: int, *, usable: NDArray[np.bool_], title: str
) -> ModelNeighbors:
    """Looks queries up in the other images of a table, or in its gallery if it names queries.

    Args:
        table: labeled.
        embeddings: (N, d) of all its images.
        queries: (Q,) rows.
        k: neighbors of each, fewer if there are fewer images.
        usable: (N,) rows that may be found.
        title: name of the model.
    """
    assert table.labels is not None
    gallery = np.flatnonzero(usable if table.queries is None else usable & ~table.queries)
    at, asked = (torch.from_numpy(rows).to(embeddings.device) for rows in (gallery, queries))
    own = torch.searchsorted(at, asked) if table.queries is None else None  # A query is not its own neighbor.
    k = min(k, len(gallery) - (own is not None))
    found = nearest_neighbors(embeddings[at], k, queries=embeddings[asked], exclude=own).indices.cpu().numpy()
    rows = gallery[found]
    return ModelNeighbors(title, rows, table.labels[rows] == table.labels[queries][:, None])


def draw(table: ImageTable, queries: NDArray[np.int64], models: list[ModelNeighbors], *, cell: int = 48) -> Image.Image:
    """One line a query: the query, then its neighbors by each model; wrong ones are framed red and crossed."""
    step = cell + GAP
    blocks = [found.rows.shape[1] * step + 3 * GAP for found in models]
    lefts = [step + 3 * GAP + sum(blocks[:i]) for i in range(len(models))]
    canvas = Image.new("RGB", (step + sum(blocks) + GAP, len(queries) * step + 24 + GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    for text, left in [("query", GAP), *((found.title, left) for found, left in zip(models, lefts, strict=True))]:
        pen.text((left, 6), text, fill=INK)
    for line, query in enumerate(queries):
        top = 24 + line * step
        canvas.paste(_picture(table, int(query), cell), (GAP, top))
        for found, left in zip(models, lefts, strict=True):
            for i, (row, right) in enumerate(zip(found.rows[line], found.right[line], strict=True)):
                x = left + i * step
                canvas.paste(_picture(table, int(row), cell), (x, top))
                frame = (x - 2, top - 2, x + cell + 1, top + cell + 1)
                pen.rectangle(frame, outline=RIGHT if right else WRONG, width=2)
                if not right:
                    pen.line((x + cell - 12, top + 2, x + cell - 2, top + 12), fill=WRONG, width=3)
                    pen.line((x + cell - 12, top + 12, x + cell - 2, top + 2), fill=WRONG, width=3)
    return canvas


def _picture(table: ImageTable, row: int, cell: int) -> Image.Image:
    return read_image(table.source(row)).resize((cell, cell), Image.Resampling.BICUBIC)
