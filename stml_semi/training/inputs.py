"""What is done to the pictures of a run before it starts: images of tested classes are dropped, caches are built."""

import numpy as np

from stml_semi.config import TrainConfig
from stml_semi.data.batches.loading import default_num_workers
from stml_semi.data.image_table import ImageTable
from stml_semi.data.overlap import Dropped, find_by_class, find_by_picture, without
from stml_semi.data.picture_cache import cached
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.progress import Counter
from stml_semi.training.survey import Tables


def overlapping_classes(config: TrainConfig, tables: Tables, folder: RunFolder) -> list[Dropped]:
    """Unlabeled images of classes that are evaluated on; or all that a run dropped that is resumed.

    Raises:
        BadInput: the unlabeled images cannot be looked through.
    """
    if not isinstance(tables.unlabeled, ImageTable):
        raise BadInput("--exclude-overlap looks through all unlabeled images first, and a stream has no end: drop it")
    assert tables.evaluation is not None
    listed = folder.read_overlap() if config.resume else None
    if listed is not None:
        return listed
    return find_by_class(
        tables.unlabeled,
        tables.evaluation,
        image_column=config.unlabeled_image_column,
        data_root=config.data_root,
    )


def exclude_overlap(config: TrainConfig, tables: Tables, found: list[Dropped], folder: RunFolder) -> Tables:
    """Takes what was found by class out of the unlabeled images, and near-duplicates of evaluated ones.

    All processes call this together. A dry run does not look at pictures, and a resumed run drops what it dropped.
    """
    table, evaluation = tables.unlabeled, tables.evaluation
    assert isinstance(table, ImageTable)
    assert evaluation is not None
    resumed = config.resume and folder.read_overlap() is not None
    if not resumed and not config.dry_run:
        rest = np.setdiff1d(np.arange(len(table)), [one.row for one in found])
        with Counter("looking for overlap", len(rest) + len(evaluation), enabled=distributed.rank() == 0) as counter:
            near = find_by_picture(table, evaluation, rest, num_workers=_num_workers(config), progress=counter.advance)
        found = sorted([*found, *near])
    return restore_excluded(tables, found)


def restore_excluded(tables: Tables, dropped: list[Dropped] | None) -> Tables:
    """The tables without images that were dropped.

    Raises:
        BadInput: they are not those of the unlabeled source.
    """
    if dropped is None or not isinstance(tables.unlabeled, ImageTable):
        return tables
    return tables._replace(unlabeled=without(tables.unlabeled, dropped), excluded=tuple(dropped))


def describe_excluded(tables: Tables) -> str:
    """How many images were dropped, and why."""
    dropped = tables.excluded or ()
    assert isinstance(tables.unlabeled, ImageTable)
    by_class = [one.test_class for one in dropped if one.test_class]
    return (
        f"{len(dropped):,} of {len(tables.unlabeled) + len(dropped):,} unlabeled images are left out: "
        f"{len(by_class):,} of {len(set(by_class)):,} classes that are evaluated on, "
        f"{len(dropped) - len(by_class):,} near-duplicates of evaluated images"
    )


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
            kept = cached(table, form, side, num_workers=_num_workers(config), progress=counter.advance)
        tables = tables._replace(**{kind: kept})
    return tables


def _num_workers(config: TrainConfig) -> int:
    if config.num_workers is None:
        return default_num_workers(distributed.local_world_size())
    return config.num_workers
