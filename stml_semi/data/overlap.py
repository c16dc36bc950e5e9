"""`--exclude-overlap`: unlabeled images of classes that are evaluated on, and near-duplicates of evaluated images.

Classes are compared by name, where both sides have names. Images are compared by a perceptual hash: the signs, against
their median, of the 16 x 16 lowest frequencies of the image in 64 x 64 gray levels (Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010, with 256 bits instead of 64).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from stml_semi.data.benchmarks.class_names import plain_car, plain_name
from stml_semi.data.benchmarks.facts import benchmark_of
from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, read_image
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.workers import decode_ahead
from stml_semi.neighbors import nearest_neighbors
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput

_LOOKS_LIKE = "looks like"
MAX_DISTANCE = 24
"""Bits, of 256, in which the hashes of near-duplicates differ at most."""
_BITS = 256
_GRAY_SIDE = 64
_CHUNK_ROWS = 128
_QUERIES = 2**16


class ExcludedImage(NamedTuple):
    """An unlabeled image that is not used: a line of overlap.jsonl."""

    row: int
    image: str
    source: str
    """Name of the source it is of, where several were joined."""
    test_class: str
    """Name of the class, if that is why."""
    reason: str


def count_evaluated(excluded: Sequence[ExcludedImage]) -> int:
    """How many are the very images that are evaluated on, rather than of their classes or like them."""
    return sum(not one.test_class and not one.reason.startswith(_LOOKS_LIKE) for one in excluded)


def without(table: ImageTable, dropped: list[ExcludedImage]) -> ImageTable:
    """The table without some of its rows.

    Raises:
        BadInput: the rows are not those of this table.
    """
    rows = np.array([one.row for one in dropped], dtype=np.int64)
    if len(rows) and (rows.max() >= len(table) or any(table.describe(one.row) != one.image for one in dropped[:100])):
        raise BadInput("--unlabeled has other images than when overlap.jsonl was written; bring the old ones back")
    kept = np.setdiff1d(np.arange(len(table)), rows)
    labels = None if table.labels is None else table.labels[kept]
    return replace(table, images=table.images.select(kept), labels=labels, rows=kept)


def find_by_class(
    table: ImageTable, evaluation: ImageTable, *, image_column: str | None, data_root: str | None
) -> list[ExcludedImage]:
    """Images whose source says that they are of a class that is evaluated on, by row.

    Args:
        table: unlabeled images.
        evaluation: with labels.
        image_column: of the unlabeled sources.
        data_root: of the benchmarks.
    """
    tested = benchmark_of(evaluation.name)
    plain: Callable[[str], str] = plain_car if tested and tested.name == "cars" else plain_name
    wanted = {plain(name): name for name in evaluation.classes}
    wanted.pop("", None)
    dropped = []
    parts = table.parts or ((table.name, 0),)
    stops = [*(start for _, start in parts[1:]), len(table)]
    for (name, start), stop in zip(parts, stops, strict=True):
        own = open_source(name, flag="--unlabeled", labels="optional", image_column=image_column, data_root=data_root)
        if own.labels is None or name == evaluation.name:
            continue
        hits = [wanted.get(plain(one)) for one in own.classes]
        of_path = None
        if own.describe(0) == _path(own, 0):  # Folders may be listed in another order where classes are asked for.
            of_path = {own.describe(row): hits[own.labels[row]] for row in range(len(own)) if hits[own.labels[row]]}
        for row in range(start, stop):
            image = table.describe(row)
            found = of_path.get(image) if of_path is not None else hits[own.labels[row - start]]
            if found:
                dropped.append(ExcludedImage(row, image, name, found, f"is of class {found}"))
    return dropped


def _path(table: ImageTable, row: int) -> str | None:
    source = table.source(row)
    return source["path"] if source["bytes"] is None else None


class Fingerprints(NamedTuple):
    """What images are compared by."""

    bits: NDArray[np.uint8]
    """(N, 32) perceptual hashes, packed."""
    readable: NDArray[np.bool_]
    """(N,)"""


def perceptual_hash(image: Image.Image) -> NDArray[np.uint8]:
    """(32,) uint8: 256 bits, packed."""
    from scipy.fft import dctn

    gray = image.convert("L").resize((_GRAY_SIDE, _GRAY_SIDE), Image.Resampling.BILINEAR)
    frequencies = np.asarray(dctn(np.asarray(gray, dtype=np.float64), norm="ortho"))
    low = frequencies[:16, :16].round(6)
    return np.packbits(low > np.median(low))


def find_by_picture(
    table: ImageTable,
    evaluation: ImageTable,
    rows: NDArray[np.int64],
    *,
    num_workers: int,
    progress: Callable[[int], None] | None = None,
) -> list[ExcludedImage]:
    """Images that are near-duplicates of evaluated ones. All processes call this together and get the same.

    Mirrored, turned and strongly cropped copies are not found.

    Args:
        table: unlabeled images.
        evaluation: images.
        rows: of the unlabeled ones, those to be compared.
        num_workers: processes that decode, for each of those that train.
        progress: called with the number of images done since the last call.
    """
    theirs = _fingerprints(evaluation, np.arange(len(evaluation)), num_workers, progress)
    ours = _fingerprints(table, rows, num_workers, progress)
    gallery_rows = np.flatnonzero(theirs.readable)
    gallery = _signs(theirs.bits[gallery_rows])
    own = distributed.share(len(rows), rank=distributed.rank(), world_size=distributed.world_size())
    dropped = []
    for start in range(own.start, own.stop, _QUERIES):
        part = slice(start, min(start + _QUERIES, own.stop))
        distances, nearest = np.full(len(rows[part]), _BITS), np.zeros(len(rows[part]), dtype=np.int64)
        if len(gallery):
            found = nearest_neighbors(gallery, 1, queries=_signs(ours.bits[part]))
            distances = ((1 - found.similarities[:, 0]) * (_BITS / 2)).round().numpy()
            nearest = gallery_rows[found.indices[:, 0].numpy()]
        for i, row in enumerate(rows[part].tolist()):
            if ours.readable[start + i] and distances[i] <= MAX_DISTANCE:
                about = f"{distances[i]:.0f} of {_BITS} bits differ"
                reason = f"{_LOOKS_LIKE} {evaluation.describe(int(nearest[i]))} ({about})"
                dropped.append(ExcludedImage(row, table.describe(row), source_of(table, row), "", reason))
    return [image for found in distributed.gather_objects(dropped) for image in found]


def source_of(table: ImageTable, row: int) -> str:
    """Name of the source that a row is of."""
    return next((name for name, start in reversed(table.parts) if start <= row), table.name)


def _signs(bits: NDArray[np.uint8]) -> Tensor:
    """(N, 32) packed -> (N, 256) of -1 and 1: their cosine counts the bits that agree."""
    return torch.from_numpy(np.unpackbits(bits, axis=1)).float().mul_(2).sub_(1)


def _fingerprints(
    table: ImageTable, rows: NDArray[np.int64], num_workers: int, progress: Callable[[int], None] | None
) -> Fingerprints:
    """Fingerprints of rows; each process looks at its share, and all get the whole."""
    world = distributed.world_size()
    own = rows[distributed.share(len(rows), rank=distributed.rank(), world_size=world)]
    found = []
    for prints in decode_ahead(_FingerprintChunks(table, own), num_workers=num_workers):
        found.append(prints)
        if progress is not None:
            progress(len(prints.readable) * world)
    empty = Fingerprints(np.empty((0, 32), np.uint8), np.empty(0, bool))
    gathered = [prints for part in distributed.gather_objects(found) for prints in part]
    return Fingerprints(*(np.concatenate(parts) for parts in zip(empty, *gathered, strict=True)))


class _FingerprintChunks(Dataset[Fingerprints]):
    """Item i is the prints of the i-th chunk of rows."""

    def __init__(self, table: ImageTable, rows: NDArray[np.int64]) -> None:
        self.table = table
        self.chunks = [rows[start : start + _CHUNK_ROWS] for start in range(0, len(rows), _CHUNK_ROWS)]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, item: int) -> Fingerprints:
        rows = self.chunks[item]
        count = len(rows)
        prints = Fingerprints(np.zeros((count, 32), np.uint8), np.ones(count, bool))
        for i, row in enumerate(rows):
            try:
                source = self.table.source(int(row))
                prints.bits[i] = perceptual_hash(read_image(source, enough=lambda *sides: min(sides) >= _GRAY_SIDE))
            except BadImage:
                prints.readable[i] = False
        return prints
