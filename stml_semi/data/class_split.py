"""Train and test by classes: what makes any labeled source give an honest retrieval figure."""

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stml_semi.data.image_table import ImageTable
from stml_semi.runtime.errors import BadInput

# Keeps this draw apart from others with the same seed.
_STREAM = 0x5C1A55
_TRAIN = " (train classes)"


class ClassSplit(NamedTuple):
    """Two tables that share no class."""

    train: ImageTable
    kept: ImageTable


def split_by_classes(
    table: ImageTable, share: float, seed: int, kind: Literal["test", "validation"] = "test"
) -> ClassSplit:
    """Keeps a share of the classes for evaluation. The draw depends on seed and class names alone, not on the images.

    Args:
        table: with labels.
        share: of the classes, 0..1; at least two are kept on either side.
        seed: of the draw.
        kind: what they are kept for, "test" or "validation".

    Raises:
        BadInput: fewer than four classes, or no kept one has two images, so that there is nothing to find.
    """
    assert table.labels is not None
    count, instead = len(table.classes), ", or name other images with --eval" if kind == "test" else ""
    if count < 4:
        raise BadInput(
            f"--{kind}-classes {share}: {table.name} has {count} classes, two to train on and two to evaluate on are "
            f"the least; leave it out{instead}"
        )
    num_kept = min(max(round(share * count), 2), count - 2)
    chosen = np.sort(np.random.default_rng([seed, _STREAM]).permutation(count)[:num_kept])
    is_kept = np.isin(table.labels, chosen)
    if np.bincount(table.labels[is_kept]).max() < 2:
        raise BadInput(
            f"--{kind}-classes {share}: none of the {num_kept} classes kept for evaluation has two images, so there is "
            f"nothing to find; raise it{instead}"
        )
    train = _part(table, np.setdiff1d(np.arange(count), chosen), np.flatnonzero(~is_kept))
    kept = _part(table, chosen, np.flatnonzero(is_kept))
    source = table.name.removesuffix(_TRAIN)
    return ClassSplit(
        replace(train, name=source + _TRAIN) if kind == "test" else train,
        replace(kept, name=f"{source} ({kind} classes)"),
    )


def _part(table: ImageTable, classes: NDArray[np.int64], rows: NDArray[np.int64]) -> ImageTable:
    assert table.labels is not None
    return replace(
        table,
        images=table.images.select(rows),
        labels=np.searchsorted(classes, table.labels[rows]).astype(np.int64),
        classes=tuple(table.classes[i] for i in classes),
        queries=None,
        rows=rows if table.rows is None else table.rows[rows],
    )


def with_gallery(queries: ImageTable, gallery: ImageTable) -> ImageTable:
    """One table whose queries are the images of the first and whose gallery are those of the second.

    Classes are the same where their names are.

    Raises:
        BadInput: one of them is split into queries and gallery already, or they share no class.
    """
    from datasets import concatenate_datasets

    assert queries.labels is not None
    assert gallery.labels is not None
    for flag, table in (("--data", queries), ("--gallery", gallery)):
        if table.queries is not None:
            raise BadInput(f"{flag} {table.name}: says itself which images are looked up in which; drop --gallery")
    if not set(queries.classes) & set(gallery.classes):
        raise BadInput(
            f"--gallery {gallery.name}: has no class of --data {queries.name} ({gallery.classes[0]}, ... but not "
            f"{queries.classes[0]}, ...); classes are compared by name"
        )
    classes = tuple(sorted({*queries.classes, *gallery.classes}))
    place = {name: number for number, name in enumerate(classes)}
    labels = [np.array([place[name] for name in table.classes])[table.labels] for table in (queries, gallery)]
    first = queries.parts or ((queries.name, 0),)
    second = [(name, start + len(queries)) for name, start in gallery.parts or ((gallery.name, 0),)]
    return ImageTable(
        f"{queries.name} in {gallery.name}",
        concatenate_datasets([queries.images, gallery.images]),
        np.concatenate(labels),
        classes,
        queries.recall_at,
        parts=(*first, *second),
        queries=np.arange(len(queries) + len(gallery)) < len(queries),
        skipped=(*queries.skipped, *gallery.skipped),
    )
