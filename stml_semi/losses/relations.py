"""Contextualized affinity: which images of a batch show the same thing, judged by a teacher without labels.

Source: Kim et al., "Self-Taught Metric Learning without Labels", CVPR 2022, section 3.2 (equations 1 to 4).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Integer
from torch import Tensor

from stml_semi.losses.distances import normalize, pairwise_squared_distances


class Affinity(NamedTuple):
    """All without gradient. The losses do not use the diagonals."""

    pairwise: Float32[Tensor, "n n"]
    """P: similarity of two embeddings, 0..1, symmetric."""
    mutual: Float32[Tensor, "n n"]
    """V: 1 where two rows are among each other's nearest neighbors."""
    contextual: Float32[Tensor, "n n"]
    """C: how much the neighborhoods of two rows agree, 0..1, symmetric."""
    affinity: Float32[Tensor, "n n"]
    """W = (P + C) / 2: the degree to which two rows show the same class, 0..1, symmetric."""


@torch.no_grad()
def calibrated_sigma(embeddings: Float[Tensor, "n d"], *, seed: int, similarity: float = 0.05) -> float:
    """The bandwidth that gives an average pair of images the wanted similarity P.

    Backbones differ in how far apart unrelated images lie, so no number serves them all.

    Args:
        embeddings: of images that mostly do not belong together, need not have unit length.
        seed: of the pairs that are looked at, 65,536 of them.
        similarity: P of the median pair.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randint(len(embeddings), (2, 2**16), generator=generator).to(embeddings.device)
    unit = normalize(embeddings)
    # In parts, so that no (65,536, d) array is needed.
    pairs = zip(first.split(2**12), second.split(2**12), strict=True)
    squared = torch.cat([(unit[i] - unit[j]).square().sum(1) for i, j in pairs])
    median = squared[first != second].median().item()
    return max(median / -math.log(similarity), 1e-6)


@torch.no_grad()
def pooled_affinity(
    teacher_embeddings: Float[Tensor, "n d"], overlap: Float[Tensor, "n n"], *, sigma: float
) -> Float[Tensor, "n n"]:
    """Affinity W = (P + C) / 2 where neighborhoods were compared elsewhere: over the pool.

    Args:
        teacher_embeddings: need not have unit length.
        overlap: C in 0..1, from `neighborhood_overlap`.
        sigma: bandwidth of P.
    """
    pairwise = torch.exp(pairwise_squared_distances(normalize(teacher_embeddings)) / -sigma)
    return (pairwise + overlap) / 2


@torch.no_grad()
def contextual_affinity(
    teacher_embeddings: Float[Tensor, "..."], index: Integer[Tensor, "..."], *, sigma: float, topk: int
) -> Affinity:
    """Affinity between all rows of a batch from the teacher's embeddings.

    Args:
        teacher_embeddings: (N, d), need not have unit length.
        index: (N,); rows with the same value are views of the same image.
        sigma: bandwidth of P = exp(-||t_i - t_j||^2 / sigma), on unit-length embeddings (squared distances 0..4).
        topk: size of a neighborhood, the row itself included: num_neighbors x num_views.

    Raises:
        ValueError: shapes that do not fit, `sigma` not positive, `topk` outside 1..N.
    """
    rows = len(teacher_embeddings)
    if teacher_embeddings.ndim != 2 or index.shape != (rows,):
        raise ValueError(
            f"teacher_embeddings must be (N, d) and index (N,), got {tuple(teacher_embeddings.shape)} "
            f"and {tuple(index.shape)}"
        )
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if not 1 <= topk <= rows:
        raise ValueError(f"topk must be between 1 and the {rows} rows of the batch, got {topk}")

    pairwise = torch.exp(pairwise_squared_distances(normalize(teacher_embeddings)) / -sigma)
    # Views of one image are neighbors by construction, whatever the teacher thinks of the augmentation.
    ranking = pairwise.masked_fill(index[:, None] == index[None, :], 1.0)
    neighbors = ranking.topk(topk).indices

    mutual = torch.zeros_like(pairwise).scatter_(1, neighbors, 1.0)
    mutual = mutual * mutual.T
    # An image drawn more than topk times ties with itself and may leave a row without mutual neighbors.
    size = mutual.sum(1, keepdim=True).clamp_min(1)
    overlap = mutual * (mutual @ mutual.T) / size
    # Query expansion: what the closer half of my neighbors sees, averaged. A bag avoids the (N, k/2, N) gather.
    expanded = F.embedding_bag(neighbors[:, : max(round(topk / 2), 1)], overlap, mode="mean")
    contextual = (expanded + expanded.T) / 2
    return Affinity(pairwise, mutual, contextual, (pairwise + contextual) / 2)
