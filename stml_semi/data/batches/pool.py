"""The live unlabeled images and their neighbors, renewed every `refresh_every` steps."""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from stml_semi.data.batches.live_images import Live, LiveImages, StreamRecord
from stml_semi.data.batches.plan import Rows, UnlabeledPlan
from stml_semi.data.image_table import ImageTable
from stml_semi.data.overlap import ExcludedImage
from stml_semi.losses.evidence import Weights, affinity
from stml_semi.losses.neighborhoods import neighborhood_overlap


class Calibrated(NamedTuple):
    """What tells how likely two images of the pool show the same thing."""

    weights: Weights
    trust: float
    """How much of the pull between images is right, as far as is known: 0..1."""
    unit: Tensor
    """(P, d) whitened embeddings of the pool, of unit length."""
    similarity: Tensor
    """(P,) mean cosine with the neighborhood."""


class KnownImages(NamedTuple):
    """What is known of a table that is larger than what a refresh embeds."""

    rows: Rows
    """(M,) rising: those that could be read."""
    embeddings: Tensor
    """(M, d) float32: the teacher's g, some as of an earlier refresh."""
    basis: Tensor
    """(auxiliary_dim, d): the directions of g that are kept."""


class Neighborhoods(NamedTuple):
    """What the trainer found out about candidates for the pool."""

    rows: Rows
    """(P,) those that could be read."""
    neighbors: Tensor
    """(P, k) positions among them, of which a query's companions are drawn."""
    compared: Tensor
    """(P, K) positions among them: what relations compare, each image itself first; (P, 0) if they compare a batch."""
    sigma: float
    """Bandwidth of pairwise similarity."""
    similarity: Tensor | None = None
    """(P,) mean cosine with the neighborhood; None without neighbors."""
    calibrated: Calibrated | None = None
    """What relations are made of; None without labels that could measure them."""
    known: KnownImages | None = None
    """None where a refresh embeds all."""


FindNeighbors = Callable[[Live, int, "PoolTable | None"], Neighborhoods]
"""(candidates, refresh, the pool before) -> neighborhoods: calls the trainer, since samplers never run a model."""


class PoolRelations(NamedTuple):
    """What a refresh lets the losses know."""

    sigma: float
    """Bandwidth of pairwise similarity."""
    overlap: Tensor | None
    """(V U, V U): how much neighborhoods in the pool agree; None where they are compared within the batch."""
    affinity: Tensor | None = None
    """(V U, V U): W, where it follows from the pool alone."""
    trust: float = 1.0
    """How strongly the unlabeled term may pull, 0..1."""


class PoolTable(NamedTuple):
    """The pool as a checkpoint keeps it."""

    refresh: int
    """How many refreshes came before this one."""
    rows: Rows
    neighbors: np.ndarray
    compared: np.ndarray
    sigma: float
    calibrated: Calibrated | None = None
    stream: StreamRecord | None = None
    """Where the images of a stream are; None of a table."""
    known: KnownImages | None = None


class UnlabeledPool:
    """Keeps unlabeled images live and knows each one's nearest neighbors."""

    def __init__(
        self,
        live: LiveImages,
        *,
        seed: int,
        queries_per_batch: int,
        num_neighbors: int,
        refresh_every: int,
        first_step: int,
        novelty: float = 1.0,
    ) -> None:
        """
        Args:
            live: where its images come from.
            seed: of the run.
            queries_per_batch: images that are drawn for a batch with their company.
            num_neighbors: size of that company, the query included.
            refresh_every: steps for which images stay live.
            first_step: step at which unlabeled images are first used; refreshes count from there.
            novelty: how much the images show beside labeled ones: a factor on the trust in them, 0..1.
        """
        self.live, self.seed = live, seed
        self.queries_per_batch = queries_per_batch
        self.num_neighbors = num_neighbors
        self.refresh_every = refresh_every
        self.first_step = first_step
        self.novelty = novelty
        self.table: PoolTable | None = None
        self.excluded: list[ExcludedImage] = []
        """Images of a stream that were left out since the list was last emptied, because the run is scored on them."""
        self._drawn: Live | None = None
        self._compared: _Compared | None = None

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

    @property
    def is_measured(self) -> bool:
        """Whether anything says how far the relations between the images are to be trusted."""
        return self.novelty < 1 or (self.table is not None and self.table.calibrated is not None)

    def trust(self, step: int) -> float:
        """How far they are trusted at `step`, 0..1: not at all before they are used, wholly where nothing is known."""
        if self.table is None or step < self.first_step:
            return 0.0
        return self.novelty * (1.0 if self.table.calibrated is None else self.table.calibrated.trust)

    @property
    def num_known(self) -> int:
        """How many different images were drawn from so far: of a table all, of a stream those that were read."""
        drawn = self._drawn.record if self._drawn is not None else self.table.stream if self.table is not None else None
        return self.live.num_known(drawn)

    @property
    def images(self) -> ImageTable:
        """The table that the rows of the last plan are of."""
        assert self._drawn is not None
        return self._drawn.table

    def plan(self, step: int, find_neighbors: FindNeighbors) -> UnlabeledPlan:
        """The unlabeled plan in force at `step`, after a refresh if one is due.

        Args:
            step: at or after `first_step`.
            find_neighbors: called only when the table has to be renewed.
        """
        refresh = (step - self.first_step) // self.refresh_every
        if self.table is None or not self.is_valid(step):
            self._drawn = self.live.draw(refresh, None if self.table is None else self.table.stream)
            self.excluded.extend(self._drawn.excluded)
            found = find_neighbors(self._drawn, refresh, self.table)
            drawn, compared = (part.cpu().numpy() for part in (found.neighbors, found.compared))
            self.table = PoolTable(
                refresh, found.rows, drawn, compared, found.sigma, found.calibrated, self._drawn.record, found.known
            )
        elif self._drawn is None:  # The run goes on, and its table was restored.
            self._drawn = self.live.again(refresh, self.table.stream)
            self.excluded.extend(self._drawn.excluded)
        return self.plan_of(self.table)

    def plan_of(self, table: PoolTable) -> UnlabeledPlan:
        """The plan that is in force while a table is."""
        return UnlabeledPlan(table.rows, table.neighbors, self.queries_per_batch, self.num_neighbors)

    def relations(self, image_index: Tensor, *, num_views: int) -> PoolRelations:
        """What the pool knows of the images of a batch, where they are; the host does not wait for the device.

        An image that is not in the pool (it took the place of one that could not be read) is like itself alone.

        Args:
            image_index: (U,) rows of the unlabeled table, as they were read.
            num_views: how often each image is in the batch, view after view.
        """
        table = self.table
        assert table is not None
        if not table.compared.shape[1]:
            return PoolRelations(table.sigma, None, trust=self.trust(self.first_step))
        if self._compared is None or self._compared.table is not table:
            self._compared = _Compared.of(table, image_index.device)
        rows = self._compared.rows
        positions = torch.searchsorted(rows, image_index).clamp_max(len(rows) - 1)
        overlap = neighborhood_overlap(self._compared.neighborhoods, positions, expand=self.num_neighbors)
        known = rows[positions] == image_index
        known = known[:, None] & known
        same = image_index[:, None] == image_index
        overlap = overlap.where(known, same.float())
        calibrated = table.calibrated
        if calibrated is None:
            return PoolRelations(table.sigma, overlap.repeat(num_views, num_views), trust=self.trust(self.first_step))
        assert self._compared.unit is not None
        assert self._compared.similarity is not None
        unit, similarity = (part[positions] for part in (self._compared.unit, self._compared.similarity))
        likely = affinity(calibrated.weights, unit, similarity, overlap).where(known, 0.0).masked_fill(same, 1.0)
        likely = likely.repeat(num_views, num_views)
        return PoolRelations(table.sigma, None, likely, self.trust(self.first_step))


class _Compared(NamedTuple):
    """What relations need of a table, on the device."""

    table: PoolTable
    rows: Tensor
    neighborhoods: Tensor
    unit: Tensor | None = None
    similarity: Tensor | None = None

    @classmethod
    def of(cls, table: PoolTable, device: torch.device) -> Self:
        """Moves it there, once a refresh."""
        rows, neighborhoods = (torch.from_numpy(part).to(device) for part in (table.rows, table.compared))
        if table.calibrated is None:
            return cls(table, rows, neighborhoods)
        return cls(table, rows, neighborhoods, table.calibrated.unit.to(device), table.calibrated.similarity.to(device))
