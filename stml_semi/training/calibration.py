"""How right the teacher's relations are, measured on labeled classes that it was not trained on.

They stand in the pool with their labels hidden, as densely as the pool's own images stand, and say how often two images
with some evidence show the same thing. Density matters: where a thing has two images, an image's twenty nearest are
mostly others, and where it has twenty, they are mostly its own. Images of the pool count as other things than the
labeled ones. Where some are not, that errs on the side of too little trust. An image that is a labeled one itself is
left out, however: it would be the nearest of all, and the strongest evidence would count as wrong.
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


class _Joint(NamedTuple):
    """Pool and held-out images, and who is near whom."""

    unit: Tensor
    """(P + H, d)"""
    near: Neighbors
    """(P + H, k): more than a neighborhood holds, since some of the held-out images leave it."""
    first: int
    """Of the held-out images."""
    twins: Tensor
    """(P + H,) whether an image of the pool is a held-out one: it is never there."""

    def without(self, absent: Tensor, count: int) -> Neighbors:
        """The `count` nearest of each image that are not absent, (P + H,) bool.

        Where too many are absent, the last places are theirs: this happens to images in a crowd of held-out ones alone.
        """
        order = absent[self.near.indices].byte().argsort(dim=1, stable=True)[:, :count]
        return Neighbors(self.near.indices.gather(1, order), self.near.similarities.gather(1, order))

    def profile(self, absent: Tensor, count: int, *, pool: bool) -> Tensor:
        """(count,) mean similarity with the nearest: of the pool's images, or of the held-out ones that are there."""
        similarities = self.without(absent, count).similarities
        return similarities[: self.first].mean(0) if pool else similarities[self.first :][~absent[self.first :]].mean(0)


def calibrate(config: TrainConfig, pool: Tensor, held_out: Tensor, labels: Tensor, *, seed: int) -> Weights | None:
    """What evidence is worth; all processes call this together.

    Args:
        config: of the run.
        pool: (P, d) whitened embeddings of unit length.
        held_out: (H, d) of labeled images that were not trained on.
        labels: (H,) their classes.
        seed: of the choices among them.

    Returns:
        None if fewer than ten pairs of them show the same thing.
    """
    generator = torch.Generator().manual_seed(seed)
    places = _places(labels, generator)
    held_out, labels = (part[(places < _MOST).to(part.device)] for part in (held_out, labels))
    if int((labels.bincount() * (labels.bincount() - 1)).sum()) < 2 * FEWEST_PAIRS:
        return None
    count = min(max(config.pool_neighbors, config.num_neighbors), len(pool)) - 1
    unit = torch.cat([pool, held_out])
    near = search(unit, min(count + _MOST, len(unit) - 1))
    twins = _twins(near, len(pool))
    if twins.any():  # They leave the neighborhoods too.
        near = search(unit, min(count + 2 * _MOST, len(unit) - 1))
    joint = _Joint(unit, near, len(pool), twins)
    usual = joint.profile(torch.arange(len(unit), device=unit.device) >= len(pool), count, pool=True)
    profiles = {m: _profile(joint, labels, count, m, generator) for m in (1, *_densities(labels))}
    best = min(_densities(labels), key=lambda m: float((profiles[m] - usual).square().sum()))
    found = [_pairs(config, joint, labels, count, best, generator) for _ in range(_DRAWS)]
    overlap, nearness, same = (torch.cat([part[i].flatten() for part in found]) for i in range(3))
    weights = fit(PairEvidence(overlap, nearness), same)
    if best > _DENSITIES[0]:
        return weights
    # With fewer than two images of a thing, some have a fellow and others none: the odds fall by their share.
    towards = profiles[best] - profiles[1]
    share = float((usual - profiles[1]) @ towards / towards.square().sum().clamp_min(1e-12))
    return weights._replace(bias=weights.bias + math.log(min(max(share, _LEAST_SHARE), 1)))


def judge(config: TrainConfig, weights: Weights, pool: Surroundings) -> float:
    """The trust that a pool deserves: how much of the pull towards the neighborhoods is right, if `weights` are."""
    rows = torch.linspace(0, len(pool.unit) - 1, min(_JUDGED, len(pool.unit)), device=pool.unit.device).long()
    others = pool.neighborhoods[rows, 1:]
    return trust(weights.probability(*pool.evidence(rows, others, expand=config.num_neighbors)))


def search(unit: Tensor, count: int) -> Neighbors:
    """The nearest of every row; each process searches for its share, and all get the whole."""
    total = len(unit)
    share = distributed.share(total, rank=distributed.rank(), world_size=distributed.world_size())
    rows = torch.arange(total, device=unit.device)[share]
    if not count:
        return Neighbors(rows.new_empty(total, 0), unit.new_empty(total, 0))
    found = nearest_neighbors(unit, count, queries=unit[share], exclude=rows)
    return Neighbors(*(distributed.gather(part, total) for part in found))


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
    near = joint.without(absent, count)
    every = torch.arange(len(joint.unit), device=joint.unit.device)
    pool = Surroundings(joint.unit, torch.cat([every[:, None], near.indices], 1), near.similarities.mean(1))
    rows = every[joint.first :][~absent[joint.first :]]
    present = every[~absent]
    candidates = min(_CANDIDATES, len(present) - 1)
    own = torch.searchsorted(present, rows)
    others = present[nearest_neighbors(joint.unit[present], candidates, queries=joint.unit[rows], exclude=own).indices]
    named = torch.cat([labels.new_full((joint.first,), -1), labels])
    evidence = pool.evidence(rows, others, expand=config.num_neighbors)
    return evidence.overlap, evidence.nearness, named[rows, None] == named[others]
