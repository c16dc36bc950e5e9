"""Which images stand for most of a pool: greedy coverage of neighborhoods.

An image stands for its neighbors, each as far as the two are alike; what is labeled already stands for its own. The
next choice is the image that adds most. So the choices are typical (they have many near neighbors), unlike what is
labeled, and unlike each other. This is the facility location problem, whose greedy solution is within 1 - 1/e of the
best (Nemhauser, Wolsey and Fisher, 1978), on the graph of nearest neighbors as in ProbCover (Yehuda et al., NeurIPS
2022), but with similarities in the place of a radius that somebody has to know.
"""

import heapq
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.neighbors import Gallery, Neighbors

NEIGHBORS = 20
"""Of each image: what it can stand for at most, so that memory and time grow with the images alone."""
_BLOCK = 4096


class Choice(NamedTuple):
    """An image that was chosen."""

    row: int
    gain: float
    """Images that it stands for and that nothing before it stood for: a sum of similarities."""


class Surroundings(NamedTuple):
    """Images of a pool and what is near to each of them."""

    unit: Tensor
    """(n, d) directions from the mean of the pool: unrelated images have a cosine of zero, whatever the backbone."""
    center: Tensor
    """(d,)"""
    rows: NDArray[np.int64]
    """(n, k) the nearest of each."""
    weights: NDArray[np.float32]
    """(n, k) how far these stand for it, 0..1."""

    def covered(self, labeled: Tensor) -> NDArray[np.float32]:
        """(n,) how far labeled images, (m, d) embeddings, stand for each of the pool; 1: it is one of them."""
        if not len(labeled):
            return np.zeros(len(self.unit), np.float32)
        others = F.normalize(F.normalize(labeled.float(), dim=1) - self.center, dim=1)
        return _weights(Gallery(others).search(self.unit, 1).similarities[:, 0])


def survey(embeddings: Tensor, progress: Callable[[int], None] = lambda images: None) -> Surroundings:
    """Finds what is near to each image.

    Args:
        embeddings: (n, d) of the pool.
        progress: is told how many images were compared with all others.
    """
    unit = F.normalize(embeddings.float(), dim=1)
    center = unit.mean(0)
    unit = F.normalize(unit - center, dim=1)
    k = min(NEIGHBORS, len(unit) - 1)
    if k < 1:
        return Surroundings(unit, center, np.zeros((len(unit), 0), np.int64), np.zeros((len(unit), 0), np.float32))
    near = all_nearest(unit, k, progress)
    return Surroundings(unit, center, near.indices.numpy(), _weights(near.similarities))


def all_nearest(unit: Tensor, k: int, progress: Callable[[int], None] = lambda images: None) -> Neighbors:
    """The k others that are nearest to each image, (n, k).

    Args:
        unit: (n, d) of unit length.
        k: below n.
        progress: is told how many images were compared with all others.
    """
    gallery, found = Gallery(unit), []
    for rows in torch.arange(len(unit)).split(_BLOCK):
        found.append(gallery.search(unit[rows], k, exclude=rows))
        progress(len(rows))
    return Neighbors(torch.cat([one.indices for one in found]), torch.cat([one.similarities for one in found]))


def _weights(cosines: Tensor) -> NDArray[np.float32]:
    return cosines.clamp(0, 1).square().numpy()


def choose(near: Surroundings, count: int, covered: NDArray[np.float32]) -> list[Choice]:
    """Chooses images of a pool, best first.

    Args:
        near: the pool.
        count: how many; fewer if nothing is left that adds anything.
        covered: (n,) how far labeled images stand for each.
    """
    covered = covered.copy()
    n, k = near.rows.shape
    # An image stands for those that have it among their nearest: a list of (who, how much) for each.
    order = np.argsort(near.rows, axis=None, kind="stable")
    start = np.searchsorted(near.rows.reshape(-1)[order], np.arange(n + 1))
    who, weight = order // k, near.weights.reshape(-1)[order]

    def gain(row: int) -> float:
        own = slice(start[row], start[row + 1])
        return float(np.maximum(weight[own] - covered[who[own]], 0).sum() + max(1 - covered[row], 0))

    gains = np.maximum(weight - covered[who], 0)
    first = np.add.reduceat(np.append(gains, 0), start[:-1]) * (np.diff(start) > 0) + np.maximum(1 - covered, 0)
    # Gains only fall: the best of the old values that is still the best when counted again is the best of all.
    heap = [(-value, row) for row, value in enumerate(first.tolist())]
    heapq.heapify(heap)
    chosen: list[Choice] = []
    while heap and len(chosen) < count:
        old, row = heapq.heappop(heap)
        now = gain(row)
        if heap and now < -heap[0][0] and now < -old:
            heapq.heappush(heap, (-now, row))
            continue
        if now <= 0:
            break
        chosen.append(Choice(row, now))
        own = slice(start[row], start[row + 1])
        covered[who[own]] = np.maximum(covered[who[own]], weight[own])
        covered[row] = 1
    return chosen
