"""Planted wrong labels: how many of them the first findings of `audit` are.

    python benchmarks/audit.py MODEL DATA

A twentieth of the labels is exchanged at random, three times. Precision of the first twentieth of the ranking (which is
then also its recall), and of votes of the nearest neighbors in place of class means.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stml_semi.curation.audit import doubt_labels
from stml_semi.data.sources.open_source import open_source
from stml_semi.models.evaluation import embed_table
from stml_semi.neighbors import nearest_neighbors
from stml_semi.runtime.progress import Counter
from stml_semi.sharing.load import load

SHARE = 0.05


def votes(embeddings: Tensor, labels: Tensor, num_classes: int, k: int) -> Tensor:
    """(n,) by how many of k neighbors another class is ahead."""
    near = labels[nearest_neighbors(embeddings, k).indices]
    counts = torch.zeros(len(labels), num_classes).scatter_add_(1, near, torch.ones(near.shape))
    own = counts.gather(1, labels[:, None])[:, 0]
    return counts.scatter_(1, labels[:, None], -1).amax(1) - own


def main() -> None:
    """Prints a line for each way to rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `load` opens")
    parser.add_argument("data", help="labeled images")
    options = parser.parse_args()
    model, table = load(options.model), open_source(options.data, flag="data", labels="required")
    assert table.labels is not None
    with Counter("embed", len(table), enabled=True) as counter:
        embedded = embed_table(table, model, model.processor, batch_size=256, progress=counter.advance)
    embeddings, right, count = F.normalize(embedded.embeddings, dim=1), table.labels, len(table.classes)
    found: dict[str, list[float]] = {}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        planted = rng.choice(len(right), round(SHARE * len(right)), replace=False)
        labels = right.copy()
        labels[planted] = (right[planted] + rng.integers(1, count, len(planted))) % count
        given = torch.from_numpy(labels)
        ranks = {"class means": doubt_labels(embeddings, given, count).margin}
        ranks |= {f"{k} neighbors": votes(embeddings, given, count, k) for k in (5, 10, 20)}
        for name, doubt in ranks.items():
            first = doubt.argsort(descending=True, stable=True)[: len(planted)].numpy()
            found.setdefault(name, []).append(float(np.isin(first, planted).mean()))
    for name, shares in found.items():
        print(f"{name}: {np.mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})")


if __name__ == "__main__":
    main()
