"""`stml_semi.train` from a program: sources, a loss and callbacks of its own, and what comes back."""

import os
import shutil
import signal
import threading
from typing import Any

import pytest
import torch
from helpers.pictures import write_pictures
from torch import Tensor, nn

import stml_semi
from stml_semi.runtime.errors import BadInput, RunFailed

SMALL: dict[str, Any] = {
    "backbone": "tiny-resnet",
    "image_size": 24,
    "embedding_dim": 8,
    "auxiliary_dim": 8,
    "max_steps": 4,
    "log_every": 2,
    "save_every": 2,
    "num_workers": 0,
    "no_report": True,
}


class Pull(nn.Module):
    """A loss with a parameter: images of class 0 to one side."""

    def __init__(self) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.ones(8))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return (embeddings @ self.direction * (2 * labels - 1)).mean()


@pytest.fixture
def labeled(tmp_path) -> list[tuple[Any, str]]:
    return [
        (path, name) for name in ("wren", "robin") for path in write_pictures(tmp_path / name, 4, seed=ord(name[0]))
    ]


def test_lists_a_module_and_callbacks(labeled, tmp_path):
    seen: dict[str, list[Any]] = {"log": [], "evaluation": [], "checkpoint": []}
    loss = Pull()
    run = stml_semi.train(
        labeled=labeled,
        unlabeled=write_pictures(tmp_path / "loose", 12, seed=5),
        eval=labeled,
        labeled_loss=loss,
        output_dir=str(tmp_path / "run"),
        on_log=seen["log"].append,
        on_evaluation=seen["evaluation"].append,
        on_checkpoint=seen["checkpoint"].append,
        **SMALL,
    )
    assert [line["step"] for line in seen["log"]] == [2, 4]
    assert [path.name for path in seen["checkpoint"]] == ["step-2", "step-4"]
    assert [line["model"] for line in seen["evaluation"]] == ["frozen", "student", "teacher"]
    assert run.metrics["map@r"] == seen["evaluation"][1]["map@r"]
    assert (run.folder, run.model, run.report) == (tmp_path / "run", tmp_path / "run" / "model", None)
    assert not loss.direction.equal(torch.ones(8))  # It has learned.
    assert stml_semi.load(run.model).encode(labeled[0][0]).shape == (8,)
    with pytest.raises(BadInput, match="--labeled-loss python:Pull: is of a Python program"):
        stml_semi.train(labeled=labeled, output_dir=str(tmp_path / "other"), labeled_loss="python:Pull", **SMALL)


def test_a_function_is_a_loss_and_none_is_needed_to_evaluate(labeled, tmp_path):
    def spread(embeddings: Tensor, labels: Tensor) -> Tensor:
        return embeddings.square().mean()

    run = stml_semi.train(labeled=labeled, labeled_loss=spread, output_dir=str(tmp_path / "run"), **SMALL)
    assert run.metrics == {}
    assert run.lines == []
    assert "labeled_loss: python:spread" in (run.folder / "config.yaml").read_text()


def test_ctrl_c_saves_and_resume_continues(labeled, tmp_path):
    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    settings: dict[str, Any] = {**SMALL, "labeled": labeled, "output_dir": str(tmp_path / "run"), "save_every": 0}
    with pytest.raises(RunFailed, match="stopped by SIGINT after step 2; everything is saved"):
        stml_semi.train(on_log=stop, **settings)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    assert stml_semi.train(resume=True, **settings).model.is_dir()


def test_a_run_in_a_thread(labeled, tmp_path):
    found: list[Any] = []
    settings: dict[str, Any] = {**SMALL, "labeled": labeled, "output_dir": str(tmp_path / "run")}
    thread = threading.Thread(target=lambda: found.append(stml_semi.train(**settings)))
    thread.start()
    thread.join()
    assert found[0].model.is_dir()


def test_the_end_says_what_the_run_was_worth_and_a_resumed_run_says_the_same(labeled, tmp_path):
    settings: dict[str, Any] = {**SMALL, "labeled": labeled, "eval": labeled}
    whole = stml_semi.train(**settings, output_dir=str(tmp_path / "whole"))
    gain = whole.metrics["over_frozen"]
    assert gain.keys() == {"recall@1", "map@r"}
    frozen = whole.lines[0]["map@r"]
    assert gain["map@r"][0] == pytest.approx(whole.metrics["map@r"] - frozen)
    assert gain["map@r"][1] <= gain["map@r"][0] <= gain["map@r"][2]
    for line in whole.lines[:-2]:
        assert "over_frozen" not in line
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step-4")
    again = stml_semi.train(**settings, output_dir=str(tmp_path / "whole"), resume=True)
    assert again.lines == whole.lines
