"""From a configuration to everything a run is made of, checked on every process before anything is written."""

from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from stml_semi.config import Mark, TrainConfig, fields_that, flag
from stml_semi.data.batches.loading import ViewSettings
from stml_semi.data.claims import check_honest
from stml_semi.data.framing import SQUASH
from stml_semi.data.run_tables import (
    Tables,
    check_sizes,
    exclude,
    find_evaluated,
    kept_classes,
    open_tables,
    overlap_by_class,
    overlap_by_image,
)
from stml_semi.data.views import view_size
from stml_semi.models.backbone import Backbone
from stml_semi.models.build import build_embedder, open_configured_backbone
from stml_semi.models.embedder import Embedder
from stml_semi.models.fit import framing_of
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.distributed import from_main, rank, together
from stml_semi.runtime.errors import BadInput
from stml_semi.sharing.push import check_login
from stml_semi.training.launch import make_accelerator
from stml_semi.training.resolve import fit_to_data, with_learning_rate


class Prepared(NamedTuple):
    """What a run is made of. Nothing has been written yet."""

    config: TrainConfig
    """Complete: it fits the data, and has the precision that accelerate is configured to use."""
    notes: tuple[str, ...]
    """Defaults that were changed to fit the data."""
    accelerator: Accelerator
    folder: RunFolder
    tables: Tables
    backbone: Backbone
    embedder: Embedder
    """The bare model, on the CPU."""
    views: ViewSettings


def setup(config: TrainConfig) -> Prepared:
    """Opens sources and backbone, and checks all that can be checked; all processes call this together.

    Raises:
        BadInput: with the flag and the fix; nothing has been written or deleted then.
    """
    accelerator = make_accelerator(config)
    config = config.model_copy(update={"mixed_precision": accelerator.mixed_precision})
    check_alike(config)
    folder = RunFolder(str(config.output_dir), writes=accelerator.is_main_process)
    tables = together(lambda: _check_and_open(config, folder))
    tables = _without_overlap(config, tables, folder)
    config, notes = fit_to_data(config, tables)
    backbone = together(lambda: open_configured_backbone(config))
    set_seed(config.seed)
    embedder = together(lambda: build_embedder(config, backbone))
    config = with_learning_rate(config, embedder, tables.labeled)
    check_alike(config, resolved=True)
    framing = None if config.fit == "auto" else framing_of(backbone.processor)
    size = view_size(backbone.processor)
    views = ViewSettings(config.augment, size, config.num_views, config.seed, framing or SQUASH)
    return Prepared(config, notes, accelerator, folder, tables, backbone, embedder, views)


def check_alike(config: TrainConfig, *, resolved: bool = False) -> None:
    """What is computed is the same in all processes, whichever machine they were started on.

    Args:
        config: of this process.
        resolved: whether nothing is `auto` any more that becomes a number. Before, `auto` may be what the run folder of
            another machine has as a number.

    Raises:
        BadInput: on all, with the first flag that differs.
    """
    first = from_main(lambda: config)
    may_differ = {*fields_that(Mark.PLACE), "num_workers"}

    def check() -> None:
        for name in TrainConfig.model_fields:
            here, there = getattr(config, name), getattr(first, name)
            if here != there and name not in may_differ and (resolved or "auto" not in (here, there)):
                raise BadInput(
                    f"{flag(name)} is {here} in process {rank()}, but {there} in process 0: give all machines the same "
                    "flags. What is left out, --resume takes from the run folder, which all of them then have to see"
                )

    together(check)


def _check_and_open(config: TrainConfig, folder: RunFolder) -> Tables:
    if folder.writes:
        folder.check(resume=config.resume, overwrite=config.overwrite)
        if config.resume:
            folder.check_same_run(config)
    if config.push_to_hub:
        check_login("--push-to-hub")
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise BadInput("--mixed-precision fp16 needs a GPU; use bf16 or no")
    tables = open_tables(config)
    check_sizes(fit_to_data(config, tables).config, tables)
    check_honest(config)
    if folder.writes:
        folder.check_outside(config)
        if config.resume:
            folder.check_classes(kept_classes(config, tables))
    return tables


def _without_overlap(config: TrainConfig, tables: Tables, folder: RunFolder) -> Tables:
    """What the run is scored on is not in its pool. A resumed run excludes what it excluded before."""
    found = from_main(folder.read_overlap) if config.resume else None
    if found is None:
        found = find_evaluated(tables)
        if config.exclude_overlap:
            by_class = together(lambda: overlap_by_class(config, tables))
            # A row that is both is listed with its class, which the claim counts.
            rows = {one.row: one for one in [*(found or ()), *by_class]}
            near = [] if config.dry_run else overlap_by_image(config, tables, list(rows.values()))
            found = sorted([*rows.values(), *near])

    def excluded() -> Tables:
        left = exclude(config, tables, found)
        check_sizes(fit_to_data(config, left).config, left)
        return left

    return together(excluded)
