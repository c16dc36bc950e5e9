"""What only a look into the trainer shows, in runs of two steps within this process."""

import json
from pathlib import Path
from typing import Literal

import pytest
from helpers.pictures import write_pictures

import stml_semi
from stml_semi.models.embedder import Embedder
from stml_semi.runtime.errors import RunFailed
from stml_semi.training import step_log
from stml_semi.training.resolve import resolve
from stml_semi.training.run import run


@pytest.fixture
def two_steps(make_backbone, tmp_path):
    for name in "abcd":
        write_pictures(tmp_path / "labeled" / name, 2, seed=ord(name))
    settings = {"labeled": str(tmp_path / "labeled"), "backbone": str(make_backbone("resnet")), "num_workers": 0}
    settings |= {"labeled_batch_size": 8, "images_per_class": 2, "embedding_dim": 16, "max_steps": 2, "log_every": 1}

    def start(command: Literal["semi", "sup"] = "sup", **values):
        return run(resolve(command, settings | {"output_dir": str(tmp_path / "run")} | values))

    return start


def test_a_collapse_is_told_once(two_steps, monkeypatch, capsys):
    monkeypatch.setattr(step_log, "is_collapsed", lambda line: True)
    two_steps()
    assert capsys.readouterr().err.count("the embeddings have collapsed at step 1") == 1


def test_a_collapse_ends_the_run_if_asked(two_steps, monkeypatch):
    monkeypatch.setattr(step_log, "is_collapsed", lambda line: line["effective_rank"] > 0)
    with pytest.raises(RunFailed, match="collapsed at step 1 .effective rank .* lower --learning-rate"):
        two_steps(stop_on_collapse=True)


def test_student_and_teacher_are_compiled_where_asked(two_steps, monkeypatch):
    compiled = []
    monkeypatch.setattr(Embedder, "compile_steps", lambda self: compiled.append(self.training))
    two_steps()
    assert compiled == []
    two_steps(compile=True, overwrite=True)
    assert len(compiled) == 2


def test_classes_of_unlabeled_images_are_for_the_log_alone(two_steps, tmp_path):
    pictures = Path(stml_semi.__file__).parent / "data" / "embedded" / "kanji_train.parquet"
    semi = {"unlabeled": str(pictures), "unlabeled_batch_size": 20, "label_warmup_steps": 0, "no_report": True}

    def lines(**values):
        two_steps(command="semi", **semi, overwrite=True, **values)
        return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    told, hidden = lines(unlabeled_label_column="label"), lines()
    for one, other in zip(told, hidden, strict=True):
        assert 0 <= one["affinity_recall"] <= 1
        assert "affinity_recall" not in other
        assert one["loss"] == other["loss"]
