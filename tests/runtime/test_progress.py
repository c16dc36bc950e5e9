"""What a run says while it works, without a terminal and on one."""

import io
import re
import sys

import pytest

from stml_semi.config import TrainConfig
from stml_semi.run_folder.recipe import build_config
from stml_semi.runtime.progress import Counter
from stml_semi.training.run_progress import RunProgress

LINE = {
    "labeled_loss": 3.25,
    "relaxed_contrastive": 0.5,
    "self_distillation": 0.01,
    "images_per_second": 120.4,
    "data_wait": 0.254,
    "bad_images": 2,
}


class Terminal(io.StringIO):
    """A standard error that is looked at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def config() -> TrainConfig:
    return build_config({"labeled": "kanji", "max_steps": 1000})


def test_a_log_file_gets_about_twenty_lines_with_all_there_is_to_know(capsys, config):
    with RunProgress(config, enabled=True) as progress:
        for step in range(1, 1001):
            progress.step(step, {**LINE, "gpu_memory_gib": 7.26} if step % 10 == 0 else None)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/1000" for step in range(50, 1001, 50)]
    count, rest = lines[0].split(" ETA ")
    assert count == "step 50/1000"
    assert rest.split(" ", 1)[1] == (
        "labeled 3.250, contrastive 0.5, distillation 0.01, 2 unreadable, 120 images/s, data wait 25%, "
        "GPU memory 7.3 GiB"
    )


def test_terms_that_do_not_exist_are_left_out(capsys):
    unlabeled = build_config({"unlabeled": "kanji-more", "max_steps": 2})
    with RunProgress(unlabeled, enabled=True) as progress:
        progress.step(1, LINE | {"labeled_loss": 0.0, "bad_images": 0})
        progress.step(2, LINE | {"labeled_loss": 0.0, "bad_images": 0, "self_distillation": 3e-5})
    first, second = capsys.readouterr().err.splitlines()
    assert first == "step 1/2 contrastive 0.5, distillation 0.01, 120 images/s, data wait 25%"
    assert "distillation 3e-05" in second


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(capsys, config, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("stml_semi.runtime.progress.time.monotonic", lambda: float(next(clock)))
    with RunProgress(config, enabled=True) as progress:
        for step in range(901, 951):  # A second each.
            progress.step(step, LINE if step == 950 else None)
    assert capsys.readouterr().err.splitlines()[-1].startswith("step 950/1000 ETA 0:50 ")


def test_the_first_line_does_not_guess_how_long_it_takes(capsys):
    with Counter("embed", 100, enabled=True) as counter:
        counter.advance(50)
        counter.advance(50)
    assert capsys.readouterr().err.splitlines() == ["embed 50/100", "embed 100/100 ETA 0:00"]


def test_a_terminal_shows_a_bar_and_keeps_warnings(monkeypatch, config):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with RunProgress(config, enabled=True) as progress:
        progress.step(10, LINE)
        progress.note("evaluating the student")
        progress.note("warning: embeddings collapse")
    shown = screen.getvalue()
    assert "10/1000" in shown
    assert "data wait 25%" in shown
    assert "warning: embeddings collapse" in shown


def test_a_narrow_terminal_keeps_count_and_time_and_drops_terms(monkeypatch, config):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with RunProgress(config, enabled=True) as progress:
        progress.step(10, LINE)
        assert progress.bar is not None
        progress.bar.refresh()
        progress.note("evaluating the student on a collection with a name of some length")
        progress.bar.refresh()
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", screen.getvalue())]
    assert max(map(len, shown)) <= 80
    assert any("10/1000 ETA" in line and "labeled 3.250" in line for line in shown)
    assert not any("data wait" in line for line in shown)
    assert any(line.rstrip().endswith("…") for line in shown)


def test_only_the_main_process_talks(capsys, config):
    with RunProgress(config, enabled=False) as progress:
        progress.step(500, LINE)
        progress.note("hello")
    with Counter("embed", 10, enabled=False) as counter:
        counter.advance(10)
    assert capsys.readouterr().err == ""
