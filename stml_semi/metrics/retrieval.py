"""Retrieval metrics from embeddings and labels: recall@k, R-precision and MAP@R.

R is the number of other images of the query's class. R-precision is the share of them among the R nearest; MAP@R also
rewards finding them early (Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, arXiv 2003.08505):

    MAP@R = 1/R sum_{i=1..R} P(i) [i-th neighbor is of the class],    P(i) = precision among the first i

Values equal those of pytorch-metric-learning's AccuracyCalculator with k="max_bin_count" on normalized embeddings.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, Integer
from torch import Tensor

from stml_semi.neighbors import Gallery, check_embeddings
from stml_semi.runtime.errors import BadInput

# Numbers that a bootstrap draws at once: all of them would be gigabytes where there are many queries.
_DRAWN = 2**16


class QueryScores(NamedTuple):
    """Scores of single queries, to be averaged, compared or resampled. Not a number where `num_relevant` is 0."""

    recall: Float64[Tensor, "q recall_at"]
    """1 if any of the k nearest has the query's label, else 0; a column for each k."""
    r_precision: Float64[Tensor, "q"]
    average_precision: Float64[Tensor, "q"]
    """Average precision at R, whose mean is MAP@R."""
    num_relevant: Int64[Tensor, "q"]
    """R."""


def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    *,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
) -> dict[str, float | int]:
    """Scores retrieval by cosine, exactly, in bounded memory (see `nearest_neighbors`).

    Args:
        embeddings: the queries, (N, d) of any floating type; need not be normalized.
        labels: (N,) integers.
        recall_at: numbers of neighbors for recall. One larger than the gallery means the whole gallery.
        gallery: (G, d), what is searched. Default: the other embeddings, so that each image is a query against all the
            rest. Only the own row is left out; a copy of it in another row is not.
        gallery_labels: (G,) integers, given together with `gallery`.

    Returns:
        "recall@k" for each k, "r_precision" and "map@r" (0..1), "num_queries" and "num_gallery". Queries without any
        image of their class in the gallery are left out, like in the reference: `num_queries` counts those scored.

    Raises:
        ValueError: no query has an image of its class to find; or input that is empty, misshapen, not finite, or
            labels that are not integers.
    """
    scores = query_scores(embeddings, labels, recall_at=recall_at, gallery=gallery, gallery_labels=gallery_labels)
    return summarize(scores, recall_at=recall_at, num_gallery=len(embeddings) if gallery is None else len(gallery))


def summarize(scores: QueryScores, *, recall_at: Sequence[int], num_gallery: int) -> dict[str, float | int]:
    """Means over the queries that have something to find; see `retrieval_metrics`, whose result this is."""
    num_queries = int((scores.num_relevant > 0).sum())
    if num_queries == 0:
        raise BadInput(
            "no query has an image of its class to find: give at least two images of a class, "
            "or a gallery with classes of the queries"
        )
    values = score_values(scores)
    means: dict[str, float | int] = dict(zip(score_names(recall_at), values.mean(0).tolist(), strict=True))
    return {**means, "num_queries": num_queries, "num_gallery": num_gallery}


class Interval(NamedTuple):
    """A mean, and where it lies with the confidence that was asked for."""

    mean: float
    low: float
    high: float


def bootstrap(
    values: Float[Tensor, "q m"],
    *,
    groups: Integer[Tensor, "q"] | None = None,
    confidence: float = 0.95,
    num_samples: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """How far the means of columns would move if other queries had been drawn: percentiles of resampled means.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.

    Args:
        values: scores of queries, a column for each metric; differences of two models' scores give paired intervals.
        groups: rows of a group are drawn together. Queries of one class are alike, so with their classes as groups the
            interval says what other classes would have given, and is wider. Default: every row alone.
        confidence: share of the resampled means inside, 0..1.
        num_samples: how often is resampled.
        seed: of the draws; the same seed draws the same groups.

    Returns:
        An interval for each column.
    """
    values = values.detach().cpu().double()
    sums, sizes = values, torch.ones(len(values), dtype=torch.float64)
    if groups is not None:
        _, place, counts = groups.cpu().unique(return_inverse=True, return_counts=True)
        sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, place, values)
        sizes = counts.double()
    generator = torch.Generator().manual_seed(seed)
    means = []
    for part in torch.arange(num_samples).split(max(_DRAWN // len(sums), 1)):
        drawn = torch.randint(len(sums), (len(part), len(sums)), generator=generator)
        places = drawn + len(sums) * torch.arange(len(part))[:, None]
        times = places.flatten().bincount(minlength=places.numel()).view_as(places).double()
        means.append(times @ sums / (times @ sizes)[:, None])
    tail = (1 - confidence) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0).tolist()
    return [Interval(*ends) for ends in zip(values.mean(0).tolist(), low, high, strict=True)]


class ClassScores(NamedTuple):
    """Means over the queries of each class that has something to find."""

    label: Int64[Tensor, "c"]
    """Rising."""
    num_queries: Int64[Tensor, "c"]
    values: dict[str, Float64[Tensor, "c"]]
    """By the name of a metric."""


def class_scores(scores: QueryScores, labels: Int64[Tensor, "q"], *, recall_at: Sequence[int]) -> ClassScores:
    """Averages scores by class. labels: of the queries."""
    known, place, counts = labels[scores.num_relevant > 0].unique(return_inverse=True, return_counts=True)
    values = score_values(scores)
    means = values.new_zeros(len(known), values.shape[1]).index_add_(0, place, values) / counts[:, None]
    return ClassScores(known, counts, dict(zip(score_names(recall_at), means.T, strict=True)))


def score_names(recall_at: Sequence[int]) -> list[str]:
    """Names of the scores in metrics.jsonl, in the order in which they are shown."""
    return [*(f"recall@{k}" for k in recall_at), "r_precision", "map@r"]


def score_title(name: str) -> str:
    """How the field writes a score's name."""
    return {"r_precision": "R-precision", "map@r": "MAP@R"}.get(name, name)


def score_values(scores: QueryScores) -> Float64[Tensor, "scored metrics"]:
    """Columns as in `score_names`; queries with nothing to find are left out."""
    scored = scores.num_relevant > 0
    return torch.column_stack([scores.recall, scores.r_precision, scores.average_precision])[scored]


@torch.no_grad()
def query_scores(
    embeddings: Tensor,
    labels: Tensor,
    *,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    rows: Integer[Tensor, "q"] | None = None,
) -> QueryScores:
    """Scores queries one by one. Takes what `retrieval_metrics` takes, and raises the same where input is wrong.

    Args:
        rows: which of the embeddings are queries, default all. Processes that hold the same embeddings
            can each score a share of the rows and gather the scores.
    """
    if not recall_at or min(recall_at) < 1:
        raise ValueError(f"recall_at={tuple(recall_at)} must name numbers of neighbors, 1 or more")
    _check(embeddings, labels, "embeddings", "labels")
    own = gallery is None and gallery_labels is None
    if own:
        gallery, gallery_labels = embeddings, labels
    elif gallery is None or gallery_labels is None:
        raise ValueError("gallery and gallery_labels go together: give both or neither")
    else:
        _check(gallery, gallery_labels, "gallery", "gallery_labels")
    searched = Gallery(gallery)
    device = searched.rows.device
    query_labels, reference = labels.to(device), gallery_labels.to(device)
    rows = torch.arange(len(labels), device=device) if rows is None else rows.to(device)

    num_relevant = _count(reference, query_labels[rows]) - int(own)
    recall = torch.full((len(rows), len(recall_at)), torch.nan, dtype=torch.float64, device=device)
    r_precision, average_precision = recall.new_full((2, len(rows)), torch.nan)
    for part, depth in _by_depth(num_relevant, min(max(recall_at), len(searched) - int(own))):
        picked = rows[part]
        queries = embeddings[picked.to(embeddings.device)]
        found = searched.search(queries, depth, exclude=picked if own else None).indices.to(device)
        hits = reference[found] == query_labels[picked, None]
        for column, k in enumerate(recall_at):
            recall[part, column] = hits[:, :k].any(1).double()
        wanted = num_relevant[part].double()
        rank = torch.arange(1, depth + 1, device=device)
        hits &= rank <= wanted[:, None]
        r_precision[part] = hits.sum(1) / wanted
        average_precision[part] = (hits.cumsum(1) * hits / rank.double()).sum(1) / wanted
    return QueryScores(recall, r_precision, average_precision, num_relevant)


def _by_depth(num_relevant: Int64[Tensor, "q"], least: int) -> Iterator[tuple[Int64[Tensor, "part"], int]]:
    """Groups queries by how many neighbors they need, so that one large class does not set the depth for all.

    Each group is its queries and their depth. Groups are small enough to bound the memory; queries with nothing to
    find are in none of them.
    """
    order = num_relevant.argsort(stable=True)
    ascending = num_relevant[order].tolist()
    start = bisect_right(ascending, 0)
    while start < len(order):
        deepest = 2 * max(ascending[start], least)
        height = min(2**14, max(1, 2**20 // deepest))
        stop = min(start + height, bisect_right(ascending, deepest))
        yield order[start:stop], max(ascending[stop - 1], least)
        start = stop


def _count(reference: Integer[Tensor, "g"], labels: Integer[Tensor, "q"]) -> Int64[Tensor, "q"]:
    """How often each label occurs in the reference."""
    known, counts = reference.unique(return_counts=True)
    place = torch.searchsorted(known, labels).clamp_max(len(known) - 1)
    return torch.where(known[place] == labels, counts[place], 0)


def _check(embeddings: Tensor, labels: Tensor, embeddings_name: str, labels_name: str) -> None:
    check_embeddings(embeddings, embeddings_name)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{labels_name} must be integers, not {labels.dtype}: number the classes")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{labels_name} must be one per row of {embeddings_name}: ({len(embeddings)},), not {tuple(labels.shape)}"
        )
