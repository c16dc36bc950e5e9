"""A refresh of the pool: the teacher embeds it, and its images' neighborhoods are found."""

import math

import numpy as np
import torch
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.data.batches.live_images import Live
from stml_semi.data.batches.plan import Rows, held_out_classes, parts_of_all
from stml_semi.data.batches.pool import Calibrated, KnownImages, Neighborhoods, PoolTable
from stml_semi.data.image_table import ImageTable
from stml_semi.losses.evidence import DIMENSIONS, Surroundings, Weights, Whitening, whitening
from stml_semi.losses.neighborhoods import expanded_lengths, rerank
from stml_semi.losses.relations import calibrated_sigma
from stml_semi.models.evaluation import TableEncoder
from stml_semi.models.teacher import Teacher
from stml_semi.neighbors import nearest_neighbors
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import RunFailed
from stml_semi.training.bad_images import BadImages
from stml_semi.training.calibration import MOST_OTHERS, LabeledImages, calibrate, judge
from stml_semi.training.joint_table import search
from stml_semi.training.known_images import Readable, compress, first_look, renew
from stml_semi.training.outputs import Progress

# Below this trust the run says so, once.
_LITTLE = 0.1


# Images that are embedded together at the first look at a table.
_PART = 16384


class NeighborhoodFinder:
    """What the pool calls when it is due to be renewed."""

    def __init__(
        self,
        config: TrainConfig,
        labeled: ImageTable | None,
        encoder: TableEncoder,
        teacher: Teacher,
        bad_images: BadImages,
        progress: Progress,
    ) -> None:
        """
        Args:
            config: of the run.
            labeled: what --relevance compares with, and what measures how right relations are.
            encoder: embeds tables.
            teacher: whose g says who is near whom.
            bad_images: lists what cannot be read.
            progress: is told that this takes time.
        """
        self.config, self.labeled, self.encoder, self.teacher = config, labeled, encoder, teacher
        self.bad_images, self.progress = bad_images, progress
        self.held_out = held_out_classes(config, labeled)
        self._warned = False

    def __call__(self, live: Live, refresh: int, last: PoolTable | None = None) -> Neighborhoods:
        """Neighborhoods within the pool.

        Args:
            live: candidates for the pool.
            refresh: how many refreshes came before.
            last: the pool before, whose calibration and knowledge of a larger table stay.

        Raises:
            RunFailed: fewer images are left than a batch draws.
        """
        known = None if live.renewed is None else self._know(live, live.renewed, last)
        if known is None:
            self.progress.note(f"refreshing the neighbors of {len(live.rows):,} unlabeled images")
            rows, embeddings = self._embed(live.table, live.rows)
        else:
            rows, embeddings = known.rows, known.embeddings
        if self.config.relevance < 1 and self.labeled is not None:
            domain = _as_known(self._embed(self.labeled, np.arange(len(self.labeled))).embeddings, known)
            kept = most_relevant(embeddings, domain, share=self.config.relevance)
            rows, embeddings = rows[kept.cpu().numpy()], embeddings[kept]
        needed = self.config.unlabeled_batch_size
        if len(rows) < needed:
            raise RunFailed.on_all(f"--unlabeled: {len(rows)} images of the pool can be used, a batch draws {needed}")
        found = self._calibrated(Readable(rows, embeddings), known, refresh, last)
        found = found or find_neighborhoods(self.config, rows, embeddings, refresh)
        return found._replace(known=known)

    def _know(self, live: Live, renewed: Rows, last: PoolTable | None) -> KnownImages:
        """All of a table that is larger than a refresh: embedded at first, later a part of it anew."""
        if last is None or last.known is None:
            self.progress.note(f"embedding {len(live.rows):,} unlabeled images, once")
            parts = parts_of_all(self.config.seed, len(live.rows), _PART)
            return first_look(parts, lambda rows: self._embed(live.table, rows), self.progress.note)
        self.progress.note(f"renewing {len(renewed):,} of {len(live.rows):,} unlabeled images")
        return renew(last.known, self._embed(live.table, renewed))

    def _calibrated(
        self, pool: Readable, known: KnownImages | None, refresh: int, last: PoolTable | None
    ) -> Neighborhoods | None:
        """Neighborhoods of whitened embeddings, if labels can say how right these are."""
        if not len(self.held_out) or len(pool.rows) < 2 or (last is not None and last.calibrated is None):
            return None
        whiten = whitening(pool.embeddings, DIMENSIONS)
        unit = whiten(pool.embeddings)
        before = None if last is None else last.calibrated
        weights = self._measure(unit, whiten, known) if before is None else before.weights
        if weights is None:
            return None
        found = find_neighborhoods(self.config, pool.rows, unit, refresh)
        assert found.similarity is not None
        trust = judge(self.config, weights, Surroundings(unit, found.compared, found.similarity))
        if trust < _LITTLE and not self._warned:
            self._warned = True
            self.progress.note(
                f"warning: the teacher is right in {trust:.0%} of the pairs it takes for the same class: "
                f"unlabeled images count little"
            )
        return found._replace(calibrated=Calibrated(weights, trust, unit, found.similarity))

    def _measure(self, unit: Tensor, whiten: Whitening, known: KnownImages | None) -> Weights | None:
        """What the labeled classes that the warm-up left out say; None if too few of their images can be read."""
        table = self.labeled
        assert table is not None
        assert table.labels is not None
        is_held_out = np.isin(table.labels, self.held_out)
        others = np.flatnonzero(~is_held_out)
        others = np.sort(np.random.default_rng(self.config.seed).permutation(others)[:MOST_OTHERS])
        held_out, different = (self._know_labels(rows, whiten, known) for rows in (np.flatnonzero(is_held_out), others))
        if not len(held_out.labels):
            return None
        return calibrate(self.config, unit, held_out, different, seed=self.config.seed)

    def _know_labels(self, rows: Rows, whiten: Whitening, known: KnownImages | None) -> LabeledImages:
        assert self.labeled is not None
        assert self.labeled.labels is not None
        found = self._embed(self.labeled, rows)
        embeddings = whiten(_as_known(found.embeddings, known))
        return LabeledImages(embeddings, torch.from_numpy(self.labeled.labels[found.rows]).to(embeddings.device))

    def _embed(self, table: ImageTable, rows: Rows) -> Readable:
        embedded = self.encoder(table, lambda pixels: self.teacher(pixels).g, rows)
        self.bad_images.list(embedded.bad)
        return Readable(rows[embedded.readable], embedded.embeddings[torch.from_numpy(embedded.readable)])


def _as_known(embeddings: Tensor, known: KnownImages | None) -> Tensor:
    """Other embeddings, such as labeled images have, as those of the pool are."""
    return embeddings if known is None else compress(embeddings, known.basis)


def find_neighborhoods(config: TrainConfig, rows: Rows, embeddings: Tensor, refresh: int) -> Neighborhoods:
    """Neighborhoods of the pool's images; each process searches for its share, and all get the whole.

    Args:
        config: of the run.
        rows: (P,) of the unlabeled table, live now.
        embeddings: (P, e): the teacher's g of them.
        refresh: how many refreshes came before.
    """
    total = len(rows)
    every = torch.arange(total, device=embeddings.device)
    share = distributed.share(total, rank=distributed.rank(), world_size=distributed.world_size())
    sigma = calibrated_sigma(embeddings, seed=refresh) if config.sigma == "auto" else config.sigma
    pooled = config.relations == "pool"
    wanted = max(config.pool_neighbors, config.num_neighbors) if pooled else config.num_neighbors
    k = min(wanted, total) - 1
    nearest, similarities = search(embeddings, k)
    if not pooled:
        return Neighborhoods(rows, nearest, nearest[:, :0], sigma)
    compared = torch.cat([every[:, None], nearest], 1)
    expand = config.num_neighbors
    lengths = distributed.gather(expanded_lengths(compared, expand=expand, rows=every[share]), total)
    likest = distributed.gather(rerank(compared, lengths, expand=expand, rows=every[share]), total)
    # The likelier half: drawn at random, a query's companions change from round to round.
    drawn = likest[:, : max(k // 2, config.num_neighbors - 1)]
    return Neighborhoods(rows, drawn, compared, sigma, similarities.mean(1) if k else None)


def most_relevant(embeddings: Tensor, domain: Tensor, *, share: float) -> Tensor:
    """Which images of a pool are nearest to the labeled ones.

    Args:
        embeddings: (P, e) of the pool.
        domain: (L, e) of labeled images.
        share: of the pool that stays, 0..1.

    Returns:
        (ceil(share x P),) rising positions of the images whose nearest labeled image is nearest, by cosine.
    """
    total = len(embeddings)
    own = distributed.share(total, rank=distributed.rank(), world_size=distributed.world_size())
    found = nearest_neighbors(domain, 1, queries=embeddings[own]).similarities[:, 0]
    nearest = distributed.gather(found, total)
    kept = nearest.argsort(descending=True, stable=True)[: math.ceil(share * len(embeddings))]
    return kept.sort().values
