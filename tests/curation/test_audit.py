"""audit: planted errors come first, and copies are found where they must not be."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.chromium import Tab, browser
from helpers.command_line import call
from helpers.pictures import write_pictures
from PIL import Image

from stml_semi.curation.audit import audit, doubt_labels
from stml_semi.runtime.errors import BadInput


@pytest.fixture
def birds(tmp_path):
    """Three classes of plain colors; a blue one among the reds, a copy in two classes, and what cannot be read."""
    colors = {"red": (200, 20, 20), "green": (20, 180, 20), "blue": (20, 20, 200)}
    rng = np.random.default_rng(0)
    for name, color in colors.items():
        (tmp_path / "birds" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.clip(rng.normal(color, 12, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "birds" / name / f"{number}.png")
    (tmp_path / "birds" / "blue" / "5.png").rename(tmp_path / "birds" / "red" / "wrong.png")
    (tmp_path / "birds" / "green" / "broken.png").write_bytes(b"no image")
    write_pictures(tmp_path / "birds" / "single", 1, seed=7)
    write_pictures(tmp_path / "test" / "owl", 3, seed=1)
    write_pictures(tmp_path / "test" / "wren", 3, seed=2)
    return tmp_path / "birds"


def test_margins_are_those_of_the_definition():
    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(5000, 6), dim=1)
    labels = torch.randint(0, 8, (5000,))
    labels[labels == 3] = 4  # An empty class.
    labels[17] = 8  # Alone.
    found = doubt_labels(embeddings, labels, 9)
    for row in [*range(0, 5000, 501), 17]:
        rest = torch.arange(5000) != row
        means = {
            label: F.normalize(embeddings[(labels == label) & rest].mean(0), dim=0)
            for label in range(9)
            if ((labels == label) & rest).any()
        }
        own = int(labels[row])
        cosines = {label: float(embeddings[row] @ mean) for label, mean in means.items() if label != own}
        best = max(cosines, key=cosines.__getitem__)
        assert int(found.other[row]) == best
        expected = cosines[best] - float(embeddings[row] @ means[own]) if own in means else -torch.inf
        assert float(found.margin[row]) == pytest.approx(expected, abs=1e-5)


def test_the_wrong_label_comes_first(birds):
    found = audit("tiny-resnet", str(birds), threshold=1.0, num_workers=0)
    assert (found.num_images, found.num_judged, found.num_unreadable) == (20, 18, 1)
    first = found.findings[0]
    assert (first.problem, first.label, first.other) == ("label", "red", "blue")
    assert first.image.endswith("red/wrong.png")
    assert "/blue/" in first.other_image
    scores = [one.score for one in found.findings]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0


def test_copies_across_classes_and_into_the_evaluation(birds, tmp_path):
    shutil.copy(birds / "blue" / "0.png", birds / "green" / "copy.png")
    shutil.copy(birds / "red" / "2.png", tmp_path / "test" / "owl" / "taken.png")
    found = audit("tiny-resnet", str(birds), evaluated=str(tmp_path / "test"), threshold=0.99999, num_workers=0)
    (pair,) = [one for one in found.findings if one.problem == "two classes"]
    assert {pair.image.split("/")[-2], pair.other_image.split("/")[-2]} == {"blue", "green"}
    assert pair.score == pytest.approx(1, abs=1e-5)
    (taken,) = [one for one in found.findings if one.problem == "evaluated"]
    assert taken.image.endswith("red/2.png")
    assert taken.other == "owl"
    assert taken.other_image.endswith("owl/taken.png")


def test_table_list_page_and_json(monkeypatch, capsys, birds, tmp_path):
    shutil.copy(birds / "blue" / "0.png", birds / "green" / "copy.png")
    flags = ["audit", "--labeled", birds, "--model", "tiny-resnet", "--threshold", 0.99999, "--num-workers", 0]
    code, out, err = call(monkeypatch, capsys, *flags, "--csv", tmp_path / "f.csv", "--html", tmp_path / "f.html")
    assert code == 0, err
    assert "labels in doubt, worst first" in out
    assert "near-duplicates in another class" in out
    assert "1 pair in two classes, 1 unreadable" in out
    rows = list(csv.DictReader((tmp_path / "f.csv").read_text().splitlines()))
    page = (tmp_path / "f.html").read_text()
    assert page.count("<img") == 2 * len(rows)
    assert str(tmp_path) not in page
    code, out, err = call(monkeypatch, capsys, *flags, "--json")
    assert code == 0, err
    assert [one["image"] for one in json.loads(out)["findings"]] == [row["image"] for row in rows]


@pytest.mark.slow
def test_the_page_reads_well(birds, tmp_path, monkeypatch, capsys):
    flags = ["audit", "--labeled", birds, "--model", "tiny-resnet", "--num-workers", 0]
    assert call(monkeypatch, capsys, *flags, "--html", tmp_path / "f.html")[0] == 0
    with browser() as running:
        for scheme, width in (("light", 390), ("dark", 1440)):
            tab = Tab(running, (tmp_path / "f.html").as_uri(), scheme=scheme, width=width)
            assert tab.beyond() == []
            tab.check()


def test_nothing_found_says_so(monkeypatch, capsys, tmp_path):
    for number, color in enumerate(("red", "blue")):
        (tmp_path / "two" / color).mkdir(parents=True)
        for i in range(3):
            pixels = np.zeros((24, 24, 3), np.uint8)
            pixels[..., 2 * number] = 200 + i
            Image.fromarray(pixels).save(tmp_path / "two" / color / f"{i}.png")
    flags = ["audit", "--labeled", tmp_path / "two", "--model", "tiny-resnet", "--threshold", 1, "--num-workers", 0]
    code, out, err = call(monkeypatch, capsys, *flags, "--html", tmp_path / "f.html")
    assert code == 0, err
    assert out.strip() == "6 images: 0 nearer to another class, 0 pairs in two classes"
    assert "Nothing was found." in (tmp_path / "f.html").read_text()


@pytest.mark.parametrize("threshold", [0.0, 1.5, float("nan")])
def test_a_threshold_is_a_cosine(birds, threshold):
    with pytest.raises(BadInput, match="--threshold"):
        audit("tiny-resnet", str(birds), threshold=threshold)


def test_a_model_that_learned_these_labels_is_no_judge(monkeypatch, capsys, birds, tmp_path):
    run = ["sup", "--labeled", birds, "--backbone", "tiny-resnet", "--max-steps", 1, "--output-dir", tmp_path / "run"]
    code, _, err = call(monkeypatch, capsys, *run, "--no-report", "--num-workers", 0, "--max-bad-fraction", 0.5)
    assert code == 0, err
    flags = ["audit", "--labeled", birds, "--num-workers", 0, "--model"]
    assert "warning: Trained classes among these, by name: " in call(monkeypatch, capsys, *flags, tmp_path / "run")[1]
    assert "warning" not in call(monkeypatch, capsys, *flags, "tiny-resnet")[1]
