"""`search`: exact answers from an index on disk, one part in memory at a time."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.data.any_image import OneImage
from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, ImageSource, read_image
from stml_semi.data.sources.open_source import open_source
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.finite import check_lengths
from stml_semi.search.approximate import nearest as nearest_approximately
from stml_semi.search.changes import row_key
from stml_semi.search.embed import fingerprint, is_sample, sample_names
from stml_semi.search.index import Index, Row
from stml_semi.search.nearest import Backend, Near, nearest_rows
from stml_semi.search.rerank import CANDIDATES, order
from stml_semi.sharing.load import Retriever, load, model_folder
from stml_semi.sharing.thresholds import read_thresholds


class Hit(NamedTuple):
    """A row of the index that answers a query."""

    row: int
    image: str
    similarity: float
    """Cosine."""


class Answer(NamedTuple):
    """A query and its nearest rows, nearest first."""

    image: str
    """An image file, or how the index calls the image of `row`."""
    row: int | None
    """Of the index, if that is the query."""
    hits: list[Hit]

    @property
    def query(self) -> str:
        """What was searched for, in words."""
        return self.image if self.row is None else f"{self.image} (row {self.row})"


def search(
    folder: str,
    images: Sequence[str] = (),
    *,
    rows: Sequence[int] = (),
    model: str | None = None,
    k: int = 10,
    where: str | None = None,
    rerank: bool = False,
    backend: Backend = "exact",
    min_precision: float | None = None,
) -> list[Answer]:
    """The k nearest rows of an index for image files, and for rows of the index (those without themselves).

    Args:
        folder: the index.
        images: image files.
        rows: rows of the indexed source.
        model: default: the one that made the index.
        k: answers per query; all there are, if fewer.
        where: only among rows for which this condition holds: SQL over the columns row, image and label.
        rerank: order the 100 nearest by whether they are near to each other too (`rerank`).
        backend: "exact"; "faiss": its flat search, exact up to the rounding of float32; "approximate": by what `embed`
            built for it.
        min_precision: leave out what is less similar than a match of this precision (0..1), by the thresholds of the
            model: no hits are left of what is not in the index.

    Raises:
        BadInput: no index, an image that cannot be read, a row that is not there, no condition, another model than the
            index's, or what the backend needs is missing.
    """
    if backend == "faiss" and find_spec("faiss") is None:
        raise BadInput("--backend faiss: it is not installed; pip install 'stml-semi[faiss]', or leave the flag out")
    index = Index.open(folder)
    least = -math.inf if min_precision is None else _threshold(index, model, min_precision)
    if not images and not rows:
        raise BadInput("search: nothing to search for; name image files, or --row with rows of the index")
    queries = [_embed(index, images, model)] if images else []
    asked: list[tuple[str, int | None]] = [(image, None) for image in images]
    if rows:
        found = find_rows(index, rows)
        queries.append(torch.stack([found[row].embedding for row in rows]))
        asked.extend((found[row].image, row) for row in rows)
    own = torch.tensor([-1 if row is None else row for _, row in asked])
    vectors, wanted = torch.cat(queries), max(k, CANDIDATES) if rerank else k
    if backend == "approximate":
        nearest = nearest_approximately(index, vectors, own, wanted, where)
    else:
        nearest = nearest_rows(index.parts(where), vectors, own, wanted, backend)
    if rerank:
        nearest = _reordered(index, vectors, nearest, k)
    hits = name_hits(index, nearest, least)
    return [Answer(image, row, found) for (image, row), found in zip(asked, hits, strict=True)]


def find(
    index: Index,
    queries: OneImage | Iterable[OneImage] | NDArray[np.float32] | Tensor,
    k: int,
    *,
    where: str | None = None,
    rerank: bool = False,
    model: str | None = None,
    min_precision: float | None = None,
) -> list[list[Hit]]:
    """`Index.search`."""
    least = -math.inf if min_precision is None else _threshold(index, model, min_precision)
    if isinstance(queries, np.ndarray | Tensor) and _is_floating(queries) and queries.ndim <= 2:
        vectors = torch.atleast_2d(torch.as_tensor(queries).float().cpu())
        if vectors.shape[1] != index.info.num_features:
            raise BadInput(f"search: embeddings of {vectors.shape[1]} numbers; the index has {index.info.num_features}")
        check_lengths(vectors, "search", lambda i: f"query {i}", "give embeddings that its model made")
        vectors = F.normalize(vectors, dim=1)
    else:
        images = cast(OneImage | Iterable[OneImage], queries)
        vectors = torch.atleast_2d(_last_model(index, model).encode(images, convert_to_tensor=True).cpu())
    if not len(vectors):
        return []
    own = torch.full((len(vectors),), -1)
    nearest = nearest_rows(index.parts(where), vectors, own, max(k, CANDIDATES) if rerank else k)
    return name_hits(index, _reordered(index, vectors, nearest, k) if rerank else nearest, least)


def _reordered(index: Index, queries: Tensor, nearest: list[list[Near]], k: int) -> list[list[Near]]:
    """The first k after reranking the first hundred; what is farther keeps its place."""
    found = []
    for query, near in zip(queries, nearest, strict=True):
        candidates = near[:CANDIDATES]
        known = index.find([one.row for one in candidates])
        if candidates:
            places = order(query, torch.stack([known[one.row].embedding for one in candidates]))
            candidates = [candidates[place] for place in places]
        found.append([*candidates, *near[CANDIDATES:]][:k])
    return found


def _is_floating(values: NDArray[np.generic] | Tensor) -> bool:
    return values.is_floating_point() if isinstance(values, Tensor) else np.issubdtype(values.dtype, np.floating)


@lru_cache(maxsize=1)
def _last_model(index: Index, model: str | None) -> Retriever:
    """Stays open: a program searches an index again and again."""
    return open_model(index, model)


def name_hits(index: Index, nearest: list[list[Near]], least: float = -math.inf) -> list[list[Hit]]:
    """Those of the nearest rows that are similar enough, with their names."""
    kept = [[near for near in found if near.similarity >= least] for found in nearest]
    names = index.images([near.row for found in kept for near in found])
    return [[Hit(near.row, names[near.row], near.similarity) for near in found] for found in kept]


def _threshold(index: Index, model: str | None, precision: float) -> float:
    if not 0 < precision < 1:
        raise BadInput(f"--min-precision {precision:g}: is a share of right answers; give a number such as 0.95")
    _last_model(index, model)  # Refuses another than the index's, whose thresholds would say nothing here.
    name = model or _made_with(index)
    known = read_thresholds(model_folder(name))
    if known is None:
        raise BadInput(
            f"--min-precision: {name} has no thresholds; train with --validation-classes 0.2, or run `stml-semi "
            f"evaluate --model MODEL --data LABELED --save-thresholds` on classes that it was not trained on"
        )
    return known.at(precision).similarity


def _embed(index: Index, images: Sequence[str], model: str | None) -> Tensor:
    pictures = []
    for path in images:
        try:
            pictures.append(read_image({"bytes": None, "path": path}))
        except BadImage as error:
            raise BadInput(f"search {path}: {error}; give image files") from None
    return torch.from_numpy(_last_model(index, model).encode(pictures, names=images))


def open_model(index: Index, model: str | None = None) -> Retriever:
    """The model of an index.

    Args:
        index: whose embeddings new ones shall compare with.
        model: default: the one that made the index.

    Raises:
        BadInput: no such model, or another than the index's.
    """
    retriever = load(model or _made_with(index), image_size=index.info.image_size, fit=index.info.fit)
    if fingerprint(retriever) != index.info.fingerprint:
        raise BadInput(
            f"--model {model or index.info.model}: the index was made with other weights ({index.info.model}), whose "
            f"embeddings do not compare; give that model, or embed again"
        )
    return retriever


def _made_with(index: Index) -> str:
    """The name of an index's model, as `load` takes it."""
    name = index.info.model
    if index.info.commit and not Path(name).exists():
        return f"{name.partition('@')[0]}@{index.info.commit}"  # Its branch may have moved on.
    return name


def open_indexed(index: Index) -> ImageTable | None:
    """The indexed images, if they are still where they were; with labels, if they have any in the same order."""
    info = index.info
    for labels in ("optional", "ignored"):
        try:
            table = open_source(info.data, flag="--index", labels=labels, image_column=info.image_column)
        except BadInput:
            continue
        if len(table) == info.num_rows and (labels == "ignored" or is_sample(sample_names(table), info)):
            return table
    return None


def indexed_source(index: Index, table: ImageTable, row: int) -> ImageSource:
    """The image that was embedded as a row.

    Args:
        index: whose row it is.
        table: of `open_indexed`.
        row: of the index.

    Raises:
        BadImage: there is another image now.
    """
    if index.key(row) not in (None, row_key(table, row)):
        raise BadImage("it has changed since it was embedded; run the same `embed` command again")
    return table.source(row)


def find_rows(index: Index, rows: Sequence[int]) -> dict[int, Row]:
    """Rows of an index by their number.

    Raises:
        BadInput: a row that is not there, or that could not be read when the index was made; or the index is damaged.
    """
    found = index.find(rows)
    missing = [row for row in rows if row not in found]
    if missing:
        raise BadInput(f"--row {missing[0]}: the index has no such row (0 to {index.info.num_rows - 1}, readable ones)")
    return found
