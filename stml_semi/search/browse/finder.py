"""What the browse page asks: neighbors of an uploaded image or of a row, and small images of rows."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stml_semi.data.images import BadImage, read_image
from stml_semi.data.thumbnails import Thumbnail, thumbnail
from stml_semi.runtime.errors import one_line
from stml_semi.search.index import Index, Part
from stml_semi.search.nearest import nearest_rows
from stml_semi.search.query import Hit, indexed_source, name_hits, open_indexed, open_model

MAX_BYTES = 20 * 2**20
"""Of an upload."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Uploads that are decoded: what browsers and cameras write."""
_MOST_DECODED = 350_000_000
"""Bytes that an upload may take while it is decoded: 50 million pixels of most kinds."""
_DECODED_AT_ONCE = min(4, os.cpu_count() or 1)
"""Images: each may take as much memory as all the rest."""
_SIDE = 256
_SAMPLES = 12
MOST_NEIGHBORS = 200
"""That a page asks for."""
MOST_AVERAGED = 20
"""Images of a query."""
_MOST_BYTES_IN_MEMORY = 2 * 2**30


class ShownHit(NamedTuple):
    """A neighbor, as the page shows it."""

    row: int
    name: str
    """The last parts of its path: the page need not tell how the disk is laid out."""
    similarity: float
    """Cosine."""


class Finder:
    """An index with its model and images. Requests come from several threads; one at a time computes."""

    def __init__(self, folder: str, model: str | None, *, k: int) -> None:
        """
        Args:
            folder: the index.
            model: default: the one that made the index.
            k: neighbors per query.

        Raises:
            BadInput: no index, or another model than the index's.
        """
        self.index = Index.open(folder)
        self.k = k
        self.retriever = open_model(self.index, model)
        self.table = open_indexed(self.index)
        self.classes = self.table.classes if self.table is not None and self.table.labels is not None else ()
        self._lock = threading.Lock()
        self._decoders = threading.BoundedSemaphore(_DECODED_AT_ONCE)
        info = self.index.info
        small = 4 * info.num_rows * info.num_features <= _MOST_BYTES_IN_MEMORY
        self._parts = list(self.index.parts()) if small else None

    @property
    def title(self) -> str:
        """What is searched, in a few words."""
        return f"{PurePath(self.index.info.data).name}, {self.index.info.num_rows:,} images"

    @property
    def samples(self) -> list[int]:
        """Rows to start from, evenly spaced, of a large index from its first part; [] if the images are gone."""
        if self.table is None:
            return []
        rows = np.concatenate([part.rows for part in self._parts or [self.index.part(0)]])
        return rows[np.unique(np.linspace(0, len(rows) - 1, _SAMPLES).astype(int))].tolist() if len(rows) else []

    def by_picture(
        self, data: bytes, rows: Sequence[int] = (), k: int | None = None, label: int | None = None
    ) -> list[ShownHit]:
        """Neighbors of an uploaded image, or of its mean with rows of the index, which are left out.

        Args:
            data: the encoded image.
            rows: of the index.
            k: how many; default: as the finder was made for.
            label: number of the class that neighbors are of; None: of any.

        Raises:
            BadImage: it is of no known format, damaged, or too large.
            LookupError, BadInput: as `by_rows`.
        """
        try:
            with self._decoders:
                picture = read_image({"bytes": data, "path": None}, formats=FORMATS, most=_MOST_DECODED)
        except BadImage as error:
            raise BadImage(f"{error}; this page takes {', '.join(FORMATS)}") from None
        with self._lock:
            own = torch.from_numpy(self.retriever.encode([picture]))
            return self._nearest([*own, *self._embeddings(rows)], rows, k, label)

    def by_rows(self, rows: Sequence[int], k: int | None = None, label: int | None = None) -> list[ShownHit]:
        """Neighbors of a row of the index, or of the mean of several; themselves left out.

        Args:
            rows: of the index; at least one.
            k: as of `by_picture`.
            label: as of `by_picture`.

        Raises:
            LookupError: no such row, or its image could not be read when the index was made.
            BadInput: the index is damaged.
        """
        with self._lock:
            return self._nearest(self._embeddings(rows), rows, k, label)

    def thumbnail(self, row: int) -> Thumbnail:
        """A row's image, made small.

        Raises:
            LookupError: no such row, or its image cannot be read (any more).
        """
        if self.table is None or not 0 <= row < len(self.table):
            raise LookupError(f"no image of row {row}")
        try:
            with self._lock:
                source = indexed_source(self.index, self.table, row)
            with self._decoders:
                return thumbnail(source, _SIDE)
        except (BadImage, OSError) as error:  # OSError: a table whose file is gone.
            raise LookupError(f"the image of row {row} cannot be read ({one_line(error)})") from None

    def _embeddings(self, rows: Sequence[int]) -> list[Tensor]:
        found = self.index.find(rows)
        for row in rows:
            if row not in found:
                reason = ": its image could not be read" if row < self.index.info.num_rows else ""
                raise LookupError(f"the index has no row {row}{reason}")
        return [found[row].embedding for row in rows]

    def _nearest(
        self, queries: Sequence[Tensor], own: Sequence[int], k: int | None, label: int | None
    ) -> list[ShownHit]:
        parts = self.index.parts() if self._parts is None else self._parts
        if label is not None:
            if not 0 <= label < len(self.classes):
                raise LookupError(f"there is no class {label}")
            parts = self._of_class(parts, label)
        mean, count = F.normalize(torch.stack([*queries]).mean(0, keepdim=True)), k or self.k
        (near,) = nearest_rows(parts, mean, torch.tensor([-1]), count + len(own))
        (hits,) = name_hits(self.index, [[one for one in near if one.row not in own][:count]])
        return [_shown(hit) for hit in hits]

    def _of_class(self, parts: Iterable[Part], label: int) -> Iterator[Part]:
        assert self.table is not None
        assert self.table.labels is not None
        for part in parts:
            kept: list[int] = np.flatnonzero(self.table.labels[part.rows] == label).tolist()
            if kept:
                yield Part(part.embeddings[kept], part.rows[kept])


def _shown(hit: Hit) -> ShownHit:
    return ShownHit(hit.row, "/".join(PurePath(hit.image).parts[-2:]), hit.similarity)
