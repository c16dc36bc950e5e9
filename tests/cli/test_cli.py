"""The command line as users meet it: help, errors that name the flag and the fix, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import call
from helpers.pictures import write_pictures

from stml_semi.config import TrainConfig, flag
from stml_semi.run_folder.recipe import build_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folders(tmp_path):
    for name in "abcdef":
        write_pictures(tmp_path / "labeled" / name, 4, seed=ord(name))
    write_pictures(tmp_path / "loose", 30)
    write_pictures(tmp_path / "one" / "only", 5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("file,kind of\nlabeled/a/0.png,1\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "recipe.yaml").write_text("max_step: 3\n")
    return tmp_path


SMALL = ["--labeled-batch-size", 8, "--images-per-class", 2, "--unlabeled-batch-size", 10, "--backbone", "tiny-resnet"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["semi", "--labeled", "kanij", "--unlabeled", "kanji-more"], ["--labeled kanij", "did you mean kanji?"]),
        (["semi", "--labeled", "{}/empty", "--unlabeled", "{}/loose"], ["--labeled", "empty", ".png"]),
        (["semi", "--labeled", "{}/labeled", "--unlabeled", "{}/empty"], ["--unlabeled", "empty", ".png"]),
        (["semi", "--labeled", "{}/table.csv", "--unlabeled", "{}/loose"], ["--labeled-label-column", "kind of"]),
        (["semi", "--labeled", "{}/one", "--unlabeled", "{}/loose"], ["--labeled", "one class"]),
        (
            ["sup", "--labeled", "{}/labeled", "--labeled-batch-size", 64, "--images-per-class", 4],
            ["--labeled-batch-size", "6 classes", "24"],
        ),
        (
            ["semi", "--labeled", "{}/labeled", "--unlabeled", "{}/loose", "--unlabeled-batch-size", 120],
            ["--unlabeled-batch-size", "30 images"],
        ),
        (["sup", "--labeled", "{}/labeled", "--recipe", "{}/recipe.yaml"], ["max_step", "'max_steps'"]),
        (["sup", "--labeled", "kanji", "--output-dir", "{}/full"], ["--output-dir", "--resume", "--overwrite"]),
        (["sup", "--labeled", "kanji", "--output-dir", "{}/full", "--overwrite"], ["no config.yaml", "left alone"]),
        (["sup", "--labeled", "kanji", "--output-dir", "{}/new", "--resume"], ["--resume", "holds no run"]),
        (["semi", "--labeled", "kanji"], ["semi needs --unlabeled"]),
        (["semi", "--labeled", "kanji", "--unlabeled", "kanji-more,kanji:test"], ["--unlabeled kanji:test", "others"]),
        (["sup", "--labeled", "kanji", "--labeled-loss", "proxy_ancor"], ["--labeled-loss", "'proxy_anchor'"]),
        (["sup", "--labeled", "kanji", "--backbone", "no/such"], ["--backbone no/such"]),
        (["sup", "--labeled", "kanji", "--max-steps", "x"], ["--max-steps"]),
        (["evaluate", "--model", "{}/loose", "--data", "kanji:test"], ["--model"]),
        (["evaluate", "--model", "tiny-resnet", "--data", "kanji:tset"], ["--data", "test"]),
    ],
)
def test_bad_input_is_one_line_with_flag_and_fix(monkeypatch, capsys, folders, arguments, expected):
    monkeypatch.chdir(folders)
    before = sorted(folders.rglob("*"))
    code, out, err = call(monkeypatch, capsys, *(str(a).format(folders) for a in arguments))
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert len(message) == 1, err
    for part in expected:
        assert part in message[0]
    assert out == ""
    assert sorted(folders.rglob("*")) == before  # Nothing written, nothing lost.


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, capsys, folders):
    """Bad input is raised on purpose; any other ValueError, wherever it comes from, is not the user's."""

    from stml_semi.training import setup

    def broken(config: TrainConfig) -> None:
        list(zip((1, 2), (3,), strict=True))

    monkeypatch.setattr(setup, "open_tables", broken)
    arguments = ["sup", "--labeled", folders / "labeled", "--output-dir", folders / "run"]
    with pytest.raises(ValueError, match="zip"):
        call(monkeypatch, capsys, *arguments)
    assert "error:" not in capsys.readouterr().err


def test_unknown_flag_is_refused_with_a_suggestion(monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "semi", "--max-step", "3")
    assert code == 2
    assert "--max-steps" in err


def test_help_lists_every_field_in_its_panel(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = call(monkeypatch, capsys, "semi", "--help")
    assert code == 0
    for name in TrainConfig.model_fields:
        assert flag(name) in out
    assert [p for p in ("Data", "Model", "Objective", "Optimization", "Hardware", "Run") if f"─ {p} ─" in out] == [
        "Data",
        "Model",
        "Objective",
        "Optimization",
        "Hardware",
        "Run",
    ]


@pytest.mark.slow
def test_train_evaluate_and_load_as_a_user_does(folders):
    """class folders + loose images -> run folder -> evaluate --json -> load, in real processes."""
    run = folders / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "semi",
        *("--labeled", "labeled", "--unlabeled", "loose", "--eval", "labeled", "--output-dir", "run"),
        *map(str, SMALL),
        *(
            "--max-steps",
            "6",
            "--label-warmup-steps",
            "2",
            "--log-every",
            "2",
            "--eval-every",
            "3",
            "--save-every",
            "3",
            "--refresh-every",
            "2",
        ),
    ]
    done = subprocess.run(command, cwd=folders, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for text in ("frozen backbone", "trained", "recall@1", "recall@8", "MAP@R"):
        assert text in done.stdout
    assert "Warning" not in done.stderr

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [2, 4, 6]
    assert set(training[0]) == {
        "step",
        "loss",
        "labeled_loss",
        "relaxed_contrastive",
        "self_distillation",
        "unlabeled_weight",
        "grad_ratio",
        "effective_rank",
        "mean_similarity",
        "lr",
        "images_per_second",
        "data_wait",
        "bad_images",
        "labeled_passes",
        "unlabeled_passes",
    }
    scores = [line for line in lines if "model" in line]
    assert [(line["step"], line["model"]) for line in scores] == [
        (0, "frozen"),
        (3, "student"),
        (3, "teacher"),
        (6, "student"),
        (6, "teacher"),
    ]
    metric_keys = {"recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r", "num_queries", "num_gallery"}
    metric_keys |= {"num_unreadable", "num_lost_classes", "num_unmatched"}
    assert set(scores[0]) == {"step", "data", "model"} | metric_keys
    assert sorted(p.name for p in run.iterdir() if p.name != ".lock") == [
        "bad_images.jsonl",
        "checkpoints",
        "config.yaml",
        "frozen_scores.safetensors",
        "metrics.jsonl",
        "model",
        "overlap.jsonl",
        "report.html",
        "run.json",
    ]

    evaluated = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "evaluate", "--model", "run", "--data", "labeled", "--json"],
        cwd=folders,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads(evaluated.stdout)
    assert set(result) == {"step", "data", "model", "num_trained_classes"} | metric_keys
    assert result["step"] == 6
    for key in metric_keys:
        assert result[key] == pytest.approx(scores[3][key], abs=1e-6)


@pytest.mark.slow
def test_help_loads_nothing_heavy():
    """It answers in a quarter of a second; torch alone would take a second and more."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "cli.py"), "semi", "--help"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in loaded
    assert loaded.isdisjoint({"torch", "torchvision", "transformers", "datasets", "accelerate", "numpy", "PIL"})


def test_resume_refuses_another_objective_and_keeps_the_configuration(monkeypatch, capsys, tmp_path):
    from stml_semi.training.resolve import resolve

    run = tmp_path / "run"
    run.mkdir()
    stored = resolve("sup", {"labeled": "kanji", "output_dir": str(run), "max_steps": 3}).to_yaml()
    (run / "config.yaml").write_text(stored)
    (run / "metrics.jsonl").write_text("")
    code, _, err = call(monkeypatch, capsys, "sup", "--output-dir", run, "--resume", "--embedding-dim", "64")
    assert code == 2
    assert "--resume continues with --embedding-dim 512, not 64" in err
    assert (run / "config.yaml").read_text() == stored


def test_a_source_inside_the_run_folder_is_safe_from_overwrite(monkeypatch, capsys, folders):
    (folders / "config.yaml").write_text("labeled: x\n")
    arguments = ["sup", "--labeled", folders / "labeled", "--output-dir", folders, "--overwrite"]
    code, _, err = call(monkeypatch, capsys, *arguments, "--labeled-batch-size", 8, "--backbone", "tiny-resnet")
    assert code == 2
    assert "holds --labeled" in err
    assert (folders / "labeled" / "a" / "0.png").exists()


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(tmp_path):
    from stml_semi.run_folder.folder import RunFolder

    config = build_config({"labeled": "kanji", "overwrite": True})
    folder = RunFolder(tmp_path / "run")
    folder.prepare(config, {})
    (folder.path / "model").mkdir()
    (folder.path / "notes.txt").write_text("mine")
    folder.check(resume=False, overwrite=True)
    folder.prepare(config, {})
    assert sorted(p.name for p in folder.path.iterdir() if p.name != ".lock") == [
        "bad_images.jsonl",
        "config.yaml",
        "metrics.jsonl",
        "notes.txt",
        "run.json",
    ]


def test_a_recipe_with_a_list_for_a_source_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "r.yaml").write_text("labeled: [a, b]\n")
    code, _, err = call(monkeypatch, capsys, "sup", "--recipe", tmp_path / "r.yaml")
    assert code == 2
    assert "--labeled ['a', 'b']: should be text" in err


def test_the_test_split_cannot_be_trained_on(monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "sup", "--labeled", "kanji:train, kanji:test", "--output-dir", "never")
    assert code == 2
    assert "train on others" in err


def test_evaluation_without_pairs_is_refused_before_anything_is_written(monkeypatch, capsys, tmp_path):
    for name in "ab":
        write_pictures(tmp_path / "eval" / name, 1, seed=ord(name))
    monkeypatch.chdir(tmp_path)
    code, _, err = call(monkeypatch, capsys, "sup", "--labeled", "kanji", "--eval", "eval", "--output-dir", "run")
    assert code == 2
    assert "--eval eval: no class has two images" in err
    assert not (tmp_path / "run").exists()


def test_resume_resolves_a_recipe_as_the_start_did(tmp_path):
    from stml_semi.training.resolve import resolve

    recipe = {"labeled": "kanji", "unlabeled": "kanji-more", "backbone": "auto", "learning_rate": "3e-4"}
    for place in ({"output_dir": str(tmp_path / "run")}, {"output_dir": str(tmp_path / "other"), "seed": 3}):
        started = resolve("sup", recipe | place)
        (tmp_path / place["output_dir"]).mkdir()
        (tmp_path / place["output_dir"] / "config.yaml").write_text(started.to_yaml())
        resumed = resolve("sup", recipe | place | {"resume": True})
        assert resumed == started.model_copy(update={"resume": True})
        alone = resolve("sup", {"output_dir": place["output_dir"], "resume": True})
        assert alone == resumed


def test_a_dry_run_tells_the_plan_and_writes_nothing(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "run"
    flags = ["--labeled", "kanji", "--unlabeled", "kanji-more", "--max-steps", "100", "--output-dir", str(folder)]
    code, output, errors = call(monkeypatch, capsys, "semi", *flags, "--dry-run")
    assert code == 0, errors
    text = " ".join(output.split())
    assert "100, the first 10 on labels alone" in text
    assert "64 per step, 16 classes x 4; 14.5 epochs" in text
    assert "120 per step, 24 queries x 5 neighbors, 2 views each; 1.0 epochs" in text
    assert "304 images per step by the student, none by the teacher" in text
    # One refresh: 10,560 images and the 88 that measure.
    assert "10,560 images live, embedded and ranked 1 time (every 100 steps): 10,780 teacher forward passes" in text
    assert "calibrated on 220 images of 10 labeled classes, which join training at step 10" in text
    assert "classes never trained on" in text
    assert not folder.exists()
    code, _, errors = call(monkeypatch, capsys, "semi", *flags, "--dry-run", "--labeled-loss", "nonsense")
    assert code == 2
    assert "--labeled-loss nonsense" in errors


@pytest.mark.parametrize("command", [["data", "list"], ["semi", "--help"]])
def test_a_full_disk_under_standard_output_is_one_line(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stml_semi", *command], stdout=full, stderr=subprocess.PIPE, text=True
        )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("No data root")]
    assert (done.returncode, lines) == (
        1,
        ["error: standard output: the disk is full: free some space, then run the same command again"],
    )


def test_who_stops_reading_gets_no_traceback():
    code = "from stml_semi.cli.terminal import whole_output\nwith whole_output(): print(input())"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, env=environment
    ) as running:
        assert running.stdin
        assert running.stdout
        assert running.stderr
        running.stdout.close()
        running.stdin.write(b"a line\n")
        running.stdin.close()
        assert running.stderr.read() == b""
        assert running.wait() == 1
