"""What a refresh of the pool makes of the labels, with embeddings that are made up."""

from typing import Any

import numpy as np
import pytest
import torch

from stml_semi.config import TrainConfig
from stml_semi.data.batches.plan import held_out_classes
from stml_semi.data.batches.pool import PoolTable
from stml_semi.data.image_table import ImageTable, paths_dataset
from stml_semi.models.evaluation import EmbeddedTable
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
        self.unreadable = np.asarray(unreadable, dtype=np.int64)
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
        readable = ~np.isin(rows, self.unreadable) if source.name == "labeled" else np.ones(len(rows), bool)
        return EmbeddedTable(self.embeddings[source.name][rows], readable, [])

    def refresh(self, number=0, last=None):
        return self.finder(self.pool, np.arange(len(self.pool)), number, last)


def kept(found, refresh=0):
    parts = found.neighbors.numpy(), found.compared.numpy()
    return PoolTable(refresh, found.rows, *parts, found.sigma, found.calibrated)


def test_only_images_of_held_out_classes_measure_the_teacher_and_only_once():
    world = World()
    found = world.refresh()
    held_out = held_out_classes(world.config, world.labeled)
    name, rows = world.embedded[1]
    assert name == "labeled"
    assert set(world.labeled.labels[rows]) == set(held_out)
    assert found.calibrated is not None
    assert found.calibrated.trust > 0.5
    torch.testing.assert_close(found.calibrated.unit.norm(dim=1), torch.ones(len(world.pool)))
    again = world.refresh(1, kept(found))
    assert [name for name, _ in world.embedded] == ["pool", "labeled", "pool"]
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
