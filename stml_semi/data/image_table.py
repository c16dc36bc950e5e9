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
from stml_semi.runtime.names import from_utf8, to_utf8

if TYPE_CHECKING:
    from datasets import Dataset

    from stml_semi.data.images import ImageSource


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Images, still encoded, and their classes. Pickles small where the data are memory-mapped."""

    name: str
    images: "Dataset"
    """One column, `image`: `{"bytes", "path"}`, with paths as `to_utf8` writes them."""
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
    """What `source` gives in place of the original of a row, if anything: images that were decoded before."""
    weights: tuple[float, ...] = ()
    """Share of the pool that every source gives, of 1; () if that is left to their sizes."""
    others: "Dataset | None" = None
    """Further columns of the source with a text, number or time per image, where they were asked for."""
    skipped: tuple[str, ...] = ()
    """Sentences about files of the sources that are not read, to be shown wherever the table is opened."""

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
        return self.original(row) if kept is None else kept

    def original(self, row: int) -> "ImageSource":
        """Like `source`, past the cache; a row may hold no image."""
        found = self.images[int(row)]["image"]
        if found is None:
            return {"bytes": None, "path": None}
        return {"bytes": found["bytes"], "path": None if found["path"] is None else from_utf8(found["path"])}

    def byte_lengths(self) -> NDArray[np.int64]:
        """(N,) bytes of the encoded images that the table holds, without reading them; -1 of those that it names."""
        return self._field("bytes", lambda compute, column: compute.binary_length(column).fill_null(-1)).astype(
            np.int64
        )

    def paths(self) -> NDArray[np.object_]:
        """(N,) paths that the table names; None where it names none."""
        paths = self._field("path", lambda compute, column: column)
        return np.array([path and from_utf8(path) for path in paths], dtype=np.object_)

    def _field(self, name: str, read: "Callable[[Any, Any], Any]") -> NDArray[Any]:
        """What a function of `pyarrow.compute` and a column makes of a field of the images."""
        from pyarrow import compute

        functions: Any = compute
        values = read(functions, functions.struct_field(self.images.data.column("image"), name)).to_numpy()
        return values if self.images._indices is None else values[self.images._indices.column(0).to_numpy()]

    def describe(self, row: int) -> str:
        """How a user finds the image: its path, or `name[row]` of the source that holds its bytes."""
        source = self.original(row)
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

    # A random fingerprint: hashing the images takes long, and a cache that is never found is never stale.
    return Dataset(table, fingerprint=uuid.uuid4().hex)


def paths_dataset(paths: list[str] | list[str | None]) -> "Dataset":
    import pyarrow
    from datasets import Image

    texts = pyarrow.array([path and to_utf8(path) for path in paths], pyarrow.string())
    pairs = pyarrow.StructArray.from_arrays([pyarrow.nulls(len(paths), pyarrow.binary()), texts], ["bytes", "path"])
    return image_dataset(pyarrow.table({"image": pairs})).cast_column("image", Image(decode=False))
