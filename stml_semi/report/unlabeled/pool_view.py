"""What unlabeled images a run used, and how: its last pool, as its newest checkpoint kept it."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stml_semi.config import TrainConfig
from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.streams import ImageStream
from stml_semi.report.pictures import Pictures
from stml_semi.report.retrieval.sample import most_rows
from stml_semi.report.unlabeled.last_batch import BatchAffinities, view_last_batch
from stml_semi.report.unlabeled.pool_sample import PoolSample, sample_pool
from stml_semi.report.unlabeled.teacher import LastPool, open_last_pool

_NEIGHBORHOODS, _NEIGHBORS = 6, 9
_MOST_EMBEDDED = 1800


class Neighborhood(NamedTuple):
    """An image of the pool and those that it is drawn together with."""

    picture: int | None
    where: str
    neighbors: list[int | None]
    num_neighborhoods: int
    """In how many neighborhoods of the pool it is."""
    drawn: int
    """How often since the last refresh."""


class PoolView(NamedTuple):
    """What the page shows of a pool."""

    step: int
    """Of the checkpoint."""
    refreshed: int
    """Steps taken when the pool was renewed for the last time: draws are counted from there."""
    num_live: int
    num_images: int
    """Of a stream those that were read so far."""
    num_alone: int
    """Images that are in nobody's neighborhood."""
    num_undrawn: int
    """Live images that have not been drawn since the last refresh."""
    often: list[Neighborhood]
    """Those drawn most often."""
    random: list[Neighborhood]
    relations: BatchAffinities | None
    sample: PoolSample


def view_pool(
    config: TrainConfig,
    checkpoints: Path,
    unlabeled: ImageTable | ImageStream,
    labeled: ImageTable | None,
    pictures: Pictures,
    *,
    device: torch.device | str,
    num_workers: int,
) -> PoolView | None:
    """What the newest checkpoint's pool was used for; None without a pool.

    Args:
        config: of the run.
        checkpoints: the run's folder of them.
        unlabeled: its unlabeled images.
        labeled: labeled images, if the run had any.
        pictures: gets what is shown.
        device: where the teacher embeds.
        num_workers: decoding processes.

    Raises:
        BadInput: the pool is of another source, or it or the checkpoint cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="stml-semi-pool-") as folder:
        last = open_last_pool(config, checkpoints, unlabeled, Path(folder), device=device, num_workers=num_workers)
        return None if last is None else _view(config, last, labeled, pictures)


def _view(config: TrainConfig, last: LastPool, labeled: ImageTable | None, pictures: Pictures) -> PoolView | None:
    pool, table = last.pool.table, last.live.table
    if pool is None or not pool.neighbors.shape[1]:
        return None
    refreshed = last.pool.first_step + pool.refresh * last.pool.refresh_every
    drawn = _draws(config, last, refreshed)
    num_neighborhoods = np.bincount(pool.neighbors.ravel(), minlength=len(pool.rows))

    def show(places: NDArray[np.int64]) -> list[Neighborhood]:
        return [
            Neighborhood(
                pictures.add(table, int(pool.rows[place])),
                table.describe(int(pool.rows[place])),
                [pictures.add(table, int(pool.rows[near])) for near in pool.neighbors[place, :_NEIGHBORS]],
                int(num_neighborhoods[place]),
                int(drawn[place]),
            )
            for place in places
        ]

    chosen = np.random.default_rng(config.seed).permutation(len(pool.rows))[:_NEIGHBORHOODS]
    most = min(most_rows(last.processor, last.device), _MOST_EMBEDDED)
    return PoolView(
        last.step,
        refreshed,
        len(pool.rows),
        last.pool.num_known,
        int((num_neighborhoods == 0).sum()),
        int((drawn == 0).sum()),
        show(np.argsort(-drawn, kind="stable")[:_NEIGHBORHOODS]),
        show(chosen),
        view_last_batch(config, last, pictures),
        sample_pool(config, last, labeled, pictures, most=most),
    )


def _draws(config: TrainConfig, last: LastPool, refreshed: int) -> NDArray[np.int64]:
    """(P,) how often each image of the pool was drawn since the last refresh: the plan tells, nothing is logged."""
    assert last.pool.table is not None
    rows, plan = last.pool.table.rows, last.pool.plan_of(last.pool.table)
    counts = np.zeros(len(rows), dtype=np.int64)
    for step in range(refreshed, min(last.step, refreshed + config.refresh_every)):
        counts += np.bincount(np.searchsorted(rows, plan.batch(config.seed, step)), minlength=len(rows))
    return counts
