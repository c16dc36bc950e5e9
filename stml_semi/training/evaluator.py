"""Scores the models of a run on its evaluation and validation images, and logs the scores."""

import numpy as np

from stml_semi.config import TrainConfig
from stml_semi.data.image_table import ImageTable
from stml_semi.data.run_tables import Tables
from stml_semi.models.embedder import Embedder
from stml_semi.models.evaluation import EmbeddedTable, Encode, TableEncoder, score
from stml_semi.models.teacher import Teacher
from stml_semi.report.neighbor_sheet import draw, find
from stml_semi.training.bad_images import BadImages
from stml_semi.training.outputs import Outputs

_SHOWN = 8
"""Queries, and neighbors of each, in the pictures for trackers."""


class Evaluator:
    """Knows what to score on and where scores go; the models are those of the moment."""

    def __init__(
        self, config: TrainConfig, tables: Tables, encoder: TableEncoder, bad_images: BadImages, outputs: Outputs
    ) -> None:
        self.config, self.tables, self.encoder = config, tables, encoder
        self.bad_images, self.outputs = bad_images, outputs

    def evaluate_frozen(self, embedder: Embedder) -> None:
        """Scores the backbone's own features, before anything is trained."""
        for table in (self.tables.validation, self.tables.evaluation):
            self._score(table, 0, "frozen", embedder.features, embedder)

    def evaluate(self, step: int, embedder: Embedder, teacher: Teacher) -> float | None:
        """Scores student and teacher after `step` steps, on the validation images if the run has them.

        Returns the student's MAP@R if there is anything to evaluate on.
        """
        table = self.tables.validation or self.tables.evaluation
        map_at_r = self._score(table, step, "student", lambda pixels: embedder(pixels).f, embedder)
        self._score(table, step, "teacher", lambda pixels: teacher(pixels).f, embedder)
        return map_at_r

    def test(self, step: int, embedder: Embedder) -> None:
        """Scores the student that validation chose, of step `step`, on the test images."""
        self._score(self.tables.evaluation, step, "student", lambda pixels: embedder(pixels).f, embedder)

    def _score(
        self, table: ImageTable | None, step: int, model: str, encode: Encode, embedder: Embedder
    ) -> float | None:
        if table is None:
            return None
        what = "frozen backbone" if model == "frozen" else model
        self.outputs.progress.note(f"evaluating the {what} on {table.name}")
        training = embedder.training
        embedder.eval()
        embedded = self.encoder(table, encode)
        embedder.train(training)
        self.bad_images.list(embedded.bad)
        scores = score(table, embedded, self.tables.recall_at)
        split = {"split": "validation"} if table is self.tables.validation else {}
        self.outputs.log({"step": step, "data": table.name, "model": model, **split, **scores})
        if self.outputs.trackers.show_pictures and model != "teacher":
            self._show(step, model, table, embedded)
        return scores["map@r"]

    def _show(self, step: int, model: str, table: ImageTable, embedded: EmbeddedTable) -> None:
        """Some queries with what is nearest to them, the same ones at every evaluation."""
        candidates = embedded.readable if table.queries is None else embedded.readable & table.queries
        queries = np.random.default_rng(self.config.seed).permutation(np.flatnonzero(candidates))[:_SHOWN]
        found = find(table, embedded.embeddings, queries, _SHOWN, usable=embedded.readable, title=model)
        # One name for the backbone and what becomes of it: the slider over steps starts before training.
        self.outputs.trackers.show("eval/neighbors", draw(table, queries, [found], cell=96), step)
