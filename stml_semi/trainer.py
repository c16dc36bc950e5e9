"""The training loop, readable from top to bottom."""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from stml_semi import distributed
from stml_semi.checkpoint import TrainState, list_checkpoints, load_checkpoint, save_checkpoint
from stml_semi.config import TrainConfig
from stml_semi.data.loading import BadPicture, Batch, Steps, ViewSettings, default_num_workers, step_batches
from stml_semi.data.plan import LabeledPlan, Rows
from stml_semi.data.pool import UnlabeledPool
from stml_semi.data.tables import ImageTable
from stml_semi.evaluation import Encode, embed_table, score
from stml_semi.losses.balance import Balancer, differentiate
from stml_semi.losses.proxy import LabeledLoss
from stml_semi.losses.relations import contextual_affinity
from stml_semi.losses.stml import stml_loss
from stml_semi.models.embedder import Embedder
from stml_semi.models.noise import row_keys
from stml_semi.models.teacher import Teacher
from stml_semi.neighbors import nearest_neighbors
from stml_semi.run_folder import RunFolder


class Tables(NamedTuple):
    """The pictures of a run; labeled or unlabeled ones may be missing, not both."""

    labeled: ImageTable | None
    unlabeled: ImageTable | None
    evaluation: ImageTable | None
    recall_at: tuple[int, ...]


class Terms(NamedTuple):
    """Scalars of a step; everything but the surrogate is detached."""

    surrogate: Tensor
    loss: Tensor
    labeled_loss: Tensor
    relaxed_contrastive: Tensor
    self_distillation: Tensor
    unlabeled_weight: Tensor
    grad_ratio: Tensor


class Progress(Protocol):
    """What the loop tells the person who waits."""

    def step(self, step: int, line: dict[str, float] | None) -> None: ...
    def note(self, message: str) -> None: ...


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
        progress: Progress,
    ) -> None:
        self.config, self.accelerator, self.folder, self.progress = config, accelerator, folder, progress
        self.tables, self.views, self.processor = tables, views, processor
        self.device = accelerator.device
        rank, world = distributed.rank(), distributed.world_size()
        self._bad: list[BadPicture] = []
        self.labeled_share = distributed.share(config.labeled_batch_size, rank=rank, world_size=world)
        self.unlabeled_share = distributed.share(config.unlabeled_batch_size, rank=rank, world_size=world)
        self.num_workers = default_num_workers(world) if config.num_workers is None else config.num_workers

        self.embedder = embedder.to(self.device)
        self.teacher = Teacher(self.embedder, momentum=config.momentum)
        self.labeled_loss: LabeledLoss | None = None
        self.labeled_plan: LabeledPlan | None = None
        if tables.labeled is not None:
            assert tables.labeled.labels is not None
            num_classes = len(tables.labeled.classes)
            self.labeled_loss = LabeledLoss(
                config.labeled_loss, num_classes=num_classes, embedding_dim=config.embedding_dim
            ).to(self.device)
            by_class = [np.flatnonzero(tables.labeled.labels == c) for c in range(num_classes)]
            self.labeled_plan = LabeledPlan(by_class, config.classes_per_batch, config.images_per_class)
        self.proxies = [] if self.labeled_loss is None else list(self.labeled_loss.parameters())
        self.pool: UnlabeledPool | None = None
        if tables.unlabeled is not None:
            self.pool = UnlabeledPool(
                len(tables.unlabeled),
                seed=config.seed,
                pool_size=config.pool_size,
                queries_per_batch=config.queries_per_batch,
                num_neighbors=config.num_neighbors,
                refresh_every=config.refresh_every,
                first_step=config.warmup_steps,
            )
        # Without a second term there is nothing to balance: the labeled baseline is the plain loss.
        self.balancer = Balancer(config.balance if self.pool else "fixed", config.unlabeled_weight).to(self.device)
        self.model, self.optimizer = accelerator.prepare(self.embedder, make_optimizer(config, embedder, self.proxies))

    def train(self) -> None:
        """Runs from the newest checkpoint (or the start) to max_steps."""
        config = self.config
        start = self._resume() if config.resume else 0
        if start == 0:
            self._evaluate_frozen()
        self.model.train()
        seconds, images = time.perf_counter(), 0
        batches = self._batches(start)
        for step in range(start, config.max_steps):
            batch = next(batches)
            self._set_learning_rate(step)
            torch.manual_seed(config.seed * 1_000_003 + step)  # For losses that draw: alike in all processes.
            terms = self._objective(batch, step)
            self.accelerator.backward(terms.surrogate)
            distributed.average_gradients(self.proxies)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.teacher.update(self.embedder)

            done = step + 1
            images += len(batch.labeled_pixels) + batch.unlabeled_pixels.shape[:2].numel()
            self._bad.extend(batch.bad)
            line = None
            if done % config.log_every == 0 or done == config.max_steps:
                elapsed = time.perf_counter() - seconds
                line = self._line(done, terms, images * distributed.world_size() / elapsed)
                self._log_bad()
                self.folder.log(line)
                seconds, images = time.perf_counter(), 0
            self.progress.step(done, line)
            last = done == config.max_steps
            if last or (config.eval_every and done % config.eval_every == 0):
                paused = time.perf_counter()
                self._evaluate(done)
                seconds += time.perf_counter() - paused
            if last or (config.save_every and done % config.save_every == 0):
                self._save(done)

    # ------------------------------------------------------------------ one step

    def _objective(self, batch: Batch, step: int) -> Terms:
        """The balanced objective on the global batch: every process computes the same numbers."""
        config = self.config
        views = batch.unlabeled_pixels.to(self.device, non_blocking=True)
        pixels = torch.cat([batch.labeled_pixels.to(self.device, non_blocking=True), views.flatten(0, 1)])
        # One forward: two through DistributedDataParallel would not be one step.
        student = self.model(pixels, self._noise_keys(batch, step))
        num_labeled = len(batch.labeled_pixels)
        zero = torch.zeros((), device=self.device)

        labeled = None
        if self.labeled_loss is not None:
            f = distributed.gather(student.f[:num_labeled].float(), config.labeled_batch_size)
            labels = distributed.gather(batch.labels.to(self.device), config.labeled_batch_size)
            labeled = differentiate(self.labeled_loss(f, labels), [f], self.proxies)

        unlabeled, stml = None, None
        if self.pool is not None and step >= config.warmup_steps:
            with self.accelerator.autocast():
                target = self.teacher(views.flatten(0, 1))
            f, g, t = (
                self._gather_views(e[-len(views) * config.num_views :]) for e in (student.f, student.g, target.g)
            )
            index = distributed.gather(batch.image_index.to(self.device), config.unlabeled_batch_size)
            topk = config.num_neighbors * config.num_views
            relations = contextual_affinity(t, index.repeat(config.num_views), sigma=config.sigma, topk=topk)
            stml = stml_loss(f, g, relations.affinity, delta=config.delta)
            unlabeled = differentiate(stml.total, [f, g])

        balanced = self.balancer(labeled, unlabeled)
        surrogate = balanced.surrogate
        if unlabeled is None:
            # The auxiliary head has to take part in the backward pass, or DistributedDataParallel would wait for it.
            surrogate = surrogate + 0 * student.g.sum()
        return Terms(
            surrogate,
            balanced.loss,
            zero if labeled is None else labeled.value,
            zero if stml is None else stml.relaxed_contrastive.detach(),
            zero if stml is None else stml.self_distillation.detach(),
            balanced.unlabeled_weight,
            balanced.grad_ratio,
        )

    def _noise_keys(self, batch: Batch, step: int) -> Tensor | None:
        """Keys of this process's rows by their place in the global batch: labeled ones first, then views by image."""
        if not self.embedder.is_random:
            return None
        config = self.config
        labeled = self.labeled_share.start + torch.arange(len(batch.labeled_pixels))
        count = len(batch.unlabeled_pixels) * config.num_views
        unlabeled = config.labeled_batch_size + self.unlabeled_share.start * config.num_views + torch.arange(count)
        return row_keys(config.seed, step, torch.cat([labeled, unlabeled])).to(self.device, non_blocking=True)

    def _gather_views(self, embeddings: Tensor) -> Tensor:
        """This process's (images x views, d) -> the global (views x images, d), view after view."""
        config = self.config
        by_image = embeddings.float().unflatten(0, (-1, config.num_views))
        return distributed.gather(by_image, config.unlabeled_batch_size).transpose(0, 1).flatten(0, 1)

    def _set_learning_rate(self, step: int) -> None:
        factor = learning_rate_factor(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    # ------------------------------------------------------------------ data

    def _batches(self, start: int) -> Iterator[Batch]:
        """Batches from `start` to the end; the neighbor table is renewed between intervals."""
        step, config = start, self.config
        labeled = None
        if self.tables.labeled is not None and self.labeled_plan is not None:
            labeled = (self.tables.labeled, self.labeled_plan)
        while step < config.max_steps:
            unlabeled, stop = None, config.max_steps
            if self.pool is not None and self.tables.unlabeled is not None:
                stop = min(stop, self.pool.next_refresh(step))
                if step >= config.warmup_steps:
                    unlabeled = (self.tables.unlabeled, self.pool.plan(step, self._neighbors))
            steps = Steps(
                self.views,
                labeled=labeled,
                unlabeled=unlabeled,
                labeled_share=self.labeled_share,
                unlabeled_share=self.unlabeled_share,
            )
            pin = self.device.type == "cuda"
            yield from step_batches(steps, range(step, stop), num_workers=self.num_workers, pin_memory=pin)
            step = stop

    def _neighbors(self, rows: Rows, k: int) -> Tensor:
        """Nearest neighbors within the pool by the teacher's g; each process searches for its share of the queries."""
        assert self.tables.unlabeled is not None
        self.progress.note(f"refreshing the neighbors of {len(rows)} unlabeled images")
        embedded = self._embed(self.tables.unlabeled, lambda x: self.teacher(x).g, rows=rows)
        self._bad.extend(embedded.bad)
        share = distributed.share(len(rows), rank=distributed.rank(), world_size=distributed.world_size())
        own = torch.arange(len(rows), device=self.device)[share]
        found = nearest_neighbors(embedded.embeddings, k, queries=embedded.embeddings[share], exclude=own)
        return distributed.gather(found.indices, len(rows))

    # ------------------------------------------------------------------ evaluation, logs, checkpoints

    def _embed(self, table: ImageTable, encode: Encode, rows: Rows | None = None):
        def autocast(pixels: Tensor) -> Tensor:
            with self.accelerator.autocast():
                return encode(pixels)

        training = self.embedder.training
        self.embedder.eval()
        embedded = embed_table(
            table,
            autocast,
            self.processor,
            rows=rows,
            batch_size=self.config.micro_batch_size or 256,
            num_workers=self.num_workers,
            device=self.device,
        )
        self.embedder.train(training)
        return embedded

    def _evaluate_frozen(self) -> None:
        self._score(0, "frozen", self.embedder.features)

    def _evaluate(self, step: int) -> None:
        self._score(step, "student", lambda x: self.embedder(x).f)
        self._score(step, "teacher", lambda x: self.teacher(x).f)

    def _score(self, step: int, model: str, encode: Encode) -> None:
        table = self.tables.evaluation
        if table is None:
            return
        what = "frozen backbone" if model == "frozen" else model
        self.progress.note(f"evaluating the {what} on {table.name}")
        embedded = self._embed(table, encode)
        self.folder.list_bad(embedded.bad)
        scores = score(table, embedded, self.tables.recall_at)
        self.folder.log({"step": step, "data": table.name, "model": model, **scores})

    def _line(self, step: int, terms: Terms, images_per_second: float) -> dict[str, float]:
        config = self.config
        values = torch.stack([value.float() for value in terms[1:]]).tolist()
        line = dict(zip(Terms._fields[1:], values, strict=True))
        if not math.isfinite(line["loss"]):
            names = ("labeled_loss", "relaxed_contrastive", "self_distillation")
            broken = [name for name in names if not math.isfinite(line[name])]
            raise FloatingPointError(
                f"step {step}: {', '.join(broken) or 'loss'} is not finite; lower --learning-rate, or train with "
                f"--mixed-precision no"
            )
        labeled_size = 0 if self.tables.labeled is None else len(self.tables.labeled)
        unlabeled_size = 0 if self.tables.unlabeled is None else len(self.tables.unlabeled)
        labeled_seen = step * config.labeled_batch_size if labeled_size else 0
        unlabeled_seen = max(step - config.warmup_steps, 0) * config.unlabeled_batch_size
        return {
            "step": step,
            **line,
            "lr": config.learning_rate * learning_rate_factor(config, step - 1),
            "images_per_second": images_per_second,
            "labeled_passes": labeled_seen / max(labeled_size, 1),
            "unlabeled_passes": unlabeled_seen / unlabeled_size if unlabeled_size else 0.0,
        }

    def _log_bad(self) -> None:
        found = [picture for part in distributed.gather_objects(self._bad) for picture in part]
        self._bad.clear()
        self.folder.list_bad(found)

    def _state(self) -> TrainState:
        modules = {"embedder": self.embedder, "teacher": self.teacher, "balancer": self.balancer}
        if self.labeled_loss is not None:
            modules["labeled_loss"] = self.labeled_loss
        return TrainState(modules, self.optimizer, self.accelerator.scaler)

    def _save(self, step: int) -> None:
        if self.accelerator.is_main_process:
            table = None if self.pool is None else self.pool.table
            save_checkpoint(self.folder.checkpoints, step, self._state(), table, keep=self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        """Restores the newest checkpoint, if there is one. Returns the step to go on from."""
        found = list_checkpoints(self.folder.checkpoints)
        if not found:
            self.progress.note("no checkpoint yet: starting from step 0")
            self.folder.rewind(-1)
            return 0
        restored = load_checkpoint(found[-1], self._state())
        if self.pool is not None:
            self.pool.table = restored.table
        self.folder.rewind(restored.step)
        self.progress.note(f"resuming from {found[-1]}")
        return restored.step


def make_optimizer(config: TrainConfig, embedder: Embedder, proxies: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    """AdamW in one fused pass; biases, norms and proxies are not decayed, proxies learn `proxy_lr_scale` faster."""
    trained = [p for p in embedder.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "scale": 1.0},
        {"params": proxies, "weight_decay": 0.0, "scale": config.proxy_lr_scale},
    ]
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group["lr"] = group["peak_lr"] = config.learning_rate * group.pop("scale")
    return torch.optim.AdamW(groups, fused=True)


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """Share of the peak learning rate that `step` (from 0) is taken with: a function of the step, nothing to save."""
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    past = (step - config.lr_warmup_steps) / max(config.max_steps - config.lr_warmup_steps, 1)
    if config.lr_schedule == "cosine":
        return (1 + math.cos(math.pi * past)) / 2
    return 1 - past if config.lr_schedule == "linear" else 1.0
