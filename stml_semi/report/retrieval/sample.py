"""Frozen and trained models on the evaluation images: scores of single queries, neighbors, a map."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.data.image_table import ImageTable
from stml_semi.data.views import view_size
from stml_semi.metrics import QueryScores, query_scores
from stml_semi.models.build import open_configured_backbone
from stml_semi.models.evaluation import embed_table
from stml_semi.models.pooling import pool_output, resolve_pooling
from stml_semi.neighbors import nearest_neighbors
from stml_semi.report.retrieval.projection import Projected, project
from stml_semi.sharing.load import Retriever

MOST_ROWS = 5000
_MOST_ROWS_CPU = 1000
"""Without a GPU, of models that look at more than 128 x 128 pixels: they take a minute for this many."""
NUM_NEIGHBORS = 10
_CANDIDATES = 300
"""Queries among which those of the page are chosen."""
_POINTS = 300
_POINTS_PER_CLASS = 30


class Sample(NamedTuple):
    """Evaluation images that the page looks at."""

    rows: NDArray[np.int64]
    """(N,), rising."""
    complete: bool
    """Whether that is all there are."""


class Searched(NamedTuple):
    """What one model makes of the sample."""

    scores: QueryScores
    """Of all N images, each against the others."""
    neighbors: NDArray[np.int64]
    """(Q, <= NUM_NEIGHBORS) places in the sample, for the queries of the page."""
    nearest: NDArray[np.int64]
    """(N,) place of the nearest neighbor."""
    projected: Projected
    """The P points of the map."""


class Retrieval(NamedTuple):
    """Several models on the same images."""

    rows: NDArray[np.int64]
    """(N,) of the table: the sample, without images that cannot be read."""
    labels: NDArray[np.int64]
    """(N,)"""
    complete: bool
    queries: NDArray[np.int64]
    """(Q,) places in the sample: queries of the page."""
    points: NDArray[np.int64]
    """(P,) places in the sample: points of the map."""
    models: list[Searched]


def frozen_backbone(config: TrainConfig, device: torch.device | str) -> Retriever:
    """The backbone as a run found it, with the pooling that the run used.

    Raises:
        BadInput: it cannot be opened any more.
    """
    backbone = open_configured_backbone(config)
    pooling = resolve_pooling(config.pooling, backbone.model, view_size(backbone.processor))
    return Retriever(backbone.model, backbone.processor, partial(pool_output, pooling=pooling)).to(device)


def most_rows(processor: Any, device: torch.device | str) -> int:
    """How many images are embedded in a time that one waits for."""
    height, width = view_size(processor)
    slow = torch.device(device).type == "cpu" and height * width > 128 * 128
    return _MOST_ROWS_CPU if slow else MOST_ROWS


def choose_rows(labels: NDArray[np.int64], most: int, *, seed: int = 0) -> Sample:
    """All rows if they are few, else whole classes in random order: single images would leave nothing to find.

    Args:
        labels: (N,) of the table.
        most: rows at most; a class gives a twentieth of them at most.
        seed: of the order.
    """
    if len(labels) <= most:
        return Sample(np.arange(len(labels)), True)
    rng = np.random.default_rng(seed)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    chosen: list[NDArray[np.int64]] = []
    room = most
    for label in rng.permutation(len(by_class)):
        part = rng.permutation(by_class[label])[: max(most // 20, 2)]
        if len(part) <= room:
            chosen.append(part)
            room -= len(part)
    return Sample(np.sort(np.concatenate(chosen)), False)


def search(
    table: ImageTable, retrievers: list[Retriever], *, num_queries: int, num_workers: int = 0, seed: int = 0
) -> Retrieval:
    """Embeds a sample of a table with every model and looks for neighbors.

    Args:
        table: labeled evaluation images.
        retrievers: models, the first one taken for the beginning and the last one for the end of training.
        num_queries: for the page; a third are those that gained most, a third the worst, the others random.
        num_workers: decoding processes.
        seed: of the sample and the random queries.

    Raises:
        BadInput: nothing to find, or embeddings that are not finite.
    """
    assert table.labels is not None
    sample = choose_rows(
        table.labels, min(most_rows(r.processor, next(r.parameters()).device) for r in retrievers), seed=seed
    )
    embedded = [_embed(table, retriever, sample.rows, num_workers) for retriever in retrievers]
    readable = embedded[0].readable
    rows = sample.rows[readable]
    vectors = [part.embeddings.cpu()[torch.from_numpy(readable)] for part in embedded]
    labels = torch.from_numpy(table.labels[rows])
    scores = [query_scores(part, labels, recall_at=table.recall_at) for part in vectors]
    queries = _choose_queries(scores[0], scores[-1], num_queries, np.random.default_rng(seed))
    points = _choose_points(labels.numpy(), np.random.default_rng(seed))
    models = [_search_one(part, score, queries, points) for part, score in zip(vectors, scores, strict=True)]
    return Retrieval(rows, labels.numpy(), sample.complete, queries, points, models)


def _embed(table: ImageTable, retriever: Retriever, rows: NDArray[np.int64], num_workers: int) -> Any:
    device = next(retriever.parameters()).device
    return embed_table(
        table, retriever, retriever.processor, rows=rows, batch_size=64, num_workers=num_workers, device=device
    )


def _choose_queries(first: QueryScores, last: QueryScores, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Places of the most improved, the worst and some random queries, (<= count,), each once."""
    before, after = (scores.average_precision.numpy() for scores in (first, last))
    candidates = rng.permutation(np.flatnonzero(last.num_relevant.numpy() > 0))[:_CANDIDATES]
    third = max(count // 3, 1)
    gained = candidates[np.argsort(before[candidates] - after[candidates], kind="stable")][:third]
    worst = candidates[np.argsort(after[candidates], kind="stable")]
    worst = worst[~np.isin(worst, gained)][:third]
    others = candidates[~np.isin(candidates, np.concatenate([gained, worst]))]
    return np.concatenate([gained, worst, others])[:count]


def _choose_points(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Places of the points of the map: random classes with what they have, so that one sees which keep together."""
    order = rng.permutation(len(labels))
    place = np.empty(labels.max() + 1, dtype=np.int64)
    place[rng.permutation(len(place))] = np.arange(len(place))
    by_class = order[np.argsort(place[labels[order]], kind="stable")]
    same = np.concatenate([[True], np.diff(labels[by_class]) != 0])
    within = np.arange(len(by_class)) - np.maximum.accumulate(np.where(same, np.arange(len(by_class)), 0))
    few = by_class[within < _POINTS_PER_CLASS]
    # Of few large classes, all have a share of the points.
    return np.sort(few[:_POINTS] if len(few) >= _POINTS else order[:_POINTS])


def _search_one(
    vectors: Tensor, scores: QueryScores, queries: NDArray[np.int64], points: NDArray[np.int64]
) -> Searched:
    places = torch.from_numpy(queries)
    k = min(NUM_NEIGHBORS, len(vectors) - 1)
    found = nearest_neighbors(vectors, k, queries=vectors[places], exclude=places).indices.numpy()
    nearest = nearest_neighbors(vectors, 1).indices[:, 0]
    return Searched(scores, found, nearest.numpy(), project(vectors, points))
