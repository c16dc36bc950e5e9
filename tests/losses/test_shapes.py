"""The tests check the shapes that losses, metrics and neighbors state: conftest.py turns that on."""

from typing import get_type_hints

import pytest
import torch
from beartype.door import is_bearable
from jaxtyping import TypeCheckError, jaxtyped

from stml_semi import neighbors
from stml_semi.losses.balance import Balancer, differentiate
from stml_semi.losses.proxy import LabeledLoss
from stml_semi.losses.relations import contextual_affinity
from stml_semi.losses.stml import relaxed_contrastive, stml_loss
from stml_semi.metrics import bootstrap, class_scores, query_scores


@pytest.mark.parametrize("columns", [1, 5])  # One column would be broadcast, and the result be wrong without an error.
def test_an_affinity_that_is_not_square_is_refused(columns):
    distances = torch.rand(4, 4)
    assert relaxed_contrastive(distances, torch.rand(4, 4), delta=1.0).ndim == 0
    with pytest.raises(TypeCheckError, match="'affinity'"):
        relaxed_contrastive(distances, torch.rand(4, columns), delta=1.0)


@pytest.mark.parametrize("labels", [torch.arange(5), torch.zeros(6)])
def test_labels_of_another_length_or_type_are_refused(labels):
    loss = LabeledLoss("proxy_anchor", num_classes=6, embedding_dim=8)
    with pytest.raises(TypeCheckError, match="'labels'"):
        loss(torch.randn(6, 8), labels)


def test_metrics_and_neighbors_are_checked_too():
    with pytest.raises(TypeCheckError, match="'groups'"):
        bootstrap(torch.rand(6, 2), groups=torch.arange(5))
    with pytest.raises(TypeCheckError, match="'lengths'"):
        neighbors._unit(torch.rand(6, 2), torch.ones(1, dtype=torch.float64))


def test_fields_of_results_have_the_shapes_that_they_state():
    """Calls check arguments and what is returned, but not what a named tuple holds."""
    f, labels = torch.randn(6, 4, requires_grad=True), torch.arange(6) // 2
    affinity = contextual_affinity(f, labels, sigma=1.0, topk=2)
    loss = stml_loss(f, f, affinity.affinity, delta=1.0)
    term = differentiate(loss.total, [f])
    scores = query_scores(f, labels, recall_at=(1, 3), rows=torch.arange(5))
    results = [affinity, loss, term, Balancer("unit", 0.3)(term, term), scores]
    results += [class_scores(scores, labels[:5], recall_at=(1, 3)), neighbors.nearest_neighbors(f, 3)]
    results += [neighbors.Gallery(f)._operands]
    for result in results:
        with jaxtyped("context"):
            for name, stated in get_type_hints(type(result)).items():
                assert is_bearable(getattr(result, name), stated), f"{type(result).__name__}.{name}"
