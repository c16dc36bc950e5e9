"""The live unlabeled images and their neighbors, renewed every `refresh_every` steps."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from stml_semi.data.plan import Rows, UnlabeledPlan, pool_rows


class Neighborhoods(NamedTuple):
    """What the trainer found out about candidates for the pool."""

    rows: Rows
    """(P,) those that could be read."""
    neighbors: Tensor
    """(P, k) positions among them of each one's nearest, nearest first."""


Neighbors = Callable[[Rows, int], Neighborhoods]
"""(candidate rows, k) -> neighborhoods: asks the trainer, since samplers never run a model."""


class PoolTable(NamedTuple):
    """The pool as a checkpoint keeps it."""

    refresh: int
    """How many refreshes came before this one."""
    rows: Rows
    neighbors: np.ndarray


class UnlabeledPool:
    """Keeps `pool_size` unlabeled images live and knows each one's nearest neighbors."""

    def __init__(
        self,
        num_images: int,
        *,
        seed: int,
        pool_size: int,
        queries_per_batch: int,
        num_neighbors: int,
        refresh_every: int,
        first_step: int,
    ) -> None:
        """
        Args:
            num_images: size of the unlabeled source.
            first_step: step at which unlabeled images are first used; refreshes count from there.
        """
        self.num_images = num_images
        self.seed = seed
        self.pool_size = max(pool_size, queries_per_batch * num_neighbors)
        self.queries_per_batch = queries_per_batch
        self.num_neighbors = num_neighbors
        self.refresh_every = refresh_every
        self.first_step = first_step
        self.table: PoolTable | None = None

    def next_refresh(self, step: int) -> int:
        """The first step after `step` at which the table is renewed."""
        if step < self.first_step:
            return self.first_step
        return step + self.refresh_every - (step - self.first_step) % self.refresh_every

    def is_valid(self, step: int) -> bool:
        """Whether the table in hand is the one for `step`."""
        if self.table is None or step < self.first_step:
            return False
        return self.table.refresh == (step - self.first_step) // self.refresh_every

    def plan(self, step: int, neighbors: Neighbors) -> UnlabeledPlan:
        """The unlabeled plan in force at `step`, after a refresh if one is due.

        Args:
            step: at or after `first_step`.
            neighbors: called only when the table has to be renewed.
        """
        refresh = (step - self.first_step) // self.refresh_every
        if self.table is None or not self.is_valid(step):
            candidates = pool_rows(self.seed, refresh, self.num_images, self.pool_size)
            # The image itself is the first member of its neighborhood.
            found = neighbors(candidates, self.num_neighbors - 1)
            self.table = PoolTable(refresh, found.rows, found.neighbors.cpu().numpy())
        return UnlabeledPlan(self.table.rows, self.table.neighbors, self.queries_per_batch)
