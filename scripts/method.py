"""Draws the method: what student and teacher do in a step, and how related a few images are found to be.

    python scripts/method.py --output docs

Writes method.png (a drawing) and affinity.png (embedded kanji, judged by the embedded backbone before any training).
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import read_image
from stml_semi.data.sources.open_source import open_source
from stml_semi.losses.distances import normalize, pairwise_squared_distances
from stml_semi.losses.neighborhoods import neighborhood_overlap
from stml_semi.losses.relations import calibrated_sigma
from stml_semi.models.evaluation import embed_table
from stml_semi.neighbors import nearest_neighbors
from stml_semi.sharing.load import load

INK, PAPER, TRAINED, SLOW, LOSS = "#1f2328", "#ffffff", "#dbeafe", "#e7e5e4", "#fef3c7"
NUM_CLASSES, PER_CLASS = 6, 5


def draw_step(path: Path) -> None:
    """Boxes and arrows of one training step of `semi`, and of the refresh that it relies on."""
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    axes.set(xlim=(0, 100), ylim=(0, 48))
    axes.axis("off")

    def box(x: float, y: float, text: str, color: str, width: float = 19) -> None:
        axes.text(
            x + width / 2, y, text, ha="center", va="center", fontsize=9, color=INK,
            bbox={"boxstyle": "round,pad=0.5", "facecolor": color, "edgecolor": INK, "linewidth": 0.8},
        )  # fmt: skip

    def arrow(start: tuple[float, float], end: tuple[float, float], text: str = "", *, dashed: bool = False) -> None:
        style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1, "linestyle": "--" if dashed else "-"}
        axes.annotate("", end, start, arrowprops=style)
        if text:
            middle = ((start[0] + end[0]) / 2 + 1, (start[1] + end[1]) / 2)
            axes.text(*middle, text, fontsize=8, color=INK, va="center")

    box(0, 40, "labeled batch", PAPER)
    box(0, 18, "unlabeled batch:\nqueries and neighbors,\ntwo views of each", PAPER)
    box(29, 30, "student\nbackbone, heads f and g", TRAINED)
    box(0, 5, "pool, and classes that\nthe warm-up left out", PAPER)
    box(29, 5, "teacher\nmoving average, head g", SLOW)
    box(56, 40, "proxy loss on f", LOSS)
    box(56, 22, "relaxed contrastive\non f and g", LOSS)
    box(56, 5, "neighborhoods and\nsimilarity, calibrated:\naffinity and trust", SLOW)
    box(81, 30, "sum at equal gradient\nnorm, times trust", PAPER)
    arrow((17, 40), (28, 32))
    arrow((19, 20), (28, 28))
    arrow((19, 5), (28, 5))
    axes.text(23.5, 1, "at each refresh", fontsize=8, color=INK, ha="center")
    arrow((38, 25.5), (38, 9.5), "average, after each step", dashed=True)
    arrow((50, 32), (57, 38.5))
    arrow((50, 28), (56, 24))
    arrow((50, 5), (55, 5))
    arrow((66, 10), (66, 17.5), "says who belongs together")
    arrow((75, 39), (83, 34))
    arrow((76, 24), (83, 27))
    figure.savefig(path, dpi=110, facecolor=PAPER)
    plt.close(figure)


def draw_affinity(path: Path, seed: int) -> None:
    """Images of a few classes beside the matrices that say how related they are."""
    table = open_source("kanji:train", flag="--data", labels="required")
    assert table.labels is not None
    rng = np.random.default_rng(seed)
    classes = rng.choice(len(table.classes), NUM_CLASSES, replace=False)
    rows = np.concatenate([rng.choice(np.flatnonzero(table.labels == c), PER_CLASS, replace=False) for c in classes])
    retriever = load("tiny-resnet")
    embeddings = embed_table(table, retriever, retriever.processor).embeddings
    nearest = nearest_neighbors(embeddings, 19).indices
    neighborhoods = torch.cat([torch.arange(len(table))[:, None], nearest], dim=1)
    chosen = torch.from_numpy(rows)
    distances = pairwise_squared_distances(normalize(embeddings[chosen]))
    pairwise = torch.exp(distances / -calibrated_sigma(embeddings, seed=seed))
    contextual = neighborhood_overlap(neighborhoods, chosen, expand=5)
    labels = torch.from_numpy(table.labels[rows])
    matrices = {
        "P: by distance": pairwise,
        "C: by shared neighborhoods": contextual,
        "W = (P + C) / 2": (pairwise + contextual) / 2,
        "labels (not seen)": (labels[:, None] == labels).float(),
    }
    figure, axes = plt.subplots(1, 5, figsize=(13, 3.2), layout="constrained", width_ratios=[0.9, 1, 1, 1, 1])
    _sheet(axes[0], table, rows)
    shown = None
    for place, (title, matrix) in zip(axes[1:], matrices.items(), strict=True):
        shown = place.imshow(matrix.numpy(), vmin=0, vmax=1, cmap="viridis")
        place.set_title(title, fontsize=9)
        place.set(xticks=[], yticks=[])
    assert shown is not None
    figure.colorbar(shown, ax=axes[-1], shrink=0.8)
    figure.savefig(path, dpi=110, facecolor=PAPER)
    plt.close(figure)


def _sheet(axes: Axes, table: ImageTable, rows: np.ndarray) -> None:
    cells = [np.asarray(read_image(table.source(int(row))).convert("L").resize((48, 48))) for row in rows]
    lines = [np.concatenate(cells[i : i + PER_CLASS], axis=1) for i in range(0, len(cells), PER_CLASS)]
    axes.imshow(np.concatenate(lines), cmap="gray")
    axes.set_title("images, a class in each line", fontsize=9)
    axes.axis("off")


def main() -> None:
    """Writes both images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        draw_affinity(options.output / "affinity.png", options.seed)
    draw_step(options.output / "method.png")


if __name__ == "__main__":
    main()
