"""Rows of a table through the backbone's image processor: what evaluation, refreshes and indexes embed."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from stml_semi.data.batches.loading import BadImageEntry
from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, read_image
from stml_semi.data.views import eval_views, view_problem, view_size
from stml_semi.data.workers import MADE_AHEAD
from stml_semi.runtime import distributed
from stml_semi.runtime.machine import free_shared_memory

_IN_FLIGHT_BYTES = 2**28


class EvalBatch(NamedTuple):
    """Evaluation views of consecutive rows."""

    pixels: Tensor
    """(n, 3, H, W) float32, as the image processor makes them; a bad image is all zeros. (0,) if all are bad."""
    readable: Tensor
    """(n,) bool."""
    bad: list[BadImageEntry]


class EvalPieces(Dataset[EvalBatch]):
    """Item i is the i-th piece of a batch of rows, seen through the backbone's image processor."""

    def __init__(
        self, table: ImageTable, rows: NDArray[np.int64], processor: Any, *, batch_size: int, num_workers: int = 0
    ) -> None:
        """
        Args:
            table: images.
            rows: (N,) which of them.
            processor: the backbone's image processor.
            batch_size: no piece reaches into the next batch.
            num_workers: processes that make pieces ahead: the more there are, the smaller is each.
        """
        self.table, self.processor, self.batch_size = table, processor, batch_size
        most = min(batch_size, _rows_in_flight(processor, num_workers)) if num_workers and len(rows) else batch_size
        self.pieces = [
            batch[start : start + most]
            for batch in (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))
            for start in range(0, len(batch), most)
        ]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, item: int) -> EvalBatch:
        pictures: list[Image.Image | None] = []
        bad: list[BadImageEntry] = []
        for row in self.pieces[item]:
            try:
                pictures.append(read_image(self.table.source(int(row))))
            except BadImage as error:
                bad.append(BadImageEntry(self.table.describe(int(row)), str(error)))
                pictures.append(None)
        seen = self._views(pictures, self.pieces[item], bad)
        mask = torch.tensor([picture is not None for picture in pictures])
        if seen is None:
            return EvalBatch(torch.empty(0), mask, bad)
        pixels = seen.new_zeros((len(mask), *seen.shape[1:]))
        pixels[mask] = seen
        return EvalBatch(pixels, mask, bad)

    def _views(
        self, pictures: list[Image.Image | None], rows: NDArray[np.int64], bad: list[BadImageEntry]
    ) -> Tensor | None:
        """Of those that are readable. One that the processor fails on is not: None takes its place."""
        if not any(pictures):
            return None
        try:
            return eval_views([picture for picture in pictures if picture], self.processor)
        except (RuntimeError, ValueError):
            failed = {i: why for i, one in enumerate(pictures) if one and (why := view_problem(one, self.processor))}
            if not failed:
                raise
        for i, why in failed.items():
            pictures[i] = None
            bad.append(BadImageEntry(self.table.describe(int(rows[i])), why))
        return self._views(pictures, rows, bad)


def _rows_in_flight(processor: Any, num_workers: int) -> int:
    """Rows of a piece, so that all pieces that are made ahead take little memory. Containers often have 64 MB."""
    height, width = view_size(processor)
    room = min(_IN_FLIGHT_BYTES, free_shared_memory() // (2 * distributed.local_world_size()))
    return max(1, room // (num_workers * MADE_AHEAD * 3 * height * width * 4))


def joined(pieces: Iterable[EvalBatch], batch_size: int, device: torch.device) -> Iterator[EvalBatch]:
    """Whole batches, their pixels on a device; from pinned memory they are copied while the host goes on.

    Args:
        pieces: those of `EvalPieces`.
        batch_size: rows of every batch but the last.
        device: where the pixels are put together.
    """
    waiting: list[EvalBatch] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(len(one.readable) for one in waiting) == batch_size:
            yield _join(waiting, device)
            waiting = []
    if waiting:
        yield _join(waiting, device)


def _join(pieces: list[EvalBatch], device: torch.device) -> EvalBatch:
    if len(pieces) == 1:
        return pieces[0]._replace(pixels=pieces[0].pixels.to(device, non_blocking=True))
    mask = torch.cat([piece.readable for piece in pieces])
    seen = [piece.pixels for piece in pieces if len(piece.pixels)]
    pixels = torch.empty(0)
    if seen:
        pixels = seen[0].new_zeros((len(mask), *seen[0].shape[1:]), device=device)
        for piece, place in zip(pieces, pixels.split([len(piece.readable) for piece in pieces]), strict=True):
            if len(piece.pixels):
                place.copy_(piece.pixels, non_blocking=True)
    return EvalBatch(pixels, mask, [entry for piece in pieces for entry in piece.bad])
