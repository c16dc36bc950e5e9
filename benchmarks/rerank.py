"""What `search --rerank` is worth: each image is looked up in all others, and the 100 nearest are reordered.

    python benchmarks/rerank.py tiny-resnet kanji:test

Recall@1 and MAP@R in percent, MAP@R over the first 100 answers at most, before and after.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from stml_semi import load
from stml_semi.data.sources.open_source import open_source
from stml_semi.models.evaluation import embed_table
from stml_semi.neighbors import nearest_neighbors
from stml_semi.search.rerank import CANDIDATES, order


def scores(found: Tensor, labels: Tensor) -> str:
    """Of neighbors (N, c), nearest first."""
    relevant = (labels[:, None] == labels).sum(1) - 1
    same = labels[found] == labels[:, None]
    ranks = torch.arange(1, found.shape[1] + 1)
    counted = same & (ranks <= relevant[:, None])
    precision = same.cumsum(1) / ranks
    average = (precision * counted).sum(1) / relevant.clamp(1, found.shape[1])
    kept = relevant > 0
    return f"{100 * same[kept, 0].float().mean():.1f} | {100 * average[kept].mean():.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--image-size", type=int)
    given = parser.parse_args()
    retriever = load(given.model, image_size=given.image_size)
    table = open_source(given.data, flag="data", labels="required")
    unit = F.normalize(embed_table(table, retriever, retriever.processor).embeddings.float(), dim=1)
    labels = torch.from_numpy(table.labels)
    near = nearest_neighbors(unit, min(CANDIDATES, len(unit) - 1)).indices
    reordered = torch.stack([rows[order(query, unit[rows])] for query, rows in zip(unit, near, strict=True)])
    print("| | recall@1 | MAP@R |\n|---|---|---|")
    print(f"| by cosine | {scores(near, labels)} |\n| reranked | {scores(reordered, labels)} |")


if __name__ == "__main__":
    main()
