"""Which unlabeled images are live: the next ones of a table, of a weighted mixture, or of a stream."""

import contextlib
import shutil
import socket
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from stml_semi.data.batches.plan import Rows, mixed_rows, pool_rows, quotas
from stml_semi.data.evaluated import EvaluatedImages
from stml_semi.data.image_table import ImageTable
from stml_semi.data.overlap import ExcludedImage
from stml_semi.data.sources.streams import ImageStream, Position, StreamSource, StreamWindow
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput, RunFailed

StreamRecord = dict[str, Any]
"""JSON: where every stream stood before and after a pool was read, and a digest of what was read."""

# Numbers of a stream's images stay below this: so far apart lie the sources of a window in its row numbers.
_APART = 2**40


class Live(NamedTuple):
    """Candidates for the pool."""

    table: ImageTable
    rows: Rows
    """(P,) of the table, rising."""
    record: StreamRecord | None
    """None of tables, which can be read again at any time."""
    excluded: tuple[ExcludedImage, ...] = ()
    """Images of a stream that the run is scored on."""
    renewed: Rows | None = None
    """(R,) rising: those that this refresh embeds; the others were embedded before. None: all."""


class LiveImages(Protocol):
    """Where the pool gets its images from."""

    def draw(self, refresh: int, last: StreamRecord | None) -> Live:
        """Candidates after a number of refreshes; `last` is the record of the draw before, None of the first one."""
        ...

    def again(self, refresh: int, record: StreamRecord | None) -> Live:
        """What an earlier draw found, in a run that goes on."""
        ...

    def num_known(self, record: StreamRecord | None) -> int:
        """How many different images were drawn from up to a draw."""
        ...

    def close(self) -> None:
        """Deletes what was kept on the disk."""
        ...


def live_images(
    source: ImageTable | ImageStream,
    *,
    seed: int,
    pool_size: int,
    folder: Path,
    evaluated: EvaluatedImages | None = None,
) -> LiveImages:
    """The images of --unlabeled as the pool asks for them.

    Args:
        source: a table, or what is read as a stream.
        seed: of the run.
        pool_size: most images that a refresh embeds; of a stream or a mixture, that are live.
        folder: for the live images of streams.
        evaluated: images that a stream must not give to the pool; of a table they were taken out before.
    """
    if isinstance(source, ImageTable):
        return LiveTable(source, seed=seed, pool_size=pool_size)
    return LiveStream(source, seed=seed, pool_size=pool_size, folder=folder, evaluated=evaluated)


class LiveTable:
    """A table that is all here, and all live; of a mixture so much that it keeps its weights in every pool."""

    def __init__(self, table: ImageTable, *, seed: int, pool_size: int) -> None:
        self.table, self.seed, self.pool_size = table, seed, pool_size

    def draw(self, refresh: int, last: StreamRecord | None) -> Live:
        if not self.table.weights:
            total = len(self.table)
            renewed = None if total <= self.pool_size else pool_rows(self.seed, refresh, total, self.pool_size)
            return Live(self.table, np.arange(total), None, renewed=renewed)
        given = [share.given for share in shares(self.table, self.pool_size)]
        return Live(self.table, mixed_rows(self.seed, refresh, self.table.starts, given), None)

    def again(self, refresh: int, record: StreamRecord | None) -> Live:
        return self.draw(refresh, record)

    def num_known(self, record: StreamRecord | None) -> int:
        return len(self.table)

    def close(self) -> None:
        pass


class LiveStream:
    """The next images of streams, in files that the processes of a machine share; older ones are deleted."""

    def __init__(
        self, stream: ImageStream, *, seed: int, pool_size: int, folder: Path, evaluated: EvaluatedImages | None
    ) -> None:
        """
        Args:
            stream: of one or more sources.
            seed: of the run.
            pool_size: most images that are live.
            folder: below it every machine keeps its own, so that it may be shared by machines or not.
            evaluated: images that are left out.
        """
        self.stream, self.seed, self.evaluated = stream, seed, evaluated
        self.given = [share.given for share in shares(stream, pool_size)]
        self.folder = folder / socket.gethostname()

    def draw(self, refresh: int, last: StreamRecord | None) -> Live:
        before = [Position(*part) for part in last["after"]] if last else [Position()] * len(self.given)
        return self._read(refresh, before)

    def again(self, refresh: int, record: StreamRecord | None) -> Live:
        assert record is not None
        live = self._read(refresh, [Position(*part) for part in record["before"]])
        if live.record is None or live.record["digest"] != record["digest"]:
            raise RunFailed.on_all(
                f"--unlabeled {self.stream.name}: the stream holds other images than when the checkpoint was "
                f"written; bring the old ones back, or start another run"
            )
        return live

    def num_known(self, record: StreamRecord | None) -> int:
        if record is None:
            return 0
        sizes = [None if isinstance(source, StreamSource) else len(source) for source in self.stream.sources]
        after = [Position(*part) for part in record["after"]]
        return sum(here.num_known if size is None else size for size, here in zip(sizes, after, strict=True))

    def close(self) -> None:
        if distributed.local_rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # Other machines still use theirs.
                self.folder.parent.rmdir()

    def _read(self, refresh: int, before: list[Position]) -> Live:
        """One process of every machine reads; all of them look at what it wrote."""
        read = problem = None
        if distributed.local_rank() == 0:
            try:
                read = self._write(refresh, before)
            except (OSError, RunFailed) as error:
                problem = str(error)
        told = distributed.gather_objects((read, problem))
        if problems := [text for _, text in told if text]:
            raise RunFailed.on_all(f"--unlabeled {problems[0]}")
        first, *others = [stretches for stretches, _ in told if stretches is not None]
        if any(other != first for other in others):
            raise RunFailed.on_all(f"--unlabeled {self.stream.name}: machines were given different images")
        after = [first[i].end if i in first else here for i, here in enumerate(before)]
        record: StreamRecord = {
            "before": [list(position) for position in before],
            "after": [list(position) for position in after],
            "digest": [first[i].digest for i in sorted(first)],
        }
        table = self._table(refresh, first)
        excluded = [] if self.evaluated is None else self.evaluated.find(table)
        rows = np.setdiff1d(np.arange(len(table)), [one.row for one in excluded])
        return Live(table, rows, record, tuple(excluded))

    def _write(self, refresh: int, before: list[Position]) -> dict[int, StreamWindow]:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return {
            i: source.read(before[i], self.given[i], self._file(refresh, i))
            for i, source in enumerate(self.stream.sources)
            if isinstance(source, StreamSource)
        }

    def _file(self, refresh: int, source: int) -> Path:
        return self.folder / f"pool-{refresh}-{source}.arrow"

    def _table(self, refresh: int, stretches: dict[int, StreamWindow]) -> ImageTable:
        """What is live, of all sources."""
        from datasets import Dataset, concatenate_datasets

        images, numbers = [], []
        for i, source in enumerate(self.stream.sources):
            if isinstance(source, StreamSource):
                images.append(Dataset.from_file(str(self._file(refresh, i))))
                own = stretches[i].numbers()
            else:
                own = pool_rows(self.seed, refresh, len(source), self.given[i])
                images.append(source.images.select(own))
            numbers.append(i * _APART + own)
        parts = tuple((source.name, i * _APART) for i, source in enumerate(self.stream.sources))
        joined = concatenate_datasets(images)
        return ImageTable(self.stream.name, joined, None, (), parts=parts, rows=np.concatenate(numbers))


class Share(NamedTuple):
    """What one source gives to every pool."""

    name: str
    size: int | None
    """Its images; None of a stream."""
    weight: float
    given: int
    """How many of the live ones are its."""


def shares(source: ImageTable | ImageStream, pool_size: int) -> list[Share]:
    """What the sources of a mixture or a stream give.

    Raises:
        BadInput: one of them gives none.
    """
    if isinstance(source, ImageStream):
        names = [part.name for part in source.sources]
        sizes = [None if isinstance(part, StreamSource) else len(part) for part in source.sources]
    else:
        names = [name for name, _ in source.parts]
        sizes = np.diff(source.starts).tolist()
    given = quotas(sizes, source.weights, pool_size)
    if 0 in given:
        raise BadInput(
            f"--unlabeled {source.name}: {names[given.index(0)]} gives none of the {sum(given)} live images; raise its "
            f"weight or --pool-size, or leave it out"
        )
    return [Share(*share) for share in zip(names, sizes, source.weights, given, strict=True)]


def num_live(source: ImageTable | ImageStream, pool_size: int) -> int:
    """Images of a pool; a stream may turn out to have fewer.

    Raises:
        BadInput: a source of a mixture gives none.
    """
    if isinstance(source, ImageTable) and not source.weights:
        return len(source)
    return sum(share.given for share in shares(source, pool_size))


def num_embedded(source: ImageTable | ImageStream, pool_size: int) -> int:
    """Images that a refresh embeds; the first one embeds all that are live.

    Raises:
        BadInput: a source of a mixture gives none.
    """
    return min(pool_size, num_live(source, pool_size))


def describe_images(source: ImageTable | ImageStream, pool_size: int) -> str:
    """How many images there are, and what a mixture's sources give, in words."""
    if isinstance(source, ImageTable) and not source.weights:
        return f"{len(source):,} images ({source.name})"
    parts = [
        f"{share.name}: {'a stream' if share.size is None else f'{share.size:,} images'}"
        + (f", weight {share.weight:.3g}, {share.given:,} of the live ones" if len(source.weights) > 1 else "")
        for share in shares(source, pool_size)
    ]
    return f"{len(source):,} images ({'; '.join(parts)})" if isinstance(source, ImageTable) else "; ".join(parts)
