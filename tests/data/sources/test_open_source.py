"""Hub ids, benchmarks, joined sources, and how a spec is taken apart."""

import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import pandas as pd
import pytest
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError
from helpers.source_helpers import encoded, level, open_labeled, open_unlabeled, refusal, save, saved

from stml_semi.data.benchmarks.facts import BENCHMARKS, Benchmark, Split
from stml_semi.data.images import read_image
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.sources.request import split_spec


def test_hub_ids(monkeypatch):
    asked = []

    def load_dataset(name: str, split: str, **_: object) -> Dataset:
        asked.append((name, split))
        if split == "validation":
            raise ValueError("Unknown split \"validation\". Should be one of ['train', 'test'].")
        return saved([1, 2] if split == "train" else [3, 4])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert level(open_labeled("someone/birds"), 0) == 1
    assert level(open_labeled("someone/birds:test"), 0) == 3
    assert open_unlabeled("plain-name").labels is None
    assert asked == [("someone/birds", "train"), ("someone/birds", "test"), ("plain-name", "train")]
    text = refusal(open_labeled, "someone/birds:validation")
    assert "Should be one of ['train', 'test']; name a split as in someone/birds:test" in text
    assert open_labeled("someone/birds:train,someone/birds:test").classes == ("a", "b")


def test_hub_ids_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "birds/a/1.png")

    def load_dataset(name: str, split: str, **_: object) -> Dataset:
        raise {
            "offline": ConnectionError("Couldn't reach it on the Hub (OfflineModeIsEnabled)"),
            "script": RuntimeError("Dataset scripts are no longer supported, but found script.py"),
        }.get(name, DatasetNotFoundError("doesn't exist on the Hub"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    offline = refusal(open_labeled, "offline")
    assert "hub cannot be reached: go online and unset HF_HUB_OFFLINE, or give a local path" in offline
    assert "no such file or folder; did you mean kanji?" in refusal(open_labeled, "kanij")
    assert "did you mean birds?" in refusal(open_labeled, "brids")
    assert "benchmarks are kanji, kanji-more" in refusal(open_labeled, "someone/qqqq")
    script = refusal(open_labeled, "script")
    assert "Dataset scripts are no longer supported" in script
    assert "save it with save_to_disk" in script


def test_paths_that_are_nowhere_are_not_looked_for_on_the_hub(birds, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    for spec, fix in (
        (f"{tmp_path}/brids", f"did you mean {birds}?"),
        (f"{tmp_path}/none/x", "benchmarks are kanji"),
        ("./qqqq", "benchmarks are kanji"),
        ("list.csv", "benchmarks are kanji"),
    ):
        text = refusal(open_labeled, spec)
        assert "no such file or folder" in text
        assert fix in text


def test_embedded_benchmarks_keep_their_word():
    for benchmark in filter(lambda known: known.embedded, BENCHMARKS.values()):
        for split in benchmark.splits:
            table = open_source(f"{benchmark.name}:{split}", flag="--data", labels="optional")
            assert table.name == f"{benchmark.name}:{split}"
            assert (table.labels is not None) == benchmark.labeled
            assert table.recall_at == benchmark.recall_at
            assert table.describe(3) == f"{benchmark.name}:{split}[3]"
            read_image(table.source(len(table) - 1))
        assert benchmark.eval is not None
        name, split = benchmark.eval.split(":")
        assert split in BENCHMARKS[name].splits
    train, test = open_labeled("kanji"), open_labeled("kanji:test")
    assert train.name == "kanji:train"
    assert not set(train.classes) & set(test.classes)


def test_benchmark_errors(monkeypatch):
    assert "no split 'val'; kanji has train, test" in refusal(open_labeled, "kanji:val")
    assert "has no labels; it is meant for --unlabeled" in refusal(open_labeled, "kanji-more")
    lost = Benchmark(
        "lost", "Lost", {"train": Split(1, file=Path("/nowhere/lost.parquet"))}, labeled=True, eval="lost:train"
    )
    monkeypatch.setitem(BENCHMARKS, "lost", lost)
    assert "cannot be read" in refusal(open_labeled, "lost")


def test_a_folder_with_a_benchmarks_name_needs_a_dot(birds, monkeypatch):
    birds.rename(birds.with_name("kanji"))
    monkeypatch.chdir(birds.parent)
    assert open_labeled("kanji").name == "kanji:train"
    assert len(open_labeled("./kanji")) == 5


def test_joined_sources_keep_their_classes_apart(birds, listed):
    table = open_labeled(f"{birds}, {listed}")
    assert len(table) == 8
    assert table.classes == (
        *(f"{birds}/{name}" for name in ("robin", "tit", "wren")),
        *(f"{listed}/{name}" for name in ("robin", "wren")),
    )
    assert table.labels is not None
    assert table.labels.tolist() == [0, 0, 1, 2, 2, 4, 3, 4]
    assert level(table, 7) == 2


def test_splits_of_one_source_share_their_classes(birds, tmp_path):
    birds.rename(tmp_path / "train")
    save(tmp_path / "test/robin/t.png", 70)
    save(tmp_path / "test/crow/t.png", 80)
    table = open_labeled(f"{tmp_path}:train,{tmp_path}:test")
    assert table.classes == ("crow", "robin", "tit", "wren")
    assert table.labels is not None
    assert table.labels.tolist() == [1, 1, 2, 3, 3, 0, 1]


def test_joined_rows_are_described_by_their_own_source(tmp_path):
    pd.DataFrame({"image": [encoded(1), encoded(2)]}).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"image": [encoded(3)]}).to_parquet(tmp_path / "b.parquet")
    table = open_unlabeled(f"{tmp_path}/a.parquet,{tmp_path}/b.parquet")
    found = [table.describe(row) for row in range(3)]
    assert found == [f"{tmp_path}/a.parquet[0]", f"{tmp_path}/a.parquet[1]", f"{tmp_path}/b.parquet[0]"]
    assert [level(table, row) for row in range(3)] == [1, 2, 3]
    copy = pickle.loads(pickle.dumps(table))
    assert level(copy, 2) == 3


def test_joins_that_make_no_sense(birds):
    assert "names the same source twice" in refusal(open_labeled, f"{birds},{birds}")
    assert "names the same source twice" in refusal(open_labeled, "kanji,kanji:train")
    assert "names nothing" in refusal(open_labeled, f"{birds},")
    optional = open_source(f"{birds},kanji-more", flag="--data", labels="optional")
    assert optional.labels is None
    assert optional.classes == ()


def test_colons_and_commas_in_existing_paths_separate_nothing(birds):
    for name in ("day:one", "a,b", "C:train"):
        birds = birds.rename(birds.with_name(name))
        assert len(open_labeled(birds)) == 5
    assert split_spec("C:\\pictures") == ("C:\\pictures", None)
    assert split_spec("user/set:train[:10%]") == ("user/set", "train[:10%]")


def test_the_home_folder_is_understood(birds, monkeypatch):
    monkeypatch.setenv("HOME", str(birds.parent))
    assert len(open_labeled("~/birds")) == 5


def test_importing_is_cheap():
    heavy = "{'datasets', 'torch', 'transformers', 'PIL', 'pyarrow'}"
    code = f"import sys, stml_semi.data.sources.open_source; print(*{heavy}.intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_local_files_are_read_in_silence(birds, listed, tmp_path, capfd, caplog):
    saved([1, 2]).save_to_disk(tmp_path / "set")
    datasets.enable_progress_bars()
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for spec in (birds, listed, tmp_path / "set", "kanji"):
            open_labeled(spec)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not datasets.are_progress_bars_disabled(), "the user's own setting is kept"


def test_flags_are_named_as_given(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"--eval {tmp_path}: no images")):
        open_source(str(tmp_path), flag="--eval", labels="required")
