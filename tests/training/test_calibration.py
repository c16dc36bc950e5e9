"""What the teacher knows is measured right at every density, since nothing else says how far to trust it."""

import pytest
import torch

from stml_semi.config import TrainConfig
from stml_semi.losses.evidence import Surroundings, trust
from stml_semi.training.calibration import LabeledImages, calibrate, judge
from stml_semi.training.joint_table import search
from stml_semi.training.labeled_pairs import _confusion

CONFIG = TrainConfig(labeled="x", unlabeled="y")


def things(count, each, noise, seed):
    """(count x each, d) unit vectors, and which thing each one shows."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(count, 24, generator=generator)
    labels = torch.arange(count).repeat_interleave(each)
    x = centers[labels] + noise * torch.randn(len(labels), 24, generator=generator)
    return torch.nn.functional.normalize(x, dim=1), labels


def measured(pool, weights):
    """(trust that is claimed, trust that is due)."""
    x, labels = pool
    near = search(x, CONFIG.pool_neighbors - 1)
    every = torch.arange(len(x))
    table = Surroundings(x, torch.cat([every[:, None], near.indices], 1), near.similarities.mean(1))
    probability = weights.probability(*table.evidence(every, near.indices, expand=CONFIG.num_neighbors))
    right = labels[:, None] == labels[near.indices]
    assert judge(CONFIG, weights, table) == pytest.approx(trust(probability), abs=0.05)
    return trust(probability), float((probability * right).sum() / probability.sum())


@pytest.mark.parametrize("each", [2, 4, 12, 22])
@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_trust_is_what_it_should_be_whatever_the_density(each, noise):
    pool = things(1200 // each, each, noise, seed=1)
    held_out, labels = things(8, 22, noise, seed=2)
    weights = calibrate(CONFIG, pool[0], LabeledImages(held_out, labels), seed=0)
    assert weights is not None
    claimed, due = measured(pool, weights)
    assert claimed == pytest.approx(due, abs=0.2)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_labeled_images_that_are_in_the_pool_too_do_not_count_as_wrong(share):
    pool, own = things(100, 12, 0.7, seed=1)
    held_out, labels = things(8, 12, 0.7, seed=2)
    alone = calibrate(CONFIG, pool, LabeledImages(held_out, labels), seed=0)
    also = torch.arange(len(held_out)) % 12 < 12 * share
    both = torch.cat([pool, held_out[also]])
    weights = calibrate(CONFIG, both, LabeledImages(held_out, labels), seed=0)
    assert alone is not None
    assert weights is not None
    table = both, torch.cat([own, labels[also] + 100])
    assert measured(table, weights)[0] == pytest.approx(measured(table, alone)[0], abs=0.05)


def divided(x, labels, *, classes, each, held_out=5):
    """Of the first classes some images are labeled; the pool has all others. One of `held_out` was not trained on."""
    place = torch.arange(len(x)) % int(labels.bincount().max())
    is_labeled = (labels < classes) & (place < each)
    held_out, others = is_labeled & (labels < classes // held_out), is_labeled & (labels >= classes // held_out)
    known = [LabeledImages(x[part], labels[part]) for part in (held_out, others)]
    return (x[~is_labeled], labels[~is_labeled]), known


def test_further_images_of_the_labeled_classes_in_the_pool_do_not_end_the_trust():
    x, labels = things(100, 16, 0.7, seed=1)
    pool, (held_out, others) = divided(x, labels, classes=60, each=4)
    alone = calibrate(CONFIG, pool[0], held_out, seed=0)
    weights = calibrate(CONFIG, pool[0], held_out, others, seed=0)
    assert alone is not None
    assert weights is not None
    claimed, due = measured(pool, weights)
    assert claimed > measured(pool, alone)[0] + 0.3
    assert 0.5 < claimed < due + 0.05


@pytest.mark.parametrize("seed", [3, 6])
def test_few_classes_say_how_quickly_likeness_becomes_rare(seed, monkeypatch):
    x, labels = things(300, 16, 0.8, seed=seed)
    pool, (held_out, others) = divided(x, labels, classes=20, each=4, held_out=2)
    weights = calibrate(CONFIG, pool[0], held_out, others, seed=0)
    monkeypatch.setattr("stml_semi.training.labeled_pairs._TAIL", 10**6)
    without = calibrate(CONFIG, pool[0], held_out, others, seed=0)
    assert weights is not None
    assert without is not None
    claimed, due = measured(pool, weights)
    assert measured(pool, without)[0] + 0.15 < claimed < due + 0.05


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_rarer_likeness_is_not_taken_to_be_rarer_than_it_is(power):
    """In a tail that is a power: of 50 samples of 200 pairs of classes more than 40 say more than the truth."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.cartesian_prod(torch.arange(10), torch.arange(10, 30))
    level = torch.tensor([0.2, 0.4, 0.8])
    above = []
    for _ in range(50):
        overlap = 0.01 * torch.rand(len(classes), generator=generator).pow(-1 / power)
        above.append(_confusion(overlap, classes)(level) > (level / 0.01).pow(-power))
    assert torch.stack(above).float().mean() > 0.8


@pytest.mark.parametrize("alike", [0, 3, 10])
def test_without_enough_likeness_nothing_is_said_of_its_rarity(alike):
    classes = torch.cartesian_prod(torch.arange(10), torch.arange(10, 30))
    overlap = torch.zeros(len(classes))
    overlap[:alike] = 0.3
    assert _confusion(overlap, classes)(torch.tensor([0.1, 0.9])).tolist() == [1, 1]


def test_two_classes_that_look_at_each_other_are_one_observation():
    """Ten pairs, each seen from both sides, are not the eleven from which a tail follows."""
    classes = torch.cartesian_prod(torch.arange(20), torch.arange(20))
    classes = classes[classes[:, 0] != classes[:, 1]]
    overlap = 0.3 * ((classes // 2)[:, 0] == (classes // 2)[:, 1]).float()
    assert int((overlap > 0).sum()) == 20
    assert _confusion(overlap, classes)(torch.tensor([0.9])).tolist() == [1]


def test_one_held_out_class_is_measured_as_far_as_it_can_be():
    """The others could not be read."""
    x, labels = things(100, 16, 0.7, seed=1)
    pool, (held_out, others) = divided(x, labels, classes=10, each=6, held_out=10)
    assert len(held_out.labels.unique()) == 1
    assert calibrate(CONFIG, pool[0], held_out, others, seed=0) == calibrate(CONFIG, pool[0], held_out, seed=0)


@pytest.mark.parametrize("classes", [15, 60, 100])
def test_classes_that_look_alike_are_not_taken_for_one(classes):
    """Five of them share a center: whether the labels show that or are too few to."""
    x, group = things(20, 5 * 16, 0.5, seed=1)
    names = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    labels, order = names[5 * group + torch.arange(len(group)) % 5].sort(stable=True)
    pool, (held_out, others) = divided(x[order], labels, classes=classes, each=4)
    weights = calibrate(CONFIG, pool[0], held_out, others, seed=0)
    assert weights is not None
    claimed, due = measured(pool, weights)
    assert claimed < due + 0.1


def test_where_images_have_no_fellows_little_is_trusted():
    pool = things(1200, 1, 0.7, seed=1)
    held_out, labels = things(8, 22, 0.7, seed=2)
    weights = calibrate(CONFIG, pool[0], LabeledImages(held_out, labels), seed=0)
    assert weights is not None
    near = search(pool[0], 19)
    table = Surroundings(pool[0], torch.cat([torch.arange(1200)[:, None], near.indices], 1), near.similarities.mean(1))
    pull = weights.probability(*table.evidence(torch.arange(1200), near.indices, expand=5)).sum(1).mean()
    assert pull < 0.35


def test_a_teacher_that_knows_nothing_is_not_trusted():
    x = torch.nn.functional.normalize(torch.randn(1000, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    weights = calibrate(CONFIG, x[:900], LabeledImages(x[900:], torch.arange(100) // 10), seed=0)
    assert weights is not None
    claimed, _ = measured((x[:900], torch.arange(900)), weights)
    assert claimed < 0.1


@pytest.mark.parametrize("labels", [torch.arange(9), torch.tensor([0, 0, 1, 1, 2, 2, 3, 4, 5])])
def test_without_pairs_nothing_can_be_measured(labels):
    x = torch.nn.functional.normalize(torch.randn(109, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    assert calibrate(CONFIG, x[:100], LabeledImages(x[100:], labels), seed=0) is None


def test_the_order_of_the_labeled_images_and_the_seed_change_little():
    pool, _ = things(300, 4, 0.7, seed=1)
    held_out, labels = things(8, 10, 0.7, seed=2)
    first = calibrate(CONFIG, pool, LabeledImages(held_out, labels), seed=0)
    assert first == calibrate(CONFIG, pool, LabeledImages(held_out, labels), seed=0)
    other = calibrate(CONFIG, pool, LabeledImages(held_out, labels), seed=1)
    assert first is not None
    assert other is not None
    torch.testing.assert_close(torch.tensor(first), torch.tensor(other), atol=2.0, rtol=0.3)
