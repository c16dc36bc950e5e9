"""Exact nearest neighbors by cosine: a fast search proposes candidates, a precise one decides.

Cosines of the candidates are computed in float64 from the embeddings as given and rounded to float32 (and to multiples
of 2^-28, so that zero is zero). Two images are a tie where that cannot tell them apart, and the answer does not depend
on chunks, on the processor, or on whether the candidates came from bfloat16 or float32 products. For every query the
rounding errors of the fast product are bounded; where the bound leaves room for a neighbor that was not proposed, the
query is searched again with more candidates, and in the end against the whole gallery in float64.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Integer
from torch import Tensor

from stml_semi.runtime.errors import BadInput

_CHUNK, _TILE = 1024, 16384
_BLOCK = 1024  # Rows that are converted to float64 at a time.
# Cosines are counted in these steps, and a step and a row number share one int64: see `_keys`.
_STEPS = 2**28
_ROWS = 2**32
_NOTHING = torch.iinfo(torch.int64).min
# Candidates beyond k, and half of k: enough to prove nearly every query's neighbors at first go.
_SPARE = 16
_FEW = 8  # Queries for which preparing the gallery takes longer than it saves.
# A candidate costs as much as about this many rows of the gallery in a float64 product.
_CANDIDATE_COST = 32


class Neighbors(NamedTuple):
    """The nearest rows of the gallery, nearest first; among equals the smaller row first."""

    indices: Int64[Tensor, "m k"]
    similarities: Float32[Tensor, "m k"]
    """Cosines, within 2^-25 of the true ones; 0 where a vector is zero."""


@torch.no_grad()
def nearest_neighbors(
    embeddings: Tensor,
    k: int,
    *,
    queries: Tensor | None = None,
    exclude: Tensor | None = None,
    matmul_dtype: torch.dtype | None = None,
    chunk_size: int = _CHUNK,
    tile_size: int = _TILE,
) -> Neighbors:
    """Finds the k nearest rows of a gallery for every query, by cosine, exactly.

    Memory beside inputs and result: a copy of the embeddings in `matmul_dtype`, scores of chunk_size x tile_size in
    that type, and about 100 MB; never N x N. A process that searches its share of the rows passes
    `queries=embeddings[share], exclude=torch.arange(N)[share]`.

    Args:
        embeddings: the gallery, (N, d) of any floating type; need not be normalized.
        k: neighbors per query.
        queries: (M, d). Default: the embeddings themselves, each without its own row. A duplicate of the query in
            another row is a neighbor like any other.
        exclude: (M,) integers, the row of `embeddings` that is no neighbor of a query; -1 for none.
        matmul_dtype: torch.bfloat16 or torch.float32, the type of the fast product. It changes the time, not the
            result. Default: bfloat16 where the hardware multiplies it faster.
        chunk_size: queries per product.
        tile_size: rows of the gallery per product.

    Raises:
        ValueError: empty, misshapen or non-finite input, or fewer than k rows to choose from.
    """
    gallery = Gallery(embeddings, matmul_dtype=matmul_dtype, chunk_size=chunk_size, tile_size=tile_size)
    if queries is None:
        queries = embeddings
        exclude = torch.arange(len(embeddings), device=embeddings.device) if exclude is None else exclude
    return gallery.search(queries, k, exclude=exclude)


class Gallery:
    """Embeddings prepared for several searches; `nearest_neighbors` is a single one."""

    def __init__(
        self,
        embeddings: Tensor,
        *,
        matmul_dtype: torch.dtype | None = None,
        chunk_size: int = _CHUNK,
        tile_size: int = _TILE,
    ) -> None:
        """Takes what `nearest_neighbors` takes, and raises the same."""
        if matmul_dtype not in (None, torch.bfloat16, torch.float32):
            raise ValueError(f"matmul_dtype must be torch.bfloat16 or torch.float32, not {matmul_dtype}")
        # Apple's GPUs have no float64: the CPU searches for them.
        self.rows = embeddings.detach().to("cpu" if embeddings.device.type == "mps" else embeddings.device)
        self.lengths = check_embeddings(self.rows, "embeddings")
        self.matmul_dtype = matmul_dtype or (torch.bfloat16 if bfloat16_is_fast(self.rows.device) else torch.float32)
        self.chunk_size, self.tile_size = chunk_size, tile_size

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def search(self, queries: Tensor, k: int, *, exclude: Tensor | None = None) -> Neighbors:
        """(M, d) queries -> (M, k) neighbors. Takes what `nearest_neighbors` takes, and raises the same."""
        own = queries.detach().to(self.rows.device)
        dims = self.rows.shape[1]
        if own.ndim != 2 or own.shape[1] != dims:
            raise ValueError(f"queries must be (M, {dims}) like the embeddings, not {tuple(queries.shape)}")
        if exclude is not None and (exclude.shape != (len(own),) or exclude.is_floating_point()):
            raise ValueError(f"exclude must hold {len(own)} row numbers, not {tuple(exclude.shape)} of {exclude.dtype}")
        available = len(self) - (exclude is not None)
        if not 1 <= k <= available:
            raise ValueError(f"k={k}, but a query has {available} rows to choose from: lower k or give more embeddings")
        lengths = check_embeddings(own, "queries")
        device = own.device
        skip = exclude.to(device) if exclude is not None else torch.full((len(own),), -1, device=device)
        indices = torch.empty(len(own), k, dtype=torch.int64, device=device)
        similarities = torch.empty(len(own), k, dtype=torch.float32, device=device)

        def settle(part: Int64[Tensor, "q"], keys: Int64[Tensor, "q k"]) -> None:
            steps = -(-keys >> 32)
            indices[part] = steps * _ROWS - keys
            similarities[part] = steps.float() / _STEPS

        pending = torch.arange(len(own), device=device)
        if len(own) <= _FEW and "_operands" not in self.__dict__ and self._is_plain:
            for part in pending.split(1):
                found = self._look_through(_unit(own[part], lengths[part]), k, skip[part])
                if found is not None:
                    settle(part, found)
                    pending = pending[pending != part]
        count = k + 1 + k // 2 + _SPARE
        for _ in range(3):
            if count * _CANDIDATE_COST > len(self) or len(pending) == 0:
                break
            proven = torch.empty(len(own), dtype=torch.bool, device=device)
            for part in pending.split(max(1, min(self.chunk_size, 2**21 // count))):
                unit = _unit(own[part], lengths[part])
                keys, proven[part] = self._propose(unit, k, min(count, len(self)), skip[part])
                settle(part, keys)
            pending = pending[~proven[pending]]
            count *= 8
        tile = max(1, min(self.tile_size, 2**21 // dims, 2**12))
        chunk = max(1, min(self.chunk_size, 2**22 // (tile + k)))
        for start in range(0, len(pending), chunk):
            part = pending[start : start + chunk]
            settle(part, self._exhaust(_unit(own[part], lengths[part]), k, skip[part], tile))
        return Neighbors(indices.to(queries.device), similarities.to(queries.device))

    @cached_property
    def _is_plain(self) -> bool:
        """Whether a float32 product is as precise as it should be: no tensor cores, no lengths near its limits."""
        there = self.lengths[self.lengths > 0]
        usual = not len(there) or bool((there.min() > 1e-9) & (there.max() < 1e9))
        return usual and self.rows.device.type == "cpu" and _float32_is_exact()

    @cached_property
    def _center(self) -> Float64[Tensor, "d"]:
        """Mean of the unit vectors.

        Moving the gallery changes all scores of a query alike. Around its mean the vectors are shorter, and so are
        their rounding errors: cosines of a pretrained backbone crowd near one, and only the differences matter.
        """
        total = self.rows.new_zeros(self.rows.shape[1], dtype=torch.float64)
        for start in range(0, len(self), _BLOCK):
            total += self._units(start, start + _BLOCK).sum(0)
        return total / len(self)

    @cached_property
    def _operands(self) -> "_Operands":
        matrix = self.rows.new_empty(self.rows.shape, dtype=self.matmul_dtype)
        whole = _Operands(matrix, torch.empty_like(self.lengths), torch.empty_like(self.lengths))
        for start in range(0, len(self), _BLOCK):
            part = _operands(self._units(start, start + _BLOCK) - self._center, self.matmul_dtype)
            for all_rows, rows in zip(whole, part, strict=True):
                all_rows[start : start + _BLOCK] = rows
        return whole

    def _units(self, start: int, stop: int) -> Float64[Tensor, "rows d"]:
        return _unit(self.rows[start:stop], self.lengths[start:stop])

    def _propose(
        self, unit: Float64[Tensor, "q d"], k: int, count: int, skip: Integer[Tensor, "q"]
    ) -> tuple[Int64[Tensor, "q {k}"], Bool[Tensor, "q"]]:
        """The best k of `count` candidates as keys, and for which queries nothing better can exist."""
        gallery, query = self._operands, _operands(unit, self.matmul_dtype)
        scores, columns = self._candidates(query.matrix, count)
        cosines = self._cosines(unit, columns)
        keys = _keys(cosines, columns).masked_fill_(columns == skip[:, None], _NOTHING)
        best = keys.topk(k).values

        # |score - (cosine - offset)|: operands rounded once, sums in float32 (or worse than IEEE, on tensor cores),
        # the score rounded to its type. By Cauchy-Schwarz; real errors are some twenty times smaller.
        offset = unit @ self._center
        longest, largest_loss = gallery.norms.max(), gallery.losses.max()
        bound = query.losses * (longest + largest_loss) + query.norms * largest_loss
        bound += unit.shape[1] * 2.0**-23 * query.norms * longest
        if self.matmul_dtype == torch.float32 and not _float32_is_exact():
            bound += 3 * 2.0**-8 * query.norms * longest
        precise = scores.double()
        bound = bound[:, None] + torch.finfo(scores.dtype).eps / 2 * precise.abs()
        reach = precise[:, -1] + bound[:, -1] + offset
        # At a distance, because the cosine of what is not proposed would be rounded too.
        proven = -(-best[:, -1] >> 32) / _STEPS - 2.0**-24 > reach
        # Should the product be less precise than assumed, the candidates themselves give it away.
        proven &= ((precise + offset[:, None] - cosines).abs() <= bound).all(1)
        return best, proven

    def _look_through(
        self, unit: Float64[Tensor, "1 d"], k: int, skip: Integer[Tensor, "1"]
    ) -> Int64[Tensor, "1 {k}"] | None:
        """The best k of one query as keys, by a float32 product; None where that cannot tell the rows apart."""
        scores = (unit.float() @ self.rows.float().T)[0]
        scores /= self.lengths.float().clamp_min(torch.finfo(torch.float32).tiny)
        if skip >= 0:
            scores[skip] = -torch.inf
        # Sums of d products, then three roundings; keys round once more.
        error = (unit.shape[1] + 8) * 2.0**-23
        columns = (scores >= scores.topk(k).values[-1] - 2 * error).nonzero()[:, 0]
        if len(columns) > 4 * k + _SPARE:
            return None
        return _keys(self._cosines(unit, columns[None]), columns).topk(k).values

    def _candidates(
        self, operand: Float[Tensor, "q d"], count: int
    ) -> tuple[Float[Tensor, "q {count}"], Int64[Tensor, "q {count}"]]:
        """The highest scores of the fast product, falling, and their rows."""
        matrix = self._operands.matrix
        # Written into again and again: fresh memory for every product costs a third of its time.
        buffer = operand.new_empty(len(operand) * min(self.tile_size, len(self)))
        scores = operand.new_empty(len(operand), 0)
        columns = torch.empty(len(operand), 0, dtype=torch.int64, device=operand.device)
        with torch.autocast(operand.device.type, enabled=False):
            for start in range(0, len(self), self.tile_size):
                tile = matrix[start : start + self.tile_size]
                product = torch.mm(operand, tile.T, out=buffer[: len(operand) * len(tile)].view(-1, len(tile)))
                highest, where = product.topk(min(count, len(tile)))
                scores, columns = torch.cat([scores, highest], 1), torch.cat([columns, where + start], 1)
                scores, order = scores.topk(min(count, scores.shape[1]))
                columns = columns.gather(1, order)
        return scores, columns

    def _cosines(self, unit: Float64[Tensor, "q d"], columns: Int64[Tensor, "q c"]) -> Float64[Tensor, "q c"]:
        """Of each query with the rows of the gallery that `columns` names."""
        cosines = unit.new_empty(columns.shape)
        # On a CPU the gathered vectors should stay in its cache.
        block = 2**19 if unit.device.type == "cpu" else 2**23
        height = max(1, block // (columns.shape[1] * unit.shape[1]))
        for start in range(0, len(unit), height):
            part = columns[start : start + height]
            rows = part.flatten()
            vectors = _unit(self.rows.index_select(0, rows), self.lengths[rows]).view(*part.shape, -1)
            cosines[start : start + height] = vectors.mul_(unit[start : start + height, None]).sum(-1)
        return cosines

    def _exhaust(
        self, unit: Float64[Tensor, "q d"], k: int, skip: Integer[Tensor, "q"], tile_size: int
    ) -> Int64[Tensor, "q {k}"]:
        """The best k of the whole gallery as keys, in float64."""
        best = torch.empty(len(unit), 0, dtype=torch.int64, device=unit.device)
        for start in range(0, len(self), tile_size):
            stop = min(start + tile_size, len(self))
            columns = torch.arange(start, stop, device=unit.device)
            keys = _keys(unit @ self._units(start, stop).T, columns).masked_fill_(columns == skip[:, None], _NOTHING)
            best = torch.cat([best, keys], 1).topk(min(k, best.shape[1] + len(columns))).values
        return best


def _keys(cosines: Float64[Tensor, "q c"], columns: Int64[Tensor, "... c"]) -> Int64[Tensor, "q c"]:
    """One integer per candidate: a higher cosine first, then the smaller row. No two are equal."""
    return (cosines.float().double() * _STEPS).round_().long().mul_(_ROWS).sub_(columns)


class _Operands(NamedTuple):
    """Vectors as the fast product reads them, and what was lost on the way."""

    matrix: Float[Tensor, "n d"]  # Of the product's type
    norms: Float64[Tensor, "n"]  # Length of each row of `matrix`
    losses: Float64[Tensor, "n"]  # Length of the difference between a row and what it stands for


def _operands(vectors: Float64[Tensor, "n d"], dtype: torch.dtype) -> _Operands:
    matrix = vectors.to(dtype)
    rounded = matrix.double()
    norm = torch.linalg.vector_norm
    return _Operands(matrix, norm(rounded, dim=1), norm(vectors - rounded, dim=1))


def _unit(vectors: Float[Tensor, "n d"], lengths: Float64[Tensor, "n"]) -> Float64[Tensor, "n d"]:
    """Zero vectors stay zero: their cosine with everything is 0."""
    return vectors.double() / lengths.masked_fill(lengths == 0, 1)[:, None]


def check_embeddings(embeddings: Tensor, name: str) -> Float64[Tensor, "n"]:
    """Raises ValueError unless (N, d), floating, finite and not empty; else the lengths of the rows."""
    if embeddings.ndim != 2 or embeddings.shape[1] == 0 or not embeddings.is_floating_point():
        raise ValueError(
            f"{name} must be (rows, dimensions) of a floating type, not {tuple(embeddings.shape)} of {embeddings.dtype}"
        )
    if len(embeddings) == 0:
        raise ValueError(f"{name} are empty: at least one row is needed")
    # In float64 no float32 vector overflows: the lengths tell which rows are finite. They are allocated first, here
    # and elsewhere, because small results between large temporaries would scatter the heap.
    lengths = torch.empty(len(embeddings), dtype=torch.float64, device=embeddings.device)
    for start in range(0, len(embeddings), _BLOCK):
        part = slice(start, start + _BLOCK)
        lengths[part] = torch.linalg.vector_norm(embeddings[part].double(), dim=1)
    if rows := (~lengths.isfinite()).nonzero().flatten().tolist():
        shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        raise BadInput(
            f"{name} hold NaN or infinity in {len(rows)} of {len(embeddings)} rows ({shown}): the model has diverged"
        )
    return lengths


def _float32_is_exact() -> bool:
    """False where a user has allowed TF32 or bfloat16 inside float32 products."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # Set by the newer switches, per backend: the older function cannot express it.
        return False


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # Until torch 2.9.
    return any(getattr(torch.cpu, check, bool)() for check in checks)
