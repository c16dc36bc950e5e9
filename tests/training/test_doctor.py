"""`doctor`: a sound setup passes, and every problem of a broken one is named."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.pictures import write_pictures

from stml_semi.cli import app as cli
from stml_semi.config import TrainConfig, flag
from stml_semi.training.preflight.doctor import examine

ROOT = Path(__file__).parents[2]


def broken(values: dict[str, object]) -> dict[str, str]:
    return {finding.what: finding.text for finding in examine(values) if finding.level == "broken"}


def advice(values: dict[str, object]) -> dict[str, str]:
    return {finding.what: finding.text for finding in examine(values) if finding.level == "advice"}


@pytest.fixture
def pictures(tmp_path):
    for name in "abcd":
        write_pictures(tmp_path / "labeled" / name, 4, seed=ord(name))
    write_pictures(tmp_path / "loose", 40)
    return tmp_path


def small(pictures: Path) -> dict[str, object]:
    return {
        "labeled": str(pictures / "labeled"),
        "unlabeled": str(pictures / "loose"),
        "backbone": "tiny-resnet",
        "labeled_batch_size": 8,
        "images_per_class": 2,
        "unlabeled_batch_size": 20,
        "output_dir": str(pictures / "run"),
    }


def test_a_sound_setup_passes_and_leaves_nothing_behind(pictures):
    before = sorted(pictures.rglob("*"))
    found = list(examine(small(pictures)))
    assert not [finding for finding in found if finding.level == "broken"]
    assert sorted(pictures.rglob("*")) == before
    said = {finding.what for finding in found}
    parts = {"versions", "hardware", "precision", "--output-dir", "disk", "hub", "--labeled", "--unlabeled"}
    assert parts | {"--backbone", "evaluation", "memory", "speed"} <= said


def test_backbone_weights_are_opened_not_the_backbone(pictures, tmp_path):
    file = tmp_path / "swav.pth"
    torch.save({"conv1.weight": torch.zeros(2, 3, 7, 7)}, file)
    weights: dict[str, object] = {"backbone_weights": str(file)}
    for values in (small(pictures) | weights, weights):
        values.pop("backbone", None)
        (text,) = broken(values).values()
        assert f"--backbone-weights {file}: holds no ResNet-50" in text


def test_doctor_takes_every_training_flag(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["cli.py", "doctor", "--help"])
    with pytest.raises(SystemExit):
        cli.run()
    said = capsys.readouterr().out
    assert all(flag(name) in said for name in TrainConfig.model_fields)


def test_labels_that_cannot_measure_relations_are_told(pictures):
    assert "sigma auto; not calibrated: that takes five labeled classes" in advice(small(pictures))["relations"]
    enough = small(pictures) | {"labeled": "kanji", "unlabeled": "kanji-more"}
    (found,) = [finding for finding in examine(enough) if finding.what == "relations"]
    assert found.level == "ok"
    assert "calibrated on 220 images of 10 labeled classes" in found.text
    for values in (enough | {"relations": "batch"}, {**enough, "labeled": None}, {**enough, "unlabeled": None}):
        assert "relations" not in advice(values)


def test_every_problem_is_named_at_once(pictures):
    (pictures / "table.csv").write_text("file,kind of\nlabeled/a/0.png,1\n")
    (pictures / "empty").mkdir()
    problems = broken(
        {
            "labeled": str(pictures / "table.csv"),
            "unlabeled": str(pictures / "empty"),
            "output_dir": "/proc/runs",  # Not even root can write there.
        }
    )
    assert problems.keys() == {"--labeled", "--unlabeled", "--output-dir"}
    assert "kind of" in problems["--labeled"]
    assert "--labeled-label-column" in problems["--labeled"]
    assert "no images" in problems["--unlabeled"]
    assert "/proc cannot be written" in problems["--output-dir"]


def test_bad_pictures_batches_and_backbones_are_named(pictures):
    for i in range(4):
        (pictures / "loose" / f"{i}.png").write_bytes(b"no image")
    problems = broken({**small(pictures), "labeled_batch_size": 64, "images_per_class": 4, "backbone": "no/such"})
    assert "4 of 40 images opened cannot be read, such as" in problems["--unlabeled"]
    assert "(not an image): repair them, or set --max-bad-fraction above 0.1" in problems["--unlabeled"]
    assert "--labeled has 4 classes, but a batch draws 16" in problems["--labeled-batch-size"]
    assert "--backbone no/such" in problems["run"]
    assert "--backbone no/such" in broken({"backbone": "no/such"})["backbone"]


def test_a_full_disk_and_a_file_in_the_way_are_named(pictures, monkeypatch):
    (pictures / "file").write_text("mine")
    assert "is a file" in broken({"output_dir": str(pictures / "file" / "run")})["--output-dir"]
    usage = shutil.disk_usage(pictures)._replace(free=2**29)
    monkeypatch.setattr("stml_semi.training.preflight.doctor.shutil.disk_usage", lambda _: usage)
    assert "0.5 GiB are free where runs are written" in broken({"output_dir": str(pictures)})["disk"]


def test_a_disk_that_holds_too_few_checkpoints_is_named(pictures, monkeypatch):
    usage = shutil.disk_usage(pictures)._replace(free=2**32)
    monkeypatch.setattr("stml_semi.training.preflight.doctor.shutil.disk_usage", lambda _: usage)
    assert "disk" not in broken(small(pictures))
    said = broken({**small(pictures), "embedding_dim": 2**16, "auxiliary_dim": 2**16, "keep_checkpoints": 50})["disk"]
    assert "4.0 GiB are free" in said
    assert "lower --keep-checkpoints" in said


def test_all_problems_of_a_broken_setup_are_named_by_one_call(pictures, monkeypatch, capsys):
    """A column that is not there, a folder that may not be written, half a disk; then the exit code."""
    from stml_semi.cli import app as cli

    (pictures / "table.csv").write_text("file,kind of\nlabeled/a/0.png,1\n")
    usage = shutil.disk_usage(pictures)._replace(free=2**29)
    monkeypatch.setattr("stml_semi.training.preflight.doctor.shutil.disk_usage", lambda _: usage)

    def refuse(dir: Path) -> None:  # Root may write everywhere.
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("stml_semi.training.preflight.doctor.tempfile.TemporaryFile", refuse)
    table = str(pictures / "table.csv")
    flags = ["--labeled", table, "--labeled-label-column", "species", "--output-dir", str(pictures)]
    monkeypatch.setattr(sys, "argv", ["cli.py", "doctor", *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run()
    assert stop.value.code == 1
    lines = [line.removeprefix("broken").strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[-1] == "3 problems to mend."
    said = dict(line.split(": ", 1) for line in lines[:-1])
    assert "cannot be written (Permission denied); choose another folder" in said["--output-dir"]
    assert "0.5 GiB are free" in said["disk"]
    assert "species" in said["--labeled"]
    assert "kind of" in said["--labeled"]


def test_too_little_memory_is_met_with_a_micro_batch_that_fits(pictures, monkeypatch):
    monkeypatch.setattr("stml_semi.training.preflight.doctor.torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("stml_semi.training.preflight.costs.memory_bytes", lambda: 60 * 2**20)
    said = advice(small(pictures))["memory"]
    size = int(said.split("--micro-batch-size ")[2].split()[0])
    assert size in (8, 16, 32)
    assert "memory" not in advice({**small(pictures), "micro_batch_size": size})
    monkeypatch.setattr("stml_semi.training.preflight.costs.memory_bytes", lambda: 2**20)
    assert "take a smaller backbone" in broken(small(pictures))["memory"]


@pytest.mark.slow
def test_the_exit_code_says_whether_something_is_broken(pictures):
    command = [sys.executable, str(ROOT / "cli.py"), "doctor", "--backbone", "tiny-resnet", "--output-dir"]
    sound = subprocess.run([*command, str(pictures)], capture_output=True, text=True, check=False)
    assert sound.returncode == 0, sound.stderr
    assert sound.stdout.splitlines()[-1] == "Nothing is broken."
    unsound = subprocess.run([*command, "/proc/runs"], capture_output=True, text=True, check=False)
    assert unsound.returncode == 1
    assert unsound.stdout.splitlines()[-1] == "1 problem to mend."
    assert "Traceback" not in unsound.stderr
