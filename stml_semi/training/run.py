"""From a configuration to a finished run folder: opens sources and backbone, trains, evaluates, exports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from stml_semi.config import TrainConfig, flag, read_recipe
from stml_semi.data.batches.live_images import describe_images, num_live
from stml_semi.data.batches.loading import ViewSettings
from stml_semi.data.batches.plan import check_labeled, check_unlabeled
from stml_semi.data.claims import check_honest, claim, few_unlabeled, terms_of_use
from stml_semi.data.class_split import split_by_classes
from stml_semi.data.overlap import Dropped
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.sources.open_unlabeled import open_unlabeled
from stml_semi.data.sources.specs import specs_of
from stml_semi.data.views import view_size
from stml_semi.losses.proxy import LabeledLoss
from stml_semi.models.build import build_embedder, open_configured_backbone
from stml_semi.models.embedder import Embedder
from stml_semi.report.page import ReportedRun
from stml_semi.report.run_end import write_or_explain
from stml_semi.run_folder.folder import KeptClasses, RunFolder
from stml_semi.runtime import distributed
from stml_semi.runtime.energy import gpu_joules
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.failures import explained
from stml_semi.runtime.machine import describe_start
from stml_semi.runtime.progress import RunProgress
from stml_semi.sharing.card import CardFacts, card_files, find_origin
from stml_semi.sharing.export import export_model
from stml_semi.sharing.push import check_login, push
from stml_semi.training.inputs import cache_tables, describe_excluded, exclude_overlap, overlapping_classes
from stml_semi.training.preflight.dry_run import describe_run
from stml_semi.training.survey import Tables
from stml_semi.training.trackers import Trackers
from stml_semi.training.trainer import Trainer


class Result(NamedTuple):
    """Where a run ended."""

    folder: RunFolder
    lines: list[dict[str, Any]]
    """The evaluation lines of metrics.jsonl."""
    claim: str
    """What may be said of the classes that were evaluated on."""
    plan: dict[str, str] | None = None
    """Of a dry run: what it would do."""
    problem: str | None = None
    """Why the finished model was not uploaded."""


def run(config: TrainConfig) -> Result:
    """Trains as configured and leaves a run folder.

    Raises:
        BadInput: bad input, with the flag and the fix; nothing has been written or deleted then.
    """
    # Buffers are alike in all processes as long as BatchNorm keeps its statistics.
    wrapper = DistributedDataParallelKwargs(broadcast_buffers=config.batchnorm == "batch")
    accelerator = Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=[wrapper])
    config = config.model_copy(update={"mixed_precision": accelerator.mixed_precision})
    folder = RunFolder(str(config.output_dir), writes=accelerator.is_main_process)

    overlap: list[Dropped] = []

    def check() -> Tables:
        folder.check(resume=config.resume, overwrite=config.overwrite)
        if config.resume:
            _check_same_run(config, TrainConfig.build(read_recipe(folder.config)))
        if config.push_to_hub:
            check_login("--push-to-hub")
        tables = open_tables(config)
        _check_sizes(config, tables)
        check_honest(config)
        _check_outside(config, folder)
        if config.resume:
            folder.check_classes(_kept_classes(config, tables))
        if config.exclude_overlap:
            overlap.extend(overlapping_classes(config, tables, folder))
        return tables

    def build() -> Embedder:
        set_seed(config.seed)
        return build_embedder(config, backbone)

    def exclude() -> Tables:
        kept = exclude_overlap(config, tables, overlap, folder)
        _check_sizes(config, kept)
        return kept

    tables = _together(check)
    if config.exclude_overlap:
        tables = _together(exclude)
    backbone = _together(lambda: open_configured_backbone(config))
    embedder = _together(build)
    views = ViewSettings(config.augment, view_size(backbone.processor), config.num_views, config.seed)
    main, world = accelerator.is_main_process, distributed.world_size()
    if config.dry_run:
        plan = describe_run(
            config,
            embedder,
            views.size,
            labeled=tables.labeled,
            unlabeled=tables.unlabeled,
            evaluation=tables.evaluation,
            validation=tables.validation,
            claim=claim(tables),
        )
        if tables.excluded is not None:
            plan["overlap"] = f"{describe_excluded(tables)} (pictures are compared when the run starts)"
        accelerator.end_training()
        return Result(folder, [], claim(tables), plan)
    trained = cache_tables(config, tables, views.size)
    with RunProgress(config, tables, processes=world, enabled=main) as progress:
        trackers = Trackers(config, folder.path, progress.note, enabled=main)
        trainer = Trainer(config, accelerator, embedder, backbone.processor, trained, views, folder, trackers, progress)
        start = _together(trainer.restore) if config.resume else 0
        # Nothing is written or deleted before all input was found good.
        _together(lambda: folder.prepare(config, _kept_classes(config, tables), claim=claim(tables)))
        if tables.excluded is not None:
            folder.write_overlap(tables.excluded)
            progress.note(f"{describe_excluded(tables)}; listed in {folder.overlap}")
        for text in terms_of_use(config):
            progress.note(text)
        if warning := few_unlabeled(tables):
            progress.note(f"warning: {warning}")
        if tables.unlabeled is not None and tables.unlabeled.weights:
            progress.note(f"pool: {describe_images(tables.unlabeled, config.live_images)}")
        if config.batchnorm == "batch":
            progress.note(
                "--batchnorm batch: each process normalizes by its own share of the batch, so results depend on the "
                "number of processes"
            )
        sitting = folder.sitting(describe_start(processes=world, first_step=start), gpu_joules)
        with explained(trainer.stream.rows, config.micro_batch_size), sitting, trackers.started(start):
            trainer.train(start)
            if accelerator.is_main_process:
                progress.note(f"exporting the model to {folder.model}")
                facts = CardFacts(
                    config,
                    folder.lines(),
                    weights="student",
                    step=config.max_steps if trainer.best is None else int(trainer.best.step),
                    size=views.size,
                    pooling=embedder.pool.kind,
                    claim=folder.claim,
                    origin=find_origin(config),
                )
                export_model(embedder, backbone.processor, folder.model, card_files(facts))
            accelerator.wait_for_everyone()
        lines = [line for line in folder.lines() if "model" in line]
        accelerator.end_training()
        # After the processes parted: none waits for the page, and embedding does not ask the others.
        if main and not config.no_report:
            reported = ReportedRun(folder, config, tables)
            progress.note(write_or_explain(reported, accelerator.device))
        # Last, because nobody should have to wait for a slow line, and because the others' patience has an end.
        problem = _push(config, folder, progress) if config.push_to_hub and main else None
    return Result(folder, lines, folder.claim, problem=problem)


def _push(config: TrainConfig, folder: RunFolder, progress: RunProgress) -> str | None:
    """What went wrong, if anything: a failed upload is no failed run."""
    try:
        pushed = push(str(folder.path), str(config.hub_model_id), private=config.hub_private, note=progress.note)
    except BadInput as error:
        return str(error)
    progress.note(f"uploaded to {pushed.url}")
    return None


T = TypeVar("T")


def _together(step: Callable[[], T]) -> T:
    """Runs a step of the set-up on every process; if one finds bad input, all raise its ValueError, and none waits."""
    result = problem = None
    try:
        result = step()
    except BadInput as error:
        problem = error
    problems = distributed.gather_objects(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    first = next((text for text in problems if text is not None), None)
    if first is not None:
        raise BadInput(first)
    return cast(T, result)


# What may change when a run goes on: how long and how often, how much at once, where; not what is computed.
_MAY_CHANGE = {"max_steps", "eval_every", "save_every", "keep_checkpoints", "log_every", "micro_batch_size"}
_MAY_CHANGE |= {"num_workers", "gradient_checkpointing", "compile", "mixed_precision", "stop_on_collapse", "report_to"}
_MAY_CHANGE |= {"output_dir", "data_root", "resume", "overwrite", "dry_run"}
_MAY_CHANGE |= {"no_report", "push_to_hub", "hub_model_id", "hub_private", "license"}


def _check_same_run(config: TrainConfig, stored: TrainConfig) -> None:
    """
    Raises:
        BadInput: a resumed run with another objective, model or data.
    """
    changed = [n for n in TrainConfig.model_fields if n not in _MAY_CHANGE and getattr(config, n) != getattr(stored, n)]
    if changed:
        name = changed[0]
        raise BadInput(
            f"--resume goes on with {flag(name)} {getattr(stored, name)}, not {getattr(config, name)}: leave "
            f"{', '.join(map(flag, changed))} out, or start another run"
        )


def _check_outside(config: TrainConfig, folder: RunFolder) -> None:
    """
    Raises:
        BadInput: the run folder holds what the run reads.
    """
    for name in ("labeled", "unlabeled", "eval", "data_root", "backbone"):
        for part in specs_of(getattr(config, name)):
            path = Path(part).expanduser()
            if part and path.exists() and folder.path.resolve() in (path.resolve(), *path.resolve().parents):
                raise BadInput(f"--output-dir {folder.path} holds {flag(name)} {part}: choose a folder outside of it")


def open_tables(config: TrainConfig) -> Tables:
    """Opens the sources of a configuration.

    Raises:
        BadInput: naming the flag and the fix.
    """
    labeled = unlabeled = evaluation = None
    if config.labeled:
        labeled = open_source(
            config.labeled,
            flag="--labeled",
            labels="required",
            image_column=config.labeled_image_column,
            label_column=config.labeled_label_column,
            data_root=config.data_root,
        )
    if config.unlabeled:
        unlabeled = open_unlabeled(
            config.unlabeled,
            stream=config.unlabeled_stream,
            image_column=config.unlabeled_image_column,
            label_column=config.unlabeled_label_column,
            data_root=config.data_root,
            seed=config.seed,
        )
    if config.eval:
        evaluation = open_source(
            config.eval,
            flag="--eval",
            labels="required",
            image_column=config.eval_image_column,
            label_column=config.eval_label_column,
            data_root=config.data_root,
        )
    if labeled is not None and config.test_classes:
        labeled, evaluation = split_by_classes(labeled, config.test_classes, config.seed)
    validation = None
    if labeled is not None and config.validation_classes:
        labeled, validation = split_by_classes(labeled, config.validation_classes, config.seed, "validation")
    scored = evaluation or validation
    return Tables(labeled, unlabeled, evaluation, scored.recall_at if scored else (), validation=validation)


def _kept_classes(config: TrainConfig, tables: Tables) -> KeptClasses:
    """Those of --labeled that the run does not train on."""
    test = tables.evaluation if config.test_classes else None
    found = {"test": test, "validation": tables.validation}
    return {kind: list(table.classes) for kind, table in found.items() if table is not None}


def _check_sizes(config: TrainConfig, tables: Tables) -> None:
    world = distributed.world_size()
    if tables.labeled is not None:
        check_labeled(len(tables.labeled.classes), config.classes_per_batch, config.images_per_class)
        # Says so if there is no loss of this name.
        LabeledLoss(config.labeled_loss, num_classes=2, embedding_dim=2)
        if config.labeled_batch_size < world:
            raise BadInput(f"--labeled-batch-size {config.labeled_batch_size} is less than the {world} processes")
    if tables.unlabeled is not None:
        check_unlabeled(num_live(tables.unlabeled, config.live_images), config.queries_per_batch, config.num_neighbors)
        if config.unlabeled_batch_size < world:
            raise BadInput(f"--unlabeled-batch-size {config.unlabeled_batch_size} is less than the {world} processes")
    if tables.evaluation is not None:
        assert tables.evaluation.labels is not None
        if np.bincount(tables.evaluation.labels).max() < 2:
            raise BadInput(f"--eval {tables.evaluation.name}: no class has two pictures, so there is nothing to find")
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise BadInput("--mixed-precision fp16 needs a GPU; use bf16 or no")
