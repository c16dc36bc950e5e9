"""Fills an index, or brings it up to date: parts that nothing changed in stay, the others are made again."""

import contextlib
import shutil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.data.image_table import ImageTable
from stml_semi.models.evaluation import EmbeddedTable
from stml_semi.runtime.files import append_json_lines, read_json_lines, remove_abandoned, write_json_lines
from stml_semi.search.changes import Changes, Kept, Keys
from stml_semi.search.index import Index, IndexInfo, Part


class Update:
    """One index that is being filled, seen from the process that writes.

    Parts are written where they belong, unless one there is of images that have changed: then the index stays as it is
    until all new parts are written beside it. Whenever this is killed, running it again goes on.
    """

    def __init__(self, index: Index, found: IndexInfo | None, table: ImageTable, keys: Keys | None) -> None:
        """
        Args:
            index: to be filled.
            found: what its index.json says, if there is one.
            table: the source.
            keys: of all its rows; None if there was no index.
        """
        self.index, self.table = index, table
        remove_abandoned(index.folder)
        self.first = keys is None
        self.keys = np.zeros((0, 2), np.int64) if keys is None else keys
        self.before = 0 if found is None else found.num_parts
        while index.has(self.before):  # A killed update had more to remove.
            self.before += 1
        self.kept = Kept(index, self.before)
        self.reused: dict[int, Tensor] = {}
        stale = found is not None and any(
            index.has(number) and not self._is_current(index, number) for number in range(index.info.num_parts)
        )
        self.target = Index(index.folder / ".update", index.info) if stale else index
        there = [number for number in range(index.info.num_parts) if self._has(number)]
        # A complete one stays so, and is not touched.
        same = found == index.info._replace(complete=True)
        self.done = same and not stale and len(there) == index.info.num_parts
        if self.done:
            return
        self.target.folder.mkdir(parents=True, exist_ok=True)
        if not stale:
            index.save_info()
        size = index.info.part_size
        if lines := read_json_lines(self.target.bad_images):
            kept = [line for line in lines if "row" in line and line["row"] // size in there]
            write_json_lines(self.target.bad_images, kept)

    def missing(self, number: int, rows: NDArray[np.int64], keys: Keys) -> NDArray[np.int64] | None:
        """Rows of a part that have to be embedded; None if the part is there."""
        if self.done or self._has(number):
            return None
        self.reused = self.kept.embeddings(keys)
        return np.delete(rows, list(self.reused))

    def write(self, number: int, rows: NDArray[np.int64], keys: Keys, made: EmbeddedTable | None) -> None:
        """Writes a part.

        Args:
            number: of the part.
            rows: all of the part.
            keys: theirs.
            made: embeddings of those that `missing` named; None if there were none.
        """
        places = np.delete(np.arange(len(rows)), list(self.reused))
        found = self.reused
        if made is not None:
            unit = torch.nn.functional.normalize(made.embeddings.float(), dim=1).cpu()
            found = found | {int(place): unit[i] for i, place in enumerate(places) if made.readable[i]}
            unreadable = rows[places[~made.readable]]
            bad = [{"row": int(row), **line._asdict()} for row, line in zip(unreadable, made.bad, strict=True)]
            append_json_lines(self.target.bad_images, bad)
        order = sorted(found)
        embeddings = torch.stack([found[i] for i in order]) if order else torch.zeros(0, self.index.info.num_features)
        self.target.write(
            number, Part(embeddings, rows[order], [self.table.describe(int(rows[i])) for i in order]), keys
        )

    def finish(self) -> Changes:
        """Puts new parts in their places, and removes what is not needed any more."""
        if not self.done:
            if self.target is not self.index:
                self._move()
            for number in reversed(range(self.index.info.num_parts, self.before)):
                self.index.remove(number)
            self.index.info = self.index.info._replace(complete=True)
            self.index.save_info()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.index.folder / ".update")
        return Changes(len(self.table), 0, 0) if self.first else self.kept.changes(self.keys)

    def _move(self) -> None:
        self.index.save_info()  # Not complete until all of them are moved.
        made = [number for number in range(self.index.info.num_parts) if self.target.has(number)]
        size = self.index.info.part_size
        bad = {line["row"]: line for line in read_json_lines(self.index.bad_images) if "row" in line}
        bad = {row: line for row, line in bad.items() if row // size not in made and row < self.index.info.num_rows}
        bad |= {line["row"]: line for line in read_json_lines(self.target.bad_images)}
        if bad or self.index.bad_images.exists():
            write_json_lines(self.index.bad_images, (bad[row] for row in sorted(bad)))
        for number in made:
            self.index.take(number, self.target)

    def _has(self, number: int) -> bool:
        return self._is_current(self.index, number) or (
            self.target is not self.index and self._is_current(self.target, number)
        )

    def _is_current(self, index: Index, number: int) -> bool:
        size = index.info.part_size
        expected, keys = self.keys[number * size : (number + 1) * size], index.keys(number)
        return index.has(number) and keys is not None and np.array_equal(expected, keys)
