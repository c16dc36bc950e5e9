import csv
import io
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets.exceptions import DatasetNotFoundError
from PIL import Image

from stml_semi.data import sources
from stml_semi.data.benchmarks import BENCHMARKS, Benchmark, Split
from stml_semi.data.images import read_image
from stml_semi.data.sources import open_source
from stml_semi.data.tables import ImageTable


def open_labeled(spec: str | Path, **options: Any) -> ImageTable:
    return open_source(str(spec), **{"flag": "--labeled", "labels": "required", **options})


def open_unlabeled(spec: str | Path, **options: Any) -> ImageTable:
    return open_source(str(spec), **{"flag": "--unlabeled", "labels": "ignored", **options})


def save(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level, level, level)).save(path)
    return path


def level(table: ImageTable, row: int) -> int:
    """The gray level that tells the test's pictures apart."""
    red = read_image(table.source(row)).getpixel((0, 0))
    assert isinstance(red, tuple)
    return red[0]


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def refusal(open_it: Any, *arguments: Any, **options: Any) -> str:
    """The text of the one-line ValueError."""
    with pytest.raises(ValueError) as caught:
        open_it(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(options.get("flag", "--labeled" if open_it is open_labeled else "--unlabeled") + " ")
    return text


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Three class folders: wren (2 pictures), robin (2, one nested), tit (1)."""
    save(tmp_path / "birds/wren/b.png", 10)
    save(tmp_path / "birds/wren/a.PNG", 20)
    save(tmp_path / "birds/robin/z.bmp", 30)
    save(tmp_path / "birds/robin/deep/down/y.png", 40)
    save(tmp_path / "birds/tit/x.gif", 50)
    (tmp_path / "birds/tit/notes.txt").write_text("not a picture")
    save(tmp_path / "birds/tit/.hidden.png", 60)
    save(tmp_path / "birds/.cache/c.png", 70)
    (tmp_path / "birds/empty").mkdir()
    return tmp_path / "birds"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A csv beside the pictures it names."""
    rows = [("pics/0.png", "wren"), ("pics/1.png", "robin"), ("pics/2.png", "wren")]
    for i, (path, _) in enumerate(rows):
        save(tmp_path / path, i)
    return write_csv(tmp_path / "list.csv", ("path", "label"), *rows)


def write_csv(path: Path, *rows: tuple[Any, ...], delimiter: str = ",") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


# Folders


def test_class_folders(birds):
    table = open_labeled(birds)
    assert table.classes == ("robin", "tit", "wren")
    assert [level(table, row) for row in range(len(table))] == [30, 40, 50, 20, 10]
    assert table.labels is not None
    assert table.labels.dtype == np.int64
    assert table.labels.tolist() == [0, 0, 1, 2, 2]
    assert table.images.column_names == ["image"]
    assert table.describe(3) == str(birds / "wren/a.PNG")


def test_loose_images_at_any_depth_need_no_labels(birds):
    save(birds / "loose.png", 80)
    table = open_unlabeled(birds)
    assert table.labels is None
    assert table.classes == ()
    assert sorted(level(table, row) for row in range(len(table))) == [10, 20, 30, 40, 50, 80]
    again = open_unlabeled(birds)
    assert [again.describe(row) for row in range(6)] == [table.describe(row) for row in range(6)]


def test_links_are_followed_and_loops_end(birds, tmp_path):
    save(tmp_path / "elsewhere/e.png", 90)
    (birds / "linked").symlink_to(tmp_path / "elsewhere")
    (birds / "wren/loop").symlink_to(birds)
    (birds / "wren/self").symlink_to(birds / "wren")
    (birds / "gone").symlink_to(tmp_path / "nowhere")
    (birds / "itself").symlink_to(birds / "itself")
    everything = open_unlabeled(birds)
    assert sorted(level(everything, row) for row in range(len(everything))) == [10, 20, 30, 40, 50, 90]
    table = open_labeled(birds)
    assert table.classes == ("linked", "robin", "tit", "wren")
    assert table.labels is not None
    assert np.bincount(table.labels).tolist() == [1, 2, 1, 2]


def test_broken_links_with_a_picture_name_stay_in_the_table(birds):
    (birds / "tit/gone.png").symlink_to(birds / "nowhere.png")
    assert len(open_labeled(birds)) == 6


def test_optional_labels_are_taken_where_the_folder_has_them(birds):
    assert open_source(str(birds), flag="--data", labels="optional").classes == ("robin", "tit", "wren")
    save(birds / "loose.png", 80)
    mixed = open_source(str(birds), flag="--data", labels="optional")
    assert mixed.labels is None
    assert len(mixed) == 6


def test_a_folder_of_splits_is_no_folder_of_classes(birds):
    birds.rename(birds.with_name("train"))
    root = birds.parent
    assert refusal(open_labeled, root).endswith(f"holds splits, not classes; name one of train as in {root}:train")
    table = open_labeled(f"{root}:train")
    assert len(table) == 5
    assert "no sub-folder 'test'; there are train" in refusal(open_labeled, f"{root}:test")
    assert open_source(str(root), flag="--data", labels="optional").labels is None


def test_metadata_labels_are_used_when_labels_are_wanted(tmp_path):
    for i in range(3):
        save(tmp_path / f"pictures/{i}.png", i)
    write_csv(tmp_path / "pictures/metadata.csv", ("file_name", "species"), ("0.png", "b"), ("2.png", "a"))
    table = open_labeled(tmp_path / "pictures")
    assert [level(table, row) for row in range(2)] == [0, 2]
    assert table.classes == ("a", "b")
    assert table.labels is not None
    assert table.labels.tolist() == [1, 0]
    assert len(open_unlabeled(tmp_path / "pictures")) == 3
    (tmp_path / "pictures/metadata.csv").unlink()
    lines = [{"file_name": "0.png", "text": "no label"}]
    (tmp_path / "pictures/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "loose in the folder" in refusal(open_labeled, tmp_path / "pictures")


def test_loose_images_where_classes_are_needed(tmp_path):
    save(tmp_path / "pics/a.png")
    text = refusal(open_labeled, tmp_path / "pics")
    assert "1 images lie loose in the folder, such as a.png; one sub-folder per class is needed, as in" in text
    assert f"{tmp_path}/pics/robin/1.jpg" in text
    save(tmp_path / "pics/wren/b.png")
    assert "1 images lie beside the class folders, such as a.png" in refusal(open_labeled, tmp_path / "pics")


def test_empty_folders_say_what_was_looked_for(tmp_path):
    (tmp_path / "a.txt").touch()
    for open_it in (open_labeled, open_unlabeled):
        text = refusal(open_it, tmp_path)
        assert "no images at any depth; check the path" in text
        assert ".jpg" in text
        assert ".webp" in text
    write_csv(tmp_path / "list.csv", ("path",))
    assert "the folder holds list.csv: name that file" in refusal(open_unlabeled, tmp_path)


def test_one_class_is_not_enough(tmp_path):
    save(tmp_path / "birds/wren/b.png", 10)
    assert "only one class, 'wren'; a metric compares classes: give at least two" in refusal(
        open_labeled, tmp_path / "birds"
    )


# Tables


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_tables_of_paths_start_from_their_own_folder(listed, tmp_path, kind, monkeypatch):
    frame = pd.read_csv(listed)
    outside = save(tmp_path / "other/9.png", 9)
    frame.loc[len(frame)] = [str(outside), "tit"]
    target = tmp_path / f"table.{kind}"
    match kind:
        case "csv" | "tsv":
            frame.to_csv(target, index=False, sep="," if kind == "csv" else "\t")
        case "parquet":
            frame.to_parquet(target)
        case _:
            frame.to_json(target, orient="records", lines=kind == "jsonl")
    monkeypatch.chdir("/")
    table = open_labeled(target)
    assert [level(table, row) for row in range(4)] == [0, 1, 2, 9]
    assert table.classes == ("robin", "tit", "wren")
    assert table.labels is not None
    assert table.labels.tolist() == [2, 0, 2, 1]
    assert table.describe(3) == str(outside)
    assert len(open_unlabeled(target)) == 4


@pytest.mark.parametrize("names", [("IMG", "Class"), ("file_name", "species"), ("image_path", "product_id")])
def test_columns_are_found_by_usual_names(listed, tmp_path, names):
    rows = [(i, *line.split(",")) for i, line in enumerate(listed.read_text().splitlines()[1:])]
    other = write_csv(tmp_path / "named.csv", ("id", *names), *rows)
    assert open_labeled(other).classes == ("robin", "wren")


def test_columns_can_be_named(listed, tmp_path):
    rows = [tuple(line.split(",")) for line in listed.read_text().splitlines()[1:]]
    odd = write_csv(tmp_path / "odd.csv", ("was", "wer"), *rows)
    text = refusal(open_labeled, odd)
    assert "no image column among was, wer; name it with --labeled-image-column" in text
    text = refusal(open_labeled, odd, image_column="was")
    assert "no label column among was, wer; name it with --labeled-label-column" in text
    text = refusal(open_labeled, odd, image_column="vas")
    assert "no column 'vas'; set --labeled-image-column to one of was, wer" in text
    text = refusal(open_labeled, odd, image_column="was", label_column="ver")
    assert "no column 'ver'; set --labeled-label-column to one of was, wer" in text
    assert open_labeled(odd, image_column="was", label_column="wer").classes == ("robin", "wren")
    assert len(open_unlabeled(odd, image_column="was")) == 3


def test_an_edited_csv_is_never_stale(listed, tmp_path):
    assert len(open_labeled(listed)) == 3
    stamp = os.stat(listed)
    text = listed.read_text().replace("pics/2.png,wren", "pics/0.png,crow")
    listed.write_bytes(text.replace("\n", "\r\n").encode())
    os.utime(listed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # Same name, size and time: only the content differs.
    assert os.stat(listed).st_size == stamp.st_size
    table = open_labeled(listed)
    assert table.classes == ("crow", "robin", "wren")
    assert level(table, 2) == 0


def test_text_labels_stay_what_they_are(tmp_path):
    save(tmp_path / "0.png")
    rows = [("0.png", name) for name in ("007", "7", "NA", "null", "10")]
    assert open_labeled(write_csv(tmp_path / "l.csv", ("image", "label"), *rows)).classes == (
        *("007", "10", "7"),
        *("NA", "null"),
    )


def test_integer_labels_become_contiguous(tmp_path):
    frame = pd.DataFrame({"image": [encoded(1), encoded(2), encoded(3)], "item_id": [900, -5, 900]})
    frame.to_parquet(tmp_path / "bytes.parquet")
    table = open_labeled(tmp_path / "bytes.parquet")
    assert table.classes == ("-5", "900")
    assert table.labels is not None
    assert table.labels.tolist() == [1, 0, 1]
    assert [level(table, row) for row in range(3)] == [1, 2, 3]
    assert table.describe(2) == f"{tmp_path}/bytes.parquet[2]"


def test_parquet_with_features(tmp_path):
    features = Features(
        {
            "note": Value("string"),
            "label": Value("int64"),
            "mask": datasets.Image(),
            "species": ClassLabel(names=["z", "unused", "a"]),
            "image": datasets.Image(),
        }
    )
    rows = {
        "note": ["x", "y"],
        "label": [5, 6],
        "mask": [{"bytes": encoded(200), "path": None}] * 2,
        "species": [0, 2],
        "image": [{"bytes": encoded(i), "path": "name.png"} for i in (1, 2)],
    }
    datasets.disable_progress_bars()
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    table = open_labeled(tmp_path / "t.parquet")
    assert table.classes == ("a", "z"), "the ClassLabel goes before a plain column, unused names are no classes"
    assert table.labels is not None
    assert table.labels.tolist() == [1, 0]
    assert [level(table, row) for row in range(2)] == [1, 2]
    assert open_labeled(tmp_path / "t.parquet", label_column="label").classes == ("5", "6")
    assert level(open_unlabeled(tmp_path / "t.parquet", image_column="mask"), 0) == 200


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_and_categories_of_other_tools(tmp_path, kind):
    categories = pa.array(["x", "y"]).dictionary_encode()
    pq.write_table(
        pa.table({"label": categories, "png": pa.array([encoded(1), encoded(2)], kind)}), tmp_path / "t.parquet"
    )
    table = open_labeled(tmp_path / "t.parquet")
    assert table.classes == ("x", "y")
    assert level(table, 1) == 2


def test_large_parquet_files_are_memory_mapped_and_never_stale(tmp_path, monkeypatch, capfd):
    datasets.enable_progress_bars()
    monkeypatch.setattr("stml_semi.data.tables._IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for values in ([1, 2], [3, 4]):
        frame = pd.DataFrame({"image": [encoded(value) for value in values], "label": ["a", "b"]})
        frame.to_parquet(tmp_path / "t.parquet")
        table = open_labeled(tmp_path / "t.parquet")
        assert [level(table, row) for row in range(2)] == values
        assert table.images.cache_files
    assert capfd.readouterr() == ("", ""), "progress bars of a local file"


def test_missing_labels_are_counted(tmp_path):
    save(tmp_path / "0.png")
    holes = write_csv(tmp_path / "l.csv", ("image", "label"), ("0.png", "a"), ("0.png", ""), ("0.png", ""))
    text = refusal(open_labeled, holes)
    assert "2 of 3 rows have no label in column 'label'; fill them in or drop them" in text
    assert len(open_unlabeled(holes)) == 3
    (tmp_path / "l.jsonl").write_text('{"image": "0.png", "label": 1}\n{"image": "0.png"}\n')
    assert "1 of 2 rows" in refusal(open_labeled, tmp_path / "l.jsonl")
    frame = pd.DataFrame({"image": [encoded(1)] * 3, "label": [1.0, float("nan"), 2.0]})
    frame.to_parquet(tmp_path / "l.parquet")
    assert "1 of 3 rows" in refusal(open_labeled, tmp_path / "l.parquet")
    pq.write_table(pa.table({"image": [encoded(1)] * 3, "label": [0.5, float("nan"), None]}), tmp_path / "l.parquet")
    assert "2 of 3 rows" in refusal(open_labeled, tmp_path / "l.parquet")
    hidden = Features({"image": datasets.Image(), "label": ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": encoded(1), "path": None}] * 3, "label": [0, -1, 1]}
    Dataset.from_dict(rows, features=hidden).save_to_disk(tmp_path / "saved")
    assert "1 of 3 rows" in refusal(open_labeled, tmp_path / "saved")


def test_labels_are_not_read_when_they_are_ignored(tmp_path):
    save(tmp_path / "0.png", 7)
    (tmp_path / "l.jsonl").write_text('{"image": "0.png", "label": [1]}\n{"image": "0.png", "label": "x"}\n')
    assert len(open_unlabeled(tmp_path / "l.jsonl")) == 2
    frame = pd.DataFrame({"image": [encoded(1)], "label": ["x"]})
    frame.to_parquet(tmp_path / "l.parquet")
    asked = []
    read = pq.ParquetFile.read

    def spy(self: Any, columns: list[str]) -> Any:
        asked.append(columns)
        return read(self, columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq.ParquetFile, "read", spy)
        open_unlabeled(tmp_path / "l.parquet")
        open_labeled(tmp_path / "l.parquet,kanji")
    assert asked[:2] == [["image"], ["image", "label"]]


def test_paths_that_do_not_exist(listed, tmp_path):
    rows = [("gone/0.png", "a"), ("gone/1.png", "b")]
    text = refusal(open_labeled, write_csv(tmp_path / "gone.csv", ("path", "label"), *rows))
    assert f"none of the first 2 files in column 'path' exists, such as {tmp_path}/gone/0.png" in text
    assert f"must be absolute or start from {tmp_path}" in text
    some = write_csv(tmp_path / "some.csv", ("path", "label"), *rows, ("pics/0.png", "a"), ("", "b"))
    table = open_labeled(some)  # A few lost files are bad pictures, not a bad table.
    assert len(table) == 4
    assert table.source(3) == {"bytes": None, "path": None}
    assert table.describe(3) == f"{some}[3]"


def test_tables_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_text("image,label\n1,2\n1,2,3,4\n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "a.json").write_text("[{]")
    (tmp_path / "b.json").write_text("[1, 2]")
    (tmp_path / "a.jsonl").write_bytes(b'{"image": "\xff\xfe"}')
    for name in ("a.csv", "a.parquet", "a.json", "b.json", "a.jsonl"):
        assert "cannot be read, check the file: " in refusal(open_labeled, tmp_path / name)
    (tmp_path / "empty.csv").touch()
    assert "is empty; give a table with a column of images" in refusal(open_labeled, tmp_path / "empty.csv")
    header = write_csv(tmp_path / "header.csv", ("image", "label"))
    assert "holds no rows" in refusal(open_labeled, header)
    (tmp_path / "a.xlsx").touch()
    text = refusal(open_labeled, tmp_path / "a.xlsx")
    assert "'.xlsx' is no known table; give a folder or a .csv, .tsv, .jsonl, .json, .parquet file" in text
    assert "a file has no splits; leave ':train' out" in refusal(open_labeled, f"{header}:train")


def test_lists_in_the_label_column_are_refused(tmp_path):
    pq.write_table(pa.table({"image": [encoded(1)], "label": [[1, 2]]}), tmp_path / "t.parquet")
    assert "no label column among image, label" in refusal(open_labeled, tmp_path / "t.parquet")


def test_long_lists_keep_their_order_and_pickle_small(tmp_path):
    lines = "\n".join(f"{i}.png,{i % 1000}" for i in range(100_000))
    (tmp_path / "l.csv").write_text(f"path,label\n{lines}\n")
    save(tmp_path / "0.png")
    table = open_labeled(tmp_path / "l.csv")
    assert len(table) == 100_000
    assert table.labels is not None
    assert table.classes[table.labels[54_321]] == "321"
    assert table.describe(54_321) == str(tmp_path / "54321.png")
    assert len(pickle.dumps(table)) < 200 * len(table)


# Saved data sets and the hub


def saved(values: list[int]) -> Dataset:
    features = Features({"img": datasets.Image(), "fine_label": ClassLabel(names=["b", "a"])})
    rows = {"img": [{"bytes": encoded(v), "path": None} for v in values], "fine_label": [v % 2 for v in values]}
    return Dataset.from_dict(rows, features=features)


def test_data_sets_saved_to_disk(tmp_path):
    saved([1, 2]).save_to_disk(tmp_path / "one")
    table = open_labeled(tmp_path / "one")
    assert table.classes == ("a", "b")
    assert [level(table, row) for row in range(2)] == [1, 2]
    assert "has no splits; leave ':test' out" in refusal(open_labeled, f"{tmp_path}/one:test")
    DatasetDict({"train": saved([1, 2]), "test": saved([3, 4])}).save_to_disk(tmp_path / "two")
    assert level(open_labeled(tmp_path / "two"), 0) == 1
    assert level(open_labeled(f"{tmp_path}/two:test"), 0) == 3
    text = refusal(open_labeled, f"{tmp_path}/two:val")
    assert f"no split 'val'; name one of train, test as in {tmp_path}/two:train" in text
    DatasetDict({"data": saved([5, 6])}).save_to_disk(tmp_path / "other")
    assert level(open_labeled(tmp_path / "other"), 0) == 5


def test_memory_mapped_tables_pickle_small(tmp_path):
    saved(list(range(200))).save_to_disk(tmp_path / "set")
    table = open_labeled(tmp_path / "set")
    pickled = pickle.dumps(table)
    assert len(pickled) < 20_000
    copy = pickle.loads(pickled)
    assert copy.source(7) == table.source(7)
    assert copy.name == table.name
    assert copy.labels.tolist() == [1, 0] * 100  # Even pictures are "b", odd ones "a".


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
    assert "hub cannot be asked: go online and unset HF_HUB_OFFLINE, or give a local path" in offline
    assert "no data set on the Hugging Face hub; did you mean kanji?" in refusal(open_labeled, "kanij")
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


# Benchmarks


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


# Joins, and odd names


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
    assert sources.split_spec("C:\\pictures") == ("C:\\pictures", None)
    assert sources.split_spec("user/set:train[:10%]") == ("user/set", "train[:10%]")


def test_the_home_folder_is_understood(birds, monkeypatch):
    monkeypatch.setenv("HOME", str(birds.parent))
    assert len(open_labeled("~/birds")) == 5


# Manners


def test_importing_is_cheap():
    heavy = "{'datasets', 'torch', 'transformers', 'PIL', 'pyarrow'}"
    code = f"import sys, stml_semi.data.sources; print(*{heavy}.intersection(sys.modules))"
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
