"""A sample of the pool beside the labeled images: what is relevant, what is there twice."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stml_semi.config import TrainConfig
from stml_semi.data.image_table import ImageTable
from stml_semi.neighbors import nearest_neighbors
from stml_semi.report.pictures import Pictures
from stml_semi.report.unlabeled.teacher import LastPool, TeacherEmbeddings

DUPLICATE = 0.97
"""Cosine from which two images count as near-duplicates, as in `dedup`."""
_SHOWN = 8


class Pair(NamedTuple):
    """An image and the one that is nearest to it among certain others."""

    picture: int | None
    where: str
    other: int | None
    other_where: str
    cosine: float
    live: bool
    """Whether the image was in the pool, and not left out for being too far from the labeled ones."""


class PoolSample(NamedTuple):
    """What the page shows of it."""

    num_sampled: int
    most_relevant: list[Pair]
    """With the nearest labeled image; empty without labeled ones."""
    least_relevant: list[Pair]
    num_labeled: int
    """Labeled images that these were compared with."""
    num_live: int
    """Sampled images that are in the pool, whose nearest there was looked at."""
    num_duplicated: int
    """Of those, how many have a near-duplicate."""
    duplicates: list[Pair]
    """The nearest pairs, each once."""


def sample_pool(
    config: TrainConfig,
    last: LastPool,
    labeled: ImageTable | None,
    pictures: Pictures,
    *,
    most: int,
) -> PoolSample:
    """Embeds random candidates of the pool, what is nearest to each in it, and labeled images.

    Args:
        config: of the run.
        last: pool and teacher.
        labeled: labeled images, if the run had any.
        pictures: gets what is shown.
        most: images to embed; a third of them each.
    """
    pool, table = last.pool.table, last.live.table
    assert pool is not None
    rng = np.random.default_rng(config.seed)
    drawn = np.sort(rng.permutation(last.live.rows)[: most // 3])
    places = np.searchsorted(pool.rows, drawn).clip(max=len(pool.rows) - 1)
    live = pool.rows[places] == drawn
    # The likest of the whole pool was found in training: it need not be looked for again.
    nearest = pool.compared[:, 1:] if pool.compared.shape[1] > 1 else pool.neighbors
    companions = pool.rows[nearest[places[live], :1].ravel()]
    seen = last.embed(table, np.union1d(drawn, companions))

    own = _part(seen, drawn)
    relevant: list[Pair] = []
    irrelevant: list[Pair] = []
    num_labeled = 0
    if labeled is not None:
        domain = last.embed(labeled, np.sort(rng.permutation(len(labeled))[: most // 3]))
        num_labeled = len(domain.rows)
        pairs = _nearest(own, domain, exclude=False)
        pairs = pairs[np.argsort(-pairs["cosine"], kind="stable")]
        shown = min(_SHOWN, len(pairs) // 2)
        relevant = [_pair(pictures, table, labeled, pair, pool.rows) for pair in pairs[:shown]]
        irrelevant = [_pair(pictures, table, labeled, pair, pool.rows) for pair in pairs[::-1][:shown]]
    alive = _part(seen, drawn[live])
    pairs = _nearest(alive, seen, exclude=True)
    num_duplicated = int((pairs["cosine"] >= DUPLICATE).sum())
    pairs = pairs[np.argsort(-pairs["cosine"], kind="stable")]
    _, first = np.unique(np.sort(np.stack([pairs["row"], pairs["other"]], 1), axis=1), axis=0, return_index=True)
    duplicates = [_pair(pictures, table, table, pair, pool.rows) for pair in pairs[np.sort(first)[:_SHOWN]]]
    return PoolSample(len(own.rows), relevant, irrelevant, num_labeled, len(alive.rows), num_duplicated, duplicates)


def _part(seen: TeacherEmbeddings, rows: NDArray[np.int64]) -> TeacherEmbeddings:
    chosen = np.isin(seen.rows, rows)
    return TeacherEmbeddings(seen.rows[chosen], seen.vectors[torch.from_numpy(chosen)])


def _nearest(queries: TeacherEmbeddings, gallery: TeacherEmbeddings, *, exclude: bool) -> NDArray[np.void]:
    """(Q,) of row, other (the nearest row of the gallery), cosine; `exclude` leaves out the query's own row."""
    pairs = np.zeros(len(queries.rows), dtype=[("row", np.int64), ("other", np.int64), ("cosine", np.float64)])
    if not len(queries.rows) or len(gallery.rows) <= exclude:
        return pairs[:0]
    places = torch.from_numpy(np.searchsorted(gallery.rows, queries.rows)) if exclude else None
    found = nearest_neighbors(gallery.vectors, 1, queries=queries.vectors, exclude=places)
    pairs["row"] = queries.rows
    pairs["other"] = gallery.rows[found.indices[:, 0].numpy()]
    pairs["cosine"] = found.similarities[:, 0].numpy()
    return pairs


def _pair(pictures: Pictures, table: ImageTable, others: ImageTable, pair: np.void, live: NDArray[np.int64]) -> Pair:
    row, other = int(pair["row"]), int(pair["other"])
    return Pair(
        pictures.add(table, row),
        table.describe(row),
        pictures.add(others, other),
        others.describe(other),
        float(pair["cosine"]),
        bool(np.isin(row, live)),
    )
