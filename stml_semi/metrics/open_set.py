"""Open-set retrieval: how similar the nearest image has to be before it counts as a match.

Whoever searches a catalog also searches for things that are not in it. Each query is therefore counted twice: once
against all other images, where the nearest one is right or wrong, and once against the images of other classes alone,
where any answer is wrong. The precision of a threshold is the share of right ones among all accepted answers, if one
query in two has a match.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, Integer
from torch import Tensor

PRECISIONS = tuple(percent / 100 for percent in range(50, 100))
"""That thresholds are looked for."""
_BINS = 2**15
"""Of cosines from -1 to 1: a false match rate is met to 6e-5 in cosine."""
_BLOCK = 2**24
"""Cosines at a time."""
_ITSELF = -2.0
"""In place of the cosine of an image to itself."""


class OpenSetScores(NamedTuple):
    """What queries find, of their own class and of others."""

    same: Float32[Tensor, "q"]
    """Cosine of the nearest other image of the query's class; -2 if there is none."""
    other: Float32[Tensor, "q"]
    """Cosine of the nearest image of another class; -2 if there is none."""


class PairCounts(NamedTuple):
    """Pairs of a query and an image of the gallery, by cosine."""

    genuine: Int64[Tensor, "bins"]
    """Of one class."""
    impostor: Int64[Tensor, "bins"]
    """Of two classes."""


class Threshold(NamedTuple):
    """A cosine from which the nearest image is taken for a match."""

    precision: float
    """Share of right answers among those that are given, 0..1."""
    similarity: float
    answered: float
    """Share of the queries with a match that get it, 0..1."""


@torch.no_grad()
def open_set_scores(
    embeddings: Float[Tensor, "n d"],
    labels: Integer[Tensor, "n"],
    *,
    gallery: Float[Tensor, "g d"] | None = None,
    gallery_labels: Integer[Tensor, "g"] | None = None,
    rows: Integer[Tensor, "q"] | None = None,
) -> OpenSetScores:
    """Compares queries with a gallery, in blocks of bounded memory.

    Args:
        embeddings: the queries; need not be normalized.
        labels: of the queries.
        gallery: what is searched. Default: the other embeddings.
        gallery_labels: given together with `gallery`.
        rows: of the queries that are compared, rising. Default: all.
    """
    same, other = [embeddings.new_zeros(0).float()], [embeddings.new_zeros(0).float()]
    for cosines, alike in _blocks(embeddings, labels, gallery, gallery_labels, rows):
        same.append(cosines.masked_fill(~alike, -2.0).amax(1))
        other.append(cosines.masked_fill_(alike, -2.0).amax(1))
    return OpenSetScores(torch.cat(same), torch.cat(other))


@torch.no_grad()
def pair_counts(
    embeddings: Float[Tensor, "n d"],
    labels: Integer[Tensor, "n"],
    *,
    gallery: Float[Tensor, "g d"] | None = None,
    gallery_labels: Integer[Tensor, "g"] | None = None,
) -> PairCounts:
    """Counts all pairs by cosine. Takes three times as long as `open_set_scores`.

    Args:
        embeddings: as of `open_set_scores`.
        labels: as there.
        gallery: as there.
        gallery_labels: as there.
    """
    genuine, impostor = torch.zeros(2, _BINS, dtype=torch.int64, device=embeddings.device)
    for cosines, alike in _blocks(embeddings, labels, gallery, gallery_labels, None):
        bins = ((cosines + 1) * (_BINS / 2)).long().clamp_(0, _BINS - 1)
        bins[cosines == _ITSELF] = _BINS  # Counted, and cut off below.
        genuine += torch.bincount(bins[alike], minlength=_BINS + 1)[:_BINS]
        impostor += torch.bincount(bins[~alike], minlength=_BINS + 1)[:_BINS]
    return PairCounts(genuine, impostor)


def _blocks(
    embeddings: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    rows: Tensor | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some queries at a time: cosines (b, g), that of a query to itself -2; and whether the classes are the same."""
    queries = F.normalize(embeddings.float())
    searched = queries if gallery is None else F.normalize(gallery.float())
    reference = labels if gallery_labels is None else gallery_labels
    rows = torch.arange(len(queries), device=queries.device) if rows is None else rows
    for block in rows.split(max(1, _BLOCK // max(1, len(searched)))):
        cosines = queries[block] @ searched.T
        if gallery is None:
            cosines[torch.arange(len(block), device=block.device), block] = _ITSELF
        yield cosines, labels[block, None] == reference


def precision_thresholds(scores: OpenSetScores, precisions: Sequence[float] = PRECISIONS) -> list[Threshold]:
    """The lowest cosine at which the accepted answers have a wanted precision.

    A precision that too few accepted answers could show, such as 0.99 by fewer than a hundred, is left out, and so is
    one that no threshold reaches.

    Args:
        scores: queries without a match, or with nothing but matches, are left out.
        precisions: rising, 0..1.
    """
    matched = (scores.same > -2) & (scores.other > -2)
    same, other = scores.same[matched].double().cpu(), scores.other[matched].double().cpu()
    similarity = torch.cat([torch.maximum(same, other), other])
    right = torch.cat([same > other, torch.zeros_like(other, dtype=torch.bool)])
    order = similarity.argsort(descending=True)
    similarity, right = similarity[order], right[order].cumsum(0)
    accepted = torch.arange(1, len(order) + 1)
    whole = torch.ones(len(order), dtype=torch.bool)  # Equal cosines are accepted together.
    whole[:-1] = similarity[1:] != similarity[:-1]
    found = []
    for wanted in precisions:
        enough = math.ceil(1 / (1 - wanted) - 1e-9) if wanted < 1 else len(order) + 1
        (reached,) = torch.nonzero(whole & (right >= wanted * accepted) & (accepted >= enough), as_tuple=True)
        if len(reached):
            last = int(reached[-1])
            found.append(Threshold(wanted, float(similarity[last]), float(right[last]) / len(same)))
    return found


def false_non_match_rate(pairs: PairCounts, false_match_rate: float) -> float:
    """Share of the pairs of one class that are below the cosine which a given share of the pairs of two classes reach.

    The FNMR at an FMR of biometrics, over all pairs of a query and an image of the gallery.

    Args:
        pairs: at least one of each kind.
        false_match_rate: 0..1.
    """
    below = pairs.impostor.cumsum(0).double() / pairs.impostor.sum()
    threshold = int(torch.searchsorted(below, 1 - false_match_rate - 1e-12)) + 1  # The first bin that is accepted.
    return float(pairs.genuine[:threshold].sum() / pairs.genuine.sum())
