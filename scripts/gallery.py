"""Draws the nearest neighbors of some queries before and after training, as one picture.

    python scripts/gallery.py --run runs/demo --output docs/gallery.png

Queries are drawn at random (by seed) among those whose neighbors changed between right and wrong, in either direction.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from stml_semi.data.images import read_image
from stml_semi.data.sources import open_source
from stml_semi.data.tables import ImageTable
from stml_semi.evaluation import embed_table
from stml_semi.hub import load
from stml_semi.neighbors import nearest_neighbors

CELL, GAP, NUM_NEIGHBORS = 48, 6, 8
RIGHT, WRONG, INK, PAPER = "#1a7f37", "#b42318", "#1f2328", "#ffffff"


class Found(NamedTuple):
    """Neighbors of every picture by one model."""

    rows: np.ndarray
    """(N, NUM_NEIGHBORS)"""
    right: np.ndarray
    """(N, NUM_NEIGHBORS) bool."""


def search(model: str, table: ImageTable) -> Found:
    """Nearest neighbors of all pictures of a table."""
    assert table.labels is not None
    retriever = load(model)
    embedded = embed_table(table, retriever, retriever.processor)
    rows = nearest_neighbors(embedded.embeddings, NUM_NEIGHBORS).indices.numpy()
    return Found(rows, table.labels[rows] == table.labels[:, None])


def draw(table: ImageTable, queries: np.ndarray, before: Found, after: Found) -> Image.Image:
    """One row a query: the query, its neighbors before, its neighbors after; wrong ones are framed red and crossed."""
    step = CELL + GAP
    block = NUM_NEIGHBORS * step
    width = step + 2 * (block + 3 * GAP)
    canvas = Image.new("RGB", (width + GAP, len(queries) * step + 24 + GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    lefts = (step + 3 * GAP, step + 6 * GAP + block)
    for text, left in (("query", GAP), ("frozen backbone", lefts[0]), ("trained: 20 labeled classes", lefts[1])):
        pen.text((left, 6), text, fill=INK)
    for line, query in enumerate(queries):
        top = 24 + line * step
        canvas.paste(picture(table, int(query)), (GAP, top))
        for found, left in zip((before, after), lefts, strict=True):
            for i, (row, right) in enumerate(zip(found.rows[query], found.right[query], strict=True)):
                x = left + i * step
                canvas.paste(picture(table, int(row)), (x, top))
                pen.rectangle(
                    (x - 2, top - 2, x + CELL + 1, top + CELL + 1), outline=RIGHT if right else WRONG, width=2
                )
                if not right:
                    pen.line((x + CELL - 12, top + 2, x + CELL - 2, top + 12), fill=WRONG, width=3)
                    pen.line((x + CELL - 12, top + 12, x + CELL - 2, top + 2), fill=WRONG, width=3)
    return canvas


def picture(table: ImageTable, row: int) -> Image.Image:
    """A cell of the gallery."""
    return read_image(table.source(row)).resize((CELL, CELL), Image.Resampling.BICUBIC)


def main() -> None:
    """Searches with both models and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a finished run")
    parser.add_argument("--backbone", default="tiny-resnet")
    parser.add_argument("--data", default="kanji:test")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    table = open_source(options.data, flag="--data", labels="required")
    before, after = search(options.backbone, table), search(options.run, table)
    changed = np.flatnonzero(before.right.sum(1) != after.right.sum(1))
    queries = np.random.default_rng(options.seed).choice(changed, options.queries, replace=False)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(table, queries, before, after).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
