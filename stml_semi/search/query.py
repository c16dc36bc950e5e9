"""`search` and `dedup`: exact answers from an index on disk, one part in memory at a time."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, read_image
from stml_semi.data.sources.open_source import open_source
from stml_semi.neighbors import Gallery, Neighbors, bfloat16_is_fast
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.progress import Counter
from stml_semi.search.embed import fingerprint
from stml_semi.search.index import Index, Part
from stml_semi.sharing.load import Retriever, load

Backend = Literal["exact", "faiss"]

_TILE = 2**22  # Cosines that are looked at together.
# Of a cosine: both operands and the result are rounded to 8 bits, 2^-9 each; sums are float32.
_BFLOAT16_ERROR = 2**-7


class Hit(NamedTuple):
    """A row of the index that answers a query."""

    row: int
    image: str
    similarity: float
    """Cosine."""


class Answer(NamedTuple):
    """A query and its nearest rows, nearest first."""

    query: str
    hits: list[Hit]


def search(
    folder: str,
    images: Sequence[str] = (),
    *,
    rows: Sequence[int] = (),
    model: str | None = None,
    k: int = 10,
    backend: Backend = "exact",
) -> list[Answer]:
    """The k nearest rows of an index for picture files, and for rows of the index (those without themselves).

    Args:
        folder: the index.
        images: picture files.
        rows: rows of the indexed source.
        model: default: the one that made the index.
        k: answers per query; all there are, if fewer.
        backend: "exact", or "faiss": its flat search, exact up to the rounding of float32.

    Raises:
        BadInput: no index, a picture that cannot be read, a row that is not there, another model than the index's,
            or faiss is not installed.
    """
    if backend == "faiss" and find_spec("faiss") is None:
        raise BadInput("--backend faiss: it is not installed; pip install 'stml-semi[faiss]', or leave the flag out")
    index = Index.open(folder)
    if not images and not rows:
        raise BadInput("search: nothing to search for; name image files, or --row with rows of the index")
    queries, names = [], []
    if images:
        queries.append(_embed(index, images, model))
        names.extend(images)
    if rows:
        found = find_rows(index, rows)
        queries.append(torch.stack([found[row].embedding for row in rows]))
        names.extend(f"{found[row].image} (row {row})" for row in rows)
    own = torch.tensor([*[-1] * len(images), *rows])
    nearest = nearest_rows(index.parts(), torch.cat(queries), own, k, backend)
    return [Answer(name, hits) for name, hits in zip(names, nearest, strict=True)]


def _embed(index: Index, images: Sequence[str], model: str | None) -> Tensor:
    pictures = []
    for path in images:
        try:
            pictures.append(read_image({"bytes": None, "path": path}))
        except BadImage as error:
            raise BadInput(f"search {path}: {error}; give picture files") from None
    return torch.from_numpy(open_model(index, model).encode(pictures))


def open_model(index: Index, model: str | None = None) -> Retriever:
    """The model of an index.

    Args:
        index: whose embeddings new ones shall compare with.
        model: default: the one that made the index.

    Raises:
        BadInput: no such model, or another than the index's.
    """
    retriever = load(model or index.info.model)
    if fingerprint(retriever) != index.info.fingerprint:
        raise BadInput(
            f"--model {model or index.info.model}: the index was made with other weights ({index.info.model}), whose "
            f"embeddings do not compare; give that model, or embed again"
        )
    return retriever


def open_indexed(index: Index) -> ImageTable | None:
    """The indexed pictures, if they are still where they were."""
    try:
        table = open_source(index.info.data, flag="--index", labels="ignored", image_column=index.info.image_column)
    except BadInput:
        return None
    return table if len(table) == index.info.num_rows else None


class Row(NamedTuple):
    """A row of an index."""

    embedding: Tensor
    """(d,) float32, unit length."""
    image: str


def find_rows(index: Index, rows: Sequence[int]) -> dict[int, Row]:
    """Rows of an index by their number.

    Raises:
        BadInput: a row that is not there, or that could not be read when the index was made.
    """
    found = {}
    for number in {row // index.info.part_size for row in rows if 0 <= row < index.info.num_rows}:
        part = index.part(number)
        places = {int(row): i for i, row in enumerate(part.rows)}
        found |= {row: Row(part.embeddings[places[row]], part.images[places[row]]) for row in rows if row in places}
    missing = [row for row in rows if row not in found]
    if missing:
        raise BadInput(f"--row {missing[0]}: the index has no such row (0 to {index.info.num_rows - 1}, readable ones)")
    return found


def nearest_rows(
    parts: Iterable[Part], queries: Tensor, own: Tensor, k: int, backend: Backend = "exact"
) -> list[list[Hit]]:
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
    best: list[list[Hit]] = [[] for _ in queries]
    find = _by_faiss if backend == "faiss" else _exactly
    for part in parts:
        rows = torch.from_numpy(part.rows)
        # One more, because a query that is a row of this part finds itself.
        found = find(part.embeddings, queries, min(k + 1, len(rows)))
        for i, (columns, similarities) in enumerate(
            zip(found.indices.tolist(), found.similarities.tolist(), strict=True)
        ):
            pairs = [(s, c) for s, c in zip(similarities, columns, strict=True) if rows[c] != own[i]]
            worst = best[i][-1].similarity if len(best[i]) == k else -2.0
            hits = [Hit(int(rows[c]), part.images[int(c)], s) for s, c in pairs if s > worst]
            best[i] = sorted([*best[i], *hits], key=lambda hit: (-hit.similarity, hit.row))[:k]
    return best


def _exactly(gallery: Tensor, queries: Tensor, k: int) -> Neighbors:
    return Gallery(gallery).search(queries, k)


def _by_faiss(gallery: Tensor, queries: Tensor, k: int) -> Neighbors:
    import faiss  # pyright: ignore[reportMissingImports]

    similarities, rows = faiss.knn(queries.numpy(), gallery.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return Neighbors(torch.from_numpy(rows), torch.from_numpy(similarities))


class Group(NamedTuple):
    """Rows that are near-duplicates of each other, directly or through others of the group."""

    rows: list[int]
    images: list[str]


def find_duplicates(folder: str, *, threshold: float = 0.97) -> list[Group]:
    """Groups of near-duplicates in an index, largest first.

    Every row is compared with every other, tile by tile: exact, in the memory of two parts.

    Args:
        folder: the index.
        threshold: cosine from which two pictures count as duplicates.

    Raises:
        BadInput: no index, or a threshold that is no cosine above zero.
    """
    if not 0 < threshold <= 1:
        raise BadInput(f"--threshold {threshold}: is a cosine; give a number above 0, up to 1")
    index = Index.open(folder)
    parts = index.info.num_parts
    label = np.arange(index.info.num_rows)
    with Counter("compare parts", parts * (parts + 1) // 2, enabled=parts > 1) as counter:
        for first in range(parts):
            left = index.part(first)
            for second in range(first, parts):
                right = left if second == first else index.part(second)
                _unite_close(label, left, right, threshold)
                counter.advance(1)
    counts = np.bincount(label, minlength=len(label))
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(counts[label] > 1).tolist():
        members.setdefault(int(label[row]), []).append(row)
    names = _names(index, {row for rows in members.values() for row in rows})
    groups = [Group(rows, [names[row] for row in rows]) for rows in members.values()]
    return sorted(groups, key=lambda group: (-len(group.rows), group.rows[0]))


def _unite_close(label: np.ndarray[Any, Any], left: Part, right: Part, threshold: float) -> None:
    """Joins the groups of all rows of two parts that are near-duplicates. `label` changes in place."""
    if not len(left.rows) or not len(right.rows):
        return
    # A float32 product of identical rows may miss 1 by a few roundings.
    least, device = threshold - 1e-6, left.embeddings.device
    fast = torch.bfloat16 if bfloat16_is_fast(device) else torch.float32
    operands = left.embeddings.to(fast), right.embeddings.to(fast).T
    height = max(1, _TILE // len(right.rows))
    # Written into again and again: fresh memory for every product costs a third of its time.
    buffer = torch.empty(min(height, len(left.rows)), len(right.rows), dtype=fast)
    for start in range(0, len(left.rows), height):
        own = operands[0][start : start + height]
        # Most rows have no duplicate: only those that may have one are multiplied again in float32.
        highest = torch.mm(own, operands[1], out=buffer[: len(own)]).amax(1)
        places = (highest.float() >= least - _BFLOAT16_ERROR).nonzero().flatten() + start
        for part in places.split(height):
            a, b = (left.embeddings[part] @ right.embeddings.T >= least).nonzero(as_tuple=True)
            _unite(label, left.rows[part[a].numpy()], right.rows[b.numpy()])


def _unite(label: np.ndarray[Any, Any], a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    """Joins the groups of rows a[i] and b[i]; a group is called after its smallest row. `label` changes in place."""
    pairs = np.stack([label[a], label[b]], 1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    if not len(pairs):
        return
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while (above := parent.get(x, x)) != x:
            parent[x] = parent.get(above, above)
            x = above
        return x

    for one, other in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    changed = np.array(sorted(parent))
    target = np.array([root(int(x)) for x in changed])
    # One pass over all rows, however many groups were joined.
    place = np.searchsorted(changed, label).clip(max=len(changed) - 1)
    hit = changed[place] == label
    label[hit] = target[place[hit]]


def _names(index: Index, rows: set[int]) -> dict[int, str]:
    names = {}
    for number in sorted({row // index.info.part_size for row in rows}):
        part = index.part(number)
        names |= {int(row): part.images[i] for i, row in enumerate(part.rows) if int(row) in rows}
    return names
