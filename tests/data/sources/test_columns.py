"""Lists and tables of images: csv, jsonl, parquet, saved data sets."""

import os
import pickle
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from helpers.source_helpers import encoded, level, open_labeled, open_unlabeled, refusal, save, saved, write_csv


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
    monkeypatch.setattr("stml_semi.data.sources.table_files._IN_MEMORY_BYTES", 0)
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
    table = open_labeled(some)  # A few lost files are bad images, not a bad table.
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
    assert copy.labels.tolist() == [1, 0] * 100  # Even images are "b", odd ones "a".
