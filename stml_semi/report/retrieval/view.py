"""What the page shows of retrieval: scores with intervals, queries with their neighbors, maps."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.data.image_table import ImageTable
from stml_semi.metrics import Interval, bootstrap, class_scores, score_names, score_values
from stml_semi.report.charts import OTHERS, draw_map
from stml_semi.report.pictures import Pictures
from stml_semi.report.retrieval.sample import Retrieval, search
from stml_semi.runtime.names import with_code_points
from stml_semi.sharing.load import Retriever

_COLORS = 10
"""Classes with a color of their own on the maps."""
MOST_CLASSES = 500
_WITH_PICTURES = 12
"""Classes with an image of what they are taken for."""


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
    """An image on the maps."""

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
    versus: dict[str, Interval] | None
    """Over the first run's model, query by query; None for that itself."""


class ClassRow(NamedTuple):
    """A class and what it is taken for."""

    label: str
    num_pictures: int
    before: float
    """MAP@R by the first model, 0..1."""
    after: float
    """By the last model."""
    taken_for: str
    """Class of most of the wrong nearest neighbors; empty where all are right."""
    times: int
    """How many images have such a nearest neighbor."""
    picture: int | None = None
    """One of these images, of the classes that the page shows images of."""
    neighbor: int | None = None
    """Its nearest neighbor."""


class RetrievalView(NamedTuple):
    """Everything that the page shows of one table of evaluation images."""

    name: str
    anchor: str
    num_pictures: int
    num_classes: int
    complete: bool
    models: list[Assessed]
    queries: list[Query]
    classes: list[str]
    """Of the queries, sorted."""
    by_class: list[ClassRow]
    """The classes that the last model finds worst come first; at most `MOST_CLASSES`."""
    legend: list[tuple[int, str]]
    """Number of a series -> class, of the classes that have a color on the maps."""
    points: list[Point]
    num_shown_classes: int
    """Of the points."""
    maps: list[str]
    seen: list[str]
    """By model: what its map shows."""


def view_retrieval(
    table: ImageTable, models: list[Model], pictures: Pictures, *, anchor: str, num_workers: int = 0
) -> RetrievalView:
    """Searches a table with every model.

    Args:
        table: labeled evaluation images.
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
    classes = [with_code_points(name) for name in table.classes]
    names = np.array(classes)[found.labels]
    queries = [_query(table, found, pictures, names, i) for i in range(len(found.queries))]
    right = [found.labels[look.nearest] == found.labels for look in found.models]
    shown = found.labels[found.points]
    colored = np.bincount(shown).argsort(kind="stable")[::-1][:_COLORS]
    colors = np.full(len(shown), OTHERS)
    for color, label in enumerate(colored):
        colors[shown == label] = color
    points = [
        Point(pictures.add(table, int(found.rows[place])), str(names[place]), [bool(r[place]) for r in right])
        for place in found.points
    ]
    maps = [
        draw_map(f"{anchor}-map-{i}", look.projected, right[i][found.points], colors)
        for i, look in enumerate(found.models)
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
        _by_class(table, found, pictures, classes),
        [(color, classes[label]) for color, label in enumerate(colored) if (shown == label).any()],
        points,
        len(np.unique(shown)),
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


def _by_class(table: ImageTable, found: Retrieval, pictures: Pictures, classes: list[str]) -> list[ClassRow]:
    first, last = found.models[0], found.models[-1]
    labels, nearest = torch.from_numpy(found.labels), found.labels[last.nearest]
    before, after = (class_scores(look.scores, labels, recall_at=table.recall_at) for look in (first, last))
    rows = []
    for at in after.values["map@r"].argsort(stable=True)[:MOST_CLASSES].tolist():
        label = int(after.label[at])
        own = np.flatnonzero(found.labels == label)
        wrong = own[nearest[own] != label]
        others, counts = np.unique(nearest[wrong], return_counts=True)
        row = ClassRow(
            classes[label],
            len(own),
            float(before.values["map@r"][at]),
            float(after.values["map@r"][at]),
            classes[others[counts.argmax()]] if len(wrong) else "",
            int(counts.max(initial=0)),
        )
        if len(rows) < _WITH_PICTURES and len(wrong):
            example = wrong[nearest[wrong] == others[counts.argmax()]][0]
            shown = (pictures.add(table, int(found.rows[place])) for place in (example, last.nearest[example]))
            row = row._replace(**dict(zip(("picture", "neighbor"), shown, strict=True)))
        rows.append(row)
    return rows


def _assess(models: list[Model], found: Retrieval, recall_at: tuple[int, ...]) -> list[Assessed]:
    keys = score_names(recall_at)
    scored = found.models[0].scores.num_relevant > 0
    classes = torch.from_numpy(found.labels)[scored]
    values = [score_values(look.scores) for look in found.models]
    first = next((place for place, model in enumerate(models) if model.run is not None), None)

    def resampled(difference: Tensor) -> dict[str, Interval]:
        return dict(zip(keys, bootstrap(difference, groups=classes), strict=True))

    assessed = []
    for place, (model, own) in enumerate(zip(models, values, strict=True)):
        gain = None if model.start is None else resampled(own - values[model.start])
        versus = None if model.run is None or place == first or first is None else resampled(own - values[first])
        assessed.append(Assessed(model.name, model.run, resampled(own), gain, versus))
    return assessed
