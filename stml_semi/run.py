"""From a configuration to a finished run folder: opens sources and backbone, trains, evaluates, exports."""

import os
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from stml_semi import distributed
from stml_semi.config import TrainConfig
from stml_semi.data.benchmarks import BENCHMARKS
from stml_semi.data.loading import ViewSettings
from stml_semi.data.plan import check_labeled, check_unlabeled
from stml_semi.data.sources import open_source
from stml_semi.data.views import normalization, view_size
from stml_semi.export import export_model
from stml_semi.models.backbone import Backbone, open_backbone
from stml_semi.models.embedder import Embedder, freeze_unused, resolve_pooling
from stml_semi.progress import RunProgress
from stml_semi.run_folder import RunFolder
from stml_semi.trainer import Tables, Trainer

Command = Literal["semi", "unsup", "sup"]


def resolve(command: Command, values: dict[str, Any]) -> TrainConfig:
    """The configuration of a command: what it does not use is dropped, what depends on the data is filled in.

    Raises:
        ValueError: a source that the command needs is missing, or the fields do not fit together.
    """
    values = dict(values)
    needs = {"semi": ("labeled", "unlabeled"), "unsup": ("unlabeled",), "sup": ("labeled",)}[command]
    known = (values.get("labeled"), values.get("unlabeled"))
    for name in ("labeled", "unlabeled"):
        if name not in needs:
            values[name] = None  # `sup --recipe semi.yaml` is the baseline of that recipe.
        elif not values.get(name):
            raise ValueError(
                f"{command} needs --{name}: a folder, a table, a hub id or a benchmark ({', '.join(BENCHMARKS)})"
            )
    benchmark = next((BENCHMARKS[n] for spec in known if spec and (n := spec.split(":")[0]) in BENCHMARKS), None)
    if not values.get("eval") and benchmark is not None:
        values["eval"] = benchmark.eval
    if values.get("backbone", "auto") == "auto":
        values["backbone"] = (benchmark and benchmark.backbone) or "facebook/dinov2-small"
    if values.get("augment", "auto") == "auto":
        values["augment"] = (benchmark and benchmark.augment) or "paper"
    if not values.get("output_dir"):
        parts = [command, *(_file_name(values[name]) for name in needs)]
        values["output_dir"] = os.path.join("runs", "-".join(parts))
    return TrainConfig.build(values)


class Result(NamedTuple):
    """Where a run ended."""

    folder: RunFolder
    lines: list[dict[str, Any]]
    """The evaluation lines of metrics.jsonl."""
    claim: str
    """What may be said of the classes that were evaluated on."""


def run(config: TrainConfig) -> Result:
    """Trains as configured and leaves a run folder.

    Raises:
        ValueError: bad input, with the flag and the fix; nothing has been written or deleted then.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    folder = RunFolder(str(config.output_dir), writes=accelerator.is_main_process)
    folder.check(resume=config.resume, overwrite=config.overwrite)
    tables = open_tables(config)
    _check_sizes(config, tables)
    _check_honest(config)
    set_seed(config.seed)
    backbone = open_backbone(config.backbone, image_size=config.image_size)
    embedder = build_embedder(config, backbone)
    views = ViewSettings(config.augment, view_size(backbone.processor), config.num_views, config.seed)
    with RunProgress(config, tables, enabled=accelerator.is_main_process) as progress:
        trainer = Trainer(config, accelerator, embedder, backbone.processor, tables, views, folder, progress)
        accelerator.wait_for_everyone()  # Every process has found its input good before the main one writes or deletes.
        folder.prepare(config)
        accelerator.wait_for_everyone()
        trainer.train()
        if accelerator.is_main_process:
            progress.note(f"exporting the model to {folder.model}")
            export_model(embedder, backbone.processor, folder.model)
    accelerator.wait_for_everyone()
    lines = [line for line in folder.lines() if "model" in line]
    accelerator.end_training()
    return Result(folder, lines, _claim(tables))


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


def _claim(tables: Tables) -> str:
    """Whether the evaluation's classes were trained on, as far as anyone can know."""
    if tables.evaluation is None:
        return ""
    if tables.labeled is not None:
        shared = len(set(tables.labeled.classes) & set(tables.evaluation.classes))
        if shared:
            return f"{shared} of its {len(tables.evaluation.classes)} classes have the names of trained ones"
    for table in (tables.labeled, tables.unlabeled):
        known = table is None or all(spec.split(":")[0] in BENCHMARKS for spec in table.name.split(","))
        if not known:
            return "" if tables.labeled is None else "no class shares its name with a trained one"
    return "classes never trained on"


def build_embedder(config: TrainConfig, backbone: Backbone) -> Embedder:
    """The model of a configuration; its heads are random (torch's generator), so seed before.

    Raises:
        ValueError: a pooling that the backbone cannot do.
    """
    size = view_size(backbone.processor)
    embedder = Embedder(
        backbone.model,
        resolve_pooling(config.pooling, backbone.model, size),
        normalization(backbone.processor),
        embedding_dim=config.embedding_dim,
        auxiliary_dim=config.auxiliary_dim,
        micro_batch_size=config.micro_batch_size,
    )
    freeze_unused(embedder, size)
    return embedder


def _check_sizes(config: TrainConfig, tables: Tables) -> None:
    world = distributed.world_size()
    if tables.labeled is not None:
        check_labeled(len(tables.labeled.classes), config.classes_per_batch, config.images_per_class)
        if config.labeled_batch_size < world:
            raise ValueError(f"--labeled-batch-size {config.labeled_batch_size} is less than the {world} processes")
    if tables.unlabeled is not None:
        check_unlabeled(len(tables.unlabeled), config.queries_per_batch, config.num_neighbors)
        if config.unlabeled_batch_size < world:
            raise ValueError(f"--unlabeled-batch-size {config.unlabeled_batch_size} is less than the {world} processes")
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("--mixed-precision fp16 needs a GPU; use bf16 or no")


def _check_honest(config: TrainConfig) -> None:
    """
    Raises:
        ValueError: a benchmark's test split among the training data.
    """
    for name in ("labeled", "unlabeled"):
        for spec in (getattr(config, name) or "").split(","):
            benchmark = BENCHMARKS.get(spec.split(":")[0])
            if benchmark is not None and spec == benchmark.eval:
                raise ValueError(
                    f"--{name} {spec}: these are the pictures that results are measured on; train on others"
                )


def _file_name(spec: str) -> str:
    """A source as part of a folder name: data/birds/ -> birds, user/name:test -> name-test."""
    parts = [part.rstrip("/\\").replace("\\", "/").split("/")[-1] for part in spec.split(",")]
    return "+".join(part.replace(":", "-") for part in parts)
