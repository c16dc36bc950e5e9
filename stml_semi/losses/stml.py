"""The STML loss: relaxed contrastive on both heads, and self-distillation from g to f.

Source: Kim et al., "Self-Taught Metric Learning without Labels", CVPR 2022, section 3.3 (equations 5 to 8).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from stml_semi.losses.distances import normalize as unit_length
from stml_semi.losses.distances import relative_distances


class StmlLoss(NamedTuple):
    """With gradient."""

    total: Float32[Tensor, ""]
    relaxed_contrastive: Float32[Tensor, ""]
    """(RC(f) + RC(g)) / 2."""
    self_distillation: Float32[Tensor, ""]
    """KL from the relations of g to those of f."""


def relaxed_contrastive(
    distances: Float[Tensor, "n n"], affinity: Float[Tensor, "n n"], *, delta: float
) -> Float[Tensor, ""]:
    """Pulls rows together by their affinity W and pushes them apart, up to `delta`, by 1 - W (equation 6).

    Args:
        distances: relative distances D with gradient; the diagonal is 0.
        affinity: in 0..1; the diagonal is not used.
        delta: margin, in units of the mean distance of a row.

    Returns:
        Sum over i != j of W D^2 + (1 - W) relu(delta - D)^2, divided by n (n - 1).
    """
    rows = len(distances)
    terms = affinity * distances.square() + (1 - affinity) * (delta - distances).relu().square()
    return (terms.sum() - terms.diagonal().sum()) / (rows * (rows - 1))


def stml_loss(
    f: Float[Tensor, "..."],
    g: Float[Tensor, "..."],
    affinity: Float[Tensor, "..."],
    *,
    delta: float,
    normalize: bool = False,
) -> StmlLoss:
    """The unlabeled term on one (global) batch of student embeddings.

    Args:
        f: (N, d) of the retrieval head.
        g: (N, e) of the auxiliary head.
        affinity: (N, N) in 0..1 from `contextual_affinity`.
        delta: margin of the relaxed contrastive loss.
        normalize: bring rows to unit length first; the published program does not (relative distances have no scale).

    Raises:
        ValueError: shapes that do not fit, or fewer than two rows.
    """
    rows = len(f)
    if f.ndim != 2 or g.ndim != 2 or len(g) != rows or affinity.shape != (rows, rows):
        raise ValueError(
            f"f (N, d), g (N, e) and affinity (N, N) must share N, got {tuple(f.shape)}, {tuple(g.shape)} "
            f"and {tuple(affinity.shape)}"
        )
    if rows < 2:
        raise ValueError("stml_loss compares rows with each other: it needs at least two of them")
    distances_f, distances_g = (relative_distances(unit_length(e) if normalize else e) for e in (f, g))
    contrastive = (
        relaxed_contrastive(distances_f, affinity, delta=delta)
        + relaxed_contrastive(distances_g, affinity, delta=delta)
    ) / 2
    # g is the better student of the teacher (it is wider); f learns the relations of g, not the other way round.
    distillation = F.kl_div(
        torch.log_softmax(-distances_f, 1),
        torch.log_softmax(-distances_g.detach(), 1),
        reduction="batchmean",
        log_target=True,
    )
    return StmlLoss(contrastive + distillation, contrastive, distillation)
