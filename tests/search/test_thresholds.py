"""Search with a wanted precision: what is below the threshold of the model is no answer."""

import json

import pytest
from helpers.command_line import call
from helpers.exports import exported
from helpers.pictures import write_pictures

from stml_semi.metrics import Threshold
from stml_semi.search.embed import embed_source
from stml_semi.search.query import search
from stml_semi.sharing.thresholds import FILE, Thresholds, read_thresholds, write_thresholds


@pytest.fixture
def model(make_backbone, tmp_path):
    exported(tmp_path / "model", make_backbone("resnet"), "auto")
    return tmp_path / "model"


@pytest.fixture
def index(model, tmp_path):
    write_pictures(tmp_path / "photos", 6)
    embed_source(str(model), str(tmp_path / "photos"), str(tmp_path / "index"), num_workers=0)
    return tmp_path / "index"


def test_hits_below_the_threshold_are_left_out(monkeypatch, capsys, tmp_path, model, index):
    hits = search(str(index), rows=[0])[0].hits
    similarity = round((hits[1].similarity + hits[2].similarity) / 2, 6)
    known = Thresholds("birds", 6, 6, [Threshold(0.5, -1, 1), Threshold(0.9, similarity, 0.8), Threshold(0.97, 1.1, 0)])
    write_thresholds(model, known)
    assert read_thresholds(model) == known
    assert search(str(index), rows=[0], min_precision=0.9)[0].hits == hits[:2]
    assert search(str(index), rows=[0], min_precision=0.8)[0].hits == hits[:2]  # The next that is known.
    assert search(str(index), rows=[0], min_precision=0.5)[0].hits == hits

    flags = ["search", "--index", index, "--row", 0, "--min-precision", 0.95]
    code, out, err = call(monkeypatch, capsys, *flags)
    assert code == 0, err
    assert "no match in the index" in out
    code, out, err = call(monkeypatch, capsys, *flags, "--json", "--html", tmp_path / "page.html")
    assert code == 0, err
    assert json.loads(out)[0]["hits"] == []
    assert "No match in the index." in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("precision", "stored", "text"),
    [
        ("0.95", None, "has no thresholds; train with --validation-classes 0.2, or run `stml-semi evaluate"),
        ("95", None, "--min-precision 95: is a share of right answers; give a number such as 0.95"),
        ("nan", None, "--min-precision nan: is a share"),
        ("0.99", [[0.9, 0.5, 0.8]], "no threshold of this model reaches it on birds (at most 0.9); give a lower one"),
        ("0.99", [], "on birds (none)"),
        ("0.9", [["x"]], "thresholds.json: is damaged"),
        ("0.9", 3, "thresholds.json: is damaged"),
        ("0.9", [[0.9, None, 0.8]], "thresholds.json: is damaged"),
    ],
)
def test_thresholds_that_are_missing_or_damaged(monkeypatch, capsys, model, index, precision, stored, text):
    if stored is not None:
        values = {"data": "birds", "num_queries": 6, "num_gallery": 6, "thresholds": stored}
        (model / FILE).write_text(json.dumps(values))
    code, out, err = call(monkeypatch, capsys, "search", "--index", index, "--row", 0, "--min-precision", precision)
    assert (code, out) == (2, "")
    assert text in " ".join(err.split())


def test_thresholds_of_another_model_are_refused(monkeypatch, capsys, make_backbone, tmp_path, index):
    exported(tmp_path / "other", make_backbone("vit"), "auto")
    write_thresholds(tmp_path / "other", Thresholds("birds", 6, 6, [Threshold(0.9, 0.5, 0.8)]))
    flags = ["search", "--index", index, "--row", 0, "--min-precision", 0.9, "--model", tmp_path / "other"]
    code, out, err = call(monkeypatch, capsys, *flags)
    assert (code, out) == (2, "")
    assert "the index was made with other weights" in err
