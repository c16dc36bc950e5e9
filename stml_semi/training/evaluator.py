"""Scores the models of a run on its evaluation and validation images, and logs the scores."""

from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from stml_semi.config import TrainConfig
from stml_semi.data.image_table import ImageTable
from stml_semi.data.run_tables import Tables
from stml_semi.metrics import bootstrap, precision_thresholds, score_names, score_values
from stml_semi.models.embedder import Embedder
from stml_semi.models.evaluation import (
    EmbeddedTable,
    Encode,
    Scored,
    TableEncoder,
    score,
    score_open_set,
    score_truncated,
)
from stml_semi.models.teacher import Teacher
from stml_semi.report.neighbor_sheet import draw, find
from stml_semi.run_folder.log import Choice, Served
from stml_semi.run_folder.verdict import METRICS, OVER_FROZEN
from stml_semi.runtime.files import replacing
from stml_semi.training.bad_images import BadImages
from stml_semi.training.outputs import Outputs

_SHOWN = 8
"""Queries, and neighbors of each, in the images for trackers."""


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
        last = step == self.config.max_steps
        map_at_r = self._score(table, step, "student", lambda pixels: embedder(pixels).f, embedder, last=last)
        self._score(table, step, "teacher", lambda pixels: teacher(pixels).f, embedder, last=last)
        return map_at_r

    def test(self, choice: Choice, embedder: Embedder) -> None:
        """Scores the model that validation chose on the test images."""
        alpha = {} if choice.alpha is None else {"alpha": choice.alpha}
        table, model = self.tables.evaluation, choice.model
        self._score(table, choice.step, model, lambda pixels: embedder(pixels).f, embedder, last=True, **alpha)

    def score_candidate(self, name: str, embedder: Embedder, *, features: bool) -> Scored:
        """Scores a model on the validation images, with thresholds, without logging it.

        Args:
            name: of its weights.
            embedder: the model.
            features: take the backbone's own features and not those of head f.
        """
        assert self.tables.validation is not None
        encode = embedder.features if features else lambda pixels: embedder(pixels).f
        embedded, scored = self._embed(self.tables.validation, name, encode, embedder)
        return scored._replace(thresholds=precision_thresholds(score_open_set(self.tables.validation, embedded)))

    @property
    def validation_name(self) -> str:
        """What the validation images are called in the log."""
        assert self.tables.validation is not None
        return self.tables.validation.name

    def _score(
        self,
        table: ImageTable | None,
        step: int,
        model: Served,
        encode: Encode,
        embedder: Embedder,
        *,
        last: bool = False,
        **more: float,
    ) -> float | None:
        if table is None:
            return None
        embedded, scored = self._embed(table, Choice(model, step, more.get("alpha")).name, encode, embedder)
        split = {"split": "validation"} if table is self.tables.validation else {}
        line = {"step": step, "data": table.name, "model": model, **more, **split, **scored.means}
        gain = {} if split or not self.outputs.folder.writes else self._over_frozen(model, scored, last=last)
        if last and not split:
            gain["truncated"] = score_truncated(table, embedded)
        self.outputs.log(line, **gain)
        if self.outputs.trackers.show_pictures and model != "teacher":
            self._show(step, model, table, embedded)
        return scored.means["map@r"]

    def _over_frozen(self, model: Served, scored: Scored, *, last: bool) -> dict[str, Any]:
        """How much better than the frozen backbone the models of the end are, query by query.

        The backbone's scores lie in the run folder: a resumed run does not see it any more.
        """
        queries = scored.queries
        values = score_values(queries.scores).cpu()
        labels = queries.labels[queries.scores.num_relevant > 0].cpu()
        file = self.outputs.folder.frozen_scores
        if model == "frozen":
            with replacing(file) as written:
                save_file({"values": values, "labels": labels}, written)
            return {}
        if not last or not file.is_file():
            return {}
        frozen = load_file(file)
        if not frozen["labels"].equal(labels):  # Images have become unreadable since.
            return {}
        found = zip(
            score_names(self.tables.recall_at), bootstrap(values - frozen["values"], groups=labels), strict=True
        )
        return {OVER_FROZEN: {name: list(gain) for name, gain in found if name in METRICS}}

    def _embed(self, table: ImageTable, name: str, encode: Encode, embedder: Embedder) -> tuple[EmbeddedTable, Scored]:
        self.outputs.progress.note(f"evaluating the {name} on {table.name}")
        training = embedder.training
        embedder.eval()
        embedded = self.encoder(table, encode)
        embedder.train(training)
        self.bad_images.list(embedded.bad)
        return embedded, score(table, embedded, self.tables.recall_at)

    def _show(self, step: int, model: str, table: ImageTable, embedded: EmbeddedTable) -> None:
        """Some queries with what is nearest to them, the same ones at every evaluation."""
        candidates = embedded.readable if table.queries is None else embedded.readable & table.queries
        queries = np.random.default_rng(self.config.seed).permutation(np.flatnonzero(candidates))[:_SHOWN]
        found = find(table, embedded.embeddings, queries, _SHOWN, usable=embedded.readable, title=model)
        # One name for the backbone and what becomes of it: the slider over steps starts before training.
        self.outputs.trackers.show("eval/neighbors", draw(table, queries, [found], cell=96), step)
