"""`groups`: what is in a pool, as groups of images that show the same thing, with and without a name."""

import csv
import io
from collections import Counter as Tally
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.curation.coverage import survey
from stml_semi.curation.pool import embed_labeled, nearest_classes, whole_index
from stml_semi.curation.propagation import propagate
from stml_semi.data.sources.objects import Source
from stml_semi.metrics import GroupAccuracy, group_accuracy
from stml_semi.runtime import distributed
from stml_semi.runtime.names import to_utf8
from stml_semi.runtime.progress import Counter
from stml_semi.search.index import Index


class ImageGroup(NamedTuple):
    """Images that probably show the same thing."""

    name: str
    """The class that most of its labeled images have; "" for a new thing, of which none is labeled."""
    nearest_class: str
    """Of the labeled images, by the mean of its embeddings; "" without labels."""
    cosine: float
    """Of both means."""
    rows: list[int]
    """Of the index, the most typical first."""
    images: list[str]
    cosines: list[float]
    """To the mean of the group."""


class Groups(NamedTuple):
    """What is in a pool."""

    groups: list[ImageGroup]
    """Largest first."""
    num_images: int
    """Readable ones of the index."""
    num_alone: int
    """Images in smaller groups, which are left out."""
    classes: list[str]
    """Of the labeled images."""
    accuracy: GroupAccuracy | None = None
    """Of all groups, small ones too, where the images of the index have labels themselves."""


def find_groups(
    folder: str,
    labeled: Source = None,
    *,
    least: int = 3,
    model: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    data_root: str | None = None,
    batch_size: int = 256,
    num_workers: int | None = None,
) -> Groups:
    """Groups the images of an index; how many groups there are follows from the images.

    All embeddings of the index are in memory; time grows with the square of the images, as of exact search.

    Args:
        folder: the index.
        labeled: images with labels, as `stml_semi.train` takes them. They are grouped with the others, and give names.
        least: images of a group.
        model: default: the one that made the index.
        image_column: of the labeled images.
        label_column: of the labeled images.
        data_root: where benchmarks are.
        batch_size: images per forward pass.
        num_workers: decoding processes.

    Raises:
        BadInput: no index, an empty one, another model than its own, or no labeled image that can be read.
    """
    index = Index.open(folder)
    embeddings, rows = whole_index(index)
    known = embed_labeled(
        index,
        labeled,
        model=model,
        image_column=image_column,
        label_column=label_column,
        data_root=data_root,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    everything = torch.cat([embeddings, known.embeddings])
    with Counter("compare", len(everything), enabled=distributed.rank() == 0) as counter:
        near = survey(everything, counter.advance)
    number = propagate(near)
    own, labels = number[: len(rows)], number[len(rows) :]
    names = names_of(labels, known.labels)
    found = [_typical(near.unit, members) for members in _members(own) if len(members) >= least]
    means = [F.normalize(embeddings[members].mean(0), dim=0) for members, _ in found]
    nearest = nearest_classes(torch.stack(means), known) if means else []
    named = index.images(rows[np.concatenate([members for members, _ in found])].tolist()) if found else {}
    groups = [
        ImageGroup(
            known.classes[names[group]] if (group := int(own[members[0]])) in names else "",
            nearest_class,
            cosine,
            rows[members].tolist(),
            [named[row] for row in rows[members].tolist()],
            cosines,
        )
        for (members, cosines), (nearest_class, cosine) in zip(found, nearest, strict=True)
    ]
    groups.sort(key=lambda group: (-len(group.rows), group.rows[0]))
    alone = len(rows) - sum(len(group.rows) for group in groups)
    return Groups(groups, len(rows), alone, [*known.classes], _accuracy(index, rows, own, known.classes))


def _accuracy(
    index: Index, rows: NDArray[np.int64], groups: NDArray[np.int64], known: Sequence[str]
) -> GroupAccuracy | None:
    """Against the labels that the index has; None unless all of its images have one."""
    labels = index.labels()
    if len(labels) < len(rows):
        return None
    names, classes = np.unique([labels[row] for row in rows.tolist()], return_inverse=True)
    old = torch.from_numpy(np.isin(names, known)[classes])
    return group_accuracy(torch.from_numpy(groups), torch.from_numpy(classes), old)


def names_of(groups: NDArray[np.int64], labels: Tensor) -> dict[int, int]:
    """The class of each group that has one: of most of its labeled images, if they are enough of this class.

    A single image of a class may stray into any group; two, and a fifth of those of its class, hardly do.

    Args:
        groups: (m,) of the labeled images.
        labels: (m,) their classes.
    """
    sizes = labels.bincount().tolist()
    tallies: dict[int, Tally[int]] = {}
    for group, label in zip(groups.tolist(), labels.tolist(), strict=True):
        tallies.setdefault(group, Tally())[label] += 1
    most = {group: tally.most_common(1)[0] for group, tally in tallies.items()}
    return {group: label for group, (label, n) in most.items() if n >= max(min(2, sizes[label]), 0.2 * sizes[label])}


def _members(groups: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Places of the images of each group."""
    order = groups.argsort(kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def _typical(unit: Tensor, members: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[float]]:
    """Members of a group and their cosines to its mean, highest first."""
    own = unit[members]
    cosines = own @ F.normalize(own.mean(0), dim=0)
    order = cosines.argsort(descending=True, stable=True)
    return members[order.numpy()], cosines[order].tolist()


def as_csv(found: Groups) -> str:
    """A line for each image of a group: its row, the group's number and name, and how typical it is."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "row", "group", "name", "nearest_class", "cosine"])
    for number, group in enumerate(found.groups, 1):
        for row, image, cosine in zip(group.rows, group.images, group.cosines, strict=True):
            writer.writerow([to_utf8(image), row, number, group.name, group.nearest_class, f"{cosine:.6f}"])
    return text.getvalue()
