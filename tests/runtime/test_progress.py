"""What a run says while it works, without a terminal and on one."""

import io
import sys

import pytest

from stml_semi.config import TrainConfig
from stml_semi.data.run_tables import Tables
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
TABLES = Tables(None, None, None, ())


class Terminal(io.StringIO):
    """A standard error that is looked at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def config() -> TrainConfig:
    return build_config({"labeled": "kanji", "max_steps": 1000})


def test_a_log_file_gets_about_twenty_lines_with_all_there_is_to_know(capsys, config):
    with RunProgress(config, TABLES, processes=2, enabled=True) as progress:
        for step in range(1, 1001):
            progress.step(step, {**LINE, "gpu_memory_gib": 7.26} if step % 10 == 0 else None)
    first, *lines = capsys.readouterr().err.splitlines()
    assert "2 processes" in first
    assert [line.split()[1] for line in lines] == [f"{step}/1000" for step in range(50, 1001, 50)]
    assert lines[0].startswith(
        "step 50/1000 labeled 3.250 contrastive 0.500 distillation 0.0100 120 images/s, data wait 25%, "
        "GPU memory 7.3 GiB, 2 bad images left "
    )


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(capsys, config, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("stml_semi.runtime.progress.time.monotonic", lambda: float(next(clock)))
    with RunProgress(config, TABLES, processes=1, enabled=True) as progress:
        for step in range(901, 951):  # A second each.
            progress.step(step, LINE if step == 950 else None)
    assert capsys.readouterr().err.splitlines()[-1].endswith(" left 50s")


def test_the_first_line_does_not_guess_how_long_it_takes(capsys):
    with Counter("embed", 100, enabled=True) as counter:
        counter.advance(50)
        counter.advance(50)
    assert capsys.readouterr().err.splitlines() == ["embed 50/100", "embed 100/100 left 0s"]


def test_a_terminal_shows_a_bar_and_keeps_warnings(monkeypatch, config):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with RunProgress(config, TABLES, processes=1, enabled=True) as progress:
        progress.step(10, LINE)
        progress.note("evaluating the student")
        progress.note("warning: embeddings collapse")
    shown = screen.getvalue()
    assert "10/1000" in shown
    assert "data wait 25%" in shown
    assert "warning: embeddings collapse" in shown


def test_only_the_main_process_talks(capsys, config):
    with RunProgress(config, TABLES, processes=2, enabled=False) as progress:
        progress.step(500, LINE)
        progress.note("hello")
    with Counter("embed", 10, enabled=False) as counter:
        counter.advance(10)
    assert capsys.readouterr().err == ""
