"""Copies of benchmarks on the Hugging Face hub, brought into the protocol that the archive would have."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from stml_semi.data.benchmarks.archives import Row
from stml_semi.data.benchmarks.data_root import num_classes, wrong_counts
from stml_semi.data.benchmarks.facts import BENCHMARKS, HubCopy
from stml_semi.runtime.errors import BadInput, one_line

if TYPE_CHECKING:
    from datasets import Dataset

_PARTS = ("train", "test")


class Copy(NamedTuple):
    """A copy, downloaded."""

    splits: dict[str, list[Row]]
    """Rows of each split of the protocol; a path is `<split of the copy>/<row>`."""
    read: Callable[[Row], bytes]
    """The encoded image of a row."""


def open_copy(name: str) -> Copy:
    """Downloads the copy of a benchmark into the cache of `datasets`.

    Raises:
        BadInput: no copy is known, it cannot be had, or it is not what it should be.
    """
    known = BENCHMARKS[name].hub
    if known is None:
        raise BadInput(f"data prepare {name}: no trustworthy copy on the hub; give its archive with --source")
    parts = {part: _load(known, part) for part in _PARTS}
    splits: dict[str, list[Row]] = {part: [] for part in _PARTS}
    for part, dataset in parts.items():
        names = getattr(dataset.features[known.label], "names", None)
        for row, label in enumerate(dataset[known.label]):
            split = part if not known.train_classes else _PARTS[int(label) >= known.train_classes]
            text = str(label) if names is None else names[label]
            if names is not None and not text[:3].isdigit():
                text = f"{label + 1:03d} {text}"  # As the archives of Cars are read; CUB's names are numbered.
            splits[split].append(Row(f"{part}/{row:06d}", text))
    for split, rows in splits.items():
        if problem := wrong_counts(name, split, len(rows), num_classes(rows), None):
            raise BadInput(f"--source hub: {problem}; {known.id} has changed, use the official archive")
        rows.sort(key=lambda row: row.label)  # Class by class, like an archive.

    def read(row: Row) -> bytes:
        part, _, place = row.path.partition("/")
        return parts[part][int(place)]["image"]["bytes"]

    return Copy(splits, read)


def _load(known: HubCopy, part: str) -> "Dataset":
    import datasets

    try:
        dataset = datasets.load_dataset(known.id, revision=known.revision, split=part)
    except Exception as error:
        problem = one_line(error)
        raise BadInput(f"--source hub: {known.id}: {problem}; go online, or use the official archive") from None
    assert isinstance(dataset, datasets.Dataset)
    for column in ("image", known.label):
        if column not in dataset.features:
            raise BadInput(f"--source hub: {known.id} lacks a column '{column}'; use the official archive")
    return dataset.select_columns(["image", known.label]).cast_column("image", datasets.Image(decode=False))
