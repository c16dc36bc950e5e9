"""What changed in a source since its images were embedded: a key per image, kept beside every part of an index."""

import hashlib
import os
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stml_semi.data.image_table import ImageTable
from stml_semi.runtime import distributed
from stml_semi.search.index import Index

Keys = NDArray[np.int64]
"""(n, 2) hashes of an image's name, and of what it holds."""
_NAME, _CONTENT = 0, 1


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


class Changes(NamedTuple):
    """How a source differs from what an index holds."""

    num_new: int
    num_changed: int
    """Images in place of another of their name."""
    num_gone: int


class Kept:
    """What an index holds already, by what its images hold: to be used again wherever those are now."""

    def __init__(self, index: Index, num_parts: int) -> None:
        """
        Args:
            index: as it was found.
            num_parts: of it.
        """
        self.index = index
        keys, rows = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int64)]
        for number in range(num_parts):
            part = index.keys(number) if index.has(number) else None
            if part is not None:
                keys.append(part)
                rows.append(np.arange(len(part)) + number * index.info.part_size)
        self._keys, self._rows = np.concatenate(keys), np.concatenate(rows)
        order = np.argsort(self._keys[:, _CONTENT], kind="stable")
        self._sorted, self._order = self._keys[order, _CONTENT], order

    def embeddings(self, keys: Keys) -> dict[int, torch.Tensor]:
        """Embeddings of those images that were embedded before and could be read, by their place in `keys`."""
        if not len(self._sorted):
            return {}
        place = np.searchsorted(self._sorted, keys[:, _CONTENT]).clip(max=len(self._sorted) - 1)
        known = np.flatnonzero(self._sorted[place] == keys[:, _CONTENT])
        rows = self._rows[self._order[place[known]]]
        numbers, found = rows // self.index.info.part_size, {}
        for number in np.unique(numbers).tolist():
            part = self.index.part(number)
            at = {int(row): i for i, row in enumerate(part.rows)}
            for own, row in zip(known[numbers == number].tolist(), rows[numbers == number].tolist(), strict=True):
                if row in at:
                    found[own] = part.embeddings[at[row]].clone()  # A view would keep the part in memory.
        return found

    def changes(self, keys: Keys) -> Changes:
        """How a source with such keys differs from what is held."""
        new = keys[~np.isin(keys[:, _CONTENT], self._sorted)]
        gone = self._keys[~np.isin(self._keys[:, _CONTENT], keys[:, _CONTENT])]
        changed = np.isin(new[:, _NAME], gone[:, _NAME])
        replaced = np.isin(gone[:, _NAME], new[:, _NAME])
        return Changes(int((~changed).sum()), int(changed.sum()), int((~replaced).sum()))
