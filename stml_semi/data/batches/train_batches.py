"""The batches of a run, one process's share at a time: plans, pool and workers put together."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.data.batches.live_images import live_images
from stml_semi.data.batches.loading import Batch, Steps, ViewSettings
from stml_semi.data.batches.plan import LabeledPlan, held_out_classes, rows_by_class
from stml_semi.data.batches.pool import FindNeighbors, UnlabeledPool
from stml_semi.data.evaluated import EvaluatedImages
from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.streams import ImageStream
from stml_semi.data.workers import decode_ahead, resolve_num_workers
from stml_semi.runtime import distributed


def open_pool(
    config: TrainConfig,
    unlabeled: ImageTable | ImageStream,
    folder: Path,
    evaluated: EvaluatedImages | None = None,
    *,
    novelty: float = 1.0,
) -> UnlabeledPool:
    """The pool of a run, before its first refresh.

    Args:
        config: of the run.
        unlabeled: its images.
        folder: for the live images of streams.
        evaluated: images that a stream must not give to the pool.
        novelty: how much its images show beside labeled ones, 0..1.
    """
    return UnlabeledPool(
        live_images(unlabeled, seed=config.seed, pool_size=config.live_images, folder=folder, evaluated=evaluated),
        seed=config.seed,
        queries_per_batch=config.queries_per_batch,
        num_neighbors=config.num_neighbors,
        refresh_every=config.refresh_every,
        first_step=config.warmup_steps,
        novelty=novelty,
    )


class TrainBatches:
    """Yields this process's share of every global batch, and renews the pool of unlabeled images when it is due."""

    def __init__(
        self,
        config: TrainConfig,
        views: ViewSettings,
        labeled: ImageTable | None,
        pool: UnlabeledPool | None,
        find_neighbors: FindNeighbors,
        device: torch.device,
    ) -> None:
        """
        Args:
            config: of the run.
            views: how training views are made.
            labeled: labeled images, or None.
            pool: of unlabeled images, or None.
            find_neighbors: finds the neighbors of pool images, called at every refresh.
            device: where batches will go: pinned memory helps a GPU only.
        """
        self.config, self.views, self.pool, self.find_neighbors = config, views, pool, find_neighbors
        self.pin_memory = device.type == "cuda"
        rank, world = distributed.rank(), distributed.world_size()
        self.labeled_share = distributed.share(config.labeled_batch_size, rank=rank, world_size=world)
        self.unlabeled_share = distributed.share(config.unlabeled_batch_size, rank=rank, world_size=world)
        self.num_workers = resolve_num_workers(config.num_workers)
        self.waited = 0.0
        """Seconds that training has waited for images so far."""
        self.labeled: tuple[ImageTable, LabeledPlan] | None = None
        if labeled is not None:
            assert labeled.labels is not None
            by_class = rows_by_class(labeled.labels, len(labeled.classes))
            held_out = held_out_classes(config, labeled)
            plan = LabeledPlan(
                by_class, config.classes_per_batch, config.images_per_class, held_out, config.warmup_steps
            )
            self.labeled = (labeled, plan)

    @property
    def rows(self) -> int:
        """Images and views in this process's share of a step with both terms."""
        labeled, unlabeled = (share.stop - share.start for share in (self.labeled_share, self.unlabeled_share))
        return (labeled if self.labeled else 0) + (unlabeled * self.config.num_views if self.pool else 0)

    def start(self, step: int) -> Iterator[Batch]:
        """Batches from a step on, to the end of the run."""
        while step < self.config.max_steps:
            unlabeled, stop = None, self.config.max_steps
            if self.pool is not None:
                stop = min(stop, self.pool.next_refresh(step))
                if step >= self.config.warmup_steps:
                    plan = self.pool.plan(step, self.find_neighbors)
                    unlabeled = (self.pool.images, plan)
            steps = Steps(
                self.views,
                labeled=self.labeled,
                unlabeled=unlabeled,
                labeled_share=self.labeled_share,
                unlabeled_share=self.unlabeled_share,
            )
            workers, pin = self.num_workers, self.pin_memory
            yield from self._timed(decode_ahead(steps, range(step, stop), num_workers=workers, pin_memory=pin))
            step = stop

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; what they made the loop wait is added up."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def positions(self, batch: Batch) -> Tensor:
        """Places of a batch's rows in the global batch, (B,): labeled images first, then views image by image."""
        config = self.config
        labeled = self.labeled_share.start + torch.arange(len(batch.labeled_pixels))
        views = torch.arange(len(batch.unlabeled_pixels) * config.num_views)
        first = config.labeled_batch_size + self.unlabeled_share.start * config.num_views
        return torch.cat([labeled, first + views])

    def describe(self, step: int) -> list[str]:
        """The images of the global batch of a step, as far as the pool of that step is still in hand."""
        images = []
        if self.labeled is not None:
            table, plan = self.labeled
            images += [table.describe(row) for row in plan.rows(self.config.seed, step)]
        if self.pool is not None and self.pool.is_valid(step):
            rows = self.pool.plan(step, self.find_neighbors).batch(self.config.seed, step)
            images += [self.pool.images.describe(row) for row in rows]
        return images
