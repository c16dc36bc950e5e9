"""What changed in a source since its images were embedded: two keys per image, kept in the table of an index."""

import hashlib
import os
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stml_semi.data.image_table import ImageTable
from stml_semi.runtime import distributed

Keys = NDArray[np.int64]
"""(n, 2) hashes of an image's name, and of what it holds."""
NAME, CONTENT = 0, 1
_ODD = np.int64(-7046029254386353131)
"""The golden ratio's digits: multiples of it are far from each other."""


def row_keys(table: ImageTable, rows: NDArray[np.int64], device: torch.device) -> Keys:
    """Keys of rows of a table; each process makes its share, and all get the whole."""
    share = distributed.share(len(rows), rank=distributed.rank(), world_size=distributed.world_size())
    own = np.array([row_key(table, int(row)) for row in rows[share]], dtype=np.int64).reshape(-1, 2)
    return distributed.gather(torch.from_numpy(own).to(device), len(rows)).cpu().numpy()


def row_key(table: ImageTable, row: int) -> tuple[int, int]:
    """The key of an image: of its bytes, where the table holds them, else of its file's name, size and times."""
    source = table.original(row)
    if source["bytes"] is not None:
        return _hash(os.fsencode(table.describe(row))), _hash(source["bytes"])
    # The full name, for an index is filled from any working directory.
    name = os.fsencode(os.path.abspath(source["path"]) if source["path"] else table.describe(row))
    try:
        status = os.stat(name)
    except (OSError, ValueError):  # It is listed as unreadable; once it is there it has another key.
        return _hash(name), _hash(name + b"\0")
    # The change time tells of a file that was replaced by one of its size and modification time (cp -p, rsync).
    state = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    return _hash(name), _hash(name + b"\0" + state.encode())


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def places(keys: Keys, known: Keys) -> NDArray[np.int64]:
    """(n,) where among the known images each one is, by what it holds; -1 if it is not. No two are in one place."""
    own, others = _numbered(keys[:, CONTENT]), _numbered(known[:, CONTENT])
    _, here, there = np.intersect1d(own, others, assume_unique=True, return_indices=True)
    found = np.full(len(keys), -1, np.int64)
    found[here] = there
    return found


def _numbered(contents: NDArray[np.int64]) -> NDArray[np.int64]:
    """The keys of what is there more than once, made different: the first, the second, ... of them."""
    order = np.argsort(contents, kind="stable")
    ordered = contents[order]
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    with np.errstate(over="ignore"):
        return contents + numbers * _ODD


class Changes(NamedTuple):
    """How a source differs from what an index holds."""

    num_new: int
    num_changed: int
    """Images in place of another of their name."""
    num_gone: int


def changes(keys: Keys, known: Keys) -> Changes:
    """How a source with such keys differs from what is known."""
    new = keys[~np.isin(keys[:, CONTENT], known[:, CONTENT])]
    gone = known[~np.isin(known[:, CONTENT], keys[:, CONTENT])]
    changed = np.isin(new[:, NAME], gone[:, NAME])
    replaced = np.isin(gone[:, NAME], new[:, NAME])
    return Changes(int((~changed).sum()), int(changed.sum()), int((~replaced).sum()))
