"""The images of a run: opened, divided by classes, without what they share with the evaluation, cached."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from stml_semi.config import TrainConfig
from stml_semi.data.batches.live_images import num_live
from stml_semi.data.batches.plan import check_labeled, check_unlabeled
from stml_semi.data.class_split import split_by_classes
from stml_semi.data.evaluated import EvaluatedImages
from stml_semi.data.image_table import ImageTable
from stml_semi.data.overlap import ExcludedImage, count_evaluated, find_by_class, find_by_picture, without
from stml_semi.data.picture_cache import cached
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.sources.open_unlabeled import open_unlabeled
from stml_semi.data.sources.streams import ImageStream
from stml_semi.data.workers import resolve_num_workers
from stml_semi.losses.proxy import PYTHON, LabeledLoss
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.progress import Counter


class Tables(NamedTuple):
    """The images of a run; labeled or unlabeled ones may be missing, not both."""

    labeled: ImageTable | None
    unlabeled: ImageTable | ImageStream | None
    evaluation: ImageTable | None
    recall_at: tuple[int, ...]
    excluded: tuple[ExcludedImage, ...] | None = None
    """Unlabeled images that are left out because of the evaluation; None if there was nothing to compare."""
    classes_compared: bool = False
    """Whether --exclude-overlap also left out images by class and by likeness."""
    validation: ImageTable | None = None
    """Of classes that are kept to choose the exported step by."""


def open_tables(config: TrainConfig) -> Tables:
    """Opens the sources of a configuration.

    Raises:
        BadInput: naming the flag and the fix.
    """
    labeled, evaluation, validation = open_labeled(config)
    if evaluation is None:
        evaluation = _open_with_labels(config, "eval")
    unlabeled = None
    if config.unlabeled:
        unlabeled = open_unlabeled(
            config.unlabeled,
            stream=config.unlabeled_stream,
            image_column=config.unlabeled_image_column,
            label_column=config.unlabeled_label_column,
            data_root=config.data_root,
            seed=config.seed,
            allow_urls=config.allow_urls,
        )
    scored = evaluation or validation
    return Tables(labeled, unlabeled, evaluation, scored.recall_at if scored else (), validation=validation)


def open_labeled(config: TrainConfig) -> tuple[ImageTable | None, ImageTable | None, ImageTable | None]:
    """The labeled images that a run trains on, and those of classes that it keeps for tests and for validation.

    Raises:
        BadInput: as `open_tables`.
    """
    labeled, test, validation = _open_with_labels(config, "labeled"), None, None
    if labeled is not None and config.test_classes:
        labeled, test = split_by_classes(labeled, config.test_classes, config.seed)
    if labeled is not None and config.validation_classes:
        labeled, validation = split_by_classes(labeled, config.validation_classes, config.seed, "validation")
    return labeled, test, validation


def _open_with_labels(config: TrainConfig, name: str) -> ImageTable | None:
    spec = getattr(config, name)
    if not spec:
        return None
    return open_source(
        spec,
        flag=f"--{name}",
        labels="required",
        image_column=getattr(config, f"{name}_image_column"),
        label_column=getattr(config, f"{name}_label_column"),
        data_root=config.data_root,
    )


def kept_classes(config: TrainConfig, tables: Tables) -> dict[str, list[str]]:
    """Names of the classes of --labeled that the run does not train on, by what they are for: test, validation."""
    test = tables.evaluation if config.test_classes else None
    kept = {"test": test, "validation": tables.validation}
    return {kind: list(table.classes) for kind, table in kept.items() if table is not None}


# ------------------------------------------------------------------ sizes


def check_sizes(config: TrainConfig, tables: Tables) -> None:
    """
    Raises:
        BadInput: fewer classes or images than a batch draws, or an evaluation without anything to find.
    """
    check_labeled_size(config, tables)
    check_unlabeled_size(config, tables)
    if tables.evaluation is not None:
        assert tables.evaluation.labels is not None
        if np.bincount(tables.evaluation.labels).max() < 2:
            raise BadInput(f"--eval {tables.evaluation.name}: no class has two images, so there is nothing to find")


def check_labeled_size(config: TrainConfig, tables: Tables) -> None:
    """
    Raises:
        BadInput: fewer classes than a batch draws, fewer rows than processes, or no loss of the name.
    """
    if tables.labeled is None:
        return
    check_labeled(len(tables.labeled.classes), config.classes_per_batch, config.images_per_class)
    if not config.labeled_loss.startswith(PYTHON):
        LabeledLoss(config.labeled_loss, num_classes=2, embedding_dim=2)
    _check_share("--labeled-batch-size", config.labeled_batch_size)


def check_unlabeled_size(config: TrainConfig, tables: Tables) -> None:
    """
    Raises:
        BadInput: fewer images than a batch draws, or fewer rows than processes.
    """
    if tables.unlabeled is None:
        return
    check_unlabeled(num_live(tables.unlabeled, config.live_images), config.queries_per_batch, config.num_neighbors)
    _check_share("--unlabeled-batch-size", config.unlabeled_batch_size)


def _check_share(flag: str, size: int) -> None:
    if size < distributed.world_size():
        raise BadInput(f"{flag} {size} is less than the {distributed.world_size()} processes")


# ------------------------------------------------------------------ overlap with the evaluation


def scored_tables(tables: Tables) -> list[ImageTable]:
    """What the run evaluates and validates on."""
    return [table for table in (tables.evaluation, tables.validation) if table is not None]


def find_evaluated(tables: Tables) -> list[ExcludedImage] | None:
    """Unlabeled images that are evaluated or validated on; all processes call this together.

    None where there is nothing to compare, or a stream, which compares what it reads.
    """
    scored = scored_tables(tables)
    if not scored or not isinstance(tables.unlabeled, ImageTable):
        return None
    return EvaluatedImages(scored).find(tables.unlabeled)


def overlap_by_class(config: TrainConfig, tables: Tables) -> list[ExcludedImage]:
    """Unlabeled images of classes that are evaluated on.

    Raises:
        BadInput: the unlabeled images cannot be looked through.
    """
    if not isinstance(tables.unlabeled, ImageTable):
        raise BadInput("--exclude-overlap looks through all unlabeled images first, and a stream has no end: drop it")
    assert tables.evaluation is not None
    return find_by_class(
        tables.unlabeled, tables.evaluation, image_column=config.unlabeled_image_column, data_root=config.data_root
    )


def overlap_by_image(config: TrainConfig, tables: Tables, found: list[ExcludedImage]) -> list[ExcludedImage]:
    """Near-duplicates of evaluated images among the unlabeled ones. All processes call this together.

    Args:
        config: of the run.
        tables: of the run.
        found: excluded already; these are not compared.
    """
    table, evaluation = tables.unlabeled, tables.evaluation
    assert isinstance(table, ImageTable)
    assert evaluation is not None
    rest = np.setdiff1d(np.arange(len(table)), [one.row for one in found])
    with Counter("looking for overlap", len(rest) + len(evaluation), enabled=distributed.rank() == 0) as counter:
        workers = resolve_num_workers(config.num_workers)
        return find_by_picture(table, evaluation, rest, num_workers=workers, progress=counter.advance)


def exclude(config: TrainConfig, tables: Tables, excluded: list[ExcludedImage] | None) -> Tables:
    """The tables without the unlabeled images that were listed; as they are if nobody looked.

    Raises:
        BadInput: they are not those of the unlabeled source, or nothing is left of it.
    """
    if excluded is None or not isinstance(tables.unlabeled, ImageTable):
        return tables
    if len(excluded) == len(tables.unlabeled):
        raise BadInput(
            f"--unlabeled {tables.unlabeled.name}: the run is evaluated on all of its {len(excluded)} images, and none "
            f"of those is trained on; name other images with --unlabeled or --eval"
        )
    left = without(tables.unlabeled, excluded)
    return tables._replace(unlabeled=left, excluded=tuple(excluded), classes_compared=config.exclude_overlap)


def describe_excluded(tables: Tables) -> str:
    """How many images were excluded, and why."""
    excluded = tables.excluded or ()
    assert isinstance(tables.unlabeled, ImageTable)
    by_class = [one.test_class for one in excluded if one.test_class]
    same = count_evaluated(excluded)
    near = len(excluded) - len(by_class) - same
    reasons = [f"{same:,} that are evaluated on"] if same else []
    if tables.classes_compared:
        reasons.append(f"{len(by_class):,} of {len(set(by_class)):,} classes that are evaluated on")
        reasons.append(f"{near:,} near-duplicates of evaluated images")
    total = len(tables.unlabeled) + len(excluded)
    return f"{len(excluded):,} of {total:,} unlabeled images are left out: {', '.join(reasons)}"


def share_of_labeled(tables: Tables) -> float:
    """Share of the unlabeled images that are labeled ones too, of up to 500 of them; 0 of a stream.

    All processes call this together.
    """
    table = tables.unlabeled
    if tables.labeled is None or not isinstance(table, ImageTable):
        return 0.0
    some = np.unique(np.linspace(0, len(table) - 1, 500).astype(np.int64))
    sample = replace(table, images=table.images.select(some), labels=None, rows=some, queries=None, cache=None)
    return len(EvaluatedImages([tables.labeled]).find(sample)) / len(some)


# ------------------------------------------------------------------ cache


def cache_tables(config: TrainConfig, tables: Tables, size: tuple[int, int]) -> Tables:
    """The tables with their training images in a cache; evaluation reads the originals.

    All processes call this together.

    Args:
        config: of the run.
        tables: of the run.
        size: height and width of views.

    Raises:
        BadInput: the cache cannot be written.
    """
    form, side = config.cache_images, config.cache_side or 2 * max(size)
    if form == "none":
        return tables
    for kind in ("labeled", "unlabeled"):
        table = getattr(tables, kind)
        if table is None:
            continue
        if not isinstance(table, ImageTable):
            raise BadInput("--cache-images keeps every image, and --unlabeled is a stream: drop one of the two")
        with Counter(f"caching {kind} images", len(table), enabled=distributed.rank() == 0) as counter:
            workers = resolve_num_workers(config.num_workers)
            kept = cached(table, form, side, num_workers=workers, progress=counter.advance)
        tables = tables._replace(**{kind: kept})
    return tables
