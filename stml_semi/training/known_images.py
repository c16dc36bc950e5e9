"""A table that is larger than what a refresh embeds: it is embedded once, and at every refresh a part of it anew.

Neighborhoods over the whole table make a sparse collection dense: of 16,384 images of iNaturalist few have a fellow
among the others, of all 325,846 nearly every one has. That most embeddings are older does no harm: the teacher is slow.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stml_semi.config import TrainConfig
from stml_semi.data.batches.plan import Rows
from stml_semi.data.batches.pool import KnownImages
from stml_semi.losses.evidence import DIMENSIONS as WHITENED
from stml_semi.runtime.errors import RunFailed

DIMENSIONS = 192
"""Leading directions of g that are remembered: 768 bytes an image. In half precision there could be more of them, but
rounding, which depends on how a batch is divided, would then change who is whose neighbor."""
# Seconds between lines about the first look.
_PATIENCE = 20.0


class Readable(NamedTuple):
    """Images of a table that could be read."""

    rows: Rows
    embeddings: Tensor
    """(N, auxiliary_dim): the teacher's g."""


Embed = Callable[[Rows], Readable]


def checkpoint_bytes(config: TrainConfig) -> int:
    """Of one image of such a table: its embedding, whitened and not, and its neighborhood."""
    remembered = 4 * min(DIMENSIONS, config.auxiliary_dim)
    whitened = 4 * min(WHITENED, config.auxiliary_dim) + 4 if config.calibrates else 0
    pooled = config.relations == "pool"
    neighborhood = max(config.pool_neighbors, config.num_neighbors) if pooled else config.num_neighbors
    drawn = max((neighborhood - 1) // 2, config.num_neighbors - 1) if pooled else neighborhood - 1
    return 2 * 8 + remembered + whitened + 4 * (drawn + neighborhood * pooled)


def compress(embeddings: Tensor, basis: Tensor) -> Tensor:
    """(N, auxiliary_dim) of any length -> (N, d) float32 of about unit length."""
    return normalize(embeddings.float(), dim=1) @ basis


def first_look(parts: list[Rows], embed: Embed, note: Callable[[str], None]) -> KnownImages:
    """Embeds a whole table, a part at a time.

    Args:
        parts: of its rows; the first one says which directions matter.
        embed: the teacher.
        note: is told every 20 seconds how much is left.

    Raises:
        RunFailed: no image can be read.
    """
    begun = said = time.monotonic()
    total, done = sum(map(len, parts)), 0
    basis, found = None, []
    for part in parts:
        seen = embed(part)
        if len(seen.rows):
            basis = _leading(seen.embeddings) if basis is None else basis
            found.append(Readable(seen.rows, compress(seen.embeddings, basis)))
        done += len(part)
        now = time.monotonic()
        if done < total and now - said > _PATIENCE:
            said, left = now, (now - begun) * (total - done) / done
            note(f"{done:,} of {total:,} embedded, {int(left // 60)}:{int(left % 60):02} left")
    if basis is None:
        raise RunFailed.on_all(f"--unlabeled: none of {total:,} images can be read")
    rows = np.concatenate([one.rows for one in found])
    order = rows.argsort()
    embeddings = torch.cat([one.embeddings for one in found])
    return KnownImages(rows[order], embeddings[torch.from_numpy(order).to(embeddings.device)], basis)


def renew(known: KnownImages, seen: Readable) -> KnownImages:
    """With the embeddings of today for some; an image that could not be read at first stays out."""
    places = np.searchsorted(known.rows, seen.rows).clip(max=len(known.rows) - 1)
    among = known.rows[places] == seen.rows
    device = seen.embeddings.device
    basis = known.basis.to(device)
    renewed = known.embeddings.to(device, copy=True)
    renewed[torch.from_numpy(places[among]).to(device)] = compress(seen.embeddings, basis)[torch.from_numpy(among)]
    return KnownImages(known.rows, renewed, basis)


def _leading(embeddings: Tensor) -> Tensor:
    """(auxiliary_dim, d): as many leading directions as are remembered. They are not centered: cosines stay."""
    unit = normalize(embeddings.double(), dim=1)
    return torch.linalg.eigh(unit.T @ unit).eigenvectors[:, -DIMENSIONS:].float()
