"""Runs whose relations are calibrated, within this process: what a step computes, and what a resume needs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.pictures import write_pictures
from helpers.real_runs import TERMS
from safetensors.torch import load_file

from stml_semi.models.teacher import Teacher
from stml_semi.training.resolve import resolve
from stml_semi.training.run import novelty, run


@pytest.fixture
def train(make_backbone, tmp_path) -> Callable[..., Path]:
    """Eight labeled classes, two steps on labels alone; 40 of 48 unlabeled images are renewed at a refresh, other ones
    each time, before the steps 3, 6 and 9."""
    for name in "abcdefgh":
        write_pictures(tmp_path / "labeled" / name, 5, seed=ord(name))
    for number in range(12):
        write_pictures(tmp_path / "photos" / str(number), 4, seed=number)
    settings: dict[str, Any] = {
        "labeled": str(tmp_path / "labeled"),
        "unlabeled": str(tmp_path / "photos"),
        "backbone": str(make_backbone("resnet")),
        "num_workers": 0,
        "labeled_batch_size": 8,
        "images_per_class": 2,
        "unlabeled_batch_size": 10,
        "pool_size": 40,
        "embedding_dim": 16,
        "auxiliary_dim": 16,
        "label_warmup_steps": 2,
        "refresh_every": 3,
        "max_steps": 10,
        "log_every": 1,
        "save_every": 1,
        "keep_checkpoints": 20,
        "eval_every": 0,
        "no_report": True,
    }

    def start(folder: Path, **values: object) -> Path:
        run(resolve("semi", settings | {"output_dir": str(folder)} | values))
        return folder

    return start


def lines(folder: Path) -> list[dict[str, float]]:
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: line.get(key) for key in ("step", "trust", *TERMS)} for line in found if "loss" in line]


def test_a_run_that_is_killed_around_a_refresh_goes_on_with_the_same_numbers(train, tmp_path):
    whole = train(tmp_path / "whole")
    expected = lines(whole)
    assert [line["trust"] is not None for line in expected] == [False] * 2 + [True] * 8
    # Once a pool, and the teacher learns.
    assert len({line["trust"] for line in expected[2:]}) == 3
    # Before the first refresh; at it; right after it; before the second one; right after it.
    for step in (1, 2, 3, 5, 6):
        folder = tmp_path / f"killed-{step}"
        shutil.copytree(whole, folder)
        shutil.rmtree(folder / "model")
        for checkpoint in (folder / "checkpoints").iterdir():
            if int(checkpoint.name.removeprefix("step-")) > step:
                shutil.rmtree(checkpoint)
        train(folder, resume=True)
        assert lines(folder) == expected, step
        weights = [(place / "model" / "model.safetensors").read_bytes() for place in (whole, folder)]
        assert weights[0] == weights[1]


def test_a_calibrated_step_asks_the_teacher_nothing(train, tmp_path, monkeypatch):
    seen = []
    forward = Teacher.forward

    def count(self, pixels):
        seen.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(Teacher, "forward", count)
    train(tmp_path / "run")
    # All 48 images and the 40 labeled ones once, then 40 images twice.
    assert sum(seen) == 48 + 40 + 2 * 40
    seen.clear()
    train(tmp_path / "batch", relations="batch")
    assert sum(seen) == 48 + 2 * 40 + 8 * 10 * 2


def test_a_sigma_that_is_not_used_is_told(train, tmp_path, capsys):
    told = "warning: --sigma 3 is not used, because labels calibrate the relations"
    short = {"sigma": 3.0, "max_steps": 3, "save_every": 0}
    train(tmp_path / "run", **short)
    assert told in capsys.readouterr().err
    train(tmp_path / "batch", relations="batch", **short)
    assert told not in capsys.readouterr().err


def test_trust_is_in_the_log_on_the_terminal_and_in_the_report(train, tmp_path, capsys):
    folder = train(tmp_path / "run", no_report=False)
    shown = lines(folder)[-1]["trust"]
    assert f" trust {shown:.0%}, " in capsys.readouterr().err
    assert "Trust: share of the pull between unlabeled images that is right" in (folder / "report.html").read_text()


def test_the_learning_rate_follows_trust(train, tmp_path):
    folder = train(tmp_path / "run", learning_rate=1e-3, label_learning_rate=1e-4, lr_schedule="constant")
    found = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    rates, trusts = ([line.get(key, 0.0) for line in found if "loss" in line] for key in ("lr", "trust"))
    assert trusts[:2] == [0, 0]
    assert 0 < trusts[2] < 1
    assert rates == pytest.approx([1e-4 + 9e-4 * trust for trust in trusts])
    flat = train(tmp_path / "flat", learning_rate=1e-3, label_learning_rate=1e-3, max_steps=3)
    moved = [second_step(run) for run in (folder, flat)]
    assert moved[1] > 5 * moved[0] > 0


def second_step(folder: Path) -> float:
    """How far it took a head."""
    first, second = (load_file(folder / f"checkpoints/step-{i}/modules.safetensors") for i in (1, 2))
    return float((second["embedder.head_f.weight"] - first["embedder.head_f.weight"]).norm())


@pytest.mark.parametrize("relations", ["pool", "batch"])
def test_unlabeled_images_that_are_the_labeled_ones_have_no_weight(train, tmp_path, capsys, relations):
    """The run is one on labels alone, at the rate of such a run."""
    values = {"learning_rate": 1e-3, "lr_schedule": "constant", "relations": relations}
    folder = train(tmp_path / "run", unlabeled=str(tmp_path / "labeled"), **values)
    assert "100% of the unlabeled images are labeled ones too: they show nothing new" in capsys.readouterr().err
    found = [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert {(line["lr"], line["unlabeled_weight"], line["trust"]) for line in found} == {(1e-4, 0.0, 0.0)}
    half = f"{tmp_path / 'labeled'},{tmp_path / 'photos'}"
    mixed = train(tmp_path / "half", unlabeled=half, max_steps=4, relations=relations)
    weights = [json.loads(line).get("unlabeled_weight") for line in (mixed / "metrics.jsonl").read_text().splitlines()]
    assert weights[3] > 0


def test_as_many_new_images_as_labeled_ones_have_their_whole_weight():
    assert [novelty(shared) for shared in (0.0, 0.04, 0.5, 0.75, 0.9, 1.0)] == pytest.approx([1, 1, 1, 1 / 3, 1 / 9, 0])
