"""Groups of images by label propagation on the graph of nearest neighbors; their number follows from the images.

Every image starts as a group of its own, and takes the group that is strongest among its neighbors, again and again
(Raghavan et al., 2007; Chinese whispers, Biemann, 2006). A neighbor counts by the eighth power of its cosine, so that
what is nearest decides: then the same setting serves for things that are shown four times and thirty times.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stml_semi.curation.coverage import Surroundings

_NEIGHBORS = 10
_POWER = 8
_MOST_ROUNDS = 50
# Share of the images that may still change when it ends.
_RESTLESS = 0.001


def propagate(near: Surroundings, progress: Callable[[], None] = lambda: None) -> NDArray[np.int64]:
    """(n,) numbers of the groups, from 0 by the first image of each.

    Args:
        near: the images; weights are squared cosines.
        progress: is told of every round, of which there are five to fifty.
    """
    n = len(near.rows)
    rows, weights = near.rows[:, :_NEIGHBORS], near.weights[:, :_NEIGHBORS].astype(np.float64) ** (_POWER / 2)
    starts = np.arange(n + 1) * rows.shape[1]
    graph = csr_array((weights.reshape(-1), rows.reshape(-1), starts), (n, n))
    graph = (graph + graph.T).tocsr()
    # Plain lists: one image at a time changes, and arrays of twenty numbers are slow.
    first, others, strengths = graph.indptr.tolist(), graph.indices.tolist(), graph.data.tolist()
    group = list(range(n))
    rng = np.random.default_rng(0)
    for _ in range(_MOST_ROUNDS):
        changed = 0
        for image in rng.permutation(n).tolist():
            votes: dict[int, float] = {}
            for place in range(first[image], first[image + 1]):
                other = group[others[place]]
                votes[other] = votes.get(other, 0.0) + strengths[place]
            best, most = group[image], votes.get(group[image], 0.0)
            for other, strength in votes.items():
                if strength > most:
                    best, most = other, strength
            changed += best != group[image]
            group[image] = best
        progress()
        if changed <= _RESTLESS * n:
            break
    _, places, numbers = np.unique(group, return_index=True, return_inverse=True)
    return places.argsort().argsort()[numbers]
