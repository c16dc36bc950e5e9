"""Draws the nearest neighbors of some queries before and after training, as one image.

    python scripts/gallery.py --run runs/demo --output docs/gallery.png

Queries are drawn at random (by seed) among those whose neighbors changed between right and wrong, in either direction.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.open_source import open_source
from stml_semi.models.evaluation import embed_table
from stml_semi.report.neighbor_sheet import ModelNeighbors, draw, find
from stml_semi.sharing.load import load

NUM_NEIGHBORS = 8


def search(model: str, table: ImageTable, title: str) -> ModelNeighbors:
    """Nearest neighbors of all images of a table."""
    retriever = load(model)
    embedded = embed_table(table, retriever, retriever.processor)
    rows = np.arange(len(table))
    return find(table, embedded.embeddings, rows, NUM_NEIGHBORS, usable=embedded.readable, title=title)


def main() -> None:
    """Searches with both models and writes the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a finished run")
    parser.add_argument("--backbone", default="tiny-resnet")
    parser.add_argument("--data", default="kanji:test")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--title", default="trained: 20 labeled classes")
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    table = open_source(options.data, flag="--data", labels="required")
    models = [search(options.backbone, table, "frozen backbone"), search(options.run, table, options.title)]
    before, after = models
    changed = np.flatnonzero(before.right.sum(1) != after.right.sum(1))
    queries = np.random.default_rng(options.seed).choice(changed, options.queries, replace=False)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    chosen = [ModelNeighbors(found.title, found.rows[queries], found.right[queries]) for found in models]
    draw(table, queries, chosen).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
