"""From a configuration to a finished run folder: opens sources and backbone, trains, evaluates, exports."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from stml_semi import distributed
from stml_semi.config import TrainConfig, flag, read_recipe
from stml_semi.data.benchmarks import BENCHMARKS
from stml_semi.data.loading import ViewSettings
from stml_semi.data.plan import check_labeled, check_unlabeled
from stml_semi.data.sources import open_source
from stml_semi.data.views import normalization, view_size
from stml_semi.dry_run import describe_run
from stml_semi.export import export_model
from stml_semi.failures import explained
from stml_semi.losses.proxy import LabeledLoss
from stml_semi.machine import describe_start
from stml_semi.models.adaptation import add_lora, checkpoint_blocks, freeze_prefix
from stml_semi.models.backbone import Backbone, open_backbone
from stml_semi.models.embedder import Embedder, freeze_unused, resolve_pooling
from stml_semi.progress import RunProgress
from stml_semi.report.page import ReportedRun
from stml_semi.report.run_end import write_or_explain
from stml_semi.run_folder import RunFolder
from stml_semi.survey import Tables
from stml_semi.trainer import Trainer

Command = Literal["semi", "unsup", "sup"]


def resolve(command: Command, values: dict[str, Any]) -> TrainConfig:
    """The configuration of a command: what it does not use is dropped, what depends on the data is filled in.

    Raises:
        ValueError: a source that the command needs is missing, or the fields do not fit together.
    """
    values = dict(values)
    for name in ("labeled", "unlabeled", "eval", "backbone", "output_dir"):
        if not isinstance(values.get(name, ""), str | None):
            raise ValueError(f"{flag(name)} {values[name]!r}: should be text; several sources are joined by commas")
    needs = {"semi": ("labeled", "unlabeled"), "unsup": ("unlabeled",), "sup": ("labeled",)}[command]
    if not values.get("output_dir") and all(values.get(name) for name in needs):
        parts = [command, *(_file_name(values[name]) for name in needs)]
        values["output_dir"] = os.path.join("runs", "-".join(parts))
    if values.get("resume") and (stored := Path(values.get("output_dir") or "", "config.yaml")).is_file():
        # The run knows how it was started; what is given again must agree, or be of the kind that may change.
        values = read_recipe(stored) | {name: value for name, value in values.items() if value != "auto"}
    known = (values.get("labeled"), values.get("unlabeled"))
    for name in ("labeled", "unlabeled"):
        if name not in needs:
            values[name] = None  # `sup --recipe semi.yaml` is the baseline of that recipe.
        elif not values.get(name):
            raise ValueError(
                f"{command} needs --{name}: a folder, a table, a hub id or a benchmark ({', '.join(BENCHMARKS)})"
            )
    names = [part.strip().split(":")[0] for spec in known if spec for part in spec.split(",")]
    benchmark = next((BENCHMARKS[name] for name in names if name in BENCHMARKS), None)
    if not values.get("eval") and benchmark is not None:
        values["eval"] = benchmark.eval
    if values.get("backbone", "auto") == "auto":
        values["backbone"] = (benchmark and benchmark.backbone) or "facebook/dinov2-small"
    if (
        values.get("learning_rate") is None
        and benchmark is not None
        and benchmark.learning_rate
        and "unlabeled" in needs
    ):
        values["learning_rate"] = benchmark.learning_rate
    if values.get("augment", "auto") == "auto":
        values["augment"] = (benchmark and benchmark.augment) or "paper"
    config = TrainConfig.build(values)
    if config.labeled and config.unlabeled:
        # Written down, so that a run that is resumed for longer keeps its warm-up.
        config = config.model_copy(update={"label_warmup_steps": config.warmup_steps})
    return config


class Result(NamedTuple):
    """Where a run ended."""

    folder: RunFolder
    lines: list[dict[str, Any]]
    """The evaluation lines of metrics.jsonl."""
    claim: str
    """What may be said of the classes that were evaluated on."""
    plan: dict[str, str] | None = None
    """Of a dry run: what it would do."""


def run(config: TrainConfig) -> Result:
    """Trains as configured and leaves a run folder.

    Raises:
        ValueError: bad input, with the flag and the fix; nothing has been written or deleted then.
    """
    # Buffers are alike in all processes as long as BatchNorm keeps its statistics.
    wrapper = DistributedDataParallelKwargs(broadcast_buffers=config.batchnorm == "batch")
    accelerator = Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=[wrapper])
    config = config.model_copy(update={"mixed_precision": accelerator.mixed_precision})
    folder = RunFolder(str(config.output_dir), writes=accelerator.is_main_process)

    def check() -> Tables:
        folder.check(resume=config.resume, overwrite=config.overwrite)
        if config.resume:
            _check_same_run(config, TrainConfig.build(read_recipe(folder.config)))
        tables = open_tables(config)
        _check_sizes(config, tables)
        _check_honest(config)
        _check_outside(config, folder)
        return tables

    def build() -> Embedder:
        set_seed(config.seed)
        return build_embedder(config, backbone)

    tables = _together(check)
    backbone = _together(lambda: open_backbone(config.backbone, image_size=config.image_size))
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
            claim=evaluation_claim(tables),
        )
        accelerator.end_training()
        return Result(folder, [], evaluation_claim(tables), plan)
    with RunProgress(config, tables, processes=world, enabled=main) as progress:
        trainer = Trainer(config, accelerator, embedder, backbone.processor, tables, views, folder, progress)
        start = _together(trainer.restore) if config.resume else 0
        _together(lambda: folder.prepare(config))  # Nothing is written or deleted before all input was found good.
        if config.batchnorm == "batch":
            progress.note(
                "--batchnorm batch: each process normalizes by its own share of the batch, so results depend on the "
                "number of processes"
            )
        sitting = folder.sitting(describe_start(processes=world, first_step=start))
        with explained(trainer.stream.rows, config.micro_batch_size), sitting:
            trainer.train(start)
            if accelerator.is_main_process:
                progress.note(f"exporting the model to {folder.model}")
                export_model(embedder, backbone.processor, folder.model)
            accelerator.wait_for_everyone()
        accelerator.end_training()
        if main:  # After the processes parted: none waits for the page, and embedding does not ask the others.
            progress.note(
                write_or_explain(ReportedRun(folder, config, tables, evaluation_claim(tables)), accelerator.device)
            )
    lines = [line for line in folder.lines() if "model" in line]
    return Result(folder, lines, evaluation_claim(tables))


T = TypeVar("T")


def _together(step: Callable[[], T]) -> T:
    """Runs a step of the set-up on every process; if one finds bad input, all raise its ValueError, and none waits."""
    result = problem = None
    try:
        result = step()
    except ValueError as error:
        problem = error
    problems = distributed.gather_objects(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    first = next((text for text in problems if text is not None), None)
    if first is not None:
        raise ValueError(first)
    return cast(T, result)


# What may change when a run goes on: how long and how often, how much at once, where; not what is computed.
_MAY_CHANGE = {"max_steps", "eval_every", "save_every", "keep_checkpoints", "log_every", "micro_batch_size"}
_MAY_CHANGE |= {"num_workers", "gradient_checkpointing", "compile", "mixed_precision", "stop_on_collapse"}
_MAY_CHANGE |= {"output_dir", "resume", "overwrite", "dry_run"}


def _check_same_run(config: TrainConfig, stored: TrainConfig) -> None:
    """
    Raises:
        ValueError: a resumed run with another objective, model or data.
    """
    changed = [n for n in TrainConfig.model_fields if n not in _MAY_CHANGE and getattr(config, n) != getattr(stored, n)]
    if changed:
        name = changed[0]
        raise ValueError(
            f"--resume goes on with {flag(name)} {getattr(stored, name)}, not {getattr(config, name)}: leave "
            f"{', '.join(map(flag, changed))} out, or start another run"
        )


def _check_outside(config: TrainConfig, folder: RunFolder) -> None:
    """
    Raises:
        ValueError: the run folder holds what the run reads.
    """
    for name in ("labeled", "unlabeled", "eval", "backbone"):
        for part in (getattr(config, name) or "").split(","):
            path = Path(part.strip()).expanduser()
            if part and path.exists() and folder.path.resolve() in (path.resolve(), *path.resolve().parents):
                raise ValueError(f"--output-dir {folder.path} holds {flag(name)} {part}: choose a folder outside of it")


def open_tables(config: TrainConfig) -> Tables:
    """Opens the sources of a configuration.

    Raises:
        ValueError: naming the flag and the fix.
    """
    labeled = unlabeled = evaluation = None
    if config.labeled:
        labeled = open_source(
            config.labeled,
            flag="--labeled",
            labels="required",
            image_column=config.labeled_image_column,
            label_column=config.labeled_label_column,
        )
    if config.unlabeled:
        unlabeled = open_source(
            config.unlabeled, flag="--unlabeled", labels="ignored", image_column=config.unlabeled_image_column
        )
    if config.eval:
        evaluation = open_source(
            config.eval,
            flag="--eval",
            labels="required",
            image_column=config.eval_image_column,
            label_column=config.eval_label_column,
        )
    recall_at = evaluation.recall_at if evaluation is not None else ()
    return Tables(labeled, unlabeled, evaluation, recall_at)


def evaluation_claim(tables: Tables) -> str:
    """Whether the evaluation's classes were trained on, as far as anyone can know."""
    if tables.evaluation is None:
        return ""
    if tables.labeled is not None:
        shared = len(set(tables.labeled.classes) & set(tables.evaluation.classes))
        if shared:
            return f"{shared} of its {len(tables.evaluation.classes)} classes have the names of trained ones"
    for table in (tables.labeled, tables.unlabeled):
        known = table is None or all(s.strip().split(":")[0] in BENCHMARKS for s in table.name.split(","))
        if not known:
            return "" if tables.labeled is None else "no class shares its name with a trained one"
    return "classes never trained on"


def build_embedder(config: TrainConfig, backbone: Backbone) -> Embedder:
    """The model of a configuration; its heads are random (torch's generator), so seed before.

    Raises:
        ValueError: a pooling, or a way to train it, that the backbone cannot do.
    """
    size = view_size(backbone.processor)
    freeze_prefix(backbone.model, config.train_layers)
    if config.lora_rank:
        add_lora(backbone.model, config.lora_rank)
    if config.gradient_checkpointing:
        checkpoint_blocks(backbone.model)
    embedder = Embedder(
        backbone.model,
        resolve_pooling(config.pooling, backbone.model, size),
        normalization(backbone.processor),
        embedding_dim=config.embedding_dim,
        auxiliary_dim=config.auxiliary_dim,
        micro_batch_size=config.micro_batch_size,
        batch_statistics=config.batchnorm == "batch",
    )
    freeze_unused(embedder, size)
    if config.compile and embedder.is_random:
        raise ValueError(
            "--compile: this backbone uses dropout or stochastic depth, whose draws are not compiled; leave it out"
        )
    return embedder


def _check_sizes(config: TrainConfig, tables: Tables) -> None:
    world = distributed.world_size()
    if tables.labeled is not None:
        check_labeled(len(tables.labeled.classes), config.classes_per_batch, config.images_per_class)
        # Says so if there is no loss of this name.
        LabeledLoss(config.labeled_loss, num_classes=2, embedding_dim=2)
        if config.labeled_batch_size < world:
            raise ValueError(f"--labeled-batch-size {config.labeled_batch_size} is less than the {world} processes")
    if tables.unlabeled is not None:
        check_unlabeled(len(tables.unlabeled), config.queries_per_batch, config.num_neighbors)
        if config.unlabeled_batch_size < world:
            raise ValueError(f"--unlabeled-batch-size {config.unlabeled_batch_size} is less than the {world} processes")
    if tables.evaluation is not None:
        assert tables.evaluation.labels is not None
        if np.bincount(tables.evaluation.labels).max() < 2:
            raise ValueError(f"--eval {tables.evaluation.name}: no class has two pictures, so there is nothing to find")
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("--mixed-precision fp16 needs a GPU; use bf16 or no")


def _check_honest(config: TrainConfig) -> None:
    """
    Raises:
        ValueError: a benchmark's test split among the training data.
    """
    for name in ("labeled", "unlabeled"):
        for spec in map(str.strip, (getattr(config, name) or "").split(",")):
            benchmark = BENCHMARKS.get(spec.split(":")[0])
            if benchmark is not None and spec == benchmark.eval:
                raise ValueError(
                    f"--{name} {spec}: these are the pictures that results are measured on; train on others"
                )


def _file_name(spec: str) -> str:
    """A source as part of a folder name: data/birds/ -> birds, user/name:test -> name-test."""
    parts = [part.rstrip("/\\").replace("\\", "/").split("/")[-1] for part in spec.split(",")]
    return "+".join(part.replace(":", "-") for part in parts)
