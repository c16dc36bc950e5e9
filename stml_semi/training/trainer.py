"""The training loop, readable from top to bottom."""

import time

import torch
from torch import Tensor, nn

from stml_semi.data.batches.loading import BadImageEntry, Batch
from stml_semi.data.batches.train_batches import TrainBatches, open_pool
from stml_semi.data.evaluated import EvaluatedImages
from stml_semi.data.run_tables import Tables, scored_tables
from stml_semi.data.sources.streams import ImageStream
from stml_semi.data.workers import resolve_num_workers
from stml_semi.losses.proxy import LossFunction
from stml_semi.models.evaluation import TableEncoder
from stml_semi.models.keyed_noise import row_keys
from stml_semi.models.teacher import Teacher
from stml_semi.run_folder.checkpoint import TrainState, list_checkpoints, load_checkpoint, save_checkpoint
from stml_semi.run_folder.log import Choice, is_of_the_end
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput, Interrupted, StopSignal
from stml_semi.training.bad_images import BadImages
from stml_semi.training.best_student import BestStudent
from stml_semi.training.candidates import Candidates, not_checked
from stml_semi.training.evaluator import Evaluator
from stml_semi.training.health import FiniteWatch, report_non_finite
from stml_semi.training.neighborhoods import NeighborhoodFinder
from stml_semi.training.objective import Labeled, Objective, Terms, Unlabeled
from stml_semi.training.optimizer import TakenSteps, make_optimizer, set_learning_rate
from stml_semi.training.outputs import Outputs
from stml_semi.training.setup import Prepared
from stml_semi.training.step_log import StepLog


class Trainer:
    """Trains an embedder on labeled and unlabeled images. All sizes in the configuration are global."""

    def __init__(
        self,
        prepared: Prepared,
        tables: Tables,
        outputs: Outputs,
        *,
        novelty: float = 1.0,
        labeled_loss: LossFunction | None = None,
    ) -> None:
        """
        Args:
            prepared: configuration, accelerator and model of the run.
            tables: its images, the training images perhaps in a cache.
            outputs: where the run writes and speaks.
            novelty: how much the unlabeled images show beside the labeled ones, 0..1.
            labeled_loss: of the program that trains, in place of the one that the configuration names.
        """
        self.outputs = outputs
        self.config, self.accelerator = prepared.config, prepared.accelerator
        self.tables, self.folder, self.progress = tables, outputs.folder, outputs.progress
        config, self.device = self.config, self.accelerator.device
        self.pool = None
        if tables.unlabeled is not None:
            # Of a table they were taken out; what a stream gives is compared as it is read.
            scored = EvaluatedImages(scored_tables(tables)) if isinstance(tables.unlabeled, ImageStream) else None
            self.pool = open_pool(config, tables.unlabeled, self.folder.pool, scored, novelty=novelty)
        self.embedder = prepared.embedder.to(self.device)
        if self.device.type == "cuda" and self.embedder.channels_last:
            # On a CPU the layout of the input is enough, and fused AdamW is slower on such weights.
            self.embedder.backbone.to(memory_format=torch.channels_last)
        self.teacher = Teacher(self.embedder, momentum=config.momentum)
        self.best = None if tables.validation is None else BestStudent(self.embedder)
        encoder = TableEncoder(
            self.accelerator,
            prepared.backbone.processor,
            batch_size=config.micro_batch_size or 256,
            num_workers=resolve_num_workers(config.num_workers),
        )
        self.bad_images = BadImages(config, tables, self.pool, self.folder.log)
        self._bad: list[BadImageEntry] = []
        self.evaluator = Evaluator(config, tables, encoder, self.bad_images, outputs)
        find = NeighborhoodFinder(config, tables.labeled, encoder, self.teacher, self.bad_images, self.progress)
        self.batches = TrainBatches(config, prepared.views, tables.labeled, self.pool, find, self.device)
        num_classes = 0 if tables.labeled is None else len(tables.labeled.classes)
        self.objective = Objective(config, num_classes=num_classes, labeled_loss=labeled_loss).to(self.device)
        self.proxies = list(self.objective.parameters())
        self.finite = FiniteWatch(self.device)
        self.step_log = StepLog(config, tables, self.batches, outputs, self.device)
        if config.compile:
            self.embedder.compile_steps()
            self.teacher.model.compile_steps()
        optimizer = make_optimizer(config, self.embedder, self.proxies)
        self.model, self.optimizer = self.accelerator.prepare(self.embedder, optimizer)
        self.taken = TakenSteps(self.optimizer, self.embedder.head_f.weight) if self.accelerator.scaler else None
        self._skipped = 0
        """Steps that fp16 did not take, when last asked: the schedule does not count them."""

    def train(self, start: int = 0) -> Choice:
        """Runs from step `start` (from `restore`) to max_steps. The embedder is then the one to export.

        Returns what the embedder is: the last student, or what validation chose.
        """
        if start:
            # Validation chooses, and what it chose is tested, anew in the end.
            self.folder.log.rewind(start, but=None if self.best is None else is_of_the_end)
        else:
            self.folder.log.rewind(-1)
            self.evaluator.evaluate_frozen(self.embedder)
        try:
            with StopSignal() as stop:
                self._loop(start, stop)
        finally:
            if self.pool is not None:
                self.pool.live.close()
        if self.best is None:
            self.progress.note(not_checked(self.config))
            return Choice("student", self.config.max_steps)
        candidates = Candidates(self.best, self.teacher, self.embedder, self.config.max_steps)
        choice = candidates.choose(self.evaluator).choice
        if choice.model != "frozen":  # That was tested before training.
            self.evaluator.test(choice, self.embedder)
        return choice

    def _loop(self, start: int, stop: StopSignal) -> None:
        config = self.config
        self.model.train()
        self.step_log.restart()
        batches = self.batches.start(start)
        for step in range(start, config.max_steps):
            batch = next(batches).to(self.device)
            terms = self._step(batch, step)
            self._bad.extend(batch.bad)
            self.step_log.count(batch)
            self._after(step + 1, terms, stop)

    def _after(self, done: int, terms: Terms, stop: StopSignal) -> None:
        """What follows a step where it is due: a line in the log, an evaluation, a checkpoint, the end."""
        config, last = self.config, done == self.config.max_steps
        line, signal = None, stop.number if distributed.world_size() == 1 else 0
        if last or done % config.log_every == 0:
            self._stop_if_not_finite(done)
            self._list_images()
            self._count_skipped(done)
            line = self.step_log.write(done, terms, None if self.taken is None else self._skipped)
            # All processes have to leave after the same step: they agree where they talk anyway.
            signal = max(distributed.gather_objects(stop.number))
        self.progress.step(done, line)
        if last or (config.eval_every and done % config.eval_every == 0):
            paused = time.perf_counter()
            map_at_r = self.evaluator.evaluate(done, self.embedder, self.teacher)
            if self.best is not None and map_at_r is not None:
                self.best.keep_if_better(self.embedder, done, map_at_r)
            self.step_log.pause(time.perf_counter() - paused)
        if last or signal or (config.save_every and done % config.save_every == 0):
            self._count_skipped(done)
            self._save(done)
        if signal and not last:
            raise Interrupted(signal, done)

    # ------------------------------------------------------------------ one step

    def _step(self, batch: Batch, step: int) -> Terms:
        trust = 0.0 if self.pool is None else self.pool.trust(step)
        set_learning_rate(self.optimizer, self.config, step - self._skipped, trust)
        if self.taken is not None:
            self.taken.begin()
        torch.manual_seed(self.config.seed * 1_000_003 + step)  # For losses that draw: alike in all processes.
        terms = self._forward(batch, step)
        self.finite.check(terms, step)
        self.accelerator.backward(terms.surrogate)
        self._finish_gradients(batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.teacher.update(self.embedder, None if self.taken is None else self.taken.moved())
        return terms

    def _forward(self, batch: Batch, step: int) -> Terms:
        """The objective on the global batch: every process computes the same numbers."""
        views = batch.unlabeled_pixels
        pixels = torch.cat([batch.labeled_pixels, views.flatten(0, 1)])
        # One forward: two through DistributedDataParallel would not be one step.
        student = self.model(pixels, self._noise_keys(batch, step))
        num_labeled = len(batch.labeled_pixels)

        labeled = unlabeled = None
        if self.tables.labeled is not None:
            size = self.config.labeled_batch_size
            f = distributed.gather(student.f[:num_labeled].float(), size)
            labeled = Labeled(f, distributed.gather(batch.labels, size))
        if self.pool is not None and step >= self.config.warmup_steps:
            index = distributed.gather(batch.image_index, self.config.unlabeled_batch_size)
            relations = self.pool.relations(index, num_views=self.config.num_views)
            target = None
            if relations.affinity is None:
                with self.accelerator.autocast():
                    target = self._gather_views(self.teacher(views.flatten(0, 1)).g)
            unlabeled = Unlabeled(
                f=self._gather_views(student.f[num_labeled:]),
                g=self._gather_views(student.g[num_labeled:]),
                target=target,
                image_index=index.repeat(self.config.num_views),
                sigma=relations.sigma,
                overlap=relations.overlap,
                affinity=relations.affinity,
                trust=relations.trust,
            )
        terms = self.objective(labeled, unlabeled)
        if unlabeled is None:
            # The auxiliary head has to take part in the backward pass, or DistributedDataParallel would wait for it.
            # Its values do not count, not even where they are not finite.
            terms = terms._replace(surrogate=terms.surrogate + (0 * student.g).nan_to_num().sum())
        return terms

    def _finish_gradients(self, batch: Batch) -> None:
        distributed.average_gradients(self.proxies)
        if not batch.unlabeled_pixels.numel():
            # The auxiliary head was not used: zero gradients would decay it, and age Adam's moments of it.
            for parameter in self.embedder.head_g.parameters():
                parameter.grad = None

    def _count_skipped(self, done: int) -> None:
        if self.taken is None:
            return
        before, self._skipped = self._skipped, self.taken.skipped(done)
        if self._skipped > before:
            self.progress.note(
                f"fp16 has skipped {self._skipped} of {done} steps, whose gradients overflowed: a few are in order; "
                "where they go on, --mixed-precision bf16 has no such limit"
            )

    def _noise_keys(self, batch: Batch, step: int) -> Tensor | None:
        """What dropout and the like are a function of: seed, step and place in the global batch."""
        if not self.embedder.is_random:
            return None
        return row_keys(self.config.seed, step, self.batches.positions(batch)).to(self.device, non_blocking=True)

    def _gather_views(self, embeddings: Tensor) -> Tensor:
        """This process's (images x views, d) -> the global (views x images, d), view after view."""
        config = self.config
        by_image = embeddings.float().unflatten(0, (-1, config.num_views))
        return distributed.gather(by_image, config.unlabeled_batch_size).transpose(0, 1).flatten(0, 1)

    # ------------------------------------------------------------------ bad images, checkpoints

    def _list_images(self) -> None:
        found = [bad for part in distributed.gather_objects(self._bad) for bad in part]
        self._bad.clear()
        self.bad_images.list(found)
        if self.pool is not None and self.pool.excluded:
            count = self.folder.add_overlap(self.pool.excluded)
            self.pool.excluded.clear()
            self.progress.note(f"warning: {count:,} images of the stream are evaluated on and left out of the pool")

    def _stop_if_not_finite(self, step: int, *, check_weights: bool = False) -> None:
        """Ends a run that diverged, after saving what there is to inspect: the state, and the bad batch's images."""
        # One process may see what the others do not, and all have to stop together.
        broken = {name: at for found in distributed.gather_objects(self.finite.broken()) for name, at in found.items()}
        if check_weights and not all(bool(parameter.isfinite().all()) for parameter in self.embedder.parameters()):
            broken = broken or {"surrogate": step - 1}
        if not broken:
            return
        images = self.batches.describe(min(broken.values()))
        folder = self.folder.path / "non_finite"
        if self.accelerator.is_main_process:
            save_checkpoint(folder, step, self._state(), None if self.pool is None else self.pool.table, keep=1)
        error = report_non_finite(broken, images, folder / "batch.json" if self.accelerator.is_main_process else None)
        self.accelerator.wait_for_everyone()
        raise error

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
        self._stop_if_not_finite(step, check_weights=True)
        self._list_images()
        self.folder.log.flush()
        if self.accelerator.is_main_process:
            table = None if self.pool is None else self.pool.table
            self.outputs.saved(
                save_checkpoint(self.folder.checkpoints, step, self._state(), table, keep=self.config.keep_checkpoints)
            )
        self.accelerator.wait_for_everyone()

    def restore(self) -> int:
        """Restores the newest checkpoint, if there is one; all processes call this together.

        Returns the step to continue from.

        Raises:
            BadInput: it is damaged, of another model, or beyond max_steps.
        """
        found = distributed.from_main(lambda: list_checkpoints(self.folder.checkpoints))
        if not found:
            self.progress.note("no checkpoint yet: starting from step 0")
            return 0
        restored = load_checkpoint(found[-1], self._state())
        if restored.step > self.config.max_steps:
            raise BadInput(f"--max-steps {self.config.max_steps} is less than {found[-1].name} has taken: raise it")
        if self.pool is not None:
            self.pool.table = restored.table
        if self.taken is not None:
            self._skipped = self.taken.skipped(restored.step)
        self.progress.note(f"resuming from {found[-1]}")
        return restored.step
