import json

import pytest
import torch

from stml_semi.training.health import (
    FiniteWatch,
    agreement,
    collapse,
    effective_rank,
    is_collapsed,
    mean_similarity,
    report_non_finite,
    spread,
)
from stml_semi.training.objective import Terms


def test_effective_rank_counts_directions():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
    for rank in (2, 5, 20):
        x = torch.randn(4000, rank, generator=generator) @ basis[:rank]
        assert effective_rank(x) == pytest.approx(rank, rel=0.02)
    # Fewer rows than columns: the other Gram matrix.
    assert effective_rank(torch.eye(10, 64)) == pytest.approx(9, rel=1e-3)


def test_a_point_and_a_line_are_collapsed_and_real_spread_is_not():
    generator = torch.Generator().manual_seed(0)
    direction, other = torch.randn(2, 32, generator=generator)
    point = direction + 1e-3 * torch.randn(50, 32, generator=generator)
    line = direction + torch.linspace(-2, 2, 50)[:, None] * other
    for x in (point, line, torch.ones(50, 32)):
        assert is_collapsed(spread(x, None)), x
    # Features after a ReLU point the same way, and are fine.
    assert not is_collapsed(spread(5 + torch.rand(50, 32, generator=generator), None))
    assert "effective rank 1.0" in str(collapse(40, spread(torch.ones(50, 32), None)))


def test_mean_similarity_by_definition():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    unit = x / x.norm(dim=1, keepdim=True)
    apart = (unit @ unit.T)[~torch.eye(7, dtype=torch.bool)]
    assert mean_similarity(x) == pytest.approx(apart.mean().item(), abs=1e-6)


def test_affinity_quantiles_leave_the_diagonal_out():
    affinity = torch.eye(11) + 0.25 * (1 - torch.eye(11))
    line = spread(torch.randn(11, 4), affinity)
    assert (line["affinity_p50"], line["affinity_p90"], line["affinity_p99"]) == (0.25, 0.25, 0.25)


def test_agreement_of_affinities_with_classes_counts_pairs_of_different_images():
    # Rows 0 and 1 show one image; 2 is of its class, 3 and 4 are of another one.
    index, labels = torch.tensor([7, 7, 2, 5, 1]), torch.zeros(8, dtype=torch.int64)
    labels[[5, 1]] = 1
    affinity = torch.eye(5)
    affinity[0, 1] = affinity[1, 0] = 1
    affinity[0, 2] = affinity[2, 0] = 0.8  # Right.
    affinity[1, 3] = affinity[3, 1] = 0.6  # Wrong.
    assert agreement(affinity, index, labels) == {"affinity_precision": 0.5, "affinity_recall": 2 / 6}
    assert agreement(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 1])) == {}


def terms(**changes: float) -> Terms:
    values = dict.fromkeys(Terms._fields, 1.0) | changes
    return Terms(**{name: torch.tensor(value) for name, value in values.items()})


def test_the_first_bad_step_of_each_term_is_remembered():
    watch = FiniteWatch(torch.device("cpu"))
    watch.check(terms(), 3)
    assert watch.broken() == {}
    watch.check(terms(self_distillation=float("nan")), 4)
    watch.check(terms(self_distillation=float("inf"), labeled_loss=float("nan")), 5)
    watch.check(terms(), 6)
    assert watch.broken() == {"labeled_loss": 5, "self_distillation": 4}


def test_the_error_names_term_step_and_images(tmp_path):
    broken = {"labeled_loss": 5, "self_distillation": 4, "surrogate": 4}
    error = report_non_finite(broken, ["a.png", "b.png"], tmp_path / "non_finite" / "batch.json")
    assert str(error).startswith("self_distillation is not finite from step 4 on")
    content = json.loads((tmp_path / "non_finite" / "batch.json").read_text())
    assert content == {"step": 4, "terms": ["self_distillation"], "images": ["a.png", "b.png"]}
