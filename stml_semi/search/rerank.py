"""Reordering of answers by k-reciprocal neighborhoods (Zhong et al., CVPR 2017), among the nearest images of a query.

Two images are related if each is among the nearest of the other. The query and its candidates are compared by how much
their related images have in common, and by their cosine. The paper does this over the whole gallery; among 100
candidates it takes no further search, and gives most of the gain.
"""

import torch
from torch import Tensor

CANDIDATES = 100
_RELATED = 8
"""Nearest images that must be mutual; the image itself comes on top."""
_AVERAGED = 3
"""Nearest images, itself among them, whose relations are averaged."""
_COSINE = 0.7
"""Share of the cosine in the order: with less of it the first answer gets worse."""


def order(query: Tensor, candidates: Tensor) -> list[int]:
    """Places of the candidates, best first.

    Args:
        query: (d,) of unit length.
        candidates: (c, d) its nearest images, of unit length.
    """
    unit = torch.cat([query[None], candidates])
    cosines = unit @ unit.T
    cosines.fill_diagonal_(2)  # Each is its own nearest, beside exact copies too.
    near = cosines.topk(min(_RELATED + 1, len(unit))).indices
    mutual = torch.zeros_like(cosines, dtype=torch.bool).scatter_(1, near, True)
    mutual = mutual & mutual.T
    relations = torch.where(mutual, (cosines.clamp(max=1) - 1).exp(), 0.0)
    relations /= relations.sum(1, keepdim=True)
    relations = relations[near[:, :_AVERAGED]].mean(1)
    common = torch.minimum(relations[0], relations[1:]).sum(1)
    jaccard = common / (2 - common)
    score = (1 - _COSINE) * jaccard + _COSINE * cosines[0, 1:]
    return score.argsort(descending=True, stable=True).tolist()
