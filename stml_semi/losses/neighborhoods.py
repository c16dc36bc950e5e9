"""Contextual similarity over the whole pool: two images are alike whose neighborhoods in the pool are.

STML compares neighborhoods within a batch, where an image meets four of its neighbors and little else. The pool's
neighbor table, which sampling needs anyway, says the same of all live images. An image is described by how often each
image of the pool occurs in the neighborhoods of its nearest neighbors (local query expansion: Zhong et al., "Re-ranking
Person Re-identification with k-reciprocal Encoding", CVPR 2017, section 3.4; equation 4 of STML); two images are as
alike as the cosine of their counts.
"""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor


def neighborhood_overlap(
    neighborhoods: Int64[Tensor, "p k"], positions: Int64[Tensor, "u"], *, expand: int
) -> Float32[Tensor, "u u"]:
    """Cosine of the expanded neighborhoods of some images of the pool.

    Args:
        neighborhoods: positions in the pool, on the CPU: each image itself, then its nearest others.
        positions: of the images; one may stand there more than once.
        expand: how many images, the first of a neighborhood, are asked for theirs.

    Returns:
        In 0..1, symmetric; 1 for an image and itself.
    """
    columns, members = _members(neighborhoods, positions, expand).unique(return_inverse=True)
    counts = torch.zeros(len(positions), len(columns)).scatter_add_(1, members, torch.ones(members.shape))
    counts /= counts.norm(dim=1, keepdim=True)
    return (counts @ counts.T).clamp_max_(1)


def rerank(
    neighborhoods: Int64[Tensor, "p k"], *, expand: int, rows: Int64[Tensor, "m"] | None = None
) -> Int64[Tensor, "m k-1"]:
    """Sorts each neighborhood by `neighborhood_overlap`, likest first; equals stay in their order.

    Args:
        neighborhoods: positions in the pool: each image itself, then its nearest others.
        expand: as in `neighborhood_overlap`.
        rows: whose neighborhoods to sort. Default: all.

    Returns:
        Without the image itself. Memory: 64 MB, or k x expand x k numbers if that is more.
    """
    total = len(neighborhoods)
    device = neighborhoods.device
    every = torch.arange(total, device=device)
    rows = every if rows is None else rows
    chunk = max(2**24 // total, 1)
    lengths = torch.cat([_counts(neighborhoods, part, expand).norm(dim=1) for part in every.split(chunk)])
    parts = []
    for part in rows.split(chunk):
        counts = _counts(neighborhoods, part, expand)
        others = neighborhoods[part, 1:]
        asked = _members(neighborhoods, others.flatten(), expand).view(len(part), -1)
        alike = counts.gather(1, asked).view(*others.shape, -1).sum(2) / lengths[others]
        parts.append(others.gather(1, alike.argsort(dim=1, descending=True, stable=True)))
    return torch.cat(parts) if parts else neighborhoods.new_empty(0, neighborhoods.shape[1] - 1)


def _members(
    neighborhoods: Int64[Tensor, "p k"], positions: Int64[Tensor, "u"], expand: int
) -> Int64[Tensor, "u members"]:
    """The neighborhoods of the first `expand` of each neighborhood, one after the other: expand x k members."""
    return neighborhoods[neighborhoods[positions, :expand]].flatten(1)


def _counts(neighborhoods: Int64[Tensor, "p k"], positions: Int64[Tensor, "u"], expand: int) -> Float32[Tensor, "u p"]:
    """How often each image of the pool is a member."""
    members = _members(neighborhoods, positions, expand)
    counts = torch.zeros(len(positions), len(neighborhoods), device=members.device)
    return counts.scatter_add_(1, members, torch.ones(members.shape, device=members.device))
