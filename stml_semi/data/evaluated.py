"""What a run is scored on stays out of its pool: the same file, the same row, the same bytes.

Reading a whole collection to compare bytes would take as long as an epoch. Files of different sizes differ: sizes come
from directories and from the offsets of tables, and only images with a size that an evaluated one has are read.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, encoded
from stml_semi.data.overlap import ExcludedImage, source_of
from stml_semi.runtime import distributed

_UNKNOWN = -1


class _Stats(NamedTuple):
    """Of the encoded images of a table, without reading them."""

    sizes: NDArray[np.int64]
    """(N,) bytes; -1 where there is nothing to read."""
    files: list[tuple[int, int] | None]
    """(N,) device and number of the file; None of an image that a table holds."""


class EvaluatedImages:
    """The images of some tables, to be recognized in others."""

    def __init__(self, tables: Sequence[ImageTable]) -> None:
        self.tables = tables
        stats = [_stats(table) for table in tables]
        self._sizes = np.unique(np.concatenate([part.sizes for part in stats])) if tables else np.empty(0, np.int64)
        self._sizes = self._sizes[self._sizes != _UNKNOWN]
        self._by_size: dict[int, list[tuple[int, int]]] = {}
        self._by_file: dict[tuple[int, int], tuple[int, int]] = {}
        for number, part in enumerate(stats):
            for row, (size, file) in enumerate(zip(part.sizes.tolist(), part.files, strict=True)):
                self._by_size.setdefault(size, []).append((number, row))
                if file is not None:
                    self._by_file.setdefault(file, (number, row))
        self._digests: dict[int, dict[bytes, tuple[int, int]]] = {}

    def find(self, table: ImageTable) -> list[ExcludedImage]:
        """Rows of a table whose images are evaluated, rising. All processes call this together and get the same."""
        stats = _stats(table)
        candidates = np.flatnonzero(np.isin(stats.sizes, self._sizes))
        share = distributed.share(len(candidates), rank=distributed.rank(), world_size=distributed.world_size())
        found = [
            ExcludedImage(row, table.describe(row), source_of(table, row), "", reason)
            for row in candidates[share].tolist()
            if (reason := self._twin(table, row, int(stats.sizes[row]), stats.files[row]))
        ]
        return [one for part in distributed.gather_objects(found) for one in part]

    def _twin(self, table: ImageTable, row: int, size: int, file: tuple[int, int] | None) -> str:
        """Which evaluated image a row is, in words; empty if none."""
        if file is not None and file in self._by_file:
            return f"is evaluated on ({self._describe(self._by_file[file])})"
        digest = _digest(table, row)
        twin = None if digest is None else self._digests_of(size).get(digest)
        return "" if twin is None else f"has the bytes of an evaluated image ({self._describe(twin)})"

    def _digests_of(self, size: int) -> dict[bytes, tuple[int, int]]:
        if size not in self._digests:
            known = [(_digest(self.tables[number], row), (number, row)) for number, row in self._by_size[size]]
            self._digests[size] = {digest: place for digest, place in known if digest is not None}
        return self._digests[size]

    def _describe(self, place: tuple[int, int]) -> str:
        number, row = place
        return self.tables[number].describe(row)


def _stats(table: ImageTable) -> _Stats:
    sizes, paths = table.byte_lengths(), table.paths()
    files: list[tuple[int, int] | None] = [None] * len(table)
    for row in np.flatnonzero(sizes == _UNKNOWN).tolist():
        with contextlib.suppress(OSError, ValueError):  # ValueError: a path with a zero byte.
            status = os.stat(paths[row] or "")
            sizes[row], files[row] = status.st_size, (status.st_dev, status.st_ino)
    return _Stats(sizes, files)


def _digest(table: ImageTable, row: int) -> bytes | None:
    try:
        return hashlib.blake2b(encoded(table.original(row)), digest_size=16).digest()
    except BadImage:
        return None
