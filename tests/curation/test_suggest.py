"""suggest: choices are those of the plain greedy algorithm, labels survive the page, and lists name files."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Image
from helpers.chromium import Tab, browser
from helpers.command_line import call
from helpers.pictures import write_pictures
from hypothesis import given
from hypothesis import strategies as st

from stml_semi.curation.coverage import NEIGHBORS, Choice, choose, survey
from stml_semi.curation.suggest import suggest
from stml_semi.data.sources.open_source import open_source
from stml_semi.runtime.errors import BadInput
from stml_semi.search.embed import embed_source


def check_choices(embeddings: torch.Tensor, labeled: torch.Tensor, found: list[Choice]) -> float:
    """Each adds the most by the definition, in an N x N matrix, and as much as it says; what is left to add."""
    unit = F.normalize(embeddings.double(), dim=1)
    center = unit.mean(0)
    unit, known = F.normalize(unit - center, dim=1), F.normalize(F.normalize(labeled.double(), dim=1) - center, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-torch.inf)
    near = cosines.topk(min(NEIGHBORS, len(unit) - 1))
    stands = torch.zeros_like(cosines).scatter_(1, near.indices, near.values.clamp(0, 1) ** 2).fill_diagonal_(1)
    covered = (unit @ known.T).clamp(0, 1).square().amax(1) if len(known) else torch.zeros(len(unit)).double()
    for one in found:
        gain = (stands - covered[:, None]).clamp(min=0).sum(0)
        assert one.gain == pytest.approx(float(gain[one.row]), abs=1e-4)
        assert one.gain == pytest.approx(float(gain.max()), abs=1e-4)
        covered = torch.maximum(covered, stands[:, one.row])
    assert len({one.row for one in found}) == len(found)
    return float((stands - covered[:, None]).clamp(min=0).sum(0).max())


@given(
    n=st.integers(2, 90),
    known=st.integers(0, 20),
    count=st.integers(1, 20),
    things=st.integers(1, 9),
    seed=st.integers(),
)
def test_choices_are_those_of_the_definition(n, known, count, things, seed):
    generator = torch.Generator().manual_seed(seed % 2**32)
    centers = torch.randn(things, 8, generator=generator)

    def images(number: int) -> torch.Tensor:
        own = centers[torch.randint(things, (number,), generator=generator)]
        return own + 0.5 * torch.randn(number, 8, generator=generator)

    embeddings, labeled = images(n), images(known)
    near = survey(embeddings)
    found = choose(near, count, near.covered(labeled))
    left = check_choices(embeddings, labeled, found)
    assert len(found) == min(count, n) or left < 1e-4


def test_one_image_of_each_thing_before_a_second_and_none_of_what_is_labeled():
    torch.manual_seed(0)
    things = F.normalize(torch.eye(8).repeat_interleave(12, 0) + 0.1 * torch.randn(96, 8), dim=1)
    near = survey(things)
    found = choose(near, 8, near.covered(things[:0]))
    assert sorted(one.row // 12 for one in found) == list(range(8))
    rest = choose(near, 5, near.covered(things[[0, 13, 30]]))
    assert sorted(one.row // 12 for one in rest) == list(range(3, 8))
    assert choose(survey(things[:1]), 3, np.zeros(1, np.float32))[0].row == 0
    assert choose(near, 500, near.covered(things[:0]))[-1].gain > 0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Unlabeled images of five things, two of which have labels; an index of them, and one of the same in a table."""
    folder = tmp_path_factory.mktemp("suggest")
    for seed in range(5):
        write_pictures(folder / "photos", 4, seed=seed)
        for number in range(4):
            (folder / "photos" / f"{number}.png").rename(folder / "photos" / f"{seed}-{number}, a.png")
    for seed, name in enumerate(("owl", "wren")):
        (folder / "birds" / name).mkdir(parents=True)
        for number in range(3):
            shutil.copy(folder / "photos" / f"{seed}-{number}, a.png", folder / "birds" / name)
    embed_source("tiny-resnet", str(folder / "photos"), str(folder / "index"), num_workers=0)
    images = [{"bytes": path.read_bytes(), "path": None} for path in sorted((folder / "photos").iterdir())]
    Dataset.from_dict({"image": images}).cast_column("image", Image()).to_parquet(folder / "photos.parquet")
    embed_source("tiny-resnet", str(folder / "photos.parquet"), str(folder / "in-table"), num_workers=0)
    return folder


def test_what_is_labeled_is_not_asked_for_again(world):
    found = suggest(str(world / "index"), str(world / "birds"), count=3, num_workers=0)
    labeled = {path.name for path in (world / "birds").rglob("*.png")}
    assert (found.num_images, found.num_labeled, found.classes) == (20, 6, ["owl", "wren"])
    assert len(found.suggestions) == 3
    for one in found.suggestions:
        assert one.image.rsplit("/", 1)[1] not in labeled
        assert one.nearest_class in ("owl", "wren")
        assert one.row not in {hit.row for hit in one.similar}
        assert not labeled & {hit.image.rsplit("/", 1)[1] for hit in one.similar}
    gains = [one.gain for one in found.suggestions]
    assert gains == sorted(gains, reverse=True)


def test_list_table_and_json(monkeypatch, capsys, world, tmp_path):
    flags = ["suggest", "--index", world / "index", "--labeled", world / "birds", "--count", 4, "--num-workers", 0]
    code, out, err = call(monkeypatch, capsys, *flags, "--csv", tmp_path / "list.csv")
    assert code == 0, err
    assert out.strip().endswith("4 images to label of 20, 6 labeled before")
    rows = list(csv.DictReader((tmp_path / "list.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == [*4 * [""], *3 * ["owl"], *3 * ["wren"]]
    for row in rows[:4]:
        row["label"] = "new"
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    table = open_source(str(tmp_path / "labels.csv"), flag="--labeled", labels="required")
    assert (table.classes, len(table)) == (("new", "owl", "wren"), 10)
    assert all(table.source(row)["path"] for row in range(10))
    code, out, err = call(monkeypatch, capsys, *flags, "--json")
    assert code == 0, err
    assert len(json.loads(out)["suggestions"]) == 4


def test_images_inside_a_table_are_copied(monkeypatch, capsys, world, tmp_path):
    flags = ["suggest", "--index", world / "in-table", "--count", 2, "--csv", tmp_path / "list.csv"]
    code, _, err = call(monkeypatch, capsys, *flags)
    assert code == 2
    assert "--copy-to is missing" in err
    code, _, err = call(monkeypatch, capsys, *flags, "--copy-to", tmp_path / "copies")
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "list.csv").read_text().splitlines()))
    copies = open_source(str(tmp_path / "copies"), flag="--unlabeled", labels="ignored")
    assert {row["image"] for row in rows} <= {copies.describe(row) for row in range(len(copies))}


def test_other_models_and_empty_indexes_are_refused(world, tmp_path):
    with pytest.raises(BadInput, match="holds no index"):
        suggest(str(tmp_path))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    embed_source("tiny-resnet", str(tmp_path / "broken"), str(tmp_path / "index"), num_workers=0)
    with pytest.raises(BadInput, match="holds no readable image"):
        suggest(str(tmp_path / "index"))
    with pytest.raises(BadInput, match="none of its 2 images can be read"):
        suggest(str(world / "index"), [(str(tmp_path / "broken" / "a.png"), name) for name in "ab"], num_workers=0)


@pytest.mark.slow
def test_labels_are_typed_kept_and_saved(monkeypatch, capsys, world, tmp_path):
    page = tmp_path / "label.html"
    flags = ["suggest", "--index", world / "index", "--labeled", world / "birds", "--count", 3, "--num-workers", 0]
    code, _, err = call(monkeypatch, capsys, *flags, "--html", page)
    assert code == 0, err
    with browser() as running:
        for scheme, width in (("light", 390), ("dark", 1440)):
            tab = Tab(running, page.as_uri(), scheme=scheme, width=width)
            assert tab.beyond() == []
            tab.focus("input[type=text]")
            tab.page.keyboard.type('heron, "gray"')
            tab.page.keyboard.press("Shift+Enter")
            tab.page.keyboard.type("finch")
            tab.page.keyboard.press("Enter")
            tab.page.keyboard.press("Escape")
            tab.check()
        said = tab.page.locator("[role=status]").text_content()
        assert "in 2 classes, 1 rejected" in said
        tab.page.reload()
        assert tab.page.locator("[role=status]").text_content() == said
        with tab.page.expect_download() as download:
            tab.page.click("#take")
        download.value.save_as(tmp_path / "labels.csv")
        tab.check()
    table = open_source(str(tmp_path / "labels.csv"), flag="--labeled", labels="required")
    assert table.classes == ("finch", 'heron, "gray"', "owl", "wren")
    assert table.labels is not None
    counts = np.bincount(table.labels)
    assert counts[0] == 1
    assert counts[1] == 1 + len(suggest(str(world / "index"), str(world / "birds"), count=3).suggestions[0].similar)
