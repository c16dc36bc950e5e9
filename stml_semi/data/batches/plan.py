"""Which images form the global batch of a step: a pure function of seed, step and neighbor table.

Every process computes the same plan and takes its share, so nothing has to be communicated or saved.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stml_semi.config import TrainConfig
from stml_semi.data.image_table import ImageTable
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.hashing import mix

Rows = NDArray[np.int64]

# Streams of random numbers that must not repeat each other.
_CLASSES, _IMAGES, _QUERIES, _POOL, _NEIGHBORS, _HELD_OUT = range(6)
FEWEST_PAIRS = 10
"""Pairs of one class, among labeled images that are not trained on, without which nothing is measured."""


class LabeledPlan(NamedTuple):
    """What labeled sampling needs to know of a table."""

    rows_by_class: list[Rows]
    classes_per_batch: int
    images_per_class: int
    held_out: Rows | None = None
    """(H,) classes that are not drawn in the first steps."""
    first_step: int = 0
    """From which on they are."""

    def rows(self, seed: int, step: int) -> Rows:
        """Rows of the labeled table for a step: classes x images_per_class, (B,) class after class.

        Classes come from a permutation that starts anew once all had their turn, so each is seen equally often.
        A class with fewer images than asked for shows some of them again, and where too few classes are left beside
        those that are held out, some come twice.
        """
        classes = np.arange(len(self.rows_by_class))
        if self.held_out is not None and step < self.first_step:
            classes = np.setdiff1d(classes, self.held_out)
        classes = classes[_turn(seed, _CLASSES, len(classes), self.classes_per_batch, step)]
        rng = np.random.default_rng([seed, _IMAGES, step])
        return np.concatenate([_draw(rng, self.rows_by_class[c], self.images_per_class) for c in classes])


def rows_by_class(labels: NDArray[np.int64], num_classes: int) -> list[Rows]:
    """The rows of every class, rising."""
    order = labels.argsort(kind="stable")
    return np.split(order, np.bincount(labels, minlength=num_classes).cumsum()[:-1])


def held_out_classes(config: TrainConfig, labeled: ImageTable | None) -> Rows:
    """(H,) classes that the labeled warm-up leaves out: on them the first refresh measures what the teacher knows.

    Half of them up to ten, or a fifth up to forty; none where there are fewer than five, since each is needed, and none
    whose images make too few pairs to measure anything.
    """
    if labeled is None or labeled.labels is None or not config.calibrates:
        return np.arange(0)
    sizes = np.bincount(labeled.labels, minlength=len(labeled.classes))
    count = min(max(min(len(sizes) // 2, 10), round(0.2 * len(sizes))), 40) if len(sizes) >= 5 else 0
    drawn = np.sort(np.random.default_rng([config.seed, _HELD_OUT]).permutation(len(sizes))[:count])
    pairs = (sizes[drawn] * (sizes[drawn] - 1) // 2).sum()
    return drawn if pairs >= FEWEST_PAIRS else drawn[:0]


class UnlabeledPlan(NamedTuple):
    """What unlabeled sampling needs to know of a pool."""

    rows: Rows
    """(P,) rows of the unlabeled table that are live."""
    neighbors: NDArray[np.int64]
    """(P, at least num_neighbors - 1) positions in the pool of each image's neighbors, in any order."""
    queries_per_batch: int
    num_neighbors: int
    """How many images a query brings along, itself included: drawn from `neighbors` if there are more of them."""

    def batch(self, seed: int, step: int) -> Rows:
        """Rows of the unlabeled table for a step: each query followed by its neighbors, (B,) query after query."""
        queries = _turn(seed, _QUERIES, len(self.rows), self.queries_per_batch, step)
        near = self.neighbors[queries]
        if near.shape[1] >= self.num_neighbors:
            # A neighbor's luck depends on who it is, not on its place in the list: where rounding lets two neighbors
            # change places, the same ones are drawn.
            salt = np.random.default_rng([seed, _NEIGHBORS, step]).integers(2**63, size=(len(queries), 1))
            hashed = mix(torch.from_numpy(near ^ salt)).numpy().view(np.uint64)
            drawn = hashed.argsort(1)[:, : self.num_neighbors - 1]
            near = np.take_along_axis(near, drawn, axis=1)
        return self.rows[np.concatenate([queries[:, None], near], axis=1).ravel()]


def pool_rows(seed: int, refresh: int, num_images: int, pool_size: int) -> Rows:
    """Rows of the given refresh, (P,), rising: the next `pool_size` of a random order of all images.

    A source that is not larger than the pool is all of it, always.
    """
    if num_images <= pool_size:
        return np.arange(num_images)
    return np.sort(_turn(seed, _POOL, num_images, pool_size, refresh))


def parts_of_all(seed: int, num_images: int, size: int) -> list[Rows]:
    """All rows in parts of about equal size, at most `size`: each a random sample, rising."""
    order = _order(seed, _POOL, 0, num_images)
    return [np.sort(part) for part in np.array_split(order, -(-num_images // size))]


def quotas(sizes: Sequence[int | None], weights: Sequence[float], pool_size: int) -> list[int]:
    """How many live images every source of a mixture gives.

    Weights are kept exactly (to one image): where a source has fewer images than its share of `pool_size`, the pool
    becomes smaller rather than made up of others.

    Args:
        sizes: images of each source; None for a stream, which never runs out.
        weights: of each, 1 in sum.
        pool_size: most images that are live.
    """
    live = min([pool_size, *(int(n / w + 1e-9) for n, w in zip(sizes, weights, strict=True) if n is not None)])
    exact = [live * weight for weight in weights]
    given = [int(share + 1e-9) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: given[i] - exact[i])
    for i in by_rest[: live - sum(given)]:
        given[i] += 1
    return given


def mixed_rows(seed: int, refresh: int, starts: Sequence[int], given: Sequence[int]) -> Rows:
    """Rows that are live after the given refresh, (P,), rising: of each source the next ones, as many as it gives.

    Args:
        seed: of the run.
        refresh: how many came before.
        starts: the first row of every source, and the number of rows.
        given: from `quotas`.
    """
    sizes = np.diff(starts).tolist()
    drawn = [pool_rows(seed, refresh, size, count) for size, count in zip(sizes, given, strict=True)]
    return np.concatenate([start + rows for start, rows in zip(starts, drawn, strict=False)])


def _turn(seed: int, stream: int, total: int, size: int, number: int) -> Rows:
    """The `number`-th batch of `size` different items out of `total`, by permutations that each cover all items.

    The last batch of a permutation is filled up from its beginning.
    """
    per_round = -(-total // size)
    round_number, turn = divmod(number, per_round)
    return _order(seed, stream, round_number, total)[(turn * size + np.arange(size)) % total]


@lru_cache(maxsize=8)  # It grows with the pool, and lasts for many steps.
def _order(seed: int, stream: int, round_number: int, total: int) -> Rows:
    return np.random.default_rng([seed, stream, round_number]).permutation(total)


def _draw(rng: np.random.Generator, rows: Rows, count: int) -> Rows:
    """`count` rows, all different as far as there are that many."""
    order = rng.permutation(rows)
    return np.resize(order, count)


def check_labeled(num_classes: int, classes_per_batch: int, images_per_class: int) -> None:
    """
    Raises:
        BadInput: fewer classes than a batch draws.
    """
    if num_classes < classes_per_batch:
        raise BadInput(
            f"--labeled has {num_classes} classes, but a batch draws {classes_per_batch}: lower --labeled-batch-size "
            f"to {num_classes * images_per_class} or raise --images-per-class"
        )


def check_unlabeled(num_images: int, queries_per_batch: int, num_neighbors: int) -> None:
    """
    Raises:
        BadInput: fewer images than a batch draws.
    """
    needed = queries_per_batch * num_neighbors
    if num_images < needed:
        fitting = num_images // num_neighbors * num_neighbors
        fix = (
            f"lower --unlabeled-batch-size to {fitting}"
            if fitting
            else f"add images or lower --num-neighbors below {num_images + 1}"
        )
        raise BadInput(f"--unlabeled has {num_images} images, but a batch draws {needed}: {fix}")
