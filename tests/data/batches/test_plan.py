import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stml_semi.config import TrainConfig
from stml_semi.data.batches.live_images import LiveTable
from stml_semi.data.batches.plan import (
    LabeledPlan,
    UnlabeledPlan,
    check_labeled,
    check_unlabeled,
    held_out_classes,
    pool_rows,
    rows_by_class,
)
from stml_semi.data.batches.pool import Calibrated, Neighborhoods, UnlabeledPool
from stml_semi.data.image_table import ImageTable, paths_dataset
from stml_semi.losses.evidence import Weights, affinity
from stml_semi.losses.neighborhoods import neighborhood_overlap


def labeled_plan(sizes, classes_per_batch, images_per_class):
    edges = np.cumsum([0, *sizes])
    rows = [np.arange(a, b) for a, b in itertools.pairwise(edges)]
    return LabeledPlan(rows, classes_per_batch, images_per_class), np.repeat(np.arange(len(sizes)), sizes)


@given(st.lists(st.integers(1, 9), min_size=3, max_size=12), st.integers(1, 5), st.integers(0, 50), st.integers(0, 9))
def test_labeled_batch_is_classes_times_images(sizes, images_per_class, step, seed):
    plan, labels = labeled_plan(sizes, 3, images_per_class)
    batch = plan.rows(seed, step).reshape(3, images_per_class)
    assert len(set(labels[batch[:, 0]])) == 3
    for rows in batch:
        assert len(set(labels[rows])) == 1
        available = sizes[labels[rows[0]]]
        assert len(set(rows)) == min(images_per_class, available)  # No repetition that can be avoided.
    np.testing.assert_array_equal(batch.ravel(), plan.rows(seed, step))


@given(st.integers(4, 30), st.integers(1, 4), st.integers(0, 5))
def test_every_class_has_its_turn(num_classes, classes_per_batch, seed):
    plan, labels = labeled_plan([2] * num_classes, classes_per_batch, 2)
    steps = -(-num_classes // classes_per_batch)
    for start in (0, 3 * steps):
        seen = {label for step in range(start, start + steps) for label in labels[plan.rows(seed, step)]}
        assert seen == set(range(num_classes))


def test_labeled_plan_depends_on_seed_and_step():
    plan, _ = labeled_plan([20] * 10, 4, 4)
    batches = [plan.rows(seed, step).tolist() for seed in range(3) for step in range(20)]
    assert len({tuple(batch) for batch in batches}) == 60


@given(st.integers(8, 60), st.integers(1, 4), st.integers(0, 30))
def test_unlabeled_batch_is_queries_with_their_neighbors(num_images, num_queries, step):
    rng = np.random.default_rng(num_images)
    neighbors = rng.integers(0, num_images, (num_images, 4))
    rows = np.arange(num_images) * 3 + 1
    batch = UnlabeledPlan(rows, neighbors, num_queries, 5).batch(0, step).reshape(num_queries, 5)
    assert len(set(batch[:, 0])) == num_queries
    for query, *found in batch:
        np.testing.assert_array_equal(np.sort(rows[neighbors[(query - 1) // 3]]), np.sort(found))


def test_companions_are_drawn_from_longer_lists_evenly():
    neighbors = (np.arange(40)[:, None] + np.arange(1, 10)) % 40
    plan = UnlabeledPlan(np.arange(40), neighbors, 20, 4)
    drawn = np.zeros(10)
    for step in range(200):
        for query, *found in plan.batch(3, step).reshape(20, 4):
            offsets = (np.array(found) - query) % 40
            assert len(set(offsets)) == 3
            drawn[offsets] += 1
    assert drawn[0] == 0
    np.testing.assert_allclose(drawn[1:] / drawn.sum(), 1 / 9, rtol=0.1)


def labeled_table(*sizes) -> Any:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    files = paths_dataset([f"{i}.jpg" for i in range(len(labels))])
    return ImageTable("labeled", files, labels, tuple(f"class {i}" for i in range(len(sizes))))


def test_classes_are_held_out_of_the_warmup_and_come_after_it():
    table = labeled_table(*[6] * 20)
    held_out = held_out_classes(TrainConfig(labeled="x", unlabeled="y", seed=3), table)
    assert len(held_out) == 10
    by_class = [np.flatnonzero(table.labels == c) for c in range(20)]
    plan = LabeledPlan(by_class, 8, 2, held_out, first_step=10)

    def drawn(steps):
        return set(table.labels[np.concatenate([plan.rows(3, step) for step in steps])])

    assert drawn(range(10)) == set(range(20)) - set(held_out)
    assert drawn(range(10, 20)) == set(range(20))


def test_a_batch_is_full_where_it_draws_more_classes_than_the_warmup_has():
    by_class = [np.arange(6) + 6 * c for c in range(5)]
    rows = LabeledPlan(by_class, 5, 2, np.array([1, 4]), first_step=10).rows(0, 0)
    assert len(rows) == 10
    assert set(rows // 6) == {0, 2, 3}


@pytest.mark.parametrize(
    ("sizes", "count"),
    [([22] * 5, 2), ([22] * 14, 7), ([22] * 100, 20), ([22] * 500, 40), ([22] * 4, 0), ([2] * 14, 0), ([2] * 60, 12)],
)
def test_half_of_few_classes_are_held_out_where_that_can_measure_something(sizes, count):
    assert len(held_out_classes(TrainConfig(labeled="x", unlabeled="y"), labeled_table(*sizes))) == count


def test_without_relations_over_the_pool_or_one_kind_of_images_no_class_is_held_out():
    table = labeled_table(*[22] * 20)
    for config in (
        TrainConfig(labeled="x"),
        TrainConfig(unlabeled="y"),
        TrainConfig(labeled="x", unlabeled="y", relations="batch"),
    ):
        assert not len(held_out_classes(config, table))
    assert not len(held_out_classes(TrainConfig(labeled="x", unlabeled="y"), None))


def test_who_is_drawn_does_not_depend_on_the_order_of_the_list():
    neighbors = (np.arange(40)[:, None] + np.arange(1, 10)) % 40
    shuffled = np.random.default_rng(0).permuted(neighbors, axis=1)
    for step in range(20):
        a, b = (UnlabeledPlan(np.arange(40), lists, 20, 4).batch(3, step) for lists in (neighbors, shuffled))
        np.testing.assert_array_equal(a, b)


def test_every_live_image_is_a_query_once_per_round():
    plan = UnlabeledPlan(np.arange(30), np.zeros((30, 0), np.int64), 10, 1)
    for start in (0, 3, 6):
        seen = np.concatenate([plan.batch(1, step) for step in range(start, start + 3)])
        assert sorted(seen) == list(range(30))


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 9))
def test_pool_moves_over_the_whole_source(num_images, pool_size, seed):
    refreshes = -(-num_images // pool_size)
    pools = [pool_rows(seed, refresh, num_images, pool_size) for refresh in range(refreshes)]
    assert {row for pool in pools for row in pool} == set(range(num_images))
    for pool in pools:
        assert len(set(pool)) == len(pool) == min(pool_size, num_images)


def unlabeled_pool(**changes):
    settings = {
        "seed": 0,
        "queries_per_batch": 2,
        "num_neighbors": 3,
        "refresh_every": 10,
        "first_step": 5,
    }
    table = ImageTable("pictures", paths_dataset([f"{i}.jpg" for i in range(100)]), None, ())
    return UnlabeledPool(LiveTable(table, seed=0, pool_size=40), **(settings | changes))


def neighborhoods(rows):
    near = (torch.arange(len(rows))[:, None] + torch.arange(4)) % len(rows)
    return Neighborhoods(rows, near[:, 1:], near, 0.5)


def test_the_pool_says_how_alike_images_are():
    pool = unlabeled_pool(num_neighbors=1, queries_per_batch=20)
    plan = pool.plan(5, lambda live, refresh, last: neighborhoods(live.renewed))
    index = torch.from_numpy(plan.batch(0, 7))
    overlap = pool.relations(index, num_views=1).overlap
    assert overlap is not None
    # Lists i..i+3 and j..j+3 share 4 - |i - j| members.
    place = torch.from_numpy(np.searchsorted(plan.rows, index.numpy()))
    apart = (place[:, None] - place).abs()
    apart = torch.minimum(apart, 40 - apart)
    torch.testing.assert_close(overlap, (4 - apart).clamp_min(0) / 4)
    views = pool.relations(index, num_views=2).overlap
    assert views is not None
    torch.testing.assert_close(views, overlap.repeat(2, 2))

    # Two images could not be read; the same one took their place.
    index[[3, 4]] = next(row for row in range(100) if row not in plan.rows)
    replaced = pool.relations(index, num_views=1).overlap
    assert replaced is not None
    overlap[[3, 4]] = overlap[:, [3, 4]] = 0
    overlap[3:5, 3:5] = 1
    torch.testing.assert_close(replaced, overlap)


def test_calibrated_relations_are_the_probabilities_of_the_pool():
    pool = unlabeled_pool(num_neighbors=2, queries_per_batch=10)
    unit = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    near = (torch.arange(40)[:, None] + torch.arange(4)) % 40
    calibrated = Calibrated(Weights(-1.0, 2.0, 3.0), 0.4, unit, torch.linspace(0, 0.5, 40))
    pool.plan(5, lambda live, refresh, last: neighborhoods(live.renewed)._replace(calibrated=calibrated))
    assert pool.table is not None
    rows, stranger = pool.table.rows, np.setdiff1d(np.arange(100), pool.table.rows)[0]
    index = torch.tensor([rows[3], rows[4], stranger, rows[3]])
    found = pool.relations(index, num_views=2)
    assert found.trust == 0.4
    assert found.affinity is not None
    places = torch.tensor([3, 4, 3])
    overlap = neighborhood_overlap(near, places, expand=2)
    expected = affinity(calibrated.weights, unit[places], calibrated.similarity[places], overlap)
    torch.testing.assert_close(found.affinity[0, 1], expected[0, 1])
    assert 0 < found.affinity[0, 1] < 1
    # An image is surely itself, and one that took the place of an unreadable one is like itself alone.
    assert found.affinity[2].tolist() == [0, 0, 1, 0] * 2
    assert found.affinity.diagonal(4).tolist() == [1] * 4
    assert found.affinity[0, 3] == 1


def test_the_next_refresh_is_given_the_last_pool():
    pool, given = unlabeled_pool(), []

    def neighbors(live, refresh, last):
        given.append(last)
        return neighborhoods(live.renewed)

    pool.plan(5, neighbors)
    first = pool.table
    pool.plan(15, neighbors)
    assert given == [None, first]


def test_pool_is_refreshed_when_due_and_only_then():
    asked = []

    def neighbors(live, refresh, last):
        asked.append((live.renewed, refresh))
        return neighborhoods(live.renewed)

    pool = unlabeled_pool()
    assert [pool.next_refresh(step) for step in (0, 4, 5, 14, 15)] == [5, 5, 15, 15, 25]
    first = pool.plan(5, neighbors)
    assert pool.plan(14, neighbors).rows is first.rows
    assert len(asked) == 1
    assert asked[0][1] == 0
    second = pool.plan(15, neighbors)
    assert not np.array_equal(first.rows, second.rows)
    assert asked[1][1] == 1


def test_restored_pool_does_not_ask_again():
    first = unlabeled_pool()
    plan = first.plan(7, lambda live, refresh, last: neighborhoods(live.renewed))
    second = unlabeled_pool()
    second.table = first.table
    again = second.plan(9, lambda *_: pytest.fail("the table is still valid"))
    np.testing.assert_array_equal(plan.neighbors, again.neighbors)


def test_too_few_classes_or_images_name_the_fix():
    with pytest.raises(ValueError, match="--labeled has 5 classes.*lower --labeled-batch-size to 20"):
        check_labeled(5, 16, 4)
    with pytest.raises(ValueError, match="--unlabeled has 53 images.*lower --unlabeled-batch-size to 50"):
        check_unlabeled(53, 24, 5)
    with pytest.raises(ValueError, match="--unlabeled has 3 images.*add images or lower --num-neighbors"):
        check_unlabeled(3, 24, 5)
    check_labeled(16, 16, 4)
    check_unlabeled(120, 24, 5)


@given(st.lists(st.integers(0, 6), max_size=40))
def test_the_rows_of_a_class_are_those_with_its_label(labels):
    labels = np.asarray(labels, dtype=np.int64)
    for number, rows in enumerate(rows_by_class(labels, 7)):
        assert rows.tolist() == np.flatnonzero(labels == number).tolist()
