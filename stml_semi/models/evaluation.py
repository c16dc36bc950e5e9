"""Embed a table with a model's evaluation view, and score it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.data.batches.eval_images import EvalPieces, joined
from stml_semi.data.batches.loading import BadImageEntry
from stml_semi.data.image_table import ImageTable
from stml_semi.data.workers import decode_ahead
from stml_semi.metrics import (
    OpenSetScores,
    PairCounts,
    QueryScores,
    Threshold,
    open_set_scores,
    pair_counts,
    query_scores,
    summarize,
)
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.exact import exact_float32
from stml_semi.runtime.finite import check_lengths

Encode = Callable[[Tensor], Tensor]
"""pixels (B, 3, H, W) -> embeddings (B, d)."""


TRUNCATED = (32, 64, 128, 256)
"""How many leading dimensions are scored alone."""
TRUNCATED_SCORES = ("recall@1", "map@r")


class EmbeddedTable(NamedTuple):
    """Embeddings of rows of a table, in their order, the same on every process."""

    embeddings: Tensor
    """(N, d) float32, not normalized; an image that cannot be read has zeros."""
    readable: NDArray[np.bool_]
    """(N,)"""
    bad: list[BadImageEntry]


@exact_float32()
@torch.inference_mode()
def embed_table(
    table: ImageTable,
    encode: Encode,
    processor: Any,
    *,
    rows: NDArray[np.int64] | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> EmbeddedTable:
    """Embeds rows of a table; each process takes its share, and all get the whole.

    Args:
        table: images.
        encode: the model's forward pass, autocast included.
        processor: the backbone's image processor.
        rows: which rows, default all.
        batch_size: images per forward pass.
        num_workers: decoding processes.
        device: where `encode` expects its pixels.
        progress: called with the number of images done since the last call.

    Raises:
        BadInput: the model makes embeddings that are not finite.
    """
    rows = np.arange(len(table)) if rows is None else rows
    share = distributed.share(len(rows), rank=distributed.rank(), world_size=distributed.world_size())
    device = torch.device(device)
    pieces = EvalPieces(table, rows[share], processor, batch_size=batch_size, num_workers=num_workers)
    made = decode_ahead(pieces, num_workers=num_workers, pin_memory=device.type == "cuda")
    count = share.stop - share.start
    mask = torch.zeros(count, dtype=torch.bool)
    own, bad, done = torch.zeros(count, 0, device=device), [], 0  # As wide as the model says, when it has.
    for batch in joined(made, batch_size, device):
        place = slice(done, done + len(batch.readable))
        mask[place], done = batch.readable, place.stop
        bad.extend(batch.bad)
        if batch.readable.any():
            embedded = encode(batch.pixels)
            own = own if own.shape[1] else own.new_zeros(count, embedded.shape[1])
            own[place] = embedded
            own[place][~batch.readable.to(device)] = 0
        if progress is not None:
            progress(len(batch.readable))
    width = max(distributed.gather_objects(own.shape[1]))
    own = own if own.shape[1] else own.new_zeros(count, width)
    embeddings = distributed.gather(own, len(rows))
    check_lengths(
        embeddings,
        table.name,
        lambda place: table.describe(int(rows[place])),
        "the model diverged or is damaged; take another checkpoint or model",
    )
    return EmbeddedTable(
        embeddings,
        distributed.gather(mask.to(device), len(rows)).cpu().numpy(),
        [picture for part in distributed.gather_objects(bad) for picture in part],
    )


class TableEncoder:
    """Embeds tables the way a run does: its precision, its image processor, its workers, its batch size."""

    def __init__(self, accelerator: Accelerator, processor: Any, *, batch_size: int, num_workers: int) -> None:
        self.accelerator, self.processor = accelerator, processor
        self.batch_size, self.num_workers = batch_size, num_workers

    def __call__(self, table: ImageTable, encode: Encode, rows: NDArray[np.int64] | None = None) -> EmbeddedTable:
        """Embeds a table (or rows of it) with a function that maps pixels to embeddings."""

        def autocast(pixels: Tensor) -> Tensor:
            with self.accelerator.autocast():
                return encode(pixels)

        return embed_table(
            table,
            autocast,
            self.processor,
            rows=rows,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            device=self.accelerator.device,
        )


class TableScores(NamedTuple):
    """Scores of single queries: the readable images of a table, in their order."""

    scores: QueryScores
    labels: Tensor
    """(Q,) int64."""
    num_gallery: int
    """Images that are searched, the query itself included where it is one of them."""


def score_queries(table: ImageTable, embedded: EmbeddedTable, recall_at: tuple[int, ...]) -> TableScores:
    """Scores every readable image of an embedded table against all others.

    Every image is looked up in all others, unless the table says which are queries: those are looked up in the rest.
    Each process scores its share of the queries, and all get the result.

    Raises:
        BadInput: no image can be read.
    """
    asked = _readable(table, embedded)
    scores = query_scores(**asked._asdict(), recall_at=recall_at, rows=_share(asked.labels))
    gathered = QueryScores(*(distributed.gather(part, len(asked.labels)) for part in scores))
    return TableScores(gathered, asked.labels, len(asked.labels if asked.gallery is None else asked.gallery))


def score_open_set(table: ImageTable, embedded: EmbeddedTable) -> OpenSetScores:
    """What the queries of `score_queries` find of their own class and of others; each process looks up its share.

    Raises:
        BadInput: no image can be read.
    """
    asked = _readable(table, embedded)
    scores = open_set_scores(**asked._asdict(), rows=_share(asked.labels))
    return OpenSetScores(*(distributed.gather(part, len(asked.labels)) for part in scores))


def count_pairs(table: ImageTable, embedded: EmbeddedTable) -> PairCounts | None:
    """Pairs of the queries of `score_queries` and what they are looked up in, the same on every process.

    None if there is one class alone, or no two images of a class.

    Raises:
        BadInput: no image can be read.
    """
    pairs = pair_counts(**_readable(table, embedded)._asdict())
    return pairs if pairs.genuine.any() and pairs.impostor.any() else None


def _share(labels: Tensor) -> Tensor:
    """Rows of the queries that this process looks up."""
    share = distributed.share(len(labels), rank=distributed.rank(), world_size=distributed.world_size())
    return torch.arange(len(labels), device=labels.device)[share]


class _Readable(NamedTuple):
    embeddings: Tensor
    labels: Tensor
    gallery: Tensor | None = None
    gallery_labels: Tensor | None = None


def _readable(table: ImageTable, embedded: EmbeddedTable) -> _Readable:
    """The queries of a table, and what they are looked up in unless that is themselves."""
    assert table.labels is not None
    if not embedded.readable.any():
        raise BadInput(f"{table.name}: none of its {len(table)} images can be read, such as {table.describe(0)}")
    keep = torch.from_numpy(embedded.readable).to(embedded.embeddings.device)
    # Millions of embeddings are not copied if all are there.
    embeddings = embedded.embeddings if embedded.readable.all() else embedded.embeddings[keep]
    labels = torch.from_numpy(table.labels).to(keep.device)[keep]
    if table.queries is None:
        return _Readable(embeddings, labels)
    asks = torch.from_numpy(table.queries).to(keep.device)[keep]
    return _Readable(embeddings[asks], labels[asks], embeddings[~asks], labels[~asks])


def count_left_out(table: ImageTable, readable: NDArray[np.bool_], scores: QueryScores) -> dict[str, int]:
    """What the scores do not speak of.

    Args:
        table: with labels.
        readable: (N,) which of its images could be read.
        scores: of the readable queries.

    Returns:
        "num_unreadable": images; "num_lost_classes": classes of which no image can be read; "num_unmatched": queries
        that can be read, but have no image of their class to find.
    """
    assert table.labels is not None
    total, left = (
        np.bincount(labels, minlength=len(table.classes)) for labels in (table.labels, table.labels[readable])
    )
    return {
        "num_unreadable": int((~readable).sum()),
        "num_lost_classes": int(((total > 0) & (left == 0)).sum()),
        "num_unmatched": int((scores.num_relevant == 0).sum()),
    }


class Scored(NamedTuple):
    """Scores of a model on a table."""

    means: dict[str, float]
    """Retrieval metrics, and counts of what they leave out; see `count_left_out`."""
    queries: TableScores
    thresholds: list[Threshold]
    """Cosines from which the nearest image is a match; none where they were not asked for."""


def score(table: ImageTable, embedded: EmbeddedTable, recall_at: tuple[int, ...]) -> Scored:
    """Scores an embedded table.

    Raises:
        BadInput: no labels, no image that can be read, or no two images of one class.
    """
    found = score_queries(table, embedded, recall_at)
    means = summarize(found.scores, recall_at=recall_at, num_gallery=found.num_gallery)
    return Scored(means | count_left_out(table, embedded.readable, found.scores), found, [])


def score_truncated(
    table: ImageTable, embedded: EmbeddedTable, sizes: Sequence[int] = TRUNCATED
) -> dict[str, dict[str, float]]:
    """recall@1 and MAP@R of the first dimensions of embeddings alone, as if the others had been cut off.

    Args:
        table: with labels.
        embedded: of width d.
        sizes: numbers of dimensions; those below d count.

    Returns:
        Number of dimensions, as text -> name of a score -> score.

    Raises:
        BadInput: no image can be read.
    """
    width, found = embedded.embeddings.shape[1], dict[str, dict[str, float]]()
    for size in sizes:
        if size < width:
            scored = score_queries(table, embedded._replace(embeddings=embedded.embeddings[:, :size]), (1,))
            means = summarize(scored.scores, recall_at=(1,), num_gallery=scored.num_gallery)
            found[str(size)] = {name: means[name] for name in TRUNCATED_SCORES}
    return found
