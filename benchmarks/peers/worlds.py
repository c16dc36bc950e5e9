"""Two worlds as every peer sees them: labeled and unlabeled images in memory, others to choose and to test by."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import read_image
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.views import augment, eval_views, view_rng, view_size
from stml_semi.models.backbone import open_backbone


class Scored(NamedTuple):
    """Images that are evaluated on."""

    views: Tensor
    """(N, 3, H, W) float32, as the image processor makes them."""
    labels: Tensor
    """(N,) int64."""


class World(NamedTuple):
    """What a peer is given."""

    backbone: str
    size: tuple[int, int]
    labeled: list[Tensor]
    """(3, h, w) uint8 each."""
    labels: Tensor
    """(L,) int64 of the labeled images."""
    unlabeled: list[Tensor]
    num_unknown: int
    """Classes among the unlabeled images: peers that need it are told the truth."""
    validation: Scored
    """On which the number of steps is chosen."""
    test: Scored

    def views(self, pictures: list[Tensor], rows: np.ndarray, *, seed: int, step: int, view: int = 0) -> Tensor:
        """Random views of some images, (N, 3, H, W) uint8: those that our own runs see."""
        made = [
            augment(pictures[row], preset="glyph", size=self.size, rng=view_rng(seed, step, i, view))
            for i, row in enumerate(rows)
        ]
        return torch.stack(made)


def open_world(name: str, folder: Path) -> World:
    """
    Args:
        name: kanji or emoji.
        folder: with kanji_validation.parquet (scripts/build_kanji.py --validation 200), or with emoji/ and lite0/
            (scripts/build_emoji.py, scripts/build_lite0.py).
    """
    if name == "kanji":
        backbone, num_unknown = "tiny-resnet", 480
        sources = ["kanji", "kanji-more", str(folder / "kanji_validation.parquet"), "kanji:test"]
    else:
        backbone, num_unknown = str(folder / "lite0"), 838
        sources = [str(folder / "emoji" / f"{part}.parquet") for part in ("labeled", "unlabeled", "validation", "test")]
    processor = open_backbone(backbone).processor
    labeled, unlabeled, validation, test = (
        open_source(source, flag="--labeled", labels="ignored" if i == 1 else "required")
        for i, source in enumerate(sources)
    )

    def read(table: ImageTable) -> list[Image.Image]:
        return [read_image(table.source(row)) for row in range(len(table))]

    def scored(table: ImageTable) -> Scored:
        assert table.labels is not None
        return Scored(eval_views(read(table), processor), torch.from_numpy(table.labels))

    def raw(table: ImageTable) -> list[Tensor]:
        return [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in read(table)]

    assert labeled.labels is not None
    return World(
        backbone,
        view_size(processor),
        raw(labeled),
        torch.from_numpy(labeled.labels),
        raw(unlabeled),
        num_unknown,
        scored(validation),
        scored(test),
    )
