"""Trackers get what metrics.jsonl gets; one that fails costs nothing but itself."""

import json
from typing import Any, ClassVar

import pytest
from accelerate import tracking
from accelerate.state import AcceleratorState
from helpers.pictures import write_pictures

from stml_semi.run_folder.recipe import build_config
from stml_semi.training.trackers import Trackers, check_installed

NOT_SHOWN = ("step", "model", "data", "over_frozen", "truncated")
"""Names of a line of metrics.jsonl that are no value of a chart."""


class Recorder:
    """Stands for a tracker on the network."""

    name = "wandb"
    fails_at: ClassVar[int] = 10**9
    seen: ClassVar[list[tuple[int, dict[str, float]]]] = []
    settings: ClassVar[dict[str, Any]] = {}
    finished: ClassVar[int] = 0

    def __init__(self, **_: Any) -> None: ...

    def start(self) -> None:
        Recorder.seen, Recorder.finished = [], 0

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        Recorder.settings = values

    def log(self, values: dict[str, float], step: int) -> None:
        if step >= self.fails_at:
            raise ConnectionError("the server is\ngone")
        Recorder.seen.append((step, values))

    def finish(self) -> None:
        Recorder.finished += 1


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(Recorder, "fails_at", 10**9)
    return Recorder


def test_a_tracker_that_is_not_installed_or_unknown_is_one_line_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mlflow").mkdir()  # A folder of results is no package.
    with pytest.raises(ValueError, match=r"--report-to mlflow: it is not installed; run `pip install mlflow`"):
        check_installed(["mlflow"])
    with pytest.raises(ValueError, match=r"--report-to wandbb: choose among tensorboard, wandb, trackio, mlflow"):
        build_config({"labeled": "kanji", "report_to": "wandbb"})
    assert build_config({"labeled": "kanji", "report_to": "wandb, mlflow,wandb"}).trackers == ["wandb", "mlflow"]
    assert build_config({"labeled": "kanji", "report_to": "none"}).trackers == []


def test_a_failing_tracker_is_named_once_and_the_others_go_on(monkeypatch, recorder, tmp_path):
    monkeypatch.setattr(recorder, "fails_at", 2)

    class Broken(Recorder):
        def start(self) -> None:
            raise RuntimeError("no login")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Broken)
    notes: list[str] = []
    config = build_config({"labeled": "kanji", "report_to": "mlflow,wandb"})
    trackers = Trackers(config, tmp_path / "run", notes.append, enabled=True)
    with trackers.started(0):
        for step in (1, 2, 3):
            trackers.log({"step": step, "loss": 0.5})
    assert recorder.seen == [(1, {"train/loss": 0.5})]
    assert len(notes) == 2
    assert "--report-to mlflow stopped (no login)" in notes[0]
    assert "--report-to wandb stopped (the server is gone); the run goes on" in notes[1]


def test_only_the_main_process_reports_and_all_is_finished_when_a_run_fails(recorder, tmp_path):
    config = build_config({"labeled": "kanji", "report_to": "wandb"})
    other = Trackers(config, tmp_path, print, enabled=False)
    recorder.seen.clear()
    with other.started(0):
        other.log({"step": 1, "loss": 0.5})
    assert recorder.seen == []
    main = Trackers(config, tmp_path, print, enabled=True)
    with pytest.raises(OverflowError), main.started(0):
        raise OverflowError
    assert recorder.finished == 1


@pytest.mark.slow
def test_a_run_reports_every_value_and_pictures_of_retrieval(monkeypatch, recorder, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from stml_semi.training.resolve import resolve
    from stml_semi.training.run import run

    for name in "abcd":
        write_pictures(tmp_path / "labeled" / name, 6, seed=ord(name))
    monkeypatch.setattr("stml_semi.training.resolve.check_installed", lambda names: None)
    monkeypatch.setattr(recorder, "fails_at", 4)
    folder = tmp_path / "run"
    config = resolve(
        "sup",
        {
            "labeled": str(tmp_path / "labeled"),
            "eval": str(tmp_path / "labeled"),
            "backbone": "tiny-resnet",
            "labeled_batch_size": 8,
            "max_steps": 4,
            "log_every": 2,
            "num_workers": 0,
            "report_to": "wandb,tensorboard",
            "output_dir": str(folder),
        },
    )
    try:
        run(config)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert capsys.readouterr().err.count("--report-to wandb stopped") == 1
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    seen = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = {}
    for line in lines:
        place = f"eval/{line['model']}" if "model" in line else "train"
        values = {key: value for key, value in line.items() if key not in NOT_SHOWN}
        expected |= {(f"{place}/{key.replace('@', '_at_')}", line["step"]): value for key, value in values.items()}
    assert seen == pytest.approx(expected)
    assert [step for step, _ in recorder.seen] == [0, 2]
    assert recorder.settings["learning_rate"] == 1e-4
    assert [image.step for image in events.Images("eval/neighbors")] == [0, 4]
    assert min(image.width for image in events.Images("eval/neighbors")) > 8 * 96
