"""What a run needs of a machine, and what the machine has: disk, memory, time."""

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from stml_semi.config import TrainConfig
from stml_semi.data.batches.loading import ViewSettings, one_batch_of
from stml_semi.data.image_table import ImageTable
from stml_semi.data.views import view_size
from stml_semi.data.workers import resolve_num_workers
from stml_semi.models.embedder import Embedder
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import RunFailed
from stml_semi.runtime.machine import cores, memory_bytes
from stml_semi.training.known_images import checkpoint_bytes
from stml_semi.training.preflight.dry_run import estimate_memory

Level = Literal["ok", "advice", "broken"]
_TIMED = 24
"""Images that are decoded to see how fast that is."""
_STEPS_TIMED = 3


class Finding(NamedTuple):
    """One line of what `doctor` says."""

    level: Level
    what: str
    text: str


def existing(folder: str) -> Path:
    """The folder, or the nearest one above it that is there."""
    place = Path(folder).expanduser().absolute()
    while not place.exists():
        place = place.parent
    return place


def room(free: int, need: int, what: str) -> Finding:
    """Whether so many free bytes are enough."""
    text = f"{free / 2**30:.1f} GiB are free where runs are written, {what} take {need / 2**30:.1f}"
    if free < need:
        fix = "make room, choose another --output-dir, or lower --keep-checkpoints"
        return Finding("broken", "disk", f"{text}: {fix}")
    return Finding("ok", "disk", text)


def disk(config: TrainConfig, embedder: Embedder, num_known: int) -> Finding:
    """Checkpoints hold student, teacher and two moments, the best student if classes are kept for validation, and what
    is known of unlabeled images; while one is written, the oldest is still there."""
    place = existing(str(config.output_dir))
    trained = sum(p.numel() for p in embedder.parameters() if p.requires_grad)
    total = sum(p.numel() for p in embedder.parameters())
    kept = 2 * (total + trained) + (total if config.validation_classes else 0)
    need = (config.keep_checkpoints + 1) * (4 * kept + num_known * checkpoint_bytes(config)) + 4 * total
    return room(shutil.disk_usage(place).free, need, "checkpoints and model of this run")


def memory(config: TrainConfig, embedder: Embedder, size: tuple[int, int], text: str) -> Iterator[Finding]:
    """The estimate, and the largest power of two that fits where it does not."""
    available = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else memory_bytes()
    need = estimate_memory(config, embedder, size)
    if available is None or need.total < 0.8 * available:
        yield Finding("ok", "memory", text)
        return
    left = 0.8 * available - need.model
    where = "the GPU has free" if torch.cuda.is_available() else "the machine has"
    if left < need.image:
        fix = "take a smaller backbone, --image-size, --lora-rank 8 or --train-layers last:2"
        yield Finding("broken", "memory", f"{text}; {where} {available / 2**30:.1f} GiB: {fix}")
        return
    fitting = 2 ** int(math.log2(left / need.image))
    advice = f"add --micro-batch-size {fitting} (the results stay the same)"
    yield Finding("advice", "memory", f"{text}; {where} {available / 2**30:.1f} GiB: {advice}")


def speed(config: TrainConfig, embedder: Embedder, processor: Any, table: ImageTable) -> Iterator[Finding]:
    """Views per second that one core decodes, against images per second that the model trains on."""
    size = view_size(processor)
    rows = np.random.default_rng(1).permutation(len(table))[:_TIMED]
    steps = one_batch_of(rows, table, ViewSettings(config.augment, size, config.num_views, seed=0))
    started = time.perf_counter()
    try:
        views = len(steps[0].image_index) * config.num_views
    except RunFailed:  # No image can be read, which is said elsewhere.
        return
    decoded = views / (time.perf_counter() - started)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = _training_speed(embedder.to(device), size, device)
    workers = resolve_num_workers(config.num_workers)
    loader = decoded * max(workers, 1)
    text = (
        f"one process makes {decoded:.0f} views/s, {max(workers, 1)} make {loader:.0f}; the model trains on about "
        f"{trained:.0f} images/s ({device.type}, float32)"
    )
    yield _duration(config, min(loader, trained))
    if loader >= trained:
        yield Finding("ok", "speed", f"{text}: the model is the bottleneck, as it should be")
        return
    spare = cores() - 1 - workers
    fix = f"raise --num-workers to {workers + spare}" if spare > 0 else "store images near the size that is trained on"
    yield Finding("advice", "speed", f"{text}: decoding is the bottleneck; {fix}")


def _duration(config: TrainConfig, images_per_second: float) -> Finding:
    """Hours of the steps; refreshes and evaluations are forward passes, a third of the price each."""
    labeled = config.labeled_batch_size if config.labeled else 0
    views = config.unlabeled_batch_size * config.num_views if config.unlabeled else 0
    images = config.max_steps * labeled + (config.max_steps - config.warmup_steps) * views
    minutes = images / images_per_second / distributed.world_size() / 60
    length = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{math.ceil(minutes)} minutes"
    return Finding(
        "ok",
        "time",
        f"about {length} on this machine for {config.max_steps} steps ({images:,} images), without refreshes and "
        "evaluations",
    )


def _training_speed(embedder: Embedder, size: tuple[int, int], device: torch.device) -> float:
    """Images per second, forward and backward, on gray ones."""
    embedder.train()
    pixels = torch.full((16, 3, *size), 128, dtype=torch.uint8, device=device)
    started = 0.0
    for step in range(_STEPS_TIMED + 1):
        if step == 1:  # The first one is slow everywhere.
            started = time.perf_counter()
        made = embedder(pixels)
        (made.f.sum() + made.g.sum()).backward()
        made.f.detach().sum().item()  # Waits for the device.
        embedder.zero_grad(set_to_none=True)
    return _STEPS_TIMED * len(pixels) / (time.perf_counter() - started)
