"""An index on disk: a table of embeddings in the Lance format, and what made them.

    index.json          what was embedded with what, and the version of the table that holds all of it
    images.lance/       a row per image: row (of the source), image, label, embedding (float32, unit length), reason,
                        and the other columns of the source, if that is a table
    bad_images.jsonl    images that could not be read, with their rows; in the table they have a reason in place of an
                        embedding

LanceDB opens the folder as a database with the table `images`; DuckDB, polars and pandas read it too. Two further
columns say what the images were when they were embedded (`changes`). Embeddings are written as they come; the version
in index.json changes when all are there, so that an index which is brought up to date can be searched meanwhile.
"""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.config import Fit
from stml_semi.data.any_image import OneImage
from stml_semi.runtime.errors import BadInput, one_line
from stml_semi.runtime.files import write_text
from stml_semi.runtime.finite import check_lengths
from stml_semi.runtime.names import from_utf8

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

    from stml_semi.search.query import Hit

TABLE = "images.lance"
PART_SIZE = 16384
"""33 MB of 512 numbers each: what is in memory at a time."""


class Part(NamedTuple):
    """Some readable rows of an index."""

    embeddings: Tensor
    """(n, d) float32, unit length; not to be written into."""
    rows: NDArray[np.int64]
    """(n,) of the source."""


class Row(NamedTuple):
    """A row of an index."""

    embedding: Tensor
    """(d,) float32, unit length."""
    image: str
    """How a user finds it."""


class IndexInfo(NamedTuple):
    """What index.json says."""

    model: str
    fingerprint: str
    """Of the model's weights: embeddings of different models do not compare."""
    data: str
    image_column: str | None
    num_rows: int
    """Rows of the source, readable or not."""
    sample: list[str]
    """First, middle and last image of the source."""
    num_features: int
    version: int | None = None
    """Of the table, at which all images are in it; None until then."""
    commit: str | None = None
    """Of the hub, at which the model was opened; None of a local one."""
    image_size: int | None = None
    """Side of the input that a bare backbone was opened for; None: its own."""
    fit: Fit = "auto"
    """What a bare backbone was told to do with images of another shape."""


class Index:
    """A folder with a table. Reading is lazy: one part at a time is in memory."""

    def __init__(self, folder: str | Path, info: IndexInfo) -> None:
        self.folder: Path = Path(folder)
        self.info: IndexInfo = info
        self.bad_images: Path = self.folder / "bad_images.jsonl"

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """
        Raises:
            BadInput: no index there, or an unfinished one.
        """
        info = read_info(Path(folder))
        if info is None:
            raise BadInput(f"--index {folder}: holds no index; make one with `embed --output {folder}`")
        if info.version is None:
            raise BadInput(f"--index {folder}: is not finished; run the same `embed` command again to go on")
        return cls(folder, info)

    @cached_property
    def table(self) -> "lance.LanceDataset":
        """The table as it was when the index was complete.

        Raises:
            BadInput: it is missing or damaged, or may not be read.
        """
        with self._read():
            return open_table(self.folder, self.info.version)

    def search(
        self,
        queries: OneImage | Iterable[OneImage] | NDArray[np.float32] | Tensor,
        k: int = 10,
        *,
        where: str | None = None,
        rerank: bool = False,
        model: str | None = None,
        min_precision: float | None = None,
    ) -> "list[list[Hit]]":
        """The nearest rows of each query, nearest first: a list for each, for a single one too.

        Args:
            queries: one image or many, as `Retriever.encode` takes them; or embeddings of this index's model, (d,) or
                (Q, d) of floating point.
            k: hits per query; all there are, if fewer.
            where: only among rows for which this condition holds: SQL over the columns row, image and label.
            rerank: order the 100 nearest by whether they are near to each other too: better lists, nearly always with
                the same first one.
            model: default: the one that made the index. It stays open for the next search.
            min_precision: leave out what is less similar than a match of this precision (0..1), by the thresholds of
                the model.

        Raises:
            TypeError: something that is no image.
            BadInput: an image cannot be read, embeddings do not fit, the condition is none, another model than the
                index's, or the index is damaged.
        """
        from stml_semi.search.query import find  # It imports this file.

        return find(self, queries, k, where=where, rerank=rerank, model=model, min_precision=min_precision)

    @cached_property
    def num_parts(self) -> int:
        with self._read():
            return -(-self.table.count_rows() // PART_SIZE)

    def part(self, number: int) -> Part:
        """
        Raises:
            BadInput: the table is damaged.
        """
        with self._read():
            return self._as_part(
                self.table.to_table(columns=["row", "embedding"], offset=number * PART_SIZE, limit=PART_SIZE)
            )

    def parts(self, where: str | None = None) -> Iterator[Part]:
        """All readable rows, or those for which a condition holds.

        Raises:
            BadInput: the table is damaged, or the condition cannot be understood.
        """
        if where is None:
            yield from filter(lambda part: len(part.rows), map(self.part, range(self.num_parts)))
            return
        with self.asking(where):
            for batch in self.table.to_batches(columns=["row", "embedding"], filter=where, batch_size=PART_SIZE):
                if len((part := self._as_part(batch)).rows):
                    yield part

    @contextlib.contextmanager
    def asking(self, where: str | None) -> Iterator[None]:
        """
        Raises:
            BadInput: the condition cannot be understood.
        """
        try:
            if where and ";" in re.sub(r"'[^']*'", "", where):  # Lance would ignore the rest.
                raise ValueError("more than one statement")
            yield
        except (ValueError, OSError) as error:
            if where is None or isinstance(error, BadInput):
                raise
            own = [name for name in self.table.schema.names if name not in (*COLUMNS, *KEYS)]
            columns = ", ".join([*(name for name in COLUMNS if name != "embedding"), *own])
            raise BadInput(
                f"--where {where}: is no condition in SQL over {columns} ({cause(error)}); for example "
                f"--where \"label = 'wren'\""
            ) from None

    def find(self, rows: Sequence[int]) -> dict[int, Row]:
        """Those of some rows that can be read.

        Raises:
            BadInput: the table is damaged.
        """
        found = self._of_rows(rows, ["row", "image", "embedding"])
        images = {row["row"]: from_utf8(row["image"]) for row in found.select(["row", "image"]).to_pylist()}
        part = self._as_part(found)
        return {row: Row(part.embeddings[place].clone(), images[row]) for place, row in enumerate(map(int, part.rows))}

    def images(self, rows: Sequence[int]) -> dict[int, str]:
        """How a user finds the images of some rows.

        Raises:
            BadInput: the table is damaged.
        """
        found = self._of_rows(rows, ["row", "image"]).to_pylist()
        return {row["row"]: from_utf8(row["image"]) for row in found}

    def labels(self) -> dict[int, str]:
        """Labels of all readable rows that have one.

        Raises:
            BadInput: the table is damaged.
        """
        with self._read():
            found = self.table.to_table(columns=["row", "label"], filter="reason IS NULL AND label IS NOT NULL")
        names = map(from_utf8, found.column("label").to_pylist())
        return dict(zip(found.column("row").to_pylist(), names, strict=True))

    def key(self, row: int) -> tuple[int, int] | None:
        """What the image of a row was when it was embedded; None if there is no such row."""
        found = self._of_rows([row], ["row", *KEYS]).to_pylist()
        return (found[0][KEYS[0]], found[0][KEYS[1]]) if found else None

    def save_info(self) -> None:
        """Writes index.json."""
        write_text(self.folder / "index.json", json.dumps(self.info._asdict(), indent=1, ensure_ascii=False))

    def _of_rows(self, rows: Sequence[int], columns: list[str]) -> "pa.Table":
        wanted = ", ".join(str(int(row)) for row in dict.fromkeys(rows)) or "-1"
        with self._read():
            return self.table.to_table(columns=columns, filter=f"row IN ({wanted})")

    def _as_part(self, found: "pa.Table | pa.RecordBatch") -> Part:
        """
        Raises:
            BadInput: an embedding is none.
        """
        import pyarrow as pa

        column = found.column("embedding")
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        rows = found.column("row").to_numpy()[column.is_valid().to_numpy(zero_copy_only=False)]
        # Shares the memory of the column, which numpy would not let torch take without a warning.
        flat = torch.from_dlpack(column.flatten())
        part = Part(flat.view(len(rows), self.info.num_features), rows)
        fix = "the table is damaged; embed again into another folder"
        check_lengths(
            part.embeddings, f"--index {self.folder}", lambda i: self.images([int(rows[i])])[int(rows[i])], fix
        )
        return part

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        """
        Raises:
            BadInput: the table cannot be read.
        """
        try:
            with readable(self.folder):
                yield
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(
                f"--index {self.folder}: {TABLE} cannot be read ({cause(error)}): embed again into another folder"
            ) from None


COLUMNS = ("row", "image", "label", "embedding", "reason")
"""Columns of every index; further ones are the source's own."""
KEYS = ("name_key", "content_key")
"""Columns of what an image was when it was embedded; see `changes`."""


def open_table(folder: Path, version: int | None = None) -> "lance.LanceDataset":
    """The table of an index, by default as it was written last."""
    with system_errors(folder):
        return import_lance().dataset(str(folder / TABLE), version=version)


def import_lance() -> Any:
    """The module. It warns of every process that is forked; those that decode images never touch the table."""
    os.environ.setdefault("LANCE_LOG", "error")  # What it logs of a damaged table, we say in one line.
    import lance

    warnings.filterwarnings("ignore", "lance is not fork-safe")
    return lance


def read_info(folder: Path) -> IndexInfo | None:
    """index.json of a folder, or None if it holds no index.

    Raises:
        BadInput: it may not be read, or is of an earlier version.
    """
    try:
        with readable(folder):
            found = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        return None
    if isinstance(found, dict) and "part_size" in found:
        raise BadInput(f"index {folder}: was made by an earlier version; embed again into another folder")
    try:
        return IndexInfo(**found)
    except TypeError:
        return None


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Gives errors of Lance the number that the system gave them.

    Raises:
        BadInput: a file of an index may not be read, which is no damage.
    """
    try:
        with system_errors(folder):
            yield
    except PermissionError as error:
        raise BadInput(
            f"index {folder}: {Path(error.filename or folder).name} may not be read (permission denied); make it "
            f"readable with chmod, or choose another index"
        ) from None


@contextlib.contextmanager
def system_errors(folder: Path) -> Iterator[None]:
    """Errors of Lance that the system caused become what Python raises for these."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None or (isinstance(error, OSError) and error.errno is not None):
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(folder / TABLE)) from None


def cause(error: Exception) -> str:
    """What Lance says, without where in its source it says so."""
    return one_line(ValueError(re.sub(r",? ?/?\S+\.rs:\d+(:\d+)?", "", str(error))))
