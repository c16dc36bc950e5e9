"""What evidence is worth by labeled images alone: how rarely two of different classes look like two of one."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.losses.evidence import PairEvidence, Weights, fit
from stml_semi.neighbors import nearest_neighbors
from stml_semi.training.joint_table import CANDIDATES, DRAWS, JointTable, absent_but, alone, sample

# Held-out images that are compared with all labeled ones, a draw.
_COMPARED = 256
# Pairs of classes that look most alike, from which it is concluded how many look more alike still.
_TAIL = 10
# Where between the evidence for pairs of one class it is counted how many others have as much.
_LEVELS = (0.25, 0.5, 0.75)


class _LabeledPairs(NamedTuple):
    """What labeled images say, with some of each held-out class standing in the pool."""

    same: PairEvidence
    """(s,) held-out images and those of their class that stand there too."""
    different: PairEvidence
    """(t,) held-out images and labeled ones of other classes."""
    near: PairEvidence
    """(h, c) held-out images and their nearest in the pool."""
    classes: Tensor
    """(t, 2) of both images in `different`."""


def _labeled_pairs(
    config: TrainConfig,
    joint: JointTable,
    labels: Tensor,
    others: Tensor,
    each: int,
    count: int,
    generator: torch.Generator,
) -> _LabeledPairs:
    absent = absent_but(joint, labels, each, generator)
    table = joint.surroundings(absent, count)
    every = torch.arange(len(joint.unit), device=joint.unit.device)
    labeled, there = every[joint.first :], ~absent[joint.first :]
    compared = there.nonzero()[:, 0]
    if len(compared) > _COMPARED:
        some = torch.randperm(len(compared), generator=generator)[:_COMPARED]
        compared = compared[some.sort().values.to(compared.device)]
    rows = labeled[compared]
    theirs = torch.cat([labels, others])
    own = labels[compared, None]
    alike = own == theirs
    found = table.evidence(rows, labeled.expand(len(rows), -1), expand=config.num_neighbors)
    fellows = alike & torch.cat([there, there.new_zeros(len(others))]) & (labeled != rows[:, None])
    pool = every[: joint.first][~joint.twins[: joint.first]]
    near = nearest_neighbors(joint.unit[pool], min(CANDIDATES, len(pool)), queries=joint.unit[rows])
    return _LabeledPairs(
        PairEvidence(*(part[fellows] for part in found)),
        PairEvidence(*(part[~alike] for part in found)),
        table.evidence(rows, pool[near.indices], expand=config.num_neighbors),
        torch.stack([own.expand_as(alike)[~alike], theirs.expand_as(alike)[~alike]], 1),
    )


def from_labeled_pairs(
    config: TrainConfig,
    joint: JointTable,
    labels: Tensor,
    others: Tensor,
    each: int,
    count: int,
    generator: torch.Generator,
) -> Weights | None:
    """What evidence is worth if the labeled classes are confused as often as any.

    How rare some evidence is between labeled images of different classes, times the images of the pool, is how many of
    these have it for an image without showing the same thing. What is found beyond this shows the same thing.

    Returns:
        None if nothing is found beyond it near to the held-out images: the pool has none of their classes then, and the
        other measurement is right. None, too, if a single class is held out.
    """
    drawn = [_labeled_pairs(config, joint, labels, others, each, count, generator) for _ in range(DRAWS)]
    same, different, near = (
        PairEvidence(*(torch.cat([pairs[part][i] for pairs in drawn]) for i in range(2))) for part in range(3)
    )
    classes = torch.cat([pairs.classes for pairs in drawn])
    num_classes = len(labels.unique())
    if num_classes < 2 or not len(same.overlap):  # One class says nothing of how classes differ.
        return None
    present = joint.first - int(joint.twins.sum())
    num_pairs = num_classes * (num_classes - 1) / 2 + num_classes * len(others.unique())
    # Half a pair of classes might be alike beside those that were seen, as half a case is added to a rare count.
    unseen = 0.5 * present / num_pairs
    rare = _confusion(different.overlap, classes)
    weight = torch.cat(
        [
            torch.full_like(same.overlap, 1 / len(same.overlap)),
            rare(same.overlap).mul(present).clamp(max=unseen) / len(same.overlap),
            torch.full_like(different.overlap, present / len(different.overlap)),
        ]
    )
    pairs = PairEvidence(*(torch.cat([part, part, other]) for part, other in zip(same, different, strict=True)))
    target = torch.arange(len(weight), device=weight.device) < len(same.overlap)
    weights = fit(pairs, target, weight * len(near.overlap))

    own = joint.surroundings(alone(joint), count)
    some = sample(joint.first, joint.unit.device)
    of_pool = own.evidence(some, own.neighborhoods[some, 1:], expand=config.num_neighbors)
    scores = [
        weights.overlap * part.overlap + weights.nearness * part.nearness for part in (same, different, of_pool, near)
    ]
    fellows = 0.0
    levels = same.overlap.new_tensor(_LEVELS)
    for level, overlap in zip(scores[0].quantile(levels), same.overlap.quantile(levels), strict=True):
        caught, _, pool, held_out = (float((part >= level).float().sum() / len(part)) for part in scores)
        wrong = present * _rate(scores[1] >= level, classes) + min(unseen * caught, present * float(rare(overlap)))
        fellows = max(fellows, (min(pool, held_out) - wrong) / caught)
    return weights._replace(bias=weights.bias + math.log(fellows)) if fellows > 0 else None


def _rate(found: Tensor, classes: Tensor) -> float:
    """How often something is found between a held-out image and one of another class, and a standard error more."""
    _, place = classes[:, 0].unique(return_inverse=True)
    # A class that looks like many others counts as one observation.
    rates = place.bincount(found.float()) / place.bincount()
    return float(rates.mean() + rates.std() / math.sqrt(len(rates)))


def _confusion(overlap: Tensor, classes: Tensor) -> Callable[[Tensor], Tensor]:
    """How often images of two classes have at least some overlap, beyond what was seen too.

    The tail is taken to be a power of the overlap (Hill, "A Simple General Approach to Inference About the Tail of a
    Distribution", 1975), from the overlap that ten pairs of classes exceed. Where it could be compared it falls faster.
    Below that overlap there are pairs to count, and its own rate is given.

    Args:
        overlap: (t,) between images of different classes.
        classes: (t, 2) of both images.
    """
    # Two held-out classes meet in both directions, and are one observation.
    pairs, place = classes.sort(dim=1).values.unique(dim=0, return_inverse=True)
    most = overlap.new_zeros(len(pairs)).scatter_reduce(0, place, overlap, "amax").sort(descending=True).values
    start = float(most[_TAIL]) if len(most) > _TAIL else 0.0
    if start <= 0:
        return torch.ones_like
    beyond = overlap > start
    # As slow a fall as ten observations leave open: one standard error less.
    power = (1 - 1 / math.sqrt(_TAIL)) / float((overlap[beyond] / start).log().mean())
    rate = _rate(beyond, classes)
    return lambda level: rate * (level.clamp(min=start) / start).pow(-power)
