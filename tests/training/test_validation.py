"""Classes that are kept out of training choose the step that is exported."""

import json
import shutil

import pytest
import torch
from helpers.pictures import write_pictures
from safetensors.torch import load_file

from stml_semi.cli.printing import print_result
from stml_semi.data.sources.open_source import open_source
from stml_semi.models.evaluation import Scored
from stml_semi.report.headline import headlines
from stml_semi.run_folder.checkpoint import BEST, read_module
from stml_semi.run_folder.log import exported_step, is_final_test
from stml_semi.run_folder.recipe import build_config
from stml_semi.sharing.export_run import export_run
from stml_semi.training import evaluator
from stml_semi.training.resolve import resolve
from stml_semi.training.run import run


@pytest.fixture
def train(make_backbone, tmp_path, monkeypatch):
    """Runs of three steps, or more, whose MAP@R on validation classes is made up."""
    for name in "abcdefgh":
        write_pictures(tmp_path / "birds" / name, 4, seed=ord(name))
    for name in "wxyz":
        write_pictures(tmp_path / "others" / name, 3, seed=ord(name))
    settings = {
        "labeled": str(tmp_path / "birds"),
        "backbone": str(make_backbone("resnet")),
        "output_dir": str(tmp_path / "run"),
        "validation_classes": 0.25,
        "labeled_batch_size": 8,
        "embedding_dim": 16,
        "auxiliary_dim": 16,
        "max_steps": 3,
        "eval_every": 1,
        "save_every": 1,
        "keep_checkpoints": 9,
        "no_report": True,
        "num_workers": 0,
    }
    scored = evaluator.score

    def start(map_at_r: list[float], candidates: list[float] = [0.9] + [0.1] * 5, **values):  # noqa: B006
        # Student and teacher, evaluation by evaluation; before them the frozen backbone, after them the candidates:
        # best student, three between frozen and trained, frozen, teacher.
        told = iter([0.3] * (not values.get("resume")) + [value for value in map_at_r for _ in "st"] + candidates)

        def score(table, embedded, recall_at):
            means, queries = scored(table, embedded, recall_at)
            if "validation" in table.name:
                means = means | {"map@r": next(told)}
                same = torch.full_like(queries.scores.average_precision, means["map@r"])
                queries = queries._replace(scores=queries.scores._replace(average_precision=same))
            return Scored(means, queries)

        monkeypatch.setattr(evaluator, "score", score)
        return run(resolve("sup", settings | values))

    return start


def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_the_best_step_is_exported_and_tested_once(train, tmp_path, capsys):
    result = train([0.5, 0.9, 0.7], eval=str(tmp_path / "others"))
    folder = result.folder
    kept = json.loads((folder.path / "validation_classes.json").read_text())
    assert len(kept) == 2
    tested = [line for line in result.lines if "split" not in line]
    assert [(line["model"], line["step"]) for line in tested] == [("frozen", 0), ("student", 2)]
    assert exported_step(folder.log.lines()) == 2

    # What lies in model/ is the student of step 2, in the card and for `export` too; the teacher stays the last.
    second = read_module(folder.checkpoints / "step-2", "embedder.")
    last = read_module(folder.checkpoints / "step-3", f"{BEST}model.")
    assert second.keys() == last.keys()
    assert all(second[name].equal(last[name]) for name in second)
    assert not all(last[name].equal(read_module(folder.checkpoints / "step-3", "embedder.")[name]) for name in last)
    exported = export_run(str(folder.path), str(tmp_path / "again"))
    assert exported.step == 2
    again, model = tensors(tmp_path / "again"), tensors(folder.model)
    assert all(again[name].equal(model[name]) for name in model)
    assert sum(second[f"backbone.{name}"].equal(model[name]) for name in model if f"backbone.{name}" in second) > 10
    assert export_run(str(folder.path), str(tmp_path / "teacher"), weights="teacher").step == 3
    card = (folder.model / "README.md").read_text()
    assert "after 2 of 3 steps" in card
    assert "chosen on 25% of the labeled classes, kept out of training" in card

    capsys.readouterr()
    print_result(result)
    shown = " ".join(capsys.readouterr().out.split())
    assert "birds (validation classes): 8 queries; the exported model was chosen on these" in shown
    assert "90.0" in shown
    assert "others: 12 queries" in shown


def test_nothing_is_exported_before_validation_chose(train, tmp_path):
    folder = train([0.5], eval_every=3).folder
    shutil.rmtree(folder.checkpoints / "step-3")  # As if it was stopped before.
    with pytest.raises(ValueError, match="no step was scored on the validation classes before step-2"):
        export_run(str(folder.path), str(tmp_path / "early"))
    assert not (tmp_path / "early").exists()
    assert export_run(str(folder.path), str(tmp_path / "teacher"), weights="teacher").step == 2


def test_a_run_that_goes_on_knows_its_best_step(train, tmp_path):
    train([0.5, 0.9, 0.7])
    result = train([0.8, 0.9], max_steps=5, resume=True)
    assert exported_step(result.lines) == 2  # The first of equals.
    best = read_module(result.folder.checkpoints / "step-2", "embedder.")
    kept = read_module(result.folder.checkpoints / "step-5", f"{BEST}model.")
    assert all(best[name].equal(kept[name]) for name in best)
    assert exported_step(train([0.95], max_steps=6, resume=True).lines) == 6


def test_a_run_that_goes_on_is_tested_once(train, tmp_path):
    lines = train([0.1, 0.9, 0.3], test_classes=0.5).lines
    assert train([], test_classes=0.5, resume=True).lines == lines
    longer = train([0.95], test_classes=0.5, resume=True, max_steps=4).lines
    assert [line["step"] for line in longer if is_final_test(line)] == [4]


def test_the_classes_are_neither_trained_nor_tested_on(train, tmp_path):
    result = train([0.1, 0.2, 0.3], test_classes=0.5)
    test, validation = (
        json.loads((result.folder.path / f"{kind}_classes.json").read_text()) for kind in ("test", "validation")
    )
    assert (len(test), len(validation)) == (4, 2)  # At least two: a quarter of the other four would be one.
    assert not set(test) & set(validation)
    assert {line["data"].rsplit("/")[-1] for line in result.lines} == {
        "birds (test classes)",
        "birds (validation classes)",
    }
    assert set(test) | set(validation) < set(
        open_source(str(tmp_path / "birds"), flag="--labeled", labels="required").classes
    )


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="--validation-classes keeps classes of --labeled, and there are none"):
        build_config({"unlabeled": "a", "validation_classes": 0.2})
    with pytest.raises(ValueError, match="chooses among evaluated steps: give --eval-every more than 0"):
        build_config({"labeled": "a", "validation_classes": 0.2, "eval_every": 0})


def test_the_report_shows_what_chose_apart_from_what_is_tested_on(train, tmp_path):
    folder = train([0.5, 0.9, 0.7], eval=str(tmp_path / "others"), no_report=False).folder
    tested, chose = headlines([folder.log.lines()], [])
    assert (tested.name.rsplit("/")[-1], tested.chose) == ("others", False)
    assert [(row.name, row.step) for row in tested.rows] == [("frozen backbone", 0), ("trained", 2)]
    assert (chose.name.rsplit("/")[-1], chose.chose) == ("birds (validation classes)", True)
    assert chose.rows[1].cells[-1].value == "90.0"
    page = " ".join(folder.report.read_text().split())
    assert page.count("the step that does best on them, by MAP@R, was exported") == 1
    assert page.count("MAP@R, trained") == 1
