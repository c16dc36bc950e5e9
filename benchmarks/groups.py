"""What `groups` finds: half of the classes are known by a few labels, all other images are the pool.

    python benchmarks/groups.py tiny-resnet kanji:test --labels 4

Accuracy of generalized category discovery (`stml_semi.metrics.group_accuracy`): every group is given a class, one each,
so that most images are right, over all images of the pool and over those of known (Old) and other classes (New). Beside
it K-means and Ward, which are told how many classes there are. Then: how many images of known classes are in a group of
their name, and how many of new ones in a new group.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering, KMeans

from stml_semi import load
from stml_semi.curation.coverage import survey
from stml_semi.curation.groups import names_of
from stml_semi.curation.propagation import propagate
from stml_semi.data.sources.open_source import open_source
from stml_semi.metrics import group_accuracy
from stml_semi.models.evaluation import embed_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--labels", type=int, default=4, help="of each known class")
    parser.add_argument("--image-size", type=int)
    given = parser.parse_args()
    retriever = load(given.model, image_size=given.image_size)
    table = open_source(given.data, flag="data", labels="required")
    assert table.labels is not None
    unit = F.normalize(embed_table(table, retriever, retriever.processor).embeddings.float(), dim=1)
    rng, classes = np.random.default_rng(0), table.labels
    known = rng.permutation(len(table.classes))[: len(table.classes) // 2]
    labeled = np.concatenate([rng.permutation(np.flatnonzero(classes == c))[: given.labels] for c in known])
    pool = np.setdiff1d(np.arange(len(classes)), labeled)
    old = np.isin(classes[pool], known)
    near = survey(unit[np.concatenate([pool, labeled])])
    found = propagate(near)
    centered, count = near.unit[: len(pool)].numpy(), len(table.classes)
    ways = {
        "`groups`": found[: len(pool)],
        f"K-means, told {count}": KMeans(count, n_init="auto", random_state=0).fit_predict(centered).astype(np.int64),
        f"Ward, told {count}": AgglomerativeClustering(count).fit_predict(centered),
    }
    print("| | groups of 3 and more | All | Old | New |\n|---|---|---|---|---|")
    for name, groups in ways.items():
        found_right = group_accuracy(*map(torch.from_numpy, (groups.astype(np.int64), classes[pool], old)))
        parts = " | ".join(f"{100 * (share or 0):.1f}" for share in found_right)
        print(f"| {name} | {(np.bincount(groups) >= 3).sum()} | {parts} |")
    names = names_of(found[len(pool) :], torch.from_numpy(classes[labeled]))
    called = np.array([names.get(group, -1) for group in found[: len(pool)].tolist()])
    print(
        f"\nOf known classes {100 * (called == classes[pool])[old].mean():.1f}% are in a group of their name, "
        f"{100 * (called < 0)[old].mean():.1f}% in a new one; of new ones {100 * (called < 0)[~old].mean():.1f}%."
    )


if __name__ == "__main__":
    main()
