"""The last unlabeled batch as the teacher saw it: a matrix of affinities beside its images."""

import base64
import io
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.losses.relations import contextual_affinity, pooled_affinity
from stml_semi.report.pictures import Pictures
from stml_semi.report.unlabeled.teacher import LastPool

_SHOWN = 30
COLORS = "cividis"


class BatchAffinities(NamedTuple):
    """A part of a batch: some queries, each followed by its company."""

    step: int
    pictures: list[int | None]
    """(N,) of the page."""
    names: list[str]
    """(N,)"""
    group: int
    """Images that were drawn together: a query and its company."""
    uri: str
    """The matrix as an image of N x N pixels."""
    scale: str
    """Colors from 0 to 1, as an image of one row."""
    percent: list[list[int]]
    """(N, N) affinities in percent."""
    together: float | None
    """Mean affinity of two images that were drawn together, 0..1; None without such pairs."""
    apart: float | None
    """Mean affinity of two others."""


def view_last_batch(config: TrainConfig, last: LastPool, pictures: Pictures) -> BatchAffinities | None:
    """The affinities within the last batch that the checkpoint's run trained on; None if that had no unlabeled part.

    Training looked at augmented views; here every image is seen once, in its evaluation view.

    Args:
        config: of the run.
        last: pool and teacher.
        pictures: gets what is shown.
    """
    step = last.step - 1
    if last.pool.table is None or not last.pool.is_valid(step):
        return None
    table = last.live.table
    planned = last.pool.plan_of(last.pool.table).batch(config.seed, step)
    known = last.pool.relations(torch.from_numpy(planned), num_views=1)
    seen = last.embed(table, np.unique(planned))
    # An image that cannot be read (any more) is left out.
    kept = np.flatnonzero(np.isin(planned, seen.rows))
    rows, groups = planned[kept], kept // config.num_neighbors
    vectors = seen.vectors[torch.from_numpy(np.searchsorted(seen.rows, rows))]
    if known.affinity is not None:
        affinity = known.affinity[kept][:, kept]
    elif known.overlap is None:
        topk = min(config.num_neighbors, len(rows))
        affinity = contextual_affinity(vectors, torch.from_numpy(rows), sigma=known.sigma, topk=topk).affinity
    else:
        affinity = pooled_affinity(vectors, known.overlap[kept][:, kept], sigma=known.sigma)
    same, pair = groups[:, None] == groups, rows[:, None] != rows
    number = max(_SHOWN // config.num_neighbors, 1) * config.num_neighbors
    part = affinity[:number, :number].numpy()
    return BatchAffinities(
        last.step,
        [pictures.add(table, int(row)) for row in rows[:number]],
        [table.describe(int(row)) for row in rows[:number]],
        config.num_neighbors,
        _png(part),
        _png(np.linspace(0, 1, 128)[None]),
        np.rint(100 * part).astype(int).tolist(),
        _mean(affinity, same & pair),
        _mean(affinity, ~same & pair),
    )


def _mean(affinity: Tensor, pairs: NDArray[np.bool_]) -> float | None:
    return float(affinity[torch.from_numpy(pairs)].mean()) if pairs.any() else None


def _png(values: NDArray[np.floating]) -> str:
    """Values in 0..1 as an image of one pixel each."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, values, vmin=0, vmax=1, cmap=COLORS, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
