"""Retrieval metrics and their intervals, what a threshold on the similarity is worth, and how right groups are."""

from stml_semi.metrics.grouping import GroupAccuracy, group_accuracy
from stml_semi.metrics.open_set import (
    OpenSetScores,
    PairCounts,
    Threshold,
    false_non_match_rate,
    open_set_scores,
    pair_counts,
    precision_thresholds,
)
from stml_semi.metrics.retrieval import (
    ClassScores,
    Interval,
    QueryScores,
    bootstrap,
    class_scores,
    query_scores,
    retrieval_metrics,
    score_names,
    score_title,
    score_values,
    summarize,
)

__all__ = [
    "ClassScores",
    "GroupAccuracy",
    "Interval",
    "OpenSetScores",
    "PairCounts",
    "QueryScores",
    "Threshold",
    "bootstrap",
    "class_scores",
    "false_non_match_rate",
    "group_accuracy",
    "open_set_scores",
    "pair_counts",
    "precision_thresholds",
    "query_scores",
    "retrieval_metrics",
    "score_names",
    "score_title",
    "score_values",
    "summarize",
]
