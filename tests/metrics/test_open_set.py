"""Thresholds on the cosine: against the definitions in plain loops."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn.functional import normalize

from stml_semi.metrics import (
    OpenSetScores,
    Threshold,
    false_non_match_rate,
    open_set,
    open_set_scores,
    pair_counts,
    precision_thresholds,
)

BIN = 2 / 2**15
"""Cosines this near count as one in the error rates of pairs."""


def clusters(count: int = 300, classes: int = 30, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.arange(count) % classes
    return torch.randn(classes, 16)[labels] + noise * torch.randn(count, 16), labels


def pairs(embeddings: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs of one class, and of two."""
    unit = normalize(embeddings.double())
    cosines, alike = unit @ unit.T, labels[:, None] == labels
    apart = ~torch.eye(len(labels), dtype=torch.bool)
    return cosines[alike & apart].numpy(), cosines[~alike].numpy()


def made_up(same: list[float], other: list[float]) -> OpenSetScores:
    return OpenSetScores(torch.tensor(same), torch.tensor(other))


def answers(scores: OpenSetScores, threshold: float) -> tuple[int, int]:
    """Right ones and all, each query being asked twice: with its class in the gallery and without."""
    right = given = 0
    for same, other in zip(scores.same.tolist(), scores.other.tolist(), strict=True):
        if same == -2:
            continue
        right += same > other and same >= threshold
        given += (max(same, other) >= threshold) + (other >= threshold)
    return right, given


def test_the_nearest_of_the_class_and_of_others(monkeypatch):
    embeddings, labels = clusters(40, 7)
    whole, pairs_of = open_set_scores(embeddings, labels), pair_counts(embeddings, labels)
    monkeypatch.setattr(open_set, "_BLOCK", 41)  # A query at a time.
    for ours, again in zip(whole, open_set_scores(embeddings, labels), strict=True):
        torch.testing.assert_close(ours, again)
    for part, again in zip(open_set_scores(embeddings, labels, rows=torch.arange(7, 20)), whole, strict=True):
        torch.testing.assert_close(part, again[7:20])
    assert all(ours.equal(again) for ours, again in zip(pairs_of, pair_counts(embeddings, labels), strict=True))
    unit = normalize(embeddings)
    for query in range(40):
        near = {True: -2.0, False: -2.0}
        for row in set(range(40)) - {query}:
            alike = bool(labels[row] == labels[query])
            near[alike] = max(near[alike], float(unit[query] @ unit[row]))
        assert float(whole.same[query]) == pytest.approx(near[True], abs=1e-6)
        assert float(whole.other[query]) == pytest.approx(near[False], abs=1e-6)
    genuine, impostor = pairs(embeddings, labels)
    assert (int(pairs_of.genuine.sum()), int(pairs_of.impostor.sum())) == (len(genuine), len(impostor))


def test_a_gallery_is_searched_whole():
    embeddings, labels = clusters(60, 6)
    scores = open_set_scores(embeddings[:20], labels[:20], gallery=embeddings, gallery_labels=labels)
    torch.testing.assert_close(scores.same, torch.ones(20))  # Each query is in the gallery.
    pairs_of = pair_counts(embeddings[:20], labels[:20], gallery=embeddings, gallery_labels=labels)
    assert int(pairs_of.genuine.sum() + pairs_of.impostor.sum()) == 20 * 60


def test_who_has_no_match_is_told_apart():
    scores = open_set_scores(torch.eye(3), torch.tensor([0, 0, 1]))
    assert scores.same.tolist() == [0, 0, -2]
    assert open_set_scores(torch.eye(3), torch.zeros(3, dtype=torch.int64)).other.tolist() == [-2] * 3


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-2, 8), st.integers(0, 8)), min_size=1, max_size=60))
def test_each_threshold_keeps_what_it_promises_and_none_is_lower(cosines):
    """Few different cosines, so that many are equal; -2 stands for a query without a match."""
    same, other = ([-2.0 if value < 0 else value / 8 for value in column] for column in zip(*cosines, strict=True))
    scores = made_up(same, other)
    found = {one.precision: one for one in precision_thresholds(scores, (0.5, 0.75, 0.9))}
    asked = [query for query in zip(same, other, strict=True) if query[0] > -2]
    for wanted, enough in ((0.5, 2), (0.75, 4), (0.9, 10)):
        good = []
        for threshold in sorted({cosine for query in asked for cosine in query}):
            right, given_answers = answers(scores, threshold)
            if given_answers >= enough and right >= wanted * given_answers:
                good.append(threshold)
        if not good:
            assert wanted not in found
            continue
        assert answers(scores, found[wanted].similarity) == answers(scores, min(good))
        assert found[wanted].answered == pytest.approx(answers(scores, min(good))[0] / len(asked))


def test_a_precision_needs_enough_answers_to_show_it():
    few = made_up([0.9] * 99, [0.1] * 99)
    assert [one.precision for one in precision_thresholds(few, (0.9, 0.98, 0.99))] == [0.9, 0.98]
    assert precision_thresholds(made_up([0.75] * 100, [0.1] * 100), (0.99,)) == [Threshold(0.99, 0.75, 1)]
    assert precision_thresholds(made_up([-2.0], [0.1])) == []
    assert precision_thresholds(made_up([0.9] * 9, [-2.0] * 9)) == []  # One class alone.


def test_higher_precision_is_a_higher_threshold():
    found = precision_thresholds(open_set_scores(*clusters(2000, 100, 0.7)))
    assert len(found) > 20
    assert [one.similarity for one in found] == sorted(one.similarity for one in found)
    assert [one.answered for one in found] == sorted((one.answered for one in found), reverse=True)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01, 0.001])
def test_false_non_matches_at_false_matches(rate):
    """As biometrics and open-metric-learning count them: below the quantile of the pairs that should not match."""
    embeddings, labels = clusters(noise=1.0)
    genuine, impostor = pairs(embeddings, labels)
    threshold = np.quantile(impostor, 1 - rate)
    low, high = ((genuine < threshold + shift).mean() for shift in (-2 * BIN, 2 * BIN))
    ours = false_non_match_rate(pair_counts(embeddings, labels), rate)
    assert low - 1e-6 <= ours <= high + 1e-6
    assert high - low < 0.002
    assert 0.01 < ours < 0.99
