"""`dedup`: groups of near-duplicates in an index, two parts in memory at a time."""

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stml_semi.neighbors import bfloat16_is_fast
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.progress import Counter
from stml_semi.search.index import Index, Part

_TILE = 2**22  # Cosines that are compared together.
# Of a cosine: both operands and the result are rounded to 8 bits, 2^-9 each; sums are float32.
_BFLOAT16_ERROR = 2**-7


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


def _names(index: Index, rows: set[int]) -> dict[int, str]:
    names = {}
    for number in sorted({row // index.info.part_size for row in rows}):
        part = index.part(number)
        names |= {int(row): part.images[i] for i, row in enumerate(part.rows) if int(row) in rows}
    return names
