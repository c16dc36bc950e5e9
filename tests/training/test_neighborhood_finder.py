"""What a refresh of the pool makes of the labels, with embeddings that are made up."""

from typing import Any

import numpy as np
import pytest
import torch

from stml_semi.config import TrainConfig
from stml_semi.data.batches.live_images import LiveTable
from stml_semi.data.batches.plan import held_out_classes, parts_of_all
from stml_semi.data.batches.pool import PoolTable
from stml_semi.data.image_table import ImageTable, paths_dataset
from stml_semi.models.evaluation import EmbeddedTable
from stml_semi.runtime.errors import RunFailed
from stml_semi.training.known_images import Readable, first_look
from stml_semi.training.neighborhoods import NeighborhoodFinder, find_neighborhoods


def table(name, labels, num_classes) -> Any:
    files = paths_dataset([f"{name}-{i}.jpg" for i in range(len(labels))])
    return ImageTable(name, files, np.asarray(labels), tuple(f"{name} {c}" for c in range(num_classes)))


def images(num_classes, each, noise, seed):
    """(N, d) embeddings in classes, and these."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat_interleave(each)
    centers = torch.randn(num_classes, 24, generator=generator)
    return centers[labels] + noise * torch.randn(len(labels), 24, generator=generator), labels.numpy()


class World:
    """A labeled table, a pool, and who embeds them."""

    def __init__(self, *, classes=20, noise=0.3, unreadable=(), **config):
        self.config = TrainConfig(labeled="x", unlabeled="y", unlabeled_batch_size=20, **config)
        embeddings, labels = images(classes, 8, noise, seed=1)
        self.labeled = table("labeled", labels, classes)
        pool, _ = images(50, 6, noise, seed=2)
        self.pool = table("pool", np.zeros(len(pool), np.int64), 1)
        self.embeddings = {"labeled": embeddings, "pool": pool}
        self.unreadable, self.unreadable_of = np.asarray(unreadable, dtype=np.int64), "labeled"
        self.embedded, self.notes = [], []
        fakes: Any = self  # In the parts of encoder, teacher, list of bad images and terminal.
        self.finder = NeighborhoodFinder(self.config, self.labeled, fakes.encode, fakes, fakes, fakes)

    def list(self, found):
        assert not found

    def note(self, message):
        self.notes.append(message)

    def encode(self, source, encode, rows=None):
        rows = np.arange(len(source)) if rows is None else rows
        self.embedded.append((source.name, rows))
        readable = np.ones(len(rows), bool)
        if source.name == self.unreadable_of:
            readable = ~np.isin(rows, self.unreadable)
        return EmbeddedTable(self.embeddings[source.name][rows], readable, [])

    def refresh(self, number=0, last=None):
        live = LiveTable(self.pool, seed=0, pool_size=self.config.live_images).draw(number, None)
        return self.finder(live, number, last)


def kept(found, refresh=0):
    parts = found.neighbors.numpy(), found.compared.numpy()
    return PoolTable(refresh, found.rows, *parts, found.sigma, found.calibrated, None, found.known)


def test_held_out_classes_measure_the_teacher_beside_the_others_and_only_once():
    world = World()
    found = world.refresh()
    held_out = held_out_classes(world.config, world.labeled)
    embedded, labels = world.embedded, world.labeled.labels
    assert [name for name, _ in embedded] == ["pool", "labeled", "labeled"]
    assert set(labels[embedded[1][1]]) == set(held_out)
    assert set(labels[embedded[2][1]]) == set(labels) - set(held_out)
    assert found.calibrated is not None
    assert found.calibrated.trust > 0.5
    torch.testing.assert_close(found.calibrated.unit.norm(dim=1), torch.ones(len(world.pool)))
    again = world.refresh(1, kept(found))
    assert [name for name, _ in world.embedded] == ["pool", "labeled", "labeled", "pool"]
    assert again.calibrated is not None
    assert again.calibrated.weights == found.calibrated.weights


@pytest.mark.parametrize("config", [{"classes": 4}, {"relations": "batch"}])
def test_without_anything_to_measure_with_neighborhoods_are_as_published(config):
    world = World(**config)
    found = world.refresh()
    plain = find_neighborhoods(world.config, found.rows, world.embeddings["pool"], 0)
    assert found.calibrated is None
    assert torch.equal(found.neighbors, plain.neighbors)
    assert torch.equal(found.compared, plain.compared)
    assert found.sigma == plain.sigma
    assert [name for name, _ in world.embedded] == ["pool"]


@pytest.mark.parametrize("readable", [0, 3])
def test_held_out_images_that_cannot_be_read_measure_nothing(readable):
    world = World()
    held_out = np.flatnonzero(np.isin(world.labeled.labels, world.finder.held_out))
    world.unreadable = held_out[readable:]
    found = world.refresh()
    assert found.calibrated is None
    # It stays so: the relations of a run do not change their meaning.
    world.unreadable = world.unreadable[:0]
    assert world.refresh(1, kept(found)).calibrated is None


def test_a_pool_that_is_not_known_is_told_once():
    world = World(noise=50.0)
    found = world.refresh()
    world.refresh(1, kept(found))
    warnings = [note for note in world.notes if note.startswith("warning: ")]
    assert found.calibrated is not None
    assert found.calibrated.trust < 0.1
    assert warnings == [
        f"warning: the teacher is right in {found.calibrated.trust:.0%} of the pairs it takes for the same class: "
        "unlabeled images count little"
    ]
    known = World()
    known.refresh()
    assert not [note for note in known.notes if note.startswith("warning: ")]


def test_a_table_larger_than_a_refresh_is_embedded_once_and_renewed_in_turns():
    world = World(pool_size=100)
    whole = World().refresh()
    found = world.refresh()
    assert [(name, len(rows)) for name, rows in world.embedded] == [("pool", 300), ("labeled", 80), ("labeled", 80)]
    assert found.known is not None
    # As if a refresh embedded all, up to rounding.
    np.testing.assert_array_equal(found.rows, np.arange(300))
    assert (found.compared == whole.compared).float().mean() > 0.95
    assert found.calibrated is not None
    assert whole.calibrated is not None
    assert found.calibrated.trust == pytest.approx(whole.calibrated.trust, abs=0.02)
    # Another teacher: what it has not seen yet stays as it was.
    world.embeddings["pool"] = -world.embeddings["pool"]
    before = found
    for number in (1, 2):
        world.embedded.clear()
        after = world.refresh(number, kept(before, number - 1))
        ((name, rows),) = world.embedded
        assert (name, len(rows)) == ("pool", 100)
        assert after.known is not None
        assert before.known is not None
        changed = (after.known.embeddings != before.known.embeddings).any(1)
        np.testing.assert_array_equal(np.flatnonzero(changed.numpy()), rows)
        torch.testing.assert_close(after.known.embeddings[changed], -before.known.embeddings[changed])
        assert len(after.compared) == 300
        before = after


def test_images_of_a_large_table_that_cannot_be_read():
    world = World(pool_size=100)
    world.unreadable_of, world.unreadable = "pool", np.array([0, 7])
    found = world.refresh()
    np.testing.assert_array_equal(found.rows, np.setdiff1d(np.arange(300), [0, 7]))
    # What could be read once stays known; what could not stays out.
    world.unreadable = np.arange(8, 300)
    again = world.refresh(1, kept(found))
    np.testing.assert_array_equal(again.rows, found.rows)
    assert again.known is not None
    assert found.known is not None
    assert torch.equal(again.known.embeddings[7:], found.known.embeddings[7:])
    world.unreadable = np.arange(300)
    with pytest.raises(RunFailed, match="none of 300 images can be read"):
        world.refresh()


def test_relevance_selects_from_a_whole_table():
    world = World(pool_size=100, relevance=0.5)
    world.embeddings["pool"][:150] = world.embeddings["labeled"][:150]
    found = world.refresh()
    assert len(found.rows) == 150
    assert (found.rows < 150).mean() > 0.95
    assert found.known is not None
    assert len(found.known.rows) == 300


def test_a_first_look_says_how_long_it_takes(monkeypatch):
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr("stml_semi.training.known_images.time.monotonic", lambda: next(clock))
    parts, notes = parts_of_all(0, 95, 10), []
    assert sorted(np.concatenate(parts)) == list(range(95))
    assert max(map(len, parts)) <= 10
    first_look(parts, lambda rows: Readable(rows, torch.randn(len(rows), 6)), notes.append)
    assert notes[0] == "10 of 95 embedded, 4:15 left"
