"""Classes that are kept out of training choose the step that is exported."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pictures import write_pictures
from helpers.real_runs import KANJI, lines
from helpers.real_runs import train as train_for_real
from PIL import Image
from safetensors.torch import load_file

from stml_semi import load
from stml_semi.cli.printing import print_result
from stml_semi.data.sources.open_source import open_source
from stml_semi.metrics import Interval, QueryScores
from stml_semi.models.adaptation import merged
from stml_semi.models.backbone import open_backbone
from stml_semi.models.evaluation import Scored, TableScores
from stml_semi.report.headline import headlines
from stml_semi.run_folder.checkpoint import BEST, read_module
from stml_semi.run_folder.checkpoint import TEACHER as TEACHER_PREFIX
from stml_semi.run_folder.log import Choice, exported, exported_step, is_final_test
from stml_semi.run_folder.recipe import build_config
from stml_semi.sharing.export_run import export_run
from stml_semi.sharing.thresholds import read_thresholds
from stml_semi.sharing.trained import open_trained
from stml_semi.training import evaluator
from stml_semi.training.candidates import Candidate, best_of, compare
from stml_semi.training.resolve import resolve
from stml_semi.training.run import run

# MAP@R of the candidates, in the order of their evaluation: the best student, 25, 50 and 75% of it, the frozen
# backbone, the teacher. Each is the same for all queries, so that a difference has an interval without width.
STUDENT = (0.9, 0.1, 0.1, 0.1, 0.1, 0.9)
INTERPOLATED = (0.7, 0.1, 0.8, 0.75, 0.1, 0.1)
FROZEN = (0.7, 0.1, 0.8, 0.75, 0.85, 0.1)
TEACHER = (0.7, 0.1, 0.8, 0.75, 0.1, 0.9)


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

    def start(map_at_r: list[float], candidates: tuple[float, ...] = STUDENT, **values):
        # Student and teacher, evaluation by evaluation; before them the frozen backbone, after them the candidates.
        told = iter([*[0.3] * (not values.get("resume")), *(value for value in map_at_r for _ in "st"), *candidates])

        def score(table, embedded, recall_at):
            means, queries, _ = scored(table, embedded, recall_at)
            if "validation" in table.name:
                means = means | {"map@r": next(told)}
                same = torch.full_like(queries.scores.average_precision, means["map@r"])
                queries = queries._replace(scores=queries.scores._replace(average_precision=same))
            return Scored(means, queries, [])

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

    # How similar a match has to be, for the chosen model alone.
    (chosen,) = [line for line in folder.log.lines() if line.get("exported")]
    known = read_thresholds(folder.model)
    assert known is not None
    assert chosen["thresholds"] == [[round(value, 6) for value in one] for one in known.thresholds]
    assert known.thresholds
    assert "| 80% |" in card
    assert read_thresholds(tmp_path / "again") == known
    assert read_thresholds(tmp_path / "teacher") is None

    capsys.readouterr()
    print_result(result)
    shown = " ".join(capsys.readouterr().out.split())
    assert "birds (validation classes): 8 queries; these chose the exported model (*)" in shown
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
    assert chose.rows[-2].cells[-1].value == "90.0"
    page = " ".join(folder.report.read_text().split())
    assert page.count("the step that does best on them, by MAP@R, was exported") == 1
    assert page.count("MAP@R, trained") == 1


def candidates_of(folder):
    return [line for line in folder.log.lines() if "candidate" in line]


def test_interpolated_weights_that_do_better_are_exported_and_tested_once(train, tmp_path, capsys):
    result = train([0.5, 0.7, 0.6], INTERPOLATED, eval=str(tmp_path / "others"), batchnorm="batch", no_report=False)
    folder = result.folder
    assert exported(folder.log.lines()) == ("interpolated", 2, 0.5)
    assert "MAP@R 80.0 vs. 70.0, 95% interval of the difference +10.0 to +10.0" in capsys.readouterr().err
    tested = [line for line in result.lines if "split" not in line]
    assert [(line["model"], line["step"], line.get("alpha")) for line in tested] == [
        ("frozen", 0, None),
        ("interpolated", 2, 0.5),
    ]
    scored = [(line["candidate"], line["alpha"], line["weights_step"]) for line in candidates_of(folder)]
    between = [("interpolated", alpha, 2) for alpha in (0.25, 0.5, 0.75)]
    assert scored == [("student", 1, 2), *between, ("frozen", 0, 0), ("teacher", None, 3)]
    assert [line["exported"] for line in candidates_of(folder)] == [False, False, True, False, False, False]

    # In model/ lies the mean of the pretrained backbone and the student of step 2, statistics of BatchNorm included.
    second, model = read_module(folder.checkpoints / "step-2", "embedder."), tensors(folder.model)
    start = open_backbone(str(folder.config().backbone)).model.state_dict()
    names = [name for name in model if model[name].is_floating_point()]
    assert any("running_var" in name for name in names)
    assert any(not second[f"backbone.{name}"].equal(start[name]) for name in names if "running_var" in name)
    for name in names:
        torch.testing.assert_close(model[name], (start[name] + second[f"backbone.{name}"]) / 2)

    # Head f as well, between its start, which is orthogonal, and the student's.
    head = read_module(folder.checkpoints / "step-3", f"{BEST}start_f.")["weight"]
    torch.testing.assert_close(head @ head.T, torch.eye(16))
    served = load_file(folder.model / "2_Dense" / "model.safetensors")["linear.weight"][:, :16]
    assert not second["head_f.weight"].equal(head)
    torch.testing.assert_close(served, (head + second["head_f.weight"]) / 2)

    # `export`, the card, the table and the report say the same.
    again = export_run(str(folder.path), str(tmp_path / "again"))
    assert again[1:] == ("interpolated", 2, 0.5)
    pictures = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    assert np.array_equal(load(tmp_path / "again").encode(pictures), load(folder.model).encode(pictures))
    card = (folder.model / "README.md").read_text()
    assert (tmp_path / "again" / "README.md").read_text() == card
    assert "Weights: **50% of the student's and 50% of those before training**, averaged" in card
    assert "after 2 of 3 steps" in card
    assert "the model was chosen on 25% of the labeled classes" in card
    assert "| 50% student + 50% frozen (these weights) |" in card
    print_result(result)
    shown = " ".join(capsys.readouterr().out.split())
    assert "50% student + 50% frozen *" in shown
    assert "trained (interpolated)" in shown
    page = " ".join(folder.report.read_text().split())
    assert "50% student + 50% frozen *" in page
    assert "between frozen (0) and student (100)" in page
    assert "MAP@R +10.0 vs. student, +10.0 to +10.0" in page
    assert "unless another model of the table is better by more than chance" in page
    assert page.count("MAP@R, trained") == 1


def test_low_rank_updates_are_interpolated_and_merged(train, tmp_path, make_backbone):
    folder = train([0.5, 0.7, 0.6], INTERPOLATED, backbone=str(make_backbone("vit")), lora_rank=2).folder
    assert export_run(str(folder.path), str(tmp_path / "again")).alpha == 0.5
    places = (make_backbone("vit"), folder.model, tmp_path / "again")
    before, model, again = (open_backbone(str(place)).model.state_dict() for place in places)
    trained = open_trained(folder.config(), folder.checkpoints / "step-2", "student")
    after = merged(trained.embedder.backbone).state_dict()
    for name, value in model.items():
        assert again[name].equal(value)
        torch.testing.assert_close(value, (before[name] + after[name]) / 2)
    assert not all(before[name].equal(value) for name, value in model.items())


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_frozen_backbone_that_does_better_is_exported_as_it_is(train, tmp_path, make_backbone, kind):
    backbone = str(make_backbone(kind))
    result = train([0.5, 0.7, 0.6], FROZEN, eval=str(tmp_path / "others"), backbone=backbone, no_report=False)
    folder = result.folder
    assert exported(folder.log.lines()) == ("frozen", 0, None)
    assert [line["model"] for line in result.lines if "split" not in line] == ["frozen"]
    pictures = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    for model in (folder.model, export_run(str(folder.path), str(tmp_path / "again")).folder):
        np.testing.assert_allclose(load(model).encode(pictures), load(backbone).encode(pictures), atol=1e-6)
    card = (folder.model / "README.md").read_text()
    assert "a vector of 16 numbers" in card
    assert "Weights: the **frozen backbone**, without a head" in card
    assert "| frozen backbone, before training (these weights) |" in card
    assert "exported frozen backbone" in folder.report.read_text()


def test_a_teacher_that_does_better_is_exported(train, tmp_path):
    folder = train([0.5, 0.7, 0.6], TEACHER, eval=str(tmp_path / "others")).folder
    assert exported(folder.log.lines()) == ("teacher", 3, None)
    teacher, model = read_module(folder.checkpoints / "step-3", TEACHER_PREFIX), tensors(folder.model)
    assert all(teacher[f"backbone.{name}"].equal(model[name]) for name in model)
    chosen = export_run(str(folder.path), str(tmp_path / "chosen"))
    asked = export_run(str(folder.path), str(tmp_path / "asked"), weights="teacher")
    assert chosen[1:] == asked[1:] == ("teacher", 3, None)
    assert "the model was chosen on 25% of the labeled classes" in (folder.model / "README.md").read_text()


def test_a_run_that_goes_on_chooses_anew(train, tmp_path):
    values = {"test_classes": 0.5, "batchnorm": "batch"}
    first = train([0.5, 0.7, 0.6], INTERPOLATED, **values).folder
    before, model = first.log.lines(), tensors(first.model)
    shutil.rmtree(first.model)  # As if it was killed before its export.
    again = train([], INTERPOLATED, resume=True, **values).folder
    assert again.log.lines() == before
    assert all(model[name].equal(value) for name, value in tensors(again.model).items())
    # A checkpoint of before the end holds the best student so far; the candidates' lines are not of it.
    shutil.rmtree(again.checkpoints / "step-3")
    assert export_run(str(again.path), str(tmp_path / "early"))[1:] == ("student", 2, None)
    longer = train([0.6, 0.95], STUDENT, resume=True, max_steps=4, **values)
    assert [line["step"] for line in candidates_of(longer.folder)] == [4] * 6
    assert exported(longer.folder.log.lines()) == ("student", 4, None)


def test_a_run_without_validation_classes_says_what_it_did_not_check(train, capsys):
    train([], validation_classes=None)
    assert "not checked: whether the frozen backbone, the teacher or weights" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.slow
def test_two_processes_choose_the_same(tmp_path):
    steps = ("--max-steps", "8", "--validation-classes", "0.3", "--eval-every", "8", "--learning-rate", "1e-4")
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        done = train_for_real(folder, *KANJI, *steps, processes=processes)
        assert done.returncode == 0, done.stderr
        found.append(lines(folder, "candidate"))
    one, two = found
    assert len(one) == 6
    assert [(line["candidate"], line["exported"]) for line in one] == [
        (line["candidate"], line["exported"]) for line in two
    ]
    assert [line["map@r"] for line in one] == pytest.approx([line["map@r"] for line in two], abs=2e-3)


def test_differences_within_chance_go_to_the_student():
    labels = torch.arange(6).repeat_interleave(4)

    def found(*more_by_class: float) -> Candidate:
        average = torch.stack([torch.full((24,), 0.5), 0.5 + torch.tensor(more_by_class).repeat_interleave(4)]).double()
        number = torch.full((24,), 3)
        number[0] = 0  # A query without anything to find has no score.
        average[:, 0] = torch.nan
        scores = [QueryScores(torch.ones(24, 1), row, row, number) for row in average]
        scored = [Scored({}, TableScores(one, labels, 24), []) for one in scores]
        return best_of(compare([(Choice("student", 5), scored[0]), (Choice("frozen", 0), scored[1])]))

    assert found(0, 0, 0, 0, 0, 0).choice.model == "student"
    assert found(0.3, 0.3, -0.1, -0.1, 0.3, -0.1).choice.model == "student"
    better = found(0.3, 0.3, 0.1, 0.1, 0.3, -0.02)
    assert better.choice.model == "frozen"
    assert 0 < better.gain.low < better.gain.mean < better.gain.high


def test_once_the_student_is_beaten_the_best_of_all_is_exported():
    nothing: Any = None
    gains = [Interval(0, 0, 0), Interval(0.1, 0.05, 0.15), Interval(0.3, -0.1, 0.7)]
    student, near, far = [Candidate(Choice("student", 5), nothing, gain) for gain in gains]
    assert best_of([student, near, far]) is far
    assert best_of([student, far]) is student
