"""Train and test by classes."""

import json

import numpy as np
import pytest
from helpers.pictures import write_pictures

from stml_semi.data.class_split import split_by_classes
from stml_semi.data.image_table import ImageTable
from stml_semi.data.run_tables import open_tables
from stml_semi.data.sources.open_source import open_source
from stml_semi.run_folder.folder import RunFolder
from stml_semi.run_folder.recipe import build_config
from stml_semi.training.resolve import resolve


@pytest.fixture
def birds(tmp_path):
    for i, name in enumerate("abcdefgh"):
        write_pictures(tmp_path / "birds" / name, 2 + i % 3, seed=i)
    return tmp_path / "birds"


def opened(folder) -> ImageTable:
    return open_source(str(folder), flag="--labeled", labels="required")


def test_classes_are_divided_and_keep_their_pictures(birds):
    table = opened(birds)
    train, test = split_by_classes(table, 0.5, seed=0)
    assert len(train.classes) == len(test.classes) == 4
    assert sorted(train.classes + test.classes) == list(table.classes)
    assert len(train) + len(test) == len(table)
    for part in (train, test):
        assert part.labels is not None
        assert sorted(set(part.labels.tolist())) == [0, 1, 2, 3]
        for row in range(len(part)):
            assert f"/birds/{part.classes[part.labels[row]]}/" in part.describe(row)
    assert test.name == f"{birds} (test classes)"
    assert len(split_by_classes(table, 0.01, seed=0).kept.classes) == 2
    assert len(split_by_classes(table, 0.99, seed=0).train.classes) == 2


def test_the_draw_is_by_seed_and_names_alone(birds):
    first = split_by_classes(opened(birds), 0.5, seed=3).kept.classes
    assert split_by_classes(opened(birds), 0.5, seed=3).kept.classes == first
    write_pictures(birds / "a", 30)
    assert split_by_classes(opened(birds), 0.5, seed=3).kept.classes == first
    assert len({split_by_classes(opened(birds), 0.5, seed=seed).kept.classes for seed in range(8)}) > 4


def test_rows_are_told_as_in_the_source():
    table = open_source("kanji", flag="--labeled", labels="required")
    test = split_by_classes(table, 0.3, seed=0).kept
    assert test.rows is not None
    row = 17
    assert test.describe(row) == f"kanji:train (test classes)[{test.rows[row]}]"
    assert test.source(row) == table.source(int(test.rows[row]))
    assert test.labels is not None
    assert table.labels is not None
    assert table.classes[table.labels[test.rows[row]]] == test.classes[test.labels[row]]


def test_too_few_classes_or_pictures(birds, tmp_path):
    for name in "abc":
        write_pictures(tmp_path / "three" / name, 2)
    with pytest.raises(ValueError, match=r"--test-classes 0.5: .*three has 3 classes"):
        split_by_classes(opened(tmp_path / "three"), 0.5, seed=0)
    for name in "abcdef":
        write_pictures(tmp_path / "single" / name, 1)
    with pytest.raises(ValueError, match="none of the 3 classes kept for evaluation has two images"):
        split_by_classes(opened(tmp_path / "single"), 0.5, seed=0)


def test_a_run_keeps_its_classes(birds, tmp_path):
    values = {"labeled": str(birds), "test_classes": 0.5, "output_dir": str(tmp_path / "run")}
    config = resolve("sup", values)
    assert config.eval is None
    tables = open_tables(config)
    assert tables.labeled is not None
    assert tables.evaluation is not None
    assert not set(tables.labeled.classes) & set(tables.evaluation.classes)
    folder = RunFolder(tmp_path / "run")
    kept = {"test": list(tables.evaluation.classes)}
    folder.prepare(config, kept)
    assert json.loads((tmp_path / "run/test_classes.json").read_text()) == list(tables.evaluation.classes)
    folder.check_classes(kept)
    with pytest.raises(ValueError, match="--resume: --labeled has other classes than when"):
        folder.check_classes({"test": list(tables.labeled.classes)})
    folder.prepare(config.model_copy(update={"overwrite": True}), {})
    assert not (tmp_path / "run/test_classes.json").exists()
    assert np.isclose(config.test_classes or 0, 0.5)
    assert resolve("sup", {"labeled": "kanji", "test_classes": 0.5}).eval is None


def test_it_stands_in_for_eval_only():
    with pytest.raises(
        ValueError, match="--test-classes keeps classes of --labeled for evaluation: drop it, or --eval"
    ):
        build_config({"labeled": "a", "eval": "b", "test_classes": 0.5})
    with pytest.raises(ValueError, match="--test-classes divides the classes of --labeled"):
        build_config({"unlabeled": "a", "test_classes": 0.5})
    with pytest.raises(ValueError, match="--test-classes 1.5: input should be less than 1"):
        build_config({"labeled": "a", "test_classes": 1.5})
