"""Approximate search in very many images: Lance's graphs (HNSW) over embeddings of 8 bits.

A graph holds about 100,000 images; a query looks into the eight whose images are nearest on average, and compares the
best again at full precision. Images that were added since the graphs were built are compared one by one.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stml_semi.runtime.errors import BadInput
from stml_semi.search.index import Index, open_table, system_errors
from stml_semi.search.nearest import Near, nearest_rows

_PER_GRAPH = 100_000
_GRAPHS, _EFFORT, _COMPARED_AGAIN = 8, 200, 2
_SAMPLED, _NEAREST = 200, 10


def build(index: Index) -> Index:
    """Builds what approximate search needs, unless it is there; gives the index that has it."""
    if _is_built(index):
        return index
    with system_errors(index.folder):
        dataset = open_table(index.folder, index.info.version)
        graphs = -(-dataset.count_rows() // _PER_GRAPH)
        dataset.create_index("embedding", "IVF_HNSW_SQ", metric="cosine", num_partitions=graphs)
        built = Index(index.folder, index.info._replace(version=open_table(index.folder).version))
    built.save_info()
    return built


def recall(index: Index) -> float:
    """The share of the ten nearest images of up to 200 evenly spaced ones that approximate search finds."""
    rows = np.unique(np.linspace(0, index.info.num_rows - 1, _SAMPLED).astype(int)).tolist()
    found = index.find(rows)
    queries, own = torch.stack([row.embedding for row in found.values()]), torch.tensor([*found])
    expected = nearest_rows(index.parts(), queries, own, _NEAREST)
    obtained = nearest(index, queries, own, _NEAREST)
    right = [len({*map(_row, a)} & {*map(_row, b)}) for a, b in zip(expected, obtained, strict=True)]
    return sum(right) / max(sum(map(len, expected)), 1)


def _row(near: Near) -> int:
    return near.row


def nearest(index: Index, queries: Tensor, own: Tensor, k: int, where: str | None = None) -> list[list[Near]]:
    """Like `nearest_rows`, of the whole index and nearly right.

    Raises:
        BadInput: it was not built, or the condition cannot be understood.
    """
    if not _is_built(index):
        raise BadInput(
            "--backend approximate: the index was not prepared for it; run the same `embed` command with --approximate"
        )
    found = []
    with index.asking(where):
        for query, left_out in zip(queries, own.tolist(), strict=True):
            scanner: Any = index.table.scanner
            table = scanner(
                columns=["row", "_distance"],
                filter=where,
                prefilter=True,
                nearest={
                    "column": "embedding",
                    "q": query.numpy(),
                    "k": k + 1,
                    "nprobes": _GRAPHS,
                    "ef": max(_EFFORT, 2 * (k + 1)),
                    "refine_factor": _COMPARED_AGAIN,
                },
            ).to_table()
            pairs = zip(table["row"].to_pylist(), table["_distance"].to_pylist(), strict=True)
            found.append([Near(row, 1 - distance) for row, distance in pairs if row != left_out][:k])
    return found


def _is_built(index: Index) -> bool:
    return bool(index.table.has_index)
