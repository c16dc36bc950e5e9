"""How sure a mean over queries is: bootstrap over classes.

Queries of one class are alike, so classes are drawn, not queries: the interval says what other classes of the same kind
would have given, and is wider than one that takes queries for independent.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_DRAWS = 2000


class Interval(NamedTuple):
    """A mean and the middle 95% of its bootstrap distribution."""

    mean: float
    low: float
    high: float


def intervals(values: NDArray[np.float64], labels: NDArray[np.int64], *, seed: int = 0) -> list[Interval]:
    """95% intervals of the means of columns.

    Args:
        values: (Q, M) scores of queries; differences of two models' scores give paired intervals.
        labels: (Q,) classes of the queries.
        seed: of the draws; the same seed draws the same classes.
    """
    _, places = np.unique(labels, return_inverse=True)
    num_classes = int(places.max()) + 1
    sums = np.zeros((num_classes, values.shape[1]))
    np.add.at(sums, places, values)
    counts = np.bincount(places).astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_classes, np.full(num_classes, 1 / num_classes), size=_DRAWS).astype(np.float64)
    means = (drawn @ sums) / (drawn @ counts)[:, None]
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return [Interval(*map(float, triple)) for triple in zip(values.mean(0), low, high, strict=True)]
