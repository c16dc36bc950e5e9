"""Fills an index, or brings it up to date: what is there stays, what is new is added, what is gone is deleted."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from stml_semi.data.image_table import ImageTable
from stml_semi.models.evaluation import EmbeddedTable
from stml_semi.runtime.errors import BadInput, RunFailed
from stml_semi.runtime.files import read_json_lines, remove_abandoned, write_json_lines
from stml_semi.runtime.names import from_utf8, to_utf8
from stml_semi.search.changes import CONTENT, NAME, Changes, Keys, changes, places
from stml_semi.search.index import (
    COLUMNS,
    KEYS,
    PART_SIZE,
    TABLE,
    Index,
    IndexInfo,
    cause,
    import_lance,
    open_table,
    system_errors,
)

if TYPE_CHECKING:
    import lance
    import pyarrow as pa
    from datasets import Dataset

_KEPT = timedelta(days=1)
"""How long what was replaced stays on the disk: a program that opened the index before goes on reading it."""
_DELETED_AT_ONCE = 10_000


class _Known(NamedTuple):
    """What a table holds."""

    keys: Keys
    ids: NDArray[np.uint64]
    """Lance's own, of rows."""


class Described(NamedTuple):
    """What a source says of its images beside their names."""

    labels: NDArray[np.object_]
    """(n,) names of their classes; None where there is none."""
    others: "Dataset | None"
    """(n,) further columns."""


class Update:
    """One index that is being filled, seen from the process that writes.

    Rows are added to the table as they are embedded. At the end the others are deleted or moved, and index.json gets
    the version of the table that is right; until then it names the one before. Whenever this is killed, running it
    again goes on.
    """

    def __init__(
        self, index: Index, found: IndexInfo | None, table: ImageTable, described: Described, keys: Keys | None
    ) -> None:
        """
        Args:
            index: to be filled.
            found: what its index.json says, if there is one.
            table: the source.
            described: what the source says of its images.
            keys: of all its rows; None if the index holds nothing yet.
        """
        self.index, self.found, self.source, self.described, self.keys = index, found, table, described, keys
        remove_abandoned(index.folder)
        if found is None:
            index.folder.mkdir(parents=True, exist_ok=True)
            index.save_info()
        self.missing: NDArray[np.int64] = np.arange(len(table))
        """Rows that have to be embedded."""
        self.changes = Changes(len(table), 0, 0)
        if keys is not None:
            with table_errors(index.folder):
                dataset = latest(index.folder)
                self._fit_columns(dataset)
                self.missing = np.flatnonzero(places(keys, _known(dataset).keys) < 0)
                if found is not None and found.version is not None:
                    self.changes = changes(keys, _known(open_table(index.folder, found.version)).keys)

    def write(self, rows: NDArray[np.int64], keys: Keys, made: EmbeddedTable) -> None:
        """Adds rows to the table.

        Args:
            rows: of the source, some of `missing`.
            keys: theirs.
            made: their embeddings.
        """
        import pyarrow as pa

        unit = np.zeros((len(rows), self.index.info.num_features), np.float32)
        if made.readable.any():
            unit[made.readable] = F.normalize(made.embeddings.float(), dim=1).cpu().numpy()[made.readable]
        reasons: list[str | None] = [None] * len(rows)
        for place, bad in zip(np.flatnonzero(~made.readable).tolist(), made.bad, strict=True):
            reasons[place] = to_utf8(bad.reason)
        embeddings = pa.FixedSizeListArray.from_arrays(
            pa.array(unit.reshape(-1)), unit.shape[1], mask=pa.array(~made.readable)
        )
        part = self._columns(rows, keys)
        part = part.append_column("embedding", embeddings).append_column("reason", pa.array(reasons, pa.string()))
        part = part.append_column(KEYS[CONTENT], pa.array(keys[:, CONTENT]))
        path = self.index.folder / TABLE
        with system_errors(self.index.folder):
            import_lance().write_dataset(part, str(path), mode="append" if path.exists() else "create")

    def finish(self) -> Changes:
        """Deletes what is gone, moves what has another row now, and makes this the version of the index."""
        with table_errors(self.index.folder):
            dataset = latest(self.index.folder)
            if self.keys is not None:
                self._tidy(dataset, self.keys)
            if self.found is None or self.found.version != dataset.version:
                # Many small updates leave many small files.
                dataset.optimize.compact_files(target_rows_per_fragment=PART_SIZE)
                dataset.optimize.optimize_indices()  # Of approximate search, if there are any.
            self.index.info = self.index.info._replace(version=dataset.version)
            bad = [
                {"row": line["row"], "image": from_utf8(line["image"]), "reason": from_utf8(line["reason"])}
                for line in dataset.to_table(
                    columns=["row", "image", "reason"], filter="reason IS NOT NULL"
                ).to_pylist()
            ]
        bad.sort(key=lambda line: line["row"])
        if not bad:
            self.index.bad_images.unlink(missing_ok=True)
        elif bad != read_json_lines(self.index.bad_images):
            write_json_lines(self.index.bad_images, bad)
        if self.index.info != self.found:
            self.index.save_info()
            with system_errors(self.index.folder):
                dataset.cleanup_old_versions(older_than=_KEPT)
        return self.changes

    def _tidy(self, dataset: "lance.LanceDataset", keys: Keys) -> None:
        known = _known(dataset)
        place = places(keys, known.keys)
        rows = np.full(len(known.keys), -1)
        rows[place[place >= 0]] = np.flatnonzero(place >= 0)
        gone = known.ids[rows < 0].tolist()
        for start in range(0, len(gone), _DELETED_AT_ONCE):
            dataset.delete(f"_rowid IN ({', '.join(map(str, gone[start : start + _DELETED_AT_ONCE]))})")
        rows = rows[rows >= 0]
        if not self._is_right(dataset, rows, keys):
            columns = self._columns(rows, keys[rows])
            dataset.drop_columns(columns.column_names)
            dataset.add_columns(columns.to_reader(PART_SIZE))

    def _is_right(self, dataset: "lance.LanceDataset", rows: NDArray[np.int64], keys: Keys) -> bool:
        """Whether all images have the right rows, names and labels."""
        there = dataset.to_table(columns=["row", "label", KEYS[NAME]])
        same = np.array_equal(there["row"].to_numpy(), rows)
        same = same and np.array_equal(there[KEYS[NAME]].to_numpy(), keys[rows, NAME])
        same = same and there["label"].to_pylist() == self._labels(rows).to_pylist()
        if not same or self.described.others is None:
            return same
        others = self._others(rows)
        # As texts, since NaN does not equal itself.
        return repr(dataset.to_table(columns=others.column_names).to_pydict()) == repr(others.to_pydict())

    def _columns(self, rows: NDArray[np.int64], keys: Keys) -> "pa.Table":
        """What is said of images by the place they have in the source."""
        import pyarrow as pa

        images = [to_utf8(self.source.describe(row)) for row in rows.tolist()]
        columns: dict[str, Any] = {
            "row": pa.array(rows, pa.int64()),
            "image": pa.array(images, pa.string()),
            "label": self._labels(rows),
            KEYS[NAME]: pa.array(keys[:, NAME]),
        }
        others = self._others(rows)
        return pa.table(columns | {name: others[name] for name in others.column_names})

    def _labels(self, rows: NDArray[np.int64]) -> Any:
        import pyarrow as pa

        return pa.array(self.described.labels[rows].tolist(), pa.string())

    def _others(self, rows: NDArray[np.int64]) -> "pa.Table":
        """Further columns of the source, under names that are words in SQL; what is called like ours is left out."""
        import pyarrow as pa
        from datasets import ClassLabel

        if self.described.others is None:
            return pa.table({})
        found: pa.Table = self.described.others.with_format("arrow")[rows.tolist()]
        columns: dict[str, Any] = {}
        for name, feature in self.described.others.features.items():
            # Lance keeps names such as _rowid for itself.
            called, values = re.sub(r"\W+", "_", name).strip("_"), found[name].combine_chunks()
            if isinstance(feature, ClassLabel):
                texts = [None if number is None else feature.int2str(number) for number in values.to_pylist()]
                values = pa.array(texts, pa.string())
            if called and called not in (*COLUMNS, *KEYS, *columns):
                columns[called] = values
        return pa.table(columns)

    def _fit_columns(self, dataset: "lance.LanceDataset") -> None:
        """Gives the table the further columns that the source has now; `finish` fills them."""
        others = self._others(np.zeros(0, np.int64)).schema
        known = {field.name: field for field in dataset.schema if field.name not in (*COLUMNS, *KEYS)}
        wanted = {field.name: field for field in others}
        gone = [name for name, field in known.items() if name not in wanted or wanted[name].type != field.type]
        new = [field for name, field in wanted.items() if name not in known or name in gone]
        if gone:
            dataset.drop_columns(gone)
        if new:
            dataset.add_columns(new)


def latest(folder: Path) -> "lance.LanceDataset":
    """The table as it was written last, whether or not an update of it was killed.

    Raises:
        BadInput: it cannot be read.
    """
    with table_errors(folder):
        dataset = open_table(folder)
    if "row" not in dataset.schema.names:  # It was dropped, and its successor was not written.
        dataset = open_table(folder, dataset.version - 1)
        dataset.restore()
    return dataset


@contextmanager
def table_errors(folder: Path) -> Iterator[None]:
    """
    Raises:
        BadInput: the table is damaged. What the system refused stays an OSError.
    """
    try:
        with system_errors(folder):
            yield
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, BadInput | RunFailed) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise BadInput(f"--output {folder}: {TABLE} cannot be read ({cause(error)}): choose another folder") from None


def _known(dataset: "lance.LanceDataset") -> _Known:
    found = dataset.to_table(columns=[*KEYS], with_row_id=True)
    keys = np.stack([found[name].to_numpy() for name in KEYS], 1) if len(found) else np.zeros((0, 2), np.int64)
    return _Known(keys, found["_rowid"].to_numpy())
