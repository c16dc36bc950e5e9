"""What metrics.jsonl says of a step: its terms, the spread of its embeddings, its pace."""

import time

import torch

from stml_semi.config import TrainConfig
from stml_semi.data.batches.loading import Batch
from stml_semi.data.batches.train_batches import TrainBatches
from stml_semi.data.image_table import ImageTable
from stml_semi.data.run_tables import Tables
from stml_semi.runtime import distributed
from stml_semi.training.health import affinity_histogram, agreement, collapse, is_collapsed, spread
from stml_semi.training.objective import LOGGED, Terms
from stml_semi.training.optimizer import learning_rate
from stml_semi.training.outputs import Outputs


class StepLog:
    """Writes a line every few steps, and warns of a collapse."""

    def __init__(
        self, config: TrainConfig, tables: Tables, batches: TrainBatches, outputs: Outputs, device: torch.device
    ) -> None:
        self.config, self.tables, self.batches, self.outputs, self.device = config, tables, batches, outputs, device
        self._collapsed = False
        self._known = None
        """Classes of the unlabeled images, if the user told them: for the log alone."""
        if isinstance(tables.unlabeled, ImageTable) and tables.unlabeled.labels is not None:
            self._known = torch.from_numpy(tables.unlabeled.labels)
        self.restart()

    def restart(self) -> None:
        """Speed counts from here."""
        self._started, self._images, self._waited = time.perf_counter(), 0, self.batches.waited

    def count(self, batch: Batch) -> None:
        """A step was taken."""
        self._images += len(batch.labeled_pixels) + batch.unlabeled_pixels.shape[:2].numel()

    def pause(self, seconds: float) -> None:
        """Something else took time."""
        self._started += seconds

    def write(self, step: int, terms: Terms, skipped: int | None) -> dict[str, float]:
        """Writes the line of a step, and returns it. Waits for the device.

        Args:
            step: counted from 1.
            terms: of that step.
            skipped: steps so far that fp16 did not take; None in other precisions.

        Raises:
            RunFailed: the embeddings have collapsed, and the run is to end then.
        """
        values = torch.stack([getattr(terms, name).float() for name in LOGGED]).tolist()
        line: dict[str, float] = {"step": step, **dict(zip(LOGGED, values, strict=True))}
        line |= spread(terms.f, terms.affinity)
        if self._known is not None and terms.affinity is not None and terms.image_index is not None:
            line |= agreement(terms.affinity, terms.image_index, self._known)
        self._check_collapse(step, line)
        pool = self.batches.pool
        trust = 0.0 if pool is None else pool.trust(step - 1)
        if pool is not None and pool.is_measured:
            line["trust"] = trust
        line |= {
            "lr": learning_rate(self.config, step - 1 - (skipped or 0), trust),
            "bad_images": self.outputs.folder.log.num_bad,
            **self._passes(step),
            **self._pace(),
        }
        if skipped is not None:
            line["skipped_steps"] = skipped
        if self.device.type == "cuda":
            line["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.outputs.log(line, **affinity_histogram(terms.affinity))
        self.restart()
        return line

    def _check_collapse(self, step: int, line: dict[str, float]) -> None:
        before, self._collapsed = self._collapsed, is_collapsed(line)
        if self._collapsed and self.config.stop_on_collapse:
            raise collapse(step, line)
        if self._collapsed and not before:
            self.outputs.progress.note(f"warning: {collapse(step, line)}")

    def _passes(self, step: int) -> dict[str, float]:
        """How often each source has been seen: its epochs."""
        config, pool = self.config, self.batches.pool
        num_labeled = 0 if self.tables.labeled is None else len(self.tables.labeled)
        num_unlabeled = 0 if pool is None else pool.num_known
        labeled_seen = step * config.labeled_batch_size
        unlabeled_seen = max(step - config.warmup_steps, 0) * config.unlabeled_batch_size
        return {
            "labeled_passes": labeled_seen / num_labeled if num_labeled else 0.0,
            "unlabeled_passes": unlabeled_seen / num_unlabeled if num_unlabeled else 0.0,
        }

    def _pace(self) -> dict[str, float]:
        """Images of all processes per second, and the share of the time that was spent waiting for them."""
        elapsed = time.perf_counter() - self._started
        return {
            "images_per_second": self._images * distributed.world_size() / elapsed,
            "data_wait": (self.batches.waited - self._waited) / elapsed,
        }
