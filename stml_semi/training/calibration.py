"""How right the teacher's relations are, measured on labeled classes that it was not trained on.

They stand in the pool with their labels hidden, as densely as the pool's own images stand, and say how often two images
with some evidence show the same thing. Density matters: where a thing has two images, an image's twenty nearest are
mostly others, and where it has twenty, they are mostly its own. Images of the pool count as other things than the
labeled ones. An image that is a labeled one itself is left out, however: it would be the nearest of all, and the
strongest evidence would count as wrong.

Where the pool holds further images of the labeled classes, all this errs on the side of too little trust, and far. So a
second measurement asks labeled images alone: how rarely two of different classes look like two of one. If images of
the pool look so more often than that, the others are of one class. It takes some hundred pairs of
labeled classes to see anything. Neither measurement claims more than it knows, and the one that knows more counts.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.data.batches.plan import FEWEST_PAIRS
from stml_semi.losses.evidence import PairEvidence, Surroundings, Weights, fit, trust
from stml_semi.neighbors import Neighbors, nearest_neighbors
from stml_semi.runtime import distributed

# Images of a class that are looked at; of most classes there are fewer.
_MOST = 24
# Images of a class that stand in the pool together: the number whose surroundings look most like the pool's is taken.
_DENSITIES = (2, 3, 4, 6, 8, 12, 16, 24)
# A number of images a class is tried with so many random choices of them, so that all of them count.
_DRAWS = 4
# Pairs of an image and its nearest: enough to hold all that may show the same thing.
_CANDIDATES = 50
# Odds do not fall below this for want of fellows: what a few held-out images say of density is not that exact.
_LEAST_SHARE = 0.02
# Cosine of whitened embeddings from which an image of the pool is a held-out one: they differ by rounding alone.
_TWIN = 0.999
# Images of the pool on which a refresh judges it.
_JUDGED = 2000
# Labeled images of the other classes that held-out ones are compared with.
MOST_OTHERS = 1000
# Held-out images that are compared with all labeled ones, a draw.
_COMPARED = 256
# Where between the evidence for pairs of one class it is counted how many others have as much.
_LEVELS = (0.25, 0.5, 0.75)


class LabeledImages(NamedTuple):
    """What is known of some labeled images."""

    embeddings: Tensor
    """(n, d) whitened, of unit length."""
    labels: Tensor
    """(n,)"""


class _Joint(NamedTuple):
    """Pool and held-out images, and who is near whom."""

    unit: Tensor
    """(P + H + T, d): T images of other labeled classes have neighbors, but are nobody's."""
    near: Neighbors
    """(P + H + T, k): more than a neighborhood holds, since some of the held-out images leave it."""
    first: int
    """Of the held-out images."""
    twins: Tensor
    """(P + H,) whether an image of the pool is a held-out one: it is never there."""

    def surroundings(self, absent: Tensor, count: int) -> Surroundings:
        """What is near to each image where some are absent."""
        near = self.without(absent, count)
        every = torch.arange(len(self.unit), device=self.unit.device)
        return Surroundings(self.unit, torch.cat([every[:, None], near.indices], 1), near.similarities.mean(1))

    def without(self, absent: Tensor, count: int) -> Neighbors:
        """The `count` nearest of each image that are not absent, (P + H,) bool.

        Where too many are absent, the last places are theirs: this happens to images in a crowd of held-out ones alone.
        """
        order = absent[self.near.indices].byte().argsort(dim=1, stable=True)[:, :count]
        return Neighbors(self.near.indices.gather(1, order), self.near.similarities.gather(1, order))

    def profile(self, absent: Tensor, count: int, *, pool: bool) -> Tensor:
        """(count,) mean similarity with the nearest: of the pool's images, or of the held-out ones that are there."""
        similarities = self.without(absent, count).similarities[: len(absent)]
        return similarities[: self.first].mean(0) if pool else similarities[self.first :][~absent[self.first :]].mean(0)


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
    places = _places(labeled.labels, generator)
    held_out, labels = (part[(places < _MOST).to(part.device)] for part in labeled)
    if int((labels.bincount() * (labels.bincount() - 1)).sum()) < 2 * FEWEST_PAIRS:
        return None
    count = min(max(config.pool_neighbors, config.num_neighbors), len(pool)) - 1
    joint = _joint(pool, held_out, pool[:0] if others is None else others.embeddings, count)
    usual = joint.profile(_alone(joint), count, pool=True)
    profiles = {m: _profile(joint, labels, count, m, generator) for m in (1, *_densities(labels))}
    best = min(_densities(labels), key=lambda m: float((profiles[m] - usual).square().sum()))
    found = [_pairs(config, joint, labels, count, best, generator) for _ in range(_DRAWS)]
    overlap, nearness, same = (torch.cat([part[i].flatten() for part in found]) for i in range(3))
    weights = fit(PairEvidence(overlap, nearness), same)
    if best == _DENSITIES[0]:
        # With fewer than two images of a thing, some have a fellow and others none: the odds fall by their share.
        towards = profiles[best] - profiles[1]
        share = float((usual - profiles[1]) @ towards / towards.square().sum().clamp_min(1e-12))
        weights = weights._replace(bias=weights.bias + math.log(min(max(share, _LEAST_SHARE), 1)))
    if others is None:
        return weights
    again = _from_labeled_pairs(config, joint, labels, others.labels, best, count, generator)
    if again is None:
        return weights
    own = joint.surroundings(_alone(joint), count)
    return max(weights, again, key=lambda measured: _judge(config, measured, own, len(pool)))


def judge(config: TrainConfig, weights: Weights, pool: Surroundings) -> float:
    """The trust that a pool deserves: how much of the pull towards the neighborhoods is right, if `weights` are."""
    return _judge(config, weights, pool, len(pool.unit))


def _judge(config: TrainConfig, weights: Weights, table: Surroundings, first: int) -> float:
    """The same, of the first images of a table."""
    rows = _sample(first, table.unit.device)
    others = table.neighborhoods[rows, 1:]
    return trust(weights.probability(*table.evidence(rows, others, expand=config.num_neighbors)))


def _sample(total: int, device: torch.device) -> Tensor:
    return torch.linspace(0, total - 1, min(_JUDGED, total), device=device).long()


def search(unit: Tensor, count: int) -> Neighbors:
    """The nearest of every row; each process searches for its share, and all get the whole."""
    total = len(unit)
    share = distributed.share(total, rank=distributed.rank(), world_size=distributed.world_size())
    rows = torch.arange(total, device=unit.device)[share]
    if not count:
        return Neighbors(rows.new_empty(total, 0), unit.new_empty(total, 0))
    found = nearest_neighbors(unit, count, queries=unit[share], exclude=rows)
    return Neighbors(*(distributed.gather(part, total) for part in found))


def _joint(pool: Tensor, held_out: Tensor, others: Tensor, count: int) -> _Joint:
    unit = torch.cat([pool, held_out])
    near = search(unit, min(count + _MOST, len(unit) - 1))
    twins = _twins(near, len(pool))
    if twins.any():  # They leave the neighborhoods too.
        near = search(unit, min(count + 2 * _MOST, len(unit) - 1))
    if len(others):
        more = nearest_neighbors(unit, near.indices.shape[1], queries=others)
        near = Neighbors(*(torch.cat(parts) for parts in zip(near, more, strict=True)))
    return _Joint(torch.cat([unit, others]), near, len(pool), twins)


def _twins(near: Neighbors, first: int) -> Tensor:
    """(P + H,) images of the pool that are the same as a held-out one."""
    same = (near.similarities[first:] >= _TWIN) & (near.indices[first:] < first)
    twins = torch.zeros(len(near.indices), dtype=torch.bool, device=near.indices.device)
    twins[near.indices[first:][same]] = True
    return twins


def _densities(labels: Tensor) -> list[int]:
    return [m for m in _DENSITIES if m == _DENSITIES[0] or m <= int(labels.bincount().max())]


def _places(labels: Tensor, generator: torch.Generator) -> Tensor:
    """(H,) each image's place in a random order of its class, on the CPU."""
    order = torch.randperm(len(labels), generator=generator)
    classes, by_class = labels.cpu()[order].sort(stable=True)
    starts = torch.searchsorted(classes, classes)
    places = torch.empty_like(order)
    places[order[by_class]] = torch.arange(len(order)) - starts
    return places


def _absent(joint: _Joint, labels: Tensor, each: int, generator: torch.Generator) -> Tensor:
    absent = joint.twins.clone()
    absent[joint.first :] = (_places(labels, generator) >= each).to(absent.device)
    return absent


def _profile(joint: _Joint, labels: Tensor, count: int, each: int, generator: torch.Generator) -> Tensor:
    """(count,) mean similarity of held-out images with their nearest, where `each` of a class stand in the pool."""
    drawn = [joint.profile(_absent(joint, labels, each, generator), count, pool=False) for _ in range(_DRAWS)]
    return torch.stack(drawn).mean(0)


def _pairs(
    config: TrainConfig, joint: _Joint, labels: Tensor, count: int, each: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, nearness and sameness of held-out images and their nearest, (h, c) each."""
    absent = _absent(joint, labels, each, generator)
    pool = joint.surroundings(absent, count)
    every = torch.arange(len(absent), device=joint.unit.device)
    rows = every[joint.first :][~absent[joint.first :]]
    present = every[~absent]
    candidates = min(_CANDIDATES, len(present) - 1)
    own = torch.searchsorted(present, rows)
    others = present[nearest_neighbors(joint.unit[present], candidates, queries=joint.unit[rows], exclude=own).indices]
    named = torch.cat([labels.new_full((joint.first,), -1), labels])
    evidence = pool.evidence(rows, others, expand=config.num_neighbors)
    return evidence.overlap, evidence.nearness, named[rows, None] == named[others]


class _LabeledPairs(NamedTuple):
    """What labeled images say, with some of each held-out class standing in the pool."""

    same: PairEvidence
    """(s,) held-out images and those of their class that stand there too."""
    different: PairEvidence
    """(t,) held-out images and labeled ones of other classes."""
    near: PairEvidence
    """(h, c) held-out images and their nearest in the pool."""
    classes: Tensor
    """(t,) of the held-out images in `different`."""


def _labeled_pairs(
    config: TrainConfig, joint: _Joint, labels: Tensor, each: int, count: int, generator: torch.Generator
) -> _LabeledPairs:
    absent = _absent(joint, labels, each, generator)
    table = joint.surroundings(absent, count)
    every = torch.arange(len(joint.unit), device=joint.unit.device)
    labeled, there = every[joint.first :], ~absent[joint.first :]
    compared = there.nonzero()[:, 0]
    if len(compared) > _COMPARED:
        some = torch.randperm(len(compared), generator=generator)[:_COMPARED]
        compared = compared[some.sort().values.to(compared.device)]
    rows = labeled[compared]
    num_others = len(labeled) - len(labels)
    own = labels[compared, None]
    alike = own == torch.cat([labels, labels.new_full((num_others,), -1)])
    found = table.evidence(rows, labeled.expand(len(rows), -1), expand=config.num_neighbors)
    fellows = alike & torch.cat([there, there.new_zeros(num_others)]) & (labeled != rows[:, None])
    pool = every[: joint.first][~joint.twins[: joint.first]]
    near = nearest_neighbors(joint.unit[pool], min(_CANDIDATES, len(pool)), queries=joint.unit[rows])
    return _LabeledPairs(
        PairEvidence(*(part[fellows] for part in found)),
        PairEvidence(*(part[~alike] for part in found)),
        table.evidence(rows, pool[near.indices], expand=config.num_neighbors),
        own.expand_as(alike)[~alike],
    )


def _from_labeled_pairs(
    config: TrainConfig,
    joint: _Joint,
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
        other measurement is right.
    """
    drawn = [_labeled_pairs(config, joint, labels, each, count, generator) for _ in range(_DRAWS)]
    same, different, near = (
        PairEvidence(*(torch.cat([pairs[part][i] for pairs in drawn]) for i in range(2))) for part in range(3)
    )
    classes = torch.cat([pairs.classes for pairs in drawn])
    if not len(same.overlap) or not len(different.overlap):
        return None
    present = joint.first - int(joint.twins.sum())
    num_classes = len(labels.unique())
    # Half a pair of classes might be alike beside those that were seen, as half a case is added to a rare count.
    unseen = 0.5 * present / (num_classes * (num_classes - 1 + len(others.unique())))
    weight = torch.cat(
        [
            torch.full_like(same.overlap, 1 / len(same.overlap)),
            torch.full_like(same.overlap, unseen / len(same.overlap)),
            torch.full_like(different.overlap, present / len(different.overlap)),
        ]
    )
    pairs = PairEvidence(*(torch.cat([part, part, other]) for part, other in zip(same, different, strict=True)))
    target = torch.arange(len(weight), device=weight.device) < len(same.overlap)
    weights = fit(pairs, target, weight * len(near.overlap))

    own = joint.surroundings(_alone(joint), count)
    sample = _sample(joint.first, joint.unit.device)
    of_pool = own.evidence(sample, own.neighborhoods[sample, 1:], expand=config.num_neighbors)
    scores = [
        weights.overlap * part.overlap + weights.nearness * part.nearness for part in (same, different, of_pool, near)
    ]
    fellows = 0.0
    for level in torch.quantile(scores[0], scores[0].new_tensor(_LEVELS)):
        caught, _, pool, held_out = (float((part >= level).float().sum() / len(part)) for part in scores)
        # A class that looks like many others counts as one observation.
        rates = (classes.bincount((scores[1] >= level).float()) / classes.bincount())[labels.unique()]
        error = float(rates.std() / math.sqrt(num_classes))
        wrong = present * (float(rates.mean()) + error) + unseen * caught
        fellows = max(fellows, (min(pool, held_out) - wrong) / caught)
    return weights._replace(bias=weights.bias + math.log(fellows)) if fellows > 0 else None


def _alone(joint: _Joint) -> Tensor:
    """(P + H,) what is absent where no held-out image stands in the pool."""
    absent = joint.twins.clone()
    absent[joint.first :] = True
    return absent
