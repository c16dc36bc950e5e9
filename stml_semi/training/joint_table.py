"""The pool with held-out labeled images standing in it, their labels hidden."""

from typing import NamedTuple

import torch
from torch import Tensor

from stml_semi.losses.evidence import Surroundings
from stml_semi.neighbors import Neighbors, nearest_neighbors
from stml_semi.runtime import distributed

MOST = 24
"""Images of a class that are looked at; of most classes there are fewer."""
DRAWS = 4
"""A number of images a class is tried with so many random choices of them, so that all of them count."""
CANDIDATES = 50
"""Pairs of an image and its nearest: enough to hold all that may show the same thing."""
# Cosine of whitened embeddings from which an image of the pool is a held-out one: they differ by rounding alone.
_TWIN = 0.999
# Images of the pool on which a refresh judges it.
_JUDGED = 2000


class JointTable(NamedTuple):
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


def alone(joint: JointTable) -> Tensor:
    """(P + H,) what is absent where no held-out image stands in the pool."""
    absent = joint.twins.clone()
    absent[joint.first :] = True
    return absent


def join(pool: Tensor, held_out: Tensor, others: Tensor, count: int) -> JointTable:
    unit = torch.cat([pool, held_out])
    near = search(unit, min(count + MOST, len(unit) - 1))
    twins = _twins(near, len(pool))
    if twins.any():  # They leave the neighborhoods too.
        near = search(unit, min(count + 2 * MOST, len(unit) - 1))
    if len(others):
        more = nearest_neighbors(unit, near.indices.shape[1], queries=others)
        near = Neighbors(*(torch.cat(parts) for parts in zip(near, more, strict=True)))
    return JointTable(torch.cat([unit, others]), near, len(pool), twins)


def _twins(near: Neighbors, first: int) -> Tensor:
    """(P + H,) images of the pool that are the same as a held-out one."""
    same = (near.similarities[first:] >= _TWIN) & (near.indices[first:] < first)
    twins = torch.zeros(len(near.indices), dtype=torch.bool, device=near.indices.device)
    twins[near.indices[first:][same]] = True
    return twins


def places(labels: Tensor, generator: torch.Generator) -> Tensor:
    """(H,) each image's place in a random order of its class, on the CPU."""
    order = torch.randperm(len(labels), generator=generator)
    classes, by_class = labels.cpu()[order].sort(stable=True)
    starts = torch.searchsorted(classes, classes)
    places = torch.empty_like(order)
    places[order[by_class]] = torch.arange(len(order)) - starts
    return places


def absent_but(joint: JointTable, labels: Tensor, each: int, generator: torch.Generator) -> Tensor:
    absent = joint.twins.clone()
    absent[joint.first :] = (places(labels, generator) >= each).to(absent.device)
    return absent


def sample(total: int, device: torch.device) -> Tensor:
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
