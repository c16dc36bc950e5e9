"""What a run would do: its plan and its needs, without taking a step."""

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch

from stml_semi.config import TrainConfig
from stml_semi.data.batches.live_images import describe_images, num_embedded, num_live
from stml_semi.data.batches.plan import FEWEST_PAIRS, held_out_classes
from stml_semi.data.claims import claim, skipped_files
from stml_semi.data.image_table import ImageTable
from stml_semi.data.run_tables import Tables, describe_excluded
from stml_semi.data.sources.streams import ImageStream
from stml_semi.data.views import view_size
from stml_semi.models.embedder import Embedder
from stml_semi.models.fit import framing_of
from stml_semi.runtime import distributed
from stml_semi.training.known_images import checkpoint_bytes
from stml_semi.training.setup import Prepared, setup

_DONE = {"crop": "cropped", "pad": "padded", "squash": "squashed"}


def dry_run(config: TrainConfig) -> dict[str, str]:
    """What `run` would do, by name of the part. All processes call this together; nothing is written.

    Raises:
        BadInput: as `setup`.
    """
    prepared = setup(config)
    plan = plan_of(prepared)
    if prepared.tables.excluded or prepared.tables.classes_compared:
        later = " (near-duplicates are found when the run starts)" if prepared.tables.classes_compared else ""
        plan["overlap"] = describe_excluded(prepared.tables) + later
    if skipped := skipped_files(prepared.tables):
        plan["skipped"] = "\n".join(skipped)
    prepared.accelerator.end_training()
    return plan


def plan_of(prepared: Prepared) -> dict[str, str]:
    """Lines of the plan of a run that is set up, by name."""
    plan = describe_run(prepared.config, prepared.tables, prepared.embedder, prepared.backbone.processor)
    if prepared.notes:
        plan["defaults"] = "; ".join(prepared.notes)
    return {**plan, "run folder": str(prepared.folder.path)}


def describe_run(config: TrainConfig, tables: Tables, embedder: Embedder, processor: Any) -> dict[str, str]:
    """Lines of the plan, by name.

    Args:
        config: resolved.
        tables: of the run.
        embedder: the bare model.
        processor: the image processor of its backbone.
    """
    lines, labeled, validation = {"steps": _steps(config)}, tables.labeled, tables.validation
    size, framing = view_size(processor), framing_of(processor)
    shapes = f" (other shapes are {_DONE[framing.fit]})" if framing else ""
    if labeled is not None:
        lines["labeled"] = (
            f"{len(labeled):,} images of {len(labeled.classes)} classes ({labeled.name}); {config.labeled_batch_size} "
            f"per step, {config.classes_per_batch} classes x {config.images_per_class}; "
            f"{config.max_steps * config.labeled_batch_size / len(labeled):.1f} epochs"
        )
    if tables.unlabeled is not None:
        lines |= _unlabeled(config, tables.unlabeled, labeled)
    rows = _rows(config)
    # Where labels calibrate relations, these follow from the pool: the teacher works at a refresh only.
    views = "none" if _num_measuring(config, labeled) else config.unlabeled_batch_size * config.num_views
    lines["forward passes"] = f"{rows} images per step by the student" + (
        f", {views} by the teacher" if config.unlabeled else ""
    )
    trained = sum(p.numel() for p in embedder.parameters() if p.requires_grad)
    total = sum(p.numel() for p in embedder.parameters())
    lines["model"] = (
        f"{config.backbone} at {size[0]} x {size[1]} px{shapes}, pooling {embedder.pooling.kind}, "
        f"{embedder.pooling.num_features} features -> {config.embedding_dim}; {trained / 1e6:.1f} of {total / 1e6:.1f} "
        f"million parameters train"
    )
    lines["memory"] = _memory(estimate_memory(config, embedder, size))
    lines["evaluation"] = _evaluation(config, tables.evaluation, claim(tables))
    if validation is not None:
        lines["validation"] = (
            f"{len(validation):,} images of {len(validation.classes)} classes ({validation.name}) every "
            f"{config.eval_every} steps and after training: the best of these steps is exported, or if clearly better "
            f"the teacher, the frozen backbone or weights in between"
        )
    lines["processes"] = f"{distributed.world_size()}, precision {config.mixed_precision}"
    return lines


def _steps(config: TrainConfig) -> str:
    warmup = f", the first {config.warmup_steps} on labels alone" if config.unlabeled and config.warmup_steps else ""
    least, full = config.rate(0), config.peak_learning_rate
    rate = (
        f"{full:g}" if least == full else f"{least:g} on labels alone, {full:g} with full trust in the unlabeled images"
    )
    return f"{config.max_steps}{warmup}; learning rate {rate}, {config.lr_schedule}"


def _rows(config: TrainConfig) -> int:
    labeled = config.labeled_batch_size if config.labeled else 0
    return labeled + (config.unlabeled_batch_size * config.num_views if config.unlabeled else 0)


def _num_measuring(config: TrainConfig, labeled: ImageTable | None) -> int:
    """Labeled images that measure how right relations are; 0 where nothing does."""
    if labeled is None or labeled.labels is None:
        return 0
    return int(np.isin(labeled.labels, held_out_classes(config, labeled)).sum())


def _unlabeled(config: TrainConfig, source: ImageTable | ImageStream, labeled: ImageTable | None) -> dict[str, str]:
    steps = config.max_steps - config.warmup_steps
    live = num_live(source, config.live_images)
    refreshes = math.ceil(steps / config.refresh_every)
    images = len(source) if isinstance(source, ImageTable) else live * max(refreshes, 1)
    domain = len(labeled) if labeled is not None and config.relevance < 1 else 0
    renewed = num_embedded(source, config.live_images)
    passes = refreshes * (renewed + domain) + _num_measuring(config, labeled) + (live - renewed) * (refreshes > 0)
    return {
        "unlabeled": f"{describe_images(source, config.live_images)}; {config.unlabeled_batch_size} per step, "
        f"{config.queries_per_batch} queries x {config.num_neighbors} neighbors, {config.num_views} views each; "
        f"{steps * config.unlabeled_batch_size / images:.1f} epochs"
        + ("" if isinstance(source, ImageTable) else f" of the {images:,} that {refreshes} refreshes read at most"),
        "pool": f"{live:,} images live, {_renewal(config, live, renewed, refreshes)}: "
        f"{passes:,} teacher forward passes per {steps * config.unlabeled_batch_size:,} unlabeled training images",
        "relations": _relations(config, labeled),
    }


def _renewal(config: TrainConfig, live: int, renewed: int, refreshes: int) -> str:
    """How often the pool's images are embedded, and what it takes to remember them."""
    every = f"(every {config.refresh_every} steps)"
    if renewed == live:
        return f"embedded and ranked {refreshes} time{'s' * (refreshes != 1)} {every}"
    bytes_each = checkpoint_bytes(config)
    return (
        f"embedded once, then {renewed:,} anew at each of {max(refreshes - 1, 0)} refreshes {every}, all ranked; they "
        f"take {live * bytes_each / 2**30:.2f} GiB of memory and of every checkpoint ({bytes_each:,} bytes an image)"
    )


def _relations(config: TrainConfig, labeled: ImageTable | None) -> str:
    """Where relations come from, and who says how right they are."""
    if config.relations == "batch":
        return f"neighborhoods compared within the batch; sigma {config.sigma}"
    compared = f"neighborhoods compared over the {config.pool_neighbors} nearest in the pool"
    classes = len(held_out_classes(config, labeled))
    if classes:
        joining = f", which join training at step {config.warmup_steps}" if config.warmup_steps else ""
        images = _num_measuring(config, labeled)
        return f"{compared}; calibrated on {images:,} images of {classes} labeled classes{joining}"
    if not config.calibrates:
        return f"{compared}; sigma {config.sigma}"
    return (
        f"{compared}; sigma {config.sigma}; not calibrated: that takes five labeled classes, and {FEWEST_PAIRS} pairs "
        f"of images in those of them that are held out"
    )


class MemoryNeed(NamedTuple):
    """Bytes that one process needs, in float32."""

    model: int
    """Five numbers for each trained parameter (weight, gradient, two moments, teacher), one for each frozen one."""
    image: float
    """What the backward pass keeps of one image."""
    images: int
    """How many are in one forward part."""

    @property
    def total(self) -> float:
        """Of model and images together."""
        return self.model + self.image * self.images


def estimate_memory(config: TrainConfig, embedder: Embedder, size: tuple[int, int]) -> MemoryNeed:
    """What a step of this process would need.

    Args:
        config: resolved.
        embedder: the bare model.
        size: height and width of its input in pixels.
    """
    trained = sum(p.numel() for p in embedder.parameters() if p.requires_grad)
    total = sum(p.numel() for p in embedder.parameters())
    share = math.ceil(_rows(config) / distributed.world_size())
    part = min(embedder.micro_batch_size or share, share)
    return MemoryNeed(4 * (5 * trained + (total - trained)), _bytes_kept(embedder, size), part)


def _memory(need: MemoryNeed) -> str:
    return (
        f"about {_amount(need.total)} per process: {_amount(need.model)} for the model, "
        f"{_amount(need.total - need.model)} for {need.images} images at once in float32 (--micro-batch-size bounds it)"
    )


def _amount(size: float) -> str:
    """Bytes, readable."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _bytes_kept(embedder: Embedder, size: tuple[int, int]) -> float:
    """What the backward pass needs to keep of one image, in float32; measured on two gray ones."""
    # A copy that shares the weights' memory: the forward counts in BatchNorm, and what it leaves behind may hold on to
    # parameters that are moved to a device later.
    shared = {id(p): torch.nn.Parameter(p.data, p.requires_grad) for p in embedder.parameters()}
    model = copy.deepcopy(embedder, shared).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Any) -> Any:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        alive = model._embed(torch.zeros(2, 3, *size))
    del alive
    return sum(kept.values()) / 2


def _evaluation(config: TrainConfig, table: ImageTable | None, claimed: str) -> str:
    if table is None:
        return "none: --eval names labeled images of other classes, --test-classes 0.5 keeps half of those of --labeled"
    every = f"every {config.eval_every} steps and " if config.eval_every and not config.validation_classes else ""
    recalls = ", ".join(map(str, table.recall_at))
    protocol = "each against all others"
    if table.queries is not None:
        protocol = f"{int(table.queries.sum()):,} queries against the others as their gallery"
    return (
        f"{len(table):,} images ({table.name}), {protocol}; recall@{recalls}, R-precision, MAP@R; before, "
        f"{every}after training{'; ' + claimed if claimed else ''}"
    )
