"""How well groups agree with classes, as generalized category discovery scores it.

Source: Vaze et al., "Generalized Category Discovery", CVPR 2022, section 4.1.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor


class GroupAccuracy(NamedTuple):
    """Shares of images whose group was given their class, 0..1."""

    all: float
    old: float | None
    """Of the classes that were known; None without images of them."""
    new: float | None
    """Of the others."""


def group_accuracy(groups: Int64[Tensor, "n"], classes: Int64[Tensor, "n"], known: Bool[Tensor, "n"]) -> GroupAccuracy:
    """Gives every group a class, no class to two groups, so that most images are right.

    Args:
        groups: of images, numbered from 0.
        classes: their true ones, numbered from 0.
        known: whether labels of an image's class were at hand.

    Raises:
        ValueError: no images.
    """
    if not len(groups):
        raise ValueError("groups are empty: there is nothing to score")
    right = _right(groups, classes)
    old, new = right[known], right[~known]
    means = [float(part.double().mean()) if len(part) else None for part in (old, new)]
    return GroupAccuracy(float(right.double().mean()), *means)


def _right(groups: Int64[Tensor, "n"], classes: Int64[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Images whose group was given their class (Hungarian, on the pairs that occur: there may be many groups)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    pairs, counts = torch.stack([groups, classes]).unique(dim=1, return_counts=True)
    num_groups, num_classes = int(groups.max()) + 1, int(classes.max()) + 1
    # Every group may also stay without a class: a full matching always exists.
    own = np.arange(num_groups)
    rows, columns = np.append(pairs[0].numpy(), own), np.append(pairs[1].numpy(), num_classes + own)
    weights = np.append(counts.numpy() + 1, np.ones_like(own))
    table = coo_matrix((weights, (rows, columns)), shape=(num_groups, num_classes + num_groups)).tocsr()
    matched, given = min_weight_full_bipartite_matching(table, maximize=True)
    class_of = torch.full((num_groups,), -1)
    class_of[torch.from_numpy(matched).long()] = torch.from_numpy(given).long()
    return class_of[groups] == classes
