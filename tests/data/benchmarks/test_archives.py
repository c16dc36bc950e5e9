"""Benchmarks by name: miniature archives with the official layouts, opened where they lie."""

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import miniature
from PIL import Image

from stml_semi.data.benchmarks.archives import LAYOUTS, find_archive
from stml_semi.data.benchmarks.data_root import presence
from stml_semi.data.benchmarks.facts import BENCHMARKS
from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import read_image
from stml_semi.data.sources.open_source import open_source
from stml_semi.metrics import retrieval_metrics
from stml_semi.models.evaluation import EmbeddedTable, score

OFFICIAL = copy.deepcopy(BENCHMARKS)


@pytest.fixture(autouse=True)
def _miniature_counts(monkeypatch):
    monkeypatch.delenv("STML_DATA", raising=False)
    for name, known in OFFICIAL.items():
        monkeypatch.setitem(BENCHMARKS, name, known)
    miniature.replace_counts(BENCHMARKS)


def open_split(spec: str, root: Path, labels: Any = "optional") -> ImageTable:
    return open_source(spec, flag="--data", labels=labels, data_root=str(root))


def refusal(spec: str, root: Path | None, labels: Any = "optional") -> str:
    with pytest.raises(ValueError) as caught:
        open_source(spec, flag="--labeled", labels=labels, data_root=root and str(root))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"--labeled {spec}: ")
    return text


FORMS = [(name, "") for name in miniature.COUNTS] + [("cars", "devkit"), ("inshop", "highres")]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_archive_opens_under_the_data_root(name, form, tmp_path):
    miniature.build(name, tmp_path / name, form=form)
    classes = {}
    for split, (images, num_classes, queries) in miniature.COUNTS[name].items():
        table = open_split(f"{name}:{split}", tmp_path)
        assert table.name == f"{name}:{split}"
        assert table.recall_at == BENCHMARKS[name].recall_at
        assert len(table) == images
        assert all(read_image(table.source(row)).size for row in (0, images - 1))
        assert (table.labels is not None) == BENCHMARKS[name].labeled
        assert len(table.classes) == (num_classes or 0)
        assert (table.queries is None) == (queries is None)
        classes[split] = set(table.classes)
        unlabeled = open_split(f"{name}:{split}", tmp_path, labels="ignored")
        assert unlabeled.labels is None
        assert len(unlabeled) == images
    if BENCHMARKS[name].eval:
        assert not classes["train"] & classes["test"]
    assert len(open_split(name, tmp_path)) == next(iter(miniature.COUNTS[name].values()))[0]


def test_labels_belong_to_their_pictures(tmp_path):
    miniature.build("cub", tmp_path)  # CUB_200_2011 lies in the data root itself.
    table = open_split("cub:test", tmp_path)
    assert table.classes == ("101.Bird_101", "102.Bird_102", "199.Bird_199", "200.Bird_200")
    assert table.labels is not None
    for row in range(len(table)):
        assert f"/images/{table.classes[table.labels[row]]}/" in table.describe(row)
    miniature.build("cars", tmp_path / "cars", form="devkit")
    table = open_split("cars:test", tmp_path)
    assert table.classes[0] == "099 Make Model 99 2012"
    assert table.labels is not None
    expected = Image.open(io.BytesIO(miniature.jpeg(99, 0)))
    assert np.array_equal(np.array(read_image(table.source(0))), np.array(expected))
    miniature.build("nabirds", tmp_path)
    assert open_split("nabirds", tmp_path).classes[0] == "0295 Bird 295 (Adult Male)"
    miniature.build("inat", tmp_path / "inat")
    assert open_split("inat", tmp_path).classes == ("Aves/2", "Aves/3", "Aves/4", "Aves/5")


def test_the_root_comes_from_the_environment_too(tmp_path, monkeypatch):
    miniature.build("sop", tmp_path)
    monkeypatch.setenv("STML_DATA", str(tmp_path))
    assert len(open_source("sop", flag="--labeled", labels="required")) == 24
    assert presence("sop", None) == "archive"
    assert presence("cub", None) == "-"
    assert presence("kanji", None) == "embedded"


def test_nothing_there_says_where_and_how(tmp_path):
    text = refusal("cub", None)
    assert "set --data-root or $STML_DATA" in text
    assert "data prepare cub --source ARCHIVE" in text
    text = refusal("cub", tmp_path)
    assert f"neither {tmp_path}/cub/train.parquet nor {tmp_path}/cub/CUB_200_2011/images.txt exists" in text
    assert f"`stml-semi data prepare cub --source ARCHIVE --data-root {tmp_path}`" in text
    miniature.build("cub", tmp_path / "cub")
    (tmp_path / "cub/CUB_200_2011/classes.txt").unlink()
    text = refusal("cub", tmp_path)
    assert f"nor {tmp_path}/cub/CUB_200_2011/classes.txt exists; extract the whole archive there" in text
    assert "no split 'val'; cub has train, test" in refusal("cub:val", tmp_path)
    miniature.build("fashion200k", tmp_path / "fashion200k")
    assert "has no labels" in refusal("fashion200k", tmp_path, labels="required")


def test_wrong_counts_say_what_is_missing(tmp_path, monkeypatch):
    top = miniature.build("cub", tmp_path / "cub") / "CUB_200_2011"
    (top / "images/001.Bird_1/Bird_1_0003.jpg").unlink()
    text = refusal("cub", tmp_path)
    assert "1 of the 24 listed images are missing in" in text
    assert "such as images/001.Bird_1/Bird_1_0003.jpg" in text
    assert len(open_split("cub:test", tmp_path)) == 24
    labels = (top / "image_class_labels.txt").read_text().splitlines()
    (top / "image_class_labels.txt").write_text("\n".join(labels[6:]))
    text = refusal("cub", tmp_path)
    assert "cub:train has 18 images instead of 24 (6 missing), 3 classes instead of 4 (1 missing)" in text
    (top / "image_class_labels.txt").write_text("1 one\n")
    assert "are not the official ones" in refusal("cub", tmp_path)
    (top / "image_class_labels.txt").write_text("\n".join(labels))
    monkeypatch.setitem(BENCHMARKS, "cub", OFFICIAL["cub"])
    assert "cub:test has 24 images instead of 5,924 (5,900 missing)" in refusal("cub:test", tmp_path)


def test_counts_of_third_parties_refuse_nothing(tmp_path, monkeypatch):
    miniature.build("compcars", tmp_path / "compcars")
    monkeypatch.setitem(BENCHMARKS, "compcars", OFFICIAL["compcars"])
    table = open_split("compcars", tmp_path)
    assert table.name == "compcars:frequent"
    assert table.classes == (
        "78/1 Audi Audi A3",
        "78/2 Audi Audi TTS coupe",
    )  # The third has few images, and a listed file is not there.
    assert "210 images instead of 136,726" in refusal("compcars:all", tmp_path)


def test_official_counts_add_up():
    """The publishers' totals: 11,788, 16,185, 120,053 and 52,712 images."""
    totals = {name: sum(split.images for split in OFFICIAL[name].splits.values()) for name in OFFICIAL}
    assert (totals["cub"], totals["cars"], totals["sop"], totals["inshop"]) == (11788, 16185, 120053, 52712)
    assert OFFICIAL["inshop"].splits["test"].queries == 26830 - 12612
    assert set(LAYOUTS) == {name for name, known in OFFICIAL.items() if not known.embedded} == set(miniature.COUNTS)


def test_an_archive_is_found_where_most_of_it_is(tmp_path):
    miniature.build("cub", tmp_path)
    assert find_archive(LAYOUTS["cub"], tmp_path, "train").folder == tmp_path / "CUB_200_2011"
    assert find_archive(LAYOUTS["cub"], tmp_path / "CUB_200_2011", "train").folder == tmp_path / "CUB_200_2011"
    # NABirds has nearly the same lists: one is not taken for the other.
    miniature.build("nabirds", tmp_path)
    assert find_archive(LAYOUTS["nabirds"], tmp_path / "CUB_200_2011", "all").folder is None
    assert find_archive(LAYOUTS["cub"], tmp_path / "nabirds", "train").folder is None


def test_queries_are_looked_for_in_the_gallery(tmp_path):
    miniature.build("inshop", tmp_path / "inshop")
    table = open_split("inshop:test", tmp_path)
    assert table.labels is not None
    assert table.queries is not None
    assert table.queries.sum() == 8
    embeddings = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    readable = np.ones(24, dtype=bool)
    readable[[0, 5]] = False  # A query and one of the gallery.
    found = score(table, EmbeddedTable(embeddings, readable, []), (1, 3)).means
    labels, asks = torch.from_numpy(table.labels), torch.from_numpy(table.queries & readable)
    answers = torch.from_numpy(~table.queries & readable)
    expected = retrieval_metrics(
        embeddings[asks], labels[asks], recall_at=(1, 3), gallery=embeddings[answers], gallery_labels=labels[answers]
    )
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert {key: found[key] for key in found.keys() - expected.keys()} == {
        "num_unreadable": 2,
        "num_lost_classes": 0,
        "num_unmatched": 0,
    }
    assert (found["num_queries"], found["num_gallery"]) == (7, 15)
