"""The table of images that the project works with, and what its makers share.

Importing this module is cheap: pyarrow and datasets are imported by the functions that need them.
"""

import uuid
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stml_semi.data.benchmarks.facts import DEFAULT_RECALL_AT

if TYPE_CHECKING:
    from datasets import Dataset

    from stml_semi.data.images import ImageSource


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Images, still encoded, and their classes. Pickles small where the data are memory-mapped."""

    name: str
    images: "Dataset"
    """One column, `image`: `{"bytes", "path"}`."""
    labels: NDArray[np.int64] | None
    """(N,) 0..C-1, or None."""
    classes: tuple[str, ...]
    """(C,) names, sorted."""
    recall_at: tuple[int, ...] = DEFAULT_RECALL_AT
    parts: tuple[tuple[str, int], ...] = ()
    """Name and first row of every source, where several were joined."""
    queries: NDArray[np.bool_] | None = None
    """(N,) rows that are looked up in the others; None: every row is looked up in all others."""
    rows: NDArray[np.int64] | None = None
    """(N,) rows of the source that these are; None: all of them."""
    cache: "Callable[[int], ImageSource | None] | None" = None
    """What `source` gives in place of the original of a row, if anything: pictures that were decoded before."""
    weights: tuple[float, ...] = ()
    """Share of the pool that every source gives, of 1; () if that is left to their sizes."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def starts(self) -> list[int]:
        """The first row of every source, and the number of rows."""
        first = [start for _, start in self.parts] or [0]
        return [*(first if self.rows is None else np.searchsorted(self.rows, first).tolist()), len(self)]

    def source(self, row: int) -> "ImageSource":
        """What `read_image` and `read_pixels` take."""
        kept = self.cache(int(row)) if self.cache is not None else None
        return self._original(row) if kept is None else kept

    def _original(self, row: int) -> "ImageSource":
        return self.images[int(row)]["image"]

    def describe(self, row: int) -> str:
        """How a user finds the picture: its path, or `name[row]` of the source that holds its bytes."""
        source = self._original(row)
        if source["bytes"] is None and source["path"]:
            return source["path"]
        if self.rows is not None:
            row = int(self.rows[row])
        if not self.parts:
            return f"{self.name}[{row}]"
        name, start = self.parts[bisect_right(self.parts, row, key=lambda part: part[1]) - 1]
        return f"{name}[{row - start}]"


def image_dataset(table: Any) -> "Dataset":
    from datasets import Dataset

    # A random fingerprint: hashing the pictures takes long, and a cache that is never found is never stale.
    return Dataset(table, fingerprint=uuid.uuid4().hex)


def paths_dataset(paths: list[str] | list[str | None]) -> "Dataset":
    import pyarrow
    from datasets import Image

    texts = pyarrow.array(paths, pyarrow.string())
    pairs = pyarrow.StructArray.from_arrays([pyarrow.nulls(len(paths), pyarrow.binary()), texts], ["bytes", "path"])
    return image_dataset(pyarrow.table({"image": pairs})).cast_column("image", Image(decode=False))
