"""The teacher of a run's newest checkpoint, and the pool it was training with."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.data.batches.live_images import Live
from stml_semi.data.batches.pool import UnlabeledPool
from stml_semi.data.batches.train_batches import open_pool
from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.streams import ImageStream
from stml_semi.models.embedder import Embedder
from stml_semi.models.evaluation import embed_table
from stml_semi.run_folder.checkpoint import list_checkpoints, read_pool
from stml_semi.runtime.errors import BadInput, RunFailed
from stml_semi.sharing.trained import open_trained


class TeacherEmbeddings(NamedTuple):
    """Images through the teacher's eyes."""

    rows: NDArray[np.int64]
    """(N,) those of the asked rows that can be read."""
    vectors: Tensor
    """(N, auxiliary_dim) float32 on the CPU: g, by which training judges relations."""


class LastPool(NamedTuple):
    """What the newest checkpoint knows of unlabeled images."""

    step: int
    """Steps taken."""
    pool: UnlabeledPool
    live: Live
    """The candidates of the pool: those that relevance left out, too."""
    embedder: Embedder
    processor: Any
    device: torch.device | str
    num_workers: int

    def embed(self, table: ImageTable, rows: NDArray[np.int64]) -> TeacherEmbeddings:
        """Embeds rows of a table with the evaluation view."""
        found = embed_table(
            table,
            lambda pixels: self.embedder(pixels).g,
            self.processor,
            rows=rows,
            batch_size=64,
            num_workers=self.num_workers,
            device=self.device,
        )
        return TeacherEmbeddings(rows[found.readable], found.embeddings.cpu()[torch.from_numpy(found.readable)])


def open_last_pool(
    config: TrainConfig,
    checkpoints: Path,
    source: ImageTable | ImageStream,
    folder: Path,
    *,
    device: torch.device | str,
    num_workers: int,
) -> LastPool | None:
    """The newest checkpoint's pool and teacher; None without a checkpoint, or before the first pool.

    Args:
        config: of the run.
        checkpoints: the run's folder of them.
        source: unlabeled images.
        folder: empty: the pool of a stream is read again into it, for the run may be going on with its own.
        device: where the teacher embeds.
        num_workers: decoding processes.

    Raises:
        BadInput: the pool names rows that the table does not have, so it is of another source; or the checkpoint
            or the stream cannot be read.
    """
    found = list_checkpoints(checkpoints)
    if not found:
        return None
    pool = open_pool(config, source, folder)
    pool.table = read_pool(found[-1])
    if pool.table is None:
        return None
    if isinstance(source, ImageTable) and pool.table.rows.max() >= len(source):
        raise BadInput(f"the pool names row {pool.table.rows.max()}, and {source.name} has {len(source)} images now")
    trained = open_trained(config, found[-1], "teacher")
    try:
        live = pool.live.again(pool.table.refresh, pool.table.stream)
    except (OSError, RunFailed) as error:
        raise BadInput(str(error)) from None
    embedder = trained.embedder.to(device)
    return LastPool(trained.choice.step, pool, live, embedder, trained.backbone.processor, device, num_workers)
