"""`doctor`: would a run work here, and how fast? Every problem is named, with what to do about it."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from stml_semi.config import TrainConfig, command_of, flag
from stml_semi.data.batches.live_images import describe_images, num_live
from stml_semi.data.batches.plan import held_out_classes
from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, read_image
from stml_semi.data.run_tables import check_labeled_size, check_unlabeled_size, open_tables
from stml_semi.data.sources.streams import ImageStream
from stml_semi.data.views import view_size
from stml_semi.models.build import build_embedder, open_configured_backbone
from stml_semi.run_folder.recipe import build_config
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.hub import reach_hub
from stml_semi.runtime.machine import cores, cpu_has_bf16, hardware, versions
from stml_semi.sharing.push import check_login
from stml_semi.training.preflight.costs import Finding, disk, existing, memory, room, speed
from stml_semi.training.preflight.dry_run import describe_run
from stml_semi.training.resolve import fit_to_data, resolve, with_learning_rate

_SAMPLE = 200
"""Images of a source that are opened."""
_FREE_BYTES = 2 * 2**30
_BACKBONE = ("backbone", "backbone_weights", "image_size", "fit")


def examine(values: dict[str, Any]) -> Iterator[Finding]:
    """Looks at the machine, then at what a run would need.

    Args:
        values: fields of TrainConfig by name; those that are missing are not examined.
    """
    yield from _machine()
    yield from _output(str(values.get("output_dir") or "runs"))
    if not values.get("labeled") and not values.get("unlabeled"):
        if values.get("backbone") or values.get("backbone_weights"):
            yield from _caught("backbone", lambda: _backbone_alone(values))
        return
    tables: dict[str, ImageTable | ImageStream] = {}
    for name in ("labeled", "unlabeled", "eval"):
        if values.get(name):
            yield from _caught(flag(name), lambda name=name: _source(values, name, tables))
    if all(name in tables for name in ("labeled", "unlabeled", "eval") if values.get(name)):
        yield from _caught("run", lambda: _run(values))


def _caught(what: str, check: Callable[[], Iterator[Finding] | None]) -> Iterator[Finding]:
    """The findings of a part; bad input is a finding too, and the other parts are still checked."""
    try:
        yield from check() or ()
    except BadInput as error:
        yield Finding("broken", what, str(error))
    except torch.OutOfMemoryError:
        yield Finding("broken", what, "a single small step runs out of memory: take a smaller backbone or --image-size")


# ------------------------------------------------------------------ the machine


def _machine() -> Iterator[Finding]:
    found = versions()
    yield Finding("ok", "versions", ", ".join(f"{name} {version}" for name, version in found.items()))
    yield Finding("ok", "hardware", ", ".join(f"{name}: {text}" for name, text in hardware().items()))
    if not torch.cuda.is_available():
        bf16 = "; the processor computes bf16: add --mixed-precision bf16" if cpu_has_bf16() else ""
        yield Finding("advice", "precision", f"no GPU: small backbones train here, large ones take days{bf16}")
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("ok", "precision", "the GPU computes bf16: add --mixed-precision bf16")
    else:
        yield Finding("advice", "precision", "the GPU has no bf16: use --mixed-precision fp16, or no")
    if cores() == 1:
        yield Finding("advice", "cores", "one core decodes images and trains: expect it to be slow")
    yield _hub()


def _hub() -> Finding:
    if not reach_hub():
        return Finding(
            "advice",
            "hub",
            "the Hugging Face hub does not answer, or HF_HUB_OFFLINE is set: --backbone and --labeled take local "
            "folders, and what was downloaded before",
        )
    try:
        check_login("hub")
    except BadInput as error:
        reason = str(error).removeprefix("hub: ")
        return Finding("ok", "hub", f"public models can be downloaded; for private ones and uploads: {reason}")
    return Finding("ok", "hub", "the Hugging Face hub answers, and a token is here")


def _output(folder: str) -> Iterator[Finding]:
    """Whether a run folder could be written there."""
    place = existing(folder)
    what = "--output-dir"
    if not place.is_dir():
        yield Finding("broken", what, f"{folder}: {place} is a file; choose a folder")
        return
    try:
        with tempfile.TemporaryFile(dir=place):  # Permission, a read-only disk and quotas in one.
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        yield Finding("broken", what, f"{folder}: {place} cannot be written ({reason}); choose another folder")
    else:
        yield Finding("ok", what, f"{folder} can be written")
    usage = shutil.disk_usage(place)
    if usage.total:  # Of some places, such as /proc, there is no size.
        yield room(usage.free, _FREE_BYTES, "a small backbone's checkpoints")


# ------------------------------------------------------------------ images


def _source(values: dict[str, Any], name: str, tables: dict[str, ImageTable | ImageStream]) -> Iterator[Finding]:
    columns = (f"{name}_image_column", f"{name}_label_column", f"{name}_stream")
    own = {key: value for key, value in values.items() if key in (name, *columns)}
    config = build_config(own)
    found = open_tables(config)
    table = {"labeled": found.labeled, "unlabeled": found.unlabeled, "eval": found.evaluation}[name]
    assert table is not None
    if isinstance(table, ImageStream):
        yield Finding("ok", flag(name), f"{describe_images(table, config.live_images)}; it can be opened")
        tables[name] = table
        return
    classes = f" of {len(table.classes)} classes" if table.labels is not None else ""
    yield Finding("ok", flag(name), f"{table.name}: {len(table):,} images{classes}")
    if table.labels is not None and np.bincount(table.labels).min() < 2:
        alone = [table.classes[i] for i in np.flatnonzero(np.bincount(table.labels) < 2)]
        yield Finding("advice", flag(name), f"{len(alone)} classes have one image only, such as {alone[0]}")
    for sentence in table.skipped:
        yield Finding("advice", flag(name), sentence)
    yield from _readable(flag(name), table)
    tables[name] = table


def _readable(what: str, table: ImageTable) -> Iterator[Finding]:
    """Opens some images, drawn by seed."""
    rows = np.random.default_rng(0).permutation(len(table))[:_SAMPLE]
    bad: list[str] = []
    for row in rows:
        try:
            read_image(table.source(int(row)))
        except BadImage as error:
            bad.append(f"{table.describe(int(row))} ({error})")
    if not bad:
        yield Finding("ok", what, f"{len(rows)} images opened, all can be read")
        return
    share = len(bad) / len(rows)
    text = f"{len(bad)} of {len(rows)} images opened cannot be read, such as {bad[0]}"
    limit = TrainConfig.model_fields["max_bad_fraction"].default
    if share > limit:
        yield Finding("broken", what, f"{text}: repair them, or set --max-bad-fraction above {share:.2g}")
    else:
        yield Finding("advice", what, f"{text}: a run replaces them and lists them in bad_images.jsonl")


# ------------------------------------------------------------------ a run


def _backbone_alone(values: dict[str, Any]) -> Iterator[Finding]:
    config = build_config({key: value for key, value in values.items() if key in _BACKBONE})
    backbone = open_configured_backbone(config)
    height, width = view_size(backbone.processor)
    count = sum(p.numel() for p in backbone.model.parameters())
    name = config.backbone_weights or config.backbone
    yield Finding("ok", "--backbone", f"{name}: {count / 1e6:.1f} million parameters, {height} x {width} px")


def _run(values: dict[str, Any]) -> Iterator[Finding]:
    config = resolve(command_of(values.get("labeled"), values.get("unlabeled")), values)
    tables = open_tables(config)
    config, notes = fit_to_data(config, tables)
    yield from _caught("--labeled-batch-size", lambda: check_labeled_size(config, tables))
    yield from _caught("--unlabeled-batch-size", lambda: check_unlabeled_size(config, tables))
    backbone = open_configured_backbone(config)
    embedder = build_embedder(config, backbone)
    config = with_learning_rate(config, embedder, tables.labeled)
    size = view_size(backbone.processor)
    plan = describe_run(config, tables, embedder, backbone.processor)
    yield Finding("ok", "steps", plan["steps"])
    if notes:
        yield Finding("ok", "defaults", "; ".join(notes))
    yield Finding("ok", "--backbone", plan["model"])
    if "pool" in plan:
        yield Finding("ok", "pool", plan["pool"])
    if "relations" in plan:
        unmeasured = config.calibrates and not len(held_out_classes(config, tables.labeled))
        yield Finding("advice" if unmeasured else "ok", "relations", plan["relations"])
    trained = () if tables.labeled is None else tables.labeled.classes
    unseen = tables.evaluation is not None and set(trained).isdisjoint(tables.evaluation.classes)
    yield Finding("ok" if unseen else "advice", "evaluation", plan["evaluation"])
    live = 0 if tables.unlabeled is None else num_live(tables.unlabeled, config.live_images)
    yield disk(config, embedder, live if live > config.live_images else 0)
    yield from memory(config, embedder, size, plan["memory"])
    tried = [table for table in (tables.unlabeled, tables.labeled) if isinstance(table, ImageTable)]
    if tried:
        yield from speed(config, embedder, backbone.processor, tried[0])
