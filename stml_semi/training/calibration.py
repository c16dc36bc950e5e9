"""How right the teacher's relations are, measured on labeled classes that it was not trained on.

They stand in the pool with their labels hidden, as densely as the pool's own images stand, and say how often two images
with some evidence show the same thing. Density matters: where a thing has two images, an image's twenty nearest are
mostly others, and where it has twenty, they are mostly its own. Images of the pool count as other things than the
labeled ones. An image that is a labeled one itself is left out, however: it would be the nearest of all, and the
strongest evidence would count as wrong.

Where the pool holds further images of the labeled classes, all this errs on the side of too little trust, and far. So a
second measurement asks labeled images alone: how rarely two of different classes look like two of one. If images of
the pool look so more often than that, the others are of one class. Neither measurement claims more than it knows, and
the one that knows more counts.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.data.batches.plan import FEWEST_PAIRS
from stml_semi.losses.evidence import PairEvidence, Surroundings, Weights, fit, trust
from stml_semi.neighbors import nearest_neighbors
from stml_semi.training.joint_table import CANDIDATES, DRAWS, MOST, JointTable, absent_but, alone, join, places, sample
from stml_semi.training.labeled_pairs import from_labeled_pairs

# Images of a class that stand in the pool together: the number whose surroundings look most like the pool's is taken.
_DENSITIES = (2, 3, 4, 6, 8, 12, 16, 24)
# Odds do not fall below this for want of fellows: what a few held-out images say of density is not that exact.
_LEAST_SHARE = 0.02
# Labeled images of the other classes that held-out ones are compared with.
MOST_OTHERS = 1000


class LabeledImages(NamedTuple):
    """What is known of some labeled images."""

    embeddings: Tensor
    """(n, d) whitened, of unit length."""
    labels: Tensor
    """(n,)"""


def calibrate(
    config: TrainConfig, pool: Tensor, labeled: LabeledImages, others: LabeledImages | None = None, *, seed: int
) -> Weights | None:
    """What evidence is worth; all processes call this together.

    Args:
        config: of the run.
        pool: (P, d) whitened embeddings of unit length.
        labeled: H images of classes that were not trained on.
        others: T images of other classes, which may have been trained on.
        seed: of the choices among them.

    Returns:
        None if fewer than ten pairs of them show the same thing.
    """
    generator = torch.Generator().manual_seed(seed)
    place = places(labeled.labels, generator)
    held_out, labels = (part[(place < MOST).to(part.device)] for part in labeled)
    if int((labels.bincount() * (labels.bincount() - 1)).sum()) < 2 * FEWEST_PAIRS:
        return None
    count = min(max(config.pool_neighbors, config.num_neighbors), len(pool)) - 1
    joint = join(pool, held_out, pool[:0] if others is None else others.embeddings, count)
    usual = joint.profile(alone(joint), count, pool=True)
    profiles = {m: _profile(joint, labels, count, m, generator) for m in (1, *_densities(labels))}
    best = min(_densities(labels), key=lambda m: float((profiles[m] - usual).square().sum()))
    found = [_pairs(config, joint, labels, count, best, generator) for _ in range(DRAWS)]
    overlap, nearness, same = (torch.cat([part[i].flatten() for part in found]) for i in range(3))
    weights = fit(PairEvidence(overlap, nearness), same)
    if best == _DENSITIES[0]:
        # With fewer than two images of a thing, some have a fellow and others none: the odds fall by their share.
        towards = profiles[best] - profiles[1]
        share = float((usual - profiles[1]) @ towards / towards.square().sum().clamp_min(1e-12))
        weights = weights._replace(bias=weights.bias + math.log(min(max(share, _LEAST_SHARE), 1)))
    if others is None:
        return weights
    again = from_labeled_pairs(config, joint, labels, others.labels, best, count, generator)
    if again is None:
        return weights
    own = joint.surroundings(alone(joint), count)
    return max(weights, again, key=lambda measured: _judge(config, measured, own, len(pool)))


def judge(config: TrainConfig, weights: Weights, pool: Surroundings) -> float:
    """The trust that a pool deserves: how much of the pull towards the neighborhoods is right, if `weights` are."""
    return _judge(config, weights, pool, len(pool.unit))


def _judge(config: TrainConfig, weights: Weights, table: Surroundings, first: int) -> float:
    """The same, of the first images of a table."""
    rows = sample(first, table.unit.device)
    others = table.neighborhoods[rows, 1:]
    return trust(weights.probability(*table.evidence(rows, others, expand=config.num_neighbors)))


def _densities(labels: Tensor) -> list[int]:
    return [m for m in _DENSITIES if m == _DENSITIES[0] or m <= int(labels.bincount().max())]


def _profile(joint: JointTable, labels: Tensor, count: int, each: int, generator: torch.Generator) -> Tensor:
    """(count,) mean similarity of held-out images with their nearest, where `each` of a class stand in the pool."""
    drawn = [joint.profile(absent_but(joint, labels, each, generator), count, pool=False) for _ in range(DRAWS)]
    return torch.stack(drawn).mean(0)


def _pairs(
    config: TrainConfig, joint: JointTable, labels: Tensor, count: int, each: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, nearness and sameness of held-out images and their nearest, (h, c) each."""
    absent = absent_but(joint, labels, each, generator)
    pool = joint.surroundings(absent, count)
    every = torch.arange(len(absent), device=joint.unit.device)
    rows = every[joint.first :][~absent[joint.first :]]
    present = every[~absent]
    candidates = min(CANDIDATES, len(present) - 1)
    own = torch.searchsorted(present, rows)
    others = present[nearest_neighbors(joint.unit[present], candidates, queries=joint.unit[rows], exclude=own).indices]
    named = torch.cat([labels.new_full((joint.first,), -1), labels])
    evidence = pool.evidence(rows, others, expand=config.num_neighbors)
    return evidence.overlap, evidence.nearness, named[rows, None] == named[others]
