"""What a step minimizes: the labeled term and the unlabeled term on the global batch, balanced."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stml_semi.config import TrainConfig
from stml_semi.losses.balance import Balancer, differentiate
from stml_semi.losses.proxy import LabeledLoss, LossFunction
from stml_semi.losses.relations import contextual_affinity, pooled_affinity
from stml_semi.losses.stml import stml_loss


class Labeled(NamedTuple):
    """The labeled part of the global batch."""

    f: Tensor
    """(B, embedding_dim) of the student."""
    labels: Tensor
    """(B,)"""


class Unlabeled(NamedTuple):
    """The views of the global batch, view after view: V views of U images are V x U rows."""

    f: Tensor
    """(V U, embedding_dim) of the student."""
    g: Tensor
    """(V U, auxiliary_dim) of the student."""
    target: Tensor | None
    """(V U, auxiliary_dim): g of the teacher; None where `affinity` is known."""
    image_index: Tensor
    """(V U,): which image a row shows."""
    sigma: float
    """Bandwidth of pairwise similarity."""
    affinity: Tensor | None = None
    """(V U, V U): W, where the pool knows it."""
    trust: float = 1.0
    """How strongly the term may pull, as a share of what --unlabeled-weight says."""
    overlap: Tensor | None = None
    """(V U, V U): how much the neighborhoods in the pool agree; None compares those within the batch."""


class Terms(NamedTuple):
    """Scalars of a step, and what its health is judged by; everything but the surrogate is detached."""

    surrogate: Tensor
    """What to call backward on: its gradient is that of the balanced terms, its value means nothing."""
    loss: Tensor
    labeled_loss: Tensor
    relaxed_contrastive: Tensor
    self_distillation: Tensor
    unlabeled_weight: Tensor
    grad_ratio: Tensor
    affinity: Tensor | None
    """(V U, V U) of the unlabeled part: what the teacher thinks belongs together."""
    image_index: Tensor | None
    """(V U,) of the unlabeled part: which image a row shows."""
    f: Tensor
    """(N, embedding_dim) of the unlabeled part, or of the labeled one without it."""


LOGGED = (
    "loss",
    "labeled_loss",
    "relaxed_contrastive",
    "self_distillation",
    "unlabeled_weight",
    "grad_ratio",
)
"""The terms that metrics.jsonl shows."""


class Objective(nn.Module):
    """The loss of a run. Its parameters are the proxies, its buffers the running gradient norms of the balance."""

    def __init__(self, config: TrainConfig, *, num_classes: int, labeled_loss: LossFunction | None = None) -> None:
        """
        Args:
            config: of the run.
            num_classes: labels are 0..num_classes - 1; 0 without labeled images.
            labeled_loss: of the program that trains, in place of the one that the configuration names.
        """
        super().__init__()
        self.config = config
        self.labeled_loss = None
        if num_classes:
            self.labeled_loss = LabeledLoss(
                labeled_loss or config.labeled_loss, num_classes=num_classes, embedding_dim=config.embedding_dim
            )
        # Without a second term there is nothing to balance: the labeled baseline is the plain loss.
        self.balancer = Balancer(config.balance if config.unlabeled else "fixed", config.unlabeled_weight)

    def forward(self, labeled: Labeled | None, unlabeled: Unlabeled | None) -> Terms:
        """The terms of one step; either part may be missing, not both."""
        config = self.config
        labeled_term = unlabeled_term = stml = affinity = None
        part = unlabeled or labeled
        assert part is not None
        if labeled is not None:
            assert self.labeled_loss is not None
            value = self.labeled_loss(labeled.f, labeled.labels)
            labeled_term = differentiate(value, [labeled.f], list(self.labeled_loss.parameters()))
        if unlabeled is not None:
            affinity = self._affinity(unlabeled)
            stml = stml_loss(unlabeled.f, unlabeled.g, affinity, delta=config.delta)
            unlabeled_term = differentiate(stml.total, [unlabeled.f, unlabeled.g])
        balanced = self.balancer(labeled_term, unlabeled_term, 1.0 if unlabeled is None else unlabeled.trust)
        zero = torch.zeros_like(balanced.loss)
        return Terms(
            surrogate=balanced.surrogate,
            loss=balanced.loss,
            labeled_loss=zero if labeled_term is None else labeled_term.value,
            relaxed_contrastive=zero if stml is None else stml.relaxed_contrastive.detach(),
            self_distillation=zero if stml is None else stml.self_distillation.detach(),
            unlabeled_weight=balanced.unlabeled_weight,
            grad_ratio=balanced.grad_ratio,
            affinity=affinity,
            image_index=None if unlabeled is None else unlabeled.image_index,
            f=part.f.detach(),
        )

    def _affinity(self, unlabeled: Unlabeled) -> Tensor:
        if unlabeled.affinity is not None:
            return unlabeled.affinity
        assert unlabeled.target is not None
        if unlabeled.overlap is not None:
            return pooled_affinity(unlabeled.target, unlabeled.overlap, sigma=unlabeled.sigma)
        topk = self.config.num_neighbors * self.config.num_views
        return contextual_affinity(unlabeled.target, unlabeled.image_index, sigma=unlabeled.sigma, topk=topk).affinity
