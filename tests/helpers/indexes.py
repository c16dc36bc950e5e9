"""What tests ask of indexes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stml_semi.models.evaluation import EmbeddedTable
from stml_semi.search.index import Index, IndexInfo, import_lance
from stml_semi.search.update import Described, Update


class Whole(NamedTuple):
    """All readable rows of an index, by their rows."""

    embeddings: Tensor
    rows: list[int]
    images: list[str]


def whole(index: Index) -> Whole:
    parts = list(index.parts())
    rows = np.concatenate([part.rows for part in parts])
    order = rows.argsort()
    names = index.images(rows.tolist())
    embeddings = torch.cat([part.embeddings for part in parts])[order]
    return Whole(embeddings, rows[order].tolist(), [names[row] for row in rows[order].tolist()])


class _Named:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def describe(self, row: int) -> str:
        return f"{row}.png"


def made_up(folder: Path, embeddings: Tensor, labels: list[str] | None = None) -> str:
    """An index of embeddings that no model made."""
    count, width = embeddings.shape
    index = Index(folder, IndexInfo("m", "f", "d", None, count, [], width))
    rows = np.arange(count)
    named = np.array(labels or [None] * count, np.object_)
    update = Update(index, None, _Named(count), Described(named, None), None)  # pyright: ignore[reportArgumentType]
    update.write(rows, np.stack([rows, rows], 1), EmbeddedTable(embeddings, np.ones(count, bool), []))
    update.finish()
    return str(folder)


def rewrite(folder: Path, **columns: object) -> None:
    """Puts other columns into the table of an index, as damage does."""
    lance = import_lance()
    index = Index.open(folder)
    table = index.table.to_table()
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    lance.write_dataset(table, str(folder / "images.lance"), mode="overwrite")
    index.info = index.info._replace(version=lance.dataset(str(folder / "images.lance")).version)
    index.save_info()
