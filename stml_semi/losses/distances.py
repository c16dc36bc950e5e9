"""Pairwise distances as a float32 island: exact zeros for duplicates, gradients that stay finite there."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Squared distances come from a matrix product, whose float32 rounding is about this share of the squared norms.
# Anything below is noise around zero: it counts as zero, and carries no gradient.
_RESOLUTION = 1e-6


def pairwise_squared_distances(embeddings: Tensor) -> Tensor:
    """Squared Euclidean distances between all rows, never negative, zero on the diagonal.

    Args:
        embeddings: (N, d), any floating type; computed in float32, also under autocast.

    Returns:
        (N, N) float32.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        x = embeddings.float()
        # Distances do not change when all rows move, but the rounding of the product below shrinks with the norms.
        x = x - x.detach().mean(0, keepdim=True)
        norms = x.square().sum(1)
        scale = norms[:, None] + norms[None, :]
        squared = torch.addmm(scale, x, x.T, alpha=-2)
        return torch.where(squared > _RESOLUTION * scale.detach(), squared, 0).fill_diagonal_(0)


def pairwise_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances between all rows; where two rows coincide the distance is 0 and so is its gradient.

    (N, d) -> (N, N) float32. The plain `sqrt` has an infinite slope at zero, which turns into NaN as soon as one
    picture stands twice in a batch.
    """
    squared = pairwise_squared_distances(embeddings)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)


def relative_distances(embeddings: Tensor) -> Tensor:
    """Distances divided by the mean of their row (diagonal included): D of STML, eq. 5. (N, d) -> (N, N) float32.

    The mean carries gradient. A batch in which all rows coincide has no scale: its distances stay 0.
    """
    distances = pairwise_distances(embeddings)
    return distances / distances.mean(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def normalize(embeddings: Tensor) -> Tensor:
    """Rows brought to unit length in float32. (N, d) -> (N, d)."""
    return F.normalize(embeddings.float(), dim=1)
