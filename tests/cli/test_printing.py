"""What a run prints at its end, on terminals of different widths."""

from typing import Any

import pytest

from stml_semi.cli.printing import print_result, print_scores
from stml_semi.run_folder.folder import RunFolder
from stml_semi.run_folder.log import evaluations
from stml_semi.run_folder.recipe import build_config
from stml_semi.run_folder.verdict import OVER_FROZEN
from stml_semi.training.run import Result

SCORES = {"recall@1": 0.5, "recall@2": 0.6, "recall@4": 0.7, "recall@8": 0.8, "r_precision": 0.4, "map@r": 0.3}


@pytest.fixture
def result(tmp_path):
    folder = RunFolder(tmp_path / "my run")
    folder.prepare(build_config({"labeled": "kanji", "backbone": "tiny-resnet"}), {})
    folder.model.mkdir()
    line: dict[str, Any] = {"step": 0, "data": "birds", "model": "frozen", **SCORES, "num_queries": 4400}
    folder.log.write(line)
    gain = {"recall@1": [-0.05, -0.06, -0.04], "map@r": [-0.02, -0.03, -0.01]}
    folder.log.write(line | {"step": 9, "model": "student", OVER_FROZEN: gain})
    return Result(folder, evaluations(folder.log.lines()), "", None)


@pytest.mark.parametrize("width", [80, 120])
def test_the_end_of_a_run_fits_the_terminal(result, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    print_result(result)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown  # Not a terminal.
    scores, commands = shown.split("\n\nmodel ")
    assert all(len(line) <= width for line in scores.splitlines())
    assert "birds: 4,400 queries" in scores
    assert "recall@8" in scores
    assert "\nWorse than the frozen backbone by 5.0 points of recall@1 (4.0 to 6.0)" in scores
    # What is there to be copied is not broken, and what does not exist is not named.
    run = str(result.folder.path)
    assert commands.splitlines()[0].strip() == f"{run}/model"
    assert "report" not in commands
    assert f"\nstml-semi embed --model '{run}' --data IMAGES --output index\n" in commands
    assert f"\nstml-semi push '{run}' USER/NAME --private\n" in commands


def test_the_verdict_is_colored_on_a_terminal_unless_it_is_asked_not_to_be(result, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_result(result)
    assert "\x1b[1;31mWorse than the frozen backbone" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    print_result(result)
    assert "31m" not in capsys.readouterr().out


def test_more_metrics_than_fit_are_lines(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    many = {f"recall@{10**k}": 0.5 for k in range(8)} | {"r_precision": 0.4, "map@r": 0.3}
    intervals = {name: [0.25, 0.35] for name in many}
    print_scores("birds", {"model": many | {"intervals": intervals, "confidence": 95}})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["model", "95%", "interval"] in lines
    assert ["recall@10000000", "50.0", "25.0-35.0"] in lines
    assert ["MAP@R", "30.0", "25.0-35.0"] in lines


def test_long_names_and_six_scores_fit_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    print_scores("birds", {"student": SCORES, "25% student + 75% frozen *": SCORES, "frozen backbone": SCORES})
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    assert ["25%", "student", "+", "75%", "frozen", "*", *["50.0", "60.0", "70.0", "80.0", "40.0", "30.0"]] in map(
        str.split, shown
    )
