"""How strongly the unlabeled term pulls.

At the start the labeled term's gradient on an embedding is some 2,000 times the unlabeled term's, and less than it once
the labels are fitted: a fixed weight makes the unlabeled images invisible first and dominant later. Measured where both
terms meet, at the embeddings, with n_L and n_U the running gradient norms of the two bare terms and w the wanted ratio:

    unit     total = L / n_L + w U / n_U          both pull equally strongly (times w) through the whole run
    ratio    total = L + w (n_L / n_U) U          the unlabeled term follows the labeled one, and fades with it
    fixed    total = L + w U                      as published

The optimizer (Adam) is blind to the common scale of both terms, not to changes of it: `unit` divides by n_L from the
first step on, so that the second moments do not see a jump when the unlabeled images come in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stml_semi.config import Balance

# Share of the past in the running norms: about ten steps, as smooth as needed and quick enough to follow the labels.
_MEMORY = 0.9
_TINY = torch.finfo(torch.float32).tiny


class Term(NamedTuple):
    """A loss term and the gradient it alone would cause."""

    value: Float[Tensor, ""]
    """Detached."""
    inputs: tuple[Float[Tensor, "..."], ...]
    """Embeddings first, then parameters of the loss (proxies)."""
    gradients: tuple[Float[Tensor, "..."], ...]
    """Like `inputs`."""
    norm: Float[Tensor, ""]
    """Gradient norm over the embeddings."""


def differentiate(
    value: Float[Tensor, ""],
    embeddings: Sequence[Float[Tensor, "n _"]],
    parameters: Sequence[Float[Tensor, "..."]] = (),
) -> Term:
    """Differentiates a loss once, down to the embeddings and its own parameters, not into the model."""
    inputs = (*embeddings, *parameters)
    gradients = torch.autograd.grad(value, inputs)
    norm = torch.linalg.vector_norm(torch.stack([g.float().norm() for g in gradients[: len(embeddings)]]))
    return Term(value.detach(), inputs, gradients, norm)


class Balanced(NamedTuple):
    """The step's objective."""

    surrogate: Float[Tensor, ""]
    """Its gradient is that of the weighted sum of the terms; its value means nothing."""
    loss: Float[Tensor, ""]
    """Detached: labeled value + unlabeled_weight x unlabeled value."""
    unlabeled_weight: Float[Tensor, ""]
    """What the bare unlabeled loss is multiplied with, relative to the bare labeled loss."""
    grad_ratio: Float[Tensor, ""]
    """Norm of the weighted unlabeled gradient over that of the labeled one, at this step; 0 without either."""


class Balancer(nn.Module):
    """Weighs the terms. Its state (running norms) belongs into checkpoints."""

    norms: Float[Tensor, "2"]
    updates: Float[Tensor, "2"]

    def __init__(self, balance: Balance, weight: float) -> None:
        """
        Args:
            balance: unit, ratio or fixed.
            weight: w above.
        """
        super().__init__()
        self.balance = balance
        self.weight = weight
        self.register_buffer("norms", torch.zeros(2))
        self.register_buffer("updates", torch.zeros(2))

    def forward(self, labeled: Term | None, unlabeled: Term | None, trust: float = 1.0) -> Balanced:
        """Joins the terms of a step; either may be missing, not both.

        Args:
            labeled: the labeled term.
            unlabeled: the unlabeled term.
            trust: share of `weight` that the unlabeled term gets beside labels, 0..1.
        """
        norm_l, norm_u = (
            self._running(i, term) if term is not None else torch.ones_like(self.norms[i])
            for i, term in enumerate((labeled, unlabeled))
        )
        scale_l = 1 / norm_l if self.balance == "unit" else torch.ones_like(norm_l)
        scale_u = torch.full_like(norm_u, self.weight * trust)
        if labeled is None:
            scale_u = torch.ones_like(norm_u)  # Nothing to weigh against.
        elif self.balance != "fixed":
            scale_u = scale_u / norm_u * (1 if self.balance == "unit" else norm_l)
        scaled = [(term, scale) for term, scale in ((labeled, scale_l), (unlabeled, scale_u)) if term is not None]
        surrogate = torch.stack(
            [
                (x * (gradient * scale)).sum()
                for term, scale in scaled
                for x, gradient in zip(term.inputs, term.gradients, strict=True)
            ]
        ).sum()
        if labeled is None or unlabeled is None:
            (term, _), *_ = scaled
            zero = torch.zeros_like(term.value)
            return Balanced(surrogate, term.value, zero + float(labeled is None), zero)
        weight = scale_u / scale_l
        return Balanced(
            surrogate,
            labeled.value + weight * unlabeled.value,
            weight,
            torch.where(labeled.norm > 0, scale_u * unlabeled.norm / (scale_l * labeled.norm).clamp_min(_TINY), 0),
        )

    def _running(self, which: int, term: Term) -> Float[Tensor, ""]:
        """Running mean of a term's gradient norm, without the bias towards its start at zero."""
        self.norms[which] = _MEMORY * self.norms[which] + (1 - _MEMORY) * term.norm
        self.updates[which] += 1
        return (self.norms[which] / (1 - _MEMORY ** self.updates[which])).clamp_min(_TINY)
