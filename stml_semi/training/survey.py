"""A run's models over whole tables: evaluations, and what a refresh of the pool asks for."""

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.data.batches.loading import BadPicture
from stml_semi.data.batches.plan import Rows
from stml_semi.data.batches.pool import Neighborhoods, UnlabeledPool
from stml_semi.data.image_table import ImageTable
from stml_semi.data.overlap import Dropped
from stml_semi.data.sources.streams import ImageStream
from stml_semi.models.embedder import Embedder
from stml_semi.models.evaluation import EmbeddedTable, Encode, TableEncoder, score
from stml_semi.models.teacher import Teacher
from stml_semi.report.neighbor_sheet import draw, find
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.errors import RunFailed
from stml_semi.runtime.failures import check_bad
from stml_semi.training.neighborhoods import find_neighborhoods, most_relevant
from stml_semi.training.trackers import Trackers

_SHOWN = 8
"""Queries, and neighbors of each, in the pictures for trackers."""


class Tables(NamedTuple):
    """The pictures of a run; labeled or unlabeled ones may be missing, not both."""

    labeled: ImageTable | None
    unlabeled: ImageTable | ImageStream | None
    evaluation: ImageTable | None
    recall_at: tuple[int, ...]
    excluded: tuple[Dropped, ...] | None = None
    """What --exclude-overlap took out of the unlabeled ones; None if nobody looked."""
    validation: ImageTable | None = None
    """Of classes that are kept to choose the exported step by."""


class Progress(Protocol):
    """What the loop tells the person who waits."""

    def step(self, step: int, line: dict[str, float] | None) -> None: ...
    def note(self, message: str) -> None: ...


class Readable(NamedTuple):
    """Pictures of a table that could be read."""

    rows: Rows
    embeddings: Tensor


class Survey:
    """Embeds tables with the student and the teacher of a run, and logs what is found."""

    def __init__(
        self,
        config: TrainConfig,
        tables: Tables,
        pool: UnlabeledPool | None,
        embed: TableEncoder,
        embedder: Embedder,
        teacher: Teacher,
        folder: RunFolder,
        trackers: Trackers,
        progress: Progress,
    ) -> None:
        self.config, self.tables, self.pool, self.embed = config, tables, pool, embed
        self.folder, self.progress = folder, progress
        self.trackers = trackers
        self.embedder, self.teacher = embedder, teacher

    @property
    def num_images(self) -> int:
        """Pictures of all tables, and those that were read of streams."""
        fixed = (self.tables.labeled, self.tables.validation, self.tables.evaluation)
        known = 0 if self.pool is None else self.pool.num_known
        return known + sum(len(table) for table in fixed if table is not None)

    def evaluate_frozen(self) -> None:
        """Scores the backbone's own features, before anything is trained."""
        for table in (self.tables.validation, self.tables.evaluation):
            self._score(table, 0, "frozen", self.embedder.features)

    def evaluate(self, step: int) -> float | None:
        """Scores student and teacher after `step` steps, on the validation pictures if the run has them.

        Returns the student's MAP@R if there is anything to evaluate on.
        """
        table = self.tables.validation or self.tables.evaluation
        found = self._score(table, step, "student", lambda x: self.embedder(x).f)
        self._score(table, step, "teacher", lambda x: self.teacher(x).f)
        return found

    def test(self, step: int) -> None:
        """Scores the student that validation chose, of step `step`, on what the run is tested on."""
        self._score(self.tables.evaluation, step, "student", lambda x: self.embedder(x).f)

    def _score(self, table: ImageTable | None, step: int, model: str, encode: Encode) -> float | None:
        if table is None:
            return None
        what = "frozen backbone" if model == "frozen" else model
        self.progress.note(f"evaluating the {what} on {table.name}")
        training = self.embedder.training
        self.embedder.eval()
        embedded = self.embed(table, encode)
        self.embedder.train(training)
        self.list_bad(embedded.bad)
        scores = score(table, embedded, self.tables.recall_at)
        split = {"split": "validation"} if table is self.tables.validation else {}
        line = {"step": step, "data": table.name, "model": model, **split, **scores}
        self.folder.log(line)
        self.trackers.log(line)
        if self.trackers.show_pictures and model != "teacher":
            self._show(step, model, table, embedded)
        return scores["map@r"]

    def _show(self, step: int, model: str, table: ImageTable, embedded: EmbeddedTable) -> None:
        """Some queries with what is nearest to them, the same ones at every evaluation."""
        asks = embedded.readable if table.queries is None else embedded.readable & table.queries
        queries = np.random.default_rng(self.config.seed).permutation(np.flatnonzero(asks))[:_SHOWN]
        found = find(table, embedded.embeddings, queries, _SHOWN, usable=embedded.readable, title=model)
        # One name for the backbone and what becomes of it: the slider over steps starts before training.
        self.trackers.show("eval/neighbors", draw(table, queries, [found], cell=96), step)

    def neighbors(self, table: ImageTable, rows: Rows, refresh: int) -> Neighborhoods:
        """Neighborhoods within the pool by the teacher's g, among candidate rows of an unlabeled table."""
        self.progress.note(f"refreshing the neighbors of {len(rows)} unlabeled images")
        rows, embeddings = self._embed_readable(table, rows)
        if self.config.relevance < 1 and self.tables.labeled is not None:
            every = np.arange(len(self.tables.labeled))
            domain = self._embed_readable(self.tables.labeled, every).embeddings
            kept = most_relevant(embeddings, domain, share=self.config.relevance)
            rows, embeddings = rows[kept.cpu().numpy()], embeddings[kept]
        needed = self.config.unlabeled_batch_size
        if len(rows) < needed:
            raise RunFailed.on_all(f"--unlabeled: {len(rows)} pictures of the pool can be used, a batch draws {needed}")
        return find_neighborhoods(self.config, rows, embeddings, refresh)

    def _embed_readable(self, table: ImageTable, rows: Rows) -> Readable:
        """The teacher's g of the pictures that can be read."""
        embedded = self.embed(table, lambda x: self.teacher(x).g, rows)
        self.list_bad(embedded.bad)
        return Readable(rows[embedded.readable], embedded.embeddings[torch.from_numpy(embedded.readable)])

    def list_bad(self, pictures: list[BadPicture]) -> None:
        """Lists bad pictures (the same ones in all processes), and ends the run if they are too many."""
        count = self.folder.list_bad(pictures)
        check_bad(self.config, count, self.num_images, pictures)
