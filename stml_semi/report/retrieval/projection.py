"""Embeddings on a plane: UMAP where it is installed, else the first two principal components."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class Projected(NamedTuple):
    """Points of a map."""

    plane: NDArray[np.float64]
    """(P, 2)"""
    axes: tuple[str, str]
    """What they are called."""
    words: str
    """What one sees."""


def project(vectors: Tensor, points: NDArray[np.int64]) -> Projected:
    """Some points of a cloud on a plane that suits the whole cloud.

    Args:
        vectors: (N, d) on the CPU, need not have unit length.
        points: (P,) places of those to return.
    """
    x = F.normalize(vectors.double(), dim=1)
    return _umap(x, points) or _principal(x, points)


def _umap(x: Tensor, points: NDArray[np.int64]) -> Projected | None:
    """None where it is not installed, or for fewer points than it can work with."""
    with warnings.catch_warnings():
        # Of what it is built with, and that a seed means one thread: nothing a user could act on.
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP  # pyright: ignore[reportMissingImports]
        except ImportError:
            return None
        if len(x) < 20:
            return None
        plane = UMAP(n_neighbors=15, metric="cosine", random_state=0).fit_transform(x.float().numpy())
    return Projected(
        np.asarray(plane, dtype=np.float64)[points],
        ("", ""),
        "UMAP, 15 neighbors, cosine, seed 0: near images are alike, far distances mean little",
    )


def _principal(x: Tensor, points: NDArray[np.int64]) -> Projected:
    x = F.pad(x - x.mean(0), (0, max(2 - x.shape[1], 0)))
    values, axes = torch.linalg.eigh(x.T @ x)
    axes = axes[:, -2:].flip(1)
    # An axis has no direction of its own: images stay where they are from one page to the next.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    explained = float(values[-2:].sum() / values.sum().clamp_min(1e-12))
    return Projected(
        (x[torch.from_numpy(points)] @ axes).numpy(),
        ("first principal component", "second principal component"),
        f"{100 * explained:.0f}% of the variance",
    )
