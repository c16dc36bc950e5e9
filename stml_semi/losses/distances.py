"""Pairwise distances as a float32 island: exact zeros for duplicates, gradients that stay finite there."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor
from torch.autograd.function import once_differentiable

from stml_semi.runtime.exact import exact_float32

# Squared distances come from a matrix product, whose float32 rounding is about this share of the squared norms.
# Anything below is noise around zero: it counts as zero, and carries no gradient.
_RESOLUTION = 1e-6


def pairwise_squared_distances(embeddings: Float[Tensor, "n d"]) -> Float32[Tensor, "n n"]:
    """Squared Euclidean distances between all rows, never negative, zero on the diagonal.

    Computed in float32 also under autocast.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        x = embeddings.float()
        # Distances do not change when all rows move, but the rounding of the product below shrinks with the norms.
        x = x - x.detach().mean(0, keepdim=True)
        return cast(Tensor, _SquaredDistances.apply(x))


class _SquaredDistances(torch.autograd.Function):
    """As autograd would derive, but with one matrix product in the backward pass, not two: distances are symmetric."""

    @staticmethod
    @exact_float32()
    def forward(ctx: Any, x: Float32[Tensor, "n d"]) -> Float32[Tensor, "n n"]:
        squared = x @ x.T
        norms = squared.diagonal().clone()
        scale = norms[:, None] + norms[None, :]
        squared.mul_(-2).add_(scale)
        squared.masked_fill_(squared <= scale.mul_(_RESOLUTION), 0).fill_diagonal_(0)
        ctx.save_for_backward(x, squared)
        return squared

    @staticmethod
    @once_differentiable
    @exact_float32()
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Float32[Tensor, "n n"]
    ) -> Float32[Tensor, "n d"]:
        x, squared = ctx.saved_tensors
        # dL/dx_i = sum_j 2 (G_ij + G_ji) (x_i - x_j), over pairs that are apart.
        pull = (grad_outputs[0] + grad_outputs[0].T).masked_fill_(squared == 0, 0)
        return torch.addmm(2 * pull.sum(1, keepdim=True) * x, pull, x, alpha=-2)


def pairwise_distances(embeddings: Float[Tensor, "n d"]) -> Float32[Tensor, "n n"]:
    """Euclidean distances between all rows; where two rows coincide the distance is 0 and so is its gradient.

    The plain `sqrt` has an infinite slope at zero, which turns into NaN as soon as one image stands twice in a batch.
    """
    squared = pairwise_squared_distances(embeddings)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)


def relative_distances(embeddings: Float[Tensor, "n d"]) -> Float32[Tensor, "n n"]:
    """Distances divided by the mean of their row (diagonal included): D of STML, eq. 5.

    The mean carries gradient. A batch in which all rows coincide has no scale: its distances stay 0.
    """
    distances = pairwise_distances(embeddings)
    return distances / distances.mean(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def normalize(embeddings: Float[Tensor, "n d"]) -> Float32[Tensor, "n d"]:
    """Rows brought to unit length."""
    return F.normalize(embeddings.float(), dim=1)
