"""Streams of unlabeled images: read on and on, a pool at a time, kept encoded in a file, never as a whole.

A stream is read shard after shard, a few of them in turn, in an order that the seed shuffles once; after its end it
starts again in the same order. So where it stands is a small record, from which reading goes on exactly.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.reach import Reach, fetched
from stml_semi.runtime.errors import RunFailed, one_line

if TYPE_CHECKING:
    from datasets import IterableDataset

# Images that are written together, the most of a window that is in memory.
_WRITTEN_TOGETHER = 64


class Position(NamedTuple):
    """Where a stream stands; JSON once `_asdict`."""

    epoch: int = 0
    """How often it was read to its end."""
    row: int = 0
    """Rows read since it began, in this epoch."""
    length: int | None = None
    """Rows in all, once the end was seen."""
    state: dict[str, Any] | None = None
    """What `datasets` needs to go on; None at the beginning."""

    @property
    def num_known(self) -> int:
        """How many of its images have been read at least once."""
        return self.row if self.length is None else self.length


class StreamWindow(NamedTuple):
    """Some images of a stream, one after the other."""

    first: int
    """Number of the first one in the stream."""
    size: int
    end: Position
    """Where the stream stands after them."""
    digest: str
    """Of what the images are."""

    def numbers(self) -> NDArray[np.int64]:
        """(size,) numbers of the images in the stream; after the last one comes 0 again."""
        numbers = self.first + np.arange(self.size)
        return numbers if self.end.length is None else numbers % self.end.length


class StreamSource:
    """A source that is read as a stream; it stays open where it stands."""

    def __init__(
        self, name: str, dataset: "IterableDataset", column: str, reach: Reach, *, seed: int, in_turn: int
    ) -> None:
        """
        Args:
            name: what the user calls it.
            dataset: with one column.
            column: its name: `{"bytes", "path"}`, bytes or paths.
            reach: what its paths may open.
            seed: of the order of its shards.
            in_turn: how many of those are open at a time.
        """
        self.name, self.dataset, self.column, self.reach = name, dataset, column, reach
        self.seed, self.in_turn = seed, in_turn
        self._cursor: _Cursor | None = None

    def read(self, start: Position, count: int, file: Path) -> StreamWindow:
        """The next `count` images from a position on, kept in a file.

        A stream with fewer images than that is all of it, each once; a longer one goes on at its beginning when it
        ends.

        Args:
            start: where to begin.
            count: how many, at least one.
            file: where encoded images are kept; those that are files on this machine stay where they are.

        Raises:
            RunFailed: it holds no images, cannot be read, or the file cannot be written.
        """
        row = start.row
        try:
            return self._read(start, count, file)
        except RunFailed:
            raise
        except Exception as error:  # Whatever its libraries raise: the network, a torn shard, a full disk.
            raise RunFailed(
                f"{self.name}: the stream cannot be read beyond row {row} ({one_line(error)}); see to it, then go on "
                f"with --resume"
            ) from None

    def _read(self, start: Position, count: int, file: Path) -> StreamWindow:
        from datasets import Features, Image

        here = self._cursor_at(start)
        done, digest = 0, hashlib.blake2b(digest_size=16)
        with _Writer(file, Features({"image": Image(decode=False)}).arrow_schema) as writer:
            while done < count:
                example = next(here.examples, None)
                if example is None:
                    if not here.row:
                        raise RunFailed(f"{self.name}: holds no images")
                    whole = done == here.row
                    here = self._cursor_at(Position(here.epoch + 1, 0, here.row, None))
                    if whole:
                        break
                    continue
                picture = _picture(example[self.column], self.reach)
                digest.update(picture["bytes"] or str(picture["path"]).encode(errors="surrogateescape"))
                writer.add(picture)
                here.row += 1
                done += 1
        self._cursor = here
        return StreamWindow(start.row, done, here.position(), digest.hexdigest())

    def _cursor_at(self, position: Position) -> "_Cursor":
        if self._cursor is not None and self._cursor.position() == position:
            return self._cursor
        dataset = self.dataset.shuffle(seed=self.seed, buffer_size=1, max_buffer_input_shards=self.in_turn)
        if position.state is not None:
            dataset.load_state_dict(position.state)
        return _Cursor(dataset, iter(dataset), *position[:3])


@dataclass
class _Cursor:
    """A stream, opened and read up to some row."""

    dataset: "IterableDataset"
    examples: Iterator[dict[str, Any]]
    epoch: int
    row: int
    length: int | None

    def position(self) -> Position:
        return Position(self.epoch, self.row, self.length, self.dataset.state_dict() if self.row else None)


class _Writer:
    """Writes images into an Arrow file, a few at a time; a context manager."""

    def __init__(self, file: Path, schema: Any) -> None:
        from pyarrow import OSFile, ipc

        self.schema, self.pending = schema, []
        self.file = OSFile(str(file), "wb")
        self.writer = ipc.new_stream(self.file, schema)

    def __enter__(self) -> Self:
        return self

    def add(self, picture: dict[str, Any]) -> None:
        self.pending.append({"image": picture})
        if len(self.pending) == _WRITTEN_TOGETHER:
            self._write()

    def _write(self) -> None:
        from pyarrow import RecordBatch

        self.writer.write_batch(RecordBatch.from_pylist(self.pending, schema=self.schema))
        self.pending = []

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self.file, self.writer:
            if kind is None:
                self._write()


def _picture(value: Any, reach: Reach) -> dict[str, Any]:
    """What a table of images holds, of what a stream holds."""
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    named = {"bytes": None, "path": value} if isinstance(value, str) else value or {}
    content, path = named.get("bytes"), named.get("path")
    return {"bytes": content, "path": None} if content is not None or not path else fetched(path, reach)


@dataclass(frozen=True)
class ImageStream:
    """Unlabeled images of which at least one source is a stream."""

    name: str
    sources: tuple[StreamSource | ImageTable, ...]
    weights: tuple[float, ...]
    """Share of the pool that each gives, of 1."""


def _keeps_order(record: logging.LogRecord) -> bool:
    """Going on, `datasets` warns of a shuffle buffer that is lost: ours holds nothing between two images."""
    return "shuffle buffer" not in str(record.msg)


logging.getLogger("datasets.iterable_dataset").addFilter(_keeps_order)
