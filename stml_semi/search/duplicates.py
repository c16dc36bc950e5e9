"""`dedup`: groups of near-duplicates in an index, two parts in memory at a time."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from stml_semi.neighbors import bfloat16_is_fast
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.progress import Counter
from stml_semi.search.index import Index, Part

_TILE = 2**22  # Cosines that are compared together.
# Of a cosine: both operands and the result are rounded to 8 bits, 2^-9 each; sums are float32.
_BFLOAT16_ERROR = 2**-7
_ROUNDING = 1e-6
"""A float32 product of identical rows may miss 1 by a few roundings."""


class Group(NamedTuple):
    """An image that is kept, and its near-duplicates."""

    rows: list[int]
    """The kept one first, the others by falling cosine."""
    images: list[str]
    cosines: list[float]
    """To the kept image; its own is 1."""


def find_duplicates(folder: str, *, threshold: float = 0.97) -> list[Group]:
    """Groups of near-duplicates in an index, largest first.

    Every row is compared with every other, tile by tile: exact, in the memory of two parts and of the embeddings of all
    near-duplicates. Of rows that are linked, the first is kept, with all that are near to it; the same with what is
    left. So each image that may go is near to one that stays, and a chain of similar images does not become one group.

    Args:
        folder: the index.
        threshold: cosine from which two images count as duplicates.

    Raises:
        BadInput: no index, or a threshold that is no cosine above zero.
    """
    if not 0 < threshold <= 1:
        raise BadInput(f"--threshold {threshold}: is a cosine; give a number above 0, up to 1")
    index = Index.open(folder)
    parts = index.num_parts
    label = np.arange(index.info.num_rows)
    with Counter("compare parts", parts * (parts + 1) // 2, enabled=parts > 1) as counter:
        for first in range(parts):
            left = index.part(first)
            for second in range(first, parts):
                right = left if second == first else index.part(second)
                _unite_close(label, left, right, threshold)
                counter.advance(1)
    counts = np.bincount(label, minlength=len(label))
    linked = np.flatnonzero(counts[label] > 1)
    names, embeddings = _read(index, linked)
    groups = []
    for places in np.split(
        label[linked].argsort(kind="stable"), np.unique(label[linked], return_counts=True)[1].cumsum()[:-1]
    ):
        for near, cosines in _around_kept(embeddings[places], threshold):
            own = places[near]
            groups.append(Group(linked[own].tolist(), [names[place] for place in own], cosines))
    return sorted(groups, key=lambda group: (-len(group.rows), group.rows[0]))


def _around_kept(embeddings: Tensor, threshold: float) -> Iterator[tuple[NDArray[np.int64], list[float]]]:
    """Places of a kept row and of all that are near to it, and their cosines; rows that are left alone are left out.

    Args:
        embeddings: (m, d) of rows that are linked with each other.
        threshold: cosine.
    """
    left = np.arange(len(embeddings))
    while len(left) > 1:
        cosines = (embeddings[left] @ embeddings[left[0]]).clamp(max=1).numpy()
        cosines[0] = 1
        near = np.flatnonzero(cosines >= threshold - _ROUNDING)
        near = near[np.argsort(-cosines[near], kind="stable")]
        near = np.concatenate([[0], near[near != 0]])
        if len(near) > 1:
            yield left[near], cosines[near].tolist()
        left = np.delete(left, near)


def _read(index: Index, rows: NDArray[np.int64]) -> tuple[list[str], Tensor]:
    """Names and embeddings of rows, (R,) rising."""
    found = index.find(rows.tolist())
    ordered = [found[row] for row in rows.tolist()]
    embeddings = [row.embedding for row in ordered] or []
    empty = torch.empty(0, index.info.num_features)
    return [row.image for row in ordered], torch.stack(embeddings) if embeddings else empty


def _unite_close(label: np.ndarray[Any, Any], left: Part, right: Part, threshold: float) -> None:
    """Joins the groups of all rows of two parts that are near-duplicates. `label` changes in place."""
    if not len(left.rows) or not len(right.rows):
        return
    least, device = threshold - _ROUNDING, left.embeddings.device
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
    known, ends = np.unique(pairs, return_inverse=True)
    first, second = ends.reshape(pairs.shape).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(known), len(known)))
    _, component = connected_components(graph, directed=False)
    _, smallest = np.unique(component, return_index=True)
    changed, target = known, known[smallest[component]]
    # One pass over all rows, however many groups were joined.
    place = np.searchsorted(changed, label).clip(max=len(changed) - 1)
    hit = changed[place] == label
    label[hit] = target[place[hit]]


def as_csv(groups: Sequence[Group]) -> str:
    """What to keep and what to remove: a line for every image of a group."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["action", "image", "row", "group", "kept", "cosine"])
    for number, group in enumerate(groups, 1):
        for place, (row, image, cosine) in enumerate(zip(group.rows, group.images, group.cosines, strict=True)):
            action = "remove" if place else "keep"
            writer.writerow([action, image, row, number, group.images[0], f"{cosine:.6f}"])
    return text.getvalue()
