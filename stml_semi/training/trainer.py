"""The training loop, readable from top to bottom."""

import time

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stml_semi.config import TrainConfig
from stml_semi.data.batches.loading import BadPicture, Batch, ViewSettings
from stml_semi.data.batches.train_batches import BatchStream
from stml_semi.data.image_table import ImageTable
from stml_semi.models.embedder import Embedder
from stml_semi.models.evaluation import TableEncoder
from stml_semi.models.keyed_noise import row_keys
from stml_semi.models.teacher import Teacher
from stml_semi.run_folder.checkpoint import TrainState, list_checkpoints, load_checkpoint, save_checkpoint
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.failures import FiniteWatch, report_non_finite
from stml_semi.runtime.interruption import Interrupted, StopSignal
from stml_semi.training.best_student import Best, is_final_test
from stml_semi.training.health import affinity_histogram, agreement, collapse, is_collapsed, spread
from stml_semi.training.objective import LOGGED, Labeled, Objective, Terms, Unlabeled
from stml_semi.training.optimizer import learning_rate_factor, make_optimizer, set_learning_rate
from stml_semi.training.survey import Progress, Survey, Tables
from stml_semi.training.trackers import Trackers


class Trainer:
    """Trains an embedder on labeled and unlabeled pictures. All sizes in the configuration are global."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        embedder: Embedder,
        processor: object,
        tables: Tables,
        views: ViewSettings,
        folder: RunFolder,
        trackers: Trackers,
        progress: Progress,
    ) -> None:
        self.config, self.accelerator, self.folder, self.progress = config, accelerator, folder, progress
        self.tables, self.trackers = tables, trackers
        self.device = accelerator.device
        self._bad: list[BadPicture] = []
        self.stream = BatchStream(
            config,
            views,
            labeled=tables.labeled,
            unlabeled=tables.unlabeled,
            folder=folder.pool,
            neighbors=lambda table, rows, refresh: self.survey.neighbors(table, rows, refresh),
            device=self.device,
        )
        self.pool = self.stream.pool
        self.embedder = embedder.to(self.device)
        if self.device.type == "cuda" and embedder.channels_last:
            # On a CPU the layout of the input is enough, and fused AdamW is slower on such weights.
            embedder.backbone.to(memory_format=torch.channels_last)
        self.teacher = Teacher(self.embedder, momentum=config.momentum)
        self.best = None if tables.validation is None else Best(self.embedder)
        workers = self.stream.num_workers
        embed = TableEncoder(accelerator, processor, batch_size=config.micro_batch_size or 256, num_workers=workers)
        self.survey = Survey(config, tables, self.pool, embed, self.embedder, self.teacher, folder, trackers, progress)
        num_classes = 0 if tables.labeled is None else len(tables.labeled.classes)
        self.objective = Objective(config, num_classes=num_classes).to(self.device)
        self.proxies = list(self.objective.parameters())
        self.finite = FiniteWatch(self.device)
        self.collapsed = False
        self.known = None
        """Classes of the unlabeled images, if the user told them: for the log alone."""
        if isinstance(tables.unlabeled, ImageTable) and tables.unlabeled.labels is not None:
            self.known = torch.from_numpy(tables.unlabeled.labels)
        if config.compile:
            self.embedder.compile_steps()
            self.teacher.model.compile_steps()
        self.model, self.optimizer = accelerator.prepare(self.embedder, make_optimizer(config, embedder, self.proxies))

    def train(self, start: int = 0) -> None:
        """Runs from step `start` (from `restore`) to max_steps. The embedder is then the one to export."""
        if start:
            # What validation chose is tested anew in the end.
            self.folder.rewind(start, but=None if self.best is None else is_final_test)
        else:
            self.folder.rewind(-1)
            self.survey.evaluate_frozen()
        try:
            with StopSignal() as stop:
                self._loop(start, stop)
        finally:
            if self.pool is not None:
                self.pool.live.close()
        if self.best is not None:
            step = int(self.best.step)
            self.progress.note(f"the student of step {step} did best on the validation classes: it is exported")
            self.embedder.load_state_dict(self.best.model.state_dict())
            self.survey.test(step)

    def _loop(self, start: int, stop: StopSignal) -> None:
        config = self.config
        self.model.train()
        seconds, images, waited = time.perf_counter(), 0, 0.0
        batches = self.stream.batches(start)
        for step in range(start, config.max_steps):
            batch = next(batches)
            set_learning_rate(self.optimizer, config, step)
            torch.manual_seed(config.seed * 1_000_003 + step)  # For losses that draw: alike in all processes.
            terms = self._forward(batch, step)
            self.finite.look(terms, step)
            self.accelerator.backward(terms.surrogate)
            distributed.average_gradients(self.proxies)
            if not batch.unlabeled_pixels.numel():
                # The auxiliary head was not asked: zero gradients would decay it, and age Adam's moments of it.
                for parameter in self.embedder.head_g.parameters():
                    parameter.grad = None
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.teacher.update(self.embedder)

            done = step + 1
            images += len(batch.labeled_pixels) + batch.unlabeled_pixels.shape[:2].numel()
            self._bad.extend(batch.bad)
            line, asked = None, stop.number if distributed.world_size() == 1 else 0
            if done % config.log_every == 0 or done == config.max_steps:
                elapsed = time.perf_counter() - seconds
                line = self._line(done, terms)
                line["images_per_second"] = images * distributed.world_size() / elapsed
                line["data_wait"] = (self.stream.waited - waited) / elapsed
                if self.device.type == "cuda":
                    line["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
                self._log_bad()
                self.folder.log({**line, **affinity_histogram(terms.affinity)})
                self.trackers.log(line)
                seconds, images, waited = time.perf_counter(), 0, self.stream.waited
                # All processes have to leave after the same step: they agree where they talk anyway.
                asked = max(distributed.gather_objects(stop.number))
            self.progress.step(done, line)
            last = done == config.max_steps
            if last or (config.eval_every and done % config.eval_every == 0):
                paused = time.perf_counter()
                scored = self.survey.evaluate(done)
                if self.best is not None and scored is not None:
                    self.best.look(self.embedder, done, scored)
                seconds += time.perf_counter() - paused
            if last or asked or (config.save_every and done % config.save_every == 0):
                self._save(done)
            if asked and not last:
                raise Interrupted(asked, done)

    # ------------------------------------------------------------------ one step

    def _forward(self, batch: Batch, step: int) -> Terms:
        """The objective on the global batch: every process computes the same numbers."""
        views = batch.unlabeled_pixels.to(self.device, non_blocking=True)
        pixels = torch.cat([batch.labeled_pixels.to(self.device, non_blocking=True), views.flatten(0, 1)])
        # One forward: two through DistributedDataParallel would not be one step.
        student = self.model(pixels, self._noise_keys(batch, step))
        num_labeled = len(batch.labeled_pixels)

        labeled = unlabeled = None
        if self.stream.labeled is not None:
            size = self.config.labeled_batch_size
            f = distributed.gather(student.f[:num_labeled].float(), size)
            labeled = Labeled(f, distributed.gather(batch.labels.to(self.device), size))
        if self.pool is not None and step >= self.config.warmup_steps:
            with self.accelerator.autocast():
                target = self.teacher(views.flatten(0, 1))
            index = distributed.gather(batch.image_index.to(self.device), self.config.unlabeled_batch_size)
            unlabeled = Unlabeled(
                self._gather_views(student.f[num_labeled:]),
                self._gather_views(student.g[num_labeled:]),
                self._gather_views(target.g),
                index.repeat(self.config.num_views),
                *self.pool.relations(step, index, num_views=self.config.num_views),
            )
        terms = self.objective(labeled, unlabeled)
        if unlabeled is None:
            # The auxiliary head has to take part in the backward pass, or DistributedDataParallel would wait for it.
            terms = terms._replace(surrogate=terms.surrogate + 0 * student.g.sum())
        return terms

    def _noise_keys(self, batch: Batch, step: int) -> Tensor | None:
        """What dropout and the like are a function of: seed, step and place in the global batch."""
        if not self.embedder.is_random:
            return None
        return row_keys(self.config.seed, step, self.stream.positions(batch)).to(self.device, non_blocking=True)

    def _gather_views(self, embeddings: Tensor) -> Tensor:
        """This process's (images x views, d) -> the global (views x images, d), view after view."""
        config = self.config
        by_image = embeddings.float().unflatten(0, (-1, config.num_views))
        return distributed.gather(by_image, config.unlabeled_batch_size).transpose(0, 1).flatten(0, 1)

    # ------------------------------------------------------------------ logs, checkpoints

    def _line(self, step: int, terms: Terms) -> dict[str, float]:
        config = self.config
        self._stop_if_not_finite(step)
        values = torch.stack([getattr(terms, name).float() for name in LOGGED]).tolist()
        line = dict(zip(LOGGED, values, strict=True))
        line |= spread(terms.f, terms.affinity)
        if self.known is not None and terms.affinity is not None and terms.image_index is not None:
            line |= agreement(terms.affinity, terms.image_index, self.known)
        self._look_for_collapse(step, line)
        labeled_size = 0 if self.tables.labeled is None else len(self.tables.labeled)
        unlabeled_size = 0 if self.pool is None else self.pool.num_known
        labeled_seen = step * config.labeled_batch_size if labeled_size else 0
        unlabeled_seen = max(step - config.warmup_steps, 0) * config.unlabeled_batch_size
        return {
            "step": step,
            **line,
            "lr": config.learning_rate * learning_rate_factor(config, step - 1),
            "bad_images": self.folder.num_bad,
            "labeled_passes": labeled_seen / max(labeled_size, 1),
            "unlabeled_passes": unlabeled_seen / unlabeled_size if unlabeled_size else 0.0,
        }

    def _look_for_collapse(self, step: int, line: dict[str, float]) -> None:
        before, self.collapsed = self.collapsed, is_collapsed(line)
        if self.collapsed and self.config.stop_on_collapse:
            raise collapse(step, line)
        if self.collapsed and not before:
            self.progress.note(f"warning: {collapse(step, line)}")

    def _stop_if_not_finite(self, step: int, *, look_at_weights: bool = False) -> None:
        """Ends a run that diverged, after saving what there is to look at: the state, and the bad batch's images."""
        broken = self.finite.broken()
        if look_at_weights and not all(bool(parameter.isfinite().all()) for parameter in self.embedder.parameters()):
            broken = broken or {"surrogate": step - 1}
        if not broken:
            return
        images = self.stream.describe(min(broken.values()))
        folder = self.folder.path / "non_finite"
        if self.accelerator.is_main_process:
            save_checkpoint(folder, step, self._state(), None if self.pool is None else self.pool.table, keep=1)
        error = report_non_finite(broken, images, folder / "batch.json" if self.accelerator.is_main_process else None)
        self.accelerator.wait_for_everyone()
        raise error

    def _log_bad(self) -> None:
        found = [picture for part in distributed.gather_objects(self._bad) for picture in part]
        self._bad.clear()
        self.survey.list_bad(found)

    def _state(self) -> TrainState:
        modules: dict[str, nn.Module] = {
            "embedder": self.embedder,
            "teacher": self.teacher,
            "objective": self.objective,
        }
        if self.best is not None:
            modules["best"] = self.best
        return TrainState(modules, self.optimizer, self.accelerator.scaler)

    def _save(self, step: int) -> None:
        # A good checkpoint must never be replaced by a broken one.
        self._stop_if_not_finite(step, look_at_weights=True)
        self._log_bad()
        if self.accelerator.is_main_process:
            table = None if self.pool is None else self.pool.table
            save_checkpoint(self.folder.checkpoints, step, self._state(), table, keep=self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def restore(self) -> int:
        """Restores the newest checkpoint, if there is one. Returns the step to go on from.

        Raises:
            BadInput: it is damaged, of another model, or beyond max_steps.
        """
        found = list_checkpoints(self.folder.checkpoints)
        if not found:
            self.progress.note("no checkpoint yet: starting from step 0")
            return 0
        restored = load_checkpoint(found[-1], self._state())
        if restored.step > self.config.max_steps:
            raise BadInput(f"--max-steps {self.config.max_steps} is less than {found[-1].name} has taken: raise it")
        if self.pool is not None:
            self.pool.table = restored.table
        self.progress.note(f"resuming from {found[-1]}")
        return restored.step
