"""This process's share of the plan, decoded and augmented by workers."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stml_semi.data.batches.plan import LabeledPlan, Rows, UnlabeledPlan
from stml_semi.data.framing import SQUASH, Framing
from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, Enough, read_pixels
from stml_semi.data.views import augment, blank_views, fine_enough, view_rng
from stml_semi.runtime.errors import RunFailed

# A run of unreadable neighbors this long is no accident any more.
_MOST_REPLACEMENTS = 100


class BadImageEntry(NamedTuple):
    """An image that could not be read: a line of bad_images.jsonl."""

    image: str
    reason: str


class Batch(NamedTuple):
    """One process's share of a global batch."""

    labeled_pixels: Tensor
    """(B, 3, H, W) uint8, one view each."""
    labels: Tensor
    """(B,) int64."""
    unlabeled_pixels: Tensor
    """(U, num_views, 3, H, W) uint8."""
    image_index: Tensor
    """(U,) int64: row of the unlabeled source, the identity shared by views."""
    bad: list[BadImageEntry]

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device. From pinned memory the copies are made while the host goes on."""
        labeled, labels, unlabeled, index = (part.to(device, non_blocking=True) for part in self[:4])
        return Batch(labeled, labels, unlabeled, index, self.bad)


class ViewSettings(NamedTuple):
    """How training views are made."""

    preset: str
    size: tuple[int, int]
    num_views: int
    seed: int
    framing: Framing = SQUASH


class Steps(Dataset[Batch]):
    """Item `step` is this process's share of that step's global batch; either half may be missing."""

    def __init__(
        self,
        views: ViewSettings,
        *,
        labeled: tuple[ImageTable, LabeledPlan] | None,
        unlabeled: tuple[ImageTable, UnlabeledPlan] | None,
        labeled_share: slice,
        unlabeled_share: slice,
    ) -> None:
        self.views = views
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.labeled_share = labeled_share
        self.unlabeled_share = unlabeled_share

    def __getitem__(self, step: int) -> Batch:
        bad: list[BadImageEntry] = []
        labeled_pixels = blank_views(0, size=self.views.size)
        labels = torch.empty(0, dtype=torch.int64)
        unlabeled_pixels = blank_views(0, self.views.num_views, size=self.views.size)
        index = torch.empty(0, dtype=torch.int64)
        if self.labeled:
            table, plan = self.labeled
            assert table.labels is not None
            rows = plan.rows(self.views.seed, step)
            first = 0  # Positions count over the whole global batch: labeled rows first, unlabeled ones after them.
            pictures, used = self._pictures(table, rows, self.labeled_share, step, first, 1, bad, by_class=True)
            labeled_pixels = pictures[:, 0]
            labels = torch.from_numpy(table.labels[used])
        if self.unlabeled:
            table, plan = self.unlabeled
            rows = plan.batch(self.views.seed, step)
            first = plan_size(self.labeled)
            unlabeled_pixels, used = self._pictures(
                table, rows, self.unlabeled_share, step, first, self.views.num_views, bad
            )
            index = torch.from_numpy(used)
        return Batch(labeled_pixels, labels, unlabeled_pixels, index, bad)

    def _pictures(
        self,
        table: ImageTable,
        rows: Rows,
        share: slice,
        step: int,
        first: int,
        num_views: int,
        bad: list[BadImageEntry],
        *,
        by_class: bool = False,
    ) -> tuple[Tensor, Rows]:
        """Views (n, num_views, 3, H, W) of a share of rows, and the rows that were really used, (n,)."""
        preset, size, _, seed, framing = self.views
        own = rows[share]
        pixels = blank_views(len(own), num_views, size=size)
        used = own.copy()
        for i, row in enumerate(own):
            rngs = partial(_view_rngs, seed, step, first + share.start + i, num_views)
            used[i], picture = _read_or_replace(table, int(row), by_class, self._enough(rngs), bad)
            for view, rng in enumerate(rngs()):
                pixels[i, view] = augment(picture, preset=preset, size=size, rng=rng, framing=framing)
        return pixels, used

    def _enough(self, rngs: Callable[[], Iterator[np.random.Generator]]) -> Enough:
        """Whether an image may be decoded as small as that, given the parts of it that its views will show."""
        preset, size = self.views.preset, self.views.size
        return lambda height, width: fine_enough(height, width, preset=preset, size=size, rngs=rngs())


def _view_rngs(seed: int, step: int, position: int, num_views: int) -> Iterator[np.random.Generator]:
    return (view_rng(seed, step, position, view) for view in range(num_views))


def one_batch_of(rows: Rows, table: ImageTable, views: ViewSettings) -> Steps:
    """Every step shows each of these rows once: what a loader can do, without a run."""
    alone = np.empty((len(rows), 0), np.int64)
    plan = UnlabeledPlan(rows, alone, queries_per_batch=len(rows), num_neighbors=1)
    return Steps(
        views,
        labeled=None,
        unlabeled=(table, plan),
        labeled_share=slice(0, 0),
        unlabeled_share=slice(0, len(rows)),
    )


def plan_size(labeled: tuple[ImageTable, LabeledPlan] | None) -> int:
    """Rows of the labeled half of a global batch."""
    return labeled[1].classes_per_batch * labeled[1].images_per_class if labeled else 0


def _read_or_replace(
    table: ImageTable, row: int, by_class: bool, enough: Enough, bad: list[BadImageEntry]
) -> tuple[int, Tensor]:
    """The image of a row; if it cannot be read, the next readable one of the source, of its class if there is one.

    Large ones may come smaller, as long as that is enough. What labels an unlabeled source may have is not asked.
    The replacement depends on the row alone: it is the same in every process and in a resumed run.
    """
    for candidate in itertools.chain([row], _stand_ins(table, row, by_class)):
        try:
            return candidate, read_pixels(table.source(candidate), enough=enough)
        except BadImage as error:
            bad.append(BadImageEntry(table.describe(candidate), str(error)))
    raise RunFailed(
        f"{table.name}: none of {_MOST_REPLACEMENTS} images tried for one can be read; the last is {bad[-1].image} "
        f"({bad[-1].reason})"
    )


def _stand_ins(table: ImageTable, row: int, by_class: bool) -> Iterator[int]:
    """Rows that may take the place of `row`, in cyclic order from it on: those of its class first, if asked for."""
    others = np.roll(np.arange(len(table)), -row)[1:]
    if by_class and table.labels is not None:
        alike = table.labels[others] == table.labels[row]
        others = np.concatenate([others[alike][: _MOST_REPLACEMENTS // 2], others[~alike]])
    yield from others[:_MOST_REPLACEMENTS].tolist()
