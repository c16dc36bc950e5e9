"""Rows of a table through the backbone's image processor: what evaluation, refreshes and indexes embed."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stml_semi.data.batches.loading import BadImageEntry
from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, read_image
from stml_semi.data.views import eval_views


class EvalBatch(NamedTuple):
    """Evaluation views of consecutive rows."""

    pixels: Tensor
    """(n, 3, H, W) float32, as the image processor makes them; a bad picture is all zeros."""
    readable: Tensor
    """(n,) bool."""
    bad: list[BadImageEntry]


class EvalChunks(Dataset[EvalBatch]):
    """Item i is the i-th chunk of rows, seen through the backbone's image processor."""

    def __init__(self, table: ImageTable, rows: NDArray[np.int64], processor: Any, batch_size: int) -> None:
        self.table = table
        self.chunks = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        self.processor = processor

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, item: int) -> EvalBatch:
        pictures, readable, bad = [], [], []
        for row in self.chunks[item]:
            try:
                pictures.append(read_image(self.table.source(int(row))))
                readable.append(True)
            except BadImage as error:
                bad.append(BadImageEntry(self.table.describe(int(row)), str(error)))
                readable.append(False)
        mask = torch.tensor(readable)
        if not pictures:
            return EvalBatch(torch.empty(0), mask, bad)
        seen = eval_views(pictures, self.processor)
        pixels = seen.new_zeros((len(mask), *seen.shape[1:]))
        pixels[mask] = seen
        return EvalBatch(pixels, mask, bad)
