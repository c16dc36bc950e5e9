"""What the page shows of retrieval: scores with intervals, queries with their neighbors, maps."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stml_semi.data.image_table import ImageTable
from stml_semi.metrics import Interval, bootstrap, score_names, score_values
from stml_semi.report.charts import draw_map
from stml_semi.report.pictures import Pictures
from stml_semi.report.retrieval.sample import Retrieval, search
from stml_semi.sharing.load import Retriever


class Model(NamedTuple):
    """A model to look at."""

    name: str
    retriever: Retriever
    run: int | None
    """Which run trained it; None for a frozen backbone."""
    start: int | None = None
    """Of a trained model: the place of its frozen backbone among the models."""


class Neighbor(NamedTuple):
    """A neighbor."""

    picture: int | None
    label: str
    right: bool


class Query(NamedTuple):
    """A query and what the models find for it."""

    picture: int | None
    label: str
    where: str
    neighbors: list[list[Neighbor]]
    """By model, nearest first."""
    before: float
    """Average precision by the first model, 0..1."""
    after: float
    """Average precision by the last model."""


class Point(NamedTuple):
    """A picture on the maps."""

    picture: int | None
    label: str
    right: list[bool]
    """By model: whether its nearest neighbor is of its class."""


class Assessed(NamedTuple):
    """A model's means on the sample."""

    name: str
    run: int | None
    scores: dict[str, Interval]
    gain: dict[str, Interval] | None
    """Over the frozen backbone, query by query."""


class RetrievalView(NamedTuple):
    """Everything that the page shows of one table of evaluation pictures."""

    name: str
    anchor: str
    num_pictures: int
    num_classes: int
    complete: bool
    models: list[Assessed]
    queries: list[Query]
    classes: list[str]
    """Of the queries, sorted."""
    points: list[Point]
    maps: list[str]
    seen: list[str]
    """By model: what its map shows."""


def view_retrieval(
    table: ImageTable, models: list[Model], pictures: Pictures, *, anchor: str, num_workers: int = 0
) -> RetrievalView:
    """Searches a table with every model.

    Args:
        table: labeled evaluation pictures.
        models: the first one stands for the beginning and the last one for the end of training.
        pictures: gets what is shown.
        anchor: a name that is unique on the page.
        num_workers: decoding processes.

    Raises:
        BadInput: nothing to find, or a model whose embeddings are not finite.
    """
    num_queries = int(np.clip(1200 // (10 * len(models)), 12, 60))
    retrievers = [model.retriever for model in models]
    found = search(table, retrievers, num_queries=num_queries, num_workers=num_workers)
    names = np.array(table.classes)[found.labels]
    queries = [_query(table, found, pictures, names, i) for i in range(len(found.queries))]
    right = [look.right for look in found.models]
    points = [
        Point(pictures.add(table, int(found.rows[place])), str(names[place]), [bool(r[place]) for r in right])
        for place in found.points
    ]
    maps = [
        draw_map(f"{anchor}-map-{i}", look.projected, right[i][found.points]) for i, look in enumerate(found.models)
    ]
    return RetrievalView(
        table.name,
        anchor,
        len(found.rows),
        len(np.unique(found.labels)),
        found.complete,
        _assess(models, found, table.recall_at),
        queries,
        sorted({query.label for query in queries}),
        points,
        maps,
        [look.projected.words for look in found.models],
    )


def _query(table: ImageTable, found: Retrieval, pictures: Pictures, names: NDArray[np.str_], number: int) -> Query:
    place = found.queries[number]
    row = int(found.rows[place])
    neighbors = [
        [
            Neighbor(
                pictures.add(table, int(found.rows[near])),
                str(names[near]),
                bool(found.labels[near] == found.labels[place]),
            )
            for near in look.neighbors[number]
        ]
        for look in found.models
    ]
    precision = [float(look.scores.average_precision[place]) for look in (found.models[0], found.models[-1])]
    return Query(pictures.add(table, row), str(names[place]), table.describe(row), neighbors, *precision)


def _assess(models: list[Model], found: Retrieval, recall_at: tuple[int, ...]) -> list[Assessed]:
    keys = score_names(recall_at)
    scored = found.models[0].scores.num_relevant > 0
    classes = torch.from_numpy(found.labels)[scored]
    values = [score_values(look.scores) for look in found.models]
    assessed = []
    for model, own in zip(models, values, strict=True):
        gain = None
        if model.start is not None:
            gain = dict(zip(keys, bootstrap(own - values[model.start], groups=classes), strict=True))
        scores = dict(zip(keys, bootstrap(own, groups=classes), strict=True))
        assessed.append(Assessed(model.name, model.run, scores, gain))
    return assessed
