"""Contextual similarity over the whole pool: two images are alike whose neighborhoods in the pool are.

STML compares neighborhoods within a batch, where an image meets four of its neighbors and little else. The pool's
neighbor table, which sampling needs anyway, says the same of all live images. An image is described by how often each
image of the pool occurs in the neighborhoods of its nearest neighbors (local query expansion: Zhong et al., "Re-ranking
Person Re-identification with k-reciprocal Encoding", CVPR 2017, section 3.4; equation 4 of STML); two images are as
alike as the cosine of their counts.
"""

import numpy as np
import torch
from jaxtyping import Float32, Int64, Integer
from torch import Tensor

_CHUNK = 256  # Neighborhoods that are sorted at a time.
_COLUMNS = 8192  # Images of the pool that are counted at a time on an accelerator.


def neighborhood_overlap(
    neighborhoods: Integer[Tensor, "p k"], positions: Int64[Tensor, "u"], *, expand: int
) -> Float32[Tensor, "u u"]:
    """Cosine of the expanded neighborhoods of some images of the pool.

    Counts are integers and their products exact, so the result is the same on every device, to the rounding of a square
    root. The pool's size does not matter, and on an accelerator the host does not wait.

    Args:
        neighborhoods: positions in the pool: each image itself, then its nearest others.
        positions: of the images; one may stand there more than once.
        expand: how many images, the first of a neighborhood, are asked for theirs.

    Returns:
        In 0..1, symmetric; 1 for an image and itself.
    """
    members = _members(neighborhoods, positions, expand)
    common = _common_sparse(members) if members.device.type == "cpu" else _common_in_blocks(members)
    lengths = common.diagonal().sqrt()
    return (common / lengths[:, None] / lengths).clamp_max_(1)


def expanded_lengths(
    neighborhoods: Integer[Tensor, "p k"], *, expand: int, rows: Int64[Tensor, "m"]
) -> Float32[Tensor, "m"]:
    """Euclidean lengths of the counts that `neighborhood_overlap` compares, for `rerank`."""
    # Allocated first: small results between large temporaries would scatter the heap, a gigabyte at 65,000 rows.
    squares = neighborhoods.new_empty(len(rows), dtype=torch.float32)
    for start in range(0, len(rows), _CHUNK):
        members = _members(neighborhoods, rows[start : start + _CHUNK], expand)
        squares[start : start + _CHUNK] = _occurrences(members.sort(1).values, members).sum(1)
    return squares.sqrt_()


def rerank(
    neighborhoods: Integer[Tensor, "p k"],
    lengths: Float32[Tensor, "p"],
    *,
    expand: int,
    rows: Int64[Tensor, "m"],
) -> Integer[Tensor, "m k-1"]:
    """Sorts neighborhoods by `neighborhood_overlap`, likest first; equals stay in their order.

    Time grows with the rows that are asked for, not with the pool; memory holds 256 x expand x k^2 numbers.

    Args:
        neighborhoods: positions in the pool: each image itself, then its nearest others.
        lengths: `expanded_lengths` of the whole pool.
        expand: as in `neighborhood_overlap`.
        rows: whose neighborhoods to sort.

    Returns:
        Without the image itself.
    """
    likest = neighborhoods.new_empty(len(rows), neighborhoods.shape[1] - 1)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        others = neighborhoods[part, 1:]
        alike = overlap_with(neighborhoods, part, others, expand=expand) / lengths[others]
        likest[start : start + _CHUNK] = others.gather(1, alike.argsort(dim=1, descending=True, stable=True))
    return likest


def overlap_with(
    neighborhoods: Integer[Tensor, "p k"], rows: Int64[Tensor, "m"], others: Integer[Tensor, "m o"], *, expand: int
) -> Int64[Tensor, "m o"]:
    """How many members the expanded neighborhoods of some rows and of others have in common, not divided by lengths.

    Args:
        neighborhoods: positions in the pool: each image itself, then its nearest others.
        rows: whose neighborhoods are compared.
        others: with which ones, row by row.
        expand: as in `neighborhood_overlap`.
    """
    own = _members(neighborhoods, rows, expand).sort(1).values
    theirs = _members(neighborhoods, others.flatten(), expand).view(len(rows), -1)
    return _occurrences(own, theirs).view(*others.shape, -1).sum(2)


def _members(
    neighborhoods: Integer[Tensor, "p k"], positions: Integer[Tensor, "u"], expand: int
) -> Integer[Tensor, "u members"]:
    """The neighborhoods of the first `expand` of each neighborhood, one after the other: expand x k members."""
    return neighborhoods[neighborhoods[positions, :expand]].flatten(1)


def _occurrences(rising: Integer[Tensor, "m n"], values: Integer[Tensor, "m v"]) -> Int64[Tensor, "m v"]:
    """How often each value occurs in its row of `rising`."""
    return torch.searchsorted(rising, values, right=True) - torch.searchsorted(rising, values)


def _common_sparse(members: Integer[Tensor, "u n"]) -> Float32[Tensor, "u u"]:
    """How many members two rows have in common: the product of their numbers, summed over the pool."""
    from scipy.sparse import csr_array

    columns, ids = members.unique(return_inverse=True)
    rows, width = members.shape
    ones = np.ones(rows * width, dtype=np.float32)
    counts = csr_array((ones, ids.flatten().numpy(), np.arange(rows + 1) * width), shape=(rows, len(columns)))
    return torch.from_numpy((counts @ counts.T).toarray())


def _common_in_blocks(members: Integer[Tensor, "u n"]) -> Float32[Tensor, "u u"]:
    """As `_common_sparse`, without a size that only the device knows: dense blocks, as many as there can be."""
    rising, order = members.flatten().sort()
    numbered = torch.cat([rising.new_zeros(1), (rising[1:] != rising[:-1]).cumsum(0)])
    ids = torch.empty_like(numbered).scatter_(0, order, numbered).view(members.shape)
    common = torch.zeros(len(ids), len(ids), device=ids.device)
    ones = torch.ones(ids.shape, device=ids.device)
    for first in range(0, ids.numel(), _COLUMNS):
        here = (ids >= first) & (ids < first + _COLUMNS)
        counts = torch.zeros(len(ids), _COLUMNS + 1, device=ids.device)
        counts = counts.scatter_add_(1, (ids - first).where(here, _COLUMNS), ones)[:, :-1]
        common.addmm_(counts, counts.T)
    return common
