"""Retrieval metrics: against pytorch-metric-learning, and against the definitions in plain loops."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import Tensor

from stml_semi.metrics import QueryScores, bootstrap, query_scores, retrieval_metrics, summarize


def reference(
    embeddings: Tensor,
    labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    search_dtype: torch.dtype = torch.float64,
) -> dict[str, float]:
    """The reference; by default its search runs in float64, where only true ties depend on the order of summation."""
    search = CustomKNN(CosineSimilarity())
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=lambda q, k, r, own: search(q.to(search_dtype), k, r.to(search_dtype), own),
        kmeans_func=lambda *_: None,
    )
    values = calculator.get_accuracy(embeddings, labels, gallery, gallery_labels)
    names = {"precision_at_1": "recall@1", "r_precision": "r_precision", "mean_average_precision_at_r": "map@r"}
    return {ours: values[theirs] for theirs, ours in names.items()}


def scores_of_one(order: list[int], labels: list[int], label: int, recall_at: tuple[int, ...]) -> list[float]:
    """The definitions, for the rows of a gallery from near to far."""
    hits = [labels[row] == label for row in order]
    total = sum(hits)
    precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(total)]
    return [
        *(float(any(hits[:k])) for k in recall_at),
        sum(hits[:total]) / total,
        sum(p for p, hit in zip(precisions, hits, strict=False) if hit) / total,
    ]


def by_loops(embeddings: Tensor, labels: Tensor, recall_at: tuple[int, ...], tie: str = "row") -> list[float]:
    """Every image against all others. tie: what comes first of equals (row, best, worst)."""
    unit = torch.nn.functional.normalize(embeddings.double())
    cosines = ((unit @ unit.T).float().double() * 2**28).round().tolist()
    known, values = labels.tolist(), []
    for query, label in enumerate(known):
        others = [row for row in range(len(known)) if row != query]
        if any(known[row] == label for row in others):
            sign = {"row": 0, "best": -1, "worst": 1}[tie]
            others.sort(key=lambda row: (-cosines[query][row], sign * (known[row] == label), row))
            values.append(scores_of_one(others, known, label, recall_at))
    return torch.tensor(values, dtype=torch.float64).mean(0).tolist()


def clustered(seed: int, sizes: list[int], *, spread: float = 1.0, dims: int = 16) -> tuple[Tensor, Tensor]:
    """Classes of the given sizes, in random order, with labels that are not 0, 1, 2, ..."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centers = torch.randn(len(sizes), dims, generator=generator)
    embeddings = centers[labels] + spread * torch.randn(len(labels), dims, generator=generator)
    return embeddings, labels * 7 - 20


UNEVEN = [1, 1, 2, 3, 5, 8, 13, 40, 120]


@pytest.mark.parametrize("seed", [0, 1, 3])  # With seed 2 two cosines are equal in float32, and either order is right.
@pytest.mark.parametrize(("sizes", "spread"), [([10] * 30, 1.0), (UNEVEN, 1.0), (UNEVEN, 5.0), ([2] * 50, 0.5)])
def test_equals_pytorch_metric_learning(seed, sizes, spread):
    embeddings, labels = clustered(seed, sizes, spread=spread)
    found = retrieval_metrics(embeddings, labels)
    expected = reference(embeddings, labels)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert found["num_queries"] == sum(size for size in sizes if size > 1)
    assert found["num_gallery"] == sum(sizes)


@pytest.mark.parametrize("seed", range(3))
def test_equals_pytorch_metric_learning_with_a_gallery(seed):
    embeddings, labels = clustered(seed, UNEVEN)
    queries, gallery = slice(0, 60), slice(60, None)
    parts = (embeddings[queries], labels[queries], embeddings[gallery], labels[gallery])
    found = retrieval_metrics(*parts[:2], gallery=parts[2], gallery_labels=parts[3])
    expected = reference(*parts)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert found["num_queries"] == torch.isin(parts[1], parts[3]).sum()
    assert found["num_gallery"] == len(parts[3])


def test_equals_pytorch_metric_learning_with_duplicates_in_a_class():
    embeddings, labels = clustered(0, [6] * 20)
    for label in labels.unique()[::2]:
        rows = (labels == label).nonzero().flatten()
        embeddings[rows[1:4]] = embeddings[rows[0]].clone()
    found, expected = retrieval_metrics(embeddings, labels), reference(embeddings, labels)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 10**6), st.booleans())
def test_equals_the_definitions(rows, classes, seed, ties):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(rows, 4, generator=generator)
    embeddings = embeddings.round() if ties else embeddings
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[1] = labels[0]
    found = retrieval_metrics(embeddings, labels, recall_at=(1, 3, 100))
    names = ["recall@1", "recall@3", "recall@100", "r_precision", "map@r"]
    values = [found[name] for name in names]
    assert values == pytest.approx(by_loops(embeddings, labels, (1, 3, 100)), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_ties_between_classes_stay_within_the_possible_orders(seed):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(8, 5, generator=generator)[torch.randint(8, (60,), generator=generator)]
    labels = torch.randint(4, (60,), generator=generator)
    names = ("recall@1", "r_precision", "map@r")
    worst, best = (dict(zip(names, by_loops(embeddings, labels, (1,), tie), strict=True)) for tie in ("worst", "best"))
    for values in (retrieval_metrics(embeddings, labels), reference(embeddings, labels)):
        for name in worst:
            assert worst[name] - 1e-12 <= values[name] <= best[name] + 1e-12
    assert worst["map@r"] < best["map@r"]


def test_order_and_length_do_not_matter():
    embeddings, labels = clustered(0, UNEVEN)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(labels), generator=generator)
    scales = 2.0 ** torch.randint(-9, 9, (len(labels), 1), generator=generator)
    assert retrieval_metrics((embeddings * scales)[order], labels[order]) == pytest.approx(
        retrieval_metrics(embeddings, labels), abs=1e-12
    )


def test_one_large_class_among_small_ones():
    embeddings, labels = clustered(3, [700, *[3] * 40], spread=3.0)
    found = retrieval_metrics(embeddings, labels)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        expected = reference(embeddings, labels, search_dtype=dtype)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=tolerance)


def test_a_perfect_and_a_hopeless_model():
    labels = torch.arange(5).repeat(4)
    perfect = retrieval_metrics(torch.eye(5)[labels], labels, recall_at=(1,))
    assert perfect == {"recall@1": 1.0, "r_precision": 1.0, "map@r": 1.0, "num_queries": 20, "num_gallery": 20}
    hopeless = retrieval_metrics(torch.eye(4)[torch.arange(20) // 5], labels, recall_at=(1,))
    assert hopeless["recall@1"] == 0


def test_keys_and_types():
    embeddings, labels = clustered(0, [3] * 5)
    found = retrieval_metrics(embeddings, labels.to(torch.int32), recall_at=[1, 5])
    assert list(found) == ["recall@1", "recall@5", "r_precision", "map@r", "num_queries", "num_gallery"]
    assert [type(value) for value in found.values()] == [float] * 4 + [int] * 2


def test_recall_beyond_the_gallery_is_the_whole_gallery():
    found = retrieval_metrics(torch.eye(4), torch.tensor([0, 0, 1, 1]), recall_at=(1, 3, 50))
    assert found["recall@3"] == found["recall@50"] == 1


def test_shares_of_the_queries_make_the_whole():
    embeddings, labels = clustered(0, UNEVEN)
    whole = query_scores(embeddings, labels)
    shares = [query_scores(embeddings, labels, rows=rows) for rows in torch.arange(len(labels)).split(50)]
    joined = QueryScores(*(torch.cat(parts) for parts in zip(*shares, strict=True)))
    for together, alone in zip(joined, whole, strict=True):
        torch.testing.assert_close(together, alone, rtol=0, atol=0, equal_nan=True)
    summary = summarize(joined, recall_at=(1, 2, 4, 8), num_gallery=len(labels))
    assert summary == retrieval_metrics(embeddings, labels)


def test_queries_with_nothing_to_find_have_no_score():
    scores = query_scores(torch.eye(4)[:, :3] + 0.1, torch.tensor([0, 5, 0, 7]))
    assert scores.num_relevant.tolist() == [1, 0, 1, 0]
    for values in (scores.recall[:, 0], scores.r_precision, scores.average_precision):
        assert values.isnan().tolist() == [False, True, False, True]
    nobody = query_scores(torch.eye(4), torch.tensor([0, 0, 1, 1]), rows=torch.arange(0))
    assert nobody.recall.shape == (0, 4)


ONES, LABELS = torch.ones(4, 2), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("embeddings", "labels", "options", "message"),
    [
        (ONES, torch.arange(4), {}, "no query has an image of its class to find: give at least two"),
        (ONES, LABELS, {"gallery": ONES, "gallery_labels": LABELS + 2}, "or a gallery with classes"),
        (ONES, LABELS[:3], {}, r"labels must be one per row of embeddings: \(4,\), not \(3,\)"),
        (ONES, LABELS[:, None], {}, "labels must be one per row"),
        (ONES, LABELS.float(), {}, "labels must be integers"),
        (ONES, LABELS > 0, {}, "labels must be integers"),
        (ONES, LABELS, {"gallery": ONES}, "go together"),
        (ONES, LABELS, {"gallery_labels": LABELS}, "go together"),
        (ONES, LABELS, {"gallery": ONES, "gallery_labels": LABELS[1:]}, "one per row of gallery"),
        (ONES, LABELS, {"gallery": ONES[:, :1], "gallery_labels": LABELS}, "like the embeddings"),
        (ONES, LABELS, {"gallery": ONES / 0, "gallery_labels": LABELS}, "gallery hold NaN"),
        (ONES / 0, LABELS, {}, "embeddings hold NaN or infinity in 4 of 4 rows"),
        (ONES, LABELS, {"recall_at": ()}, "recall_at"),
        (ONES, LABELS, {"recall_at": (0, 1)}, "recall_at"),
        (ONES[:0], LABELS[:0], {}, "embeddings are empty"),
        (ONES[:1], LABELS[:1], {}, "no query has"),
    ],
)
def test_errors_say_what_to_do(embeddings, labels, options, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(embeddings, labels, **options)


def test_intervals_hold_the_mean_and_know_that_queries_of_a_class_are_alike():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 20)
    alike = (rng.random(30) < 0.5)[labels].astype(float)
    apart = (rng.random(600) < 0.5).astype(float)
    clustered, independent, same = bootstrap(
        torch.tensor(np.column_stack([alike, apart, apart - apart])), groups=torch.from_numpy(labels)
    )
    assert clustered.mean == pytest.approx(alike.mean())
    assert clustered.low < clustered.mean < clustered.high
    assert clustered.high - clustered.low > 2 * (independent.high - independent.low)
    assert (same.low, same.mean, same.high) == (0, 0, 0)
    # What the central limit theorem says of 30 independent classes.
    expected = 2 * 1.96 * alike.std() / 30**0.5
    assert clustered.high - clustered.low == pytest.approx(expected, rel=0.15)
