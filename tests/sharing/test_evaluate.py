"""evaluate: what may be asked of it beyond the usual table."""

import json
import unicodedata

import numpy as np
import pytest
import torch
from helpers.command_line import call
from helpers.exports import exported
from helpers.pictures import write_pictures
from PIL import Image

from stml_semi import load
from stml_semi.metrics import (
    bootstrap,
    class_scores,
    query_scores,
    retrieval_metrics,
    score_names,
    score_values,
    summarize,
)
from stml_semi.models.backbone import open_backbone
from stml_semi.run_folder.folder import RunFolder
from stml_semi.run_folder.recipe import build_config
from stml_semi.sharing.thresholds import read_thresholds


@pytest.fixture
def birds(tmp_path):
    for i, name in enumerate(["robin", "wren", "owl"]):
        write_pictures(tmp_path / "birds" / name, 4, seed=i)
    write_pictures(tmp_path / "birds" / "single", 1, seed=9)
    return tmp_path / "birds"


def scored(count=400, classes=20):
    torch.manual_seed(0)
    labels = torch.arange(count) % classes
    centers = torch.randn(classes, 8)
    return query_scores(centers[labels] + 1.2 * torch.randn(count, 8), labels, recall_at=(1, 5)), labels


def test_intervals_hold_the_mean_and_shrink_with_more_queries():
    scores, _ = scored()
    means = summarize(scores, recall_at=(1, 5), num_gallery=400)
    names = score_names((1, 5))
    assert names == ["recall@1", "recall@5", "r_precision", "map@r"]
    wide = dict(zip(names, bootstrap(score_values(scores), confidence=0.99), strict=True))
    usual = dict(zip(names, bootstrap(score_values(scores)), strict=True))
    for name, (mean, low, high) in usual.items():
        assert wide[name].low < low < mean < high < wide[name].high
        assert mean == pytest.approx(means[name])
    # The normal approximation, for a mean of independent numbers.
    error = float(scores.average_precision.std(correction=0)) / 20
    assert usual["map@r"].high - usual["map@r"].low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert list(usual.values()) == bootstrap(score_values(scores))


def test_class_scores_average_to_the_whole():
    scores, labels = scored()
    by_class = class_scores(scores, labels, recall_at=(1, 5))
    means = summarize(scores, recall_at=(1, 5), num_gallery=400)
    assert by_class.label.tolist() == list(range(20))
    for name, values in by_class.values.items():
        assert float((values * by_class.num_queries).sum() / 400) == pytest.approx(means[name])
    own = scores.average_precision[labels == 3].mean()
    torch.testing.assert_close(by_class.values["map@r"][3], own)


def test_a_single_picture_has_no_class_score():
    scores = query_scores(torch.eye(3), torch.tensor([0, 0, 1]), recall_at=(1,))
    assert class_scores(scores, torch.tensor([0, 0, 1]), recall_at=(1,)).label.tolist() == [0]


def test_everything_at_once(monkeypatch, capsys, birds):
    flags = ["evaluate", "--model", "tiny-resnet", "--data", birds, "--num-workers", 0]
    code, out, err = call(monkeypatch, capsys, *flags, "--json")
    assert code == 0, err
    plain = json.loads(out)
    assert not plain.keys() & {"intervals", "per_class", "confidence"}
    more = [*flags, "--k", "10,1", "--confidence", 90, "--per-class"]
    code, out, err = call(monkeypatch, capsys, *more, "--json")
    assert code == 0, err
    line = json.loads(out)
    assert line["step"] is None
    assert [key for key in line if key.startswith("recall")] == ["recall@1", "recall@10"]
    assert line["map@r"] == pytest.approx(plain["map@r"])
    assert line["intervals"]["map@r"][0] <= line["map@r"] <= line["intervals"]["map@r"][1]
    assert {row["class"] for row in line["per_class"]} == {"robin", "wren", "owl"}
    values = [row["map@r"] for row in line["per_class"]]
    assert values == sorted(values)
    assert np.mean(values) == pytest.approx(line["map@r"])
    code, out, err = call(monkeypatch, capsys, *flags, "--truncate-dims", "4,2", "--json")
    assert code == 0, err
    files = sorted(birds.glob("*/*"))
    labels = torch.tensor([sorted(birds.iterdir()).index(file.parent) for file in files])
    embeddings = torch.tensor(load("tiny-resnet").encode(files))[:, :4]
    expected = retrieval_metrics(embeddings, labels, recall_at=(1,))
    cut = json.loads(out)["truncated"]
    assert list(cut) == ["2", "4"]
    assert cut["4"] == pytest.approx({name: expected[name] for name in ("recall@1", "map@r")})
    code, out, _ = call(monkeypatch, capsys, *more, "--truncate-dims", "2")
    for text in ("the leading dimensions alone", "recall@10", "90% interval", "worst 3 of 3 classes", "robin"):
        assert text in out


def test_a_gallery_of_its_own(monkeypatch, capsys, birds, tmp_path):
    for i, name in enumerate(["robin", "owl", "crane"]):
        write_pictures(tmp_path / "museum" / name, 3, seed={"robin": 0, "owl": 2}.get(name, 7 + i))
    flags = ["evaluate", "--model", "tiny-resnet", "--data", birds, "--num-workers", 0]
    code, out, err = call(monkeypatch, capsys, *flags, "--gallery", tmp_path / "museum", "--json", "--per-class")
    assert code == 0, err
    line = json.loads(out)
    assert (line["num_queries"], line["num_gallery"]) == (8, 9)  # Wren and single have nothing to find.
    assert line["data"] == f"{birds} in {tmp_path / 'museum'}"
    assert {row["class"] for row in line["per_class"]} == {"robin", "owl"}
    # The same by hand.
    model = load("tiny-resnet")
    queries, gallery = (
        [(path.parent.name, model.encode([Image.open(path)])[0]) for path in sorted(folder.rglob("*.png"))]
        for folder in (birds, tmp_path / "museum")
    )
    right = [gallery[int(np.argmax([g @ q for _, g in gallery]))][0] == name for name, q in queries]
    scored = [r for r, (name, _) in zip(right, queries, strict=True) if name in ("robin", "owl")]
    assert line["recall@1"] == pytest.approx(np.mean(scored))
    code, out, _ = call(monkeypatch, capsys, *flags, "--gallery", tmp_path / "museum")
    assert "8 queries among 9 images" in " ".join(out.split())


def test_trained_classes_are_counted(monkeypatch, capsys, birds, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.prepare(build_config({"labeled": str(birds), "backbone": "tiny-resnet", "test_classes": 0.5}), {})
    run.log.write({"step": 1, "loss": 1.0})
    open_backbone("tiny-resnet").model.save_pretrained(run.model)
    open_backbone("tiny-resnet").processor.save_pretrained(run.model)
    flags = ["evaluate", "--data", birds, "--num-workers", 0]
    code, out, err = call(monkeypatch, capsys, *flags, "--model", run.path)
    assert code == 0, err
    assert "Trained classes among these, by name: 2. Their scores" in " ".join(out.split())
    line = json.loads(call(monkeypatch, capsys, *flags, "--model", run.model, "--json")[1])
    assert line["num_trained_classes"] == 2
    assert "num_trained" not in call(monkeypatch, capsys, *flags, "--model", "tiny-resnet", "--json")[1]
    # Images that have moved since say nothing.
    config = run.config_file.read_text().replace(str(birds), str(tmp_path / "gone"))
    run.config_file.write_text(config)
    assert "num_trained" not in call(monkeypatch, capsys, *flags, "--model", run.path, "--json")[1]


def test_a_gallery_that_cannot_be_searched(monkeypatch, capsys, birds, tmp_path):
    for name in ("tit", "rook"):
        write_pictures(tmp_path / "others" / name, 2)
    flags = ["evaluate", "--model", "tiny-resnet", "--data", birds, "--num-workers", 0, "--gallery"]
    for gallery, problem in ((tmp_path / "others", "has no class of --data"), (birds, "is --data itself")):
        code, _, err = call(monkeypatch, capsys, *flags, gallery)
        assert code == 2
        assert err.startswith(f"error: --gallery {gallery}: {problem}")


def test_bf16_is_close_to_float32(monkeypatch, capsys, birds):
    flags = ["evaluate", "--model", "tiny-resnet", "--data", birds, "--num-workers", 0, "--json"]
    exact, rounded = (json.loads(call(monkeypatch, capsys, *flags, *more)[1]) for more in ([], ["--bf16"]))
    assert rounded["map@r"] == pytest.approx(exact["map@r"], abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--k", "1,ten"], "--k 1,ten: give numbers of neighbors"),
        (["--k", "0"], "--k 0: give"),
        (["--truncate-dims", "64,x"], "--truncate-dims 64,x: give numbers of dimensions"),
        (["--truncate-dims", "16,9999"], "--truncate-dims 16,9999: embeddings have 208 dimensions"),
        (["--confidence", "100"], "--confidence 100.0: is in percent"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, arguments, expected):
    code, _, err = call(monkeypatch, capsys, "evaluate", "--model", "tiny-resnet", "--data", "kanji:test", *arguments)
    assert code == 2
    assert err.startswith(f"error: {expected}")


def test_what_cannot_be_read_or_found_is_counted_and_named(birds, capsys, monkeypatch):
    """Half of the files are gone, one class with all of its own: 100% of what is left is not 100%."""
    (birds / "robin" / "0.png").write_bytes(b"no image")
    for path in (birds / "wren").iterdir():
        path.write_bytes(b"")
    arguments = ["evaluate", "--model", "tiny-resnet", "--data", birds, "--num-workers", 0]
    code, out, _ = call(monkeypatch, capsys, *arguments, "--json")
    line = json.loads(out)
    number = len(list((birds / "wren").iterdir()))
    assert code == 0
    assert (line["num_unreadable"], line["num_lost_classes"]) == (number + 1, 1)
    assert line["num_unmatched"] == 1  # The only image of its class.
    assert sorted(bad["image"].split("/")[-2] for bad in line["unreadable"]) == ["robin", *["wren"] * number]
    _, out, _ = call(monkeypatch, capsys, *arguments)
    said = " ".join(out.split())
    assert f"warning: {number + 1} unreadable images left out, such as" in said
    assert "warning: 1 class without a readable image: not scored." in said
    assert "warning: 1 query (of single) without an image of the same class to find: not scored." in said


def test_nothing_readable_is_one_line(tmp_path, capsys, monkeypatch):
    for name in "ab":
        (tmp_path / "gone" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "gone" / name / f"{i}.jpg").write_text("broken")
    code, out, err = call(monkeypatch, capsys, "evaluate", "--model", "tiny-resnet", "--data", tmp_path / "gone")
    assert (code, out) == (2, "")
    assert "none of its 6 images can be read, such as" in err


def test_classes_are_the_same_in_folders_and_lists(monkeypatch, capsys, tmp_path):
    """A gallery with decomposed letters, as macOS names folders; queries with composed ones and blanks behind."""
    rows = ["image,label"]
    for i, name in enumerate(["Zaunkönig", "Grünfink", "Möwe", "Star"]):
        if name != "Star":
            write_pictures(tmp_path / "gallery" / unicodedata.normalize("NFD", name), 2, seed=i)
        write_pictures(tmp_path / f"{i}", 2, seed=10 + i)
        rows += [f"{file.relative_to(tmp_path)},{name}{' ' * i}" for file in sorted((tmp_path / f"{i}").iterdir())]
    (tmp_path / "queries.csv").write_text("\n".join(rows), encoding="utf-8")
    flags = ["evaluate", "--model", "tiny-resnet", "--data", tmp_path / "queries.csv", "--num-workers", 0]
    flags += ["--gallery", tmp_path / "gallery"]
    code, out, err = call(monkeypatch, capsys, *flags, "--json")
    assert code == 0, err
    line = json.loads(out)
    assert (line["num_queries"], line["num_unmatched"]) == (6, 2)
    assert line["unmatched_classes"] == {"Star": 2}
    code, out, _ = call(monkeypatch, capsys, *flags)
    assert "warning: 2 queries (of Star) without an image of the same class to find: not scored." in out


@pytest.fixture
def model(make_backbone, tmp_path):
    """A model folder as `export` writes it."""
    exported(tmp_path / "model", make_backbone("resnet"), "auto")
    return tmp_path / "model"


def test_thresholds_are_printed_and_stored_on_request(monkeypatch, capsys, birds, model):
    flags = ["evaluate", "--model", model, "--data", birds, "--num-workers", 0]
    code, out, err = call(monkeypatch, capsys, *flags, "--open-set", "--json")
    assert code == 0, err
    line = json.loads(out)
    assert list(line["fnmr"]) == ["0.1"]  # 156 pairs of two classes show no smaller rate.
    assert not (model / "thresholds.json").exists()
    code, out, err = call(monkeypatch, capsys, *flags, "--save-thresholds")
    assert code == 0, err
    assert "right among answers" in out
    assert "false non-match rate" in out
    known = read_thresholds(model)
    assert known is not None
    assert known.data == "birds"
    assert [list(one) for one in known.thresholds] == line["thresholds"]


def test_thresholds_that_cannot_be(monkeypatch, capsys, tmp_path, birds, model):
    flags = ["evaluate", "--num-workers", 0]
    code, _, err = call(monkeypatch, capsys, *flags, "--model", "tiny-resnet", "--data", birds, "--save-thresholds")
    assert code == 2
    assert "--save-thresholds: tiny-resnet is no model on this disk" in err
    write_pictures(tmp_path / "one" / "robin", 3)
    (tmp_path / "one" / "wren").mkdir()
    (tmp_path / "one" / "wren" / "broken.png").write_bytes(b"no image")
    code, _, err = call(monkeypatch, capsys, *flags, "--model", model, "--data", tmp_path / "one", "--open-set")
    assert code == 2
    assert "thresholds need at least two classes" in err


def test_trained_classes_give_no_thresholds(monkeypatch, capsys, tmp_path, birds):
    run = ["sup", "--labeled", birds, "--backbone", "tiny-resnet", "--max-steps", 1, "--output-dir", tmp_path / "run"]
    code, _, err = call(monkeypatch, capsys, *run, "--no-report", "--num-workers", 0)
    assert code == 0, err
    flags = ["evaluate", "--model", tmp_path / "run", "--num-workers", 0, "--save-thresholds", "--data"]
    code, _, err = call(monkeypatch, capsys, *flags, birds)
    assert code == 2
    assert "--save-thresholds: the model was trained on the classes of" in err
    for name in ("wren", "jay"):
        write_pictures(tmp_path / "others" / name, 3)
    code, _, err = call(monkeypatch, capsys, *flags, tmp_path / "others")
    assert code == 0, err
    assert (tmp_path / "run" / "model" / "thresholds.json").is_file()
