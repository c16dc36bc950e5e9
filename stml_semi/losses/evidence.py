"""What a table of embeddings says about two images showing the same thing, and how likely that makes it.

Two numbers speak for a pair: how much their neighborhoods have in common (`neighborhood_overlap`), which is right where
a thing has many images, and their similarity beyond that of their surroundings (the local scaling of CSLS: Conneau et
al., "Word Translation Without Parallel Data", ICLR 2018), which is right where it has few. A logistic regression on
images whose classes are known, but were not trained on, weighs the two.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64, Integer
from torch import Tensor
from torch.nn.functional import normalize

from stml_semi.losses.neighborhoods import expanded_lengths, overlap_with

DIMENSIONS = 128
"""Leading directions that are whitened: with fewer, things become alike; with more, noise is blown up."""
# Sharper than the probabilities themselves: pairs that are likelier right than wrong become surer, the others weaker.
# Self-training needs that, or affinities of a half keep everything at half a distance.
_SHARPNESS = 2.0
_RIDGE, _ROUNDS = 1e-2, 30
_CHUNK, _ROWS = 128, 2**16


class Whitening(NamedTuple):
    """Leading principal directions of unit embeddings, scaled to equal variance: what all images share (a background, a
    style) then outweighs nothing."""

    mean: Float32[Tensor, "d"]
    directions: Float32[Tensor, "d k"]

    def __call__(self, embeddings: Float[Tensor, "n d"]) -> Float32[Tensor, "n k"]:
        """Where embeddings lie on the directions, at unit length."""
        units = (normalize(part.float(), dim=1) for part in embeddings.split(_ROWS))
        return torch.cat([normalize((unit - self.mean) @ self.directions, dim=1) for unit in units])


def whitening(embeddings: Float[Tensor, "n d"], dimensions: int) -> Whitening:
    """Of as many dimensions as a third of the rows can tell apart, at most `dimensions`.

    Args:
        embeddings: need not have unit length.
        dimensions: most directions that are kept.
    """
    rows, width = embeddings.shape
    # Sums over parts: a copy of all in float64 would be the largest thing in memory.
    mean = embeddings.new_zeros(width, dtype=torch.float64)
    second = embeddings.new_zeros(width, width, dtype=torch.float64)
    for part in embeddings.split(_ROWS):
        mean = mean + normalize(part.double(), dim=1).sum(0) / rows
    for part in embeddings.split(_ROWS):
        centered = normalize(part.double(), dim=1) - mean
        second = second + centered.T @ centered / rows
    values, vectors = torch.linalg.eigh(second)
    kept = max(min(dimensions, rows // 3, width), 1)
    values, vectors = values[-kept:].clamp_min(0), vectors[:, -kept:]
    scaled = vectors / (values + 1e-2 * values.mean()).sqrt().clamp_min(1e-12)
    return Whitening(mean.float(), scaled.float())


class Weights(NamedTuple):
    """log odds = bias + overlap x (neighborhood overlap) + nearness x (local similarity)."""

    bias: float
    overlap: float
    nearness: float

    def probability(
        self, overlap: Float[Tensor, "..."], nearness: Float[Tensor, "..."], *, sharpness: float = 1.0
    ) -> Float[Tensor, "..."]:
        """That two images show the same thing, 0..1."""
        return torch.sigmoid(sharpness * (self.bias + self.overlap * overlap + self.nearness * nearness))


def affinity(
    weights: Weights,
    unit: Float32[Tensor, "u d"],
    surroundings: Float32[Tensor, "u"],
    overlap: Float32[Tensor, "u u"],
) -> Float32[Tensor, "u u"]:
    """W of the images of a batch: sharpened probabilities; 1 between an image and itself.

    Args:
        weights: from `fit`.
        unit: whitened embeddings of unit length.
        surroundings: mean cosine of each one with its neighborhood.
        overlap: from `neighborhood_overlap`.
    """
    nearness = unit @ unit.T - (surroundings[:, None] + surroundings) / 2
    return weights.probability(overlap, nearness, sharpness=_SHARPNESS)


class PairEvidence(NamedTuple):
    """Of some images and others."""

    overlap: Float32[Tensor, "m o"]
    nearness: Float32[Tensor, "m o"]


class Surroundings(NamedTuple):
    """A table's images and what is near each of them."""

    unit: Float32[Tensor, "n d"]
    """Whitened, of unit length."""
    neighborhoods: Integer[Tensor, "n k"]
    """Each image itself, then its nearest others."""
    similarity: Float32[Tensor, "n"]
    """Mean cosine with those others."""

    def evidence(self, rows: Int64[Tensor, "m"], others: Integer[Tensor, "m o"], *, expand: int) -> PairEvidence:
        """For some images of the table and, for each, others."""
        overlaps, near = [self.unit.new_empty(0, others.shape[1])], [self.unit.new_empty(0, others.shape[1])]
        for part, theirs in zip(rows.split(_CHUNK), others.split(_CHUNK), strict=True):
            known, where = torch.cat([part, theirs.flatten()]).unique(return_inverse=True)
            lengths = expanded_lengths(self.neighborhoods, expand=expand, rows=known)[where]
            common = overlap_with(self.neighborhoods, part, theirs, expand=expand)
            overlaps.append(common / lengths[: len(part), None] / lengths[len(part) :].view(theirs.shape))
            cosines = torch.einsum("md,mod->mo", self.unit[part], self.unit[theirs])
            near.append(cosines - (self.similarity[part, None] + self.similarity[theirs]) / 2)
        return PairEvidence(torch.cat(overlaps), torch.cat(near))


def fit(evidence: PairEvidence, same: Bool[Tensor, "..."], weight: Float[Tensor, "..."] | None = None) -> Weights:
    """Logistic regression with a small ridge; evidence that would speak against a pair by being strong is left out.

    Args:
        evidence: of pairs.
        same: whether they show the same thing.
        weight: how often each pair counts; once, if None.
    """
    ones = torch.ones_like(evidence.overlap)
    features = torch.stack([ones, *evidence], -1).reshape(-1, 3).double()
    target = same.flatten().double()
    counts = torch.ones_like(target) if weight is None else weight.flatten().double()
    used = [0, 1, 2]
    while True:
        slopes = _logistic(features[:, used], target, counts)
        negative = [i for i, slope in zip(used, slopes, strict=True) if i and slope < 0]
        if not negative:
            break
        used = [i for i in used if i not in negative]
    found = dict(zip(used, slopes, strict=True))
    return Weights(*(found.get(i, 0.0) for i in range(3)))


def _logistic(features: Float[Tensor, "n f"], target: Float[Tensor, "n"], counts: Float[Tensor, "n"]) -> list[float]:
    """Newton's method from zero; its steps are bounded, since separable data have no optimum but the ridge's."""
    slopes = features.new_zeros(features.shape[1])
    for _ in range(_ROUNDS):
        probability = torch.sigmoid(features @ slopes)
        gradient = features.T @ (counts * (target - probability)) - _RIDGE * slopes
        weighted = features * (counts * probability * (1 - probability))[:, None]
        hessian = features.T @ weighted + _RIDGE * torch.eye(len(slopes), dtype=slopes.dtype, device=slopes.device)
        slopes = slopes + torch.linalg.solve(hessian, gradient).clamp(-5, 5)
    return slopes.tolist()


def trust(probability: Float[Tensor, "..."]) -> float:
    """The share of the pull towards others that goes to the right ones, if the probabilities are right: 0..1."""
    total = float(probability.sum())
    return float(probability.square().sum()) / total if total > 0 else 0.0
