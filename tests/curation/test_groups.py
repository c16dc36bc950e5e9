"""groups: things are found without their number, at any density; names need more than a stray image."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.chromium import Tab, browser
from helpers.command_line import call
from helpers.indexes import made_up
from helpers.pictures import write_pictures
from scipy.optimize import linear_sum_assignment

from stml_semi.curation.coverage import survey
from stml_semi.curation.groups import find_groups, names_of
from stml_semi.curation.propagation import propagate
from stml_semi.metrics import group_accuracy
from stml_semi.runtime.errors import BadInput
from stml_semi.search.embed import embed_source


def things(count, each, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(count, 32, generator=generator).repeat_interleave(each, 0)
    return centers + noise * torch.randn(count * each, 32, generator=generator), np.repeat(np.arange(count), each)


@pytest.mark.parametrize(("count", "each"), [(60, 4), (40, 12), (10, 60)])
def test_things_are_found_at_any_density(count, each):
    x, own = things(count, each, 0.5)
    order = np.random.default_rng(0).permutation(len(x))
    found = propagate(survey(x[order]))
    # Hardly any group mixes things, and most of a thing is in one group.
    table = np.zeros((found.max() + 1, count), int)
    np.add.at(table, (found, own[order]), 1)
    assert table.max(1).sum() > 0.97 * len(x)
    assert table.max(0).sum() > 0.6 * len(x)
    assert found[0] == 0
    assert np.array_equal(found, propagate(survey(x[order])))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images(count):
    assert len(propagate(survey(torch.eye(4)[:count]))) == count
    same = propagate(survey(torch.ones(count, 4) + torch.tensor([1.0, 0, 0, 0])))
    assert same.tolist() == list(range(count))  # Around their mean, copies of a single image point nowhere.


def test_names_need_two_labels_or_all_of_a_class():
    groups = np.array([0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5])
    labels = torch.tensor([0, 0, 0, 1, 2, 3, 4, 4, 4, 4, 4])
    # Group 1 has a stray image of class 0, group 2 the only ones of two classes, group 5 a fifth of class 4.
    assert names_of(groups, labels) == {0: 0, 2: 1, 3: 3, 4: 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    for seed in range(6):
        for kind, number in (("photos", 8), ("birds", 3)):
            write_pictures(folder / kind / f"thing {seed}", number, seed=seed)
    for seed in range(3, 6):
        shutil.rmtree(folder / "birds" / f"thing {seed}")
    (folder / "photos" / "broken.png").write_bytes(b"no image")
    embed_source("tiny-resnet", str(folder / "photos"), str(folder / "index"), num_workers=0)
    return folder


def test_table_list_page_and_json(monkeypatch, capsys, world, tmp_path):
    flags = ["groups", "--index", world / "index", "--labeled", world / "birds", "--num-workers", 0]
    written = ["--csv", tmp_path / "groups.csv", "--html", tmp_path / "groups.html"]
    code, out, err = call(monkeypatch, capsys, *flags, *written)
    assert code == 0, err
    assert "of known classes and" in out.splitlines()[-1]
    code, found, _ = call(monkeypatch, capsys, *flags, "--json")
    found = json.loads(found)
    assert found["num_images"] == 48
    assert found["classes"] == ["thing 0", "thing 1", "thing 2"]
    rows = [row for group in found["groups"] for row in group["rows"]]
    assert len(rows) == len(set(rows)) == 48 - found["num_alone"]
    sizes = [len(group["rows"]) for group in found["groups"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 3
    for group in found["groups"]:
        assert group["cosines"] == sorted(group["cosines"], reverse=True)
        assert group["nearest_class"] in found["classes"]
    lines = list(csv.DictReader((tmp_path / "groups.csv").read_text().splitlines()))
    assert [int(line["row"]) for line in lines] == rows
    page = (tmp_path / "groups.html").read_text()
    assert page.count("<section") == len(sizes)
    assert page.count("<img") == sum(min(size, 12) for size in sizes)
    assert 'figure class="query"' not in page


@pytest.mark.slow
def test_the_page_reads_well(monkeypatch, capsys, world, tmp_path):
    flags = ["groups", "--index", world / "index", "--labeled", world / "birds", "--num-workers", 0]
    assert call(monkeypatch, capsys, *flags, "--html", tmp_path / "groups.html")[0] == 0
    with browser() as running:
        for scheme, width in (("light", 390), ("dark", 1440)):
            tab = Tab(running, (tmp_path / "groups.html").as_uri(), scheme=scheme, width=width)
            assert tab.beyond() == []
            tab.check()


def test_named_groups_show_what_they_are_called(world):
    found = find_groups(str(world / "index"), str(world / "birds"), num_workers=0)
    named = [group for group in found.groups if group.name]
    assert named
    for group in named:
        same = [image.rsplit("/", 2)[1] == group.name for image in group.images]
        assert sum(same) > len(same) / 2
    assert find_groups(str(world / "index"), least=49, num_workers=0).groups == []
    assert all(group.name == group.nearest_class == "" for group in find_groups(str(world / "index")).groups)


def test_an_index_without_readable_images(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    embed_source("tiny-resnet", str(tmp_path / "photos"), str(tmp_path / "index"), num_workers=0)
    with pytest.raises(BadInput, match="holds no readable image"):
        find_groups(str(tmp_path / "index"))
    found = find_groups(made_up(tmp_path / "one", torch.eye(4)[:1]))
    assert (found.groups, found.num_alone) == ([], 1)


def test_labels_of_the_index_say_how_right_the_groups_are(monkeypatch, capsys, tmp_path):
    embed_source("tiny-resnet", "kanji:train", str(tmp_path / "index"), num_workers=0)
    flags = ["groups", "--index", tmp_path / "index", "--num-workers", 0]
    code, out, err = call(monkeypatch, capsys, *flags, "--labeled", "kanji:train", "--json")
    assert code == 0, err
    known = json.loads(out)["accuracy"]
    assert 0.2 < known["all"] == known["old"] < 1
    assert known["new"] is None
    code, out, _ = call(monkeypatch, capsys, *flags)
    assert out.splitlines()[-1].startswith("accuracy against the labels of the index, one class a group: ")
    assert "known classes" not in out


def test_accuracy_is_the_best_that_one_class_a_group_allows():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        num_groups, num_classes = torch.randint(1, 30, (2,), generator=generator).tolist()
        groups, classes = (torch.randint(n, (200,), generator=generator) for n in (num_groups, num_classes))
        known = torch.rand(200, generator=generator) < 0.5
        table = torch.zeros(num_groups, num_classes, dtype=torch.int64)
        table.index_put_((groups, classes), torch.ones(200, dtype=torch.int64), accumulate=True)
        best = int(table.numpy()[linear_sum_assignment(-table.numpy())].sum()) / 200
        found = group_accuracy(groups, classes, known)
        assert found.all == pytest.approx(best)
        assert found.old is not None
        assert found.new is not None
        share = float(known.double().mean())
        assert share * found.old + (1 - share) * found.new == pytest.approx(best)
    none = torch.arange(0)
    with pytest.raises(ValueError, match="groups are empty"):
        group_accuracy(none, none, none.bool())
