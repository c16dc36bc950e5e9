"""Exact neighbors: against brute force in float64, on data made of ties, on every path."""

from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stml_semi import neighbors
from stml_semi.neighbors import Gallery, Neighbors, nearest_neighbors

DTYPES = (torch.bfloat16, torch.float32)


def brute_force(embeddings: Tensor, k: int, queries: Tensor | None = None) -> Neighbors:
    """All cosines in float64, then to float32 and to steps of 2^-28; equal ones by row."""

    def unit(x: Tensor) -> Tensor:
        x = x.double()
        norm = x.norm(dim=1, keepdim=True)
        return x / norm.where(norm > 0, 1)

    cosines = unit(embeddings if queries is None else queries) @ unit(embeddings).T
    steps = (cosines.float().double() * 2**28).round()
    if queries is None:
        steps.fill_diagonal_(-torch.inf)
    steps, rows = steps.sort(dim=1, descending=True, stable=True)
    return Neighbors(rows[:, :k], (steps[:, :k] / 2**28).float())


def assert_same(found: Neighbors, expected: Neighbors) -> None:
    assert found.indices.dtype == torch.int64
    assert found.similarities.dtype == torch.float32
    torch.testing.assert_close(found.similarities, expected.similarities, rtol=0, atol=0)
    torch.testing.assert_close(found.indices, expected.indices)


@contextmanager
def candidates_everywhere(spare: int = 1) -> Iterator[None]:
    """Small galleries go through the fast product too, with so few candidates that they often prove nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "_CANDIDATE_COST", 0)
        patch.setattr(neighbors, "_SPARE", spare)
        yield


def lattice(rows: int, dims: int, seed: int, levels: int = 1) -> Tensor:
    """Small integers: full of duplicates, exact ties, multiples of each other and zero vectors."""
    return torch.randint(-levels, levels + 1, (rows, dims), generator=torch.Generator().manual_seed(seed)).float()


def cloud(rows: int, dims: int, seed: int) -> Tensor:
    return torch.randn(rows, dims, generator=torch.Generator().manual_seed(seed))


def clusters(seed: int, spread: float, *, count: int = 40, size: int = 50, dims: int = 48) -> Tensor:
    """Clusters of near ties, every seventh row an exact copy of another."""
    embeddings = cloud(count, dims, seed).repeat(size, 1) + spread * cloud(count * size, dims, seed + 1)
    copies = torch.arange(0, len(embeddings), 7)
    embeddings[copies] = embeddings[(copies * 31 + 5) % len(embeddings)]
    return embeddings


@settings(max_examples=60)
@given(
    st.integers(2, 60),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from([0, 1, 3]),
    st.sampled_from(DTYPES),
    st.data(),
)
def test_equals_brute_force(rows, dims, seed, levels, dtype, data):
    embeddings = lattice(rows, dims, seed, levels) if levels else cloud(rows, dims, seed)
    k = data.draw(st.integers(1, rows - 1))
    expected = brute_force(embeddings, k)
    assert_same(nearest_neighbors(embeddings, k), expected)
    with candidates_everywhere():
        assert_same(nearest_neighbors(embeddings, k, matmul_dtype=dtype, chunk_size=7, tile_size=11), expected)


@settings(max_examples=25)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 10**6), st.sampled_from(DTYPES), st.data())
def test_queries_of_their_own_exclude_nothing(num_queries, rows, seed, dtype, data):
    embeddings, queries = lattice(rows, 3, seed, 2), lattice(num_queries, 3, seed + 1, 2)
    k = data.draw(st.integers(1, rows))
    with candidates_everywhere():
        found = nearest_neighbors(embeddings, k, queries=queries, matmul_dtype=dtype)
    assert_same(found, brute_force(embeddings, k, queries))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.3, 3.0])
def test_bfloat16_and_float32_products_give_the_same_answer(dtype, spread):
    embeddings = clusters(0, spread)
    assert_same(nearest_neighbors(embeddings, 5, matmul_dtype=dtype, tile_size=700), brute_force(embeddings, 5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_that_crowd_around_one_direction(dtype):
    embeddings = 3 + 0.05 * cloud(2000, 48, 0)  # Cosines between 0.999 and 1, as of a poor backbone.
    assert_same(nearest_neighbors(embeddings, 5, matmul_dtype=dtype), brute_force(embeddings, 5))


def test_common_data_never_needs_the_whole_gallery(monkeypatch):
    monkeypatch.setattr(Gallery, "_exhaust", None)
    for dtype in DTYPES:
        nearest_neighbors(cloud(1500, 32, 0), 5, matmul_dtype=dtype)
        nearest_neighbors(clusters(0, 0.5, count=150, size=10), 3, matmul_dtype=dtype)


def test_a_product_less_precise_than_assumed_is_noticed(monkeypatch):
    exact = torch.mm

    def sloppy(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        return exact(a, b, out=out).add_(torch.randn(out.shape, generator=noise), alpha=0.1)

    noise = torch.Generator().manual_seed(0)
    embeddings = cloud(1500, 32, 0)
    monkeypatch.setattr(torch, "mm", sloppy)
    for dtype in DTYPES:
        found = nearest_neighbors(embeddings, 5, matmul_dtype=dtype)
        assert_same(found, brute_force(embeddings, 5))


def test_exact_although_the_user_allows_coarse_float32_products():
    embeddings = clusters(0, 0.05)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = nearest_neighbors(embeddings, 5, matmul_dtype=torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)
    assert_same(found, brute_force(embeddings, 5))


def test_autocast_gradients_and_strides_do_not_matter():
    embeddings = cloud(48, 900, 0).T.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest_neighbors(embeddings, 4, matmul_dtype=torch.float32)
    assert_same(found, brute_force(embeddings.detach(), 4))
    assert not found.similarities.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_types_are_searched_as_the_numbers_they_are(dtype):
    embeddings = cloud(1200, 24, 0).to(dtype)
    assert_same(nearest_neighbors(embeddings, 4), brute_force(embeddings, 4))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 300), st.sampled_from(DTYPES))
def test_chunks_do_not_matter(seed, chunk_size, tile_size, dtype):
    embeddings = torch.cat([cloud(100, 8, seed), lattice(100, 8, seed)])
    with candidates_everywhere(spare=8):
        found = nearest_neighbors(embeddings, 4, matmul_dtype=dtype, chunk_size=chunk_size, tile_size=tile_size)
    assert_same(found, nearest_neighbors(embeddings, 4))


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_order_of_rows_does_not_matter(seed):
    embeddings = cloud(80, 8, seed)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
    found, shuffled = nearest_neighbors(embeddings, 5), nearest_neighbors(embeddings[order], 5)
    torch.testing.assert_close(shuffled.similarities, found.similarities[order], rtol=0, atol=0)
    same = order[shuffled.indices] == found.indices[order]
    tied = found.similarities.diff(dim=1).eq(0).any(1)[order]
    assert (same.all(1) | tied).all()


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_lengths_do_not_matter(seed):
    embeddings = torch.cat([cloud(40, 8, seed), lattice(40, 8, seed)])
    powers = torch.randint(-30, 30, (80, 1), generator=torch.Generator().manual_seed(seed))
    assert_same(nearest_neighbors(embeddings * 2.0**powers, 5), nearest_neighbors(embeddings, 5))


def test_self_is_excluded_by_row_not_by_rank():
    embeddings = cloud(6, 8, 0)
    embeddings[4] = embeddings[1]
    found = nearest_neighbors(embeddings, 5)
    assert found.indices[1, 0] == 4
    assert found.indices[4, 0] == 1
    assert found.similarities[1, 0] == 1
    assert not (found.indices == torch.arange(6)[:, None]).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_come_in_order_of_rows(dtype):
    embeddings = torch.ones(1500, 4)
    found = nearest_neighbors(embeddings, 3, matmul_dtype=dtype)
    assert found.indices[0].tolist() == [1, 2, 3]
    assert found.indices[1].tolist() == [0, 2, 3]
    assert (found.indices[3:] == torch.arange(3)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_share_of_the_queries(dtype):
    embeddings = clusters(0, 0.3)
    rows = torch.arange(len(embeddings))
    whole = nearest_neighbors(embeddings, 5)
    for share in (slice(0, 700), slice(700, None)):
        part = nearest_neighbors(embeddings, 5, queries=embeddings[share], exclude=rows[share], matmul_dtype=dtype)
        assert_same(part, Neighbors(whole.indices[share], whole.similarities[share]))


def test_minus_one_excludes_nothing():
    embeddings = cloud(10, 4, 0)
    exclude = torch.tensor([0, -1])
    found = nearest_neighbors(embeddings, 1, queries=embeddings[:2], exclude=exclude)
    assert found.indices[0, 0] != 0
    assert found.indices[1, 0] == 1


def test_zero_vectors_are_similar_to_nothing():
    embeddings = cloud(5, 4, 0)
    embeddings[2] = 0
    found = nearest_neighbors(embeddings, 4)
    assert found.indices[2].tolist() == [0, 1, 3, 4]
    assert (found.similarities[2] == 0).all()
    assert found.similarities.isfinite().all()


def test_tiny_and_huge_vectors():
    embeddings = cloud(40, 6, 0)
    embeddings[::2] *= 1e-42  # Their squares underflow in float32,
    embeddings[1::4] *= 1e37  # and these overflow.
    assert_same(nearest_neighbors(embeddings, 3), brute_force(embeddings, 3))


def test_one_gallery_many_searches():
    gallery = Gallery(clusters(0, 0.3))
    queries = cloud(20, 48, 5)
    for k in (1, 9):
        assert_same(gallery.search(queries, k), brute_force(gallery.rows, k, queries))


def test_never_all_pairs_at_once():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                self.numel = max(self.numel, tensor.numel() if isinstance(tensor, Tensor) else 0)
            return result

    embeddings = clusters(0, 0.01, count=20, size=200, dims=8)
    for k in (5, 300):  # By candidates, and by the whole gallery.
        with Largest() as largest:
            nearest_neighbors(embeddings, k, chunk_size=64, tile_size=512)
        assert largest.numel <= max(len(embeddings) * k, 64 * (512 + k))


@pytest.mark.parametrize(
    ("embeddings", "options", "message"),
    [
        (torch.zeros(0, 3), {}, "embeddings are empty"),
        (torch.zeros(3), {}, r"\(rows, dimensions\)"),
        (torch.zeros(3, 2, dtype=torch.int64), {}, "floating type"),
        (torch.tensor([[1.0], [torch.nan], [1.0], [-torch.inf]]), {}, r"in 2 of 4 rows \(1, 3\)"),
        (torch.full((30, 2), torch.nan), {}, r"\(0, 1, .*9, \.\.\.\)"),
        (torch.ones(4, 2), {"k": 4}, "k=4, but a query has 3 rows to choose from: lower k"),
        (torch.ones(4, 2), {"k": 0}, "k=0"),
        (torch.ones(1, 2), {}, "give more embeddings"),
        (torch.ones(4, 2), {"k": 5, "queries": torch.ones(1, 2)}, "has 4 rows"),
        (torch.ones(4, 2), {"queries": torch.ones(1, 3)}, r"queries must be \(M, 2\)"),
        (torch.ones(4, 2), {"queries": torch.ones(0, 2)}, "queries are empty"),
        (torch.ones(4, 2), {"queries": torch.full((1, 2), torch.inf)}, r"queries hold NaN .*\(0\)"),
        (torch.ones(4, 2), {"exclude": torch.zeros(3, dtype=torch.int64)}, "exclude must hold 4 row numbers"),
        (torch.ones(4, 2), {"exclude": torch.zeros(4)}, "exclude must hold 4 row numbers"),
        (torch.ones(4, 2), {"matmul_dtype": torch.float16}, "matmul_dtype must be"),
    ],
)
def test_errors_say_what_to_do(embeddings, options, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(embeddings, options.pop("k", 1), **options)
