"""Batches are a function of the plan: not of workers, processes or what was read before."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import write_pictures
from PIL import Image

from stml_semi.data.batches.eval_images import EvalPieces, joined
from stml_semi.data.batches.loading import Batch, Steps, ViewSettings, one_batch_of
from stml_semi.data.batches.plan import LabeledPlan, UnlabeledPlan
from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import read_pixels
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.workers import decode_ahead
from stml_semi.runtime.distributed import share
from stml_semi.runtime.errors import RunFailed

VIEWS = ViewSettings("paper", (16, 16), num_views=2, seed=3)


@pytest.fixture
def tables(tmp_path):
    for name in "abc":
        write_pictures(tmp_path / "labeled" / name, 5, seed=ord(name))
    write_pictures(tmp_path / "loose", 20, seed=9)
    return (
        open_source(str(tmp_path / "labeled"), flag="--labeled", labels="required"),
        open_source(str(tmp_path / "loose"), flag="--unlabeled", labels="ignored"),
    )


def steps_for(tables: tuple[ImageTable, ImageTable], rank: int = 0, world: int = 1) -> Steps:
    labeled, unlabeled = tables
    assert labeled.labels is not None
    by_class = [np.flatnonzero(labeled.labels == c) for c in range(3)]
    neighbors = (np.arange(20)[:, None] + np.arange(1, 5)) % 20
    return Steps(
        VIEWS,
        labeled=(labeled, LabeledPlan(by_class, classes_per_batch=3, images_per_class=2)),
        unlabeled=(unlabeled, UnlabeledPlan(np.arange(20), neighbors, queries_per_batch=2, num_neighbors=5)),
        labeled_share=share(6, rank=rank, world_size=world),
        unlabeled_share=share(10, rank=rank, world_size=world),
    )


def assert_same(a: Batch, b: Batch) -> None:
    for field in ("labeled_pixels", "labels", "unlabeled_pixels", "image_index"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field


def test_shapes_and_types(tables):
    batch = steps_for(tables)[0]
    assert batch.labeled_pixels.shape == (6, 3, 16, 16)
    assert batch.unlabeled_pixels.shape == (10, 2, 3, 16, 16)
    assert batch.labeled_pixels.dtype == batch.unlabeled_pixels.dtype == torch.uint8
    assert batch.labels.tolist() == sorted(batch.labels.tolist(), key=batch.labels.tolist().index)
    assert not torch.equal(batch.unlabeled_pixels[:, 0], batch.unlabeled_pixels[:, 1])
    assert batch.bad == []


@pytest.mark.parametrize("world", [2, 3, 7])
def test_shares_of_all_processes_are_the_batch_of_one(tables, world):
    for step in (0, 5):
        whole = steps_for(tables)[step]
        parts = [steps_for(tables, rank, world)[step] for rank in range(world)]
        joined = Batch(*(torch.cat([part[i] for part in parts]) for i in range(4)), bad=[])  # pyright: ignore
        assert_same(whole, joined)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(tables, num_workers):
    steps = steps_for(tables)
    batches = list(decode_ahead(steps, range(4, 9), num_workers=num_workers))
    assert len(batches) == 5
    for step, batch in zip(range(4, 9), batches, strict=True):
        assert_same(batch, steps[step])


def test_a_bad_picture_is_replaced_by_the_next_of_its_class(tables):
    labeled, unlabeled = tables
    Path(labeled.describe(1)).write_bytes(b"")
    Path(unlabeled.describe(0)).unlink()
    assert labeled.labels is not None
    seen = [steps_for(tables)[step] for step in range(20)]
    bad = {picture.image: picture.reason for batch in seen for picture in batch.bad}
    assert set(bad) == {labeled.describe(1), unlabeled.describe(0)}
    assert all(0 not in batch.image_index for batch in seen)  # Its place is taken under its substitute's identity.
    assert any((batch.image_index == 1).sum() >= 2 for batch in seen)
    for batch in seen:
        assert batch.labels.bincount().tolist() == [2, 2, 2]


def test_the_stand_in_of_an_unlabeled_picture_does_not_depend_on_labels(tables):
    labeled, _ = tables
    Path(labeled.describe(4)).write_bytes(b"")  # The last of its class: the next of the source is of another one.
    views = VIEWS._replace(num_views=1)
    batch = one_batch_of(np.arange(3, 15), labeled, views)[0]
    assert sorted(batch.image_index.tolist()) == [3, 5, *range(5, 15)]


def test_a_class_without_readable_pictures_lends_its_place_to_others(tables):
    labeled, _ = tables
    for row in range(5):
        Path(labeled.describe(row)).write_bytes(b"")
    batch = steps_for(tables)[0]  # Each batch draws all three classes.
    assert 0 not in batch.labels  # A substitute keeps its own label.
    assert batch.labels.bincount(minlength=3)[1:].sum() == 6
    assert {picture.image for picture in batch.bad} == {labeled.describe(row) for row in range(5)}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_source_without_readable_pictures_is_one_clear_error(tables, num_workers):
    labeled, _ = tables
    for row in range(15):
        Path(labeled.describe(row)).write_bytes(b"")
    with pytest.raises(RunFailed, match="can be read") as error:
        list(decode_ahead(steps_for(tables), range(1), num_workers=num_workers))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows_in_flight", [1, 2, 3, 100])
def test_evaluation_marks_bad_pictures(tables, monkeypatch, rows_in_flight):
    import transformers

    labeled, _ = tables
    for row in (4, 5, 6, 7, 12):
        Path(labeled.describe(row)).write_bytes(b"x")
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    whole = list(decode_ahead(EvalPieces(labeled, np.arange(15), processor, batch_size=4), num_workers=0))
    # Whatever is in flight at a time, the batches are the same.
    monkeypatch.setattr("stml_semi.data.batches.eval_images._IN_FLIGHT_BYTES", 2 * rows_in_flight * 3 * 16 * 16 * 4)
    pieces = EvalPieces(labeled, np.arange(15), processor, batch_size=4, num_workers=1)
    assert max(map(len, pieces.pieces)) == min(rows_in_flight, 4)
    batches = list(joined(decode_ahead(pieces, num_workers=1), 4, torch.device("cpu")))
    for batch, alike in zip(batches, whole, strict=True):
        assert torch.equal(batch.pixels, alike.pixels)
        assert torch.equal(batch.readable, alike.readable)
        assert batch.bad == alike.bad
    readable = torch.cat([batch.readable for batch in batches])
    assert readable.tolist() == [row not in (4, 5, 6, 7, 12) for row in range(15)]
    assert [len(batch.pixels) for batch in batches] == [4, 0, 4, 3]
    assert batches[3].pixels[0].abs().max() == 0
    assert batches[3].pixels[1].abs().max() > 0


def test_every_picture_is_decoded_as_small_as_its_own_views_allow(tmp_path, monkeypatch):
    x, y = np.meshgrid(np.linspace(0, 255, 400), np.linspace(0, 255, 300))
    for name in "abcdefgh":
        Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).save(tmp_path / f"{name}.jpg")
    table = open_source(str(tmp_path), flag="--unlabeled", labels="ignored")
    steps = one_batch_of(np.arange(8), table, ViewSettings("paper", (96, 96), num_views=2, seed=0))
    widths = set[int]()

    def spy(source, enough):
        pixels = read_pixels(source, enough=enough if shrinking else None)
        widths.add(pixels.shape[2])
        return pixels

    monkeypatch.setattr("stml_semi.data.batches.loading.read_pixels", spy)
    shrinking = True
    small = steps[3].unlabeled_pixels
    assert widths == {200, 400}
    shrinking = False
    assert (small.float() - steps[3].unlabeled_pixels.float()).abs().mean() < 2
