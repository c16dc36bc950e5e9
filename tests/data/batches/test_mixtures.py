"""Sources joined by commas, with weights."""

from pathlib import Path

import numpy as np
import pytest
from helpers import miniature
from hypothesis import given
from hypothesis import strategies as st

from stml_semi.data.batches.live_images import LiveTable, describe_images, num_live
from stml_semi.data.batches.plan import mixed_rows, quotas
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.sources.request import Part, specs_of, split_parts


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    for name, count in (("few", 20), ("many", 60)):
        pictures = {f"{i:02d}.jpg": miniature.jpeg(1, 1) for i in range(count)}
        miniature.write(tmp_path / name, pictures)
    return tmp_path / "few", tmp_path / "many"


def unlabeled(spec: str):
    return open_source(spec, flag="--unlabeled", labels="ignored")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("inat=0.7,photos/=.3", [Part("inat", 0.7), Part("photos/", 0.3)]),
        ("cub:train=2, user/name@v1.0:all=1", [Part("cub:train", 2), Part("user/name@v1.0:all", 1)]),
        ("shards/train-*.tar", [Part("shards/train-*.tar")]),
        ("a=b/c,year=x", [Part("a=b/c"), Part("year=x")]),
        ("", []),
        (None, []),
    ],
)
def test_a_weight_follows_an_equals_sign(text, parts):
    assert split_parts(text) == parts


def test_what_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "year=2021").mkdir()
    (tmp_path / "a,b=1").mkdir()
    assert split_parts("year=2021=3,year=2020") == [Part("year=2021", 3), Part("year", 2020)]
    assert specs_of("year=2021") == ["year=2021"]
    assert specs_of("a,b=1") == ["a,b=1"]


@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(0.01, 1)), min_size=2, max_size=5),
    st.integers(1, 300),
)
def test_weights_are_kept_to_one_image(sources, pool_size):
    sizes = [size for size, _ in sources]
    weights = [weight / sum(w for _, w in sources) for _, weight in sources]
    given_ = quotas(sizes, weights, pool_size)
    assert sum(given_) <= pool_size
    for count, size, weight in zip(given_, sizes, weights, strict=True):
        assert 0 <= count <= size
        assert abs(count - weight * sum(given_)) < 1
    # Not smaller than it has to be: the pool is full, or one more image would be too many for a source.
    full = sum(given_) == pool_size
    assert full or any((sum(given_) + 1) * w > n for n, w in zip(sizes, weights, strict=True))
    assert sum(quotas([None] * len(sizes), weights, pool_size)) == pool_size


def test_the_pool_follows_the_weights_and_everything_has_its_turn(folders):
    few, many = folders
    table = unlabeled(f"{few}=1,{many}=1")
    live = LiveTable(table, seed=0, pool_size=30)
    pools = [live.draw(refresh, None).rows for refresh in range(8)]
    for rows in pools:
        assert [(rows < 20).sum(), (rows >= 20).sum()] == [15, 15]
        assert len(set(rows)) == 30
        assert (np.diff(rows) > 0).all()
    assert {int(row) for rows in pools for row in rows} == set(range(80))
    np.testing.assert_array_equal(live.draw(3, None).rows, pools[3])
    assert table.describe(pools[0][0]).startswith(str(few))


def test_a_small_source_makes_the_pool_smaller_not_the_weights_wrong(folders):
    few, many = folders
    table = unlabeled(f"{few}=0.5,{many}=0.5")
    assert num_live(table, 16384) == 40
    assert num_live(unlabeled(f"{few},{many}"), 16384) == 80
    rows = LiveTable(table, seed=0, pool_size=16384).draw(0, None).rows
    assert (rows < 20).sum() == 20
    assert (rows >= 20).sum() == 20
    assert describe_images(table, 16384) == (
        f"80 images ({few}: 20 images, weight 0.5, 20 of the live ones; {many}: 60 images, weight 0.5, "
        f"20 of the live ones)"
    )


def test_rows_of_a_source_that_lost_some_are_still_its(folders):
    from dataclasses import replace

    few, many = folders
    table = unlabeled(f"{few}=1,{many}=1")
    kept = np.flatnonzero(np.arange(80) % 2 == 0)
    half = replace(table, images=table.images.select(kept), rows=kept)
    assert half.starts == [0, 10, 40]
    rows = mixed_rows(0, 0, half.starts, [5, 5])
    assert [half.describe(row).startswith(str(few)) for row in rows] == [True] * 5 + [False] * 5


@pytest.mark.parametrize(
    ("spec", "flag", "problem"),
    [
        ("{few}=1,{many}", "--unlabeled", "give every source a weight above 0, or none"),
        ("{few}=0,{many}=1", "--unlabeled", "give every source a weight above 0, or none"),
        ("{few}=2", "--unlabeled", "this is all of it"),
        ("{few}=1,{many}=2", "--eval", "weights are for --unlabeled; leave '=1' out"),
        ("{few}=1,=2", "--unlabeled", "give every source a weight above 0, or none"),
    ],
)
def test_weights_that_make_no_mixture(folders, spec, flag, problem):
    few, many = folders
    with pytest.raises(ValueError, match=f"{flag} .*{problem}"):
        open_source(spec.format(few=few, many=many), flag=flag, labels="ignored")


def test_a_weight_that_gives_nothing_is_told(folders):
    few, many = folders
    with pytest.raises(ValueError, match=r"few gives none of the 30 live images; raise its weight"):
        num_live(unlabeled(f"{few}=0.001,{many}=0.999"), 30)
