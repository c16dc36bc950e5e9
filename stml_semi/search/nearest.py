"""The nearest rows of an index, exactly: one part in memory at a time."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stml_semi.neighbors import Gallery, Neighbors
from stml_semi.search.index import Part

Backend = Literal["exact", "faiss", "approximate"]


class Near(NamedTuple):
    """A row of an index that is near to a query."""

    row: int
    similarity: float
    """Cosine."""


def nearest_rows(
    parts: Iterable[Part], queries: Tensor, own: Tensor, k: int, backend: Literal["exact", "faiss"] = "exact"
) -> list[list[Near]]:
    """The best k of every part, merged, nearest first.

    Args:
        parts: of an index.
        queries: (Q, d) float32, unit length.
        own: (Q,) rows to leave out, -1 for none.
        k: hits per query; all there are, if fewer.
        backend: what searches a part.

    Returns:
        Q lists.
    """
    best: list[list[Near]] = [[] for _ in queries]
    find = _by_faiss if backend == "faiss" else _exactly
    for part in parts:
        rows = part.rows.tolist()
        # One more, because a query that is a row of this part finds itself.
        found = find(part.embeddings, queries, min(k + 1, len(rows)))
        for i, (columns, similarities) in enumerate(
            zip(found.indices.tolist(), found.similarities.tolist(), strict=True)
        ):
            near = [Near(rows[c], s) for s, c in zip(similarities, columns, strict=True) if rows[c] != own[i]]
            best[i] = sorted([*best[i], *near], key=lambda one: (-one.similarity, one.row))[:k]
    return best


def _exactly(gallery: Tensor, queries: Tensor, k: int) -> Neighbors:
    return Gallery(gallery).search(queries, k)


def _by_faiss(gallery: Tensor, queries: Tensor, k: int) -> Neighbors:
    import faiss  # pyright: ignore[reportMissingImports]

    similarities, rows = faiss.knn(queries.numpy(), gallery.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return Neighbors(torch.from_numpy(rows), torch.from_numpy(similarities))
