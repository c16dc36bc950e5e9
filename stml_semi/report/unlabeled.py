"""What unlabeled pictures a run used: neighborhoods of its last pool, as its newest checkpoint kept them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from stml_semi.checkpoint import list_checkpoints
from stml_semi.data.tables import ImageTable
from stml_semi.report.pictures import Pictures

_NEIGHBORHOODS, _NEIGHBORS = 6, 9


class Neighborhood(NamedTuple):
    """A picture of the pool and those that it is drawn together with."""

    picture: int | None
    where: str
    neighbors: list[int | None]
    asked_for: int
    """In how many neighborhoods of the pool it is."""


class PoolView(NamedTuple):
    """What the page shows of a pool."""

    step: int
    """Of the checkpoint."""
    num_live: int
    num_images: int
    popular: list[Neighborhood]
    """Those that most other pictures have for a neighbor."""
    random: list[Neighborhood]
    num_alone: int
    """Pictures that are in nobody's neighborhood."""


def view_pool(checkpoints: Path, table: ImageTable, pictures: Pictures, *, seed: int = 0) -> PoolView | None:
    """Some neighborhoods of the newest checkpoint's pool; None without a pool.

    Args:
        checkpoints: the run's folder of them.
        table: unlabeled pictures.
        pictures: gets what is shown.
        seed: of the random neighborhoods.

    Raises:
        ValueError: the pool names rows that the table does not have, so it is of another source.
    """
    found = list_checkpoints(checkpoints)
    if not found or not (found[-1] / "pool.safetensors").is_file():
        return None
    pool = load_file(found[-1] / "pool.safetensors")
    rows, neighbors = pool["rows"].astype(np.int64), pool["neighbors"].astype(np.int64)
    if not len(rows) or not neighbors.shape[1]:
        return None
    if rows.max() >= len(table):
        raise ValueError(f"the pool names row {rows.max()}, and {table.name} has {len(table)} pictures now")
    asked_for = np.bincount(neighbors.ravel(), minlength=len(rows))

    def show(places: NDArray[np.int64]) -> list[Neighborhood]:
        return [
            Neighborhood(
                pictures.add(table, int(rows[place])),
                table.describe(int(rows[place])),
                [pictures.add(table, int(rows[near])) for near in neighbors[place, :_NEIGHBORS]],
                int(asked_for[place]),
            )
            for place in places
        ]

    step = int(found[-1].name.removeprefix("step-"))
    popular = np.argsort(-asked_for, kind="stable")[: _NEIGHBORHOODS // 2]
    drawn = np.random.default_rng(seed).permutation(len(rows))[:_NEIGHBORHOODS]
    return PoolView(step, len(rows), len(table), show(popular), show(drawn), int((asked_for == 0).sum()))
